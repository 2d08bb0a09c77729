//! Which clients have used more than their share of the permits, reckoned in working time.

use palisade_core::ClientKey;
use palisade_guard::{Clock, Table};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Debts of permit time: GCRA over working microseconds. A client pays back one microsecond of
/// working time per microsecond, which is what one permit uses. It is charged the mean of all
/// requests when it starts one and the difference when that is done, so that a client which uses
/// two or more permits gets into debt, and one which uses one does not.
///
/// Where requests are usually quick the charge in advance is small, and debts show only when the
/// work is done. So clients that hold two permits at the moment are counted as well.
#[derive(Debug)]
pub(crate) struct FairShare {
    debts: Table,
    clock: Clock,
    /// The running mean of a request's working time, in microseconds.
    mean: AtomicU64,
    /// How many charged requests each client has at work. No longer than there are permits.
    holding: Mutex<HashMap<ClientKey, u32>>,
}

/// What one request has been charged.
#[derive(Debug)]
pub(crate) struct Charge {
    client: ClientKey,
    /// When its present stretch of work began.
    since: u64,
    /// What the client's debt grew by in advance, and has not been worked off yet.
    prepaid: u64,
    worked: u64,
}

/// Clients remembered at a time: 512 KiB of table.
const CLIENTS: usize = 1 << 16;

/// A minute: by then a client that stops is forgiven, whatever it did.
const LONGEST_DEBT: u64 = 60_000_000;

/// A client that holds so many permits is not light, whatever it owes.
const MANY: u32 = 2;

/// A request that worked longer counts in the mean as if it had worked so long: else the end of a
/// single one that took hours would forgive all clients.
const LONGEST_IN_MEAN: u64 = LONGEST_DEBT / 4;

/// A request weighs one sixteenth in the mean.
const WEIGHT: u64 = 16;

impl FairShare {
    pub(crate) fn new() -> Self {
        Self {
            debts: Table::new(CLIENTS),
            clock: Clock::new(),
            mean: AtomicU64::new(0),
            holding: Mutex::default(),
        }
    }

    /// Whether `client` may have one of the permits that are kept for clients which hold few.
    pub(crate) fn is_light(&self, client: ClientKey) -> bool {
        let debt = self.debts.debt(client, self.clock.now(), LONGEST_DEBT);
        debt <= self.mean.load(Relaxed)
            && self
                .holding
                .lock()
                .get(&client)
                .is_none_or(|permits| *permits < MANY)
    }

    /// `client` begins a request.
    pub(crate) fn start(&self, client: ClientKey) -> Charge {
        let now = self.clock.now();
        let mean = self.mean.load(Relaxed);
        let charge = |debt: u64| {
            let more = debt.saturating_add(mean).min(LONGEST_DEBT);
            Ok::<_, ()>((more.saturating_sub(debt), more))
        };
        // `None` after a thousand lost races: this one request goes uncharged for now.
        let prepaid = self.debts.update(client, now, LONGEST_DEBT, charge);
        self.hold(client);
        Charge {
            client,
            since: now,
            prepaid: prepaid.and_then(Result::ok).unwrap_or(0),
            worked: 0,
        }
    }

    /// The request goes on working.
    pub(crate) fn resume(&self, charge: &mut Charge) {
        charge.since = self.clock.now();
        self.hold(charge.client);
    }

    /// The request has stopped working, for now or for good.
    pub(crate) fn pause(&self, charge: &mut Charge) {
        self.let_go(charge.client);
        let worked = self.clock.now().saturating_sub(charge.since);
        charge.worked = charge.worked.saturating_add(worked);
        // Settled as of when the work began, so that the time it took has paid for one permit.
        let longest = LONGEST_DEBT.saturating_add(worked);
        let prepaid = charge.prepaid;
        let settle = |debt: u64| {
            Ok::<_, ()>((
                (),
                debt.saturating_add(worked)
                    .saturating_sub(prepaid)
                    .min(longest),
            ))
        };
        let _ = self
            .debts
            .update(charge.client, charge.since, longest, settle);
        charge.prepaid = 0;
    }

    /// The request is over: it now counts in the mean.
    pub(crate) fn finish(&self, charge: &Charge) {
        // Two that finish at once may lose one of them: it is a mean, not a count.
        let mean = self.mean.load(Relaxed);
        let rest = mean.saturating_sub(mean / WEIGHT);
        let worked = charge.worked.min(LONGEST_IN_MEAN);
        self.mean
            .store(rest.saturating_add(worked / WEIGHT), Relaxed);
    }

