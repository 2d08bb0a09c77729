//! Accounts of the working time that each client has used beyond its fair share of the permits.

use palisade_core::ClientKey;
use palisade_guard::{Clock, Table};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Debts of permit time: GCRA over working microseconds. A client pays back one microsecond of
/// working time per microsecond, which is what one permit uses. A request charges its client the
/// mean of all requests when it starts, and the difference when it has ended. A client that uses
/// two or more permits therefore gets into debt, and a client that uses one does not.
///
/// If requests are usually quick, the charge in advance is small, and debts show only when the work
/// is done. Clients that hold two permits now are therefore counted as well.
#[derive(Debug)]
pub(crate) struct FairShare {
    debts: Table,
    clock: Clock,
    /// The running mean of a request's working time, in microseconds.
    mean_micros: AtomicU64,
    /// The number of charged requests that each client has at work. No more entries than permits.
    working_requests: Mutex<HashMap<ClientKey, u32>>,
}

/// The charge of one request.
#[derive(Debug)]
pub(crate) struct Charge {
    client: ClientKey,
    /// When the current period of work began.
    since_micros: u64,
    /// The client's debt for work that this request has not done yet.
    prepaid_micros: u64,
    worked_micros: u64,
}

/// Number of clients remembered: a table of 512 KiB.
const MAX_CLIENTS: usize = 1 << 16;

/// The maximum debt, one minute: after this time without requests a client has no debt left,
/// whatever it used.
const MAX_DEBT_MICROS: u64 = 60_000_000;

/// A client that holds at least this many permits is heavy, whatever it owes.
const MIN_HEAVY_PERMITS: u32 = 2;

/// The longest working time that enters the mean. Otherwise the end of a single request of several
/// hours would make all clients light.
const MAX_MEAN_SAMPLE_MICROS: u64 = MAX_DEBT_MICROS / 4;

/// A request contributes one part in this many to the mean.
const MEAN_WEIGHT_DIVISOR: u64 = 16;

impl FairShare {
    pub(crate) fn new() -> Self {
        Self {
            debts: Table::new(MAX_CLIENTS),
            clock: Clock::new(),
            mean_micros: AtomicU64::new(0),
            working_requests: Mutex::default(),
        }
    }

    /// Whether `client` may take one of the permits for light clients.
    pub(crate) fn is_light(&self, client: ClientKey) -> bool {
        let debt = self.debts.debt(client, self.clock.now(), MAX_DEBT_MICROS);
        debt <= self.mean_micros.load(Relaxed)
            && self
                .working_requests
                .lock()
                .get(&client)
                .is_none_or(|permits| *permits < MIN_HEAVY_PERMITS)
    }

    /// Charges `client` for a request that starts.
    pub(crate) fn start(&self, client: ClientKey) -> Charge {
        let now = self.clock.now();
        let mean = self.mean_micros.load(Relaxed);
        let charge = |debt: u64| {
            let new_debt = debt.saturating_add(mean).min(MAX_DEBT_MICROS);
            Ok::<_, ()>((new_debt.saturating_sub(debt), new_debt))
        };
        // `None` after a thousand lost races: this request is not charged in advance.
        let prepaid = self.debts.update(client, now, MAX_DEBT_MICROS, charge);
        self.count_working(client);
        Charge {
            client,
            since_micros: now,
            prepaid_micros: prepaid.and_then(Result::ok).unwrap_or(0),
            worked_micros: 0,
        }
    }

    /// Records that the request works again.
    pub(crate) fn resume(&self, charge: &mut Charge) {
        charge.since_micros = self.clock.now();
        self.count_working(charge.client);
    }

    /// Records that the request has stopped working, until it resumes or for good.
    pub(crate) fn pause(&self, charge: &mut Charge) {
        self.count_stopped(charge.client);
        let worked = self.clock.now().saturating_sub(charge.since_micros);
        charge.worked_micros = charge.worked_micros.saturating_add(worked);
        // Settle as of the time when the work began, so that the time it took has paid for one
        // permit.
        let max_debt = MAX_DEBT_MICROS.saturating_add(worked);
        let prepaid = charge.prepaid_micros;
        let settle = |debt: u64| {
            Ok::<_, ()>((
                (),
                debt.saturating_add(worked)
                    .saturating_sub(prepaid)
                    .min(max_debt),
            ))
        };
        let _ = self
            .debts
            .update(charge.client, charge.since_micros, max_debt, settle);
        charge.prepaid_micros = 0;
    }

