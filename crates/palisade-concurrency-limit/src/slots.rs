//! The slots: how many there are, and how many are taken.

use crate::{
    kept::Kept,
    ledger::Ledger,
    lines::{Lines, Rank},
    slot::{Extra, MAX_TAKEN, Share, Taken},
};
use palisade_core::{ClientKey, Event, Guard, Level, Levels, Recorder};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

/// How many requests may be present per slot, unless told otherwise.
const PRESENT_PER_SLOT: usize = 8;

/// What all services of one layer share.
#[derive(Debug)]
pub(crate) struct Slots {
    /// A word of [`Taken`].
    taken: AtomicU64,
    admitted: AtomicU64,
    limit: AtomicUsize,
    /// Slots beyond the limit, for requests that a predicate picks.
    picked: AtomicUsize,
    /// How many stand in line for their clients, and for a slot: copies of the lines' lengths,
    /// to be read without the lock.
    pub(crate) waiting: AtomicUsize,
    pub(crate) queued: AtomicUsize,
    /// Of those who stand in line for a slot, the light and the newcomers.
    pub(crate) queued_light: AtomicUsize,
    pub(crate) queued_newcomers: AtomicUsize,
    pub(crate) lines: Mutex<Lines>,
    /// Slots are getting short: requests that wait for their clients do not keep theirs.
    is_crowded: AtomicBool,
    pub(crate) kept: Kept,
    ledger: OnceLock<Ledger>,
    clients: Mutex<HashMap<ClientKey, usize>>,
    /// Hears of a change of the limit.
    recorder: Mutex<Recorder>,
}

