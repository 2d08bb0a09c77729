//! One request that has waited, or may have to.

use crate::{
    admission::Options,
    lines::{Place, Rank},
    owner::TicketOwner,
    slot::{Counted, Extra, Share},
    slots::Slots,
};
use palisade_core::{ClientKey, ConnInfo, Guard, Phase, Reason, Violation};
use palisade_guard::Task;
use parking_lot::Mutex;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A request that can give its slot up. The request body and whoever answers for the request share
/// it; the lines of [`Slots`] hold it while it waits.
///
/// Until the response head is out, both halves ask for the slot: the body when something has come,
/// the handler once it let go of the body. From then on only the answer does, and what comes of the
/// body is handed through. The slot is given up where the answer waits for its reader, or where
/// both halves have nothing to do.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) options: Arc<Options>,
    pub(crate) about: About,
    /// One of the constants below. Whoever changes it holds the lock of the lines.
    state: AtomicU8,
    /// The request body is gone: the handler does not wait for the client any more.
    pub(crate) body_gone: AtomicBool,
    /// The request body said that the request was displaced.
    pub(crate) body_told: AtomicBool,
    pub(crate) head_out: AtomicBool,
    /// Once the head is out: the request body has nothing to hand on.
    pub(crate) body_waits: AtomicBool,
    /// Once the head is out: the answer has nothing to hand on, though its reader asks.
    pub(crate) answer_waits: AtomicBool,
    /// It was recorded that the request was displaced.
    pub(crate) was_recorded: AtomicBool,
    /// In the present wait for the client the handler was polled once more to see what it waits
    /// for.
    pub(crate) probed: AtomicBool,
    /// The request body is read by another task than the handler's, or by something that does not
    /// poll all its parts: a poll of the handler does not show what it waits for.
    pub(crate) read_elsewhere: AtomicBool,
    /// The handler has work of its own to do and must not be polled before it holds a slot.
    pub(crate) handler_works: AtomicBool,
    /// Its working time is charged to its client.
    is_charged: AtomicBool,
    /// Its place in [`Kept`](crate::kept::Kept), or [`UNLISTED`].
    pub(crate) listed_at: AtomicUsize,
    /// Bytes that went either way since the client's place in line was given.
    progress: AtomicU64,
    /// Which tasks the wakers wake, by [`Half`], to be compared without the lock.
    tasks: [[AtomicUsize; 2]; 2],
    inside: Mutex<Inside>,
    /// Of a gRPC stream that had nothing to give.
    idle: Mutex<Option<Idle>>,
}

/// Finds out that a gRPC stream is idle.
#[derive(Debug)]
struct Idle {
    /// When it had nothing to give first. `None` if it has given something since.
    since: Option<Instant>,
    /// It gave nothing for so long that it must be waiting for events.
    is_found: bool,
    /// Never moved to a later instant before it fires.
    timer: Pin<Box<Sleep>>,
}

/// What is worth knowing of the request when its head is gone.
#[derive(Debug)]
pub(crate) struct About {
    /// `None` where nobody listens, or where nobody knows.
    pub(crate) conn: Option<Arc<ConnInfo>>,
    /// `None` where nobody keeps a ledger, or where nobody knows.
    pub(crate) client: Option<ClientKey>,
}

/// The two that wait for the client, perhaps in two tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Body,
    /// The response future, then the response body.
    Answer,
}

#[derive(Debug)]
struct Inside {
    place: Option<Place>,
    /// Its latest place among those who wait for their clients.
    stood: Option<u64>,
    wakers: Wakers,
    extra: Option<Box<Extra>>,
}

/// By [`Half`].
type Wakers = [Option<Waker>; 2];

/// Holds a slot.
const WORKING: u8 = 0;
/// Waits for its own client, and holds a slot that no other request needs so far.
const KEEPING: u8 = 5;
/// Waits for its own client, in line to be displaced.
const CLIENT: u8 = 1;
/// Waits for a slot.
const QUEUED: u8 = 2;
/// Had to go.
const DISPLACED: u8 = 3;
/// Is over.
const OVER: u8 = 4;

