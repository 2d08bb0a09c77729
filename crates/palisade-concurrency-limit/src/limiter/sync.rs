//! Synchronization primitives. Under `cfg(palisade_loom)` they are those of the model checker,
//! which can observe them.

#[cfg(palisade_loom)]
pub(super) use loom::sync::{
    MutexGuard,
    atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize},
};
#[cfg(not(palisade_loom))]
pub(super) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(palisade_loom))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};

/// Like `parking_lot`'s, it is not poisoned by a panic, which ends a model anyway.
#[cfg(palisade_loom)]
#[derive(Debug, Default)]
pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(palisade_loom)]
impl<T> Mutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0
            .lock()
            .expect("no thread panicked with the lock held")
    }
}

/// Orders a store before a later load of another word, both sequentially consistent. Does nothing
/// except under the model checker, which treats such accesses as acquire and release, and a fence
/// as a fence.
#[inline(always)]
pub(super) fn store_before_load() {
    #[cfg(palisade_loom)]
    loom::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}
