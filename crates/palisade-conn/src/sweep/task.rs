//! The sweeper task of one runtime.

use super::{
    cut::MemoryCut,
    handle::{Bell, STALE_TIMEOUT, SweepPermit},
    policy::{
        Action, SweepTime, evaluate,
        quiet::{forgiven_cancellations, is_kept_idle, is_quiet},
    },
    scaled_timeouts::under_pressure,
    state::{CLOSE_PENDING_PHASE, SweepState},
};
use crate::{
    connection::{
        ConnHandle,
        registry::{Found, SHARDS},
        state::ConnState,
    },
    eviction::{
        self,
        queue::Selection,
        rank::{EvictionRank, is_newcomer},
    },
    guard::{
        close::{announce, close},
        limits::Limits,
        shared::Shared,
    },
    log,
};
use palisade_core::{Mode, Reason};
use std::{
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};
use tokio::{
    runtime::{Handle, Id},
    time::{Instant, sleep_until, timeout_at},
};

/// A sweep that is later than two ticks and this time shows that the process stalled.
const STALL_TIMEOUT: Duration = Duration::from_millis(500);
/// The shortest time between two sweeps, however urgent.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// How often a sweeper asks whether memory that is short has grown, which makes a sweep urgent.
const GROWTH_INTERVAL: Duration = Duration::from_millis(25);
/// A connection that was asked to close and is still open after this time counts as one that
/// stays.
const STUCK_MILLIS: u32 = 5000;

/// A running task. When it is dropped, also because its runtime ended, another task becomes the
/// leader, or the next connection starts one.
struct Running {
    shared: Weak<Shared>,
    runtime: Id,
    number: u64,
}

/// What one sweep has in common for all connections.
struct Sweep<'a> {
    shared: &'a Shared,
    limits: &'a Limits,
    now: u64,
    passed: u64,
    /// Whether no connection is closed, because the sweep is late.
    forgives: bool,
    /// Early cancellations that are forgiven since the previous sweep.
    forgiven_cancellations: u16,
    /// How many idle connections one client may keep.
    max_kept_idle: Option<u32>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    all: u32,
    newcomers: u32,
    /// Connections that send and whose requests are not reported.
    untracked: usize,
    some_are_tracked: bool,
    clients: u32,
    /// Idle connections of the present client that are kept for later.
    kept_idle: u32,
}

/// Ensures that a task of this runtime sweeps a new connection, perhaps the `first` one.
pub(crate) fn watch(shared: &Arc<Shared>, first: bool) {
    static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
    let Ok(handle) = Handle::try_current() else {
        return;
    };
    let runtime = handle.id();
    if let Some(bell) = shared.sweeper.register(runtime, first) {
        if let Some(load) = &shared.totals.memory.runtime {
            load.watch(&handle);
        }
        let running = Running {
            shared: Arc::downgrade(shared),
            runtime,
            number: NEXT_NUMBER.fetch_add(1, Relaxed),
        };
        handle.spawn(run(running, bell));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.sweeper.unregister(self.runtime, self.number);
        }
    }
}

/// Sweeps until the guard and its connections are gone. While there is no connection there is no
/// timer.
async fn run(running: Running, bell: Arc<Bell>) {
    let mut found = Vec::new();
    let mut last = Instant::now();
    let mut is_leader = true;
    if let Some(shared) = running.shared.upgrade()
        && !shared.sweeper.has_leader()
    {
        shared.sweeper.skip_to(shared.now());
    }
    loop {
        let Some(shared) = running.shared.upgrade() else {
            return;
        };
        let has_connections = shared.open.load(SeqCst) > 0;
        let tick = shared.limits.tick;
        drop(shared);
        if !has_connections {
            bell.rung().await;
            last = Instant::now();
            if let Some(shared) = running.shared.upgrade() {
                shared.sweeper.skip_to(shared.now());
            }
            continue;
        }
        let pause = if is_leader {
            tick
        } else {
            tick + STALE_TIMEOUT
        };
        loop {
            let shared = running.shared.upgrade().filter(|_| is_leader);
            let Some(wait) = wait(shared.as_deref(), last, last + pause) else {
                break;
            };
            drop(shared);
            let is_rung = timeout_at(wait, bell.rung()).await.is_ok();
            let is_urgent = is_leader && bell.is_urgent();
            if is_rung && (is_urgent || running.shared.strong_count() == 0) {
                sleep_until(last + MIN_SWEEP_INTERVAL.min(tick)).await;
                break;
            }
        }
        bell.clear();
        last = Instant::now();
        let Some(shared) = running.shared.upgrade() else {
            return;
        };
        let now = shared.now();
        is_leader = shared.sweeper.is_led_by(running.number, now, tick);
        if is_leader {
            let max_delay = (2 * tick + STALL_TIMEOUT).as_millis();
            let max_delay = u64::try_from(max_delay).unwrap_or(u64::MAX);
            let (passed, forgives) = shared.sweeper.begin(now, max_delay);
            is_leader = sweep(&shared, running.number, passed, forgives, &mut found).await;
        }
    }
}

