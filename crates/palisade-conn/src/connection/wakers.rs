//! The tasks that wait for a connection.

use std::task::Waker;

/// The wakers of a connection's reader and writer. hyper reads and writes in one task, so one
/// waker is enough. Two tasks, such as those of a connection split in two, cost a box.
#[derive(Default)]
pub(super) struct Wakers {
    one: Option<Waker>,
    /// The reader's and the writer's.
    two: Option<Box<[Waker; 2]>>,
}

/// A half of a connection.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Reader,
    Writer,
}

impl Wakers {
    /// Keeps a copy of `waker` for `side`. Returns the waker that it replaces, to be dropped
    /// outside the lock: dropping a `Waker` may run arbitrary code.
    #[must_use]
    pub(super) fn park(&mut self, side: Side, waker: &Waker) -> Option<Waker> {
        if let Some(two) = &mut self.two {
            let stored = &mut two[side as usize];
            if stored.will_wake(waker) {
                return None;
            }
            return Some(std::mem::replace(stored, waker.clone()));
        }
        match self.one.take() {
            // The stored waker may belong to the other half, so keep both.
            Some(other) if !other.will_wake(waker) => {
                self.two = Some(Box::new(match side {
                    Side::Reader => [waker.clone(), other],
                    Side::Writer => [other, waker.clone()],
                }));
            }
            Some(same) => self.one = Some(same),
            None => self.one = Some(waker.clone()),
        }
        None
    }

    /// Returns a copy of each waker.
    pub(super) fn clone_all(&self) -> [Option<Waker>; 2] {
        match &self.two {
            Some(two) => (**two).clone().map(Some),
            None => [self.one.clone(), None],
        }
    }
}
