//! Which requests are refused while memory is short and grows, or the runtime is overloaded. The
//! connection guard and the layer of `palisade-load-shed` decide by it.

use crate::{ConnInfo, Gauge, Memory, Reason, Recorder, RequestHead, RuntimeLoad};
use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

/// The share that admits every request. A rank is below it.
const WHOLE: u16 = RuntimeLoad::WHOLE;
/// A sixteenth of it, the unit of memory's share.
const SIXTEENTH: u16 = WHOLE / 16;
/// The level from which connections of requests outside of the share end with the response.
const CLOSE_LEVEL: f32 = 0.88;
/// The level from which sheddable requests outside of the share are refused.
const REFUSE_SHEDDABLE_LEVEL: f32 = 0.92;
/// The level from which requests and new connections outside of the share are refused.
const REFUSE_LEVEL: f32 = 0.95;
/// With fewer clients than this, each request has a rank of its own. Otherwise a share of a half
/// could refuse all of them or none.
const FEW_CLIENTS: u32 = 32;
/// `Retry-After` is at least one second and at most this.
const MAX_RETRY_SECONDS: u64 = 5;
/// The number of the first request that has a rank of its own. Number 0 has rank 0, which every
/// share admits.
const FIRST_TURN: u32 = 1;

/// Tells some requests from the others.
pub type PicksRequests = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

/// Decides by the growth of memory and the load of the runtime what is admitted.
///
/// Without memory, or load, a stand-in takes its place that always admits everything, so that a
/// request at rest costs two loads and two comparisons.
pub struct LoadShedding {
    memory: Memory,
    runtime: RuntimeLoad,
    has_memory: bool,
    has_runtime: bool,
    is_critical: Option<PicksRequests>,
    is_sheddable: Option<PicksRequests>,
    /// The number of the next request that has a rank of its own.
    turn: AtomicU32,
}

/// The shares that a request has found, of which one at least is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    memory: u16,
    runtime: u16,
}

/// The place of a request or connection among all of them, and a number that is random enough to
/// spread retries.
#[derive(Clone, Copy, Debug)]
pub struct Rank {
    rank: u16,
    random: u64,
}

/// What a request or connection outside of the share gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// The connection ends with the response.
    Close,
    /// It is refused if it is sheddable. Otherwise its connection ends with the response, if the
    /// reason is memory.
    RefuseSheddable(Refused),
    /// It is refused.
    Refuse(Refused),
}

/// What becomes of a request outside of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is admitted.
    Admit,
    /// It is admitted, and its connection ends with the response.
    Close,
    /// It is refused.
    Refuse(Refused),
}

/// Why a request or connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// [`Reason::MemoryPressure`] or [`Reason::RuntimeBusy`].
    pub reason: Reason,
    /// The limit, and the memory in use or the delay.
    pub numbers: (u64, u64),
    /// At random, so that refused clients do not return together.
    pub retry_after: Duration,
}

/// Returns what the guard of a connection has asked for the present request.
type FindAsked = fn(&ConnInfo) -> Option<&LoadShedding>;

/// Set by the connection guard, which this crate does not know.
static ASKED_BY_GUARD: OnceLock<FindAsked> = OnceLock::new();

// === LoadShedding ===

impl LoadShedding {
    /// Returns what asks these sources.
    pub fn new(memory: Option<Memory>, runtime: Option<RuntimeLoad>) -> Self {
        Self {
            has_memory: memory.is_some(),
            has_runtime: runtime.is_some(),
            memory: memory.unwrap_or_else(Memory::unknown),
            runtime: runtime.unwrap_or_else(RuntimeLoad::reported),
            is_critical: None,
            is_sheddable: None,
            turn: AtomicU32::new(FIRST_TURN),
        }
    }

    /// Sets the memory.
    pub fn set_memory(&mut self, memory: Option<Memory>) {
        self.has_memory = memory.is_some();
        self.memory = memory.unwrap_or_else(Memory::unknown);
    }

    /// Sets the load.
    pub fn set_runtime(&mut self, runtime: Option<RuntimeLoad>) {
        self.has_runtime = runtime.is_some();
        self.runtime = runtime.unwrap_or_else(RuntimeLoad::reported);
    }

    /// Sets the requests that are never refused, such as health checks.
    pub fn set_critical(&mut self, is_critical: Option<PicksRequests>) {
        self.is_critical = is_critical;
    }

    /// Sets the requests that are refused before the others.
    pub fn set_sheddable(&mut self, is_sheddable: Option<PicksRequests>) {
        self.is_sheddable = is_sheddable;
    }

    /// Returns the memory, if there is one.
    pub fn memory(&self) -> Option<&Memory> {
        self.has_memory.then_some(&self.memory)
    }

