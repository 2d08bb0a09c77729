//! Small frames of a request body: the frame budget, and the coalescer.
//!
//! A handler that collects a body pays for every frame: 32 to 64 bytes in its own list, and the
//! memory block that the frame is a slice of. hyper reads HTTP/1 into a new block of 8 KiB
//! whenever the previous block is still in use, so a frame of one byte that the client sends by
//! itself can keep 8 KiB allocated.

use bytes::{Bytes, BytesMut};
use std::fmt;
use tokio::time::Instant;

/// Length below which a data frame is small. Small frames are coalesced by copying, because each
/// fills less than half of the block that it is a slice of.
pub(crate) const SMALL_FRAME_BYTES: usize = 4096;
/// Number of small frames at the start of a body that are not coalesced, so that a short body costs
/// nothing.
pub(crate) const UNCOALESCED_FRAMES: u32 = 16;
/// Number of held bytes from which the coalescer no longer waits for more.
const FLUSH_THRESHOLD_BYTES: usize = 512;
/// Longest frame that the coalescer makes.
const MAX_COALESCED_BYTES: usize = 16 * 1024;
/// Size of the blocks into which small frames are copied.
const BLOCK_BYTES: usize = 16 * 1024;
/// The budget's unit is an eighth of a frame: a frame that the handler receives costs eight units,
/// a frame that is appended to a held one costs one unit.
const EIGHTHS_PER_FRAME: u64 = 8;
/// Factor by which received bytes and elapsed time grant more frames to gRPC over HTTP/2. With the
/// default of one frame per 64 bytes this is one frame per 4 bytes, and no gRPC message is shorter
/// than its prefix of 5 bytes.
const GRPC_FACTOR: u64 = 16;

/// Limits the number of small frames of a request body: to `burst` frames, plus one for every
/// `per_bytes` bytes received, plus `per_second` frames per second.
///
/// After the first 16 small frames of a body, further ones are coalesced. While fewer than 512
/// bytes are held, they are held back until the task has been polled once more, in case more bytes
/// arrive; no timer is involved. A frame that is appended to a held one counts as an eighth of a
/// frame. A body with more frames than allowed is refused with 400, or `RESOURCE_EXHAUSTED` in
/// gRPC.
///
/// A handler that collects the body then holds at most twice the body's bytes plus 256 KiB, plus 64
/// bytes for every frame of `per_second`. Frames of 4 KiB and more are neither counted nor copied.
///
/// gRPC over HTTP/2 has small messages by nature. Its frames are never held back, and bytes and
/// time grant it 16 times as many frames, a number that well-behaved clients cannot reach. A
/// handler that collects a gRPC body holds at most 18 times the body's bytes plus 256 KiB, plus
/// 1,024 bytes for every frame of `per_second`. Measured with the defaults in frames of 4 bytes:
/// 18.9 MB for a body of 2 MiB, which is the limit, and 17.8 MB for one of 1 MiB. In frames of 64
/// bytes and more, the body is held in less than twice its size, as any other body is. Clients
/// choose their content type freely, so plan memory with the figures for gRPC.
///
/// Defaults to a burst of 1,024, one per 64 bytes, and 100 per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until a layer takes it"]
pub struct TinyFrames {
    pub(crate) burst: u32,
    per_bytes: u32,
    per_second: u32,
}

/// Counts the small frames of one body against [`TinyFrames`].
#[derive(Debug)]
struct FrameBudget {
    started: Instant,
    /// Eighths of a frame that have been used.
    spent: u64,
    /// Eighths of a frame that the elapsed time had granted when the clock was last read.
    granted_by_time: u64,
}

/// Joins the small frames of one body into larger ones, within a frame budget.
pub(crate) struct Coalescer {
    budget: FrameBudget,
    held: BytesMut,
    /// The task was woken to poll once more, and no small frame has arrived since.
    is_repoll_requested: bool,
}

/// What to do with held bytes while the inner body is pending.
pub(crate) enum PendingAction {
    /// Nothing is held: stay pending.
    Wait,
    /// Hand on the held bytes.
    Flush,
    /// Wake the task, to poll the inner body once more.
    Repoll,
}

// === TinyFrames ===

impl TinyFrames {
    /// Sets the number of frames that every body may have. Defaults to 1,024.
    ///
    /// ```
    /// use palisade_body_limit::{BodyLimitLayer, TinyFrames};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let frames = TinyFrames::default().per_bytes(0).per_second(0).burst(32);
    /// let layer = BodyLimitLayer::default().tiny_frames(frames);
    /// // Sixteen single frames, and up to 128 that are joined and count as an eighth of one.
    /// assert_eq!(status(&layer, Request::new(chunked(32, 1))).await, 200);
    /// assert_eq!(status(&layer, Request::new(chunked(200, 1))).await, 400);
    /// # Ok(())
    /// # }
    /// ```
    pub fn burst(mut self, frames: u32) -> Self {
        self.burst = frames;
        self
    }

    /// Sets the number of received bytes that grant one more frame. 0 grants none. Defaults to 64.
    ///
    /// ```
    /// use palisade_body_limit::{BodyLimitLayer, TinyFrames};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let frames = TinyFrames::default().burst(16).per_second(0);
    /// let layer = BodyLimitLayer::default().tiny_frames(frames.per_bytes(64));
    /// // 8,000 bytes grant 125 frames.
    /// assert_eq!(status(&layer, Request::new(chunked(1_000, 8))).await, 200);
    /// let layer = BodyLimitLayer::default().tiny_frames(frames.per_bytes(640));
    /// assert_eq!(status(&layer, Request::new(chunked(1_000, 8))).await, 400);
    /// # Ok(())
    /// # }
    /// ```
    pub fn per_bytes(mut self, bytes: u32) -> Self {
        self.per_bytes = bytes;
        self
    }

