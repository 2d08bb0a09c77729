//! Refusals of the server itself: responses that it sends in place of the app.

use http::{Request, StatusCode, Version};
use palisade_conn::{ConnGuard, ConnHandle};
use palisade_core::{
    BudgetFull, Client, Guard, Mode, Phase, Reason, Rejection, ResponseFormat, Violation,
};
use std::{sync::Arc, time::Duration};

/// The text of hyper's error for a URI of 64 KiB or more. Nothing else distinguishes it from the
/// error for a request head that is too large.
const URI_TOO_LONG: &str = "URI too long";

/// Room in the byte budget may be there again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the server refuses a request by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    BadRequest,
    HeadTooLarge,
    UriTooLong,
    ConnectRefused,
    AppFailed,
}

/// Reports the refusals on one connection to its guard. Clones share one allocation.
#[derive(Clone)]
pub(crate) struct RefusalReporter(Arc<(ConnGuard, ConnHandle)>);

/// Returns the format of the refusal of a request that claims `format`. On HTTP/2 a refusal is a
/// head and nothing else, which waits for no window.
pub(crate) fn format_for<B>(request: &Request<B>, format: ResponseFormat) -> ResponseFormat {
    match format {
        ResponseFormat::GrpcWeb { .. } | ResponseFormat::GrpcWebText { .. }
            if request.version() == Version::HTTP_2 =>
        {
            ResponseFormat::Grpc
        }
        format => format,
    }
}

// === Refusal ===

impl Refusal {
    /// Returns the refusal that hyper sent before it ended an HTTP/1 connection with `error`, if it
    /// sent one.
    pub(crate) fn from_hyper_error(error: &hyper::Error) -> Option<Self> {
        if error.is_parse_too_large() {
            Some(if error.to_string() == URI_TOO_LONG {
                Self::UriTooLong
            } else {
                Self::HeadTooLarge
            })
        } else if error.is_parse() {
            Some(Self::BadRequest)
        } else {
            None
        }
    }

    /// Returns the status of the response.
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

// === RefusalReporter ===

impl RefusalReporter {
    pub(crate) fn new(guard: &ConnGuard, conn: &ConnHandle) -> Self {
        Self(Arc::new((guard.clone(), conn.clone())))
    }

    pub(crate) fn conn(&self) -> &ConnHandle {
        &self.0.1
    }

    /// Returns whether the guard enforces its limits.
    pub(crate) fn is_enforced(&self) -> bool {
        self.0.0.mode() == Mode::Enforce
    }

    /// Returns the refusal of a request if the byte budget has no room for its body.
    pub(crate) fn no_room(full: BudgetFull, phase: Phase, format: ResponseFormat) -> Rejection {
        let violation = Self::bytes_full(full, phase);
        Rejection::new(violation, StatusCode::SERVICE_UNAVAILABLE, format).retry_after(RETRY_AFTER)
    }

    fn bytes_full(full: BudgetFull, phase: Phase) -> Violation {
        let (limit, observed) = (full.limit, full.observed);
        Violation::new(Guard::Connection, Reason::BytesFull, phase, limit, observed)
    }

    /// Reports that an empty byte budget would have no room for the body of a request. Returns the
    /// refusal if the guard enforces its limits.
    #[cold]
    pub(crate) fn report_too_large(
        &self,
        full: BudgetFull,
        format: ResponseFormat,
        client: Option<&Client>,
    ) -> Option<Rejection> {
        let violation = Self::bytes_full(full, Phase::RequestHead);
        let rejection = Rejection::new(violation, StatusCode::PAYLOAD_TOO_LARGE, format);
        let (guard, conn) = &*self.0;
        guard.report_shed(&rejection, conn, client);
        self.is_enforced().then_some(rejection)
    }

    /// Reports that the byte budget has no room for the body of a request, which is therefore
    /// refused, or cut if its response head has been sent. Returns the violation if the guard
    /// enforces its limits.
    #[cold]
    pub(crate) fn report_full(
        &self,
        full: BudgetFull,
        is_refused: bool,
        format: ResponseFormat,
        client: Option<&Client>,
    ) -> Option<Violation> {
        let (guard, conn) = &*self.0;
        let phase = if is_refused {
            Phase::RequestBody
        } else {
            Phase::ResponseBody
        };
        let rejection = Self::no_room(full, phase, format);
        let violation = *rejection.violation();
        if is_refused {
            guard.report_shed(&rejection, conn, client);
        } else {
            guard.report_cut(&violation, conn, client);
        }
        self.is_enforced().then_some(violation)
    }

    #[cold]
    pub(crate) fn report(&self, refusal: Refusal, client: Option<&Client>) {
        let (guard, conn) = &*self.0;
        guard.report_refused(&refusal.rejection(), conn, client);
    }
}
