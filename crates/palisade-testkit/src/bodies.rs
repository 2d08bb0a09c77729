//! Bodies to send.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// A body of so many frames of the same length. It is not said how long it will be unless
/// [`Self::declared`], so that HTTP/1 sends it in chunks.
#[derive(Debug)]
pub struct Pieces {
    frame: Bytes,
    left: u64,
    declares: bool,
    pause: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Pieces {
    /// `count` frames of `length` bytes.
    pub fn new(count: u64, length: usize) -> Self {
        Self {
            frame: vec![b'x'; length].into(),
            left: count,
            declares: false,
            pause: None,
        }
    }

    /// Says how long it is.
    pub fn declared(mut self) -> Self {
        self.declares = true;
        self
    }

    /// Waits for `pause` before every frame.
    pub fn every(mut self, pause: Duration) -> Self {
        self.pause = Some((pause, Box::pin(sleep(pause))));
        self
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if let Some((pause, timer)) = &mut self.pause {
            ready!(timer.as_mut().poll(cx));
            timer.set(sleep(*pause));
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(self.frame.clone()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.declares {
            return SizeHint::with_exact(self.left * self.frame.len() as u64);
        }
        SizeHint::new()
    }
}
