//! What the bodies and the response future of one request know in common.

use crate::{Pace, layer::Shared, meter::TooSlow};
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use palisade_core::{AnswerForm, Answerer, BoxError, ConnInfo, Guard, Phase, Violation};
use std::sync::Arc;

/// One request that has a body or a pace of its own.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) answerer: Answerer,
    /// Whether it says that it is gRPC, over HTTP/2.
    grpc: bool,
    /// For both bodies, if the request has a pace of its own.
    chosen: Option<Pace>,
    has_body: bool,
}

/// One request that has neither.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) shared: Arc<Shared>,
    pub(crate) form: AnswerForm,
    pub(crate) conn: Option<Arc<ConnInfo>>,
}

/// What is known of a request once its response head is out.
#[derive(Debug)]
pub(crate) enum Known {
    Plain(Plain),
    Watched(Arc<Watch>),
}

// === Watch ===

impl Watch {
    pub(crate) fn new(
        shared: Arc<Shared>,
        answerer: Answerer,
        grpc: bool,
        chosen: Option<Pace>,
        has_body: bool,
    ) -> Self {
        Self { shared, answerer, grpc, chosen, has_body }
    }

    /// For the request body, if that is judged.
    pub(crate) fn reading(self: &Arc<Self>) -> Option<Arc<Self>> {
        (self.has_body && !self.request_pace().is_off()).then(|| self.clone())
    }

    /// How fast the request body must come.
    pub(crate) fn request_pace(&self) -> &Pace {
        self.chosen.as_ref().unwrap_or(self.shared.request_pace(self.grpc))
    }

    /// How fast the response body must be taken.
    pub(crate) fn response_pace(&self) -> &Pace {
        self.chosen.as_ref().unwrap_or(self.shared.response_pace())
    }

    /// The request body was too slow. The violation, unless the body may go on.
    pub(crate) fn too_slow(&self, slow: TooSlow) -> Option<Violation> {
        let judge = |phase| (slow.violation(phase), StatusCode::REQUEST_TIMEOUT);
        self.answerer.violated(&self.shared.settings, judge)
    }
}

impl AsRef<Answerer> for Watch {
    fn as_ref(&self) -> &Answerer {
        &self.answerer
    }
}

// === Known ===

impl Known {
    pub(crate) fn shared(&self) -> &Shared {
        match self {
            Self::Plain(plain) => &plain.shared,
            Self::Watched(watch) => &watch.shared,
        }
    }

    /// How fast the response body must be taken.
    pub(crate) fn response_pace(&self) -> &Pace {
        match self {
            Self::Plain(plain) => plain.shared.response_pace(),
            Self::Watched(watch) => watch.response_pace(),
        }
    }

    /// The last frame of the response, if it is cut for `violation`.
    #[cold]
    pub(crate) fn cut(self, violation: Violation) -> Option<Result<Frame<Bytes>, BoxError>> {
        let (form, conn) = match &self {
            Self::Plain(plain) => (plain.form, plain.conn.as_deref()),
            Self::Watched(watch) => (watch.answerer.form(), watch.answerer.conn().map(Arc::as_ref)),
        };
        let cut = self.shared().settings.cut(&violation, conn);
        cut.then(|| violation.ending(form))
    }
}

// === TooSlow ===

impl TooSlow {
    pub(crate) fn violation(self, phase: Phase) -> Violation {
        Violation::new(Guard::SlowBody, self.reason, phase, self.limit, self.observed)
    }
}
