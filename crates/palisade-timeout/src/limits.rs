//! The time limits of a request.

use std::time::Duration;

/// The time limits of a request.
///
/// With a limit of zero, requests are refused before they reach the inner service. All durations
/// are valid: a deadline beyond the range of `Instant` is never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "limits do nothing until a layer takes them"]
pub struct Limits {
    pub(crate) head: Duration,
    pub(crate) total: Option<Duration>,
}

impl Limits {
    /// Limits the time until the response head is ready to `head`; see
    /// [`TimeoutLayer::new`](crate::TimeoutLayer::new). Sets no limit on the whole response.
    pub const fn head(head: Duration) -> Self {
        Self { head, total: None }
    }

    /// Limits the time until the end of the response to `total`; see
    /// [`TimeoutLayer::total`](crate::TimeoutLayer::total). Defaults to no such limit.
    ///
    /// ```
    /// use palisade_timeout::{Limits, TimeoutLayer};
    /// use tokio::time::Instant;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let limits = Limits::head(Duration::from_secs(30)).total(Duration::from_secs(20));
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).limits_for(move |_| Some(limits));
    /// let service = layer.layer(service_fn(work_for_a_minute));
    /// let started = Instant::now();
    /// let request = Request::new(Full::<Bytes>::default());
    /// assert_eq!(service.oneshot(request).await?.status(), 503);
    /// assert_eq!(started.elapsed().as_secs(), 20); // The earlier of the two.
    /// # Ok(())
    /// # }
    /// ```
    pub const fn total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }
}
