//! Honest requests and what became of them.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// A kind of honest client.
///
/// Time counts, not samples, and each kind has a sample that stands for a piece of its time. A
/// *served share* is the part of the time in which the client got what it asked for, and a
/// *latency* is a wait for the server, without the time that the client takes for itself:
///
/// | kind | a sample | its time | its latency |
/// |---|---|---|---|
/// | new connection, keep-alive, small POST | a request | its turn | until the whole answer |
/// | phone, upload | an upload of 8 KiB at 16 KiB/s | 0.5 s, or longer if the server made it wait | the waits for the connection, for a server that does not read, and for the answer |
/// | phone, download | 4 KiB of the large GET at 64 KiB/s | 62.5 ms, or longer if the server made it wait | from the moment at which the phone is ready for them |
/// | event stream, WebSocket | a look each 0.5 s | 0.5 s | that of the opening |
/// | HTTP/2 | a connection with three requests | 0.75 s | until the last answer |
/// | slow handshake | a flight of the client: its `ClientHello` after 300 ms, the rest and a GET after 500 ms | 0.4 s | the waits for the connection and for the answer to the flight |
///
/// A phone that receives at its own rate therefore has a latency of zero, however large the answer
/// is; kernel buffers hide a server that pauses for less than a second, as they do on any path. A
/// download that breaks off is lost as a whole: all its pieces count as not served. An open
/// connection that is cut is not served for one look, and then as long as it cannot be opened
/// again. After an answer that ends as it should it is opened again, and not harmed.
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
    /// Sends a POST of 8 KiB at 16 KiB/s, again and again.
    PhoneUpload,
    /// Receives the large GET at 64 KiB/s, again and again.
    PhoneDownload,
    /// Holds an event stream open.
    EventStream,
    /// Opens an HTTP/2 connection with three GETs at once, of which the second has more cookies
    /// than most servers take. Whatever becomes of that one, the others are to be served.
    Http2,
    /// Holds a WebSocket open, and sends nothing but answers to pings.
    WebSocket,
    /// Opens a connection for each GET, and delays the flights of its TLS handshake by 300 and 500
    /// ms, as a client far away or on a bad path does. With TLS alone.
    SlowHandshake,
}

impl Kind {
    /// Returns the least number of samples before an attack, without which nothing is judged. Some
    /// kinds have few in a second, which account for all of it.
    pub(crate) fn least_samples(self) -> u64 {
        match self {
            Self::NewConnection | Self::KeepAlive | Self::SmallPost => 3,
            _ => 1,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewConnection => "new connection",
            Self::KeepAlive => "keep-alive",
            Self::SmallPost => "small POST",
            Self::PhoneUpload => "phone, upload",
            Self::PhoneDownload => "phone, download",
            Self::EventStream => "event stream",
            Self::Http2 => "HTTP/2, one stream refused",
            Self::WebSocket => "quiet WebSocket",
            Self::SlowHandshake => "slow handshake",
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
