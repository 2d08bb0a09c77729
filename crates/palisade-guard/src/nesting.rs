//! Which guarded requests are being called or polled on this thread.
//!
//! Two questions are answered by this: whether a request body is polled by its own handler or by
//! another task, and whether a service is called from inside another one with the same policy.

use crate::Stamp;
use std::{cell::Cell, task::Waker};

/// Guards inside guards beyond this depth are not tracked.
const MAX_DEPTH: usize = 16;

thread_local! {
    static NESTING: Nesting = const { Nesting::new() };
}

struct Nesting {
    depth: Cell<usize>,
    /// The addresses of the policies.
    policies: [Cell<usize>; MAX_DEPTH],
    /// What is known of those whose request has an exchange.
    exchanges: [Cell<Entry>; MAX_DEPTH],
}

/// The handler of one exchange that is being called or polled.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Address of the exchange.
    exchange: usize,
    /// The task that polls the handler, as [`Waker::will_wake`] compares tasks.
    task: Task,
    asked: Asked,
}

/// Identity of a task, as far as its waker shows it.
pub type Task = (usize, usize);

/// What the handler did with its request body during one poll.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// The latest poll of the body had nothing to give, because the client is awaited.
    pub(crate) awaits: bool,
    /// When that wait will have lasted too long.
    pub(crate) due: Option<Stamp>,
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

/// The call or poll of a guarded request. Ends when dropped.
#[derive(Debug)]
#[must_use = "it ends when dropped"]
pub struct Inside {
    depth: usize,
    has_exchange: bool,
}

// === Nesting ===

impl Nesting {
    const fn new() -> Self {
        Self {
            depth: Cell::new(0),
            policies: [const { Cell::new(0) }; MAX_DEPTH],
            exchanges: [const { Cell::new(Entry::NONE) }; MAX_DEPTH],
        }
    }

    /// The innermost entry of `exchange`.
    #[inline]
    fn entry(&self, exchange: usize) -> Option<&Cell<Entry>> {
        let entries = self.exchanges[..self.depth.get().min(MAX_DEPTH)].iter();
        entries.rev().find(|entry| entry.get().exchange == exchange)
    }
}

impl Entry {
    const NONE: Self =
        Self { exchange: 0, task: (0, 0), asked: Asked { awaits: false, due: None } };
}

/// Enters the call or poll of a request without an exchange that the policy at this address guards.
#[inline]
pub fn enter(policy: usize) -> Inside {
    NESTING.with(|nesting| {
        let depth = nesting.depth.get();
        if let Some(entry) = nesting.policies.get(depth) {
            entry.set(policy);
        }
        nesting.depth.set(depth + 1);
        Inside { depth, has_exchange: false }
    })
}

/// The same for one with an exchange, whose handler is polled by `task` or is being called.
#[inline]
pub(crate) fn enter_exchange(policy: usize, exchange: usize, task: Option<&Waker>) -> Inside {
    let mut inside = enter(policy);
    inside.has_exchange = true;
    NESTING.with(|nesting| {
        if let Some(entry) = nesting.exchanges.get(inside.depth) {
            entry.set(Entry { exchange, task: task.map_or((0, 0), task_of), ..Entry::NONE });
        }
    });
    inside
}

/// Whether a service with the policy at this address is being called or polled.
#[inline]
pub fn is_inside(policy: usize) -> bool {
    NESTING.with(|nesting| {
        let depth = nesting.depth.get().min(MAX_DEPTH);
        nesting.policies[..depth].iter().any(|entry| entry.get() == policy)
    })
}

/// How the request body of `exchange` is polled. Tells the response future that it awaits its
/// client, and in the handler's own task until when.
#[inline]
pub(crate) fn awaits(exchange: usize, due: Option<Stamp>, task: &Waker) -> PolledBy {
    NESTING.with(|nesting| {
        let Some(cell) = nesting.entry(exchange) else { return PolledBy::Elsewhere };
        let entry = cell.get();
        let is_handlers = entry.task == task_of(task);
        let due = due.filter(|_| is_handlers);
        cell.set(Entry { asked: Asked { awaits: true, due }, ..entry });
        if is_handlers { PolledBy::Handler } else { PolledBy::HandlerPart }
    })
}

/// Tells the response future of `exchange` that its request body has something to give.
#[inline]
pub(crate) fn goes_on(exchange: usize) {
    NESTING.with(|nesting| {
        if let Some(entry) = nesting.entry(exchange) {
            entry.set(Entry { asked: Asked::default(), ..entry.get() });
        }
    });
}

/// The task of `waker`, to be compared as [`Waker::will_wake`] does, without keeping the waker.
#[inline]
pub fn task_of(waker: &Waker) -> Task {
    (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr())
}

// === Inside ===

impl Inside {
    /// What the handler of an exchange did with its request body in this poll.
    #[inline]
    pub(crate) fn asked(&self) -> Asked {
        NESTING.with(|nesting| {
            nesting.exchanges.get(self.depth).map_or(Asked::default(), |entry| entry.get().asked)
        })
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        NESTING.with(|nesting| {
            nesting.depth.set(self.depth);
            if self.has_exchange
                && let Some(entry) = nesting.exchanges.get(self.depth)
            {
                // Another exchange may be at this address soon.
                entry.set(Entry::NONE);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_seen_inside_and_gone_after_a_panic() {
        assert!(!is_inside(7));
        let outer = enter(7);
        let caught = std::panic::catch_unwind(|| {
            let _inner = enter(8);
            assert!(is_inside(7) && is_inside(8));
            panic!("as a handler might");
        });
        assert!(caught.is_err() && is_inside(7) && !is_inside(8));
        drop(outer);
        assert!(!is_inside(7));
    }

    #[test]
    fn depth_beyond_the_limit_is_counted_and_not_tracked() {
        let entries: Vec<_> = (1..=MAX_DEPTH + 2).map(enter).collect();
        assert!(is_inside(MAX_DEPTH) && !is_inside(MAX_DEPTH + 1));
        entries.into_iter().rev().for_each(drop);
        assert_eq!(NESTING.with(|nesting| nesting.depth.get()), 0);
    }

    #[test]
    fn a_body_is_polled_by_its_handler_only_inside_of_it_and_with_its_waker() {
        let (task, other) = (Waker::noop(), futures_util::task::noop_waker());
        assert_eq!(awaits(5, None, task), PolledBy::Elsewhere);
        let inside = enter_exchange(1, 5, Some(task));
        assert!(!inside.asked().awaits);
        let nested = enter(2);
        assert_eq!(awaits(5, Some(7), &other), PolledBy::HandlerPart);
        assert_eq!(awaits(6, Some(7), task), PolledBy::Elsewhere);
        assert_eq!((inside.asked().awaits, inside.asked().due), (true, None));
        assert_eq!(awaits(5, Some(7), task), PolledBy::Handler);
        drop(nested);
        assert_eq!(inside.asked().due, Some(7));
        goes_on(5);
        assert!(!inside.asked().awaits);
        drop(inside);
        assert_eq!(awaits(5, None, task), PolledBy::Elsewhere);
    }
}
