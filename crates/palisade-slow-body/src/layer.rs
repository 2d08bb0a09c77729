//! The layer and its options.

use crate::{Pace, policy::SlowBodyPolicy};
use palisade_core::{Budget, Pressure, RequestHead};
use palisade_guard::{GuardLayer, Guarded, PerRequest, Settings};
use std::time::Duration;
use tower_layer::Layer;

/// Applies [`SlowBody`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct SlowBodyLayer {
    guard: GuardLayer<SlowBodyPolicy>,
}

/// Ends bodies that are slower than their [`Pace`]. See the [crate docs](crate).
pub type SlowBody<S> = Guarded<S, SlowBodyPolicy>;

/// The request body that [`SlowBody`] passes to the handler.
///
/// Fails with a [`Violation`](crate::Violation) when the client is slower than the pace.
pub type RequestBody<B> = palisade_guard::RequestBody<B, SlowBodyPolicy>;

/// The response body of the handler, cut when the client takes it more slowly than the pace.
///
/// The server then polls the body too rarely. A body that is cut fails with a
/// [`Violation`](crate::Violation), or ends with trailers in gRPC.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, SlowBodyPolicy>;

/// Response future of [`SlowBody`].
///
/// When the request body is too slow, in whatever task it is read, the future drops the handler
/// and resolves to a response in its place. Dropping the future drops the handler and leaves
/// nothing behind.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, SlowBodyPolicy>;

// === SlowBodyLayer ===

