//! More requests than the processor can answer: twice its capacity. There is no attacker, so that
//! this has a rule of its own.
//!
//! Clients ask for the CPU-bound GET, each for the next as soon as it is answered: that gives the
//! capacity. Then requests come at twice that rate, whether or not earlier ones are answered. The
//! server has all processor cores but one and the load has that one, so that they do not compete.

mod load;
pub(crate) mod pin;
mod rule;

pub use rule::Overload;
pub(crate) use rule::{Evidence, judge};

use crate::{child::tree, target::Target, worker::Worker};
use bytes::Bytes;
use load::Load;
use rule::MAX_CAPACITY;
use std::{io, time::Duration};
use tokio::time::Instant;

/// The offered rate, as a multiple of the capacity.
const OFFERED: f64 = 2.0;
/// The offered rate of a rehearsal.
const REHEARSED: f64 = 0.5;
/// The first part of the load, in which queues fill, and which is not judged.
const SETTLING: Duration = Duration::from_secs(1);
/// The clients of the closed loop for each core of the server.
const CLIENTS_PER_CORE: usize = 4;

/// The times of an overload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The closed loop that gives the capacity.
    pub(crate) closed: Duration,
    /// The open loop.
    pub(crate) open: Duration,
}

impl Times {
    pub(crate) fn new(quick: bool) -> Self {
        let seconds = |full, quickly| Duration::from_secs(if quick { quickly } else { full });
        Self {
            closed: seconds(3, 1),
            open: seconds(10, 4),
        }
    }
}

/// What was seen of an overload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) overload: Overload,
    /// The requests that the capacity is known from.
    pub(crate) served: u64,
    pub(crate) lateness: Duration,
    /// The part of the server's cores that other processes took.
    pub(crate) foreign_share: f64,
}

/// Sends the load from a core of its own against the process `root`, on `most` connections.
///
/// # Errors
///
/// If the cores cannot be assigned, or if the system has no more threads.
pub(crate) async fn run(
    target: Target,
    number: u8,
    request: Bytes,
    root: u32,
    times: Times,
    is_rehearsal: bool,
    most: usize,
) -> io::Result<Seen> {
    let pinned = pin::Pinned::new(root)?;
    let (core, servers) = (pinned.free, pin::cores().saturating_sub(1).max(1));
    let offered = if is_rehearsal { REHEARSED } else { OFFERED };
    let mut worker = Worker::spawn("drill-load", move || async move {
        pin::this_thread(core)?;
        let load = Load::new(target, number, request, most);
        let (began, before) = (Instant::now(), tree::usage(root).unwrap_or_default());
        let clients = CLIENTS_PER_CORE * servers;
        let closed = load.closed(clients, times.closed).await;
        let seconds = began.elapsed().as_secs_f64();
        let used = tree::usage(root)
            .unwrap_or_default()
            .cpu
            .saturating_sub(before.cpu);
        let capacity = closed.served as f64 / seconds;
        let mut seen = Seen {
            overload: Overload {
                capacity_per_second: capacity,
                busy_cores: used.as_secs_f64() / seconds,
                ..Overload::default()
            },
            served: closed.served,
            ..Seen::default()
        };
        if closed.served == 0 || capacity > MAX_CAPACITY {
            return Ok(seen);
        }
        let (began, before, busy) = (
            Instant::now(),
            tree::usage(root).unwrap_or_default(),
            pin::busy_ticks(core),
        );
        let open = load.open(offered * capacity, SETTLING, times.open).await;
        let judged = times.open.saturating_sub(SETTLING).as_secs_f64();
        let overload = &mut seen.overload;
        overload.offered_per_second = offered * capacity;
        overload.answered_per_second = open.in_time as f64 / judged;
        (overload.refused, overload.refused_late) = (open.refused, open.refused_late);
        seen.lateness = open.lateness;
        let used = tree::usage(root)
            .unwrap_or_default()
            .cpu
            .saturating_sub(before.cpu);
        let busy = tree::ticks(pin::busy_ticks(core).saturating_sub(busy));
        let available = began.elapsed().as_secs_f64() * servers as f64;
        seen.foreign_share = busy.saturating_sub(used).as_secs_f64() / available;
        Ok(seen)
    })?;
    let seen = worker.finished().await;
    drop(pinned);
    seen.unwrap_or_else(|| Err(io::Error::other("the load panicked, which is a bug")))
}

#[cfg(test)]
mod tests;
