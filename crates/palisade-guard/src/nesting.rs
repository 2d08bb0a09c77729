//! Which guarded requests are being polled on this thread.
//!
//! Two questions are answered by this: whether a request body is polled by its own handler or by
//! another task, and whether a service is called from inside another one with the same policy.

use std::{cell::Cell, task::Waker};
use tokio::time::Instant;

/// Guards inside guards beyond this depth are not tracked.
const MAX_DEPTH: usize = 16;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static ENTRIES: [Cell<Entry>; MAX_DEPTH] = const { [const { Cell::new(Entry::NONE) }; MAX_DEPTH] };
}

/// One guarded request that is being called or polled.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Address of the policy.
    policy: usize,
    /// Address of the exchange, or 0 for a request without one.
    exchange: usize,
    /// The task that polls the handler, as [`Waker::will_wake`] compares tasks.
    task: Task,
    asked: Asked,
}

type Task = (usize, usize);

/// What the handler did with its request body during one poll.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// The latest poll of the body had nothing to give, because the client is awaited.
    pub(crate) awaits: bool,
    /// When that wait will have lasted too long.
    pub(crate) due: Option<Instant>,
}

/// How a request body is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolledBy {
    /// By the handler, in its own task: the response future's timer serves this wait.
    Handler,
    /// By the handler, with a waker of its own, as `FuturesUnordered` has.
    HandlerPart,
    /// By another task, or after the response head is out.
    Elsewhere,
}

/// Ends the entry when dropped.
#[derive(Debug)]
pub(crate) struct Inside(usize);

impl Entry {
    const NONE: Self =
        Self { policy: 0, exchange: 0, task: (0, 0), asked: Asked { awaits: false, due: None } };
}

/// Enters the call or poll of a request that `policy` guards. `task` is given with an exchange.
#[inline]
pub(crate) fn enter(policy: usize, exchange: usize, task: Option<&Waker>) -> Inside {
    let depth = DEPTH.get();
    if depth < MAX_DEPTH {
        let entry = Entry { policy, exchange, task: task.map_or((0, 0), id), ..Entry::NONE };
        ENTRIES.with(|entries| entries[depth].set(entry));
    }
    DEPTH.set(depth + 1);
    Inside(depth)
}

/// Whether a service with this policy is called from inside another one.
#[inline]
pub(crate) fn is_inside(policy: usize) -> bool {
    let depth = DEPTH.get().min(MAX_DEPTH);
    ENTRIES.with(|entries| entries[..depth].iter().any(|entry| entry.get().policy == policy))
}

/// How the request body of `exchange` is polled.
pub(crate) fn polled_by(exchange: usize, task: &Waker) -> PolledBy {
    match find(exchange) {
        None => PolledBy::Elsewhere,
        Some((_, entry)) if entry.task == id(task) => PolledBy::Handler,
        Some(_) => PolledBy::HandlerPart,
    }
}

/// Tells the response future of `exchange` what came of polling the body.
#[inline]
pub(crate) fn tell(exchange: usize, asked: Asked) {
    if let Some((depth, mut entry)) = find(exchange) {
        entry.asked = asked;
        ENTRIES.with(|entries| entries[depth].set(entry));
    }
}

#[inline]
fn find(exchange: usize) -> Option<(usize, Entry)> {
    let depth = DEPTH.get().min(MAX_DEPTH);
    ENTRIES.with(|entries| {
        let entries = entries[..depth].iter().map(Cell::get).enumerate();
        entries.rev().find(|(_, entry)| entry.exchange == exchange)
    })
}

fn id(waker: &Waker) -> Task {
    (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
}

// === Inside ===

impl Inside {
    /// What the handler did with its request body in this poll.
    #[inline]
    pub(crate) fn asked(&self) -> Asked {
        if self.0 < MAX_DEPTH {
            ENTRIES.with(|entries| entries[self.0].get().asked)
        } else {
            Asked::default()
        }
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        DEPTH.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_seen_inside_and_gone_after_a_panic() {
        assert!(!is_inside(7));
        let outer = enter(7, 0, None);
        let caught = std::panic::catch_unwind(|| {
            let _inner = enter(8, 0, None);
            assert!(is_inside(7) && is_inside(8));
            panic!("as a handler might");
        });
        assert!(caught.is_err() && is_inside(7) && !is_inside(8));
        drop(outer);
        assert!(!is_inside(7));
    }

    #[test]
    fn depth_beyond_the_limit_is_counted_and_not_tracked() {
        let entries: Vec<_> = (1..=MAX_DEPTH + 2).map(|policy| enter(policy, 0, None)).collect();
        assert!(is_inside(MAX_DEPTH) && !is_inside(MAX_DEPTH + 1));
        entries.into_iter().rev().for_each(drop);
        assert_eq!(DEPTH.get(), 0);
    }
}
