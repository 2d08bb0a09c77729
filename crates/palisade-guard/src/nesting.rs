//! Which policies guard what is being called or polled on this thread: a request that passes the
//! same policy twice counts once.

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
}

/// Identity of a task, as far as its waker shows it.
pub type Task = (usize, usize);

/// The call or poll of a guarded request. Ends when dropped.
#[derive(Debug)]
#[must_use = "it ends when dropped"]
pub struct Inside {
    depth: usize,
}

// === Nesting ===

impl Nesting {
    const fn new() -> Self {
        Self {
            depth: Cell::new(0),
            policies: [const { Cell::new(0) }; MAX_DEPTH],
        }
    }
}

/// Enters the call or poll of a request that the policy at this address guards.
#[inline]
pub fn enter(policy: usize) -> Inside {
    NESTING.with(|nesting| {
        let depth = nesting.depth.get();
        if let Some(entry) = nesting.policies.get(depth) {
            entry.set(policy);
        }
        nesting.depth.set(depth + 1);
        Inside { depth }
    })
}

/// Whether a service with the policy at this address is being called or polled.
#[inline]
pub fn is_inside(policy: usize) -> bool {
    NESTING.with(|nesting| {
        let depth = nesting.depth.get().min(MAX_DEPTH);
        nesting.policies[..depth]
            .iter()
            .any(|entry| entry.get() == policy)
    })
}

/// Identifies this thread while it lives.
#[inline]
pub(crate) fn thread() -> usize {
    NESTING.with(|nesting| std::ptr::from_ref(nesting).addr())
}

/// The task of `waker`, to be compared as [`Waker::will_wake`] does, without keeping the waker.
#[inline]
pub fn task_of(waker: &Waker) -> Task {
    (
        waker.data().addr(),
        std::ptr::from_ref(waker.vtable()).addr(),
    )
}

// === Inside ===

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        NESTING.with(|nesting| nesting.depth.set(self.depth));
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
}