    fn hold(&self, client: ClientKey) {
        let mut holding = self.holding.lock();
        let permits = holding.entry(client).or_default();
        *permits = permits.saturating_add(1);
    }

    fn let_go(&self, client: ClientKey) {
        if let Entry::Occupied(mut permits) = self.holding.lock().entry(client) {
            *permits.get_mut() = permits.get().saturating_sub(1);
            if *permits.get() == 0 {
                permits.remove();
            }
        }
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

    /// Requests of this length become the usual ones.
    async fn usual(fair_share: &FairShare, length: Duration) {
        for _ in 0..200 {
            work(fair_share, "anybody", 1, length).await;
        }
    }

    /// `who` has so many requests at work at the same time, for `length`.
    async fn work(fair_share: &FairShare, who: &str, requests: usize, length: Duration) {
        let mut charges: Vec<_> = (0..requests)
            .map(|_| fair_share.start(ClientKey::of(who)))
            .collect();
        advance(length).await;
        for charge in &mut charges {
            fair_share.pause(charge);
            fair_share.finish(charge);
        }
    }

    fn debt(fair_share: &FairShare, who: &str) -> u64 {
        fair_share
            .debts
            .debt(ClientKey::of(who), fair_share.clock.now(), LONGEST_DEBT)
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_one_is_light_and_who_holds_two_is_not() {
        let fair_share = FairShare::new();
        usual(&fair_share, Duration::from_millis(100)).await;
        let client = ClientKey::of("one");
        let mut first = fair_share.start(client);
        assert!(fair_share.is_light(client));
        let mut second = fair_share.start(client);
        assert!(!fair_share.is_light(client));
        advance(Duration::from_millis(200)).await;
        assert!(!fair_share.is_light(client)); // What was charged in advance is paid; it holds two.
        fair_share.pause(&mut second);
        assert!(fair_share.is_light(client));
        fair_share.resume(&mut second);
        assert!(!fair_share.is_light(client));
        for charge in [&mut first, &mut second] {
            fair_share.pause(charge);
        }
        assert!(!fair_share.is_light(client)); // It holds none, and owes the work of one.
        advance(Duration::from_millis(200)).await;
        assert!(fair_share.is_light(client));
        assert!(fair_share.holding.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_uses_one_permit_all_the_time_owes_nothing() {
        let fair_share = FairShare::new();
        usual(&fair_share, Duration::from_millis(100)).await;
        for seconds in [2, 2, 600, 2] {
            work(&fair_share, "one", 1, Duration::from_secs(seconds)).await;
            assert_eq!(debt(&fair_share, "one"), 0);
            assert!(fair_share.is_light(ClientKey::of("one")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_beyond_one_permit_is_owed_as_long_as_it_took_and_waiting_is_not() {
        let fair_share = FairShare::new();
        let client = ClientKey::of("three");
        let mut charges: Vec<_> = (0..3).map(|_| fair_share.start(client)).collect();
        for charge in &mut charges {
            fair_share.pause(charge);
        }
        advance(Duration::from_secs(3600)).await;
        for charge in &mut charges {
            fair_share.resume(charge);
        }
        advance(Duration::from_secs(5)).await;
        for charge in &mut charges {
            fair_share.pause(charge);
            fair_share.finish(charge);
        }
        assert_eq!(debt(&fair_share, "three"), 10_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_is_not_washed_off_by_requests_that_do_nothing() {
        let fair_share = FairShare::new();
        usual(&fair_share, Duration::from_millis(500)).await;
        work(&fair_share, "one", 100, Duration::from_secs(30)).await;
        let before = debt(&fair_share, "one");
        assert_eq!(before, LONGEST_DEBT);
        work(&fair_share, "one", 130, Duration::ZERO).await;
        assert_eq!(debt(&fair_share, "one"), before);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_owes_more_than_a_minute() {
        let fair_share = FairShare::new();
        work(&fair_share, "one", 100, Duration::from_secs(300)).await;
        let client = ClientKey::of("one");
        assert_eq!(debt(&fair_share, "one"), LONGEST_DEBT);
        assert!(!fair_share.is_light(client));
        advance(Duration::from_secs(60)).await;
        assert!(fair_share.is_light(client));
    }

    #[tokio::test(start_paused = true)]
    async fn one_long_request_does_not_forgive_everybody() {
        let fair_share = FairShare::new();
        usual(&fair_share, Duration::from_millis(100)).await;
        work(&fair_share, "watcher", 1, Duration::from_secs(3600)).await;
        work(&fair_share, "one", 100, Duration::from_secs(10)).await;
        assert!(!fair_share.is_light(ClientKey::of("one")));
    }
}
