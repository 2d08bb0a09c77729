//! The response body that the server sends.

use crate::{Flow, Policy, Polled, Upstream, lease::Lease, request::store_polled};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::BoxError;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

pin_project! {
    /// The response body of a guarded service: that of the handler or that of a refusal.
    #[derive(Debug)]
    pub struct ResponseBody<B, P: Policy> {
        #[pin]
        inner: Inner<B>,
        lease: Option<Lease<P>>,
        is_cut: bool,
    }
}

pin_project! {
    #[project = InnerProj]
    #[derive(Debug)]
    enum Inner<B> {
        Handler { #[pin] body: B },
        Refusal { bytes: Bytes },
    }
}

impl<B, P: Policy> ResponseBody<B, P> {
    #[inline(always)]
    pub(crate) fn handler(body: B, lease: Option<Lease<P>>) -> Self {
        Self {
            inner: Inner::Handler { body },
            lease,
            is_cut: false,
        }
    }

    pub(crate) fn refusal(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Refusal { bytes },
            lease: None,
            is_cut: false,
        }
    }
}

/// Creates an empty body.
impl<B, P: Policy> Default for ResponseBody<B, P> {
    fn default() -> Self {
        Self::refusal(Bytes::new())
    }
}

impl<B, P> Body for ResponseBody<B, P>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
    P: Policy,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.project();
        if *this.is_cut {
            return Poll::Ready(None);
        }
        let mut slot = Poll::Pending;
        match this.inner.project() {
            InnerProj::Refusal { bytes } if bytes.is_empty() => slot = Poll::Ready(None),
            InnerProj::Refusal { bytes } => {
                slot = Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            InnerProj::Handler { body } => {
                let mut upstream = HandlerBody(body);
                let Some(lease) = this.lease else {
                    upstream.poll(&mut slot, cx);
                    return slot;
                };
                let (policy, held, view) = lease.parts();
                let flow = policy.poll_response(held, view, &mut upstream, &mut slot, cx);
                *this.is_cut = matches!(flow, Flow::Cut | Flow::Linger | Flow::LingerUnread);
                // hyper does not poll a body again after `is_end_stream` has returned true.
                let is_over = match &slot {
                    Poll::Pending => false,
                    Poll::Ready(Some(Ok(_))) => *this.is_cut || upstream.is_end_stream(),
                    Poll::Ready(_) => true,
                };
                if is_over {
                    *this.lease = None;
                }
            }
        }
        slot
    }

    fn is_end_stream(&self) -> bool {
        self.is_cut
            || match &self.inner {
                Inner::Handler { body } => body.is_end_stream(),
                Inner::Refusal { bytes } => bytes.is_empty(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Handler { body } => body.size_hint(),
            Inner::Refusal { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// The response body of the handler, as the upstream of the innermost policy.
struct HandlerBody<'a, B>(Pin<&'a mut B>);

impl<B> Upstream for HandlerBody<'_, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    #[inline(always)]
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>) {
        store_polled(self.0.as_mut().poll_frame(cx), slot);
    }

    #[inline(always)]
    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }

    #[inline(always)]
    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
