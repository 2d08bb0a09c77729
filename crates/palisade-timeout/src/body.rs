//! The bodies of a timed request: one stops the clock, the other ends with it.

use crate::{
    clock::{Hand, after, millis},
    layer::Shared,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{AnswerForm, BoxError, ConnInfo, Guard, Phase, Reason, Violation};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// The request body as the inner service gets it. The deadline stands still while this has
    /// nothing to give.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        body: B,
        hand: Option<Hand>,
    }
}

pin_project! {
    /// The response body of the inner service, cut when the time for the whole response is up.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        body: B,
        total: Option<Pin<Box<Total>>>,
        cut: bool,
    }
}

pin_project! {
    /// What is left of [`Limits::total`](crate::Limits) once the head is out.
    #[derive(Debug)]
    pub(crate) struct Total {
        started: Instant,
        limit: Duration,
        shared: Arc<Shared>,
        conn: Option<Arc<ConnInfo>>,
        form: AnswerForm,
        asked: bool,
        told: bool,
        #[pin]
        alarm: Option<Sleep>,
    }
}

type Ending = Result<Frame<Bytes>, BoxError>;

// === RequestBody ===

impl<B> RequestBody<B> {
    pub(crate) fn new(body: B, hand: Option<Hand>) -> Self {
        Self { body, hand }
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        // Looked at and not taken apart: a frame is a hundred bytes to copy.
        if let Some(hand) = this.hand {
            match &frame {
                Poll::Pending => hand.stop(),
                Poll::Ready(Some(Ok(_))) => hand.go_on(),
                Poll::Ready(None) => hand.end(),
                Poll::Ready(Some(Err(_))) => *this.hand = None,
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === ResponseBody ===

impl<B> ResponseBody<B> {
    pub(crate) fn new(body: B, total: Option<Pin<Box<Total>>>) -> Self {
        Self { body, total, cut: false }
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
        let this = self.project();
        if *this.cut {
            return Poll::Ready(None);
        }
        let ending = match this.body.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Trailers are the end, and what has come to its end is not cut.
                let total = this.total.as_mut().filter(|_| frame.is_data());
                match total.and_then(|total| total.as_mut().check(false, cx)) {
                    None => return Poll::Ready(Some(Ok(frame))),
                    Some(ending) => ending,
                }
            }
            Poll::Pending => {
                match this.total.as_mut().and_then(|total| total.as_mut().check(true, cx)) {
                    None => return Poll::Pending,
                    Some(ending) => ending,
                }
            }
            Poll::Ready(end) => {
                return Poll::Ready(end.map(|end| end.map_err(Into::into)));
            }
        };
        *this.total = None;
        *this.cut = true;
        Poll::Ready(Some(ending))
    }

    fn is_end_stream(&self) -> bool {
        self.cut || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === Total ===

impl Total {
    pub(crate) fn new(
        started: Instant,
        limit: Duration,
        shared: Arc<Shared>,
        conn: Option<Arc<ConnInfo>>,
        form: AnswerForm,
    ) -> Pin<Box<Self>> {
        let (asked, told) = (false, false);
        Box::pin(Self { started, limit, shared, conn, form, asked, told, alarm: None })
    }

    /// The body's last frame, if the time is up and it is to be cut. If not, the task of `cx` is
    /// woken when it is: also where the body has something to give, because a server whose client
    /// takes nothing does not ask again by itself. Only a body that is through after one frame
    /// needs no timer.
    fn check(self: Pin<&mut Self>, pending: bool, cx: &mut Context<'_>) -> Option<Ending> {
        let mut this = self.project();
        let asked_before = std::mem::replace(this.asked, true);
        if this.alarm.is_none() && (pending || asked_before) {
            this.alarm.set(Some(sleep_until(after(*this.started, *this.limit))));
            let _ = this.alarm.as_mut().as_pin_mut()?.poll(cx);
        } else if pending {
            let _ = this.alarm.as_mut().as_pin_mut()?.poll(cx);
        }
        let taken = Instant::now().saturating_duration_since(*this.started);
        if taken < *this.limit || *this.told {
            return None;
        }
        *this.told = true;
        let (limit, observed) = (millis(*this.limit), millis(taken));
        let (reason, phase) = (Reason::TotalDeadline, Phase::ResponseBody);
        let violation = Violation::new(Guard::Timeout, reason, phase, limit, observed);
        let cuts = this.shared.settings.cut(&violation, this.conn.as_deref());
        cuts.then(|| violation.ending(*this.form))
    }
}
