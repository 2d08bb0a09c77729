//! What the connections of one guard have in common.

use crate::Settings;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

/// What all connections of one guard count together, and how much of it there may be.
///
/// Each [`ConnInfo`](crate::ConnInfo) of the guard leads to it, so that whoever tells of a request
/// needs nothing else.
#[derive(Debug, Default)]
pub struct ConnTotals {
    /// Whether what is too much is refused, and who hears of it.
    pub settings: Settings,
    /// So many requests one connection may bring. Defaults to any number.
    pub max_requests: Option<u32>,
    /// So many requests may be in flight on all of them. Defaults to any number.
    pub max_streams: Option<usize>,
    /// So many of them may be upgraded. Defaults to any number.
    pub max_upgraded: Option<usize>,
    streams: AtomicUsize,
    upgraded: AtomicUsize,
    millis: AtomicU32,
}

impl ConnTotals {
    /// Requests in flight on all connections.
    pub fn streams(&self) -> usize {
        self.streams.load(Relaxed)
    }

    /// Connections that are upgraded and count as such.
    pub fn upgraded(&self) -> usize {
        self.upgraded.load(Relaxed)
    }

    /// Whether there are more requests in flight than may be: how many may, and how many are.
    pub fn over_streams(&self) -> Option<(u64, u64)> {
        let (most, streams) = (self.max_streams?, self.streams());
        (streams > most).then_some((most as u64, streams as u64))
    }

    /// It is so many milliseconds since anything, by a clock that may wrap. Told from time to
    /// time by the guard, so that nobody else asks for the time.
    pub fn set_time(&self, millis: u32) {
        self.millis.store(millis, Relaxed);
    }

    pub(crate) fn time(&self) -> u32 {
        self.millis.load(Relaxed)
    }

    pub(crate) fn begin_stream(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    pub(crate) fn end_stream(&self) {
        self.streams.fetch_sub(1, Relaxed);
    }

    /// Fails with how many may be upgraded, and how many would be.
    pub(crate) fn begin_upgraded(&self) -> Result<(), (u64, u64)> {
        let upgraded = self.upgraded.fetch_add(1, Relaxed).saturating_add(1);
        match self.max_upgraded {
            Some(most) if upgraded > most => Err((most as u64, upgraded as u64)),
            _ => Ok(()),
        }
    }

    pub(crate) fn end_upgraded(&self) {
        self.upgraded.fetch_sub(1, Relaxed);
    }
}
