//! The atomics and the mutex of this crate. Under `cfg(palisade_loom)` they are those of loom, the
//! model checker.

#[cfg(palisade_loom)]
pub(crate) use loom::sync::MutexGuard;
#[cfg(palisade_loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
#[cfg(not(palisade_loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(palisade_loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// A mutex with the interface of `parking_lot`. It need not handle poisoning, because a panic ends
/// the model.
#[cfg(palisade_loom)]
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(palisade_loom)]
impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("a panic ends the model")
    }
}