    /// Sets the number of frames that are granted per second, from the 16th small frame on.
    /// Defaults to 100.
    ///
    /// ```
    /// use palisade_body_limit::{BodyLimitLayer, TinyFrames};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // A byte every 50 ms, as from a keyboard.
    /// let typed = || chunked(100, 1).every(Duration::from_millis(50));
    /// let frames = TinyFrames::default().burst(16).per_bytes(0);
    /// let layer = BodyLimitLayer::default().tiny_frames(frames.per_second(20));
    /// assert_eq!(status(&layer, Request::new(typed())).await, 200);
    /// let layer = BodyLimitLayer::default().tiny_frames(frames.per_second(10));
    /// assert_eq!(status(&layer, Request::new(typed())).await, 400);
    /// # Ok(())
    /// # }
    /// ```
    pub fn per_second(mut self, frames: u32) -> Self {
        self.per_second = frames;
        self
    }

    /// Returns the eighths of a frame that `received` bytes grant.
    fn granted_by_bytes(&self, received: u64) -> u64 {
        received
            .saturating_mul(EIGHTHS_PER_FRAME)
            .checked_div(u64::from(self.per_bytes))
            .unwrap_or(0)
    }

    /// Returns the eighths of a frame that the time from `started` to `now` grants.
    fn granted_by_time(&self, started: Instant, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(started).as_millis();
        let eighths_per_second = u64::from(self.per_second) * EIGHTHS_PER_FRAME;
        let eighths = millis.saturating_mul(u128::from(eighths_per_second)) / 1000;
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

// === FrameBudget ===

impl FrameBudget {
    /// Spends `eighths` of a frame, for a body of which `received` bytes have arrived. Fails with
    /// the limit and the observed number of frames if the budget is exceeded.
    fn spend(
        &mut self,
        eighths: u64,
        received: u64,
        allowed: &TinyFrames,
        grpc: bool,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), (u64, u64)> {
        self.spent = self.spent.saturating_add(eighths);
        let factor = if grpc { GRPC_FACTOR } else { 1 };
        let by_bytes = allowed.granted_by_bytes(received);
        let burst = u64::from(allowed.burst) * EIGHTHS_PER_FRAME;
        let limit = |by_time: u64| {
            by_bytes
                .saturating_add(by_time)
                .saturating_mul(factor)
                .saturating_add(burst)
        };
        if self.spent <= limit(self.granted_by_time) {
            return Ok(());
        }
        // Read the clock only now that the time granted at the last reading is used up.
        self.granted_by_time = allowed.granted_by_time(self.started, now());
        let limit = limit(self.granted_by_time);
        if self.spent <= limit {
            return Ok(());
        }
        Err((
            limit / EIGHTHS_PER_FRAME,
            self.spent.div_ceil(EIGHTHS_PER_FRAME),
        ))
    }
}

// === Coalescer ===

impl Coalescer {
    /// Creates the coalescer of a body that has had [`UNCOALESCED_FRAMES`] small frames so far.
    pub(crate) fn new(now: Instant) -> Self {
        let budget = FrameBudget {
            started: now,
            spent: u64::from(UNCOALESCED_FRAMES) * EIGHTHS_PER_FRAME,
            granted_by_time: 0,
        };
        Self {
            budget,
            held: BytesMut::new(),
            is_repoll_requested: false,
        }
    }

    /// Counts one more small frame, before it is [pushed](Self::push). Fails with the limit and the
    /// observed number of frames if the budget is exceeded.
    pub(crate) fn count(
        &mut self,
        received: u64,
        allowed: &TinyFrames,
        grpc: bool,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), (u64, u64)> {
        let eighths = if self.held.is_empty() {
            EIGHTHS_PER_FRAME
        } else {
            1
        };
        self.budget.spend(eighths, received, allowed, grpc, now)
    }

    /// Appends the bytes of a small frame to the held bytes.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        self.is_repoll_requested = false;
        if self.held.capacity().saturating_sub(self.held.len()) < frame.len()
            && !self.held.try_reclaim(frame.len())
        {
            // Move the held bytes to a new block. Little is wasted: the unused end of the old block
            // is shorter than this frame, which is less than a quarter of a block.
            let mut block = BytesMut::with_capacity(BLOCK_BYTES);
            block.extend_from_slice(&self.held);
            self.held = block;
        }
        self.held.extend_from_slice(frame);
    }

    /// Whether another small frame might exceed [`MAX_COALESCED_BYTES`].
    pub(crate) fn is_full(&self) -> bool {
        self.held.len() > MAX_COALESCED_BYTES - SMALL_FRAME_BYTES
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Takes the held bytes as one frame, which shares its block with the frames before and after.
    pub(crate) fn flush(&mut self) -> Bytes {
        self.is_repoll_requested = false;
        self.held.split().freeze()
    }

    /// Decides what to do while the inner body is pending. Held bytes wait for one more poll only
    /// if they `may_wait`.
    pub(crate) fn on_pending(&mut self, may_wait: bool) -> PendingAction {
        if self.held.is_empty() {
            PendingAction::Wait
        } else if !may_wait || self.is_repoll_requested || self.held.len() >= FLUSH_THRESHOLD_BYTES
        {
            PendingAction::Flush
        } else {
            self.is_repoll_requested = true;
            PendingAction::Repoll
        }
    }
}

impl fmt::Debug for Coalescer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalescer")
            .field("budget", &self.budget)
            .field("held_bytes", &self.held.len())
            .field("is_repoll_requested", &self.is_repoll_requested)
            .finish()
    }
}
