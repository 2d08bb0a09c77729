//! How a request body is counted while it comes.

use crate::{
    TinyFrames,
    frames::{Pack, SMALL, UNTOUCHED, Wait},
    handle::HandlersLimit,
    messages::{Messages, TooLong},
    violation::{status, too_large},
};
use bytes::Bytes;
use http_body::Frame;
use palisade_core::{BoxError, Guard, Mode, Phase, Reason, ResponseFormat, Violation};
use palisade_guard::{Flow, Polled, Settings, Shared, Upstream};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// Frames that are taken from the inner body in one poll at most, so that a body that is always
/// ready leaves something for others.
const MAX_FRAMES_PER_POLL: u32 = 1024;

/// What both sides of a request see.
#[derive(Debug)]
pub struct Common {
    pub(crate) handlers_limit: Option<Arc<HandlersLimit>>,
}

/// Options of the layer, and the request that is watched.
#[derive(Clone, Copy)]
pub(crate) struct Watch<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) tiny_frames: Option<TinyFrames>,
    pub(crate) of: Shared<'a, Common>,
}

/// How one request body is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    stage: Stage,
    /// Whether the body can break a rule. If not, only its small frames are joined.
    is_watched: bool,
    /// Whether small frames may be held back for one more poll.
    holds: bool,
    /// Small frames so far, until they are joined.
    small: u32,
    /// Of the body, or of each message.
    limit: u64,
    /// What may come before the limit is looked at again: the rest of the body, or of a message.
    remaining: u64,
    /// `None` where the limit is that of the whole body.
    messages: Option<Box<Messages>>,
    joined: Option<Box<Joined>>,
}

/// A body of many small frames.
#[derive(Debug)]
pub(crate) struct Joined {
    pack: Pack,
    /// What came after what the pack holds.
    next: Option<Result<Frame<Bytes>, BoxError>>,
    /// The inner body has ended.
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not polled yet, and the handler may change the limit.
    Fresh,
    /// In frames as they come.
    Reading,
    /// In many small frames: they are joined.
    Joining,
    /// A violation was found in shadow mode: one event per request is enough.
    Found,
    /// Refused.
    Over,
}

/// What became of a data frame.
enum Taken {
    /// It is large, or nothing is joined: it goes on by itself.
    Apart,
    Joined,
    /// Joined, and no other can be.
    Full,
}

// === Watch ===

impl Watch<'_> {
    /// The request body broke a rule. Whether it has to end.
    fn violated(self, violation: Violation) -> bool {
        let judge = |_phase| (violation, status(&violation));
        self.of.violated(self.settings, judge).is_some()
    }
}

// === Counted ===

impl Counted {
    /// For a body that can break a rule.
    pub(crate) fn new(holds: bool, limit: u64, is_overridable: bool) -> Self {
        let stage = if is_overridable {
            Stage::Fresh
        } else {
            Stage::Reading
        };
        Self {
            stage,
            is_watched: true,
            holds,
            small: 0,
            limit,
            remaining: limit,
            messages: None,
            joined: None,
        }
    }

    /// The limit is that of each gRPC message.
    pub(crate) fn per_message(self) -> Self {
        Self {
            messages: Some(Box::default()),
            remaining: 0,
            ..self
        }
    }

    /// Bytes that have come so far.
    fn received(&self) -> u64 {
        let granted = self
            .messages
            .as_ref()
            .map_or(self.limit, |messages| messages.granted);
        granted.saturating_sub(self.remaining)
    }

    /// For a body so short that it can break no rule.
    pub(crate) fn harmless() -> Self {
        Self {
            is_watched: false,
            ..Self::new(false, u64::MAX, false)
        }
    }

