//! What an operator sees in the middle of an attack.

use crate::{CapFrom, guard::Shared, judge::phase, registry::SHARDS};
use palisade_core::{ClientKey, ConnInfo, ConnStats, Mode, Phase, Reason, Violation};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    ops::AddAssign,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use tokio::time::Instant;

/// So many endings are remembered.
const KILLS: usize = 1000;
/// So many clients, and so many networks, are named.
const HOLDERS: usize = 10;
/// Newcomers are counted over so long.
const WINDOW_MILLIS: u64 = 10_000;
/// At the most so often what was counted is kept.
const MARK_MILLIS: u64 = 1000;
/// So many there are at the most.
const MARKS: usize = (WINDOW_MILLIS / MARK_MILLIS) as usize + 2;

/// A connection that was ended or not let in, or would have been.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct ClosedConn {
    /// When.
    pub at: Instant,
    /// The number of the connection, [`ConnInfo::id`].
    pub conn: u64,
    /// The other end. For logs, never for labels.
    pub peer: SocketAddr,
    /// Why.
    pub reason: Reason,
    /// What it was at.
    pub phase: Phase,
    /// Whether it was done or only told.
    pub mode: Mode,
    /// What is allowed, in [`Reason::unit`].
    pub limit: u64,
    /// What was seen, in [`Reason::unit`].
    pub observed: u64,
    /// Bytes taken from the client.
    pub read: u64,
    /// Bytes that the kernel took for the client.
    pub written: u64,
    /// Request heads.
    pub requests: u32,
}

/// The last [`KILLS`] of them.
#[derive(Debug, Default)]
pub(crate) struct RecentlyClosed(Mutex<VecDeque<ClosedConn>>);

/// What was counted by `at`, in milliseconds of the guard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) at: u64,
    pub(crate) opened: u64,
    pub(crate) refused: u64,
}

/// The marks of the last [`WINDOW_MILLIS`], and one before them.
#[derive(Debug)]
pub(crate) struct Marks(Mutex<VecDeque<Mark>>);

/// What connections do in a second: of each its mean since it was opened, of all of them the sum.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ConnRates {
    /// Request heads.
    pub requests: f64,
    /// Bytes taken from the clients.
    pub read: f64,
    /// Bytes that the kernel took for them.
    pub written: f64,
}

/// What one client, or one network, holds.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub struct ConnHolder {
    /// Who that is: the first address of the block. For logs, never for labels.
    pub who: ClientKey,
    /// How many connections.
    pub connections: usize,
    /// Requests on these since they were opened.
    pub requests: u64,
    /// Bytes taken from the client on these since they were opened.
    pub read: u64,
    /// Bytes that the kernel took for the client on these since they were opened.
    pub written: u64,
    /// The same in a second.
    pub per_second: ConnRates,
}

/// Everybody who holds something, by key.
#[derive(Default)]
struct Holders(HashMap<ClientKey, ConnHolder>);

/// Who is connected. Bounded: numbers, and the ten clients and ten networks with the most
/// connections.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ConnSnapshot {
    /// Connections that are open, those among them that are told to go included.
    pub open: usize,
    /// Those that are told to go and have not gone yet.
    pub going: usize,
    /// The limit on [`Self::open`].
    pub limit: usize,
    /// What that was worked out from.
    pub limit_from: CapFrom,
    /// How hard it is going, from 0 to 1: see [under pressure](crate#under-pressure).
    pub pressure: f32,
    /// Connections let in since the start.
    pub opened: u64,
    /// The same per second, over the last ten seconds.
    pub opened_per_second: f64,
    /// Connections not let in since the start.
    pub refused: u64,
    /// The same per second, over the last ten seconds.
    pub refused_per_second: f64,
    /// What those that are open do.
    pub per_second: ConnRates,
    /// How many are at what. Phases without any are left out.
    pub phases: Vec<(Phase, usize)>,
    /// The ten clients with the most connections, the most first.
    pub clients: Vec<ConnHolder>,
    /// The ten clients with the most requests on connections that are open, the most first.
    pub busiest: Vec<ConnHolder>,
    /// The ten networks (the blocks of [`max_per_network`](crate::ConnGuardBuilder::max_per_network))
    /// with the most connections, the most first.
    pub networks: Vec<ConnHolder>,
    /// How many clients there are.
    pub distinct_clients: usize,
    /// The age of the oldest connection.
    pub oldest: Duration,
    /// The age that half of them have not reached.
    pub median_age: Duration,
    /// Requests in flight on all of them, and of connections that are gone while a handler is not.
    pub in_flight: u64,
    /// How many of them count as upgraded.
    pub upgraded: usize,
    /// How many have nobody who tells the guard of their requests.
    pub untracked: usize,
    /// Failures to accept.
    pub accept_errors: AcceptErrorCounts,
}

