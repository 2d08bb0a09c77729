//! Decisions of the concurrency limit.

mod ending;

use crate::{
    limiter::{Evicted, Half, PermitKind, Waiter},
    options::Options,
    request::{
        Halves, Queued, ResponseState, SharedState, UploadStage, UploadState, Waiting,
        admission::{self, Denied, limit_exceeded},
        response::{is_grpc, releases_at_head},
    },
};
use http::{Request, Response, StatusCode};
use http_body::{Body, SizeHint};
use palisade_core::{ClientKey, Guard, Phase, Reason, RequestHead, Violation};
use palisade_guard::{
    Elapsed, Facts, Flow, Handler, KeepUnread, Keys, Policy, Polled, QueueByClone, Refusal,
    RequestView, SharedView, Stamp, Upstream,
};
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// The policy of [`ConcurrencyLimitLayer`](crate::ConcurrencyLimitLayer).
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitPolicy(pub(crate) Arc<Options>);

/// Sent as `Retry-After` with a refusal.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === ConcurrencyLimitPolicy ===

impl ConcurrencyLimitPolicy {
    /// Queues or refuses a request that got no permit.
    #[cold]
    #[inline(never)]
    fn queue_or_refuse<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
        denied: Denied,
    ) -> Result<ResponseState, Refusal> {
        let options = &self.0;
        let Denied {
            mut violation,
            counted,
        } = denied;
        if let (Reason::Full, Some(queue)) = (violation.reason, options.queue)
            && options.rules().enforces
        {
            let (rules, client) = (
                options.rules(),
                self.fair_share_client(&request.into(), keys),
            );
            let waiter =
                options
                    .limiter
                    .queue_new_request(rules, client, counted, queue.max_waiters);
            if let Some(waiter) = waiter {
                return Ok(ResponseState::Queued(Box::new(Queued {
                    waiter,
                    max_wait: queue.max_wait,
                })));
            }
            violation = limit_exceeded(Reason::QueueFull, Phase::RequestHead, queue.max_waiters);
        }
        let status = match violation.reason {
            Reason::ClientFull => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        match self.refuse(violation, status, facts) {
            Some(refusal) => Err(refusal),
            None => Ok(ResponseState::Nothing),
        }
    }

    fn fair_share_client(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Option<ClientKey> {
        self.0.fair_share()?;
        self.0.client_key(head, keys)
    }

    /// Waits for the client after a frame of `bytes` was passed to the server: for the first time,
    /// or in a gRPC stream. Nothing is left to do until the server polls again.
    #[inline(never)]
    fn wait_for_client(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        bytes: u64,
        cx: &Context<'_>,
    ) {
        if let ResponseState::Permit(extras) = held {
            // A permit beyond the limit is not given back: there is no queue for it.
            if extras.as_ref().is_some_and(|extras| extras.from_reserve) {
                return;
            }
            let client = held.charged_client();
            let ResponseState::Permit(extras) = std::mem::take(held) else {
                return;
            };
            let waiter = Waiter::working(self.0.rules(), client, extras);
            *held = ResponseState::Waiting(Waiting(Arc::new(waiter)));
        }
        let waiter = match (&*held, request.shared) {
            (ResponseState::Shared, Some(common)) => common
                .halves_or_new_waiter(&self.0)
                .map(|halves| halves.waiter),
            (held, common) => held.waiter(common),
        };
        if let Some(waiter) = waiter {
            waiter.add_progress(bytes);
            if let Some(common) = request.shared
                && common.flags.is_grpc_stream()
            {
                common.stream_progressed();
            }
            self.0.limiter.wait_for_client(waiter, Half::Response, cx);
        }
    }

    /// Updates the state after a poll in which the response body was pending.
    #[inline(never)]
    fn response_pending(&self, request: RequestView<'_, SharedState>, cx: &mut Context<'_>) {
        // Without a body the handler does not wait for the client.
        let Some(common) = request.shared else { return };
        let is_grpc_stream = common.flags.is_grpc_stream();
        if !is_grpc_stream && common.waiter().is_none() && common.flags.is_body_dropped() {
            return;
        }
        if let Some(halves) = common.halves_or_new_waiter(&self.0) {
            halves.response_pending(cx);
            if is_grpc_stream {
                common.poll_stream_idle(&self.0, cx);
            }
        }
    }

    /// Updates the state after a poll of the handler of a request that has waited.
    #[inline(never)]
    fn after_handler_poll(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let halves = request.shared?.halves(&self.0)?;
        let is_pending = if let Handler::Pending { awaits_client } = handler {
            halves.handler_pending(awaits_client, cx);
            true
        } else {
            false
        };
        if !halves.waiter.is_evicted() {
            return None;
        }
        // A ready response is kept, unless it may only report that the body failed. Requests are
        // evicted only in enforce mode.
        let is_refused = is_pending || halves.is_eviction_reported();
        let (violation, status) = (
            self.eviction_violation(Phase::RequestBody),
            StatusCode::REQUEST_TIMEOUT,
        );
        let refusal = if is_refused {
            self.refuse(violation, status, request.facts)
        } else {
            None
        };
        self.end_evicted_request(held, request);
        refusal.map(Box::new)
    }

    /// Passes a frame of a request that has waited to the handler, or holds it until there is a
    /// permit.
    #[inline(never)]
    fn pass_frame(
        &self,
        halves: Halves<'_>,
        upload: &mut UploadState,
        slot: &mut Polled,
        cx: &Context<'_>,
    ) -> Flow {
        if upload.held_frame.is_none() {
            if halves.resume_body() {
                halves.waiter.add_progress(data_len(slot));
                return Flow::Continue;
            }
            let Poll::Ready(frame) = std::mem::replace(slot, Poll::Pending) else {
                return Flow::Continue;
            };
            upload.held_frame = Some(Box::new(frame));
            upload.stage = UploadStage::HoldsFrame;
        }
        let Poll::Ready(permit) = halves.poll_body_permit(cx) else {
            *slot = Poll::Pending;
            return Flow::Busy;
        };
        let held_frame = upload.held_frame.take();
        upload.stage = UploadStage::Limited;
        if let Err(Evicted) = permit {
            upload.stage = UploadStage::Evicted;
            halves.set_eviction_reported();
            let violation = self.eviction_violation(Phase::RequestBody);
            *slot = Poll::Ready(Some(Err(violation.into())));
            return Flow::Cut;
        }
        *slot = Poll::Ready(held_frame.and_then(|frame| *frame));
        halves.waiter.add_progress(data_len(slot));
        Flow::Continue
    }
}

fn data_len(polled: &Polled) -> u64 {
    match polled {
        Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.len() as u64),
        _ => 0,
    }
}

