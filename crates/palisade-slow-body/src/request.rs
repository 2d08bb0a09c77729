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
        match this.body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(reading) = this.reading {
                    reading.got(&frame);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                let Some(reading) = this.reading else { return Poll::Pending };
                let verdict = reading.wait(|| this.body.size_hint().exact(), cx);
                let Some(verdict) = verdict else { return Poll::Pending };
                *this.reading = None;
                let Some(violation) = verdict else { return Poll::Pending };
                *this.cut = true;
                Poll::Ready(Some(Err(violation.into())))
            }
            Poll::Ready(end) => {
                *this.reading = None;
                Poll::Ready(end.map(|end| end.map_err(Into::into)))
            }
        }
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
            stopwatch.as_mut().stop();
        }
    }

    /// The client is waited for. If that takes too long: the verdict, which is to go on in
    /// [`Mode::Shadow`](palisade_core::Mode).
    #[inline(never)] // So that a frame that is there need not carry what this needs.
    fn wait(
        &mut self,
        left: impl Fn() -> Option<u64>,
        cx: &mut Context<'_>,
    ) -> Option<Option<Violation>> {
        let Self { watch, bytes, stopwatch } = self;
        let pace = *watch.request_pace();
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
