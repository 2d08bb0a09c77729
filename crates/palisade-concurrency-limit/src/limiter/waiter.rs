//! State of one request that has waited, or may have to.

use super::{
    fair_share::FairShare,
    permit::{PermitExtras, PermitKind},
    priority::{Position, Priority},
    sync::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Mutex},
};
use palisade_core::ClientKey;
use palisade_guard::Task;
use std::{
    sync::atomic::Ordering::{Relaxed, SeqCst},
    task::{Context, Waker},
};

/// A request that can give its permit back and take it again. Its two halves share it; the queues
/// and the list of kept permits hold it while it waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    rules: Rules,
    /// The client, if it is known and matters.
    client: Option<ClientKey>,
    /// A [`State`]. Changed under the lock of the queues, except between working and keeping a
    /// permit.
    state: AtomicU8,
    /// Its working time is charged to its client.
    is_charged: AtomicBool,
    /// Its index in [`KeptPermits`](super::kept::KeptPermits), or [`UNLISTED`].
    pub(super) list_index: AtomicUsize,
    /// Bytes transferred in either direction since its number in the queue was assigned.
    progress: AtomicU64,
    /// The tasks that the wakers wake, by [`Half`], for comparison without the lock.
    waker_tasks: [[AtomicUsize; 2]; 2],
    inner: Mutex<WaiterInner>,
}

/// Options of one layer that apply to its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Maximum number of requests present. 0 stands for the default multiple of the limit.
    pub(crate) max_present: usize,
    /// Decisions are enforced, not only recorded.
    pub(crate) enforces: bool,
    /// Fairness is on.
    pub(crate) is_fair: bool,
}

/// The two parts of a request that wait, possibly in two tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    /// The request body.
    RequestBody,
    /// The response future, then the response body.
    Response,
}

#[derive(Debug)]
struct WaiterInner {
    position: Option<Position>,
    /// Its latest number among the requests that wait for their clients.
    last_waiting_number: Option<u64>,
    wakers: Wakers,
    extras: Option<Box<PermitExtras>>,
}

/// By [`Half`].
type Wakers = [Option<Waker>; 2];

/// The state of a waiter when its request ended.
pub(crate) struct EndedRequest {
    pub(super) position: Option<Position>,
    /// It held a permit, which the caller must free.
    pub(super) held_permit: bool,
    /// It was evicted.
    pub(crate) is_evicted: bool,
    pub(super) extras: Option<Box<PermitExtras>>,
    /// Drop without holding a lock: a waker may own the task that owns another waiter.
    wakers: Wakers,
}

/// The request was evicted in favour of one that makes more progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evicted;

/// State of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Holds a permit.
    Working,
    /// Waits for its own client and keeps a permit that no other request needs yet.
    KeepingPermit,
    /// Waits for its own client, in the queue of requests that may be evicted.
    Waiting,
    /// Queued for a permit.
    Queued,
    /// Was evicted.
    Evicted,
    /// Has ended.
    Ended,
}

/// Not in [`KeptPermits`](super::kept::KeptPermits).
pub(super) const UNLISTED: usize = usize::MAX;

/// A request that waits for its client again keeps its old number until this many bytes have been
/// transferred in either direction. Otherwise an occasional byte would count as much as an upload.
const MIN_PROGRESS_BYTES: u64 = 512;

// === Waiter ===

impl Waiter {
    /// Creates a waiter that takes over the permit of a request.
    pub(crate) fn working(
        rules: Rules,
        client: Option<ClientKey>,
        extras: Option<Box<PermitExtras>>,
    ) -> Self {
        Self::new(rules, client, State::Working, extras)
    }

    /// Creates a waiter without a permit that is not queued yet.
    pub(super) fn new_request(
        rules: Rules,
        client: Option<ClientKey>,
        extras: Option<Box<PermitExtras>>,
    ) -> Self {
        Self::new(rules, client, State::Waiting, extras)
    }

