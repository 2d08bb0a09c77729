//! What the request body and the response future of one request know in common.

use crate::layer::Shared;
use http::{Method, Request, StatusCode, Version};
use http_body::Body;
use palisade_core::{AnswerForm, Answerer, ConnInfo, Guard, Phase, Reason, Rejection, Violation};
use parking_lot::Mutex;
use std::sync::Arc;

/// By this a handler changes the limit of its own request, if the layer is
/// [`overridable`](crate::BodyLimitLayer::overridable). It is found in the request's extensions.
#[derive(Clone, Debug)]
pub struct BodyLimitHandle {
    /// `None` where there is nothing to limit.
    watch: Option<Arc<Watch>>,
}

/// One request with a body, or with a limited response.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) answerer: Answerer,
    pub(crate) version: Version,
    /// Whether the response has no body whatever its head says of one.
    pub(crate) is_head: bool,
    /// Whether it is gRPC, where messages are small and may not wait.
    pub(crate) grpc: bool,
    /// The lock is taken at the first read of an overridable request, and by its handle.
    limit: Mutex<Limit>,
}

#[derive(Debug)]
struct Limit {
    bytes: u64,
    /// From the first read on it stands.
    stands: bool,
}

// === BodyLimitHandle ===

impl BodyLimitHandle {
    pub(crate) fn new(watch: Option<Arc<Watch>>) -> Self {
        Self { watch }
    }

    /// Lets the body have `bytes` and no more. `false`, and nothing is changed, if the first
    /// read was before. On a request without a body, and while the guard is
    /// [`Off`](crate::Mode::Off), there is nothing to change, and it is always `true`.
    pub fn set(&self, bytes: u64) -> bool {
        self.watch.as_ref().is_none_or(|watch| {
            let mut limit = watch.limit.lock();
            if !limit.stands {
                limit.bytes = bytes;
            }
            !limit.stands
        })
    }
}

// === Watch ===

impl Watch {
    pub(crate) fn new<B: Body>(shared: Arc<Shared>, request: &Request<B>, limit: u64) -> Self {
        let conn = ConnInfo::of(request.extensions()).cloned();
        let answerer = Answerer::new(AnswerForm::of(request), conn);
        let version = request.version();
        let is_head = request.method() == Method::HEAD;
        let grpc = answerer.form() == AnswerForm::Grpc;
        let limit = Mutex::new(Limit { bytes: limit, stands: false });
        Self { shared, answerer, version, is_head, grpc, limit }
    }

    /// From here on the limit stands. Returns it.
    pub(crate) fn start_reading(&self) -> u64 {
        let mut limit = self.limit.lock();
        limit.stands = true;
        limit.bytes
    }

    /// The request body broke a rule. `false` in shadow mode: the body goes on.
    pub(crate) fn violated(&self, violation: Violation) -> bool {
        let judge = |_phase| (violation, status(&violation));
        self.answerer.violated(&self.shared.settings, judge).is_some()
    }
}

impl AsRef<Answerer> for Watch {
    fn as_ref(&self) -> &Answerer {
        &self.answerer
    }
}

/// `observed` bytes where `limit` are allowed.
pub(crate) fn too_large(phase: Phase, limit: u64, observed: u64) -> Violation {
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, limit, observed)
}

/// What plain HTTP is told of `violation`.
pub(crate) fn status(violation: &Violation) -> StatusCode {
    match (violation.reason, violation.phase) {
        // Its length is fine, the way it comes is not: 413 would tell the client to send less.
        (Reason::TinyFrames, _) => StatusCode::BAD_REQUEST,
        (_, Phase::Handler | Phase::ResponseBody) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::PAYLOAD_TOO_LARGE,
    }
}

/// The answer for `violation`.
pub(crate) fn rejection(violation: Violation, form: AnswerForm) -> Rejection {
    Rejection::new(violation, status(&violation), form)
}
