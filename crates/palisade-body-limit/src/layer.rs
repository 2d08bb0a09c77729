//! The layer and its options.

use crate::{TinyFrames, policy::BodyLimitPolicy};
use palisade_core::RequestHead;
use palisade_guard::{GuardLayer, Guarded, PerRequest, Settings};
use tower_layer::Layer;

/// Applies [`BodyLimit`].
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct BodyLimitLayer {
    guard: GuardLayer<BodyLimitPolicy>,
}

/// Limits the length of request and response bodies. See the [crate docs](crate).
pub type BodyLimit<S> = Guarded<S, BodyLimitPolicy>;

/// The request body that [`BodyLimit`] passes to the handler.
///
/// Fails with a [`Violation`](crate::Violation) when it breaks a rule, and ends there.
pub type RequestBody<B> = palisade_guard::RequestBody<B, BodyLimitPolicy>;

/// The response body of the handler, cut where it exceeds [`BodyLimitLayer::response`].
///
/// A body that is cut fails with a [`Violation`](crate::Violation), or ends with trailers in gRPC.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, BodyLimitPolicy>;

/// Response future of [`BodyLimit`].
///
/// As soon as the request body breaks a rule, in whatever task it is read, the future drops the
/// handler and resolves to a response in its place. Dropping the future drops the handler and
/// leaves nothing behind.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, BodyLimitPolicy>;

// === BodyLimitLayer ===

palisade_guard::settings_methods!(
    BodyLimitLayer,
    example: "BodyLimitLayer::new(3)" => 413 "too_large"
);

impl BodyLimitLayer {
    /// The limit of [`Self::default`] in bytes: 2 MiB, as in axum's extractors.
    pub const DEFAULT: u64 = 2 << 20;

