//! A response body that is limited.

use crate::policy::BodyLimitPolicy;
use http::{Response, StatusCode};
use http_body::Body;
use palisade_core::{Phase, Violation};
use palisade_guard::{Facts, Flow, Polled, Refusal};
use std::task::Poll;

/// A response that is limited, and how much of it is left to send.
#[derive(Debug)]
pub struct Limited {
    limit: u64,
    remaining: u64,
}

impl BodyLimitPolicy {
    /// What it takes to limit the body of `response`, or why it must not be sent.
    #[inline(never)]
    pub(crate) fn limited<B: Body>(
        &self,
        facts: &Facts,
        response: &Response<B>,
        limit: u64,
    ) -> Result<Option<Box<Limited>>, Refusal> {
        // A length may stand in these heads, and nothing follows it (RFC 9110 section 8.6).
        let has_no_body = facts.is_head
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let declared = if has_no_body { 0 } else { crate::length::declared(response) };
        if declared > limit {
            let violation = too_large(Phase::Handler, limit, declared);
            self.refuse(violation, facts)?;
            // Shadow mode: one event is enough.
            return Ok(None);
        }
        Ok(Some(Box::new(Limited { limit, remaining: limit })))
    }

    /// Counts what is about to be sent. Cuts it if it is too much.
    pub(crate) fn send(
        &self,
        limited: &mut Option<Box<Limited>>,
        facts: &Facts,
        slot: &mut Polled,
    ) -> Flow {
        let (Some(Limited { limit, remaining }), Poll::Ready(Some(Ok(frame)))) =
            (limited.as_deref_mut(), &*slot)
        else {
            return Flow::Go;
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Some(left) = remaining.checked_sub(length) {
            *remaining = left;
            return Flow::Go;
        }
        let sent = limit.saturating_sub(*remaining);
        let violation = too_large(Phase::ResponseBody, *limit, sent.saturating_add(length));
        *limited = None;
        if !self.settings.cut(&violation, facts.conn()) {
            return Flow::Go;
        }
        *slot = Poll::Ready(Some(violation.ending(facts.form)));
        Flow::Cut
    }
}

/// `observed` bytes where `limit` are allowed.
pub(crate) fn too_large(phase: Phase, limit: u64, observed: u64) -> Violation {
    use palisade_core::{Guard, Reason};
    Violation::new(Guard::BodyLimit, Reason::TooLarge, phase, limit, observed)
}
