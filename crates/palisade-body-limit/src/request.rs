//! The byte and frame counter of a request body.

use crate::{
    TinyFrames,
    frames::{Coalescer, PendingAction, SMALL_FRAME_BYTES, UNCOALESCED_FRAMES},
    handle::OverridableLimit,
    violation::{status, too_large},
};
use bytes::Bytes;
use http_body::Frame;
use palisade_core::{
    BoxError, Guard, HasBodyAccount, MessageScanner, MessageTooLong, Mode, Phase, Reason,
    ResponseFormat, Violation,
};
use palisade_guard::{Flow, Polled, Settings, SharedView, Upstream};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// Number of frames after which one poll ends, so that a body that is always ready does not starve
/// other tasks.
pub(crate) const MAX_FRAMES_PER_POLL: u32 = 1024;

/// The state that both sides of a request share.
#[derive(Debug)]
pub struct SharedState {
    /// `None` if the handler cannot change the limit, or there is nothing to limit.
    pub(crate) overridable_limit: Option<Arc<OverridableLimit>>,
    /// The account to which a decompressed body is charged. `None` if nothing is charged.
    pub(crate) account: Option<Arc<dyn HasBodyAccount>>,
}

/// The rules for one request body, and the exchange to which its violations are reported.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) settings: &'a Settings,
    /// The reason for which a body that is too long is refused.
    pub(crate) too_large: Reason,
    pub(crate) tiny_frames: Option<TinyFrames>,
    pub(crate) exchange: SharedView<'a, SharedState>,
}

/// Counts the bytes and frames of one request body, and coalesces its small frames.
#[derive(Debug)]
pub(crate) struct BodyCounter {
    stage: Stage,
    /// Whether the body can break a rule. If not, its small frames are only coalesced.
    is_limited: bool,
    /// Whether small frames may be held back for one more poll.
    may_hold_back: bool,
    /// Small frames so far, until further ones are coalesced.
    small_frames: u32,
    /// The limit of the body, or of each message.
    limit: u64,
    /// Bytes that may arrive before the limit is checked again: what is left of the limit of the
    /// body, or of the current message.
    remaining: u64,
    /// `None` if the limit applies to the whole body.
    messages: Option<Box<MessageScanner>>,
    /// `None` until small frames are coalesced.
    coalescing: Option<Box<CoalescingState>>,
}

/// The state of a body while its small frames are coalesced.
#[derive(Debug)]
pub(crate) struct CoalescingState {
    coalescer: Coalescer,
    /// What follows the held bytes.
    next: Option<Result<Frame<Bytes>, BoxError>>,
    /// The inner body has ended.
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The body has not been polled and the handler may still change the limit.
    Overridable,
    /// Frames are handed on unchanged.
    PassThrough,
    /// Small frames are coalesced.
    Coalescing,
    /// A violation was recorded in shadow mode. Further ones are not: one event per request is
    /// enough.
    ViolationRecorded,
    /// The body was ended by a violation.
    Ended,
}

/// What a data frame became.
enum FrameOutcome {
    /// The frame is handed on by itself.
    Separate,
    /// The frame was appended to the held bytes, and another small frame may follow.
    Coalesced,
    /// The frame was appended to the held bytes, which are to be handed on now.
    CoalescedFull,
}

// === Rules ===

impl Rules<'_> {
    /// Reports a violation by the request body. Returns whether the body must end.
    fn report(self, violation: Violation) -> bool {
        let refusal = |_phase| (violation, status(&violation));
        self.exchange.violated(self.settings, refusal).is_some()
    }
}

// === BodyCounter ===

impl BodyCounter {
    /// Creates the counter of a body that can break a rule.
    pub(crate) fn new(may_hold_back: bool, limit: u64, is_overridable: bool) -> Self {
        let stage = if is_overridable {
            Stage::Overridable
        } else {
            Stage::PassThrough
        };
        Self {
            stage,
            is_limited: true,
            may_hold_back,
            small_frames: 0,
            limit,
            remaining: limit,
            messages: None,
            coalescing: None,
        }
    }

    /// Applies the limit to each gRPC message.
    pub(crate) fn per_message(self) -> Self {
        Self {
            messages: Some(Box::default()),
            remaining: 0,
            ..self
        }
    }

    /// Creates the counter of a body that is too short to break a rule.
    pub(crate) fn coalescing_only() -> Self {
        Self {
            is_limited: false,
            ..Self::new(false, u64::MAX, false)
        }
    }

    /// Returns the bytes that have arrived so far.
    fn received(&self) -> u64 {
        let admitted = self
            .messages
            .as_ref()
            .map_or(self.limit, |messages| messages.admitted_bytes);
        admitted.saturating_sub(self.remaining)
    }