    /// Limits request bodies to `bytes`. Trailers do not count.
    ///
    /// axum's extractors have their own limit of 2 MiB. To allow more than that, also set
    /// `axum::extract::DefaultBodyLimit`.
    ///
    /// ```
    /// use palisade_body_limit::BodyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = BodyLimitLayer::new(1024);
    /// assert_eq!(status(&layer, Request::new(declared(1024))).await, 200);
    /// assert_eq!(status(&layer, Request::new(declared(1025))).await, 413); // Not a byte is read.
    /// // Refused at the third frame.
    /// assert_eq!(status(&layer, Request::new(chunked(3, 500))).await, 413);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(bytes: u64) -> Self {
        let policy = BodyLimitPolicy {
            settings: Settings::default(),
            request_limit: bytes,
            limit_for: PerRequest::default(),
            response_limit: None,
            tiny_frames: Some(TinyFrames::default()),
            is_overridable: false,
            limits_messages: false,
            is_decompressed: false,
        };
        Self {
            guard: GuardLayer::new(policy),
        }
    }

    /// Limits request bodies to `bytes` after their decompression. For a layer inside of one that
    /// decompresses, such as tower-http's `RequestDecompressionLayer`: a kilobyte of gzip becomes a
    /// megabyte there. Bodies that are not compressed are limited alike.
    ///
    /// - The reason is [`Reason::DecompressedTooLarge`](palisade_core::Reason). The rest of the
    ///   body is not decompressed.
    /// - If a [`BodyBudgetLayer`](crate::BodyBudgetLayer) or a `Stack` outside of the decompression
    ///   charges the compressed bytes, what they become is charged to the same account, and 48 KiB
    ///   for the decoder. [`max_held`](crate::BodyBudgetLayer::max_held) is for all of it together.
    ///   A body that finds no room is refused with 503.
    ///
    /// ```
    /// use palisade_body_limit::{BodyBudgetLayer, BodyLimitLayer};
    /// # use palisade_testkit::example::*;
    /// use tower_http::decompression::RequestDecompressionLayer;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = tower::ServiceBuilder::new()
    ///     .layer(BodyLimitLayer::new(100_000)) // Of compressed bytes.
    ///     .layer(BodyBudgetLayer::default())
    ///     .layer(RequestDecompressionLayer::new())
    ///     .layer(BodyLimitLayer::decompressed(200_000))
    ///     .into_inner();
    /// let upload = async |length| {
    ///     let request = Request::post("/").header("content-encoding", "gzip");
    ///     let request = request.body(Full::from(gzip(&vec![0; length])))?;
    ///     Ok::<_, http::Error>(status(&layer, request).await)
    /// };
    /// assert_eq!(upload(200_000).await?, 200);
    /// assert_eq!(upload(200_001).await?, 413);
    /// # Ok(())
    /// # }
    /// ```
    pub fn decompressed(bytes: u64) -> Self {
        let mut layer = Self::new(bytes);
        layer.policy_mut().is_decompressed = true;
        layer
    }

    /// Replaces the limit, in bytes, of requests for which `choose` returns another one. `choose`
    /// is called once per request with a body, before the inner service. It must be fast and must
    /// not panic.
    ///
    /// ```
    /// # use palisade_body_limit::BodyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // Uploads of up to 1 GiB for backups, 2 MiB for everything else.
    /// let layer = BodyLimitLayer::default().limit_for(|head| {
    ///     let is_backup = head.uri.path().starts_with("/backup/");
    ///     is_backup.then_some(1 << 30)
    /// });
    /// let service = layer.layer(service_fn(echo));
    /// let upload = Request::put("/backup/1").body(declared(3 << 20))?;
    /// assert_eq!(service.clone().oneshot(upload).await?.status(), 200);
    /// let upload = Request::put("/").body(declared(3 << 20))?;
    /// assert_eq!(service.oneshot(upload).await?.status(), 413);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to the limit of the layer for all requests.
    pub fn limit_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().limit_for = PerRequest::new(choose);
        self
    }

    /// Limits response bodies to `bytes`.
    ///
    /// A response that declares more, by the size hint of its body or by `Content-Length`, is
    /// replaced by 500, except responses to HEAD, 204 and 304. A body that exceeds the limit later
    /// fails, or ends with `RESOURCE_EXHAUSTED` in gRPC. Costs one small allocation per request.
    /// Defaults to no limit.
    ///
    /// ```
    /// use palisade_body_limit::{BodyLimitLayer, Violation};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = BodyLimitLayer::new(1024).response(100);
    /// // The handler responds with the request body.
    /// assert_eq!(status(&layer, Request::new(declared(101))).await, 500);
    ///
    /// // A response that declares no length has begun before it is too long.
    /// let service = layer.layer(service_fn(async |_| {
    ///     Ok::<_, BoxError>(Response::new(chunked(10, 30)))
    /// }));
    /// let response = service.oneshot(Request::new(declared(0))).await?;
    /// assert_eq!(response.status(), 200);
    /// let error = response.into_body().collect().await.err().ok_or("not cut")?;
    /// let cut = Violation::from_error(&*error).map(|cut| (cut.limit, cut.observed));
    /// assert_eq!(cut, Some((100, 120)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn response(mut self, bytes: u64) -> Self {
        self.policy_mut().response_limit = Some(bytes);
        self
    }

    /// Limits the number of small frames of a request body. `None` disables both the limit and the
    /// coalescing of small frames. Defaults to [`TinyFrames::default`].
    ///
    /// ```
    /// use palisade_body_limit::BodyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // 20,000 bytes, each in a frame of its own.
    /// let layer = BodyLimitLayer::new(1 << 20);
    /// assert_eq!(status(&layer, Request::new(chunked(20_000, 1))).await, 400);
    /// let layer = layer.tiny_frames(None);
    /// assert_eq!(status(&layer, Request::new(chunked(20_000, 1))).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn tiny_frames(mut self, allowed: impl Into<Option<TinyFrames>>) -> Self {
        self.policy_mut().tiny_frames = allowed.into();
        self
    }

    /// Applies the limit to each message of a gRPC request, instead of the whole body. A stream may
    /// then have any number of messages. Small frames are limited as before.
    ///
    /// Use this if all handlers behind the layer are gRPC services. A request counts as gRPC by its
    /// content type, which the client chooses freely: a handler that is not a gRPC service and
    /// collects its body can be sent any number of messages. Give such handlers their own layer.
    /// Defaults to one limit for the whole body.
    ///
    /// ```
    /// use palisade_body_limit::BodyLimitLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // A call with `messages` messages of so many bytes, each behind its prefix.
    /// let call = |messages: usize, bytes: u8| {
    ///     let message = [vec![0, 0, 0, 0, bytes], vec![0; bytes.into()]].concat();
    ///     let request = Request::post("/chat.Chat/Talk").version(Version::HTTP_2);
    ///     let request = request.header("content-type", "application/grpc");
    ///     request.body(Full::<Bytes>::from(message.repeat(messages)))
    /// };
    /// let service = BodyLimitLayer::new(100).grpc().layer(service_fn(echo));
    /// let response = service.clone().oneshot(call(50, 90)?).await?;
    /// assert_eq!(response.headers().get("grpc-status"), None);
    /// let response = service.oneshot(call(1, 110)?).await?;
    /// assert_eq!(response.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    ///
    /// // Without it, the limit is for all messages together.
    /// let service = BodyLimitLayer::new(100).layer(service_fn(echo));
    /// let response = service.oneshot(call(50, 90)?).await?;
    /// assert_eq!(response.headers()["grpc-status"], "8");
    /// # Ok(())
    /// # }
    /// ```
    pub fn grpc(mut self) -> Self {
        self.policy_mut().limits_messages = true;
        self
    }

    /// Inserts a [`BodyLimitHandle`](crate::BodyLimitHandle) into the extensions of every request,
    /// with which the handler may change the limit of that request before it reads the body.
    ///
    /// A request that declares too much is then refused at the first read, and no longer before
    /// the handler is called. Costs the insertion of an extension. Defaults to no handle.
    ///
    /// ```
    /// use palisade_body_limit::{BodyLimitHandle, BodyLimitLayer, RequestBody};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = BodyLimitLayer::new(10).overridable();
    /// let service = layer.layer(service_fn(async |request: Request<RequestBody<_>>| {
    ///     // For example for a user that has paid.
    ///     let limit = request.extensions().get::<BodyLimitHandle>();
    ///     limit.ok_or("not overridable")?.set(1_000);
    ///     echo(request).await
    /// }));
    /// assert_eq!(service.clone().oneshot(Request::new(declared(1_000))).await?.status(), 200);
    /// assert_eq!(service.oneshot(Request::new(declared(1_001))).await?.status(), 413);
    /// # Ok(())
    /// # }
    /// ```
    pub fn overridable(mut self) -> Self {
        self.policy_mut().is_overridable = true;
        self
    }

    /// Returns the policy of this layer, to be combined with those of other layers.
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