/// How often accepting failed, by what was done about it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptErrorCounts {
    /// The connection was gone before it was here; the next one was accepted at once.
    pub of_one_connection: u64,
    /// No files or memory were left; accepting paused for 10 to 100 ms.
    pub exhausted: u64,
    /// Anything else; the same pause.
    pub other: u64,
}

// === ClosedConn ===

impl ClosedConn {
    pub(crate) fn new(violation: &Violation, mode: Mode, conn: &ConnInfo) -> Self {
        let sample = conn.state().sample();
        Self {
            at: Instant::now(),
            conn: conn.id(),
            peer: conn.peer(),
            reason: violation.reason,
            phase: violation.phase,
            mode,
            limit: violation.limit,
            observed: violation.observed,
            read: sample.read,
            written: sample.written,
            requests: sample.requests,
        }
    }
}

// === RecentlyClosed ===

impl RecentlyClosed {
    pub(crate) fn add(&self, kill: ClosedConn) {
        let mut kills = self.0.lock();
        if kills.len() >= KILLS {
            kills.pop_front();
        }
        kills.push_back(kill);
    }

    pub(crate) fn recent(&self) -> Vec<ClosedConn> {
        self.0.lock().iter().copied().collect()
    }
}

// === Marks ===

impl Default for Marks {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(MARKS)))
    }
}

impl Marks {
    /// Keeps `mark`, unless the latest one is hardly older.
    pub(crate) fn add(&self, mark: Mark) {
        let mut marks = self.0.lock();
        if marks
            .back()
            .is_some_and(|last| mark.at < last.at + MARK_MILLIS)
        {
            return;
        }
        while marks
            .get(1)
            .is_some_and(|second| second.at + WINDOW_MILLIS <= mark.at)
        {
            marks.pop_front();
        }
        marks.push_back(mark);
    }

    /// How many a second were let in and how many not, by what is counted `now`, where a mark may
    /// come every `tick` of milliseconds.
    fn per_second(&self, now: Mark, tick: u64) -> (f64, f64) {
        let marks = self.0.lock();
        let is_old = |mark: &&Mark| mark.at + WINDOW_MILLIS <= now.at;
        // The guard began with nothing.
        let then = marks.iter().rev().find(is_old).copied().unwrap_or_default();
        // Marks are missing while nobody is there, and then nothing is counted.
        let longest = WINDOW_MILLIS + MARK_MILLIS.max(tick);
        let seconds = (now.at - then.at).clamp(MARK_MILLIS, longest) as f64 / 1000.0;
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (
            rate(now.opened, then.opened),
            rate(now.refused, then.refused),
        )
    }
}

// === ConnRates ===

impl ConnRates {
    fn of(sample: &ConnStats, age_millis: u64) -> Self {
        // Nobody has done anything for long who has just come.
        let seconds = age_millis.max(1000) as f64 / 1000.0;
        Self {
            requests: f64::from(sample.requests) / seconds,
            read: sample.read as f64 / seconds,
            written: sample.written as f64 / seconds,
        }
    }
}

impl AddAssign for ConnRates {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.read += other.read;
        self.written += other.written;
    }
}

// === Holders ===

impl Holders {
    fn add(&mut self, who: ClientKey, sample: &ConnStats, rates: ConnRates) {
        let nothing = ConnHolder {
            who,
            connections: 0,
            requests: 0,
            read: 0,
            written: 0,
            per_second: ConnRates::default(),
        };
        let holds = self.0.entry(who).or_insert(nothing);
        holds.connections += 1;
        holds.requests += u64::from(sample.requests);
        holds.read = holds.read.saturating_add(sample.read);
        holds.written = holds.written.saturating_add(sample.written);
        holds.per_second += rates;
    }

    /// Those with the most of something, the most first.
    fn most<T: Ord>(&self, of: impl Fn(&ConnHolder) -> T) -> Vec<ConnHolder> {
        let mut all: Vec<_> = self.0.values().copied().collect();
        all.sort_unstable_by_key(|holds| Reverse(of(holds)));
        all.truncate(HOLDERS);
        all
    }
}

// === ConnSnapshot ===

