//! The response body as the server gets it.

use crate::{Pace, future::Known, layer::Shared, stopwatch::Stopwatch, watch::Watch};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{AnswerForm, BoxError, ConnInfo, Phase, Violation};
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
    /// The response body of the inner service. It fails with a [`Violation`], or ends with
    /// trailers in gRPC, when the server asks it for more too seldom, because the client takes
    /// nothing.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        body: B,
        // Boxed, because most responses are short and every one is moved.
        writing: Option<Box<Writing>>,
        cut: bool,
    }
}

/// What it takes to judge one download.
#[derive(Debug)]
pub(crate) struct Writing {
    shared: Arc<Shared>,
    form: AnswerForm,
    conn: Option<Arc<ConnInfo>>,
    /// If the request has one, for its pace.
    watch: Option<Arc<Watch>>,
    /// What was handed out since the stopwatch was told last.
    bytes: u64,
    /// Made once more than [`BUFFERED`] was handed out.
    stopwatch: Option<Pin<Box<Stopwatch>>>,
}

// === ResponseBody ===

impl<B> ResponseBody<B> {
    pub(crate) fn new(body: B, writing: Option<Box<Writing>>) -> Self {
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
        if let Some(violation) = this.writing.as_mut().and_then(|writing| writing.asked()) {
            let cut = this
                .writing
                .take()
                .filter(|writing| writing.shared.settings.cut(&violation, writing.conn.as_deref()));
            if let Some(writing) = cut {
                *this.cut = true;
                return Poll::Ready(Some(violation.ending(writing.form)));
            }
        }
        match this.body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(writing) = this.writing {
                    writing.handed_out(&frame, &*this.body, cx);
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

/// Whether a response is so short that there is nothing to judge. One that ends before we look
/// is.
#[inline]
pub(crate) fn is_buffered<B: Body>(body: &B) -> bool {
    body.is_end_stream() || body.size_hint().upper().is_some_and(|upper| upper <= BUFFERED)
}

// === Writing ===

impl Writing {
    /// What it takes to judge the response to this request. `None` if nobody wants to.
    #[inline(never)]
    pub(crate) fn of(request: &Known) -> Option<Box<Self>> {
        let (shared, form, conn, watch) = match request {
            Known::Plain { shared, form, conn } => (shared, *form, conn.as_ref(), None),
            Known::Watched(answering) => {
                let watch = answering.watch();
                let Watch { shared, answerer, .. } = &**watch;
                (shared, answerer.form(), answerer.conn(), Some(watch))
            }
        };
        let pace = watch.map_or(shared.response_pace(), |watch| watch.response_pace());
        if !shared.settings.is_on() || pace.is_off() {
            return None;
        }
        let (shared, conn, watch) = (shared.clone(), conn.cloned(), watch.cloned());
        Some(Box::new(Self { shared, form, conn, watch, bytes: 0, stopwatch: None }))
    }

    fn pace(&self) -> Pace {
        self.watch.as_ref().map_or(*self.shared.response_pace(), |watch| *watch.response_pace())
    }

    /// The server asks for more: what it has was taken, or it was woken by the alarm.
    #[inline]
    fn asked(&mut self) -> Option<Violation> {
        let mut stopwatch = self.stopwatch.as_mut()?.as_mut();
        if !stopwatch.is_running() {
            return None;
        }
        let pace = *stopwatch.pace();
        let rate = || self.shared.required(&pace);
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
        let pace = self.pace();
        let mut stopwatch = match &mut self.stopwatch {
            Some(stopwatch) => stopwatch.as_mut(),
            None => {
                let length = body.size_hint().exact();
                let length = length.map(|left| left.saturating_add(self.bytes));
                let stopwatch = Stopwatch::new(pace, length, now);
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