/// Not in [`Kept`](crate::kept::Kept).
pub(crate) const UNLISTED: usize = usize::MAX;

/// Who stands in line for its client keeps its place until so many bytes have gone either way:
/// else a byte now and then would be worth as much as an upload.
const PROGRESS: u64 = 512;

/// A gRPC stream that has nothing to give for so long holds no slot.
const STREAM_IDLE: Duration = Duration::from_secs(5);

/// The request had to go, for somebody who makes more progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Displaced;

// === Ticket ===

impl Ticket {
    /// One that takes over the slot that a request held so far.
    pub(crate) fn working(
        options: Arc<Options>,
        about: About,
        extra: Option<Box<Extra>>,
        head_out: bool,
        body_gone: bool,
    ) -> Arc<Self> {
        let ticket = Self::new(options, about, WORKING, extra);
        ticket.head_out.store(head_out, SeqCst);
        ticket.body_gone.store(body_gone, SeqCst);
        Arc::new(ticket)
    }

    /// One that stands in line for its first slot, unless `waiters` others do already.
    pub(crate) fn newcomer(
        options: Arc<Options>,
        about: About,
        counted: Option<Counted>,
        waiters: usize,
    ) -> Option<TicketOwner> {
        let extra =
            counted.map(|counted| Box::new(Extra { counted: Some(counted), ..Extra::default() }));
        let ticket = Arc::new(Self::new(options, about, CLIENT, extra));
        let rank = if ticket.is_light(true) { Rank::LightNewcomer } else { Rank::Newcomer };
        let stands = ticket.slots().await_first_slot(&ticket, rank, waiters);
        stands.then(|| TicketOwner::new(ticket))
    }

    fn new(options: Arc<Options>, about: About, state: u8, extra: Option<Box<Extra>>) -> Self {
        let is_charged = extra.as_ref().is_some_and(|extra| extra.charge.is_some());
        Self {
            options,
            about,
            state: AtomicU8::new(state),
            is_charged: AtomicBool::new(is_charged),
            listed_at: AtomicUsize::new(UNLISTED),
            body_gone: AtomicBool::new(false),
            body_told: AtomicBool::new(false),
            head_out: AtomicBool::new(false),
            body_waits: AtomicBool::new(false),
            answer_waits: AtomicBool::new(false),
            was_recorded: AtomicBool::new(false),
            probed: AtomicBool::new(false),
            read_elsewhere: AtomicBool::new(false),
            handler_works: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            tasks: Default::default(),
            idle: Mutex::new(None),
            inside: Mutex::new(Inside {
                place: None,
                stood: None,
                wakers: Wakers::default(),
                extra,
            }),
        }
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.options.slots
    }

    #[inline]
    pub(crate) fn is_working(&self) -> bool {
        self.state.load(SeqCst) == WORKING
    }

    #[inline]
    pub(crate) fn is_displaced(&self) -> bool {
        self.state.load(SeqCst) == DISPLACED
    }

    #[inline]
    pub(crate) fn unless_displaced(&self) -> Result<(), Displaced> {
        if self.is_displaced() { Err(Displaced) } else { Ok(()) }
    }

    /// `bytes` more went through one of the bodies.
    #[inline]
    pub(crate) fn progressed(&self, bytes: u64) {
        self.progress.fetch_add(bytes, Relaxed);
    }

    /// What a displaced request did: it was one too many of those that wait.
    pub(crate) fn displacement(&self, phase: Phase) -> Violation {
        let max = self.options.max_present() as u64;
        let observed = max.saturating_add(1);
        Violation::new(Guard::ConcurrencyLimit, Reason::Displaced, phase, max, observed)
    }