    /// Adds the working time of a request that has ended to the mean.
    pub(crate) fn finish(&self, charge: &Charge) {
        // One of two requests that end at the same time may be lost: this is a mean, not a count.
        let mean = self.mean_micros.load(Relaxed);
        let rest = mean.saturating_sub(mean / MEAN_WEIGHT_DIVISOR);
        let worked = charge.worked_micros.min(MAX_MEAN_SAMPLE_MICROS);
        self.mean_micros
            .store(rest.saturating_add(worked / MEAN_WEIGHT_DIVISOR), Relaxed);
    }

    fn count_working(&self, client: ClientKey) {
        let mut working_requests = self.working_requests.lock();
        let permits = working_requests.entry(client).or_default();
        *permits = permits.saturating_add(1);
    }

    fn count_stopped(&self, client: ClientKey) {
        if let Entry::Occupied(mut permits) = self.working_requests.lock().entry(client) {
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

    /// Sets the mean to about `length`.
    async fn set_mean(fair_share: &FairShare, length: Duration) {
        for _ in 0..200 {
            work(fair_share, "other", 1, length).await;
        }
    }

    /// Runs `requests` concurrent requests of `client` for `length`.
    async fn work(fair_share: &FairShare, client: &str, requests: usize, length: Duration) {
        let mut charges: Vec<_> = (0..requests)
            .map(|_| fair_share.start(ClientKey::of(client)))
            .collect();
        advance(length).await;
        for charge in &mut charges {
            fair_share.pause(charge);
            fair_share.finish(charge);
        }
    }

    fn debt(fair_share: &FairShare, client: &str) -> u64 {
        fair_share.debts.debt(
            ClientKey::of(client),
            fair_share.clock.now(),
            MAX_DEBT_MICROS,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_one_permit_is_light_and_with_two_is_heavy() {
        let fair_share = FairShare::new();
        set_mean(&fair_share, Duration::from_millis(100)).await;
        let client = ClientKey::of("one");
        let mut first = fair_share.start(client);
        assert!(fair_share.is_light(client));
        let mut second = fair_share.start(client);
        assert!(!fair_share.is_light(client));
        advance(Duration::from_millis(200)).await;
        // The charge in advance is paid back, but the client holds two permits.
        assert!(!fair_share.is_light(client));
        fair_share.pause(&mut second);
        assert!(fair_share.is_light(client));
        fair_share.resume(&mut second);
        assert!(!fair_share.is_light(client));
        for charge in [&mut first, &mut second] {
            fair_share.pause(charge);
        }
        // The client holds no permit, and owes the work of one.
        assert!(!fair_share.is_light(client));
        advance(Duration::from_millis(200)).await;
        assert!(fair_share.is_light(client));
        assert!(fair_share.working_requests.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_uses_one_permit_continuously_owes_nothing() {
        let fair_share = FairShare::new();
        set_mean(&fair_share, Duration::from_millis(100)).await;
        for seconds in [2, 2, 600, 2] {
            work(&fair_share, "one", 1, Duration::from_secs(seconds)).await;
            assert_eq!(debt(&fair_share, "one"), 0);
            assert!(fair_share.is_light(ClientKey::of("one")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_beyond_one_permit_is_owed_and_waiting_is_not() {
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
    async fn requests_that_do_nothing_do_not_reduce_a_debt() {
        let fair_share = FairShare::new();
        set_mean(&fair_share, Duration::from_millis(500)).await;
        work(&fair_share, "one", 100, Duration::from_secs(30)).await;
        let before = debt(&fair_share, "one");
        assert_eq!(before, MAX_DEBT_MICROS);
        work(&fair_share, "one", 130, Duration::ZERO).await;
        assert_eq!(debt(&fair_share, "one"), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_is_at_most_one_minute() {
        let fair_share = FairShare::new();
        work(&fair_share, "one", 100, Duration::from_secs(300)).await;
        let client = ClientKey::of("one");
        assert_eq!(debt(&fair_share, "one"), MAX_DEBT_MICROS);
        assert!(!fair_share.is_light(client));
        advance(Duration::from_secs(60)).await;
        assert!(fair_share.is_light(client));
    }

    #[tokio::test(start_paused = true)]
    async fn one_long_request_does_not_make_all_clients_light() {
        let fair_share = FairShare::new();
        set_mean(&fair_share, Duration::from_millis(100)).await;
        work(&fair_share, "long", 1, Duration::from_secs(3600)).await;
        work(&fair_share, "one", 100, Duration::from_secs(10)).await;
        assert!(!fair_share.is_light(ClientKey::of("one")));
    }
}
