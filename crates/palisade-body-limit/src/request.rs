//! The request body as the handler sees it.

use crate::counted::{Counted, Polled, Stage};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, linger};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The request body that [`BodyLimit`](crate::BodyLimit) gives to the handler.
///
/// Fails with a [`Violation`](crate::Violation) when a rule is broken, and is at its end then.
#[derive(Debug)]
pub struct RequestBody<B> {
    /// `None` once a rule was broken.
    inner: Option<B>,
    /// `None` where nothing can be wrong with the body, or nobody looks.
    counted: Option<Counted>,
}

// === RequestBody ===

impl<B> RequestBody<B> {
    pub(crate) fn new(inner: B, counted: Option<Counted>) -> Self {
        Self { inner: Some(inner), counted }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let Self { inner, counted } = self.get_mut();
        let Some(body) = inner else {
            return Poll::Ready(counted.as_mut().and_then(Counted::last));
        };
        let Some(counted) = counted else {
            return Pin::new(body).poll_frame(cx).map_err(Into::into);
        };
        let polled = if counted.stage != Stage::Reading {
            counted.poll_slowly(Pin::new(body), cx)
        } else {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if counted.has_room_for(&data) => {
                        counted.remaining -= data.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(data) => counted.take_first(data),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        };
        if counted.stage == Stage::Over
            && let Some(body) = inner.take()
        {
            linger(body, counted.version());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let pack = self.counted.as_ref().and_then(|counted| counted.pack.as_ref());
        let holds = pack.is_some_and(|packed| packed.holds());
        let ended = pack.is_some_and(|packed| packed.ended);
        !holds && (ended || self.inner.as_ref().is_none_or(Body::is_end_stream))
    }

    /// The inner body's, and no more than what is left of the limit.
    fn size_hint(&self) -> SizeHint {
        let hint = self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let Some(counted) = &self.counted else { return hint };
        let held = counted.pack.as_ref().map_or(0, |packed| packed.held());
        let (lower, mut upper) = (hint.lower(), hint.upper());
        if self.inner.is_some() && counted.is_settled() && counted.limit < u64::MAX {
            upper = Some(upper.map_or(counted.remaining, |upper| upper.min(counted.remaining)));
        }
        // A body that declares more than it may have fails where it is read. It must not fail
        // here, so its lower bound wins.
        let mut tightened = SizeHint::new();
        tightened.set_lower(lower.saturating_add(held));
        if let Some(upper) = upper {
            tightened.set_upper(upper.max(lower).saturating_add(held));
        }
        tightened
    }
}
