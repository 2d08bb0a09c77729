//! The tasks that wait for a connection.

use std::{mem, task::Waker};

/// The wakers of a connection's reader and writer. hyper reads and writes in one task, so one
/// waker is enough. Two tasks, such as those of a connection split in two, cost a box.
pub(super) enum Wakers {
    One(Waker),
    /// The reader's and the writer's, or none at all.
    Two(Option<Box<[Waker; 2]>>),
}

// There is one for each open connection. A third variant would need room of its own.
const _: () = assert!(size_of::<Wakers>() == size_of::<Waker>());

/// A half of a connection.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Reader,
    Writer,
}

impl Default for Wakers {
    fn default() -> Self {
        Self::Two(None)
    }
}

impl Wakers {
    /// Keeps a copy of `waker` for `side`. Returns the waker that it replaces, to be dropped
    /// outside the lock: dropping a `Waker` may run arbitrary code.
    #[must_use]
    pub(super) fn park(&mut self, side: Side, waker: &Waker) -> Option<Waker> {
        match self {
            Self::Two(Some(two)) => {
                let stored = &mut two[side as usize];
                if stored.will_wake(waker) {
                    return None;
                }
                return Some(mem::replace(stored, waker.clone()));
            }
            Self::One(stored) if stored.will_wake(waker) => return None,
            Self::Two(None) | Self::One(_) => {}
        }
        let new = waker.clone();
        *self = match mem::take(self) {
            // The stored waker may belong to the other half, so keep both.
            Self::One(other) => Self::Two(Some(Box::new(match side {
                Side::Reader => [new, other],
                Side::Writer => [other, new],
            }))),
            Self::Two(_) => Self::One(new),
        };
        None
    }

    /// Returns a copy of each waker.
    pub(super) fn clone_all(&self) -> [Option<Waker>; 2] {
        match self {
            Self::One(waker) => [Some(waker.clone()), None],
            Self::Two(Some(two)) => (**two).clone().map(Some),
            Self::Two(None) => [None, None],
        }
    }
}
