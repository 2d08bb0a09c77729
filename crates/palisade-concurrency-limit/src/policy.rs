//! What the concurrency limit decides.

use crate::{
    admission::{Denied, Options, RETRY_AFTER, over},
    owner::TicketOwner,
    request::{Common, Early, Held, Queued, Stage, Upload, about},
    slot::Share,
    ticket::{Displaced, Half, Ticket},
};
use http::{Request, Response, StatusCode};
use http_body::{Body, SizeHint};
use palisade_core::{ClientKey, Guard, Phase, Reason, Rejection, RequestHead, Violation};
use palisade_guard::{
    ByClone, Elapsed, Facts, Flow, Handler, KeepsWhole, Of, Policy, Polled, Refusal, Shared, Stamp,
    Upstream,
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
};
use tokio::time::Instant;

/// The policy of [`ConcurrencyLimitLayer`](crate::ConcurrencyLimitLayer).
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitPolicy(pub(crate) Arc<Options>);

// === ConcurrencyLimitPolicy ===

impl ConcurrencyLimitPolicy {
    /// Queues or refuses a request for which there is no slot now.
    #[cold]
    #[inline(never)]
    fn denied<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        denied: Denied,
    ) -> Result<Held, Refusal> {
        let options = &self.0;
        let Denied { mut violation, counted } = denied;
        if let (Reason::Full, Some(queue)) = (violation.reason, options.queue)
            && !options.only_watches()
        {
            let about = about(facts, self.account_of(&request.into()));
            if let Some(owner) = Ticket::newcomer(options.clone(), about, counted, queue.waiters) {
                return Ok(Held::Queued(Box::new(Queued { owner, wait: queue.wait })));
            }
            violation = over(Reason::QueueFull, queue.waiters);
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
        let settings = &self.0.settings;
        settings.refuse(&rejection, facts.conn()).then(|| Refusal::new(rejection, settings))
    }

    fn account_of(&self, head: &RequestHead<'_>) -> Option<ClientKey> {
        self.0.ledger()?;
        self.0.client(head)
    }

    /// Ends a response that has to go.
    #[cold]
    #[inline(never)]
    fn cut(held: &Held, of: Of<'_, Common>, slot: &mut Polled) -> Flow {
        let Some(ticket) = held.ticket(of.shared) else { return Flow::Go };
        *slot = Poll::Ready(Some(ticket.record_cut().ending(of.facts.form)));
        Flow::Cut
    }

    /// A frame of so many `bytes` was handed to the server, and nothing is left to do until it asks
    /// for more.
    #[inline(never)]
    fn wait_for_client(&self, held: &mut Held, of: Of<'_, Common>, bytes: u64, cx: &Context<'_>) {
        if let Held::Slot(extra) = held {
            // A slot beyond the limit is kept: there is no line for it.
            if extra.as_ref().is_some_and(|extra| extra.picked) {
                return;
            }
            let charge = extra.as_ref().and_then(|extra| extra.charge.as_ref());
            let about = about(of.facts, charge.map(crate::ledger::Charge::client));
            let ticket = Ticket::working(self.0.clone(), about, extra.take(), true, true);
            *held = Held::Ticket(TicketOwner::new(ticket));
        }
        let ticket = match held {
            Held::Shared => of.shared.and_then(|common| common.ticket(&self.0, of.facts)),
            held => held.ticket(of.shared),
        };
        if let Some(ticket) = ticket {
            ticket.progressed(bytes);
            if of.shared.is_some_and(|common| common.streams.load(Relaxed)) {
                ticket.stream_gives();
            }
            // Whether it was displaced at once shows when it is asked for more.
            let _ = ticket.wait_for_client(Half::Answer, cx);
        }
    }

    /// The response is asked for more, and has nothing to give.
    #[inline(never)]
    fn answer_waits(&self, held: &Held, of: Of<'_, Common>, cx: &mut Context<'_>) {
        let ticket = match (held, of.shared) {
            (Held::Shared, Some(common)) => {
                let streams = common.streams.load(Relaxed);
                if !streams && common.known().is_none() && common.early.lock().body_gone {
                    return;
                }
                common.ticket(&self.0, of.facts)
            }
            (held, common) => held.ticket(common),
        };
        if let Some(ticket) = ticket {
            ticket.answer_waits(cx);
            if of.shared.is_some_and(|common| common.streams.load(Relaxed)) {
                ticket.stream_waits(cx);
            }
        }
    }

    #[inline(never)]
    fn after_ticket(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let ticket = held.ticket(of.shared)?;
        let is_pending = if let Handler::Pending { awaits_client } = handler {
            ticket.handler_waits(awaits_client, cx);
            true
        } else {
            false
        };
        if !ticket.is_displaced() {
            return None;
        }
        // A response that is ready is not thrown away, unless it may say no more than that the
        // body failed.
        let is_refused = is_pending || ticket.body_told();
        let violation = ticket.displacement(Phase::RequestBody);
        ticket.was_recorded.store(true, Relaxed);
        if !is_refused {
            self.release(held, of);
            *held = Held::Nothing;
            return None;
        }
        // Only a guard that enforces displaces.
        self.refuse(violation, StatusCode::REQUEST_TIMEOUT, of.facts).map(Box::new)
    }

    /// The body of a request with a ticket has something to hand on.
    #[inline(never)]
    fn hand_on(
        ticket: &Arc<Ticket>,
        upload: &mut Upload,
        slot: &mut Polled,
        cx: &Context<'_>,
    ) -> Flow {
        if upload.stash.is_none() {
            if ticket.body_goes_on() {
                ticket.progressed(length(slot));
                return Flow::Go;
            }
            let Poll::Ready(frame) = std::mem::replace(slot, Poll::Pending) else {
                return Flow::Go;
            };
            upload.stash = Some(Box::new(frame));
            upload.stage = Stage::Holding;
        }
        let Poll::Ready(goes_on) = ticket.poll_body(cx) else {
            *slot = Poll::Pending;
            return Flow::Busy;
        };
        let stash = upload.stash.take();
        upload.stage = Stage::Watched;
        if let Err(Displaced) = goes_on {
            upload.stage = Stage::Cut;
            *slot = Poll::Ready(Some(Err(ticket.body_tells().into())));
            return Flow::Cut;
        }
        *slot = Poll::Ready(stash.and_then(|frame| *frame));
        ticket.progressed(length(slot));
        Flow::Go
    }

    #[cold]
    #[inline(never)]
    fn release_rare(&self, held: Held) {
        if let Held::Slot(Some(extra)) = held {
            self.0.slots.give_back(extra);
        } else {
            drop(held);
        }
    }

    #[inline]
    fn release_shared(&self, common: &Common) {
        let slot = common.early.lock().slot.take();
        match (slot, common.known()) {
            (Some(None), _) => self.0.slots.release(Share::Common),
            (Some(Some(extra)), _) => self.0.slots.give_back(extra),
            (None, Some(ticket)) => {
                self.release_rare(Held::Ticket(TicketOwner::new(ticket.clone())));
            }
            (None, None) => {}
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
    fn admit<B: Body>(&self, request: &Request<B>, facts: &Facts) -> Result<Held, Refusal> {
        if !self.0.settings.is_on() {
            return Ok(Held::Nothing);
        }
        match self.0.admit(&RequestHead::from(request)) {
            Ok(extra) => Ok(Held::Slot(extra)),
            Err(denied) => self.denied(request, facts, denied),
        }
    }

    #[inline(always)]
    fn share<B: Body>(&self, held: &mut Held, request: &mut Request<B>, facts: &Facts) -> Common {
        // First, because it runs code of the user's that may panic.
        let client = self.account_of(&RequestHead::from(&*request));
        let mut early = Early { slot: None, head_out: false, body_gone: !facts.has_body };
        let ticket = OnceLock::new();
        match held {
            Held::Slot(extra) if !extra.as_ref().is_some_and(|extra| extra.picked) => {
                early.slot = Some(extra.take());
                *held = Held::Shared;
            }
            Held::Queued(queued) => {
                let newcomer = &queued.owner.ticket;
                newcomer.body_gone.store(!facts.has_body, SeqCst);
                let _ = ticket.set(newcomer.clone());
            }
            _ => {}
        }
        Common { ticket, early: Mutex::new(early), client, streams: AtomicBool::new(false) }
    }

    #[inline(always)]
    fn upload(&self, held: &mut Held, _: &Common, _: &Facts) -> Upload {
        let is_watched = matches!(held, Held::Shared | Held::Queued(_));
        let stage = if is_watched { Stage::Watched } else { Stage::Unwatched };
        Upload { stash: None, progress: 0, stage }
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
        let Held::Queued(queued) = held else { return Poll::Ready(Ok(())) };
        let ticket = &queued.owner.ticket;
        let _: Result<(), Displaced> = ready!(ticket.poll_work(Half::Answer, cx));
        if let Err(violation) = self.0.welcome() {
            ticket.was_recorded.store(true, Relaxed);
            let refusal = self.refuse(violation, StatusCode::SERVICE_UNAVAILABLE, of.facts);
            // Only a guard that enforces queues.
            return Poll::Ready(refusal.map_or(Ok(()), |refusal| Err(Box::new(refusal))));
        }
        if let Held::Queued(queued) = std::mem::take(held) {
            *held = Held::Ticket(queued.owner);
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
        of.shared.known().map_or(Poll::Ready(()), |ticket| ticket.poll_handler(cx))
    }

    #[inline(always)]
    fn after_handler(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let ticket = held.ticket(of.shared)?;
        let has_nothing_to_do = match handler {
            Handler::HeldBack => true,
            Handler::Pending { awaits_client: true } => ticket.keeps_on(Half::Answer, cx),
            Handler::Pending { awaits_client: false } | Handler::Ready => false,
        };
        if has_nothing_to_do { None } else { self.after_ticket(held, of, handler, cx) }
    }

    #[inline(always)]
    fn has_deadline(&self, held: &Held, _: Of<'_, Common>) -> bool {
        self.is_queued(held)
    }

    #[inline(always)]
    fn deadline(&self, held: &Held, _: Of<'_, Common>, elapsed: &Elapsed<'_>) -> Option<Instant> {
        let Held::Queued(queued) = held else { return None };
        elapsed.started.checked_add(queued.wait)
    }

    #[inline(always)]
    fn expired(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        let Held::Queued(queued) = held else { return None };
        if elapsed.wall() < queued.wait {
            return None;
        }
        queued.owner.ticket.was_recorded.store(true, Relaxed);
        let millis = u64::try_from(queued.wait.as_millis()).unwrap_or(u64::MAX);
        let (reason, phase) = (Reason::QueueTimeout, Phase::RequestHead);
        let violation = Violation::new(Guard::ConcurrencyLimit, reason, phase, millis, millis);
        self.refuse(violation, StatusCode::SERVICE_UNAVAILABLE, of.facts).map(Box::new)
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
            if of.facts.form.is_grpc() && content_type_begins(response, b"application/grpc") {
                common.streams.store(true, Relaxed);
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
            Stage::Watched => common.known().is_none_or(|ticket| ticket.body_passes()),
            Stage::Holding | Stage::Cut => false,
        }
    }

    #[inline(always)]
    fn passed(&self, upload: &mut Upload, bytes: usize) {
        upload.progress = upload.progress.saturating_add(bytes as u64);
    }

    #[inline(always)]
    fn wait_ends(&self, _: &mut Upload, of: Shared<'_, Common>, _: Stamp, _: Stamp) {
        if let Some(ticket) = of.shared.known() {
            ticket.body_has_something();
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
        match of.shared.known() {
            Some(ticket)
                if upload.stage == Stage::Holding
                    || (upload.stage == Stage::Watched && !slot.is_pending()) =>
            {
                Self::hand_on(ticket, upload, slot, cx)
            }
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
            && let Some(ticket) = of.shared.ticket(&self.0, of.facts)
        {
            ticket.progressed(std::mem::take(&mut upload.progress));
            ticket.read_elsewhere.store(!by_handler, SeqCst);
            if !by_handler {
                ticket.listen(Half::Body, cx);
            }
            if let Err(Displaced) = ticket.body_waits() {
                upload.stage = Stage::Cut;
                return Err(ticket.body_tells());
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
        if let Some(ticket) = held.ticket(of.shared) {
            match ticket.poll_work(Half::Answer, cx) {
                Poll::Pending => return Flow::Go,
                Poll::Ready(Err(Displaced)) => return Self::cut(held, of, slot),
                Poll::Ready(Ok(())) => ticket.answer_works(),
            }
        }
        up.poll(slot, cx);
        match slot {
            Poll::Pending => {
                if !matches!(held, Held::Nothing | Held::Slot(_)) {
                    self.answer_waits(held, of, cx);
                }
            }
            Poll::Ready(Some(Ok(_))) if !up.is_end_stream() => {
                let streams = of.shared.is_some_and(|common| common.streams.load(Relaxed));
                match held.ticket(of.shared) {
                    Some(ticket) if !streams => {
                        ticket.progressed(length(slot));
                        // Whether it was displaced at once shows when it is asked for more.
                        let _ = ticket.wait_for_client(Half::Answer, cx);
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
        of.shared.body_is_gone();
    }

    #[inline(always)]
    fn release(&self, held: &mut Held, of: Of<'_, Common>) {
        match held {
            Held::Nothing => {}
            Held::Slot(None) => self.0.slots.release(Share::Common),
            Held::Shared => {
                if let Some(common) = of.shared {
                    self.release_shared(common);
                }
            }
            _ => self.release_rare(std::mem::take(held)),
        }
    }
}

/// Whether a response ends the count with its head: what follows is another protocol, or a stream
/// that lives as long as it is read.
#[inline]
fn ends_at_head<B: Body>(response: &Response<B>, facts: &Facts) -> bool {
    let status = response.status();
    status == StatusCode::SWITCHING_PROTOCOLS
        || (facts.is_connect && status.is_success())
        || (response.body().size_hint().exact().is_none()
            && content_type_begins(response, b"text/event-stream"))
}

fn content_type_begins<B>(response: &Response<B>, start: &[u8]) -> bool {
    let kind = response.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(start))
}
