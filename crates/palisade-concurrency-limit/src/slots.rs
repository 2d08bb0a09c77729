//! The slots, and the lines of those who wait.

use crate::{
    layer::Shared,
    ledger::{Charge, Ledger},
    ticket::{Before, Ticket},
};
use palisade_core::{ClientKey, Guard, Level, Levels};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

/// How many requests may be present per slot, unless told otherwise.
const PRESENT_PER_SLOT: usize = 8;

/// What all services of one layer share.
#[derive(Debug)]
pub(crate) struct Slots {
    working: AtomicUsize,
    admitted: AtomicU64,
    limit: AtomicUsize,
    /// 0: [`PRESENT_PER_SLOT`] times the limit.
    max_present: AtomicUsize,
    /// Slots beyond the limit, for requests that a predicate picks.
    picked: AtomicUsize,
    max_picked: AtomicUsize,
    /// How many stand in each line: copies of the lines' lengths, to be read without the lock.
    waiting: AtomicUsize,
    queued: AtomicUsize,
    lines: Mutex<Lines>,
    ledger: OnceLock<Ledger>,
    clients: Mutex<HashMap<ClientKey, usize>>,
}

/// Those who wait. The key is the order of arrival. No line is longer than what may be present.
#[derive(Debug, Default)]
struct Lines {
    next: u64,
    /// Waiting for their own clients; the first has waited longest.
    client: BTreeMap<u64, Arc<Ticket>>,
    /// Waiting for a slot, by [`Rank`].
    slot: [BTreeMap<u64, Arc<Ticket>>; 3],
}

/// Who comes first when a slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Had a slot before; its client is not in debt.
    Light,
    /// Had a slot before.
    Heavy,
    /// Never had one.
    Newcomer,
}

/// Where a ticket stands: in the line of this rank, or in that of those who wait for clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) rank: Option<Rank>,
}

const RANKS: [Rank; 3] = [Rank::Light, Rank::Heavy, Rank::Newcomer];

/// One slot, given back when dropped, and whatever else goes with the request.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` once somebody else has taken over.
    shared: Option<Arc<Shared>>,
    extra: Option<Box<Extra>>,
}

/// What only some requests have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Its account, if slots were getting short when it came.
    pub(crate) charge: Option<Charge>,
    /// Counted under this client.
    pub(crate) client: Option<ClientKey>,
    /// Holds a slot of those beyond the limit.
    pub(crate) picked: bool,
}