/// Returns until when the bell is awaited after a sweep at `last`, at most until the next sweep is
/// `due`. `None` means that this begins now.
fn wait(shared: Option<&Shared>, last: Instant, due: Instant) -> Option<Instant> {
    let now = Instant::now();
    let wait = match shared.and_then(Shared::needs_sweep_for_memory) {
        Some(true) => due.min(last + GROWTH_INTERVAL),
        Some(false) => due.min(now + GROWTH_INTERVAL),
        None => due,
    };
    (now < wait).then_some(wait)
}

/// Looks at every connection once. Returns `false` if another task became the leader meanwhile.
async fn sweep(
    shared: &Shared,
    number: u64,
    passed: u64,
    forgives: bool,
    found: &mut Vec<Found>,
) -> bool {
    let now = shared.now();
    shared.totals.set_time(now as u32);
    if let Some(load) = &shared.totals.memory.runtime {
        load.set_in_flight(shared.totals.in_flight());
    }
    shared.marks.add(shared.mark(now));
    let open = shared.open.load(Relaxed);
    let limits = under_pressure(&shared.limits, shared.pressure());
    let mut sweep = Sweep {
        shared,
        limits: &limits,
        now,
        passed,
        forgives,
        forgiven_cancellations: forgiven_cancellations(now, passed),
        max_kept_idle: limits.keep_alive_at(open),
        counts: Counts::default(),
    };
    // Candidates are looked for in good time before one is evicted.
    let is_near_cap = open >= limits.soft() / 4 * 3 || shared.evicts_for_memory();
    let memory = shared.totals.memory.memory.as_ref();
    // What the clients sent during a stall has not been read yet, and is no attack.
    let memory = memory.filter(|_| !forgives);
    let growth = memory.and_then(|memory| shared.memory_growth.since_last_sweep(memory, now));
    let mut cut = growth.map(MemoryCut::new);
    let mut candidates = Selection::default();
    let were_many_newcomers = shared.many_newcomers.load(Relaxed);
    for shard in 0..SHARDS {
        let Some(permit): Option<SweepPermit<'_>> = shared.sweeper.permit(number) else {
            return false;
        };
        shared.registry.copy(shard, found);
        if is_near_cap && let Some(shares) = limits.least_shares() {
            let has_share =
                |conn: &ConnHandle| conn.known_client().is_some() && !shared.is_reserved_for(conn);
            shared.registry.mark_excess(shard, found, shares, has_share);
        }
        if let Some(cut) = &mut cut {
            cut.look_at(shared, found);
        }
        for one in found.drain(..) {
            if sweep.look_at(&one) && is_near_cap {
                offer(shared, &one, now, were_many_newcomers, &mut candidates);
            }
        }
        drop(permit);
        // Let other tasks run between two shards.
        tokio::task::yield_now().await;
    }
    if let Some(cut) = cut {
        cut.finish(shared);
    }
    let Counts {
        all,
        newcomers,
        untracked,
        some_are_tracked,
        clients,
        ..
    } = sweep.counts;
    let timeout = limits.first_request;
    if shared
        .untracked
        .is_due(now, timeout, some_are_tracked, untracked)
    {
        log::untracked(&shared.recorder, untracked);
    }
    let many_newcomers = newcomers > all / 2;
    shared.many_newcomers.store(many_newcomers, Relaxed);
    shared.totals.memory.clients.store(clients, Relaxed);
    if many_newcomers != were_many_newcomers {
        candidates.clear(); // They were ranked by the other rule.
    }
    shared.candidates.replace(candidates);
    true
}

/// Offers a connection for eviction. One above the share of its client or network is evicted
/// whatever it does, the least useful first.
fn offer(shared: &Shared, one: &Found, now: u64, many_newcomers: bool, candidates: &mut Selection) {
    let age = now.saturating_sub(one.opened);
    let rank = eviction::rank(shared, &one.conn, age, many_newcomers);
    let is_excess = one.is_excess && one.conn.state().decision().is_none();
    let rank = if is_excess {
        Some(EvictionRank::above_share(rank, age))
    } else {
        rank
    };
    if let Some(rank) = rank {
        candidates.offer(rank, one.opened, &one.conn);
    }
}

