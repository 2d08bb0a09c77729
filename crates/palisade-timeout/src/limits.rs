//! How long a request may take.

use std::time::Duration;

/// How long a request may take.
///
/// A zero refuses the request before the inner service sees it. No duration is too long: what lies
/// beyond the end of time is never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(crate) head: Duration,
    pub(crate) total: Option<Duration>,
}

impl Limits {
    /// At most `head` until the response head is ready; see
    /// [`TimeoutLayer::new`](crate::TimeoutLayer::new). No limit on the whole response.
    pub const fn head(head: Duration) -> Self {
        Self { head, total: None }
    }

    /// At most `total` until the response is at its end; see
    /// [`TimeoutLayer::total`](crate::TimeoutLayer::total). Defaults to no such limit.
    pub const fn total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }
}