impl Policy for ConcurrencyLimitPolicy {
    type Held = ResponseState;
    type Shared = SharedState;
    type Upload = UploadState;
    type QueuedService = QueueByClone;
    type Unread = KeepUnread;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.0.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<ResponseState, Refusal> {
        if !self.0.settings.is_enabled() {
            return Ok(ResponseState::Nothing);
        }
        match admission::admit(&self.0, &RequestHead::from(request), keys) {
            Ok(extras) => Ok(ResponseState::Permit(extras)),
            Err(denied) => self.queue_or_refuse(request, facts, keys, denied),
        }
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut ResponseState,
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> SharedState {
        if let ResponseState::Queued(queued) = held {
            return SharedState::queued(queued.waiter.clone(), facts.has_body);
        }
        // Before anything is taken: the key extractor is user code and may panic.
        let client = self.fair_share_client(&RequestHead::from(&*request), keys);
        let initial_permit = match held {
            ResponseState::Permit(extras)
                if !extras.as_ref().is_some_and(|extras| extras.from_reserve) =>
            {
                let initial_permit = extras.take();
                *held = ResponseState::Shared;
                Some(initial_permit)
            }
            _ => None,
        };
        SharedState::new(initial_permit, client, facts.has_body)
    }

    #[inline(always)]
    fn upload(&self, held: &mut ResponseState, _: &SharedState, _: &Facts) -> UploadState {
        let is_limited = matches!(held, ResponseState::Shared | ResponseState::Queued(_));
        let stage = if is_limited {
            UploadStage::Limited
        } else {
            UploadStage::Unlimited
        };
        UploadState {
            held_frame: None,
            progress: 0,
            stage,
        }
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &ResponseState, _: &Keys) -> bool {
        self.is_queued(held)
    }

    #[inline(always)]
    fn is_queued(&self, held: &ResponseState) -> bool {
        matches!(held, ResponseState::Queued(_))
    }

    fn poll_admission(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        let ResponseState::Queued(queued) = held else {
            return Poll::Ready(Ok(()));
        };
        let limiter = &self.0.limiter;
        let _: Result<(), Evicted> =
            ready!(limiter.poll_permit(&queued.waiter, Half::Response, cx));
        if let Err(violation) = admission::finish_admission(&self.0) {
            let refusal = self.refuse(violation, StatusCode::SERVICE_UNAVAILABLE, request.facts);
            // Requests are queued only in enforce mode.
            return Poll::Ready(refusal.map_or(Ok(()), |refusal| Err(Box::new(refusal))));
        }
        if let ResponseState::Queued(queued) = std::mem::take(held) {
            *held = ResponseState::Waiting(Waiting(queued.waiter));
        }
        Poll::Ready(Ok(()))
    }

    #[inline(always)]
    fn before_handler(
        &self,
        _: &mut ResponseState,
        request: SharedView<'_, SharedState>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let halves = request.shared.halves(&self.0);
        halves.map_or(Poll::Ready(()), |halves| halves.poll_handler_permit(cx))
    }

    #[inline(always)]
    fn after_handler(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let waiter = held.waiter(request.shared)?;
        let is_idle = match handler {
            Handler::HeldBack => true,
            Handler::Pending {
                awaits_client: true,
            } => self
                .0
                .limiter
                .still_keeps_permit(waiter, Half::Response, cx),
            Handler::Pending {
                awaits_client: false,
            }
            | Handler::Ready => false,
        };
        if is_idle {
            None
        } else {
            self.after_handler_poll(held, request, handler, cx)
        }
    }

    #[inline(always)]
    fn has_deadline(&self, held: &ResponseState, _: RequestView<'_, SharedState>) -> bool {
        self.is_queued(held)
    }

    #[inline(always)]
    fn deadline(
        &self,
        held: &ResponseState,
        _: RequestView<'_, SharedState>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Instant> {
        let ResponseState::Queued(queued) = held else {
            return None;
        };
        elapsed.started.checked_add(queued.max_wait)
    }

    #[inline(always)]
    fn expired(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        let ResponseState::Queued(queued) = held else {
            return None;
        };
        if elapsed.wall() < queued.max_wait {
            return None;
        }
        let millis = u64::try_from(queued.max_wait.as_millis()).unwrap_or(u64::MAX);
        let (reason, phase) = (Reason::QueueTimeout, Phase::RequestHead);
        let violation = Violation::new(Guard::ConcurrencyLimit, reason, phase, millis, millis);
        self.refuse(violation, StatusCode::SERVICE_UNAVAILABLE, request.facts)
            .map(Box::new)
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        response: &mut Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        if let Some(common) = request.shared {
            if request.facts.form.is_grpc() && is_grpc(response) {
                common.flags.set_grpc_stream();
            }
            common.response_head_sent();
        }
        if matches!(held, ResponseState::Nothing) || response.body().is_end_stream() {
            return Ok(false);
        }
        if self.0.release_at_head || releases_at_head(response, request.facts) {
            self.release(held, request);
            *held = ResponseState::Nothing;
        }
        Ok(!matches!(held, ResponseState::Nothing))
    }

    #[inline(always)]
    fn is_plain(&self, upload: &UploadState, common: &SharedState) -> bool {
        match upload.stage {
            UploadStage::Unlimited => true,
            UploadStage::Limited => common
                .halves(&self.0)
                .is_none_or(Halves::body_passes_through),
            UploadStage::HoldsFrame | UploadStage::Evicted => false,
        }
    }

    #[inline(always)]
    fn passed(&self, upload: &mut UploadState, _: &SharedState, bytes: usize) {
        upload.progress = upload.progress.saturating_add(bytes as u64);
    }

    #[inline(always)]
    fn wait_ended(
        &self,
        _: &mut UploadState,
        request: SharedView<'_, SharedState>,
        _: Stamp,
        _: Stamp,
    ) {
        if let Some(halves) = request.shared.halves(&self.0) {
            halves.body_wait_ended();
        }
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut UploadState,
        request: SharedView<'_, SharedState>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if upload.stage == UploadStage::Evicted {
            *slot = Poll::Ready(None);
            return Flow::Continue;
        }
        if upload.held_frame.is_none() {
            upstream.poll(slot, cx);
        }
        let needs_permit = upload.stage == UploadStage::HoldsFrame
            || (upload.stage == UploadStage::Limited && !slot.is_pending());
        match request.shared.halves(&self.0) {
            Some(halves) if needs_permit => self.pass_frame(halves, upload, slot, cx),
            _ => Flow::Continue,
        }
    }

