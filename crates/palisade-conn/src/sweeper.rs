//! The one task that looks at every connection from time to time.

use crate::{
    guard::{Shared, Spared},
    judge::{
        EXCESS, Finding, RELUCTANT, Rank, When, forgiven, is_kept, is_newcomer, is_quiet, judge,
    },
    registry::{Found, SHARDS},
    say,
    strain::under,
};
use palisade_core::{ConnInfo, ConnState, IdleStats, Mode, Reason, SweepState};
use parking_lot::Mutex;
use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    runtime::{Handle, Id},
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

/// So many connections that can be spared are kept ready.
pub(crate) const SPARED: usize = 64;
/// A look that is so much later than two ticks tells of a stall of ours, and ends nobody.
const STALL: Duration = Duration::from_millis(500);
/// It is never hurried into looking more often than this.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);

/// A look that is so much later than four ticks is another runtime's to make.
const STALE: Duration = Duration::from_secs(1);

/// A connection that was told to go and is still here after so long counts as one that stays.
const STUCK_MILLIS: u32 = 5000;

/// What the guard knows of its sweeper: one task in each runtime that accepts connections, one of
/// which looks. The others stand by, because a runtime may be blocked in a handler, or end.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    tasks: Mutex<Vec<Watcher>>,
    /// The number of the task that looks; 0 if none does.
    leader: AtomicU64,
    /// The latest look, in milliseconds of the guard.
    looked: AtomicU64,
    /// The latest look ended no connection, because it came late.
    forgave: AtomicBool,
    /// Set while connections are looked at, because what is kept of them is for one task only.
    is_looking: AtomicBool,
}

/// The task of one runtime.
#[derive(Debug)]
struct Watcher {
    runtime: Id,
    bell: Arc<Bell>,
}

/// Rung for a first connection, for more that can be spared, and for the end.
#[derive(Debug, Default)]
struct Bell {
    notify: Notify,
    hurry: AtomicBool,
}

/// Since when clients send and nobody tells of a request, in milliseconds of the guard and one
/// more; 0 if that is not so.
#[derive(Debug, Default)]
pub(crate) struct Untold {
    since: AtomicU64,
    is_settled: AtomicBool,
}

/// The right to look at connections. See [`Sweeper::is_looking`].
struct Looking<'a>(&'a AtomicBool);

/// One task. Says on drop that it is gone, also if its runtime ended: then another one looks, or
/// the next connection starts one.
struct Running {
    shared: Weak<Shared>,
    runtime: Id,
    number: u64,
}

/// One who can be spared, in the order in which they go.
struct Candidate {
    rank: Rank,
    opened: u64,
    conn: Weak<ConnInfo>,
}

// === Sweeper ===

impl Sweeper {
    /// A connection was let in, perhaps `alone`. Starts the task of this runtime if there is none.
    pub(crate) fn watch(&self, shared: &Arc<Shared>, alone: bool) {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let Ok(handle) = Handle::try_current() else {
            return;
        };
        let runtime = handle.id();
        let mut tasks = self.tasks.lock();
        if !tasks.iter().any(|task| task.runtime == runtime) {
            let bell = Arc::<Bell>::default();
            tasks.push(Watcher {
                runtime,
                bell: bell.clone(),
            });
            let number = NUMBERS.fetch_add(1, Relaxed);
            let running = Running {
                shared: Arc::downgrade(shared),
                runtime,
                number,
            };
            drop(tasks);
            handle.spawn(run(running, bell));
        } else if alone {
            tasks.iter().for_each(|task| task.bell.notify.notify_one());
        }
    }

