//! The request body as the handler gets it.

use crate::{stopwatch::Stopwatch, watch::Watch};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, Violation};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;

pin_project! {
    /// The request body as the inner service gets it. It fails with a [`Violation`] when the
    /// client is slower than its pace.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        body: B,
        reading: Option<Reading>,
        cut: bool,
    }
}

/// What it takes to judge one upload.
#[derive(Debug)]
struct Reading {
    watch: Arc<Watch>,
    /// What came since the stopwatch was told last.
    bytes: u64,
    /// Made when the client is waited for the first time.
    stopwatch: Option<Pin<Box<Stopwatch>>>,
}

// === RequestBody ===

impl<B> RequestBody<B> {
    pub(crate) fn new(body: B, watch: Option<Arc<Watch>>) -> Self {
        let reading = watch.map(|watch| Reading { watch, bytes: 0, stopwatch: None });
        Self { body, reading, cut: false }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if *this.cut {
            return Poll::Ready(None);
        }
        let frame = this.body.as_mut().poll_frame(cx);
        if let Some(reading) = this.reading {
            match &frame {
                Poll::Ready(Some(Ok(frame))) => reading.got(frame),
                Poll::Ready(_) => *this.reading = None,
                Poll::Pending => {
                    let left = || this.body.size_hint().exact();
                    if let Some(verdict) = reading.wait(left, cx) {
                        *this.reading = None;
                        if let Some(violation) = verdict {
                            *this.cut = true;
                            return Poll::Ready(Some(Err(violation.into())));
                        }
                    }
                }
            }
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.cut || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === Reading ===

impl Reading {
    #[inline]
    fn got(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bytes = self.bytes.saturating_add(data.len() as u64);
        }
        if let Some(stopwatch) = &mut self.stopwatch
            && stopwatch.is_running()
        {
            stopwatch.as_mut().stop(Instant::now());
        }
    }

    /// The client is waited for. If that takes too long: the verdict, which is to go on in
    /// [`Mode::Shadow`](palisade_core::Mode).
    fn wait(
        &mut self,
        left: impl Fn() -> Option<u64>,
        cx: &mut Context<'_>,
    ) -> Option<Option<Violation>> {
        let Self { watch, bytes, stopwatch } = self;
        let pace = watch.request;
        let rate = || watch.shared.required(&pace);
        if !stopwatch.as_ref().is_some_and(|stopwatch| stopwatch.is_running()) {
            let now = Instant::now();
            let length = || left().map(|left| left.saturating_add(*bytes));
            let stopwatch = stopwatch.get_or_insert_with(|| Stopwatch::new(pace, length(), now));
            stopwatch.as_mut().pay(std::mem::take(bytes), rate());
            stopwatch.as_mut().start(now);
        }
        stopwatch.as_mut()?.as_mut().poll(cx, rate).map(|slow| watch.too_slow(slow))
    }
}
