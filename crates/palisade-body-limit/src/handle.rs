//! The handle with which a handler changes the limit of its own request.

use parking_lot::Mutex;
use std::sync::Arc;

/// Changes the limit of one request. Found in the request's extensions if the layer is
/// [`overridable`](crate::BodyLimitLayer::overridable).
#[derive(Clone, Debug)]
pub struct BodyLimitHandle {
    /// `None` if there is nothing to limit.
    limit: Option<Arc<OverridableLimit>>,
}

/// A limit that the handler may change until the body is read. Locked by the handle, and by the
/// first read of the body.
#[derive(Debug)]
pub(crate) struct OverridableLimit(Mutex<Limit>);

#[derive(Debug)]
struct Limit {
    bytes: u64,
    /// The body has been read, so the limit can no longer be changed.
    is_fixed: bool,
}

// === BodyLimitHandle ===

impl BodyLimitHandle {
    pub(crate) fn new(limit: Option<Arc<OverridableLimit>>) -> Self {
        Self { limit }
    }

    /// Limits the request body to `bytes`. Returns `false` and changes nothing if the body has
    /// already been read from.
    ///
    /// On a request without a body, and while the guard is [`Off`](crate::Mode::Off), there is
    /// nothing to limit. The result is then always `true`.
    ///
    /// ```
    /// use palisade_body_limit::{BodyLimitHandle, BodyLimitLayer, RequestBody};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = BodyLimitLayer::new(10).overridable();
    /// let service = layer.layer(service_fn(async |mut request: Request<RequestBody<_>>| {
    ///     let limit = request.extensions().get::<BodyLimitHandle>().cloned();
    ///     let limit = limit.ok_or("not overridable")?;
    ///     assert!(limit.set(50));
    ///     let _ = request.body_mut().frame().await;
    ///     assert!(!limit.set(1_000)); // Too late.
    ///     echo(request).await
    /// }));
    /// assert_eq!(service.oneshot(Request::new(chunked(3, 20))).await?.status(), 413);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set(&self, bytes: u64) -> bool {
        let Some(limit) = &self.limit else {
            return true;
        };
        let mut limit = limit.0.lock();
        if limit.is_fixed {
            return false;
        }
        limit.bytes = bytes;
        true
    }
}

// === OverridableLimit ===

impl OverridableLimit {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Mutex::new(Limit {
            bytes,
            is_fixed: false,
        }))
    }

    /// Fixes the limit and returns it.
    pub(crate) fn fix(&self) -> u64 {
        let mut limit = self.0.lock();
        limit.is_fixed = true;
        limit.bytes
    }
}