impl Sweep<'_> {
    /// Evaluates one connection, and does what has to be done. Returns `false` if a close was
    /// decided before.
    #[inline(always)]
    fn look_at(&mut self, one: &Found) -> bool {
        let Found {
            conn,
            opened,
            is_newest,
            ..
        } = one;
        if *is_newest {
            self.counts.kept_idle = 0; // The first connection of the next client.
            self.counts.clients += 1;
        }
        let (state, age) = (conn.state(), self.now.saturating_sub(*opened));
        // The common case: it loads no more than it compares.
        let quiet = state.idle_stats().and_then(|stats| {
            let kept = state.sweep_state();
            is_quiet(self.limits, self.now, age, &stats, &kept)
                .then(|| is_kept_idle(&kept, self.now))
        });
        let is_kept_idle = if let Some(is_kept_idle) = quiet {
            self.counts.some_are_tracked = true;
            is_kept_idle
        } else if state.decision().is_some() {
            if is_stuck(state, self.now) && state.take_close_pending() {
                self.shared.close_pending.fetch_sub(1, Relaxed);
            }
            return false;
        } else {
            is_kept_idle(&self.evaluate(conn, *opened), self.now)
        };
        if is_kept_idle {
            self.limit_kept_idle(conn);
        }
        self.counts.all += 1;
        true
    }

    /// Evaluates a connection on which something happens, and returns its new state.
    #[inline(never)]
    fn evaluate(&mut self, conn: &ConnHandle, opened: u64) -> SweepState {
        let state = conn.state();
        let (stats, closing) = (state.take_stats(), state.closing());
        let age = self.now.saturating_sub(opened);
        self.counts.some_are_tracked |= stats.tracked;
        self.counts.untracked += usize::from(!stats.tracked && stats.read > 0);
        self.counts.newcomers += u32::from(is_newcomer(&stats, age));
        let time = SweepTime {
            now: self.now,
            passed: self.passed,
            opened,
            due_age: self.limits.due(conn.id()),
            max_kept_idle: self.max_kept_idle,
        };
        let kept = state.sweep_state();
        let (kept, action) = evaluate(self.limits, time, &stats, closing, kept);
        state.store_sweep_state(kept);
        if kept.since == self.now as u32 {
            // Also if it has not answered: the answer would count for the next silence.
            state.clear_looked();
        }
        if stats.early > 0 {
            state.forgive_early(self.forgiven_cancellations);
        }
        let is_enforced = self.limits.mode == Mode::Enforce;
        match action {
            // What the clients sent during the stall has not been read yet.
            Action::Close(_) | Action::Announce(_) if self.forgives => {}
            Action::Close(request) => _ = close(self.shared, conn, request),
            Action::EndLingering => state.end_lingering(),
            Action::AskWriter => state.ask_writer(),
            Action::AskReader => state.ask_reader(),
            Action::Announce(request) => announce(self.shared, conn, request),
            Action::BeginClosing(reason) if is_enforced => _ = state.begin_closing(reason),
            Action::Probe if is_enforced => state.probe(),
            Action::Keep | Action::BeginClosing(_) | Action::Probe => {}
        }
        kept
    }

    /// Lets an idle connection take no more requests if its client keeps too many.
    #[inline(always)]
    fn limit_kept_idle(&mut self, conn: &ConnHandle) {
        let state = conn.state();
        let Some(max) = self.max_kept_idle else {
            return;
        };
        if state.closing().is_some() || conn.is_proxy() {
            return;
        }
        self.counts.kept_idle += 1;
        if self.counts.kept_idle > max && self.limits.mode == Mode::Enforce {
            state.begin_closing(Reason::KeepAlivePerClient);
            // It has its time from now on, for its client to be told.
            state.store_sweep_state(SweepState {
                since: self.now as u32,
                ..state.sweep_state()
            });
        }
    }
}

/// Returns whether a connection that was asked to close has stayed open for so long that it may
/// never close: an upgraded socket that its task does not poll cannot be closed.
fn is_stuck(state: &ConnState, now: u64) -> bool {
    let kept = state.sweep_state();
    if kept.phase != CLOSE_PENDING_PHASE {
        state.store_sweep_state(SweepState {
            phase: CLOSE_PENDING_PHASE,
            since: now as u32,
            ..kept
        });
        return false;
    }
    (now as u32).wrapping_sub(kept.since) >= STUCK_MILLIS
}