    fn new(
        rules: Rules,
        client: Option<ClientKey>,
        state: State,
        extras: Option<Box<PermitExtras>>,
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
            list_index: AtomicUsize::new(UNLISTED),
            progress: AtomicU64::new(0),
            waker_tasks: [[0; 2]; 2].map(|task| task.map(AtomicUsize::new)),
            inner: Mutex::new(WaiterInner {
                position: None,
                last_waiting_number: None,
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
    fn transition(&self, from: State, to: State) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, SeqCst, SeqCst)
            .is_ok()
    }

    #[inline]
    pub(crate) fn is_working(&self) -> bool {
        self.state() == State::Working
    }

    #[inline]
    pub(crate) fn is_keeping_permit(&self) -> bool {
        self.state() == State::KeepingPermit
    }

    #[inline]
    pub(crate) fn is_evicted(&self) -> bool {
        self.state() == State::Evicted
    }

    #[inline]
    pub(crate) fn check_evicted(&self) -> Result<(), Evicted> {
        if self.is_evicted() {
            Err(Evicted)
        } else {
            Ok(())
        }
    }

    /// Whether it has ended or was evicted.
    pub(super) fn is_ended_or_evicted(&self) -> bool {
        matches!(self.state(), State::Ended | State::Evicted)
    }

    pub(crate) fn is_waiting_for_client(&self) -> bool {
        matches!(self.state(), State::Waiting | State::KeepingPermit)
    }

    /// Whether it works, or may resume with a kept permit.
    #[inline]
    pub(crate) fn holds_permit(&self) -> bool {
        matches!(self.state(), State::Working | State::KeepingPermit)
    }

    /// Whether it works. Resumes with a kept permit if necessary.
    #[inline]
    pub(super) fn ensure_working(&self) -> bool {
        match self.state() {
            State::Working => true,
            State::KeepingPermit => self.resume_kept(),
            State::Waiting | State::Queued | State::Evicted | State::Ended => false,
        }
    }

    #[inline]
    pub(super) fn is_charged(&self) -> bool {
        self.is_charged.load(SeqCst)
    }

    #[inline]
    pub(super) fn is_listed(&self) -> bool {
        self.list_index.load(SeqCst) != UNLISTED
    }

    /// Starts a wait for the client, with the permit kept. Returns `false` if it was not working.
    #[inline]
    pub(super) fn keep_permit(&self) -> bool {
        self.transition(State::Working, State::KeepingPermit)
    }

    /// Resumes with the kept permit. Returns `false` if there is none.
    #[inline]
    pub(crate) fn resume_kept(&self) -> bool {
        self.transition(State::KeepingPermit, State::Working)
    }

    /// Adds `bytes` transferred by one of the bodies.
    #[inline]
    pub(crate) fn add_progress(&self, bytes: u64) {
        self.progress.fetch_add(bytes, Relaxed);
    }

    /// Whether its client is light. If the client is unknown, an admitted request is light and a
    /// new one is not.
    pub(super) fn is_light(&self, is_new: bool, fair_share: Option<&FairShare>) -> bool {
        match (self.client, fair_share.filter(|_| self.rules.is_fair)) {
            (Some(client), Some(fair_share)) => fair_share.is_light(client),
            (None, Some(_)) => !is_new,
            (_, None) => true,
        }
    }

    // --- Wakers ---

    /// Registers the task of `cx` to be woken. The caller must check the state afterwards.
    #[inline]
    pub(crate) fn register(&self, half: Half, cx: &Context<'_>) {
        if !self.will_wake(half, cx.waker()) {
            self.set_waker(half, cx.waker());
        }
    }

    /// Whether it wakes the task of `waker`.
    #[inline]
    pub(super) fn will_wake(&self, half: Half, waker: &Waker) -> bool {
        let task: Task = palisade_guard::task_of(waker);
        let known = &self.waker_tasks[half as usize];
        known[0].load(SeqCst) == task.0 && known[1].load(SeqCst) == task.1
    }

    #[inline(never)]
    fn set_waker(&self, half: Half, waker: &Waker) {
        let task = palisade_guard::task_of(waker);
        let known = &self.waker_tasks[half as usize];
        let mut inner = self.inner.lock();
        known[0].store(task.0, SeqCst);
        known[1].store(task.1, SeqCst);
        let before = inner.wakers[half as usize].replace(waker.clone());
        drop(inner);
        drop(before); // Dropping a waker may run arbitrary code.
    }

    /// Wakes both halves.
    pub(super) fn wake(&self) {
        let wakers = self.take_wakers(&mut self.inner.lock());
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Wakes each half unless its waker wakes `task`.
    pub(super) fn wake_except(&self, task: Option<&Waker>) {
        for half in [Half::RequestBody, Half::Response] {
            if task.is_none_or(|task| !self.will_wake(half, task)) {
                self.wake_half(half);
            }
        }
    }

    pub(crate) fn wake_half(&self, half: Half) {
        let mut inner = self.inner.lock();
        self.waker_tasks[half as usize][1].store(0, SeqCst);
        let waker = inner.wakers[half as usize].take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take_wakers(&self, inner: &mut WaiterInner) -> Wakers {
        for task in &self.waker_tasks {
            task[1].store(0, SeqCst);
        }
        std::mem::take(&mut inner.wakers)
    }

    // --- Under the lock of the queues ---

    pub(super) fn position(&self) -> Option<Position> {
        self.inner.lock().position
    }

    pub(super) fn set_position(&self, position: Position) {
        self.inner.lock().position = Some(position);
    }

    /// Moves from working, or from keeping a permit if it `is_recalled`, to waiting for the client.
    /// Returns the number to use, which is `number` or its previous one, and the kind of permit to
    /// free. `None` if it was in another state.
    pub(super) fn begin_waiting(
        &self,
        number: u64,
        is_recalled: bool,
        fair_share: Option<&FairShare>,
    ) -> Option<(u64, PermitKind)> {
        let from = if is_recalled {
            State::KeepingPermit
        } else {
            State::Working
        };
        if !self.transition(from, State::Waiting) {
            return None;
        }
        let mut inner = self.inner.lock();
        let number = match inner.last_waiting_number {
            Some(before) if self.progress.load(Relaxed) < MIN_PROGRESS_BYTES => before,
            _ => {
                self.progress.store(0, Relaxed);
                number
            }
        };
        inner.last_waiting_number = Some(number);
        inner.position = Some(Position {
            number,
            priority: None,
        });
        let mut kind = PermitKind::Common;
        if let Some(extras) = &mut inner.extras {
            extras.pause(fair_share);
            kind = std::mem::take(&mut extras.kind);
        }
        Some((number, kind))
    }

    /// Moves from waiting for the client to the queue for a permit. Returns the position to leave,
    /// if there is one.
    pub(super) fn begin_queueing(&self, number: u64, priority: Priority) -> Option<Position> {
        self.state.store(State::Queued as u8, SeqCst);
        let position = Position {
            number,
            priority: Some(priority),
        };
        self.inner.lock().position.replace(position)
    }

    /// Starts to work with a permit of this kind.
    pub(super) fn grant(&self, kind: PermitKind, fair_share: Option<&FairShare>) {
        let mut inner = self.inner.lock();
        inner.position = None;
        if kind != PermitKind::Common {
            inner.extras.get_or_insert_default().kind = kind;
        }
        let fair_share = fair_share.filter(|_| self.rules.is_fair);
        if let (Some(client), Some(fair_share)) = (self.client, fair_share) {
            let charge = &mut inner.extras.get_or_insert_default().charge;
            match charge {
                Some(charge) => fair_share.resume(charge),
                None => *charge = Some(fair_share.start(client)),
            }
            self.is_charged.store(true, SeqCst);
        }
        self.state.store(State::Working as u8, SeqCst);
    }

    pub(super) fn evict(&self) {
        self.inner.lock().position = None;
        self.state.store(State::Evicted as u8, SeqCst);
    }

    /// Ends the request. An evicted one stays evicted, for a body that outlives it.
    pub(super) fn mark_ended(&self) -> EndedRequest {
        // The other half may keep or resume its permit at the same time, without the lock.
        let ended = |state| (state != State::Evicted as u8).then_some(State::Ended as u8);
        let before = self.state.fetch_update(SeqCst, SeqCst, ended);
        let state = before.map_or(State::Evicted, State::from);
        let mut inner = self.inner.lock();
        EndedRequest {
            position: inner.position.take(),
            held_permit: matches!(state, State::Working | State::KeepingPermit),
            is_evicted: state == State::Evicted,
            extras: inner.extras.take(),
            wakers: self.take_wakers(&mut inner),
        }
    }
}

// === State ===

impl From<u8> for State {
    #[inline]
    fn from(byte: u8) -> Self {
        match byte {
            0 => Self::Working,
            1 => Self::KeepingPermit,
            2 => Self::Waiting,
            3 => Self::Queued,
            4 => Self::Evicted,
            _ => Self::Ended,
        }
    }
}

// === EndedRequest ===

impl EndedRequest {
    /// Wakes a request body that is read in another task: it no longer waits for a permit.
    pub(crate) fn wake_request_body(self) {
        let [body, _] = self.wakers;
        if let Some(body) = body {
            body.wake();
        }
    }
}
