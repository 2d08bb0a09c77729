//! A body that costs next to nothing.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// So many frames of 4 KiB, ready at once unless there are waits.
#[derive(Clone, Debug)]
pub struct Frames {
    frame: Bytes,
    left: usize,
    waits: Waits,
}

#[derive(Clone, Copy, Debug)]
enum Waits {
    Never,
    /// Once, when so many are left.
    At(usize),
    /// Before each frame; `true` when the next poll is to wait.
    BeforeEach(bool),
}

impl Frames {
    /// How long each is.
    pub const LENGTH: usize = 4096;

    /// `count` frames.
    pub fn new(count: usize) -> Self {
        Self {
            frame: Bytes::from_static(&[0; Self::LENGTH]),
            left: count,
            waits: Waits::Never,
        }
    }

    /// Is Pending once, in the middle.
    pub fn with_one_wait(mut self) -> Self {
        self.waits = Waits::At(self.left / 2);
        self
    }

    /// Is Pending before each frame, as a body from a network is.
    pub fn with_waits(mut self) -> Self {
        self.waits = Waits::BeforeEach(true);
        self
    }

    /// Whether this poll waits.
    fn waits(&mut self) -> bool {
        match &mut self.waits {
            Waits::At(left) if *left == self.left => {
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
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.waits() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(self.frame.clone()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.left * Self::LENGTH) as u64)
    }
}
