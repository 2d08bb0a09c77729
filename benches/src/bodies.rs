//! A body of little overhead.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// A body of a number of frames of 4 KiB. The frames are ready at once, unless waits are
/// configured.
#[derive(Clone, Debug)]
pub struct Frames {
    frame: Bytes,
    frames_left: usize,
    waits: Waits,
}

#[derive(Clone, Copy, Debug)]
enum Waits {
    Never,
    /// Once, when this number of frames is left.
    At(usize),
    /// Before each frame; `true` if the next poll waits.
    BeforeEach(bool),
}

impl Frames {
    /// The length of each frame.
    pub const LENGTH: usize = 4096;

    /// Returns a body of `count` frames.
    pub fn new(count: usize) -> Self {
        Self {
            frame: Bytes::from_static(&[0; Self::LENGTH]),
            frames_left: count,
            waits: Waits::Never,
        }
    }

    /// Returns `Pending` once, in the middle of the body.
    pub fn with_one_wait(mut self) -> Self {
        self.waits = Waits::At(self.frames_left / 2);
        self
    }

    /// Returns `Pending` before each frame, as a body from a network does.
    pub fn with_waits(mut self) -> Self {
        self.waits = Waits::BeforeEach(true);
        self
    }

    /// Returns whether the current poll waits.
    fn poll_waits(&mut self) -> bool {
        match &mut self.waits {
            Waits::At(left) if *left == self.frames_left => {
                self.waits = Waits::Never;
                true
            }
            Waits::Never | Waits::At(_) => false,
            Waits::BeforeEach(waits) => {
                *waits = !*waits;
                !*waits
            }
        }
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.frames_left == 0 {
            return Poll::Ready(None);
        }
        if self.poll_waits() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.frames_left -= 1;
        Poll::Ready(Some(Ok(Frame::data(self.frame.clone()))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames_left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.frames_left * Self::LENGTH) as u64)
    }
}
