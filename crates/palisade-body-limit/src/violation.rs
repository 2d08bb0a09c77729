//! Violations of the body limit, and the status codes for them.

use http::StatusCode;
use palisade_core::{Guard, Phase, Reason, Violation};

/// Returns the violation of a body of `observed` bytes where `limit` bytes are allowed.
pub(crate) fn too_large(reason: Reason, phase: Phase, limit: u64, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, reason, phase, limit, observed)
}

/// Returns the status code of plain HTTP for `violation`.
pub(crate) fn status(violation: &Violation) -> StatusCode {
    match (violation.reason, violation.phase) {
        // The number of frames is wrong, not the length: 413 would ask the client to send less.
        (Reason::TinyFrames, _) => StatusCode::BAD_REQUEST,
        (_, Phase::Handler | Phase::ResponseBody) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::PAYLOAD_TOO_LARGE,
    }
}
