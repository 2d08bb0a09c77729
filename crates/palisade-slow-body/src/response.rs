//! The response body as the server gets it.

use crate::{stopwatch::Stopwatch, watch::Known};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, Phase, Violation};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// Whatever is no longer than this fits into the buffers between us and the client: nobody waits
/// for a reader of so little, and most responses are no longer.
const BUFFERED: u64 = 64 * 1024;

pin_project! {
    /// The response body of the inner service. It fails with a [`Violation`], or ends with
    /// trailers in gRPC, when the server asks it for more too seldom, because the client takes
    /// nothing.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        body: B,
        // `None` where there is nothing to judge, which is seen when it is first asked for.
        writing: Option<Writing>,
        cut: bool,
    }
}

/// What it takes to judge one download.
#[derive(Debug)]
pub(crate) struct Writing {
    request: Known,
    /// What was handed out since the stopwatch was told last.
    bytes: u64,
    /// Made once more than [`BUFFERED`] was handed out.
    stopwatch: Option<Pin<Box<Stopwatch>>>,
}

// === ResponseBody ===

impl<B> ResponseBody<B> {
    pub(crate) fn new(body: B, writing: Option<Writing>) -> Self {
        Self { body, writing, cut: false }
    }
}

impl<B> Body for ResponseBody<B>
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
        if let Some(violation) = this.writing.as_mut().and_then(Writing::asked) {
            let cut = this.writing.take().and_then(|writing| writing.request.cut(violation));
            if let Some(last) = cut {
                *this.cut = true;
                return Poll::Ready(Some(last));
            }
        }
        match this.body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(writing) = this.writing
                    && !writing.handed_out(&frame, &*this.body, cx)
                {
                    *this.writing = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // The handler is waited for, not the client.
            Poll::Pending => Poll::Pending,
            Poll::Ready(end) => {
                *this.writing = None;
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

// === Writing ===

impl Writing {
    /// Of the response to this request.
    #[inline]
    pub(crate) fn new(request: Known) -> Self {
        Self { request, bytes: 0, stopwatch: None }
    }

    /// The server asks for more: what it has was taken, or it was woken by the alarm.
    #[inline]
    fn asked(&mut self) -> Option<Violation> {
        let mut stopwatch = self.stopwatch.as_mut()?.as_mut();
        if !stopwatch.is_running() {
            return None;
        }
        let pace = *stopwatch.pace();
        let rate = || self.request.shared().required(&pace);
        if stopwatch.adds_up() || stopwatch.rang() {
            let now = Instant::now();
            if let Some(slow) = stopwatch.as_mut().judge(now, rate) {
                return Some(slow.violation(Phase::ResponseBody));
            }
            stopwatch.as_mut().stop();
        } else {
            stopwatch.as_mut().forget();
        }
        stopwatch.pay(std::mem::take(&mut self.bytes), rate());
        None
    }

    /// The server got a frame: from now on the client is waited for. `false` if the response is
    /// not judged.
    #[inline]
    fn handed_out(&mut self, frame: &Frame<Bytes>, body: &impl Body, cx: &mut Context<'_>) -> bool {
        let Some(data) = frame.data_ref() else { return true };
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        if self.stopwatch.is_none() && self.bytes <= BUFFERED {
            return true;
        }
        // Nobody asks again after the last frame.
        body.is_end_stream() || self.start(body, cx)
    }

    fn start(&mut self, body: &impl Body, cx: &mut Context<'_>) -> bool {
        let Self { request, bytes, stopwatch } = self;
        let pace = *request.response_pace();
        if pace.is_off() || !request.shared().settings.is_on() {
            return false;
        }
        let now = Instant::now();
        let mut stopwatch = match stopwatch {
            Some(stopwatch) => stopwatch.as_mut(),
            None => {
                let length = body.size_hint().exact();
                let length = length.map(|left| left.saturating_add(*bytes));
                let mut stopwatch = stopwatch.insert(Stopwatch::new(pace, length, now)).as_mut();
                stopwatch.as_mut().listen(cx);
                stopwatch
            }
        };
        stopwatch.as_mut().start(now);
        // Woken once, hyper fills its buffer, and does not ask again before that was taken.
        stopwatch.arm_once(now, cx);
        true
    }
}