    pub(crate) fn coalescing(&self) -> Option<&CoalescingState> {
        self.coalescing.as_deref()
    }

    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.stage == Stage::PassThrough
    }

    /// Returns what is left of the limit, if the limit is enforced and can no longer change.
    pub(crate) fn enforced_remaining(&self, mode: Mode) -> Option<u64> {
        let has_body_limit = self.is_limited && self.limit < u64::MAX && self.messages.is_none();
        let is_settled = !matches!(self.stage, Stage::Overridable | Stage::Ended);
        if has_body_limit && is_settled && mode == Mode::Enforce {
            Some(self.remaining)
        } else {
            None
        }
    }

    /// Returns the limit for small frames. `None` if they are neither counted nor coalesced.
    fn tiny_frames(&self, rules: Rules<'_>) -> Option<TinyFrames> {
        if self.is_limited {
            rules.tiny_frames
        } else {
            Some(TinyFrames::default())
        }
    }

    /// Whether a frame of this many bytes is within the limit and does not start the coalescing of
    /// small frames.
    #[inline(always)]
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        bytes as u64 <= self.remaining
            && (bytes >= SMALL_FRAME_BYTES || self.small_frames < UNCOALESCED_FRAMES - 1)
    }

    /// Counts a frame that [`fits`](Self::fits).
    #[inline(always)]
    pub(crate) fn count_frame(&mut self, bytes: usize) {
        self.remaining -= bytes as u64;
        self.small_frames += u32::from(bytes < SMALL_FRAME_BYTES);
    }

    /// Polls a body that is not in [`Stage::PassThrough`].
    #[cold]
    #[inline(never)]
    pub(crate) fn poll<U: Upstream>(
        &mut self,
        rules: Rules<'_>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if self.stage == Stage::Ended {
            let last = self
                .coalescing
                .as_mut()
                .and_then(|coalescing| coalescing.next.take());
            *slot = Poll::Ready(last);
            return Flow::Continue;
        }
        if self.stage == Stage::Overridable {
            self.stage = Stage::PassThrough;
            if let Some(overridable_limit) = &rules.exchange.shared.overridable_limit {
                self.limit = overridable_limit.fix();
                let mut declared = 0;
                if self.messages.is_none() {
                    self.remaining = self.limit;
                    declared = up.size_hint().lower();
                }
                if declared > self.limit {
                    let violation =
                        too_large(rules.too_large, Phase::RequestBody, self.limit, declared);
                    if let Err(error) = self.report(rules, violation) {
                        *slot = Poll::Ready(Some(Err(error)));
                        return Flow::Linger;
                    }
                }
            }
        }
        if self.coalescing.is_some() {
            return self.poll_coalescing(rules, up, slot, cx);
        }
        up.poll(slot, cx);
        self.check_polled(rules, slot)
    }

    /// Counts the polled frame in `slot` while small frames are not coalesced.
    #[inline]
    pub(crate) fn check_polled(&mut self, rules: Rules<'_>, slot: &mut Polled) -> Flow {
        if let Poll::Ready(Some(Ok(frame))) = slot
            && let Some(data) = frame.data_ref()
        {
            if self.fits(data.len()) {
                self.count_frame(data.len());
            } else if let Err(error) = self.count_unfit_frame(rules, data) {
                *slot = Poll::Ready(Some(Err(error)));
                return Flow::Linger;
            }
        }
        Flow::Continue
    }

    /// Counts a frame that does not [fit](Self::fits): it exceeds the limit, or it is the last
    /// small frame before coalescing starts.
    #[inline(never)]
    fn count_unfit_frame(&mut self, rules: Rules<'_>, data: &[u8]) -> Result<(), BoxError> {
        self.count_bytes(rules, data)?;
        if data.len() < SMALL_FRAME_BYTES && self.tiny_frames(rules).is_some() {
            self.small_frames += 1;
            if self.small_frames == UNCOALESCED_FRAMES {
                self.coalescing = Some(Box::new(CoalescingState {
                    coalescer: Coalescer::new(Instant::now()),
                    next: None,
                    has_ended: false,
                }));
                if self.stage == Stage::PassThrough {
                    self.stage = Stage::Coalescing;
                }
            }
        }
        Ok(())
    }

    /// Polls a body while its small frames are coalesced: joins all frames that are ready, and
    /// waits for one more poll before it hands on a short result.
    fn poll_coalescing<U: Upstream>(
        &mut self,
        rules: Rules<'_>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        for _ in 0..MAX_FRAMES_PER_POLL {
            let Some(coalescing) = &mut self.coalescing else {
                break;
            };
            if let Some(next) = coalescing.next.take() {
                *slot = Poll::Ready(Some(next));
                return Flow::Continue;
            }
            if coalescing.has_ended {
                *slot = Poll::Ready(None);
                return Flow::Continue;
            }
            let mut polled = Poll::Pending;
            up.poll(&mut polled, cx);
            let next = match polled {
                Poll::Pending => {
                    return match coalescing.coalescer.on_pending(self.may_hold_back) {
                        PendingAction::Wait => Flow::Continue,
                        PendingAction::Flush => coalescing.flush(slot),
                        PendingAction::Repoll => {
                            cx.waker().wake_by_ref();
                            Flow::Busy
                        }
                    };
                }
                Poll::Ready(None) => {
                    coalescing.has_ended = true;
                    None
                }
                Poll::Ready(Some(Err(error))) => Some(Err(error)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Err(other) => Some(Ok(other)),
                    Ok(data) => match self.coalesce_frame(rules, &data) {
                        Err(error) => Some(Err(error)),
                        Ok(FrameOutcome::Separate) => Some(Ok(Frame::data(data))),
                        Ok(FrameOutcome::Coalesced) if !up.is_end_stream() => continue,
                        Ok(FrameOutcome::Coalesced | FrameOutcome::CoalescedFull) => None,
                    },
                },
            };
            let flow = if self.stage == Stage::Ended {
                Flow::Linger
            } else {
                Flow::Continue
            };
            // The held bytes arrived before `next`, so they are handed on first.
            let Some(coalescing) = &mut self.coalescing else {
                break;
            };
            if coalescing.coalescer.held_bytes() > 0 {
                coalescing.next = next;
                return coalescing.flush(slot).max(flow);
            }
            *slot = Poll::Ready(next);
            return flow;
        }
        if let Some(coalescing) = &mut self.coalescing
            && coalescing.coalescer.held_bytes() > 0
        {
            return coalescing.flush(slot);
        }
        // All of these frames were empty: yield to other tasks.
        cx.waker().wake_by_ref();
        Flow::Busy
    }

    /// Counts a frame while small frames are coalesced. Appends it to the held bytes if it is
    /// small.
    fn coalesce_frame(&mut self, rules: Rules<'_>, data: &[u8]) -> Result<FrameOutcome, BoxError> {
        self.count_bytes(rules, data)?;
        let received = self.received();
        let allowed = self.tiny_frames(rules);
        let (Some(coalescing), Some(allowed)) = (&mut self.coalescing, allowed) else {
            return Ok(FrameOutcome::Separate);
        };
        if data.len() >= SMALL_FRAME_BYTES {
            return Ok(FrameOutcome::Separate);
        }
        let coalescer = &mut coalescing.coalescer;
        let counted = if self.is_limited && self.stage == Stage::Coalescing {
            let is_grpc = rules.exchange.facts.form == ResponseFormat::Grpc;
            coalescer.count(received, &allowed, is_grpc, Instant::now)
        } else {
            Ok(())
        };
        coalescer.push(data);
        let outcome = if coalescer.is_full() {
            FrameOutcome::CoalescedFull
        } else {
            FrameOutcome::Coalesced
        };
        if let Err((limit, frames)) = counted {
            let (reason, phase) = (Reason::TinyFrames, Phase::RequestBody);
            self.report(
                rules,
                Violation::new(Guard::BodyLimit, reason, phase, limit, frames),
            )?;
        }
        Ok(outcome)
    }

    /// Counts the bytes of `data`. Fails if they exceed the limit and the limit is enforced.
    fn count_bytes(&mut self, rules: Rules<'_>, data: &[u8]) -> Result<(), BoxError> {
        let length = data.len() as u64;
        if let Some(remaining) = self.remaining.checked_sub(length) {
            self.remaining = remaining;
            return Ok(());
        }
        if self.stage == Stage::ViolationRecorded {
            return Ok(());
        }
        let observed = match &mut self.messages {
            None => self
                .limit
                .saturating_sub(self.remaining)
                .saturating_add(length),
            Some(messages) => match messages.scan(data, self.remaining, self.limit) {
                Ok(remaining) => {
                    self.remaining = remaining;
                    return Ok(());
                }
                Err(MessageTooLong(message)) => message,
            },
        };
        let violation = too_large(rules.too_large, Phase::RequestBody, self.limit, observed);
        self.report(rules, violation)
    }

    /// Reports a violation. Fails with it if it ends the body.
    fn report(&mut self, rules: Rules<'_>, violation: Violation) -> Result<(), BoxError> {
        if self.is_limited && rules.report(violation) {
            self.stage = Stage::Ended;
            return Err(violation.into());
        }
        self.stage = Stage::ViolationRecorded;
        self.remaining = u64::MAX;
        Ok(())
    }
}

// === CoalescingState ===

impl CoalescingState {
    /// Whether the inner body has yielded something that the handler does not have yet.
    pub(crate) fn has_undelivered(&self) -> bool {
        self.coalescer.held_bytes() > 0 || self.next.is_some()
    }

    /// Returns the bytes that the inner body has yielded and the handler does not have yet.
    pub(crate) fn undelivered_bytes(&self) -> u64 {
        let next = match &self.next {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        (self.coalescer.held_bytes() as u64).saturating_add(next as u64)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn flush(&mut self, slot: &mut Polled) -> Flow {
        *slot = Poll::Ready(Some(Ok(Frame::data(self.coalescer.flush()))));
        Flow::Continue
    }
}