    #[inline(always)]
    fn waits_for_client(
        &self,
        upload: &mut UploadState,
        request: SharedView<'_, SharedState>,
        by_handler: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        if upload.stage == UploadStage::Limited
            && let Some(halves) = request.shared.halves_or_new_waiter(&self.0)
        {
            halves
                .waiter
                .add_progress(std::mem::take(&mut upload.progress));
            if let Err(Evicted) = halves.body_awaits_client(by_handler, cx) {
                upload.stage = UploadStage::Evicted;
                halves.set_eviction_reported();
                return Err(self.eviction_violation(Phase::RequestBody));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn request_ended<U: Upstream>(&self, upload: &UploadState, upstream: &U) -> bool {
        match upload.stage {
            UploadStage::Evicted => true,
            UploadStage::HoldsFrame => false,
            UploadStage::Unlimited | UploadStage::Limited => upstream.is_end_stream(),
        }
    }

    fn request_hint<U: Upstream>(
        &self,
        upload: &UploadState,
        _: SharedView<'_, SharedState>,
        upstream: &U,
    ) -> SizeHint {
        let mut hint = upstream.size_hint();
        if let Some(Some(Ok(frame))) = upload.held_frame.as_deref()
            && let Some(data) = frame.data_ref()
        {
            let more = data.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper.saturating_add(more));
            }
            hint.set_lower(hint.lower().saturating_add(more));
        }
        hint
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut ResponseState,
        request: RequestView<'_, SharedState>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let limiter = &self.0.limiter;
        if let Some(waiter) = held.waiter(request.shared) {
            match limiter.poll_permit(waiter, Half::Response, cx) {
                Poll::Pending => return Flow::Continue,
                Poll::Ready(Err(Evicted)) => return self.cut(held, request, slot),
                Poll::Ready(Ok(())) => {
                    if let Some(common) = request.shared {
                        common.flags.clear_response_pending();
                    }
                }
            }
        }
        upstream.poll(slot, cx);
        match slot {
            Poll::Pending => {
                if matches!(held, ResponseState::Shared | ResponseState::Waiting(_)) {
                    self.response_pending(request, cx);
                }
            }
            Poll::Ready(Some(Ok(_))) if !upstream.is_end_stream() => {
                let is_grpc_stream = request
                    .shared
                    .is_some_and(|common| common.flags.is_grpc_stream());
                match held.waiter(request.shared) {
                    Some(waiter) if !is_grpc_stream => {
                        waiter.add_progress(data_len(slot));
                        // If this evicts the request at once, the next poll reports it.
                        limiter.wait_for_client(waiter, Half::Response, cx);
                    }
                    None if matches!(held, ResponseState::Nothing) => {}
                    _ => self.wait_for_client(held, request, data_len(slot), cx),
                }
            }
            Poll::Ready(_) => {}
        }
        Flow::Continue
    }

    #[inline(always)]
    fn release_upload(&self, _: &mut UploadState, request: SharedView<'_, SharedState>) {
        request.shared.body_dropped(&self.0);
    }

    #[inline(always)]
    fn release(&self, held: &mut ResponseState, request: RequestView<'_, SharedState>) {
        match held {
            ResponseState::Nothing => {}
            ResponseState::Permit(None) => self.0.limiter.release(PermitKind::Common),
            _ => self.release_slow(held, request),
        }
    }
}
