//! The response body, where it is limited.

use crate::{
    layer::Shared,
    watch::{Watch, rejection, too_large},
};
use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, Phase, Rejection};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

pin_project! {
    /// The handler's body, cut where it becomes longer than
    /// [`BodyLimitLayer::response`](crate::BodyLimitLayer::response) allows: it fails with a
    /// [`Violation`](crate::Violation), or ends with trailers in gRPC.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        // Boxed, because few responses are limited and every one is moved.
        counted: Option<Box<Counted>>,
    }
}

/// What is known of a response that is limited.
#[derive(Debug)]
pub(crate) struct Counted {
    watch: Arc<Watch>,
    limit: u64,
    remaining: u64,
    over: bool,
}

// === ResponseBody ===

impl<B> ResponseBody<B> {
    pub(crate) fn new(inner: B, counted: Option<Box<Counted>>) -> Self {
        Self { inner, counted }
    }
}

// === Counted ===

impl Counted {
    /// What it takes to limit the body of `response`, if anything, or why it must not be sent.
    #[inline]
    pub(crate) fn of<B: Body>(
        response: &Response<B>,
        watch: &Arc<Watch>,
    ) -> Result<Option<Box<Self>>, (Rejection, Arc<Shared>)> {
        match watch.shared.response {
            Some(limit) if !response.body().is_end_stream() => {
                Self::limited(response, watch, limit)
            }
            _ => Ok(None),
        }
    }

    #[inline(never)]
    fn limited<B: Body>(
        response: &Response<B>,
        watch: &Arc<Watch>,
        limit: u64,
    ) -> Result<Option<Box<Self>>, (Rejection, Arc<Shared>)> {
        // A length may stand in these heads, and nothing follows it (RFC 9110 section 8.6).
        let bodiless = watch.is_head
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let declared = if bodiless { 0 } else { declared(response) };
        if declared > limit {
            let Watch { shared, answerer, .. } = &**watch;
            let rejection = rejection(too_large(Phase::Handler, limit, declared), answerer.form());
            if shared.settings.refuse(&rejection, answerer.conn().map(Arc::as_ref)) {
                return Err((rejection, shared.clone()));
            }
            return Ok(None);
        }
        let watch = watch.clone();
        Ok(Some(Box::new(Self { watch, limit, remaining: limit, over: false })))
    }
}

/// The length of the body as far as it is known. A `Content-Length` that contradicts what the body
/// itself knows is the server's to refuse.
fn declared<B: Body>(response: &Response<B>) -> u64 {
    let hint = response.body().size_hint();
    if hint.exact().is_some() {
        return hint.lower();
    }
    let header = response.headers().get(CONTENT_LENGTH);
    let length = header.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    hint.lower().max(length)
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let Some(counted) = this.counted else {
            return this.inner.poll_frame(cx).map_err(Into::into);
        };
        if counted.over {
            return Poll::Ready(None);
        }
        let frame = match ready!(this.inner.poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other.map(|result| result.map_err(Into::into))),
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(remaining) = counted.remaining.checked_sub(length) else {
            let sent = counted.limit.saturating_sub(counted.remaining);
            let observed = sent.saturating_add(length);
            let violation = too_large(Phase::ResponseBody, counted.limit, observed);
            let Watch { shared, answerer, .. } = &*counted.watch;
            if !shared.settings.cut(&violation, answerer.conn().map(Arc::as_ref)) {
                *this.counted = None;
                return Poll::Ready(Some(Ok(frame)));
            }
            counted.over = true;
            return Poll::Ready(Some(violation.ending(answerer.form())));
        };
        counted.remaining = remaining;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.counted.as_ref().is_some_and(|counted| counted.over) || self.inner.is_end_stream()
    }

    /// The inner body's: a smaller upper bound could turn into a `Content-Length`.
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
