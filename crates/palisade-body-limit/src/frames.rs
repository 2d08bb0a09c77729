//! Small frames: how many may come, and how they are put together.
//!
//! Whoever collects a body pays for every frame of it: 32 to 64 bytes in its own list, and the
//! block that the frame is a slice of. hyper reads HTTP/1 into a new block of 8 KiB whenever the
//! last one is still in use, so that a frame of one byte, sent by itself, can hold all of that.

use bytes::{Bytes, BytesMut};
use std::fmt;
use tokio::time::Instant;

/// Frames shorter than this are copied: they fill less than half of the block they came in.
pub(crate) const SMALL: usize = 4096;
/// So many small frames of a body are handed on as they come, so that a short body pays nothing.
pub(crate) const UNTOUCHED: u32 = 16;
/// So much is handed on without a wait for more.
const ENOUGH: usize = 512;
/// So much is put together at most.
const AHEAD: usize = 16 * 1024;
/// Small frames are copied into blocks of this size.
const BLOCK: usize = 16 * 1024;
/// A frame that the handler gets costs as much as so many that were joined to another one.
const WHOLE: u64 = 8;
/// Bytes and time grant gRPC over HTTP/2 so many times as many frames. With the default of a frame
/// for 64 bytes that is one for 4, and no message is shorter than the 5 bytes of its prefix.
const GRPC: u64 = 16;

/// How many small frames a request body may come in: `burst`, one more for every `per_bytes`
/// bytes received, and `per_second` more in every second.
///
/// After the first 16, small frames are put together. One that is shorter than 512 bytes is held
/// back until the task is polled again, once, to see whether more comes; no timer is involved. A
/// frame that could be joined to the one before counts as an eighth of one. A body with more
/// frames than this is refused with 400, or `RESOURCE_EXHAUSTED` in gRPC.
///
/// A body that is collected then holds at most twice its bytes and 256 KiB, and 64 bytes more for
/// every frame of `per_second`. Frames of 4 KiB and more are neither counted nor copied.
///
/// gRPC over HTTP/2 has small messages by nature: nothing of it is held back, and bytes and time
/// grant it 16 times as many frames, which its honest messages cannot reach. Collected, it holds at
/// most 18 times its bytes and 256 KiB, and 1,024 bytes more for every frame of `per_second`.
/// Measured with the defaults: 18.9 MB of the 2 MiB that are the limit, in frames of 4 bytes, and
/// 17.8 MB of 1 MiB; as anybody else's, a body in frames of 64 bytes and more is held less than
/// twice. The content type is the client's own word, so that these are the numbers to reckon with.
///
/// Defaults to a burst of 1,024, one per 64 bytes, and 100 per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinyFrames {
    pub(crate) burst: u32,
    per_bytes: u32,
    per_second: u32,
}

/// Counts the small frames of one body.
#[derive(Debug)]
struct Meter {
    since: Instant,
    /// Eighths of a frame, both.
    spent: u64,
    granted_by_time: u64,
}

/// The small frames of one body, on their way.
pub(crate) struct Pack {
    meter: Meter,
    held: BytesMut,
    /// The task was asked to poll once more, and nothing has come since.
    asked: bool,
}

/// What is to be done while the inner body has nothing more.
pub(crate) enum Wait {
    /// Nothing is held.
    Empty,
    /// Hand on what is held.
    Flush,
    /// Ask for one more poll.
    Ask,
}

// === TinyFrames ===

impl TinyFrames {
    /// So many frames are free. Defaults to 1,024.
    pub fn burst(mut self, frames: u32) -> Self {
        self.burst = frames;
        self
    }

    /// One more frame for every so many bytes. 0 gives none for bytes. Defaults to 64.
    pub fn per_bytes(mut self, bytes: u32) -> Self {
        self.per_bytes = bytes;
        self
    }

    /// So many more frames in every second since the 17th small one. Defaults to 100.
    pub fn per_second(mut self, frames: u32) -> Self {
        self.per_second = frames;
        self
    }

