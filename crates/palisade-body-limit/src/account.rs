//! The account of a request with a compressed body.

use http::{Request, header::CONTENT_ENCODING};
use palisade_core::{BodyAccountRef, BudgetFull, Guard, HasBodyAccount, Phase, Reason, Violation};
use std::sync::Arc;

/// Returns the account of a request whose body was decompressed between the layer that charges it
/// and this one.
pub(crate) fn of_decompressed<B>(request: &Request<B>) -> Option<Arc<dyn HasBodyAccount>> {
    let account = BodyAccountRef::of_encoded(request.extensions())?;
    // What decompresses a body says so in its head.
    (!is_encoded(request)).then_some(account)
}

/// Returns whether the body of the request is compressed, as its head says.
pub(crate) fn is_encoded<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(CONTENT_ENCODING)
}

/// Returns the violation of a body for which the budget has no room.
pub(crate) fn bytes_full(phase: Phase, full: BudgetFull) -> Violation {
    let BudgetFull {
        limit, observed, ..
    } = full;
    Violation::new(Guard::BodyLimit, Reason::BytesFull, phase, limit, observed)
}
