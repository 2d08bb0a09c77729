//! One request that has waited, or may have to.

use super::{
    fair_share::FairShare,
    permit::{Extras, Share},
    priority::{Position, Priority},
    sync::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Mutex},
};
use palisade_core::ClientKey;
use palisade_guard::Task;
use std::{
    sync::atomic::Ordering::{Relaxed, SeqCst},
    task::{Context, Waker},
};

/// A request that can give its permit up and take it again. Its two halves share it, and the queues
/// and the list of kept permits hold it while it waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    rules: Rules,
    /// The client, where that is known and matters.
    client: Option<ClientKey>,
    /// A [`State`]. Changed under the lock of the queues, but from working to keeping and back.
    state: AtomicU8,
    /// Its working time is charged to its client.
    is_charged: AtomicBool,
    /// Its place in [`Kept`](super::kept::Kept), or [`UNLISTED`].
    pub(super) listed_at: AtomicUsize,
    /// Bytes that went either way since its number in the queue was given.
    progress: AtomicU64,
    /// Which tasks the wakers wake, by [`Half`], to be compared without the lock.
    tasks: [[AtomicUsize; 2]; 2],
    inside: Mutex<Inside>,
}

/// What one layer says about its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// So many requests may be present. 0: as many as usual.
    pub(crate) max_present: usize,
    /// Verdicts are carried out, not only recorded.
    pub(crate) enforces: bool,
    /// Clients are told apart.
    pub(crate) is_fair: bool,
}

/// The two parts of a request that wait, perhaps in two tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    /// The request body.
    Body,
    /// The response future, then the response body.
    Answer,
}

#[derive(Debug)]
struct Inside {
    position: Option<Position>,
    /// Its latest number among those that wait for their clients.
    last_number: Option<u64>,
    wakers: Wakers,
    extras: Option<Box<Extras>>,
}

/// By [`Half`].
type Wakers = [Option<Waker>; 2];

/// What a waiter was and had when it left.
pub(crate) struct Left {
    pub(super) position: Option<Position>,
    /// It held a permit, which is now the caller's to free.
    pub(super) worked: bool,
    /// It was evicted.
    pub(crate) is_displaced: bool,
    pub(super) extras: Option<Box<Extras>>,
    /// To be dropped under no lock: one may own the task that owns another waiter.
    wakers: Wakers,
}

/// The request was evicted, in favour of one that makes more progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evicted;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Holds a permit.
    Working,
    /// Waits for its own client, and holds a permit that no other request needs so far.
    Keeping,
    /// Waits for its own client, in the queue of those that may be evicted.
    Client,
    /// Waits for a permit.
    Queued,
    /// Was evicted.
    Evicted,
    /// Is over.
    Left,
}

/// Not in [`Kept`](super::kept::Kept).
pub(super) const UNLISTED: usize = usize::MAX;

/// A request that waits for its client keeps its number until so many bytes have gone either way:
/// else a byte now and then would be worth as much as an upload.
const PROGRESS_BYTES: u64 = 512;

// === Waiter ===

impl Waiter {
    /// One that takes over the permit that a request held so far.
    pub(crate) fn working(
        rules: Rules,
        client: Option<ClientKey>,
        extras: Option<Box<Extras>>,
    ) -> Self {
        Self::new(rules, client, State::Working, extras)
    }

    /// One that has no permit yet and is not queued yet.
    pub(super) fn newcomer(
        rules: Rules,
        client: Option<ClientKey>,
        extras: Option<Box<Extras>>,
    ) -> Self {
        Self::new(rules, client, State::Client, extras)
    }

    fn new(
        rules: Rules,
        client: Option<ClientKey>,
        state: State,
        extras: Option<Box<Extras>>,
    ) -> Self {
        let is_charged = extras
            .as_ref()
            .is_some_and(|extras| extras.charge.is_some());
        let wakers = Wakers::default();
        Self {
            rules,
            client,
            state: AtomicU8::new(state as u8),
            is_charged: AtomicBool::new(is_charged),
            listed_at: AtomicUsize::new(UNLISTED),
            progress: AtomicU64::new(0),
            tasks: [[0; 2]; 2].map(|task| task.map(AtomicUsize::new)),
            inside: Mutex::new(Inside {
                position: None,
                last_number: None,
                wakers,
                extras,
            }),
        }
    }