impl SlowBodyLayer {
    /// Creates a layer with the default paces.
    ///
    /// ```
    /// use palisade_slow_body::SlowBodyLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = SlowBodyLayer::new();
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// assert_eq!(status(&layer, upload(60, 1_000, SECOND)).await, 200);
    /// assert_eq!(status(&layer, upload(60, 1, SECOND)).await, 408); // Less than 500 B/s.
    /// assert_eq!(status(&layer, upload(1, 60_000, 20 * SECOND)).await, 408); // Silent for 15 s.
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        let response = Pace {
            gap: Some(Duration::from_secs(120)),
            rate: None,
            ..Pace::default()
        };
        let policy = SlowBodyPolicy {
            settings: Settings::default(),
            request: Pace::default(),
            grpc: Pace::conversation(),
            response,
            pressure: Pressure::default(),
            budget: None,
            pace_for: PerRequest::default(),
        };
        Self {
            guard: GuardLayer::new(policy),
        }
    }

    /// Sets the pace at which request bodies must arrive. Defaults to [`Pace::default`].
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = SlowBodyLayer::new().request(Pace::builder().rate(16 * 1024).build()?);
    /// // `upload(pieces, bytes, pause)`: so many pieces of so many bytes, a pause before each.
    /// assert_eq!(status(&layer, upload(60, 20_000, SECOND)).await, 200);
    /// assert_eq!(status(&layer, upload(60, 10_000, SECOND)).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub fn request(mut self, pace: Pace) -> Self {
        self.policy_mut().request = pace;
        self
    }

    /// Sets the pace of request bodies of gRPC over HTTP/2, where clients send only when they have
    /// a message. A stream on which the client is silent for longer by design needs its own pace,
    /// set with [`Self::pace_for`].
    ///
    /// Any client can [claim to be gRPC](crate#requests-that-claim-to-be-grpc). If that is too much
    /// trust, set [`Pace::default`] here, and set [`Pace::conversation`] for the streaming methods
    /// alone, with [`Self::pace_for`]. Defaults to [`Pace::conversation`].
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // A byte every 30 s, from a client that claims to be gRPC.
    /// let claim = || {
    ///     let mut request = upload(4, 1, 30 * SECOND);
    ///     *request.method_mut() = Method::POST;
    ///     *request.version_mut() = Version::HTTP_2;
    ///     let value = http::HeaderValue::from_static("application/grpc");
    ///     request.headers_mut().insert("content-type", value);
    ///     request
    /// };
    /// let trusting = SlowBodyLayer::new().layer(service_fn(echo));
    /// let strict = SlowBodyLayer::new().grpc(Pace::default()).layer(service_fn(echo));
    /// assert!(!trusting.oneshot(claim()).await?.headers().contains_key("grpc-status"));
    /// let refused = strict.oneshot(claim()).await?;
    /// assert_eq!(refused.headers()["grpc-status"], "4"); // DEADLINE_EXCEEDED
    /// # Ok(())
    /// # }
    /// ```
    pub fn grpc(mut self, pace: Pace) -> Self {
        self.policy_mut().grpc = pace;
        self
    }

    /// Sets the pace at which clients must take response bodies. The layer sees it only
    /// [indirectly](crate#limitations): because the kernel buffers megabytes, the server asks for
    /// more only every 20 s while a client reads 64 KiB per second. Defaults to [`Pace::gap_only`]
    /// of 120 s.
    ///
    /// ```
    /// use palisade_slow_body::{Pace, SlowBodyLayer, Violation};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = SlowBodyLayer::new().response(Pace::gap_only(30 * SECOND)?);
    /// // A download in blocks of 64 KiB.
    /// let service = layer.layer(service_fn(async |_| {
    ///     Ok::<_, BoxError>(Response::new(upload(60, 64 * 1024, Duration::ZERO).into_body()))
    /// }));
    /// let mut body = service.oneshot(Request::new(Full::<Bytes>::default())).await?.into_body();
    /// body.frame().await.ok_or("ended")??;
    /// body.frame().await.ok_or("ended")??;
    /// // The client takes nothing. The timer of the body wakes the server, which asks for more.
    /// # let mut is_woken = false;
    /// # std::future::poll_fn(|_| match std::mem::replace(&mut is_woken, true) {
    /// #     false => std::task::Poll::Pending,
    /// #     true => std::task::Poll::Ready(()),
    /// # }).await;
    /// let error = body.frame().await.ok_or("ended")?.err().ok_or("not cut")?;
    /// let cut = Violation::from_error(&*error).expect("a guard has cut the body");
    /// assert_eq!((cut.reason.as_str(), cut.limit), ("gap", 30_000));
    /// # Ok(())
    /// # }
    /// ```
    pub fn response(mut self, pace: Pace) -> Self {
        self.policy_mut().response = pace;
        self
    }

    /// Sets the pace of single requests. If `choose` returns a pace, it applies to the request body
    /// and the response body, also in gRPC. `choose` is called once per request, before the
    /// handler; it must be quick and must not panic.
    ///
    /// ```
    /// # use palisade_slow_body::{Pace, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = SlowBodyLayer::new().pace_for(|head| {
    ///     let chat = head.uri.path().starts_with("/chat/");
    ///     chat.then(Pace::conversation)
    /// });
    /// let mut request = upload(10, 1, 30 * SECOND); // A byte every 30 s.
    /// assert_eq!(status(&layer, request).await, 408);
    /// request = upload(10, 1, 30 * SECOND);
    /// *request.uri_mut() = "/chat/1".parse()?;
    /// assert_eq!(status(&layer, request).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to none.
    pub fn pace_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Pace> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().pace_for = PerRequest::new(choose);
        self
    }

    /// Raises the required rate under pressure, from the rate at 0.8 to that
    /// [at full pressure](crate::PaceBuilder::full_pressure_rate), for bytes that arrive from then
    /// on. Defaults to no pressure.
    ///
    /// ```
    /// use palisade_slow_body::{Pressure, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let pressure = Pressure::default();
    /// let layer = SlowBodyLayer::new().pressure(pressure.clone());
    /// // A thousand bytes per second, where 500 are required, and 4,000 under full pressure.
    /// assert_eq!(status(&layer, upload(60, 1_000, SECOND)).await, 200);
    /// pressure.set(1.0);
    /// assert_eq!(status(&layer, upload(60, 1_000, SECOND)).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        self.policy_mut().pressure = pressure;
        self
    }

    /// Raises the required rate as `budget` fills, as [`pressure`](Self::pressure) does: the part
    /// that is held is a pressure too, and the higher one counts. `None` removes it. Defaults to
    /// `None`.
    ///
    /// ```
    /// use palisade_slow_body::{Budget, SlowBodyLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let budget = Budget::new(100_000)?;
    /// let layer = SlowBodyLayer::new().byte_budget(budget.clone());
    /// let held = budget.charge(None);
    /// held.take(95_000)?;
    /// // A thousand bytes per second, where 500 are required, and 3,125 while 95 % are held.
    /// assert_eq!(status(&layer, upload(60, 1_000, SECOND)).await, 408);
    /// drop(held);
    /// assert_eq!(status(&layer, upload(60, 1_000, SECOND)).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn byte_budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.policy_mut().budget = budget.into();
        self
    }

    /// Returns the policy of this layer, to be combined with those of other layers.
    #[doc(hidden)]
    pub fn policy(&self) -> &SlowBodyPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut SlowBodyPolicy {
        self.guard.policy_mut()
    }
}

impl Default for SlowBodyLayer {
    fn default() -> Self {
        Self::new()
    }
}

palisade_guard::settings_methods!(
    SlowBodyLayer,
    example: "SlowBodyLayer::new()" => 408 "gap"
);

impl<S> Layer<S> for SlowBodyLayer {
    type Service = SlowBody<S>;

    fn layer(&self, inner: S) -> SlowBody<S> {
        self.guard.layer(inner)
    }
}
