//! What the concurrency limit decides.

use crate::{
    limiter::{Evicted, Half, Share, Waiter},
    options::Options,
    request::{
        Common, Halves, Held, Queued, Stage, Upload, Waits,
        admission::{self, Denied, over},
        response::{ends_at_head, is_grpc},
    },
};
use http::{Request, Response, StatusCode};
use http_body::{Body, SizeHint};
use palisade_core::{ClientKey, Guard, Phase, Reason, Rejection, RequestHead, Violation};
use palisade_guard::{
    ByClone, Elapsed, Facts, Flow, Handler, KeepsWhole, Keys, Of, Policy, Polled, Refusal, Shared,
    Stamp, Upstream,
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

/// How long a refused client is asked to stay away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === ConcurrencyLimitPolicy ===

impl ConcurrencyLimitPolicy {
    /// Queues or refuses a request for which there is no permit now.
    #[cold]
    #[inline(never)]
    fn denied<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
        denied: Denied,
    ) -> Result<Held, Refusal> {
        let options = &self.0;
        let Denied {
            mut violation,
            counted,
        } = denied;
        if let (Reason::Full, Some(queue)) = (violation.reason, options.queue)
            && options.rules().enforces
        {
            let (rules, client) = (options.rules(), self.account_of(&request.into(), keys));
            let waiter = options
                .limiter
                .queue_newcomer(rules, client, counted, queue.waiters);
            if let Some(waiter) = waiter {
                return Ok(Held::Queued(Box::new(Queued {
                    waiter,
                    wait: queue.wait,
                })));
            }
            violation = over(Reason::QueueFull, Phase::RequestHead, queue.waiters);
        }
        let status = match violation.reason {
            Reason::ClientFull => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        match self.refuse(violation, status, facts) {
            Some(refusal) => Err(refusal),
            None => Ok(Held::Nothing),
        }
    }

    /// Records a refusal. `None` if it is not enforced.
    fn refuse(&self, violation: Violation, status: StatusCode, facts: &Facts) -> Option<Refusal> {
        let mut rejection = Rejection::new(violation, status, facts.form);
        if status != StatusCode::REQUEST_TIMEOUT {
            rejection = rejection.retry_after(RETRY_AFTER);
        }
        self.0.settings.turn_away(rejection, facts).err()
    }

    fn account_of(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Option<ClientKey> {
        self.0.fair_share()?;
        self.0.client(head, keys)
    }

    /// What a evicted request did: it was one too many of those that wait.
    fn displacement(&self, phase: Phase) -> Violation {
        over(
            Reason::Evicted,
            phase,
            self.0.limiter.max_present(self.0.max_present),
        )
    }

    /// The request is over. Returns whether it was evicted.
    fn leave(&self, waiter: &Waiter, of: Of<'_, Common>) -> bool {
        let left = self.0.limiter.leave(waiter);
        let is_displaced = left.is_displaced;
        if of.shared.is_some_and(|common| !common.flags.is_body_gone()) {
            left.wake_body();
        }
        is_displaced
    }

    /// The request, which was evicted, is over before it is released. The caller has recorded it.
    fn leave_early(&self, held: &mut Held, of: Of<'_, Common>) {
        // First, because to wake a task may run any code.
        let held = std::mem::take(held);
        if let Some(waiter) = held.waiter(of.shared) {
            self.leave(waiter, of);
        }
    }

    /// The request is over. Records that it is cut, if it was evicted and not polled since.
    fn release_waiter(&self, waiter: &Waiter, of: Of<'_, Common>) {
        if self.leave(waiter, of) {
            self.record_cut(of);
        }
    }

    fn record_cut(&self, of: Of<'_, Common>) -> Violation {
        let violation = self.displacement(Phase::ResponseBody);
        self.0.settings.cut(&violation, of.facts.conn());
        violation
    }

    /// Ends a response that was evicted.
    #[cold]
    #[inline(never)]
    fn cut(&self, held: &mut Held, of: Of<'_, Common>, slot: &mut Polled) -> Flow {
        let violation = self.record_cut(of);
        self.leave_early(held, of);
        *slot = Poll::Ready(Some(violation.ending(of.facts.form)));
        Flow::Cut
    }

    /// A frame of so many `bytes` was handed to the server, and nothing is left to do until it asks
    /// for more: for the first time, or in a gRPC stream.
    #[inline(never)]
    fn wait_for_client(&self, held: &mut Held, of: Of<'_, Common>, bytes: u64, cx: &Context<'_>) {
        if let Held::Permit(extras) = held {
            // A permit beyond the limit is kept: there is no queue for it.
            if extras.as_ref().is_some_and(|extras| extras.picked) {
                return;
            }
            let client = held.charged_client();
            let Held::Permit(extras) = std::mem::take(held) else {
                return;
            };
            let waiter = Waiter::working(self.0.rules(), client, extras);
            *held = Held::Waits(Waits(Arc::new(waiter)));
        }
        let waiter = match (&*held, of.shared) {
            (Held::Shared, Some(common)) => {
                common.halves_to_wait(&self.0).map(|halves| halves.waiter)
            }
            (held, common) => held.waiter(common),
        };
        if let Some(waiter) = waiter {
            waiter.progressed(bytes);
            if let Some(common) = of.shared
                && common.flags.is_stream()
            {
                common.stream_gives();
            }
            self.0.limiter.wait_for_client(waiter, Half::Answer, cx);
        }
    }

    /// The response is asked for more, and has nothing to give.
    #[inline(never)]
    fn answer_waits(&self, of: Of<'_, Common>, cx: &mut Context<'_>) {
        // Without a body the handler does not wait for the client.
        let Some(common) = of.shared else { return };
        let streams = common.flags.is_stream();
        if !streams && common.waiter().is_none() && common.flags.is_body_gone() {
            return;
        }
        if let Some(halves) = common.halves_to_wait(&self.0) {
            halves.answer_waits(cx);
            if streams {
                common.stream_waits(&self.0, cx);
            }
        }
    }

    /// The handler of a request that has waited was polled.
    #[inline(never)]
    fn after_poll(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let halves = of.shared?.halves(&self.0)?;
        let is_pending = if let Handler::Pending { awaits_client } = handler {
            halves.handler_waits(awaits_client, cx);
            true
        } else {
            false
        };
        if !halves.waiter.is_displaced() {
            return None;
        }
        // A response that is ready is not thrown away, unless it may say no more than that the
        // body failed. Only a guard that enforces evicts.
        let is_refused = is_pending || halves.body_told();
        let (violation, status) = (
            self.displacement(Phase::RequestBody),
            StatusCode::REQUEST_TIMEOUT,
        );
        let refusal = if is_refused {
            self.refuse(violation, status, of.facts)
        } else {
            None
        };
        self.leave_early(held, of);
        refusal.map(Box::new)
    }

    /// The body of a request that has waited has something to hand on.
    #[inline(never)]
    fn hand_on(
        &self,
        halves: Halves<'_>,
        upload: &mut Upload,
        slot: &mut Polled,
        cx: &Context<'_>,
    ) -> Flow {
        if upload.stash.is_none() {
            if halves.body_goes_on() {
                halves.waiter.progressed(length(slot));
                return Flow::Go;
            }
            let Poll::Ready(frame) = std::mem::replace(slot, Poll::Pending) else {
                return Flow::Go;
            };
            upload.stash = Some(Box::new(frame));
            upload.stage = Stage::Holding;
        }
        let Poll::Ready(goes_on) = halves.poll_body(cx) else {
            *slot = Poll::Pending;
            return Flow::Busy;
        };
        let stash = upload.stash.take();
        upload.stage = Stage::Watched;
        if let Err(Evicted) = goes_on {
            upload.stage = Stage::Cut;
            halves.body_tells();
            let violation = self.displacement(Phase::RequestBody);
            *slot = Poll::Ready(Some(Err(violation.into())));
            return Flow::Cut;
        }
        *slot = Poll::Ready(stash.and_then(|frame| *frame));
        halves.waiter.progressed(length(slot));
        Flow::Go
    }

    /// Releases what a request holds that is more than a mere permit.
    #[inline(never)]
    fn release_more(&self, held: &mut Held, of: Of<'_, Common>) {
        let early = of.shared.and_then(Common::take_early);
        match std::mem::take(held) {
            Held::Permit(None) | Held::Nothing => {}
            Held::Permit(Some(extras)) => self.0.limiter.release_with(extras),
            Held::Waits(Waits(waiter)) => self.release_waiter(&waiter, of),
            Held::Queued(queued) => self.release_waiter(&queued.waiter, of),
            Held::Shared => match (early, of.shared.and_then(Common::waiter)) {
                (Some(None), _) => self.0.limiter.release(Share::Common),
                (Some(Some(extras)), _) => self.0.limiter.release_with(extras),
                (None, Some(waiter)) => self.release_waiter(waiter, of),
                (None, None) => {}
            },
        }
    }
}

fn length(polled: &Polled) -> u64 {
    match polled {
        Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.len() as u64),
        _ => 0,
    }
}

impl Policy for ConcurrencyLimitPolicy {
    type Held = Held;
    type Shared = Common;
    type Upload = Upload;
    type Later = ByClone;
    type Unread = KeepsWhole;

    #[inline(always)]
    fn listens(&self) -> bool {
        self.0.settings.recorder.is_on()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<Held, Refusal> {
        if !self.0.settings.is_on() {
            return Ok(Held::Nothing);
        }
        match admission::admit(&self.0, &RequestHead::from(request), keys) {
            Ok(extras) => Ok(Held::Permit(extras)),
            Err(denied) => self.denied(request, facts, keys, denied),
        }
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut Held,
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Common {
        if let Held::Queued(queued) = held {
            return Common::queued(queued.waiter.clone(), facts.has_body);
        }
        // First, because it runs code of the user's that may panic.
        let client = self.account_of(&RequestHead::from(&*request), keys);
        let early = match held {
            Held::Permit(extras) if !extras.as_ref().is_some_and(|extras| extras.picked) => {
                let early = extras.take();
                *held = Held::Shared;
                Some(early)
            }
            _ => None,
        };
        Common::new(early, client, facts.has_body)
    }

    #[inline(always)]
    fn upload(&self, held: &mut Held, _: &Common, _: &Facts) -> Upload {
        let is_watched = matches!(held, Held::Shared | Held::Queued(_));
        let stage = if is_watched {
            Stage::Watched
        } else {
            Stage::Unwatched
        };
        Upload {
            stash: None,
            progress: 0,
            stage,
        }
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &Held) -> bool {
        self.is_queued(held)
    }

    #[inline(always)]
    fn is_queued(&self, held: &Held) -> bool {
        matches!(held, Held::Queued(_))
    }

    fn poll_admission(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        let Held::Queued(queued) = held else {
            return Poll::Ready(Ok(()));
        };
        let limiter = &self.0.limiter;
        let _: Result<(), Evicted> = ready!(limiter.poll_work(&queued.waiter, Half::Answer, cx));
        if let Err(violation) = admission::welcome(&self.0) {
            let refusal = self.refuse(violation, StatusCode::SERVICE_UNAVAILABLE, of.facts);
            // Only a guard that enforces queues.
            return Poll::Ready(refusal.map_or(Ok(()), |refusal| Err(Box::new(refusal))));
        }
        if let Held::Queued(queued) = std::mem::take(held) {
            *held = Held::Waits(Waits(queued.waiter));
        }
        Poll::Ready(Ok(()))
    }

    #[inline(always)]
    fn before_handler(
        &self,
        _: &mut Held,
        of: Shared<'_, Common>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let halves = of.shared.halves(&self.0);
        halves.map_or(Poll::Ready(()), |halves| halves.poll_handler(cx))
    }

    #[inline(always)]
    fn after_handler(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let waiter = held.waiter(of.shared)?;
        let has_nothing_to_do = match handler {
            Handler::HeldBack => true,
            Handler::Pending {
                awaits_client: true,
            } => self.0.limiter.keeps_on(waiter, Half::Answer, cx),
            Handler::Pending {
                awaits_client: false,
            }
            | Handler::Ready => false,
        };
        if has_nothing_to_do {
            None
        } else {
            self.after_poll(held, of, handler, cx)
        }
    }

    #[inline(always)]
    fn has_deadline(&self, held: &Held, _: Of<'_, Common>) -> bool {
        self.is_queued(held)
    }

    #[inline(always)]
    fn deadline(&self, held: &Held, _: Of<'_, Common>, elapsed: &Elapsed<'_>) -> Option<Instant> {
        let Held::Queued(queued) = held else {
            return None;
        };
        elapsed.started.checked_add(queued.wait)
    }

    #[inline(always)]
    fn expired(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        let Held::Queued(queued) = held else {
            return None;
        };
        if elapsed.wall() < queued.wait {
            return None;
        }
        let millis = u64::try_from(queued.wait.as_millis()).unwrap_or(u64::MAX);
        let (reason, phase) = (Reason::QueueTimeout, Phase::RequestHead);
        let violation = Violation::new(Guard::ConcurrencyLimit, reason, phase, millis, millis);
        self.refuse(violation, StatusCode::SERVICE_UNAVAILABLE, of.facts)
            .map(Box::new)
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        response: &Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        if let Some(common) = of.shared {
            if of.facts.form.is_grpc() && is_grpc(response) {
                common.flags.set_streams();
            }
            common.head_is_out();
        }
        if matches!(held, Held::Nothing) || response.body().is_end_stream() {
            return Ok(false);
        }
        if self.0.release_at_head || ends_at_head(response, of.facts) {
            self.release(held, of);
            *held = Held::Nothing;
        }
        Ok(!matches!(held, Held::Nothing))
    }

    #[inline(always)]
    fn is_plain(&self, upload: &Upload, common: &Common) -> bool {
        match upload.stage {
            Stage::Unwatched => true,
            Stage::Watched => common.halves(&self.0).is_none_or(Halves::body_passes),
            Stage::Holding | Stage::Cut => false,
        }
    }

    #[inline(always)]
    fn passed(&self, upload: &mut Upload, bytes: usize) {
        upload.progress = upload.progress.saturating_add(bytes as u64);
    }

    #[inline(always)]
    fn wait_ends(&self, _: &mut Upload, of: Shared<'_, Common>, _: Stamp, _: Stamp) {
        if let Some(halves) = of.shared.halves(&self.0) {
            halves.body_has_something();
        }
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut Upload,
        of: Shared<'_, Common>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if upload.stage == Stage::Cut {
            *slot = Poll::Ready(None);
            return Flow::Go;
        }
        if upload.stash.is_none() {
            up.poll(slot, cx);
        }
        let hands_on = upload.stage == Stage::Holding
            || (upload.stage == Stage::Watched && !slot.is_pending());
        match of.shared.halves(&self.0) {
            Some(halves) if hands_on => self.hand_on(halves, upload, slot, cx),
            _ => Flow::Go,
        }
    }

    #[inline(always)]
    fn client_awaited(
        &self,
        upload: &mut Upload,
        of: Shared<'_, Common>,
        by_handler: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        if upload.stage == Stage::Watched
            && let Some(halves) = of.shared.halves_to_wait(&self.0)
        {
            halves
                .waiter
                .progressed(std::mem::take(&mut upload.progress));
            if let Err(Evicted) = halves.body_waits(by_handler, cx) {
                upload.stage = Stage::Cut;
                halves.body_tells();
                return Err(self.displacement(Phase::RequestBody));
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn request_ended<U: Upstream>(&self, upload: &Upload, up: &U) -> bool {
        match upload.stage {
            Stage::Cut => true,
            Stage::Holding => false,
            Stage::Unwatched | Stage::Watched => up.is_end_stream(),
        }
    }

    fn request_hint<U: Upstream>(
        &self,
        upload: &Upload,
        _: Shared<'_, Common>,
        up: &U,
    ) -> SizeHint {
        let mut hint = up.size_hint();
        if let Some(Some(Ok(frame))) = upload.stash.as_deref()
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
        held: &mut Held,
        of: Of<'_, Common>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let limiter = &self.0.limiter;
        if let Some(waiter) = held.waiter(of.shared) {
            match limiter.poll_work(waiter, Half::Answer, cx) {
                Poll::Pending => return Flow::Go,
                Poll::Ready(Err(Evicted)) => return self.cut(held, of, slot),
                Poll::Ready(Ok(())) => {
                    if let Some(common) = of.shared {
                        common.flags.answer_works();
                    }
                }
            }
        }
        up.poll(slot, cx);
        match slot {
            Poll::Pending => {
                if matches!(held, Held::Shared | Held::Waits(_)) {
                    self.answer_waits(of, cx);
                }
            }
            Poll::Ready(Some(Ok(_))) if !up.is_end_stream() => {
                let streams = of.shared.is_some_and(|common| common.flags.is_stream());
                match held.waiter(of.shared) {
                    Some(waiter) if !streams => {
                        waiter.progressed(length(slot));
                        // Whether it was evicted at once shows when it is asked for more.
                        limiter.wait_for_client(waiter, Half::Answer, cx);
                    }
                    None if matches!(held, Held::Nothing) => {}
                    _ => self.wait_for_client(held, of, length(slot), cx),
                }
            }
            Poll::Ready(_) => {}
        }
        Flow::Go
    }

    #[inline(always)]
    fn release_upload(&self, _: &mut Upload, of: Shared<'_, Common>) {
        of.shared.body_is_gone(&self.0);
    }

    #[inline(always)]
    fn release(&self, held: &mut Held, of: Of<'_, Common>) {
        match held {
            Held::Nothing => {}
            Held::Permit(None) => self.0.limiter.release(Share::Common),
            _ => self.release_more(held, of),
        }
    }
}
