//! What is known of a request body while it comes.

use crate::{
    TinyFrames,
    frames::{Pack, SMALL, UNTOUCHED, Wait},
    watch::{Watch, too_large},
};
use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame};
use palisade_core::{BoxError, Guard, Mode, Phase, Reason, Violation};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Instant;

/// So many frames are taken from the inner body in one poll at most, so that a body that is always
/// ready leaves something for others.
const AT_ONCE: u32 = 1024;

#[derive(Debug)]
pub(crate) struct Counted {
    /// `None` for a body so short that it can break no rule: only its pieces are put together.
    watch: Option<Arc<Watch>>,
    pub(crate) stage: Stage,
    /// Whether small frames may be held back for one more poll.
    holds: bool,
    /// Small frames so far, until there is a `pack`.
    small: u32,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    pub(crate) pack: Option<Box<Packed>>,
}

/// A body of many small frames.
#[derive(Debug)]
pub(crate) struct Packed {
    pack: Pack,
    /// What came after what is held.
    next: Option<Result<Frame<Bytes>, BoxError>>,
    /// The inner body has ended.
    pub(crate) ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not polled yet.
    Fresh,
    /// In frames as they come.
    Reading,
    /// In many small frames: there is a `pack`.
    Joining,
    /// Something was found in shadow mode: one event per request is enough.
    Found,
    /// Refused.
    Over,
}

/// What became of a frame.
enum Taken {
    /// It is large, or nothing is joined: it goes on by itself.
    Apart,
    Joined,
    /// Joined, and no other can be.
    Full,
}

pub(crate) type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

// === Counted ===

impl Counted {
    /// Of the request whose body this is.
    pub(crate) fn version(&self) -> Version {
        self.watch.as_ref().map_or(Version::HTTP_11, |watch| watch.version)
    }

    /// Of a body that can be refused.
    pub(crate) fn watched(watch: Arc<Watch>, limit: u64) -> Self {
        let holds = !watch.grpc;
        Self::new(Some(watch), holds, limit)
    }

    /// Of a body so short that it can break no rule.
    pub(crate) fn harmless() -> Self {
        Self::new(None, false, u64::MAX)
    }

    fn new(watch: Option<Arc<Watch>>, holds: bool, limit: u64) -> Self {
        let stage = Stage::Fresh;
        Self { watch, stage, holds, small: 0, limit, remaining: limit, pack: None }
    }

    /// What is left to hand on of a body that broke a rule.
    pub(crate) fn last(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.pack.as_mut().and_then(|packed| packed.next.take())
    }

