//! How a request ends: refused, cut, evicted or released.

use super::{ConcurrencyLimitPolicy, RETRY_AFTER};
use crate::{
    limiter::{PermitKind, Waiter},
    request::{ResponseState, SharedState, Waiting, admission::limit_exceeded},
};
use http::StatusCode;
use palisade_core::{Phase, Reason, Rejection, Violation};
use palisade_guard::{Facts, Flow, Polled, Refusal, RequestView};
use std::task::Poll;

impl ConcurrencyLimitPolicy {
    /// Records a refusal. Returns `None` if it is not enforced.
    pub(super) fn refuse(
        &self,
        violation: Violation,
        status: StatusCode,
        facts: &Facts,
    ) -> Option<Refusal> {
        let mut rejection = Rejection::new(violation, status, facts.form);
        if status != StatusCode::REQUEST_TIMEOUT {
            rejection = rejection.retry_after(RETRY_AFTER);
        }
        self.0.settings.refuse_request(rejection, facts).err()
    }

    /// The violation of an evicted request: one request too many was present.
    pub(super) fn eviction_violation(&self, phase: Phase) -> Violation {
        limit_exceeded(
            Reason::Evicted,
            phase,
            self.0.limiter.max_present(self.0.max_present),
        )
    }

    /// Ends the request. Returns whether it was evicted.
    pub(super) fn end_request(
        &self,
        waiter: &Waiter,
        request: RequestView<'_, SharedState>,
    ) -> bool {
        let ended = self.0.limiter.end_request(waiter);
        let is_evicted = ended.is_evicted;
        if request
            .shared
            .is_some_and(|common| !common.flags.is_body_dropped())
        {
            ended.wake_request_body();
        }
        is_evicted
    }

    /// Ends an evicted request before it is released. The caller has recorded the eviction.
    pub(super) fn end_evicted_request(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
    ) {
        // Take it out first: waking a task may run arbitrary code.
        let held = std::mem::take(held);
        if let Some(waiter) = held.waiter(request.shared) {
            self.end_request(waiter, request);
        }
    }

    /// Ends the request. Records a cut if it was evicted and has not been polled since.
    pub(super) fn release_waiter(&self, waiter: &Waiter, request: RequestView<'_, SharedState>) {
        if self.end_request(waiter, request) {
            self.record_cut(request);
        }
    }

    pub(super) fn record_cut(&self, request: RequestView<'_, SharedState>) -> Violation {
        let violation = self.eviction_violation(Phase::ResponseBody);
        self.0.settings.cut(&violation, request.facts);
        violation
    }

    /// Ends the response of an evicted request.
    #[cold]
    #[inline(never)]
    pub(super) fn cut(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        slot: &mut Polled,
    ) -> Flow {
        let violation = self.record_cut(request);
        self.end_evicted_request(held, request);
        *slot = Poll::Ready(Some(violation.final_frame(request.facts.form)));
        Flow::Cut
    }

    /// Releases a request that holds more than a plain permit.
    #[inline(never)]
    pub(super) fn release_slow(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
    ) {
        let initial_permit = request.shared.and_then(SharedState::take_initial_permit);
        match std::mem::take(held) {
            ResponseState::Permit(None) | ResponseState::Nothing => {}
            ResponseState::Permit(Some(extras)) => self.0.limiter.release_with_extras(extras),
            ResponseState::Waiting(Waiting(waiter)) => self.release_waiter(&waiter, request),
            ResponseState::Queued(queued) => self.release_waiter(&queued.waiter, request),
            ResponseState::Shared => {
                match (initial_permit, request.shared.and_then(SharedState::waiter)) {
                    (Some(None), _) => self.0.limiter.release(PermitKind::Common),
                    (Some(Some(extras)), _) => self.0.limiter.release_with_extras(extras),
                    (None, Some(waiter)) => self.release_waiter(waiter, request),
                    (None, None) => {}
                }
            }
        }
    }
}
