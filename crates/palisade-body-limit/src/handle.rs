//! How a handler changes the limit of its own request.

use parking_lot::Mutex;
use std::sync::Arc;

/// By this a handler changes the limit of its own request, if the layer is
/// [`overridable`](crate::BodyLimitLayer::overridable). It is found in the request's extensions.
#[derive(Clone, Debug)]
pub struct BodyLimitHandle {
    /// `None` where there is nothing to limit.
    limit: Option<Arc<HandlersLimit>>,
}

/// The limit of a request whose handler may change it. Locked by the first read of the body and by
/// the handle.
#[derive(Debug)]
pub(crate) struct HandlersLimit(Mutex<Limit>);

#[derive(Debug)]
struct Limit {
    bytes: u64,
    /// From the first read on it cannot be changed.
    is_fixed: bool,
}

// === BodyLimitHandle ===

impl BodyLimitHandle {
    pub(crate) fn new(limit: Option<Arc<HandlersLimit>>) -> Self {
        Self { limit }
    }

    /// Lets the body have `bytes` and no more. `false`, and nothing is changed, if the first
    /// read was before. On a request without a body, and while the guard is
    /// [`Off`](crate::Mode::Off), there is nothing to change, and it is always `true`.
    pub fn set(&self, bytes: u64) -> bool {
        self.limit.as_ref().is_none_or(|limit| {
            let mut limit = limit.0.lock();
            if !limit.is_fixed {
                limit.bytes = bytes;
            }
            !limit.is_fixed
        })
    }
}

// === HandlersLimit ===

impl HandlersLimit {
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
