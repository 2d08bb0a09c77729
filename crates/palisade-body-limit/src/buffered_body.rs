//! The request body that was read before the handler is called.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

pin_project! {
    /// The request body that [`BufferLayer`](crate::BufferLayer) passes on: what it has read, or
    /// the body as it was.
    #[derive(Debug)]
    pub struct BufferedBody<B> {
        // `None` if nothing is left of it.
        arrived: Option<Box<Arrived>>,
        // `None` if the body was read to its end.
        #[pin]
        rest: Option<B>,
    }
}

/// What has arrived of a body.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) error: Option<BoxError>,
}

// === BufferedBody ===

impl<B> BufferedBody<B> {
    /// Creates a body that is passed on as it arrives.
    pub(crate) fn streamed(body: B) -> Self {
        Self {
            arrived: None,
            rest: Some(body),
        }
    }

    /// Creates a body of what has arrived, and of what follows it.
    pub(crate) fn new(arrived: Arrived, rest: Option<B>) -> Self {
        Self {
            arrived: Some(Box::new(arrived)),
            rest,
        }
    }
}

impl<B> Body for BufferedBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if let Some(frame) = this.arrived.as_mut().and_then(|arrived| arrived.next()) {
            return Poll::Ready(Some(frame));
        }
        *this.arrived = None;
        match this.rest.as_pin_mut() {
            Some(rest) => rest.poll_frame(cx).map_err(Into::into),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.arrived
            .as_ref()
            .is_none_or(|arrived| arrived.is_taken())
            && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let end = SizeHint::with_exact(0);
        let rest = self.rest.as_ref().map_or(end, Body::size_hint);
        let Some(arrived) = &self.arrived else {
            return rest;
        };
        let bytes = arrived.data.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(bytes));
        // More would have followed if the body had not failed.
        if let Some(upper) = rest.upper().filter(|_| !arrived.has_failed()) {
            hint.set_upper(upper.saturating_add(bytes));
        }
        hint
    }
}

// === Arrived ===

impl Arrived {
    pub(crate) fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    fn is_taken(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none() && !self.has_failed()
    }

    fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        if !self.data.is_empty() {
            return Some(Ok(Frame::data(std::mem::take(&mut self.data))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Some(Ok(Frame::trailers(trailers)));
        }
        self.error.take().map(Err)
    }
}
