//! The policies of the services that are being called or polled on the current thread. With this, a
//! request that passes the same policy twice is counted once.

use std::{cell::Cell, task::Waker};

/// The depth up to which nested guards are tracked.
const MAX_DEPTH: usize = 16;

thread_local! {
    static NESTING: Nesting = const { Nesting::new() };
}

struct Nesting {
    depth: Cell<usize>,
    /// The addresses of the policies.
    policies: [Cell<usize>; MAX_DEPTH],
}

/// Identity of a task: the data pointer and the vtable pointer of its waker.
pub type Task = (usize, usize);

/// Marks a guarded request as being called or polled. The mark is removed on drop.
#[derive(Debug)]
#[must_use = "the mark is removed on drop"]
pub struct Entered {
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

/// Marks the start of a call or poll that is guarded by the policy at this address.
#[inline]
pub fn enter(policy: usize) -> Entered {
    NESTING.with(|nesting| {
        let depth = nesting.depth.get();
        if let Some(entry) = nesting.policies.get(depth) {
            entry.set(policy);
        }
        nesting.depth.set(depth + 1);
        Entered { depth }
    })
}

/// Returns whether a service with the policy at this address is being called or polled.
#[inline]
pub fn is_inside(policy: usize) -> bool {
    NESTING.with(|nesting| {
        let depth = nesting.depth.get().min(MAX_DEPTH);
        nesting.policies[..depth]
            .iter()
            .any(|entry| entry.get() == policy)
    })
}

/// Returns a number that identifies the current thread among all live threads. Never 0.
#[inline]
pub(crate) fn thread_id() -> usize {
    NESTING.with(|nesting| std::ptr::from_ref(nesting).addr())
}

/// Returns the task of `waker`. Two tasks are compared as [`Waker::will_wake`] compares wakers, but
/// without keeping a waker.
#[inline]
pub fn task_of(waker: &Waker) -> Task {
    (
        waker.data().addr(),
        std::ptr::from_ref(waker.vtable()).addr(),
    )
}

// === Entered ===

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        NESTING.with(|nesting| nesting.depth.set(self.depth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_visible_until_dropped_even_by_a_panic() {
        assert!(!is_inside(7));
        let outer = enter(7);
        let caught = std::panic::catch_unwind(|| {
            let _inner = enter(8);
            assert!(is_inside(7) && is_inside(8));
            panic!("a handler may panic");
        });
        assert!(caught.is_err() && is_inside(7) && !is_inside(8));
        drop(outer);
        assert!(!is_inside(7));
    }

    #[test]
    fn entries_beyond_the_depth_limit_are_counted_but_not_tracked() {
        let entries: Vec<_> = (1..=MAX_DEPTH + 2).map(enter).collect();
        assert!(is_inside(MAX_DEPTH) && !is_inside(MAX_DEPTH + 1));
        entries.into_iter().rev().for_each(drop);
        assert_eq!(NESTING.with(|nesting| nesting.depth.get()), 0);
    }
}
