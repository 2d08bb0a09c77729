//! The layer and its options.

use crate::{Limits, policy::TimeoutPolicy};
use http::StatusCode;
use palisade_core::RequestHead;
use palisade_guard::{GuardLayer, Guarded};
use std::{sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`Timeout`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct TimeoutLayer {
    guard: GuardLayer<TimeoutPolicy>,
}

/// Ends requests whose time is over. See the [crate docs](crate).
pub type Timeout<S> = Guarded<S, TimeoutPolicy>;

/// The request body that the inner service reads. The deadline stands still while it has nothing to
/// give.
pub type RequestBody<B> = palisade_guard::RequestBody<B, TimeoutPolicy>;

/// The response body of the inner service, cut when the time for the whole response is over.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, TimeoutPolicy>;

/// Response future of [`Timeout`]. Dropping it drops that of the inner service.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, TimeoutPolicy>;

// === TimeoutLayer ===

impl TimeoutLayer {
    /// At most `head` until the response head is ready, not counting the time in which the
    /// request body is waited for. 30 seconds are a good start.
    pub fn new(head: Duration) -> Self {
        Self {
            guard: GuardLayer::new(TimeoutPolicy::new(Limits::head(head))),
        }
    }

    /// At most `total` on the wall clock until the last frame of the response is handed out,
    /// whatever is waited for. A response that is under way then fails: HTTP/1 closes the
    /// connection, HTTP/2 resets the stream. It ends downloads, event streams and gRPC streams
    /// as well; give those limits of their own by [`Self::limits_for`]. What was upgraded is no
    /// longer a response and goes on.
    ///
    /// The end comes when the server next asks the body for a frame; it is woken for that. While
    /// its client takes nothing hyper asks on HTTP/1, unless it holds 400 KiB already, and does
    /// not ask on HTTP/2: to end every stalled reader is the work of a connection guard.
    /// Defaults to no such limit.
    pub fn total(mut self, total: Duration) -> Self {
        let policy = self.policy_mut();
        policy.limits = policy.limits.total(total);
        self
    }

    /// Gives the requests for which `choose` returns limits those in place of the layer's own.
    /// It is called once for each request, before the inner service: be quick, never panic.
    /// The client's `grpc-timeout` still holds where it is lower.
    ///
    /// ```
    /// # use palisade_timeout::{Limits, TimeoutLayer};
    /// # use std::time::Duration;
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).limits_for(|head| {
    ///     let report = head.uri.path() == "/report";
    ///     report.then(|| Limits::head(Duration::from_secs(300)))
    /// });
    /// ```
    ///
    /// Defaults to the same limits for all.
    pub fn limits_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Limits> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().choose = Some(Arc::new(choose));
        self
    }

    /// The status of the answer to plain HTTP; gRPC gets `DEADLINE_EXCEEDED`. A gateway may
    /// prefer 504. Defaults to 503.
    pub fn status(mut self, status: StatusCode) -> Self {
        self.policy_mut().status = status;
        self
    }

    /// Puts a [`Deadline`](crate::Deadline) into the extensions of every request, so that handlers can give what
    /// they call no more time than they have. It costs a few allocations and a look at the clock
    /// for each request. Defaults to not doing so.
    pub fn expose_deadline(mut self) -> Self {
        self.policy_mut().exposes = true;
        self
    }

    /// The policy of this layer, for a stack of several.
    #[doc(hidden)]
    pub fn policy(&self) -> &TimeoutPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut TimeoutPolicy {
        self.guard.policy_mut()
    }
}

palisade_guard::settings_methods!(TimeoutLayer);

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        self.guard.layer(inner)
    }
}