// === Slots ===

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            taken: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            limit: AtomicUsize::new(limit),
            picked: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            queued_light: AtomicUsize::new(0),
            queued_newcomers: AtomicUsize::new(0),
            lines: Mutex::default(),
            is_crowded: AtomicBool::new(false),
            kept: Kept::default(),
            ledger: OnceLock::new(),
            clients: Mutex::default(),
            recorder: Mutex::default(),
        }
    }

    #[inline]
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, SeqCst);
        self.look_for_crowd(self.present(), limit);
        self.grant();
        let recorder = self.recorder.lock().clone();
        recorder.record(|| Event::limit_changed(Guard::ConcurrencyLimit, limit as u64));
    }

    pub(crate) fn record_to(&self, recorder: Recorder) {
        let before = std::mem::replace(&mut *self.recorder.lock(), recorder);
        drop(before); // A sink's drop is the code of others.
    }

    pub(crate) fn keep_ledger(&self) {
        self.ledger.get_or_init(Ledger::new);
    }

    #[inline]
    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.get()
    }

    #[inline]
    pub(crate) fn working(&self) -> usize {
        Taken(self.taken.load(Relaxed)).total()
    }

    /// Whether slots are getting short, so that it matters who uses them.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        self.working() >= self.limit() / 2
    }

    /// Whether slots were getting short if all who are present were at work.
    pub(crate) fn is_getting_short(&self, max_present: usize) -> bool {
        self.present() >= self.limit().min(max_present) / 2
    }

    /// Whether requests that wait for their clients give their slots up at once.
    #[inline]
    pub(crate) fn is_crowded(&self) -> bool {
        self.is_crowded.load(SeqCst)
    }

    /// Requests that wait for their clients give their slots up from the time when `present`
    /// requests could take half of the slots, until fewer than a quarter are present again.
    #[inline]
    pub(crate) fn look_for_crowd(&self, present: usize, max_present: usize) {
        // Beyond these a newcomer lacks a slot, or room.
        let places = self.limit().min(max_present);
        if self.is_crowded.load(Relaxed) {
            if present < places / 4 {
                self.is_crowded.store(false, SeqCst);
                // `present` may be out of date by now.
                if self.present() >= places / 2 {
                    self.recall_all();
                }
            }
        } else if present >= places / 2 {
            self.recall_all();
        }
    }

    /// Takes back all slots that are kept and not used, because one is lacking. `true` if some
    /// were.
    #[cold]
    pub(crate) fn recall_all(&self) -> bool {
        // A request that keeps its slot after this sees that it must not; one that kept it before
        // is seen here.
        self.is_crowded.store(true, SeqCst);
        let kept = self.kept.keeping();
        for ticket in &kept {
            self.recall(ticket);
        }
        !kept.is_empty()
    }

    /// All requests that were let in and are not over.
    #[inline]
    pub(crate) fn present(&self) -> usize {
        let newcomers = self.queued_newcomers.load(SeqCst);
        let queued = self.queued.load(SeqCst).saturating_sub(newcomers);
        let waiting = self.waiting.load(SeqCst).saturating_add(queued);
        Taken(self.taken.load(SeqCst)).total().saturating_add(waiting)
    }

    /// How many may be present where no number is set.
    #[inline]
    pub(crate) fn usual_present(&self) -> usize {
        self.limit().saturating_mul(PRESENT_PER_SLOT)
    }

    /// Takes a slot for a newcomer while slots are plentiful, or where there is no fairness.
    #[inline]
    pub(crate) fn take_any(&self) -> bool {
        if self.queued.load(SeqCst) > 0 {
            return false;
        }
        let limit = self.limit().min(MAX_TAKEN);
        let more = |taken| (Taken(taken).total() < limit).then(|| taken.wrapping_add(1));
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Takes a slot for a request of this rank. Returns its share. Newcomers stand behind all
    /// waiting requests, but a light one does not wait for heavy ones: the reserve is not for them.
    /// While other slots are free it leaves the reserve alone, because it may hold its slot for
    /// long.
    pub(crate) fn take(&self, rank: Rank, is_fair: bool) -> Option<Share> {
        let newcomer = rank.is_newcomer();
        let is_behind = newcomer && self.queued.load(SeqCst) > 0;
        let share = rank.share(is_fair);
        if !is_behind && self.take_of(share, newcomer, is_fair) {
            return Some(share);
        }
        if !rank.is_light() || (newcomer && self.queued_light.load(SeqCst) > 0) {
            return None;
        }
        if self.take_of(Share::Reserve, newcomer, is_fair) {
            return Some(Share::Reserve);
        }
        // Where only heavy newcomers wait beside free slots, those are more than the heavy may
        // have.
        let queued = self.queued.load(SeqCst);
        let is_passed = queued == self.queued_newcomers.load(SeqCst);
        (is_passed && self.take_of(share, newcomer, is_fair)).then_some(share)
    }

    /// Takes a slot of this share, if one is free.
    #[inline]
    pub(crate) fn take_of(&self, share: Share, newcomer: bool, is_fair: bool) -> bool {
        let room = self.room(newcomer, is_fair);
        let more = |taken| {
            room.has(Taken(taken), share, newcomer).then(|| share.one().wrapping_add(taken))
        };
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// The slots for a request of this kind. An admitted one gets a slot in the end, even with a
    /// limit of 0. A layer without fairness has no reserve.
    #[inline]
    fn room(&self, newcomer: bool, is_fair: bool) -> Room {
        let limit = self.limit().max(usize::from(!newcomer)).min(MAX_TAKEN);
        let reserve = if is_fair { limit.div_ceil(10).min(limit / 2) } else { 0 };
        Room { limit, reserve }
    }

    /// Whether a light request would find a slot if it were first: of all, or of the newcomers.
    pub(crate) fn has_room_for_light(&self, newcomer: bool) -> bool {
        let (room, taken) = (self.room(newcomer, true), Taken(self.taken.load(SeqCst)));
        room.has(taken, Share::Reserve, newcomer)
            || (newcomer && room.has(taken, Share::Common, newcomer))
    }

    /// Takes a slot though none may be free.
    pub(crate) fn take_anyway(&self) {
        self.taken.fetch_add(Share::Common.one(), SeqCst);
    }

    /// Takes one of the slots beyond the limit.
    pub(crate) fn take_picked(&self, max: usize) -> bool {
        let more = |picked| (picked < max).then(|| picked + 1);
        self.picked.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Gives a slot of this share back, to a request that waits for it if there is one.
    #[inline]
    pub(crate) fn release(&self, share: Share) {
        self.free(share);
        self.grant_if_any_waits();
    }

    /// Frees a slot. [`Self::grant_if_any_waits`] must follow.
    #[inline]
    pub(crate) fn free(&self, share: Share) {
        self.taken.fetch_sub(share.one(), SeqCst);
    }

    /// Grants free slots if requests wait. A request lines up first and then looks for a free slot;
    /// a slot is freed first, and then this looks at the line. One of them sees the other.
    #[inline]
    pub(crate) fn grant_if_any_waits(&self) {
        if self.queued.load(SeqCst) > 0 {
            self.grant();
        }
    }

    #[inline]
    pub(crate) fn count_admitted(&self) {
        self.admitted.fetch_add(1, Relaxed);
    }

    /// Counts one more request of `client`, unless it has `max` already.
    pub(crate) fn enter(&self, client: ClientKey, max: usize) -> bool {
        let mut clients = self.clients.lock();
        let count = clients.entry(client).or_default();
        if *count >= max {
            // `max` may be 0, and then nothing may be left behind.
            if *count == 0 {
                clients.remove(&client);
            }
            return false;
        }
        *count += 1;
        true
    }

    pub(crate) fn exit(&self, client: ClientKey) {
        if let Entry::Occupied(mut entry) = self.clients.lock().entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// The request with this is over, and gives its slot back.
    #[inline(never)]
    pub(crate) fn give_back(&self, mut extra: Box<Extra>) {
        extra.pause(self);
        self.finish(&extra);
        if !extra.picked {
            self.release(extra.share);
        }
    }

    /// The request with this is over and holds no slot any more.
    pub(crate) fn finish(&self, extra: &Extra) {
        if let (Some(charge), Some(ledger)) = (&extra.charge, self.ledger()) {
            ledger.finish(charge);
        }
        if extra.picked {
            self.picked.fetch_sub(1, Relaxed);
        }
    }
}

// === Room ===

/// The slots that there are.
#[derive(Clone, Copy)]
struct Room {
    limit: usize,
    /// The last of them, which only light requests get.
    reserve: usize,
}

impl Room {
    #[inline]
    fn has(self, taken: Taken, share: Share, newcomer: bool) -> bool {
        let Self { limit, reserve } = self;
        let rest = limit.saturating_sub(reserve);
        let others = taken.total().saturating_sub(taken.reserve());
        let is_free = taken.total() < limit;
        match share {
            Share::Reserve => is_free && taken.reserve() < reserve,
            // Light newcomers may have all that the heavy leave, save for a quarter: by then what
            // is taken by the light is so much that the heavy would get nothing at all.
            Share::Heavy if newcomer && taken.total() >= rest => {
                is_free && others < rest && taken.heavy() < limit / 4
            }
            Share::Heavy | Share::Common => is_free && others < rest,
        }
    }
}

impl Levels for Slots {
    fn guard(&self) -> Guard {
        Guard::ConcurrencyLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Level, u64)) {
        let picked = self.picked.load(Relaxed);
        let kept = self.kept.count();
        let working = self.working().saturating_sub(kept).saturating_add(picked);
        visit(Level::Working, working as u64);
        visit(Level::Waiting, self.waiting.load(Relaxed).saturating_add(kept) as u64);
        visit(Level::Queued, self.queued.load(Relaxed) as u64);
        visit(Level::Limit, self.limit() as u64);
        visit(Level::Admitted, self.admitted.load(Relaxed));
    }
}
