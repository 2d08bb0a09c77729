//! What can be set, and the layer that holds it.

use crate::{BodyLimit, TinyFrames};
use palisade_core::Settings;
use std::sync::Arc;
use tower_layer::Layer;

/// Applies [`BodyLimit`].
#[derive(Clone, Debug)]
pub struct BodyLimitLayer {
    shared: Arc<Shared>,
}

/// In the extensions of a request: how many bytes the body of this one may have, in place of the
/// layer's limit. Whatever stands outside the layer may put it there, a router for example.
///
/// ```
/// # use palisade_body_limit::MaxRequestBody;
/// let mut upload = http::Request::put("/backup").body(()).unwrap();
/// upload.extensions_mut().insert(MaxRequestBody(1 << 30));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxRequestBody(pub u64);

/// What layer, services and requests share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) request: u64,
    pub(crate) response: Option<u64>,
    pub(crate) tiny_frames: Option<TinyFrames>,
    pub(crate) overridable: bool,
    /// Requests without a body are looked at as well.
    pub(crate) looks_anyway: bool,
}

// === BodyLimitLayer ===

palisade_core::settings_methods!(BodyLimitLayer);

impl BodyLimitLayer {
    /// The limit of [`Self::default`] in bytes: 2 MiB, as in axum's extractors.
    pub const DEFAULT: u64 = 2 << 20;

    /// At most `bytes` in the body of a request. Trailers do not count.
    pub fn new(bytes: u64) -> Self {
        let shared = Shared {
            settings: Settings::default(),
            request: bytes,
            response: None,
            tiny_frames: Some(TinyFrames::default()),
            overridable: false,
            looks_anyway: false,
        };
        Self { shared: Arc::new(shared) }
    }

    /// At most `bytes` in the body of a response. One that declares more, by its length or its
    /// `Content-Length`, is replaced by 500, but for answers to HEAD, 204 and 304; one that turns out longer fails, or ends with
    /// `RESOURCE_EXHAUSTED` in gRPC. Costs one small allocation per request. Defaults to no limit.
    pub fn response(mut self, bytes: u64) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.response = Some(bytes);
        shared.looks_anyway = true;
        self
    }

    /// How many small frames a body may come in. `None` neither counts them nor puts them
    /// together. Defaults to [`TinyFrames::default`].
    pub fn tiny_frames(mut self, allowed: impl Into<Option<TinyFrames>>) -> Self {
        Arc::make_mut(&mut self.shared).tiny_frames = allowed.into();
        self
    }

    /// Puts a [`BodyLimitHandle`](crate::BodyLimitHandle) into the extensions of every request,
    /// by which the handler may change the limit of that request before it reads the body.
    ///
    /// A request that declares too much is then refused at the first read and no longer before
    /// the handler. Costs the insertion of an extension. Defaults to no handle.
    pub fn overridable(mut self) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.overridable = true;
        shared.looks_anyway = true;
        self
    }
}

impl Default for BodyLimitLayer {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BodyLimit::new(inner, self.shared.clone())
    }
}
