//! The lines of those who wait, and who stands where in them.

use crate::{
    slot::Share,
    slots::Slots,
    ticket::{Before, Ticket},
};
use parking_lot::MutexGuard;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
};

/// Those who wait. The key is the order of arrival. No line is longer than what may be present
/// and in the queue.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    next: u64,
    /// Waiting for their own clients; the first has waited longest.
    client: BTreeMap<u64, Arc<Ticket>>,
    /// Waiting for a slot, by [`Rank`].
    slot: [BTreeMap<u64, Arc<Ticket>>; RANKS.len()],
}

/// Who comes first when a slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Had a slot before; its client holds few and is not in debt, or nobody knows.
    Light,
    /// Had a slot before.
    Heavy,
    /// Never had one; its client holds few and is not in debt.
    LightNewcomer,
    /// Never had one.
    Newcomer,
}

/// Where a ticket stands: in the line of this rank, or in that of those who wait for clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) rank: Option<Rank>,
}

const RANKS: [Rank; 4] = [Rank::Light, Rank::Heavy, Rank::LightNewcomer, Rank::Newcomer];

/// Requests that had a slot before come before newcomers. Of each kind the light and the heavy.
const KINDS: [[Rank; 2]; 2] = [[Rank::Light, Rank::Heavy], [Rank::LightNewcomer, Rank::Newcomer]];

/// How many of a line are looked at for one that is light by now, or that may be displaced.
const LOOKS: usize = 8;

// === Rank ===

impl Rank {
    pub(crate) fn is_newcomer(self) -> bool {
        matches!(self, Self::LightNewcomer | Self::Newcomer)
    }

    /// The share that a slot outside of the reserve belongs to when this rank takes it.
    pub(crate) fn share(self, is_fair: bool) -> Share {
        if is_fair && !self.is_light() { Share::Heavy } else { Share::Common }
    }

    /// Whether the slots kept for those who hold few are for this one too.
    pub(crate) fn is_light(self) -> bool {
        matches!(self, Self::Light | Self::LightNewcomer)
    }
}

// === Lines ===

impl Lines {
    fn next_place(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
}

// === Slots ===

impl Slots {
    /// Makes room for a request that has just been admitted and seems to be one too many: displaces
    /// the one that has waited for its client longest, if `displacing`. `false` if there is no
    /// room.
    #[cold]
    pub(crate) fn make_room(&self, max_present: usize, displacing: bool) -> bool {
        let mut lines = self.lines.lock();
        // Without the lock a request that changes lines is counted twice or not at all for a
        // moment.
        let present = self.present();
        if present <= max_present {
            return true;
        }
        if !displacing {
            return false;
        }
        // Layers that share the slots may differ: one with fewer present does not take from
        // another.
        let mut first = lines.client.iter().take(LOOKS);
        let Some(number) =
            first.find_map(|(number, ticket)| ticket.may_be_displaced(present).then_some(*number))
        else {
            return false;
        };
        let Some(victim) = lines.client.remove(&number) else { return false };
        self.waiting.store(lines.client.len(), SeqCst);
        victim.displace();
        drop(lines);
        victim.wake();
        true
    }

    /// Gives free slots to those who stand in line, in order.
    pub(crate) fn grant(&self) {
        while let Some(ticket) = self.grant_one() {
            ticket.wake();
        }
    }

    /// Grants a free slot to the first request in line, or else to the first light one. Light
    /// requests pass heavy ones for the reserve only, and newcomers never pass admitted requests.
    /// (Light newcomers also pass heavy ones that hold as many slots as the heavy may hold.)
    fn grant_one(&self) -> Option<Arc<Ticket>> {
        let mut lines = self.lines.lock();
        for [light, heavy] in KINDS {
            let newcomer = light.is_newcomer();
            self.look_at_ranks(&mut lines, light, heavy);
            let first = |rank: Rank| {
                let (number, ticket) = lines.slot[rank as usize].first_key_value()?;
                Some((*number, ticket.is_fair()))
            };
            let (first_light, first_heavy) = (first(light), first(heavy));
            if let Some((number, is_fair)) = first_heavy
                && first_light.is_none_or(|(light, _)| number < light)
                && self.take_of(heavy.share(is_fair), newcomer, is_fair)
            {
                return self.grant_first(&mut lines, heavy, heavy.share(is_fair));
            }
            let Some((_, is_fair)) = first_light else { continue };
            for share in [Share::Common, Share::Reserve] {
                if self.take_of(share, newcomer, is_fair) {
                    return self.grant_first(&mut lines, light, share);
                }
            }
        }
        None
    }

    /// Looks at the ranks of the first requests again: one that is not light or heavy any more, as
    /// it was when it lined up, changes lines and keeps its number.
    fn look_at_ranks(&self, lines: &mut Lines, light: Rank, heavy: Rank) {
        while let Some((number, ticket)) = lines.slot[light as usize].first_key_value() {
            if ticket.is_light(light.is_newcomer()) {
                return;
            }
            let number = *number;
            self.change_rank(lines, number, light, heavy);
        }
        let newcomer = heavy.is_newcomer();
        if self.has_room_for_light(newcomer) {
            let first = lines.slot[heavy as usize].iter().take(LOOKS);
            let mut first = first.filter(|(_, ticket)| ticket.is_light(newcomer));
            if let Some((number, _)) = first.next() {
                let number = *number;
                self.change_rank(lines, number, heavy, light);
            }
        }
    }

    fn grant_first(&self, lines: &mut Lines, rank: Rank, share: Share) -> Option<Arc<Ticket>> {
        let (_, ticket) = lines.slot[rank as usize].pop_first()?;
        self.count_out(rank);
        ticket.grant(share);
        Some(ticket)
    }