    /// There are few left that can be spared.
    pub(crate) fn hurry(&self) {
        for Watcher { bell, .. } in self.tasks.lock().iter() {
            if !bell.hurry.swap(true, Relaxed) {
                bell.notify.notify_one();
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.tasks
            .lock()
            .iter()
            .for_each(|task| task.bell.notify.notify_one());
    }

    /// Whether no runtime has a task, and none looks.
    #[cfg(test)]
    pub(crate) fn is_gone(&self) -> bool {
        let is_led = self.leader.load(SeqCst) != 0 || self.is_looking.load(SeqCst);
        self.tasks.lock().is_empty() && !is_led
    }

    /// Whether the task of this `number` is the one that looks `now`. It is from now on if the one
    /// that was has not looked for too long.
    fn is_led_by(&self, number: u64, now: u64, tick: Duration) -> bool {
        let leader = self.leader.load(SeqCst);
        if leader == number {
            return true;
        }
        let stale = u64::try_from((4 * tick + STALE).as_millis()).unwrap_or(u64::MAX);
        let is_stale = leader == 0 || now.saturating_sub(self.looked.load(SeqCst)) > stale;
        is_stale
            && self
                .leader
                .compare_exchange(leader, number, SeqCst, SeqCst)
                .is_ok()
    }
}

impl<'a> Looking<'a> {
    /// `None` if another task looks, or is to.
    fn by(sweeper: &'a Sweeper, number: u64) -> Option<Self> {
        let is_free = !sweeper.is_looking.swap(true, SeqCst);
        let looking = is_free.then(|| Self(&sweeper.is_looking))?;
        (sweeper.leader.load(SeqCst) == number).then_some(looking)
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let Sweeper { tasks, leader, .. } = &shared.sweeper;
        tasks.lock().retain(|task| task.runtime != self.runtime);
        let _ = leader.compare_exchange(self.number, 0, SeqCst, SeqCst);
    }
}

/// Ends when nothing is left of the guard. While there is no connection there is no timer.
async fn run(running: Running, bell: Arc<Bell>) {
    let mut found = Vec::new();
    let mut last = Instant::now();
    let mut leads = true;
    if let Some(shared) = running.shared.upgrade()
        && shared.sweeper.leader.load(SeqCst) == 0
    {
        shared.sweeper.looked.store(shared.now(), SeqCst);
    }
    loop {
        let Some(tick) = running
            .shared
            .upgrade()
            .map(|shared| (shared.open.load(SeqCst) > 0).then_some(shared.limits.tick))
        else {
            return;
        };
        let Some(tick) = tick else {
            bell.notify.notified().await;
            last = Instant::now();
            if let Some(shared) = running.shared.upgrade() {
                shared.sweeper.looked.store(shared.now(), SeqCst);
            }
            continue;
        };
        let pause = if leads { tick } else { tick + STALE };
        while timeout_at(last + pause, bell.notify.notified())
            .await
            .is_ok()
        {
            let is_hurried = leads && bell.hurry.load(Relaxed);
            if is_hurried || running.shared.strong_count() == 0 {
                sleep_until(last + AT_MOST_EVERY.min(tick)).await;
                break;
            }
        }
        bell.hurry.store(false, Relaxed);
        last = Instant::now();
        let Some(shared) = running.shared.upgrade() else {
            return;
        };
        let now = shared.now();
        leads = shared.sweeper.is_led_by(running.number, now, tick);
        if leads {
            let passed = now.saturating_sub(shared.sweeper.looked.swap(now, SeqCst));
            let late = u64::try_from((2 * tick + STALL).as_millis()).unwrap_or(u64::MAX);
            // Not twice in a row: a server that is always late still has to end connections.
            let forgives = passed > late && !shared.sweeper.forgave.load(Relaxed);
            shared.sweeper.forgave.store(forgives, Relaxed);
            leads = sweep(&shared, running.number, passed, forgives, &mut found).await;
        }
    }
}

/// Looks at every connection once, and ends none if it `forgives`. `false` if the task of this
/// `number` has been blocked meanwhile, and another one looks.
async fn sweep(
    shared: &Shared,
    number: u64,
    passed: u64,
    forgives: bool,
    found: &mut Vec<Found>,
) -> bool {
    let now = shared.now();
    let limits = &*under(&shared.limits, shared.pressure());
    let is_enforced = limits.mode == Mode::Enforce;
    shared.totals.set_time(now as u32);
    shared.marks.add(shared.mark(now));
    // Those who can be spared are looked for in good time before they are needed.
    let is_crowded = shared.open.load(Relaxed) >= shared.limits.soft() / 4 * 3;
    let mut best = BinaryHeap::with_capacity(if is_crowded { SPARED + 1 } else { 0 });
    let (mut is_told, mut untold) = (false, 0);
    let were_many = shared.many_newcomers.load(Relaxed);
    // A connection above the shares goes whatever it does, the readiest first.
    let rank = |conn: &ConnInfo, age: u64, is_excess: bool| {
        let rank = shared.rank(conn, age, were_many);
        match rank {
            Some((class, ..)) if class < EXCESS => rank,
            _ if !is_excess || conn.state().verdict().is_some() => rank,
            Some((class, _, oldest_first)) => Some((EXCESS, class.into(), oldest_first)),
            None => Some((EXCESS, u64::MAX, age)),
        }
    };
    let (mut newcomers, mut all) = (0u32, 0u32);
    let forgiven = forgiven(now, passed);
    let keep_alive = limits.keep_alive_at(shared.open.load(Relaxed));
    for shard in 0..SHARDS {
        let Some(looking) = Looking::by(&shared.sweeper, number) else {
            return false;
        };
        shared.registry.copy(shard, found);
        if is_crowded && let Some(shares) = shared.limits.least_shares() {
            let is_listed =
                |conn: &ConnInfo| conn.known_client().is_some() && !shared.is_reserved_for(conn);
            shared.registry.mark_excess(shard, found, shares, is_listed);
        }
        // Of one client, those that are kept for later.
        let mut kept = 0;
        for Found {
            conn,
            opened,
            is_newest,
            is_excess,
        } in found.drain(..)
        {
            if is_newest {
                kept = 0;
            }
            let (state, age) = (conn.state(), now.saturating_sub(opened));
            let memory = state.memory();
            let is_quiet = |rest: IdleStats| is_quiet(limits, now, age, &rest, &memory);
            let is_kept = if state.at_rest().is_some_and(is_quiet) {
                is_told = true;
                is_kept(&memory, now)
            } else if state.verdict().is_some() {
                if is_stuck(state, memory, now) && state.take_going() {
                    shared.going.fetch_sub(1, Relaxed);
                }
                continue;
            } else {
                let (sample, closing) = (state.look(), state.closing());
                is_told |= sample.tracked;
                untold += usize::from(!sample.tracked && sample.read > 0);
                newcomers += u32::from(is_newcomer(&sample, age));
                let when = When {
                    now,
                    passed,
                    opened,
                    due: limits.due(conn.id()),
                };
                let (memory, finding) = judge(limits, when, &sample, closing, memory);
                state.remember(memory);
                if sample.early > 0 {
                    state.forgive_early(forgiven);
                }
                match finding {
                    // We were not there: what the clients sent meanwhile is still to be read.
                    Finding::End(_) | Finding::Announce(_) if forgives => {}
                    Finding::End(end) => {
                        shared.end(&conn, end);
                    }
                    Finding::EndLingering => state.end_lingering(),
                    Finding::AskWriter => state.ask_writer(),
                    Finding::Announce(end) => shared.announce(&conn, end),
                    Finding::Close(reason) if is_enforced => _ = state.close(reason),
                    Finding::Probe if is_enforced => state.probe(),
                    Finding::Fine | Finding::Close(_) | Finding::Probe => {}
                }
                is_kept(&memory, now)
            };
            if is_kept
                && let Some(most) = keep_alive
                && state.closing().is_none()
            {
                kept += 1;
                if kept > most && is_enforced {
                    state.close(Reason::KeepAlivePerClient);
                    // It has its time from now on, for its client to hear of it.
                    state.remember(SweepState {
                        since: now as u32,
                        ..state.memory()
                    });
                }
            }
            all += 1;
            if is_crowded
                && let Some(rank) = rank(&conn, age, is_excess)
                && rank.0 < RELUCTANT
            {
                let is_better = best
                    .peek()
                    .is_none_or(|worst: &Candidate| rank < worst.rank);
                if best.len() < SPARED || is_better {
                    best.push(Candidate {
                        rank,
                        opened,
                        conn: Arc::downgrade(&conn),
                    });
                }
                if best.len() > SPARED {
                    best.pop();
                }
            }
        }
        drop(looking);
        // Others may run between two shards.
        tokio::task::yield_now().await;
    }
    if shared
        .untold
        .is_worth_a_word(now, shared.limits.first_request, is_told, untold)
    {
        say::untracked(&shared.recorder, untold);
    }
    let are_many = newcomers > all / 2;
    shared.many_newcomers.store(are_many, Relaxed);
    if are_many != were_many {
        best.clear(); // They were put in order as if nothing had changed.
    }
    // Whoever needs one takes the last.
    let best = best.into_sorted_vec().into_iter().rev();
    let spared = best.map(
        |Candidate {
             rank: (class, ..),
             opened,
             conn,
         }| Spared {
            class,
            opened,
            conn,
        },
    );
    let spared = spared.collect();
    let before = std::mem::replace(&mut *shared.spared.lock(), spared);
    drop(before); // With the lock given back.
    true
}

/// Whether a connection that was told to go has not gone for so long that it may never: an upgraded
/// socket that its task does not poll cannot be ended.
fn is_stuck(state: &ConnState, memory: SweepState, now: u64) -> bool {
    /// No phase has this number.
    const TOLD: u8 = 0x1f;
    if memory.phase != TOLD {
        state.remember(SweepState {
            phase: TOLD,
            since: now as u32,
            ..memory
        });
        return false;
    }
    (now as u32).wrapping_sub(memory.since) >= STUCK_MILLIS
}

// === Untold ===

impl Untold {
    /// Whether it has been so for as long as a first request may take, with `untold` connections
    /// now. Said once, and never where some connection `is_told` of its requests.
    fn is_worth_a_word(&self, now: u64, after: u64, is_told: bool, untold: usize) -> bool {
        if self.is_settled.load(Relaxed) {
            return false;
        }
        let since = self.since.load(Relaxed);
        if since == 0 && untold > 0 {
            self.since.store(now.saturating_add(1), Relaxed);
        }
        let is_due = since > 0 && untold > 0 && now.saturating_sub(since - 1) >= after;
        if is_told || is_due {
            self.is_settled.store(true, Relaxed);
        }
        is_due && !is_told
    }
}

// === Candidate ===

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Candidate {}