// === Slots ===

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            working: AtomicUsize::new(0),
            admitted: AtomicU64::new(0),
            limit: AtomicUsize::new(limit),
            max_present: AtomicUsize::new(0),
            picked: AtomicUsize::new(0),
            max_picked: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            lines: Mutex::default(),
            ledger: OnceLock::new(),
            clients: Mutex::default(),
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, SeqCst);
        self.grant();
    }

    pub(crate) fn set_max_present(&self, requests: usize) {
        self.max_present.store(requests, Relaxed);
    }

    pub(crate) fn set_max_picked(&self, requests: usize) {
        self.max_picked.store(requests, Relaxed);
    }

    pub(crate) fn keep_ledger(&self) {
        self.ledger.get_or_init(Ledger::new);
    }

    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.get()
    }

    pub(crate) fn working(&self) -> usize {
        self.working.load(Relaxed)
    }

    /// Whether slots are getting short, so that it matters who uses them.
    pub(crate) fn is_busy(&self) -> bool {
        self.working() >= self.limit() / 2
    }

    /// All requests that are here.
    fn present(&self) -> usize {
        let waiting = self.waiting.load(SeqCst).saturating_add(self.queued.load(SeqCst));
        self.working.load(SeqCst).saturating_add(waiting)
    }

    pub(crate) fn max_present(&self) -> usize {
        match self.max_present.load(Relaxed) {
            0 => self.limit().saturating_mul(PRESENT_PER_SLOT),
            requests => requests,
        }
    }

    /// How many may work before one of this rank gets no slot. With a ledger the last tenth is
    /// only for the light.
    fn ceiling(&self, rank: Rank) -> usize {
        let limit = self.limit();
        if rank == Rank::Light || self.ledger.get().is_none() {
            return limit;
        }
        limit.saturating_sub(limit.div_ceil(10).min(limit / 2))
    }

    /// Takes a slot if there is one for this rank. Newcomers stand behind all who wait.
    pub(crate) fn take(&self, rank: Rank) -> bool {
        if rank == Rank::Newcomer && self.queued.load(SeqCst) > 0 {
            return false;
        }
        self.take_up_to(self.ceiling(rank))
    }

    fn take_up_to(&self, ceiling: usize) -> bool {
        let more = |working| (working < ceiling).then(|| working + 1);
        self.working.fetch_update(SeqCst, Relaxed, more).is_ok()
    }

    /// Takes one of the slots beyond the limit.
    pub(crate) fn take_picked(&self) -> bool {
        let max = self.max_picked.load(Relaxed);
        let more = |picked| (picked < max).then(|| picked + 1);
        self.picked.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Gives a slot back, to who waits for it if somebody does.
    pub(crate) fn release(&self) {
        self.working.fetch_sub(1, SeqCst);
        // Whoever lines up does so first and then looks whether a slot is free; we free one first
        // and then look whether somebody stands in line. One of us sees the other.
        if self.queued.load(SeqCst) > 0 {
            self.grant();
        }
    }

    pub(crate) fn count_admitted(&self) {
        self.admitted.fetch_add(1, Relaxed);
    }

    /// Makes room for one that has just been let in, at the cost of who has waited for its client
    /// longest if `displacing`. `false` if there is no room.
    pub(crate) fn make_room(&self, displacing: bool) -> bool {
        if self.present() <= self.max_present() {
            return true;
        }
        if !displacing {
            return false;
        }
        let mut lines = self.lines.lock();
        let Some((_, victim)) = lines.client.pop_first() else { return false };
        self.waiting.store(lines.client.len(), SeqCst);
        victim.displace();
        drop(lines);
        victim.wake();
        true
    }

    /// Gives free slots to those who stand in line, in order.
    fn grant(&self) {
        while let Some(ticket) = self.grant_one() {
            ticket.wake();
        }
    }

    fn grant_one(&self) -> Option<Arc<Ticket>> {
        let mut lines = self.lines.lock();
        for rank in RANKS {
            let line = &mut lines.slot[rank as usize];
            if !line.is_empty() && self.take_up_to(self.ceiling(rank)) {
                let (_, ticket) = line.pop_first().expect("the line is not empty");
                self.queued.fetch_sub(1, SeqCst);
                ticket.grant();
                return Some(ticket);
            }
        }
        None
    }

    /// Puts `ticket`, which holds a slot, into the line of those who wait for their clients, and
    /// frees the slot.
    pub(crate) fn await_client(&self, ticket: &Arc<Ticket>) {
        let mut lines = self.lines.lock();
        let place = lines.next_place();
        if !ticket.stand_for_client(place) {
            return; // Its other half, in another task, was first.
        }
        lines.client.insert(place, ticket.clone());
        self.waiting.store(lines.client.len(), SeqCst);
        drop(lines);
        self.release();
    }

    /// Puts `ticket`, which holds no slot, into the line for one; or gives it one at once.
    pub(crate) fn await_slot(&self, ticket: &Arc<Ticket>, rank: Rank) {
        self.line_up(self.lines.lock(), ticket, rank);
    }

    /// The same for a newcomer. `false` if `waiters` of them stand in line already.
    pub(crate) fn await_first_slot(&self, ticket: &Arc<Ticket>, waiters: usize) -> bool {
        let lines = self.lines.lock();
        if lines.slot[Rank::Newcomer as usize].len() >= waiters {
            return false;
        }
        self.line_up(lines, ticket, Rank::Newcomer);
        true
    }

    fn line_up(&self, mut lines: MutexGuard<'_, Lines>, ticket: &Arc<Ticket>, rank: Rank) {
        let place = lines.next_place();
        let Some(before) = ticket.stand_for_slot(place, rank) else {
            return; // It was displaced, or its other half was first.
        };
        self.remove(&mut lines, before);
        // Past the line where there is none: a newcomer must not see one while slots are free.
        if lines.slot.iter().all(BTreeMap::is_empty) && self.take(rank) {
            ticket.grant();
            return;
        }
        lines.slot[rank as usize].insert(place, ticket.clone());
        self.queued.fetch_add(1, SeqCst);
        drop(lines);
        self.grant();
    }

    /// Lets `ticket` go on without a slot being free, for a guard that only watches.
    pub(crate) fn go_on_anyway(&self, ticket: &Ticket) {
        let mut lines = self.lines.lock();
        if let Some(before) = ticket.place() {
            self.remove(&mut lines, Some(before));
            self.working.fetch_add(1, SeqCst);
            ticket.grant();
        }
    }

    /// Takes `ticket` out of whatever line it stands in, for good.
    pub(crate) fn take_out(&self, ticket: &Ticket) -> Before {
        let mut lines = self.lines.lock();
        let before = ticket.step_out();
        self.remove(&mut lines, before.place);
        before
    }

    fn remove(&self, lines: &mut Lines, place: Option<Place>) {
        match place {
            Some(Place { number, rank: None }) => {
                lines.client.remove(&number);
                self.waiting.store(lines.client.len(), SeqCst);
            }
            Some(Place { number, rank: Some(rank) }) => {
                lines.slot[rank as usize].remove(&number);
                self.queued.fetch_sub(1, SeqCst);
            }
            None => {}
        }
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

    fn exit(&self, client: ClientKey) {
        if let Entry::Occupied(mut entry) = self.clients.lock().entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }

    /// The request with this is over and holds no slot any more.
    pub(crate) fn finish(&self, extra: &Extra) {
        if let (Some(charge), Some(ledger)) = (&extra.charge, self.ledger()) {
            ledger.finish(charge);
        }
        if let Some(client) = extra.client {
            self.exit(client);
        }
        if extra.picked {
            self.picked.fetch_sub(1, Relaxed);
        }
    }
}

impl Levels for Slots {
    fn guard(&self) -> Guard {
        Guard::ConcurrencyLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Level, u64)) {
        let picked = self.picked.load(Relaxed);
        visit(Level::Working, self.working().saturating_add(picked) as u64);
        visit(Level::Waiting, self.waiting.load(Relaxed) as u64);
        visit(Level::Queued, self.queued.load(Relaxed) as u64);
        visit(Level::Limit, self.limit() as u64);
        visit(Level::Admitted, self.admitted.load(Relaxed));
    }
}

