//! One request that has waited, or may have to.

use crate::{
    layer::{RETRY_AFTER, Shared},
    slots::{Extra, Place, Rank, Slot, Slots},
};
use http::StatusCode;
use palisade_core::{AnswerForm, ClientKey, ConnInfo, Guard, Phase, Reason, Rejection, Violation};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

/// A request that can give its slot up. The request body and whoever answers for the request share
/// it; the lines of [`Slots`] hold it while it waits.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) shared: Arc<Shared>,
    pub(crate) about: About,
    /// One of the constants below. Whoever changes it holds the lock of the lines.
    state: AtomicU8,
    /// The request body is gone: the handler does not wait for the client any more.
    body_gone: AtomicBool,
    inside: Mutex<Inside>,
}

/// What is worth knowing of the request when its head is gone.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) form: AnswerForm,
    pub(crate) conn: Option<Arc<ConnInfo>>,
    /// `None` where nobody keeps a ledger, or where nobody knows.
    pub(crate) client: Option<ClientKey>,
}

#[derive(Debug)]
struct Inside {
    place: Option<Place>,
    waker: Option<Waker>,
    extra: Option<Box<Extra>>,
}

/// Holds a slot.
const WORKING: u8 = 0;
/// Waits for its own client, in line to be displaced.
const CLIENT: u8 = 1;
/// Waits for a slot.
const QUEUED: u8 = 2;
/// Had to go.
const DISPLACED: u8 = 3;
/// Is over.
const OVER: u8 = 4;

/// The request had to go, for somebody who makes more progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Displaced;

/// Answers for a request: the response future, then the response body. When it is dropped the
/// request is over, wherever its parts may be.
#[derive(Debug)]
pub(crate) enum Lease {
    /// Nothing to wait for so far, and so nothing shared.
    Slot(Slot),
    Ticket(TicketOwner),
}

/// The one handle whose drop ends the request.
#[derive(Debug)]
pub(crate) struct TicketOwner {
    pub(crate) ticket: Arc<Ticket>,
    /// Somebody was told that it was displaced.
    told: bool,
}

// === Ticket ===

impl Ticket {
    /// One that takes over from `slot`. `None` if somebody else has done so before.
    pub(crate) fn working(slot: &mut Slot, about: About) -> Option<Arc<Self>> {
        let (shared, extra) = slot.hand_over()?;
        Some(Arc::new(Self::new(shared, about, WORKING, extra)))
    }

    /// One that stands in line for its first slot, unless `waiters` others do already.
    pub(crate) fn newcomer(
        shared: Arc<Shared>,
        about: About,
        client: Option<ClientKey>,
        waiters: usize,
    ) -> Option<Arc<Self>> {
        let ticket = Arc::new(Self::new(shared, about, CLIENT, None));
        if !ticket.slots().await_first_slot(&ticket, waiters) {
            return None;
        }
        if client.is_some() {
            ticket.inside.lock().extra.get_or_insert_default().client = client;
        }
        Some(ticket)
    }

    fn new(shared: Arc<Shared>, about: About, state: u8, extra: Option<Box<Extra>>) -> Self {
        Self {
            shared,
            about,
            state: AtomicU8::new(state),
            body_gone: AtomicBool::new(false),
            inside: Mutex::new(Inside { place: None, waker: None, extra }),
        }
    }

    fn slots(&self) -> &Slots {
        &self.shared.slots
    }

    #[inline]
    pub(crate) fn is_working(&self) -> bool {
        self.state.load(SeqCst) == WORKING
    }

    /// The client is what is waited for from here on.
    pub(crate) fn wait_for_client(self: &Arc<Self>, cx: &Context<'_>) -> Result<(), Displaced> {
        self.listen(cx);
        if self.is_working() {
            self.slots().await_client(self);
        }
        if self.state.load(SeqCst) == DISPLACED { Err(Displaced) } else { Ok(()) }
    }

