//! The response body as the server gets it.

use crate::{Pace, layer::Shared, stopwatch::Stopwatch};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, ConnInfo, Phase, Violation};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// Whatever is no longer than this fits into the buffers between us and the client: nobody waits
/// for a reader of so little, and most responses are no longer.
const BUFFERED: u64 = 64 * 1024;

pin_project! {
    /// The response body of the inner service. It fails with a [`Violation`] when the server asks
    /// it for more too seldom, because the client takes nothing.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        body: B,
        writing: Option<Writing>,
        cut: bool,
    }
}

/// What it takes to judge one download.
#[derive(Debug)]
pub(crate) struct Writing {
    shared: Arc<Shared>,
    conn: Option<Arc<ConnInfo>>,
    pace: Pace,
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
            let writing = this.writing.take();
            let enforced = writing.is_some_and(|writing| {
                writing.shared.settings.cut(&violation, writing.conn.as_deref())
            });
            if enforced {
                *this.cut = true;
                return Poll::Ready(Some(Err(violation.into())));
            }
        }
        let frame = this.body.as_mut().poll_frame(cx);
        if let Some(writing) = this.writing {
            match &frame {
                Poll::Ready(Some(Ok(frame))) => writing.handed_out(frame, &*this.body, cx),
                Poll::Ready(_) => *this.writing = None,
                // The handler is waited for, not the client.
                Poll::Pending => {}
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

// === Writing ===

impl Writing {
    pub(crate) fn new(shared: Arc<Shared>, conn: Option<Arc<ConnInfo>>, pace: Pace) -> Self {
        Self { shared, conn, pace, bytes: 0, stopwatch: None }
    }

    /// The server asks for more: what it has was taken, or it was woken by the alarm.
    #[inline]
    fn asked(&mut self) -> Option<Violation> {
        let mut stopwatch = self.stopwatch.as_mut()?.as_mut();
        if !stopwatch.is_running() {
            return None;
        }
        let rate = || self.shared.required(&self.pace);
        if stopwatch.adds_up() || stopwatch.rang() {
            let now = Instant::now();
            if let Some(slow) = stopwatch.as_mut().judge(now, rate) {
                return Some(slow.violation(Phase::ResponseBody));
            }
            stopwatch.as_mut().stop(now);
        } else {
            stopwatch.as_mut().forget();
        }
        stopwatch.pay(std::mem::take(&mut self.bytes), rate());
        None
    }

    /// The server got a frame: from now on the client is waited for.
    #[inline]
    fn handed_out(&mut self, frame: &Frame<Bytes>, body: &impl Body, cx: &mut Context<'_>) {
        let Some(data) = frame.data_ref() else { return };
        self.bytes = self.bytes.saturating_add(data.len() as u64);
        if self.stopwatch.is_none() && self.bytes <= BUFFERED {
            return;
        }
        // Nobody asks again after the last frame.
        if body.is_end_stream() {
            return;
        }
        let now = Instant::now();
        let mut stopwatch = match &mut self.stopwatch {
            Some(stopwatch) => stopwatch.as_mut(),
            None => {
                let length = body.size_hint().exact();
                let length = length.map(|left| left.saturating_add(self.bytes));
                let stopwatch = Stopwatch::new(self.pace, length, now);
                let mut stopwatch = self.stopwatch.insert(stopwatch).as_mut();
                stopwatch.as_mut().listen(cx);
                stopwatch
            }
        };
        stopwatch.as_mut().start(now);
        // Woken once, hyper fills its buffer, and does not ask again before that was taken.
        stopwatch.arm_once(now, cx);
    }
}
