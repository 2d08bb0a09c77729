//! Who has used more than his share of the slots, reckoned in working time.

use palisade_core::{ClientKey, Clock, Table};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Slot-time debts: GCRA over working microseconds. A client pays back one microsecond of working
/// time per microsecond, which is what one slot uses. It is charged the mean of all requests when
/// it starts one and the difference when that is done, so whoever holds two or more is in debt.
#[derive(Debug)]
pub(crate) struct Ledger {
    debts: Table,
    clock: Clock,
    /// The running mean of a request's working time, in microseconds.
    mean: AtomicU64,
}

/// What one request has been charged.
#[derive(Debug)]
pub(crate) struct Charge {
    client: ClientKey,
    /// When its present stretch of work began.
    since: u64,
    /// Charged in advance and not worked off yet.
    prepaid: u64,
    worked: u64,
}

/// Clients remembered at a time: 512 KiB of table.
const CLIENTS: usize = 1 << 16;

/// A minute: whoever stops is forgiven by then, whatever he did.
const LONGEST_DEBT: u64 = 60_000_000;

/// A request weighs one sixteenth in the mean.
const WEIGHT: u64 = 16;

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { debts: Table::new(CLIENTS), clock: Clock::new(), mean: AtomicU64::new(0) }
    }

    /// Whether `client` may have one of the slots kept for those who hold few.
    pub(crate) fn is_light(&self, client: ClientKey) -> bool {
        let debt = self.debts.debt(client, self.clock.now(), LONGEST_DEBT);
        debt <= self.mean.load(Relaxed)
    }

    /// `client` begins a request.
    pub(crate) fn start(&self, client: ClientKey) -> Charge {
        let now = self.clock.now();
        let mean = self.mean.load(Relaxed);
        self.change(client, now, mean, 0);
        Charge { client, since: now, prepaid: mean, worked: 0 }
    }

    /// The request goes on working.
    pub(crate) fn resume(&self, charge: &mut Charge) {
        charge.since = self.clock.now();
    }

    /// The request has stopped working, for now or for good.
    pub(crate) fn pause(&self, charge: &mut Charge) {
        let now = self.clock.now();
        let worked = now.saturating_sub(charge.since);
        charge.worked = charge.worked.saturating_add(worked);
        self.change(charge.client, now, worked, charge.prepaid);
        charge.prepaid = 0;
    }

    /// The request is over: it now counts in the mean.
    pub(crate) fn finish(&self, charge: &Charge) {
        // Two that finish at once may lose one of them: it is a mean, not a count.
        let mean = self.mean.load(Relaxed);
        let rest = mean.saturating_sub(mean / WEIGHT);
        self.mean.store(rest.saturating_add(charge.worked / WEIGHT), Relaxed);
    }

    fn change(&self, client: ClientKey, now: u64, more: u64, less: u64) {
        let change = |debt: u64| {
            Ok::<_, ()>(((), debt.saturating_add(more).saturating_sub(less).min(LONGEST_DEBT)))
        };
        // `None` after eight lost races: this one request goes uncharged.
        let _ = self.debts.update(client, now, LONGEST_DEBT, change);
    }
}

impl Charge {
    pub(crate) fn client(&self) -> ClientKey {
        self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn who_holds_one_is_light_and_who_holds_two_is_not() {
        let ledger = Ledger::new();
        let client = ClientKey::of("one");
        for _ in 0..200 {
            let mut charge = ledger.start(ClientKey::of("anybody"));
            advance(Duration::from_millis(100)).await;
            ledger.pause(&mut charge);
            ledger.finish(&charge);
        }
        let _first = ledger.start(client);
        assert!(ledger.is_light(client));
        let _second = ledger.start(client);
        assert!(!ledger.is_light(client));
        advance(Duration::from_millis(200)).await;
        assert!(ledger.is_light(client));
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_charged_as_long_as_it_took_and_waiting_is_not() {
        let ledger = Ledger::new();
        let client = ClientKey::of("one");
        let mut charge = ledger.start(client);
        ledger.pause(&mut charge);
        advance(Duration::from_secs(3600)).await;
        ledger.resume(&mut charge);
        assert!(ledger.is_light(client));
        advance(Duration::from_secs(5)).await;
        ledger.pause(&mut charge);
        ledger.finish(&charge);
        assert_eq!(ledger.debts.debt(client, ledger.clock.now(), LONGEST_DEBT), 5_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_owes_more_than_a_minute() {
        let ledger = Ledger::new();
        let client = ClientKey::of("one");
        let mut charges: Vec<_> = (0..100).map(|_| ledger.start(client)).collect();
        advance(Duration::from_secs(300)).await;
        for charge in &mut charges {
            ledger.pause(charge);
        }
        assert!(!ledger.is_light(client));
        advance(Duration::from_secs(60)).await;
        assert!(ledger.is_light(client));
    }
}
