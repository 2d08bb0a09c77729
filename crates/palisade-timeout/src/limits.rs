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
    pub const fn total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }
}
