//! What can be set, and the layer that holds it.

use crate::{TinyFrames, policy::BodyLimitPolicy};
use palisade_guard::{GuardLayer, Guarded, Settings};
use tower_layer::Layer;

/// Applies [`BodyLimit`].
#[derive(Clone, Debug)]
pub struct BodyLimitLayer {
    guard: GuardLayer<BodyLimitPolicy>,
}

/// Limits the length of request and response bodies. See the [crate docs](crate).
pub type BodyLimit<S> = Guarded<S, BodyLimitPolicy>;

/// The request body that [`BodyLimit`] gives to the handler.
///
/// Fails with a [`Violation`](crate::Violation) when a rule is broken, and is at its end then.
pub type RequestBody<B> = palisade_guard::RequestBody<B, BodyLimitPolicy>;

/// The handler's body, cut where it becomes longer than [`BodyLimitLayer::response`] allows: it
/// fails with a [`Violation`](crate::Violation), or ends with trailers in gRPC.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, BodyLimitPolicy>;

/// Response future of [`BodyLimit`].
///
/// As soon as the request body breaks a rule, in whatever task that is read, it drops the handler
/// and answers in its place. Dropping it drops the handler and leaves nothing behind.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, BodyLimitPolicy>;

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

// === BodyLimitLayer ===

palisade_guard::settings_methods!(BodyLimitLayer);

impl BodyLimitLayer {
    /// The limit of [`Self::default`] in bytes: 2 MiB, as in axum's extractors.
    pub const DEFAULT: u64 = 2 << 20;

    /// At most `bytes` in the body of a request. Trailers do not count. axum's extractors have a
    /// limit of their own, of 2 MiB: with more here, set `axum::extract::DefaultBodyLimit` as well.
    pub fn new(bytes: u64) -> Self {
        let policy = BodyLimitPolicy {
            settings: Settings::default(),
            request: bytes,
            response: None,
            tiny_frames: Some(TinyFrames::default()),
            is_overridable: false,
            is_grpc: false,
        };
        Self {
            guard: GuardLayer::new(policy),
        }
    }

    /// At most `bytes` in the body of a response. One that declares more, by its length or its
    /// `Content-Length`, is replaced by 500, but for answers to HEAD, 204 and 304; one that turns
    /// out longer fails, or ends with `RESOURCE_EXHAUSTED` in gRPC. Costs one small allocation per
    /// request. Defaults to no limit.
    pub fn response(mut self, bytes: u64) -> Self {
        self.policy_mut().response = Some(bytes);
        self
    }

    /// How many small frames a body may come in. `None` neither counts them nor puts them
    /// together. Defaults to [`TinyFrames::default`].
    pub fn tiny_frames(mut self, allowed: impl Into<Option<TinyFrames>>) -> Self {
        self.policy_mut().tiny_frames = allowed.into();
        self
    }

    /// The handlers are gRPC services: the limit of a request holds for each of its messages, and a
    /// stream may have any number of them. Small frames are counted as before.
    ///
    /// What is gRPC shows by the content type, which is the client's own word: a handler behind
    /// this layer that is no gRPC service and collects its body can then be sent any number of
    /// messages. Give such handlers a layer of their own. Defaults to one limit for the whole body.
    pub fn grpc(mut self) -> Self {
        self.policy_mut().is_grpc = true;
        self
    }

    /// Puts a [`BodyLimitHandle`](crate::BodyLimitHandle) into the extensions of every request,
    /// by which the handler may change the limit of that request before it reads the body.
    ///
    /// A request that declares too much is then refused at the first read and no longer before
    /// the handler. Costs the insertion of an extension. Defaults to no handle.
    pub fn overridable(mut self) -> Self {
        self.policy_mut().is_overridable = true;
        self
    }

    /// The policy of this layer, for a stack of several.
    #[doc(hidden)]
    pub fn policy(&self) -> &BodyLimitPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut BodyLimitPolicy {
        self.guard.policy_mut()
    }
}

impl Default for BodyLimitLayer {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl<S> Layer<S> for BodyLimitLayer {
    type Service = BodyLimit<S>;

    fn layer(&self, inner: S) -> BodyLimit<S> {
        self.guard.layer(inner)
    }
}