    /// Records that a request which was displaced is cut. The violation.
    pub(crate) fn record_cut(&self) -> Violation {
        let violation = self.displacement(Phase::ResponseBody);
        self.was_recorded.store(true, Relaxed);
        self.options.settings.cut(&violation, self.about.conn.as_deref());
        violation
    }

    /// The client is what is waited for from here on.
    #[inline]
    pub(crate) fn wait_for_client(
        self: &Arc<Self>,
        half: Half,
        cx: &Context<'_>,
    ) -> Result<(), Displaced> {
        self.listen(half, cx);
        self.stop_working();
        self.unless_displaced()
    }

    /// The request, which works unless its other half was first, waits for its client: it gives its
    /// slot up, or keeps it as long as slots are plentiful.
    #[inline]
    pub(crate) fn stop_working(self: &Arc<Self>) {
        if self.must_give_up() || self.listed_at.load(SeqCst) == UNLISTED {
            self.stop_working_slowly();
        } else {
            self.keep_slot();
        }
    }

    #[inline(never)]
    fn stop_working_slowly(self: &Arc<Self>) {
        if self.must_give_up() {
            if self.is_working() {
                self.slots().await_client(self);
            }
            return;
        }
        self.slots().kept.list(self);
        self.keep_slot();
    }

    #[inline]
    fn keep_slot(self: &Arc<Self>) {
        let keeps = self.state.compare_exchange(WORKING, KEEPING, SeqCst, SeqCst).is_ok();
        // Slots got short in this moment, or it was charged: either that sees this, or this sees
        // it.
        if keeps && self.must_give_up() {
            self.slots().recall(self);
        }
    }

    /// Whether it must not keep its slot while it waits for its client.
    #[inline]
    fn must_give_up(&self) -> bool {
        self.slots().is_crowded() || self.is_charged.load(SeqCst)
    }

    /// Goes on with the slot that it kept, if it has one.
    #[inline]
    pub(crate) fn resume_kept(&self) -> bool {
        self.state.compare_exchange(KEEPING, WORKING, SeqCst, SeqCst).is_ok()
    }