    pub(crate) fn joined(&self) -> Option<&Joined> {
        self.joined.as_deref()
    }

    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.stage == Stage::Reading
    }

    /// What is left of the limit, if it is enforced and can no longer be changed.
    pub(crate) fn remaining_for_sure(&self, mode: Mode) -> Option<u64> {
        let is_limited = self.is_watched && self.limit < u64::MAX && self.messages.is_none();
        let is_settled = !matches!(self.stage, Stage::Fresh | Stage::Over);
        let is_enforced = mode == Mode::Enforce;
        (is_limited && is_settled && is_enforced).then_some(self.remaining)
    }

    /// How many small frames may come; `None` where they are neither counted nor joined.
    fn allowed(&self, watch: Watch<'_>) -> Option<TinyFrames> {
        if self.is_watched {
            watch.tiny_frames
        } else {
            Some(TinyFrames::default())
        }
    }

    /// Whether a frame of so many bytes is within the limit, and not one small frame too many to
    /// hand on as it comes.
    #[inline(always)]
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        bytes as u64 <= self.remaining && (bytes >= SMALL || self.small < UNTOUCHED - 1)
    }

    /// Counts a frame that [`fits`](Self::fits).
    #[inline(always)]
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.remaining -= bytes as u64;
        self.small += u32::from(bytes < SMALL);
    }

    /// Polls a body that is not read in frames as they come.
    #[cold]
    #[inline(never)]
    pub(crate) fn poll<U: Upstream>(
        &mut self,
        watch: Watch<'_>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if self.stage == Stage::Over {
            let last = self.joined.as_mut().and_then(|joined| joined.next.take());
            *slot = Poll::Ready(last);
            return Flow::Go;
        }
        if self.stage == Stage::Fresh {
            self.stage = Stage::Reading;
            if let Some(handlers_limit) = &watch.of.shared.handlers_limit {
                self.limit = handlers_limit.fix();
                let mut declared = 0;
                if self.messages.is_none() {
                    self.remaining = self.limit;
                    declared = up.size_hint().lower();
                }
                if declared > self.limit {
                    let violation = too_large(Phase::RequestBody, self.limit, declared);
                    if let Err(error) = self.found(watch, violation) {
                        *slot = Poll::Ready(Some(Err(error)));
                        return Flow::LetGo;
                    }
                }
            }
        }
        if self.joined.is_some() {
            return self.poll_joined(watch, up, slot, cx);
        }
        up.poll(slot, cx);
        self.look(watch, slot)
    }

    /// Counts what came of a body whose small frames are not joined so far.
    #[inline]
    pub(crate) fn look(&mut self, watch: Watch<'_>, slot: &mut Polled) -> Flow {
        if let Poll::Ready(Some(Ok(frame))) = slot
            && let Some(data) = frame.data_ref()
        {
            if self.fits(data.len()) {
                self.passed(data.len());
            } else if let Err(error) = self.take_first(watch, data) {
                *slot = Poll::Ready(Some(Err(error)));
                return Flow::LetGo;
            }
        }
        Flow::Go
    }

    /// Counts a frame that does not fit: too much, or one small frame too many to go on like this.
    #[inline(never)]
    fn take_first(&mut self, watch: Watch<'_>, data: &[u8]) -> Result<(), BoxError> {
        self.take_bytes(watch, data)?;
        if data.len() < SMALL && self.allowed(watch).is_some() {
            self.small += 1;
            if self.small == UNTOUCHED {
                let pack = Pack::new(Instant::now());
                self.joined = Some(Box::new(Joined {
                    pack,
                    next: None,
                    has_ended: false,
                }));
                if self.stage == Stage::Reading {
                    self.stage = Stage::Joining;
                }
            }
        }
        Ok(())
    }

    /// Polls a body of many small frames: joins what is ready, and waits once for more.
    fn poll_joined<U: Upstream>(
        &mut self,
        watch: Watch<'_>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        for _ in 0..MAX_FRAMES_PER_POLL {
            let Some(joined) = &mut self.joined else {
                break;
            };
            if let Some(next) = joined.next.take() {
                *slot = Poll::Ready(Some(next));
                return Flow::Go;
            }
            if joined.has_ended {
                *slot = Poll::Ready(None);
                return Flow::Go;
            }
            let mut came = Poll::Pending;
            up.poll(&mut came, cx);
            let next = match came {
                Poll::Pending => {
                    return match joined.pack.wait(self.holds) {
                        Wait::Empty => Flow::Go,
                        Wait::Flush => joined.flush(slot),
                        Wait::Ask => {
                            cx.waker().wake_by_ref();
                            Flow::Busy
                        }
                    };
                }
                Poll::Ready(None) => {
                    joined.has_ended = true;
                    None
                }
                Poll::Ready(Some(Err(error))) => Some(Err(error)),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Err(other) => Some(Ok(other)),
                    Ok(data) => match self.take_joined(watch, &data) {
                        Err(error) => Some(Err(error)),
                        Ok(Taken::Apart) => Some(Ok(Frame::data(data))),
                        Ok(Taken::Joined) if !up.is_end_stream() => continue,
                        Ok(Taken::Joined | Taken::Full) => None,
                    },
                },
            };
            let flow = if self.stage == Stage::Over {
                Flow::LetGo
            } else {
                Flow::Go
            };
            // What is held goes first, and then what came after it.
            let Some(joined) = &mut self.joined else {
                break;
            };
            if joined.pack.held() > 0 {
                joined.next = next;
                return joined.flush(slot).max(flow);
            }
            *slot = Poll::Ready(next);
            return flow;
        }
        if let Some(joined) = &mut self.joined
            && joined.pack.held() > 0
        {
            return joined.flush(slot);
        }
        // Nothing but empty frames: other tasks get a turn.
        cx.waker().wake_by_ref();
        Flow::Busy
    }

    /// Counts a frame of a body of many small ones, and joins it to what is held if it is small.
    fn take_joined(&mut self, watch: Watch<'_>, data: &[u8]) -> Result<Taken, BoxError> {
        self.take_bytes(watch, data)?;
        let received = self.received();
        let allowed = self.allowed(watch);
        let (Some(joined), Some(allowed)) = (&mut self.joined, allowed) else {
            return Ok(Taken::Apart);
        };
        if data.len() >= SMALL {
            return Ok(Taken::Apart);
        }
        let counted = if self.is_watched && self.stage == Stage::Joining {
            let is_grpc = watch.of.facts.form == ResponseFormat::Grpc;
            joined.pack.count(received, &allowed, is_grpc, Instant::now)
        } else {
            Ok(())
        };
        joined.pack.push(data);
        let taken = if joined.pack.is_full() {
            Taken::Full
        } else {
            Taken::Joined
        };
        if let Err((limit, frames)) = counted {
            let (reason, phase) = (Reason::TinyFrames, Phase::RequestBody);
            self.found(
                watch,
                Violation::new(Guard::BodyLimit, reason, phase, limit, frames),
            )?;
        }
        Ok(taken)
    }

    /// Counts the bytes of `data`.
    fn take_bytes(&mut self, watch: Watch<'_>, data: &[u8]) -> Result<(), BoxError> {
        let length = data.len() as u64;
        if let Some(remaining) = self.remaining.checked_sub(length) {
            self.remaining = remaining;
            return Ok(());
        }
        if self.stage == Stage::Found {
            return Ok(());
        }
        let observed = match &mut self.messages {
            None => self
                .limit
                .saturating_sub(self.remaining)
                .saturating_add(length),
            Some(messages) => match messages.take(data, self.remaining, self.limit) {
                Ok(left) => {
                    self.remaining = left;
                    return Ok(());
                }
                Err(TooLong(message)) => message,
            },
        };
        self.found(watch, too_large(Phase::RequestBody, self.limit, observed))
    }

    /// A rule is broken. An error if that ends the body.
    fn found(&mut self, watch: Watch<'_>, violation: Violation) -> Result<(), BoxError> {
        if self.is_watched && watch.violated(violation) {
            self.stage = Stage::Over;
            return Err(violation.into());
        }
        self.stage = Stage::Found;
        self.remaining = u64::MAX;
        Ok(())
    }
}

// === Joined ===

impl Joined {
    /// Whether it has something that the handler does not have yet.
    pub(crate) fn holds(&self) -> bool {
        self.pack.held() > 0 || self.next.is_some()
    }

    /// The bytes that the inner body has given and the handler does not have.
    pub(crate) fn held(&self) -> u64 {
        let next = match &self.next {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        (self.pack.held() as u64).saturating_add(next as u64)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn flush(&mut self, slot: &mut Polled) -> Flow {
        *slot = Poll::Ready(Some(Ok(Frame::data(self.pack.flush()))));
        Flow::Go
    }
}
