//! The two bodies, through which a request gives its slot up and takes it again.

use crate::ticket::{Displaced, Lease, Ticket};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, Phase};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

pin_project! {
    /// Request body under [`ConcurrencyLimit`](crate::ConcurrencyLimit).
    ///
    /// While the client is what it waits for, the request holds no slot. What comes is handed on
    /// once the request holds one again. Fails with a
    /// [`Violation`](palisade_core::Violation) if the request has to go.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        // What came while there was no slot: boxed, because that is rare and the frame large.
        stash: Option<Box<Polled>>,
        ticket: Option<Arc<Ticket>>,
    }

    impl<B> PinnedDrop for RequestBody<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(ticket) = this.project().ticket {
                ticket.body_is_gone();
            }
        }
    }
}

pin_project! {
    /// Response body under [`ConcurrencyLimit`](crate::ConcurrencyLimit).
    ///
    /// From a frame handed out until the next is asked for, the request holds no slot. Fails with
    /// a [`Violation`](palisade_core::Violation) if the request has to go.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        lease: Option<Lease>,
        cut: bool,
    }
}

type Polled = Option<Result<Frame<Bytes>, BoxError>>;

// === RequestBody ===

impl<B> RequestBody<B> {
    pub(crate) fn passing(inner: B) -> Self {
        Self { inner, stash: None, ticket: None }
    }

    pub(crate) fn waiting(inner: B, ticket: Arc<Ticket>) -> Self {
        Self { inner, stash: None, ticket: Some(ticket) }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let this = self.project();
        if this.stash.is_none() {
            let polled = this.inner.poll_frame(cx).map_err(Into::into);
            let Some(ticket) = this.ticket else { return polled };
            // Looked at before it is taken apart: a frame is a hundred bytes to copy.
            if polled.is_ready() && ticket.is_working() {
                return polled;
            }
            match polled {
                Poll::Ready(polled) => *this.stash = Some(Box::new(polled)),
                Poll::Pending => match ticket.wait_for_client(cx) {
                    Ok(()) => return Poll::Pending,
                    Err(Displaced) => {
                        let error = ticket.displacement(Phase::RequestBody);
                        return Poll::Ready(Some(Err(error.into())));
                    }
                },
            }
        }
        if let Some(ticket) = this.ticket
            && let Err(Displaced) = ready!(ticket.poll_work(cx))
        {
            let error = ticket.displacement(Phase::RequestBody);
            return Poll::Ready(Some(Err(error.into())));
        }
        Poll::Ready(this.stash.take().and_then(|polled| *polled))
    }

    fn is_end_stream(&self) -> bool {
        self.stash.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        if let Some(Some(Ok(frame))) = self.stash.as_deref()
            && let Some(data) = frame.data_ref()
        {
            let more = data.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper.saturating_add(more));
            }
            hint.set_lower(hint.lower().saturating_add(more));
        }
        hint
    }
}

// === ResponseBody ===

impl<B> ResponseBody<B> {
    pub(crate) fn new(inner: B, lease: Option<Lease>) -> Self {
        Self { inner, lease, cut: false }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let mut this = self.project();
        if *this.cut {
            return Poll::Ready(None);
        }
        if let Some(lease) = this.lease
            && let Err(Displaced) = ready!(lease.poll_work(cx))
        {
            *this.cut = true;
            let violation = lease.cut();
            *this.lease = None;
            return Poll::Ready(violation.map(|violation| Err(violation.into())));
        }
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        // hyper does not poll again once a body says that it is at its end.
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            *this.lease = None;
        } else if let Some(lease) = this.lease {
            lease.wait_for_client(cx);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
