//! A body that costs next to nothing.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// So many frames of 4 KiB, ready at once but for one wait if there is to be one.
#[derive(Clone, Debug)]
pub struct Frames {
    frame: Bytes,
    left: usize,
    wait_at: usize,
}

impl Frames {
    /// How long each is.
    pub const LENGTH: usize = 4096;

    /// `count` frames.
    pub fn new(count: usize) -> Self {
        Self { frame: Bytes::from_static(&[0; Self::LENGTH]), left: count, wait_at: 0 }
    }

    /// Is Pending once, in the middle.
    pub fn with_one_wait(mut self) -> Self {
        self.wait_at = self.left / 2;
        self
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
        if self.left == self.wait_at {
            self.wait_at = 0;
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
