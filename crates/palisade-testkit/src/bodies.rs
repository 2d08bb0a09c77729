//! Request and response bodies.

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    io::Write,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};

/// A body of a number of frames of the same length. It has no size hint unless it is
/// [`Self::declared`], so HTTP/1 sends it in chunks.
#[derive(Debug)]
pub struct Pieces {
    frame: Bytes,
    frames_left: u64,
    declares_length: bool,
    pause: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Pieces {
    /// Returns a body of `count` frames of `length` bytes.
    pub fn new(count: u64, length: usize) -> Self {
        Self {
            frame: vec![b'x'; length].into(),
            frames_left: count,
            declares_length: false,
            pause: None,
        }
    }

    /// Declares the length of the body in the size hint.
    pub fn declared(mut self) -> Self {
        self.declares_length = true;
        self
    }

    /// Waits for `pause` before every frame.
    pub fn every(mut self, pause: Duration) -> Self {
        self.pause = Some((pause, Box::pin(sleep(pause))));
        self
    }
}

/// Returns `bytes` as one member of a gzip file.
pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let member = encoder.write_all(bytes).and_then(|()| encoder.finish());
    member.expect("a vector takes all bytes").into()
}

/// Returns the beginning of a gzip file of endless zeros, as much of it as becomes so many MiB.
pub fn zero_bomb(mebibytes: usize) -> Bytes {
    const HEADER_BYTES: usize = 10;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // A flush ends at a whole byte, so what follows the header may be repeated.
    let written = encoder.write_all(&vec![0; 1 << 20]);
    let flushed = written.and_then(|()| encoder.flush());
    flushed.expect("a vector takes all bytes");
    let (header, zeros) = encoder.get_ref().split_at(HEADER_BYTES);
    [header, &zeros.repeat(mebibytes)].concat().into()
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.frames_left == 0 {
            return Poll::Ready(None);
        }
        if let Some((pause, timer)) = &mut self.pause {
            ready!(timer.as_mut().poll(cx));
            timer.set(sleep(*pause));
        }
        self.frames_left -= 1;
        Poll::Ready(Some(Ok(Frame::data(self.frame.clone()))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames_left == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.declares_length {
            return SizeHint::with_exact(self.frames_left * self.frame.len() as u64);
        }
        SizeHint::new()
    }
}
