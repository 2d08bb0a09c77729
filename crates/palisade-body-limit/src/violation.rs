//! The rules, as they are broken.

use http::StatusCode;
use palisade_core::{Guard, Phase, Reason, Violation};

/// `observed` bytes where `limit` are allowed.
pub(crate) fn too_large(phase: Phase, limit: u64, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, limit, observed)
}

/// The status of plain HTTP for `violation`.
pub(crate) fn status(violation: &Violation) -> StatusCode {
    match (violation.reason, violation.phase) {
        // Its length is fine, the way it comes is not: 413 would tell the client to send less.
        (Reason::TinyFrames, _) => StatusCode::BAD_REQUEST,
        (_, Phase::Handler | Phase::ResponseBody) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::PAYLOAD_TOO_LARGE,
    }
}