    /// Whether the limit is enforced and nobody can change it any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| {
            watch.shared.settings.mode == Mode::Enforce
                && !(self.stage == Stage::Fresh && watch.shared.overridable)
        })
    }

    /// How many small frames may come; `None` where they are neither counted nor joined.
    fn allowed(&self) -> Option<TinyFrames> {
        match &self.watch {
            Some(watch) => watch.shared.tiny_frames,
            None => Some(TinyFrames::default()),
        }
    }

    /// Whether `data` is large enough not to be counted, and within the limit.
    #[inline]
    pub(crate) fn has_room_for(&self, data: &Bytes) -> bool {
        data.len() >= SMALL && data.len() as u64 <= self.remaining
    }

    /// Whatever is not the next large frame of a body that comes in large frames.
    #[cold]
    pub(crate) fn poll_slowly<B>(&mut self, inner: Pin<&mut B>, cx: &mut Context<'_>) -> Polled
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        if self.stage == Stage::Fresh {
            self.stage = Stage::Reading;
            if let Some(watch) = self.watch.as_ref().filter(|watch| watch.shared.overridable) {
                self.limit = watch.start_reading();
                self.remaining = self.limit;
                let declared = inner.size_hint().lower();
                if declared > self.limit {
                    let violation = too_large(Phase::RequestBody, self.limit, declared);
                    if let Err(error) = self.found(violation) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
        if self.pack.is_some() {
            return self.poll_packed(inner, cx);
        }
        match ready!(inner.poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.take_first(data),
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None => Poll::Ready(None),
        }
    }

    /// A frame of a body that has not come in many small ones so far.
    pub(crate) fn take_first(&mut self, data: Bytes) -> Polled {
        if let Err(error) = self.take_bytes(data.len()) {
            return Poll::Ready(Some(Err(error)));
        }
        if data.len() < SMALL && self.allowed().is_some() {
            self.small += 1;
            if self.small == UNTOUCHED {
                let pack = Pack::new(Instant::now());
                self.pack = Some(Box::new(Packed { pack, next: None, ended: false }));
                if self.stage == Stage::Reading {
                    self.stage = Stage::Joining;
                }
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// The body of many small frames: puts together what is ready, and waits once for more.
    fn poll_packed<B>(&mut self, mut inner: Pin<&mut B>, cx: &mut Context<'_>) -> Polled
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        for _ in 0..AT_ONCE {
            let Some(packed) = &mut self.pack else { break };
            if let Some(next) = packed.next.take() {
                return Poll::Ready(Some(next));
            }
            if packed.ended {
                return Poll::Ready(None);
            }
            let next = match inner.as_mut().poll_frame(cx) {
                Poll::Pending => match packed.pack.wait(self.holds) {
                    Wait::Empty => return Poll::Pending,
                    Wait::Flush => return packed.flush(),
                    Wait::Ask => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                },
                Poll::Ready(None) => {
                    packed.ended = true;
                    None
                }
                Poll::Ready(Some(Err(error))) => Some(Err(error.into())),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Err(other) => Some(Ok(other)),
                    Ok(data) => match self.take_packed(&data) {
                        Err(error) => Some(Err(error)),
                        Ok(Taken::Apart) => Some(Ok(Frame::data(data))),
                        Ok(Taken::Joined) if !inner.is_end_stream() => continue,
                        Ok(Taken::Joined | Taken::Full) => None,
                    },
                },
            };
            // What is held goes first, and then what came after it.
            let Some(packed) = &mut self.pack else { break };
            if packed.pack.held() > 0 {
                packed.next = next;
                return packed.flush();
            }
            return Poll::Ready(next);
        }
        let Some(packed) = &mut self.pack else { return Poll::Ready(None) };
        if packed.pack.held() > 0 {
            return packed.flush();
        }
        // Nothing but empty frames: let others have a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts a frame of a body of many small ones, and joins it to what is held if it is one.
    fn take_packed(&mut self, data: &[u8]) -> Result<Taken, BoxError> {
        self.take_bytes(data.len())?;
        let received = self.limit.saturating_sub(self.remaining);
        let allowed = self.allowed();
        let (Some(packed), Some(allowed)) = (&mut self.pack, allowed) else {
            return Ok(Taken::Apart);
        };
        if data.len() >= SMALL {
            return Ok(Taken::Apart);
        }
        let counted = match &self.watch {
            Some(watch) if self.stage == Stage::Joining => {
                packed.pack.count(received, &allowed, watch.grpc, Instant::now)
            }
            _ => Ok(()),
        };
        packed.pack.push(data);
        let taken = if packed.pack.is_full() { Taken::Full } else { Taken::Joined };
        if let Err((limit, frames)) = counted {
            let reason = Reason::TinyFrames;
            let phase = Phase::RequestBody;
            self.found(Violation::new(Guard::BodyLimit, reason, phase, limit, frames))?;
        }
        Ok(taken)
    }

    /// Counts `length` bytes.
    fn take_bytes(&mut self, length: usize) -> Result<(), BoxError> {
        let length = length as u64;
        if let Some(remaining) = self.remaining.checked_sub(length) {
            self.remaining = remaining;
            return Ok(());
        }
        if self.stage == Stage::Found {
            return Ok(());
        }
        let received = (self.limit - self.remaining).saturating_add(length);
        self.found(too_large(Phase::RequestBody, self.limit, received))
    }

    /// A rule is broken. An error if that ends the body.
    fn found(&mut self, violation: Violation) -> Result<(), BoxError> {
        if self.watch.as_ref().is_some_and(|watch| watch.violated(violation)) {
            self.stage = Stage::Over;
            return Err(violation.into());
        }
        self.stage = Stage::Found;
        self.remaining = u64::MAX;
        Ok(())
    }
}

// === Packed ===

impl Packed {
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

    fn flush(&mut self) -> Polled {
        Poll::Ready(Some(Ok(Frame::data(self.pack.flush()))))
    }
}
