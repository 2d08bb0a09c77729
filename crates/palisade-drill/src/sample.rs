//! Honest requests and what became of them.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// A kind of honest client.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Opens a connection for each GET.
    NewConnection,
    /// Sends its GETs on one connection.
    KeepAlive,
    /// Opens a connection for each small POST.
    SmallPost,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewConnection => "new connection",
            Self::KeepAlive => "keep-alive",
            Self::SmallPost => "small POST",
        })
    }
}

/// What became of an honest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Outcome {
    /// The expected answer.
    Served,
    /// Another status than expected: 429 or 503 for example.
    Status(u16),
    /// The expected status and another body.
    WrongBody,
    /// No connection.
    NotConnected,
    /// The connection ended before the answer did.
    Cut,
    /// No answer before the client gave up.
    TimedOut,
    /// No answer yet, when the drill stopped to wait.
    Unfinished,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served => f.write_str("served"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::WrongBody => f.write_str("wrong body"),
            Self::NotConnected => f.write_str("not connected"),
            Self::Cut => f.write_str("cut"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unfinished => f.write_str("hung"),
        }
    }
}

/// An honest request. Times are those since the drill began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) kind: Kind,
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    pub(crate) outcome: Outcome,
}

/// A span of time since the drill began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

impl Span {
    /// Returns the length.
    pub(crate) fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }

    /// Returns for how long a request from `start` to `end` lies in this span.
    pub(crate) fn overlap(&self, start: Duration, end: Duration) -> Duration {
        end.min(self.to).saturating_sub(start.max(self.from))
    }
}
