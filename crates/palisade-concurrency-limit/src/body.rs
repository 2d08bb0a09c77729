//! The two bodies, through which a request gives its slot up and takes it again.

use crate::{
    lease::Lease,
    ticket::{Displaced, Ticket},
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
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
    /// once the request holds one again, or at once where the response head is out. Fails once with
    /// a [`Violation`](palisade_core::Violation) if the request has to go, and is then at its end.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        // What came while there was no slot: boxed, because that is rare and the frame large.
        stash: Option<Box<Polled>>,
        ticket: Option<Arc<Ticket>>,
        cut: bool,
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
    /// From a frame handed out until the next is asked for, the request holds no slot, nor while
    /// the handler waits for the request body. Fails with a
    /// [`Violation`](palisade_core::Violation), or ends with trailers in gRPC, if the request has
    /// to go.
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
    pub(crate) fn new(inner: B, ticket: Option<Arc<Ticket>>) -> Self {
        Self { inner, stash: None, ticket, cut: false }
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
        if *this.cut {
            return Poll::Ready(None);
        }
        let Some(ticket) = this.ticket else {
            return this.inner.poll_frame(cx).map_err(Into::into);
        };
        let go_on = if this.stash.is_some() {
            ready!(ticket.poll_body(cx))
        } else {
            let polled = this.inner.poll_frame(cx).map_err(Into::into);
            // Looked at before it is taken apart: a frame is a hundred bytes to copy.
            if polled.is_ready() && ticket.body_goes_on() {
                ticket.progressed(length(&polled));
                return polled;
            }
            match polled {
                Poll::Ready(frame) => {
                    *this.stash = Some(Box::new(frame));
                    ready!(ticket.poll_body(cx))
                }
                Poll::Pending => match ticket.body_waits(cx) {
                    Ok(()) => return Poll::Pending,
                    displaced => displaced,
                },
            }
        };
        let stash = this.stash.take();
        if let Err(Displaced) = go_on {
            *this.cut = true;
            return Poll::Ready(Some(Err(ticket.body_tells().into())));
        }
        let polled = Poll::Ready(stash.and_then(|frame| *frame));
        ticket.progressed(length(&polled));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.cut || (self.stash.is_none() && self.inner.is_end_stream())
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
            let last = lease.cut();
            *this.lease = None;
            return Poll::Ready(last);
        }
        let ticket = this.lease.as_ref().and_then(Lease::ticket);
        if let Some(ticket) = ticket {
            ticket.answer_works();
        }
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            if let Some(ticket) = ticket {
                ticket.answer_waits(cx);
            }
            return Poll::Pending;
        };
        // hyper does not poll again once a body says that it is at its end.
        match &frame {
            Some(Ok(frame)) if !this.inner.is_end_stream() => {
                if let Some(lease) = this.lease {
                    lease.wait_for_client(data_length(frame), cx);
                }
            }
            _ => *this.lease = None,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.cut || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How many bytes of data go on.
fn length(polled: &Poll<Polled>) -> u64 {
    match polled {
        Poll::Ready(Some(Ok(frame))) => data_length(frame),
        _ => 0,
    }
}

fn data_length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}
