//! The layer and its options.

use crate::{Limits, policy::TimeoutPolicy};
use http::StatusCode;
use palisade_core::RequestHead;
use palisade_guard::{GuardLayer, Guarded, PerRequest};
use std::time::Duration;
use tower_layer::Layer;

/// Applies [`Timeout`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct TimeoutLayer {
    guard: GuardLayer<TimeoutPolicy>,
}

/// Refuses a request when its deadline has passed. See the [crate docs](crate).
pub type Timeout<S> = Guarded<S, TimeoutPolicy>;

/// The request body that the inner service reads. The deadline is paused while the inner service
/// waits for this body.
pub type RequestBody<B> = palisade_guard::RequestBody<B, TimeoutPolicy>;

/// The response body of the inner service, cut when the deadline for the whole response has passed.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, TimeoutPolicy>;

/// Response future of [`Timeout`]. Dropping it drops the future of the inner service.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, TimeoutPolicy>;

// === TimeoutLayer ===

impl TimeoutLayer {
    /// Limits the time until the response head is ready to `head`, not counting the time for which
    /// the inner service waits for the request body. 30 seconds are a good start.
    ///
    /// ```
    /// use palisade_timeout::TimeoutLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = TimeoutLayer::new(Duration::from_secs(30));
    /// let service = layer.layer(service_fn(work_for_a_minute));
    ///
    /// let report = Request::get("/report").body(Full::<Bytes>::default())?;
    /// assert_eq!(service.clone().oneshot(report).await?.status(), 503);
    /// let call = Request::post("/report").version(Version::HTTP_2);
    /// let call = call.header("content-type", "application/grpc").body(Full::<Bytes>::default())?;
    /// assert_eq!(service.oneshot(call).await?.headers()["grpc-status"], "4"); // DEADLINE_EXCEEDED
    ///
    /// // A handler that waits a minute for its client.
    /// let service = layer.layer(service_fn(echo));
    /// let upload = Request::new(Pieces::new(1, 1_000).every(Duration::from_secs(60)));
    /// assert_eq!(service.oneshot(upload).await?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(head: Duration) -> Self {
        Self {
            guard: GuardLayer::new(TimeoutPolicy::new(Limits::head(head))),
        }
    }

    /// Limits the time until the last frame of the response is passed to the server to `total`.
    /// This is time on the wall clock: it includes all waits for the client. If it ends after the
    /// head was sent, the body fails: HTTP/1 closes the connection, HTTP/2 resets the stream. The
    /// limit also cuts downloads, event streams and gRPC streams; set other limits for those with
    /// [`Self::limits_for`]. It does not apply to an upgraded connection.
    ///
    /// The body is cut when the server polls it next, and the server's task is woken for that. If
    /// the client reads nothing, hyper polls the body on HTTP/1 unless it has buffered 400 KiB, and
    /// does not poll it on HTTP/2. Closing every stalled reader is the task of a connection guard.
    /// Defaults to no such limit.
    ///
    /// ```
    /// use palisade_timeout::{TimeoutLayer, Violation};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).total(Duration::from_secs(60));
    /// // A response that has a frame in each second, for 1,000 s.
    /// let service = layer.layer(service_fn(async |_| {
    ///     let body = Pieces::new(1_000, 100).every(Duration::from_secs(1));
    ///     Ok::<_, BoxError>(Response::new(body))
    /// }));
    /// let response = service.oneshot(Request::new(Full::<Bytes>::default())).await?;
    /// assert_eq!(response.status(), 200);
    /// let error = response.into_body().collect().await.unwrap_err();
    /// let cut = Violation::from_error(&*error).expect("a guard has cut the body");
    /// assert_eq!((cut.reason.as_str(), cut.limit), ("total_deadline", 60_000));
    /// # Ok(())
    /// # }
    /// ```
    pub fn total(mut self, total: Duration) -> Self {
        let policy = self.policy_mut();
        policy.limits = policy.limits.total(total);
        self
    }

    /// Replaces the limits of the layer for requests for which `choose` returns others. `choose` is
    /// called once per request, before the inner service. It must be fast and must not panic. A
    /// lower `grpc-timeout` of the client still applies.
    ///
    /// ```
    /// # use palisade_timeout::{Limits, TimeoutLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).limits_for(|head| {
    ///     let is_report = head.uri.path() == "/report";
    ///     is_report.then(|| Limits::head(Duration::from_secs(300)))
    /// });
    /// let service = layer.layer(service_fn(work_for_a_minute));
    /// let status = async |path| {
    ///     let request = Request::get(path).body(Full::<Bytes>::default())?;
    ///     service.clone().oneshot(request).await.map(|response| response.status())
    /// };
    /// assert_eq!(status("/report").await?, 200);
    /// assert_eq!(status("/").await?, 503);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to the limits of the layer for all requests.
    pub fn limits_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Limits> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().limits_for = PerRequest::new(choose);
        self
    }

    /// Sets the status of the response to refused requests of plain HTTP. gRPC requests get
    /// `DEADLINE_EXCEEDED`. A gateway may prefer 504. Defaults to 503.
    ///
    /// ```
    /// use http::StatusCode;
    /// use palisade_timeout::TimeoutLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).status(StatusCode::GATEWAY_TIMEOUT);
    /// let service = layer.layer(service_fn(work_for_a_minute));
    /// let request = Request::new(Full::<Bytes>::default());
    /// assert_eq!(service.oneshot(request).await?.status(), 504);
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(mut self, status: StatusCode) -> Self {
        self.policy_mut().status = status;
        self
    }

    /// Adds a [`Deadline`](crate::Deadline) to the extensions of every request, so that handlers
    /// can pass their remaining time on to the services that they call. Costs a few allocations and
    /// one clock read per request. Defaults to not doing so.
    ///
    /// ```
    /// use palisade_timeout::{Deadline, RequestBody, TimeoutLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).expose_deadline();
    /// let service = layer.layer(service_fn(async |request: Request<RequestBody<_>>| {
    ///     let deadline = request.extensions().get::<Deadline>().cloned();
    ///     let left = deadline.map(|deadline| deadline.remaining());
    ///     assert_eq!(left, Some(Duration::from_secs(30)));
    ///     Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
    /// }));
    /// let request = Request::new(Full::<Bytes>::default());
    /// assert_eq!(service.oneshot(request).await?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn expose_deadline(mut self) -> Self {
        self.policy_mut().exposes = true;
        self
    }

    /// Returns the policy of this layer, for a stack of several guards.
    #[doc(hidden)]
    pub fn policy(&self) -> &TimeoutPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut TimeoutPolicy {
        self.guard.policy_mut()
    }
}

palisade_guard::settings_methods!(
    TimeoutLayer,
    example: "TimeoutLayer::new(Duration::from_secs(30)).total(Duration::from_secs(30))"
        => 503 "total_deadline"
);

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        self.guard.layer(inner)
    }
}
