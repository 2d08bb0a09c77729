//! What the server answers by itself, in place of the app.

use http::StatusCode;
use palisade_conn::{ConnGuard, ConnHandle};
use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
use std::sync::Arc;

/// hyper's own words for a URI of 64 KiB or more; nothing else tells that from a head too large.
const URI_TOO_LONG: &str = "URI too long";

/// An answer of the server's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    BadRequest,
    HeadTooLarge,
    UriTooLong,
    ConnectRefused,
    AppFailed,
}

/// Tells the guard of the answers that one connection was given. Clones are handles.
#[derive(Clone)]
pub(crate) struct Refusals(Arc<(ConnGuard, ConnHandle)>);

// === Refusal ===

impl Refusal {
    /// What hyper answered before it ended an HTTP/1 connection with `error`, if anything.
    pub(crate) fn by_hyper(error: &hyper::Error) -> Option<Self> {
        match (error.is_parse(), error.is_parse_too_large()) {
            (_, true) if error.to_string() == URI_TOO_LONG => Some(Self::UriTooLong),
            (_, true) => Some(Self::HeadTooLarge),
            (is_parse, _) => is_parse.then_some(Self::BadRequest),
        }
    }

    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::ConnectRefused => StatusCode::NOT_IMPLEMENTED,
            Self::AppFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn rejection(self) -> Rejection {
        let (reason, phase) = match self {
            Self::BadRequest => (Reason::BadRequest, Phase::RequestHead),
            Self::HeadTooLarge | Self::UriTooLong => (Reason::HeadTooLarge, Phase::RequestHead),
            Self::ConnectRefused => (Reason::ConnectRefused, Phase::RequestHead),
            Self::AppFailed => (Reason::AppFailed, Phase::Handler),
        };
        let violation = Violation::new(Guard::Connection, reason, phase, 0, 0);
        Rejection::new(
            violation,
            self.status(),
            ResponseFormat::Http { close: false },
        )
    }
}

// === Refusals ===

impl Refusals {
    pub(crate) fn new(guard: &ConnGuard, conn: &ConnHandle) -> Self {
        Self(Arc::new((guard.clone(), conn.clone())))
    }

    #[cold]
    pub(crate) fn tell(&self, refusal: Refusal) {
        let (guard, conn) = &*self.0;
        guard.report_refused(&refusal.rejection(), conn);
    }
}