    /// Whether it is over, or had to go.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state.load(SeqCst), OVER | DISPLACED)
    }

    /// Whether it works, or may work on without asking.
    #[inline]
    pub(crate) fn holds_slot(&self) -> bool {
        matches!(self.state.load(SeqCst), WORKING | KEEPING)
    }

    /// Whether it waits for its client, keeps its slot for now, and will wake the task of `cx`.
    #[inline]
    pub(crate) fn keeps_on(&self, half: Half, cx: &Context<'_>) -> bool {
        self.wakes(half, palisade_guard::task_of(cx.waker()))
            && self.is_keeping()
            && !self.slots().is_crowded()
    }

    #[inline]
    pub(crate) fn is_keeping(&self) -> bool {
        self.state.load(SeqCst) == KEEPING
    }

    /// A gRPC stream has nothing to give. It keeps its slot for [`STREAM_IDLE`], because that may
    /// be work. Then it gives the slot up, and does so at once whenever it has nothing to give
    /// again: else a piece of news for ten thousand streams would keep all slots for that long.
    ///
    /// Not while the request body is there: its client could be silent for so long and then have
    /// any amount of work done without a slot.
    pub(crate) fn stream_waits(self: &Arc<Self>, cx: &mut Context<'_>) {
        if !self.is_working() || !self.body_gone.load(SeqCst) {
            return;
        }
        let mut now = Instant::now();
        let mut guard = self.idle.lock();
        let timer = || Box::pin(sleep_until(now + STREAM_IDLE));
        let idle =
            guard.get_or_insert_with(|| Idle { since: None, is_found: false, timer: timer() });
        let due = *idle.since.get_or_insert(now) + STREAM_IDLE;
        while !idle.is_found {
            if palisade_guard::poll_sleep(idle.timer.as_mut(), cx).is_pending() {
                return;
            }
            now = Instant::now();
            idle.is_found = now >= due;
            idle.timer.as_mut().reset(due);
        }
        drop(guard);
        self.listen(Half::Answer, cx);
        self.stop_working();
    }

    /// A gRPC stream has given something.
    pub(crate) fn stream_gives(&self) {
        if let Some(idle) = &mut *self.idle.lock() {
            idle.since = None;
        }
    }

    /// There is something to do: ready once the request holds a slot, or is over.
    #[inline]
    pub(crate) fn poll_work(
        self: &Arc<Self>,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Displaced>> {
        if self.works_on() { Poll::Ready(Ok(())) } else { self.poll_work_slowly(half, cx) }
    }

    /// Whether it holds a slot, which it may have kept.
    #[inline]
    fn works_on(&self) -> bool {
        match self.state.load(SeqCst) {
            WORKING => true,
            KEEPING => self.resume_kept(),
            _ => false,
        }
    }

    #[inline(never)]
    fn poll_work_slowly(
        self: &Arc<Self>,
        half: Half,
        cx: &Context<'_>,
    ) -> Poll<Result<(), Displaced>> {
        if self.state.load(SeqCst) == CLIENT {
            self.want_slot();
        }
        if self.state.load(SeqCst) == QUEUED {
            self.listen(half, cx);
        }
        match self.state.load(SeqCst) {
            DISPLACED => Poll::Ready(Err(Displaced)),
            QUEUED => Poll::Pending,
            CLIENT => {
                // It was given a slot, and its other half gave it up again in this moment.
                self.listen(half, cx);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn want_slot(self: &Arc<Self>) {
        if self.options.only_watches() {
            self.slots().go_on_anyway(self);
        } else {
            self.slots().await_slot(self, self.rank());
        }
    }

    pub(crate) fn is_waiting_for_client(&self) -> bool {
        matches!(self.state.load(SeqCst), CLIENT | KEEPING)
    }

    fn rank(&self) -> Rank {
        if self.is_light(false) { Rank::Light } else { Rank::Heavy }
    }

    /// Whether its client holds few slots and is not in debt. Where the client is unknown, an
    /// admitted request is light and a newcomer is not.
    pub(crate) fn is_light(&self, newcomer: bool) -> bool {
        match (self.about.client, self.options.ledger()) {
            (Some(client), Some(ledger)) => ledger.is_light(client),
            (None, Some(_)) => !newcomer,
            (_, None) => true,
        }
    }

    /// Whether it may have to go while so many are present.
    pub(crate) fn may_be_displaced(&self, present: usize) -> bool {
        !self.options.only_watches() && present > self.options.max_present()
    }

    pub(crate) fn is_fair(&self) -> bool {
        self.options.is_fair
    }

    /// Whether slots would be getting short if all present requests were at work.
    pub(crate) fn finds_slots_short(&self) -> bool {
        self.slots().is_getting_short(self.options.max_present())
    }

    /// Will wake the task of `cx`, which must look at the state after this.
    #[inline]
    pub(crate) fn listen(&self, half: Half, cx: &Context<'_>) {
        let task = palisade_guard::task_of(cx.waker());
        if !self.wakes(half, task) {
            self.set_waker(half, task, cx.waker());
        }
    }

    /// Whether it wakes this task.
    #[inline]
    fn wakes(&self, half: Half, task: Task) -> bool {
        let known = &self.tasks[half as usize];
        known[0].load(SeqCst) == task.0 && known[1].load(SeqCst) == task.1
    }

    #[inline(never)]
    fn set_waker(&self, half: Half, task: Task, waker: &Waker) {
        let known = &self.tasks[half as usize];
        let mut inside = self.inside.lock();
        known[0].store(task.0, SeqCst);
        known[1].store(task.1, SeqCst);
        let before = inside.wakers[half as usize].replace(waker.clone());
        drop(inside);
        drop(before); // A waker's drop is the code of others.
    }

    /// Wakes both halves.
    pub(crate) fn wake(&self) {
        let wakers = self.take_wakers(&mut self.inside.lock());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    pub(crate) fn wake_half(&self, half: Half) {
        let mut inside = self.inside.lock();
        self.tasks[half as usize][1].store(0, SeqCst);
        let waker = inside.wakers[half as usize].take();
        drop(inside);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take_wakers(&self, inside: &mut Inside) -> Wakers {
        for task in &self.tasks {
            task[1].store(0, SeqCst);
        }
        std::mem::take(&mut inside.wakers)
    }
}

/// What the lines do with a ticket, under their lock.
impl Ticket {
    pub(crate) fn place(&self) -> Option<Place> {
        self.inside.lock().place
    }

    /// From working to waiting, or from keeping a slot to waiting if it `is_recalled`: the place to
    /// take, which is `number` or the one it had before, and the share of the slot to free. `None`
    /// if it was doing something else.
    pub(crate) fn stand_for_client(&self, number: u64, is_recalled: bool) -> Option<(u64, Share)> {
        let from = if is_recalled { KEEPING } else { WORKING };
        self.state.compare_exchange(from, CLIENT, SeqCst, SeqCst).ok()?;
        let mut inside = self.inside.lock();
        let number = match inside.stood {
            Some(before) if self.progress.load(Relaxed) < PROGRESS => before,
            _ => {
                self.progress.store(0, Relaxed);
                number
            }
        };
        inside.stood = Some(number);
        inside.place = Some(Place { number, rank: None });
        let mut share = Share::Common;
        if let Some(extra) = &mut inside.extra {
            extra.pause(self.slots());
            share = std::mem::take(&mut extra.share);
        }
        Some((number, share))
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

    pub(crate) fn stand_at(&self, place: Place) {
        self.inside.lock().place = Some(place);
    }

    /// Goes to work with a slot of this share.
    pub(crate) fn grant(&self, share: Share) {
        let mut inside = self.inside.lock();
        inside.place = None;
        if share != Share::Common {
            inside.extra.get_or_insert_default().share = share;
        }
        if let (Some(client), Some(ledger)) = (self.about.client, self.options.ledger()) {
            let charge = &mut inside.extra.get_or_insert_default().charge;
            match charge {
                Some(charge) => ledger.resume(charge),
                None => *charge = Some(ledger.start(client)),
            }
            self.is_charged.store(true, SeqCst);
        }
        self.state.store(WORKING, SeqCst);
    }

    pub(crate) fn displace(&self) {
        self.inside.lock().place = None;
        self.state.store(DISPLACED, SeqCst);
    }

    /// To over, unless it had to go, which then stays so for a body that outlives it. Gives back
    /// what it was, and what it had.
    pub(crate) fn step_out(&self) -> Before {
        // The other half may keep or resume its slot meanwhile, without the lock.
        let over = |state| (state != DISPLACED).then_some(OVER);
        let state = self.state.fetch_update(SeqCst, SeqCst, over).unwrap_or(DISPLACED);
        let mut inside = self.inside.lock();
        Before {
            place: inside.place.take(),
            worked: matches!(state, WORKING | KEEPING),
            displaced: state == DISPLACED,
            extra: inside.extra.take(),
            wakers: self.take_wakers(&mut inside),
            body_gone: self.body_gone.load(SeqCst),
        }
    }
}

/// What a ticket was and had when it ended.
pub(crate) struct Before {
    pub(crate) place: Option<Place>,
    /// It held a slot, which is now the caller's to free.
    pub(crate) worked: bool,
    /// It had to go.
    pub(crate) displaced: bool,
    pub(crate) extra: Option<Box<Extra>>,
    /// To be dropped under no lock: one may own the task that owns another ticket.
    wakers: Wakers,
    body_gone: bool,
}

// === Before ===

impl Before {
    /// Tells a body that is read on in another task: it waits for no slot any more.
    pub(crate) fn leave(self) {
        let [body, _] = self.wakers;
        if let Some(body) = body
            && !self.body_gone
        {
            body.wake();
        }
    }
}