impl ConnSnapshot {
    pub(crate) fn take(shared: &Shared) -> Self {
        let now = shared.now();
        let mut found = Vec::new();
        (0..SHARDS).for_each(|shard| shared.registry.copy(shard, &mut found));
        let mut phases = [0; Phase::ALL.len()];
        let (mut clients, mut networks) = (Holders::default(), Holders::default());
        let mut untracked = 0;
        let mut per_second = ConnRates::default();
        let mut ages = Vec::with_capacity(found.len());
        for one in &found {
            let sample = one.conn.state().sample();
            let age = now.saturating_sub(one.opened);
            let rates = ConnRates::of(&sample, age);
            phases[phase(&sample) as usize] += 1;
            untracked += usize::from(!sample.tracked);
            per_second += rates;
            ages.push(age);
            clients.add(one.conn.client(), &sample, rates);
            networks.add(shared.registry.network_of(&one.conn), &sample, rates);
        }
        ages.sort_unstable();
        let age = |at: usize| Duration::from_millis(ages.get(at).copied().unwrap_or(0));
        let distinct_clients = clients.0.len();
        let mark = shared.mark(now);
        let (opened_per_second, refused_per_second) =
            shared.marks.per_second(mark, shared.limits.tick_millis());
        let phases = Phase::ALL
            .iter()
            .copied()
            .zip(phases)
            .filter(|(_, count)| *count > 0);
        Self {
            open: shared.open.load(Relaxed),
            going: shared.going.load(Relaxed),
            limit: shared.limits.connections,
            limit_from: shared.limits.connections_from,
            pressure: shared.pressure(),
            opened: mark.opened,
            opened_per_second,
            refused: mark.refused,
            refused_per_second,
            per_second,
            phases: phases.collect(),
            clients: clients.most(|holds| (holds.connections, holds.requests)),
            busiest: clients.most(|holds| (holds.requests, holds.connections)),
            networks: networks.most(|holds| (holds.connections, holds.requests)),
            distinct_clients,
            oldest: age(ages.len().saturating_sub(1)),
            median_age: age(ages.len() / 2),
            in_flight: shared.totals.in_flight() as u64,
            upgraded: shared.totals.upgraded(),
            untracked,
            accept_errors: AcceptErrorCounts {
                of_one_connection: shared.errors.of_one.load(Relaxed),
                exhausted: shared.errors.exhausted.load(Relaxed),
                other: shared.errors.other.load(Relaxed),
            },
        }
    }

    /// How many connections are at `phase`.
    pub fn at(&self, phase: Phase) -> usize {
        self.phases
            .iter()
            .find(|(at, _)| *at == phase)
            .map_or(0, |(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::{Guard, Prefix};

    #[test]
    fn newcomers_are_counted_over_the_last_ten_seconds() {
        let marks = Marks::default();
        let at = |at, opened| Mark {
            at,
            opened,
            refused: opened / 2,
        };
        assert_eq!(marks.per_second(at(100, 5), 250), (5.0, 2.0));
        assert_eq!(marks.per_second(at(5000, 50), 250), (10.0, 5.0));
        // Ten a second, and from the hundredth second on a hundred.
        let opened = |millis: u64| millis / 100 + millis.saturating_sub(100_000) / 100 * 9;
        for millis in (0..=120_000).step_by(250) {
            marks.add(at(millis, opened(millis)));
            if millis >= 15_000 {
                let (per_second, _) = marks.per_second(at(millis, opened(millis)), 250);
                let steady = if millis < 100_000 { 10.0 } else { 100.0 };
                let is_new = (100_000..112_000).contains(&millis);
                assert!(
                    is_new || (per_second - steady).abs() < 1.0,
                    "{millis} {per_second}"
                );
            }
        }
        assert!(marks.0.lock().len() <= MARKS);
        // Nobody was there for an hour, and then many.
        let hour = 3_720_000;
        marks.add(at(hour, opened(120_000) + 1100));
        assert_eq!(
            marks.per_second(at(hour, opened(120_000) + 1100), 250).0,
            100.0
        );

        // Looks that are rare are not taken for more than that.
        let marks = Marks::default();
        (0..=60_000)
            .step_by(10_000)
            .for_each(|millis| marks.add(at(millis, millis / 100)));
        assert_eq!(marks.per_second(at(69_000, 690), 10_000).0, 10.0);
    }

    #[test]
    fn only_the_latest_thousand_are_remembered() {
        let kills = RecentlyClosed::default();
        let conn = ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default());
        for observed in 0..2500 {
            let (guard, reason) = (Guard::Connection, Reason::Idle);
            let violation = Violation::new(guard, reason, Phase::Idle, 1, observed);
            kills.add(ClosedConn::new(&violation, Mode::Enforce, &conn));
        }
        let recent = kills.recent();
        assert_eq!(recent.len(), KILLS);
        assert_eq!(recent.last().map(|kill| kill.observed), Some(2499));
        assert!(kills.0.lock().capacity() < 2 * KILLS);
    }
}