    /// Returns the load, if there is one.
    pub fn runtime(&self) -> Option<&RuntimeLoad> {
        self.has_runtime.then_some(&self.runtime)
    }

    /// Records stalls of the runtime to `recorder`.
    pub fn record_to(&self, recorder: &Recorder) {
        self.runtime.record_to(recorder);
    }

    /// Asks for both shares, once for each request. Returns `None` if both are whole.
    #[inline(always)]
    pub fn ask(&self) -> Option<Shares> {
        if self.memory.is_share_whole() && self.runtime.is_asked_and_whole() {
            return None;
        }
        self.ask_both()
    }

    #[cold]
    #[inline(never)]
    fn ask_both(&self) -> Option<Shares> {
        let shares = Shares {
            memory: self.share_of_memory(),
            runtime: self.runtime.ask(),
        };
        (!shares.are_whole()).then_some(shares)
    }

    /// Asks for the share of new connections. The load of the runtime refuses none.
    #[inline]
    pub fn ask_for_connection(&self) -> Option<Shares> {
        let shares = Shares {
            memory: self.share_of_memory(),
            runtime: WHOLE,
        };
        (!shares.are_whole()).then_some(shares)
    }

    fn share_of_memory(&self) -> u16 {
        u16::from(self.memory.share_in_sixteenths()) * SIXTEENTH
    }

    /// Counts a request as in flight, if there is no connection guard that counts them. Without
    /// [`end_request`](Self::end_request) it is so for ever.
    #[inline(always)]
    pub fn begin_request(&self) {
        self.runtime.begin_request();
    }

    /// Uncounts it.
    #[inline(always)]
    pub fn end_request(&self) {
        self.runtime.end_request();
    }

    /// Returns the rank of a request or connection of this client, where so many clients are known.
    /// `millis` is the time: for a second a client keeps its rank, so that a page is loaded whole.
    /// Without a client, or with few of them, each has a rank of its own.
    #[cold]
    pub fn rank(&self, client: Option<u64>, clients: u32, millis: u32) -> Rank {
        match client.filter(|_| clients >= FEW_CLIENTS) {
            Some(client) => {
                let mixed = mix(client, millis / 1000);
                Rank {
                    rank: (mixed % u64::from(WHOLE)) as u16,
                    random: mixed >> 32,
                }
            }
            None => {
                let turn = self.turn.fetch_add(1, Relaxed);
                Rank {
                    rank: spread(turn),
                    random: mix(turn.into(), 0),
                }
            }
        }
    }

    /// Returns what a request or connection of this rank gets if it is outside of the shares.
    #[cold]
    pub fn shed(&self, shares: Shares, rank: Rank) -> Option<Shed> {
        let shed = match self.shed_for_memory(shares.memory, rank) {
            refused @ Some(Shed::Refuse(_)) => refused,
            other => self.shed_for_runtime(shares.runtime, rank).or(other),
        };
        if shares.runtime < WHOLE && !matches!(shed, Some(Shed::Refuse(_))) {
            self.runtime.count_admitted();
        }
        shed
    }

    fn shed_for_memory(&self, share: u16, Rank { rank, random }: Rank) -> Option<Shed> {
        let level = self.memory.pressure().get();
        if rank < share || level < CLOSE_LEVEL {
            return None;
        }
        let limit = self.memory.limit().unwrap_or(0);
        let numbers = (limit, self.memory.used().unwrap_or(limit));
        let refused = Refused::new(Reason::MemoryPressure, numbers, random);
        Some(if level >= REFUSE_LEVEL {
            Shed::Refuse(refused)
        } else if level >= REFUSE_SHEDDABLE_LEVEL {
            Shed::RefuseSheddable(refused)
        } else {
            Shed::Close
        })
    }

    /// Of sheddable requests the square of the share is admitted.
    fn shed_for_runtime(&self, share: u16, Rank { rank, random }: Rank) -> Option<Shed> {
        let [rank, share, whole] = [rank, share, WHOLE].map(u32::from);
        let refuse = if rank >= share {
            Shed::Refuse
        } else if rank * whole >= share * share {
            Shed::RefuseSheddable
        } else {
            return None;
        };
        let [limit, delay] = [RuntimeLoad::overload_delay(), self.runtime.delay()]
            .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        Some(refuse(Refused::new(
            Reason::RuntimeBusy,
            (limit, delay),
            random,
        )))
    }