    /// What `received` bytes justify, in eighths of a frame.
    fn granted_by_bytes(&self, received: u64) -> u64 {
        received
            .saturating_mul(WHOLE)
            .checked_div(u64::from(self.per_bytes))
            .unwrap_or(0)
    }

    /// What the time from `since` to `now` justifies, in eighths of a frame.
    fn granted_by_time(&self, since: Instant, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(since).as_millis();
        let eighths = millis.saturating_mul(u128::from(u64::from(self.per_second) * WHOLE)) / 1000;
        u64::try_from(eighths).unwrap_or(u64::MAX)
    }
}

impl Default for TinyFrames {
    fn default() -> Self {
        Self {
            burst: 1024,
            per_bytes: 64,
            per_second: 100,
        }
    }
}

// === Meter ===

impl Meter {
    /// `eighths` more of `received` bytes in all. The limit and the number of frames, if these
    /// are too many.
    fn spend(
        &mut self,
        eighths: u64,
        received: u64,
        allowed: &TinyFrames,
        grpc: bool,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), (u64, u64)> {
        self.spent = self.spent.saturating_add(eighths);
        let factor = if grpc { GRPC } else { 1 };
        let by_bytes = allowed.granted_by_bytes(received);
        let burst = u64::from(allowed.burst) * WHOLE;
        let limit = |by_time: u64| {
            by_bytes
                .saturating_add(by_time)
                .saturating_mul(factor)
                .saturating_add(burst)
        };
        if self.spent <= limit(self.granted_by_time) {
            return Ok(());
        }
        // The clock is read here alone: what the last look at it granted is spent.
        self.granted_by_time = allowed.granted_by_time(self.since, now());
        let limit = limit(self.granted_by_time);
        if self.spent <= limit {
            return Ok(());
        }
        Err((limit / WHOLE, self.spent.div_ceil(WHOLE)))
    }
}

// === Pack ===

impl Pack {
    /// For a body that has come in [`UNTOUCHED`] small frames so far.
    pub(crate) fn new(now: Instant) -> Self {
        let spent = u64::from(UNTOUCHED) * WHOLE;
        let meter = Meter {
            since: now,
            spent,
            granted_by_time: 0,
        };
        Self {
            meter,
            held: BytesMut::new(),
            asked: false,
        }
    }

    /// Counts one more small frame. The limit and the number of frames, if these are too many.
    pub(crate) fn count(
        &mut self,
        received: u64,
        allowed: &TinyFrames,
        grpc: bool,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), (u64, u64)> {
        let eighths = if self.held.is_empty() { WHOLE } else { 1 };
        self.meter.spend(eighths, received, allowed, grpc, now)
    }

    /// Takes over the bytes of a small frame.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        self.asked = false;
        if self.held.capacity().saturating_sub(self.held.len()) < frame.len()
            && !self.held.try_reclaim(frame.len())
        {
            // What is held is less than a quarter of the old block's end; the rest of that block
            // is in the frames that were handed on, so hardly a byte of it is wasted.
            let mut block = BytesMut::with_capacity(BLOCK);
            block.extend_from_slice(&self.held);
            self.held = block;
        }
        self.held.extend_from_slice(frame);
    }

    /// Whether no more may be put together.
    pub(crate) fn is_full(&self) -> bool {
        self.held.len() > AHEAD - SMALL
    }

    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Hands on what is held, as one frame. It shares its block with those before and after.
    pub(crate) fn flush(&mut self) -> Bytes {
        self.asked = false;
        self.held.split().freeze()
    }

    /// The inner body is Pending.
    pub(crate) fn wait(&mut self, may_hold: bool) -> Wait {
        if self.held.is_empty() {
            Wait::Empty
        } else if !may_hold || self.asked || self.held.len() >= ENOUGH {
            Wait::Flush
        } else {
            self.asked = true;
            Wait::Ask
        }
    }
}

impl fmt::Debug for Pack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pack")
            .field("meter", &self.meter)
            .field("held", &self.held.len())
            .field("asked", &self.asked)
            .finish()
    }
}