    /// There is something to do: ready once the request holds a slot, or is over.
    pub(crate) fn poll_work(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<(), Displaced>> {
        if self.state.load(SeqCst) == CLIENT {
            self.want_slot();
        }
        if self.state.load(SeqCst) == QUEUED {
            self.listen(cx);
        }
        match self.state.load(SeqCst) {
            DISPLACED => Poll::Ready(Err(Displaced)),
            CLIENT | QUEUED => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    /// The handler let go of the request body, so that it does not wait for the client any more.
    pub(crate) fn body_is_gone(self: &Arc<Self>) {
        self.body_gone.store(true, SeqCst);
        if self.state.load(SeqCst) == CLIENT {
            self.want_slot();
        }
    }

    /// Ready once the handler may go on: while it has the body to wait for, and else with a slot.
    pub(crate) fn poll_handler(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<(), Displaced>> {
        if self.body_gone.load(SeqCst) {
            return self.poll_work(cx);
        }
        let displaced = self.state.load(SeqCst) == DISPLACED;
        Poll::Ready(if displaced { Err(Displaced) } else { Ok(()) })
    }

    /// What a displaced request did: it was one too many of those that wait.
    pub(crate) fn displacement(&self, phase: Phase) -> Violation {
        let max = self.slots().max_present() as u64;
        let observed = max.saturating_add(1);
        Violation::new(Guard::ConcurrencyLimit, Reason::Displaced, phase, max, observed)
    }

    fn want_slot(self: &Arc<Self>) {
        if self.shared.only_watches() {
            self.slots().go_on_anyway(self);
        } else {
            self.slots().await_slot(self, self.rank());
        }
    }

    fn rank(&self) -> Rank {
        match (self.about.client, self.slots().ledger()) {
            (Some(client), Some(ledger)) if ledger.is_light(client) => Rank::Light,
            _ => Rank::Heavy,
        }
    }

    /// Will wake the task of `cx`, which must look at the state after this.
    fn listen(&self, cx: &Context<'_>) {
        let waker = &mut self.inside.lock().waker;
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(crate) fn wake(&self) {
        let waker = self.inside.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What the lines do with a ticket, under their lock.
impl Ticket {
    pub(crate) fn place(&self) -> Option<Place> {
        self.inside.lock().place
    }

    /// From working to waiting. `false` if it was not working.
    pub(crate) fn stand_for_client(&self, number: u64) -> bool {
        if !self.is_working() {
            return false;
        }
        let mut inside = self.inside.lock();
        inside.place = Some(Place { number, rank: None });
        if let Some(extra) = &mut inside.extra {
            extra.pause(self.slots());
        }
        self.state.store(CLIENT, SeqCst);
        true
    }

    /// From waiting for the client to waiting for a slot: the place to leave, if there is one.
    /// `None` if it was not waiting for the client.
    pub(crate) fn stand_for_slot(&self, number: u64, rank: Rank) -> Option<Option<Place>> {
        if self.state.load(SeqCst) != CLIENT {
            return None;
        }
        self.state.store(QUEUED, SeqCst);
        Some(self.inside.lock().place.replace(Place { number, rank: Some(rank) }))
    }

    pub(crate) fn grant(&self) {
        let mut inside = self.inside.lock();
        inside.place = None;
        if let (Some(client), Some(ledger)) = (self.about.client, self.slots().ledger()) {
            let charge = &mut inside.extra.get_or_insert_default().charge;
            match charge {
                Some(charge) => ledger.resume(charge),
                None => *charge = Some(ledger.start(client)),
            }
        }
        self.state.store(WORKING, SeqCst);
    }

    pub(crate) fn displace(&self) {
        self.inside.lock().place = None;
        self.state.store(DISPLACED, SeqCst);
    }

    /// To over. Gives back where it stood and whether it held a slot, which is now the caller's
    /// to free, or had to go.
    pub(crate) fn step_out(&self) -> Before {
        let mut inside = self.inside.lock();
        // A waker may own the task that owns this ticket.
        inside.waker = None;
        let state = self.state.swap(OVER, SeqCst);
        let place = inside.place.take();
        Before { place, worked: state == WORKING, displaced: state == DISPLACED }
    }
}

/// What a ticket was when it ended.
pub(crate) struct Before {
    pub(crate) place: Option<Place>,
    worked: bool,
    displaced: bool,
}

// === TicketOwner ===

impl TicketOwner {
    pub(crate) fn new(ticket: Arc<Ticket>) -> Self {
        Self { ticket, told: false }
    }

    /// The answer to a request that has to go for `violation`.
    pub(crate) fn refuse(
        &mut self,
        violation: Violation,
        status: StatusCode,
    ) -> (Arc<Shared>, Rejection) {
        let Ticket { shared, about, .. } = &*self.ticket;
        let mut rejection = Rejection::new(violation, status, about.form);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            rejection = rejection.retry_after(RETRY_AFTER);
        }
        // Only a guard that enforces queues or displaces, so there is no verdict to ask for.
        shared.settings.refuse(&rejection, about.conn.as_deref());
        self.told = true;
        (shared.clone(), rejection)
    }

    /// The end of a response that has to go.
    fn cut(&mut self) -> Violation {
        let violation = self.ticket.displacement(Phase::ResponseBody);
        let Ticket { shared, about, .. } = &*self.ticket;
        shared.settings.cut(&violation, about.conn.as_deref());
        self.told = true;
        violation
    }
}

impl Drop for TicketOwner {
    fn drop(&mut self) {
        let slots = self.ticket.slots();
        let before = slots.take_out(&self.ticket);
        let extra = self.ticket.inside.lock().extra.take();
        if let Some(mut extra) = extra {
            if before.worked {
                extra.pause(slots);
            }
            slots.finish(&extra);
        }
        if before.worked {
            slots.release();
        }
        // Nobody asked again for the body that was cut.
        if before.displaced && !self.told {
            self.cut();
        }
    }
}

// === Lease ===

impl Lease {
    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        match self {
            Self::Slot(slot) => slot.shared(),
            Self::Ticket(owner) => Some(&owner.ticket.shared),
        }
    }

    pub(crate) fn ticket(&self) -> Option<&Arc<Ticket>> {
        match self {
            Self::Slot(_) => None,
            Self::Ticket(owner) => Some(&owner.ticket),
        }
    }

    /// Ready once the request holds a slot.
    pub(crate) fn poll_work(&self, cx: &Context<'_>) -> Poll<Result<(), Displaced>> {
        match self {
            Self::Slot(_) => Poll::Ready(Ok(())),
            Self::Ticket(owner) => owner.ticket.poll_work(cx),
        }
    }

    /// Nothing is left to do until the client asks for more.
    pub(crate) fn wait_for_client(&mut self, cx: &Context<'_>) {
        if let Self::Slot(slot) = self {
            // A slot beyond the limit is kept: there is no line for it.
            if slot.is_picked() {
                return;
            }
            let form = AnswerForm::Http { close: false };
            let about = About { form, conn: None, client: slot.client() };
            let Some(ticket) = Ticket::working(slot, about) else { return };
            *self = Self::Ticket(TicketOwner::new(ticket));
        }
        if let Self::Ticket(owner) = self {
            // Whether it was displaced at once shows when it is asked for more.
            let _ = owner.ticket.wait_for_client(cx);
        }
    }

    /// The end of a response that has to go.
    pub(crate) fn cut(&mut self) -> Option<Violation> {
        match self {
            Self::Slot(_) => None,
            Self::Ticket(owner) => Some(owner.cut()),
        }
    }
}