    #[inline]
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        State::from(self.state.load(SeqCst))
    }

    #[inline]
    fn change(&self, from: State, to: State) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, SeqCst, SeqCst)
            .is_ok()
    }

    #[inline]
    pub(crate) fn is_working(&self) -> bool {
        self.state() == State::Working
    }

    #[inline]
    pub(crate) fn is_keeping(&self) -> bool {
        self.state() == State::Keeping
    }

    #[inline]
    pub(crate) fn is_displaced(&self) -> bool {
        self.state() == State::Evicted
    }

    #[inline]
    pub(crate) fn unless_displaced(&self) -> Result<(), Evicted> {
        if self.is_displaced() {
            Err(Evicted)
        } else {
            Ok(())
        }
    }

    /// Whether it has left, or was evicted.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state(), State::Left | State::Evicted)
    }

    pub(crate) fn is_waiting_for_client(&self) -> bool {
        matches!(self.state(), State::Client | State::Keeping)
    }

    /// Whether it works, or may work on without asking.
    #[inline]
    pub(crate) fn holds_permit(&self) -> bool {
        matches!(self.state(), State::Working | State::Keeping)
    }

    /// Whether it works, perhaps with a permit that it kept.
    #[inline]
    pub(super) fn works_on(&self) -> bool {
        match self.state() {
            State::Working => true,
            State::Keeping => self.resume_kept(),
            State::Client | State::Queued | State::Evicted | State::Left => false,
        }
    }

    #[inline]
    pub(super) fn is_charged(&self) -> bool {
        self.is_charged.load(SeqCst)
    }

    #[inline]
    pub(super) fn is_listed(&self) -> bool {
        self.listed_at.load(SeqCst) != UNLISTED
    }

    /// Waits for its client from here on and keeps its permit. `false` if it was not working.
    #[inline]
    pub(super) fn keep(&self) -> bool {
        self.change(State::Working, State::Keeping)
    }

    /// Goes on with the permit that it kept, if it has one.
    #[inline]
    pub(crate) fn resume_kept(&self) -> bool {
        self.change(State::Keeping, State::Working)
    }

    /// `bytes` more went through one of the bodies.
    #[inline]
    pub(crate) fn progressed(&self, bytes: u64) {
        self.progress.fetch_add(bytes, Relaxed);
    }

    /// Whether its client holds few permits and is not in debt. Where the client is unknown, an
    /// admitted request is light and a newcomer is not.
    pub(super) fn is_light(&self, is_newcomer: bool, fair_share: Option<&FairShare>) -> bool {
        match (self.client, fair_share.filter(|_| self.rules.is_fair)) {
            (Some(client), Some(fair_share)) => fair_share.is_light(client),
            (None, Some(_)) => !is_newcomer,
            (_, None) => true,
        }
    }

    // --- Wakers ---

    /// Will wake the task of `cx`, which must look at the state after this.
    #[inline]
    pub(crate) fn listen(&self, half: Half, cx: &Context<'_>) {
        if !self.wakes(half, cx.waker()) {
            self.set_waker(half, cx.waker());
        }
    }

    /// Whether it wakes the task of `waker`.
    #[inline]
    pub(super) fn wakes(&self, half: Half, waker: &Waker) -> bool {
        let task: Task = palisade_guard::task_of(waker);
        let known = &self.tasks[half as usize];
        known[0].load(SeqCst) == task.0 && known[1].load(SeqCst) == task.1
    }

    #[inline(never)]
    fn set_waker(&self, half: Half, waker: &Waker) {
        let task = palisade_guard::task_of(waker);
        let known = &self.tasks[half as usize];
        let mut inside = self.inside.lock();
        known[0].store(task.0, SeqCst);
        known[1].store(task.1, SeqCst);
        let before = inside.wakers[half as usize].replace(waker.clone());
        drop(inside);
        drop(before); // Dropping a waker may run any code.
    }

    /// Wakes both halves.
    pub(super) fn wake(&self) {
        let wakers = self.take_wakers(&mut self.inside.lock());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Wakes both halves, but not this task.
    pub(super) fn wake_unless(&self, task: Option<&Waker>) {
        for half in [Half::Body, Half::Answer] {
            if task.is_none_or(|task| !self.wakes(half, task)) {
                self.wake_half(half);
            }
        }
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

    // --- Under the lock of the queues ---

    pub(super) fn position(&self) -> Option<Position> {
        self.inside.lock().position
    }

    pub(super) fn move_to(&self, position: Position) {
        self.inside.lock().position = Some(position);
    }

    /// From working to waiting for its client, or from keeping a permit to that if it
    /// `is_recalled`. Returns the number to take, which is `number` or the one it had before, and
    /// the share of the permit to free. `None` if it was doing something else.
    pub(super) fn wait_for_client(
        &self,
        number: u64,
        is_recalled: bool,
        fair_share: Option<&FairShare>,
    ) -> Option<(u64, Share)> {
        let from = if is_recalled {
            State::Keeping
        } else {
            State::Working
        };
        if !self.change(from, State::Client) {
            return None;
        }
        let mut inside = self.inside.lock();
        let number = match inside.last_number {
            Some(before) if self.progress.load(Relaxed) < PROGRESS_BYTES => before,
            _ => {
                self.progress.store(0, Relaxed);
                number
            }
        };
        inside.last_number = Some(number);
        inside.position = Some(Position {
            number,
            priority: None,
        });
        let mut share = Share::Common;
        if let Some(extras) = &mut inside.extras {
            extras.pause(fair_share);
            share = std::mem::take(&mut extras.share);
        }
        Some((number, share))
    }

    /// From waiting for its client to waiting for a permit. Returns the position to leave, if there
    /// is one.
    pub(super) fn wait_for_permit(&self, number: u64, priority: Priority) -> Option<Position> {
        self.state.store(State::Queued as u8, SeqCst);
        let position = Position {
            number,
            priority: Some(priority),
        };
        self.inside.lock().position.replace(position)
    }

    /// Goes to work with a permit of this share.
    pub(super) fn grant(&self, share: Share, fair_share: Option<&FairShare>) {
        let mut inside = self.inside.lock();
        inside.position = None;
        if share != Share::Common {
            inside.extras.get_or_insert_default().share = share;
        }
        let fair_share = fair_share.filter(|_| self.rules.is_fair);
        if let (Some(client), Some(fair_share)) = (self.client, fair_share) {
            let charge = &mut inside.extras.get_or_insert_default().charge;
            match charge {
                Some(charge) => fair_share.resume(charge),
                None => *charge = Some(fair_share.start(client)),
            }
            self.is_charged.store(true, SeqCst);
        }
        self.state.store(State::Working as u8, SeqCst);
    }

    pub(super) fn evict(&self) {
        self.inside.lock().position = None;
        self.state.store(State::Evicted as u8, SeqCst);
    }

    /// Leaves. One that was evicted stays so, for a body that outlives it.
    pub(super) fn leave(&self) -> Left {
        // The other half may keep or resume its permit meanwhile, without the lock.
        let left = |state| (state != State::Evicted as u8).then_some(State::Left as u8);
        let before = self.state.fetch_update(SeqCst, SeqCst, left);
        let state = before.map_or(State::Evicted, State::from);
        let mut inside = self.inside.lock();
        Left {
            position: inside.position.take(),
            worked: matches!(state, State::Working | State::Keeping),
            is_displaced: state == State::Evicted,
            extras: inside.extras.take(),
            wakers: self.take_wakers(&mut inside),
        }
    }
}

// === State ===

impl From<u8> for State {
    #[inline]
    fn from(byte: u8) -> Self {
        match byte {
            0 => Self::Working,
            1 => Self::Keeping,
            2 => Self::Client,
            3 => Self::Queued,
            4 => Self::Evicted,
            _ => Self::Left,
        }
    }
}

// === Left ===

impl Left {
    /// Tells a body that is read on in another task: it waits for no permit any more.
    pub(crate) fn wake_body(self) {
        let [body, _] = self.wakers;
        if let Some(body) = body {
            body.wake();
        }
    }
}