    fn change_rank(&self, lines: &mut Lines, number: u64, from: Rank, to: Rank) {
        if let Some(ticket) = lines.slot[from as usize].remove(&number) {
            ticket.stand_at(Place { number, rank: Some(to) });
            lines.slot[to as usize].insert(number, ticket);
            // In this order: without the lock the line must never look empty.
            self.count_in(to);
            self.count_out(from);
        }
    }

    /// Puts `ticket`, which holds a slot, into the line of those who wait for their clients, and
    /// frees the slot.
    pub(crate) fn await_client(&self, ticket: &Arc<Ticket>) {
        self.line_up_for_client(ticket, false);
    }

    /// The same for one that keeps its slot while it waits for its client.
    pub(crate) fn recall(&self, ticket: &Arc<Ticket>) {
        self.line_up_for_client(ticket, true);
    }

    fn line_up_for_client(&self, ticket: &Arc<Ticket>, is_recalled: bool) {
        let mut lines = self.lines.lock();
        let next = lines.next_place();
        let Some((place, share)) = ticket.stand_for_client(next, is_recalled) else {
            return; // Its other half, in another task, was first, or it works again.
        };
        lines.client.insert(place, ticket.clone());
        self.waiting.store(lines.client.len(), SeqCst);
        // Under the lock: see `make_room`.
        self.free(share);
        drop(lines);
        self.grant_if_any_waits();
    }

    /// Puts `ticket`, which holds no slot, into the line for one; or gives it one at once.
    pub(crate) fn await_slot(&self, ticket: &Arc<Ticket>, rank: Rank) {
        self.line_up(self.lines.lock(), ticket, rank);
    }

    /// The same for a newcomer. `false` if `waiters` of them stand in line already.
    pub(crate) fn await_first_slot(
        &self,
        ticket: &Arc<Ticket>,
        rank: Rank,
        waiters: usize,
    ) -> bool {
        let lines = self.lines.lock();
        let newcomers = RANKS.into_iter().filter(|rank| rank.is_newcomer());
        if newcomers.map(|rank| lines.slot[rank as usize].len()).sum::<usize>() >= waiters {
            return false;
        }
        self.line_up(lines, ticket, rank);
        true
    }

    fn line_up(&self, mut lines: MutexGuard<'_, Lines>, ticket: &Arc<Ticket>, rank: Rank) {
        let place = lines.next_place();
        let Some(before) = ticket.stand_for_slot(place, rank) else {
            return; // It was displaced, or its other half was first.
        };
        self.remove(&mut lines, before);
        // Past the line where there is none: a newcomer must not see one while slots are free.
        if lines.slot.iter().all(BTreeMap::is_empty)
            && let Some(share) = self.take(rank, ticket.is_fair())
        {
            ticket.grant(share);
            return;
        }
        lines.slot[rank as usize].insert(place, ticket.clone());
        self.count_in(rank);
        drop(lines);
        if !self.is_crowded() {
            self.recall_all();
        }
        self.grant();
    }

    /// Lets `ticket` go on without a slot being free, for a guard that only watches.
    pub(crate) fn go_on_anyway(&self, ticket: &Ticket) {
        let mut lines = self.lines.lock();
        if let Some(before) = ticket.place() {
            self.remove(&mut lines, Some(before));
            self.take_anyway();
            ticket.grant(Share::Common);
        }
    }

    /// Takes `ticket` out of whatever line it stands in, for good.
    pub(crate) fn take_out(&self, ticket: &Ticket) -> Before {
        let mut lines = self.lines.lock();
        let before = ticket.step_out();
        self.remove(&mut lines, before.place);
        drop(lines);
        self.kept.unlist(ticket);
        if before.place.is_some_and(|place| place.rank.is_some()) {
            // Those behind it may have what it could not.
            self.grant_if_any_waits();
        }
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
                self.count_out(rank);
            }
            None => {}
        }
    }

    fn count_in(&self, rank: Rank) {
        if rank.is_light() {
            self.queued_light.fetch_add(1, SeqCst);
        }
        if rank.is_newcomer() {
            self.queued_newcomers.fetch_add(1, SeqCst);
        }
        self.queued.fetch_add(1, SeqCst);
    }

    fn count_out(&self, rank: Rank) {
        if rank.is_light() {
            self.queued_light.fetch_sub(1, SeqCst);
        }
        self.queued.fetch_sub(1, SeqCst);
        if rank.is_newcomer() {
            self.queued_newcomers.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{ConcurrencyLimitLayer, slots::Slots, ticket::About, ticket::Ticket};
    use std::sync::Arc;

    /// A request of a layer that waits for its client.
    fn waits(slots: &Slots, layer: &ConcurrencyLimitLayer) -> Arc<Ticket> {
        assert!(slots.take_any());
        let about = About { conn: None, client: None };
        let ticket = Ticket::working(layer.policy().0.clone(), about, None, false, false);
        slots.await_client(&ticket);
        ticket
    }

    #[test]
    fn a_request_is_displaced_only_if_too_many_are_present_when_that_is_looked_at_again() {
        let layer = ConcurrencyLimitLayer::new(4).present(2);
        let slots = &*layer.policy().0.slots;
        let first = waits(slots, &layer);
        let second = waits(slots, &layer);
        // A newcomer that counted one of them twice, as it changed lines.
        assert!(slots.make_room(2, true));
        assert!(!first.is_displaced() && !second.is_displaced());
        assert!(slots.take_any());
        assert!(slots.make_room(2, true));
        assert!(first.is_displaced() && !second.is_displaced());
    }
}