// === Lines ===

impl Lines {
    fn next_place(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
}

// === Extra ===

impl Extra {
    pub(crate) fn counted(client: Option<ClientKey>) -> Self {
        Self { client, ..Self::default() }
    }

    /// On the heap, or nothing at all for the many requests that have nothing of it.
    pub(crate) fn boxed(self) -> Option<Box<Self>> {
        let Self { charge, client, picked } = &self;
        let is_plain = charge.is_none() && client.is_none() && !picked;
        if is_plain { None } else { Some(Box::new(self)) }
    }

    /// The request stops working, for now or for good.
    pub(crate) fn pause(&mut self, slots: &Slots) {
        if let (Some(charge), Some(ledger)) = (&mut self.charge, slots.ledger()) {
            ledger.pause(charge);
        }
    }
}

// === Slot ===

impl Slot {
    /// The slot that was just taken from those of `shared`.
    pub(crate) fn new(shared: Arc<Shared>, extra: Option<Box<Extra>>) -> Self {
        Self { shared: Some(shared), extra }
    }

    /// Hands the slot and all that goes with it to somebody else.
    pub(crate) fn hand_over(&mut self) -> Option<(Arc<Shared>, Option<Box<Extra>>)> {
        Some((self.shared.take()?, self.extra.take()))
    }

    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// The client that is charged for it, if one is.
    pub(crate) fn client(&self) -> Option<ClientKey> {
        Some(self.extra.as_ref()?.charge.as_ref()?.client())
    }

    /// Whether it is one of those beyond the limit.
    pub(crate) fn is_picked(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.picked)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let picked = self.is_picked();
        let Some((shared, extra)) = self.hand_over() else { return };
        if let Some(mut extra) = extra {
            extra.pause(&shared.slots);
            shared.slots.finish(&extra);
        }
        if !picked {
            shared.slots.release();
        }
    }
}