    /// Returns what becomes of the request with this head.
    #[cold]
    pub fn verdict(&self, shed: Shed, head: &RequestHead<'_>) -> Verdict {
        let is_one_of = |picks: &Option<PicksRequests>| {
            let picks = picks.as_ref();
            picks.is_some_and(|picks| picks(head))
        };
        if is_one_of(&self.is_critical) {
            return Verdict::Admit;
        }
        match shed {
            Shed::Refuse(refused) => Verdict::Refuse(refused),
            Shed::RefuseSheddable(refused) if is_one_of(&self.is_sheddable) => {
                Verdict::Refuse(refused)
            }
            Shed::RefuseSheddable(refused) if refused.reason == Reason::RuntimeBusy => {
                Verdict::Admit
            }
            Shed::RefuseSheddable(_) | Shed::Close => Verdict::Close,
        }
    }

    /// Calls `visit` with the gauges of both sources.
    pub fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        if let Some(memory) = self.memory()
            && let (Some(used), Some(limit)) = (memory.used(), memory.limit())
        {
            visit(Gauge::MemoryUsed, used);
            visit(Gauge::MemoryLimit, limit);
            visit(Gauge::MemorySharePercent, (memory.share() * 100.0) as u64);
        }
        if let Some(load) = self.runtime() {
            let delay = u64::try_from(load.delay().as_millis()).unwrap_or(u64::MAX);
            visit(Gauge::RuntimeDelay, delay);
            visit(Gauge::RuntimeSharePercent, (load.share() * 100.0) as u64);
        }
        let events = self.memory().map(Memory::events).unwrap_or_default();
        for (gauge, value) in [
            (Gauge::MemoryOomKills, events.oom_kills),
            (Gauge::MemoryLimitHits, events.limit_hits),
            (Gauge::MemoryStallPercent, events.stall_percent),
        ] {
            if let Some(value) = value {
                visit(gauge, value);
            }
        }
    }

    /// Sets how to find what request tracking has asked for the present request of a connection.
    pub fn find_asked_by(find: FindAsked) {
        // There is one connection guard in a process, however many guards it has made.
        let _ = ASKED_BY_GUARD.set(find);
    }
}

impl Default for LoadShedding {
    /// Asks nothing.
    fn default() -> Self {
        Self::new(None, None)
    }
}

/// The clone asks the same sources, and counts requests by itself.
impl Clone for LoadShedding {
    fn clone(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            runtime: self.runtime.clone(),
            has_memory: self.has_memory,
            has_runtime: self.has_runtime,
            is_critical: self.is_critical.clone(),
            is_sheddable: self.is_sheddable.clone(),
            turn: AtomicU32::new(FIRST_TURN),
        }
    }
}

impl fmt::Debug for LoadShedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShedding")
            .field("memory", &self.memory())
            .field("runtime", &self.runtime())
            .field("has_critical", &self.is_critical.is_some())
            .field("has_sheddable", &self.is_sheddable.is_some())
            .finish_non_exhaustive()
    }
}

// === Shares ===

impl Shares {
    fn are_whole(self) -> bool {
        self.memory.min(self.runtime) >= WHOLE
    }

    /// Returns the shares that the guard of `conn` has not asked for already, for a request on it.
    /// The guard asks for the load of the runtime in which it accepts connections, which is the one
    /// of the request. Of memory there may be several.
    #[cold]
    pub fn not_asked_on(mut self, conn: Option<&ConnInfo>, own: &LoadShedding) -> Option<Self> {
        let find = ASKED_BY_GUARD.get();
        if let (Some(find), Some(conn)) = (find, conn)
            && let Some(asked) = find(conn)
        {
            if asked.memory.is_same(&own.memory) {
                self.memory = WHOLE;
            }
            if asked.has_runtime {
                self.runtime = WHOLE;
            }
        }
        (!self.are_whole()).then_some(self)
    }
}

// === Refused ===

impl Refused {
    fn new(reason: Reason, numbers: (u64, u64), random: u64) -> Self {
        Self {
            reason,
            numbers,
            retry_after: Duration::from_secs(1 + random % MAX_RETRY_SECONDS),
        }
    }
}

/// Mixes the hash of a client, which is keyed, with the second.
fn mix(client: u64, second: u32) -> u64 {
    let mixed = client ^ u64::from(second).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ mixed >> 32
}

/// Returns the rank of the request of this number. Each sixteen requests in a row have one rank of
/// each sixteenth, and each 1,024 have all ranks.
fn spread(turn: u32) -> u16 {
    const STEP: u32 = 7; // Odd, so that no sixteenth is left out.
    let sixteenth = turn.wrapping_mul(STEP) % 16;
    let within = (turn / 16).reverse_bits() >> (u32::BITS - SIXTEENTH.ilog2());
    sixteenth as u16 * SIXTEENTH + within as u16
}

#[cfg(test)]
mod tests;
