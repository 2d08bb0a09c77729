//! The body of a tracked response.

use crate::connection::in_flight::InFlight;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use palisade_core::GuardBody;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// h2 may keep a frame of up to this size for its client unnoticed: about what the stream itself
/// takes.
const MAX_UNTRACKED_BYTES: usize = 256;

pin_project! {
    /// Response body of [`RequestTracking`](crate::RequestTracking). Its request is in flight until
    /// the body has ended or failed, and on HTTP/2 until the body is dropped after that.
    #[derive(Debug)]
    pub struct TrackedBody<B> {
        #[pin]
        inner: GuardBody<B>,
        in_flight: Option<InFlight>,
        reports_windows: bool,
        // Whether a body that has ended may still wait for its client, as on HTTP/2: hyper takes
        // the last frame before there is a window for it, and drops the body when it is sent.
        lasts_until_drop: bool,
        // On HTTP/2, the last byte of a long frame, which becomes a frame of its own: hyper hands
        // a whole frame to h2 for one byte of window, and would drop the body while h2 keeps the
        // frame. It polls for this byte when h2 has sent the rest.
        last_byte: Option<u8>,
        // What is left of the length that the head declares, if it does.
        left: Option<u64>,
    }
}

impl<B> TrackedBody<B> {
    #[inline(always)]
    pub(super) fn new(
        inner: GuardBody<B>,
        in_flight: InFlight,
        reports_windows: bool,
        is_http2: bool,
        declared: Option<u64>,
    ) -> Self {
        Self {
            inner,
            in_flight: Some(in_flight),
            reports_windows,
            lasts_until_drop: is_http2,
            last_byte: None,
            left: declared,
        }
    }

    /// A body whose end is not reported.
    #[inline(always)]
    pub(super) fn untracked(inner: GuardBody<B>) -> Self {
        Self {
            inner,
            in_flight: None,
            reports_windows: false,
            lasts_until_drop: false,
            last_byte: None,
            left: None,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = if *this.lasts_until_drop {
            poll_without_last_byte(this.inner.as_mut(), this.last_byte, cx)
        } else {
            this.inner.as_mut().poll_frame(cx)
        };
        // A frame that is polled for and not ready waits for the handler. A ready one waits for
        // the client.
        if *this.reports_windows
            && let Some(in_flight) = this.in_flight
        {
            in_flight.set_waiting(frame.is_ready());
        }
        let frame = ready!(frame);
        let is_last = match &frame {
            None => true,
            // A server that knows the length does not poll again.
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                *this.left = this.left.map(|left| left.saturating_sub(length));
                frame.is_trailers()
                    || *this.left == Some(0)
                    || this.last_byte.is_none()
                        && (this.inner.is_end_stream() || this.inner.size_hint().exact() == Some(0))
            }
            Some(Err(_)) => {
                *this.in_flight = None;
                false
            }
        };
        if is_last {
            if let Some(in_flight) = this.in_flight {
                in_flight.set_answered();
            }
            if !*this.lasts_until_drop {
                *this.in_flight = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.last_byte.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // The last byte is held back from a body that has ended.
        if self.last_byte.is_some() {
            SizeHint::with_exact(1)
        } else {
            self.inner.size_hint()
        }
    }
}

/// Polls `body` for its next frame. Holds back the last byte of a long last frame, and returns it
/// as a frame of its own.
#[inline(never)]
fn poll_without_last_byte<B: Body<Data = Bytes>>(
    mut body: Pin<&mut GuardBody<B>>,
    last_byte: &mut Option<u8>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    if let Some(byte) = last_byte.take() {
        return Poll::Ready(Some(Ok(Frame::data(one_byte(byte)))));
    }
    let mut frame = body.as_mut().poll_frame(cx);
    if let Poll::Ready(Some(Ok(last))) = &mut frame
        && let Some(data) = last.data_mut()
        && data.len() > MAX_UNTRACKED_BYTES
        && body.is_end_stream()
    {
        *last_byte = data.last().copied();
        data.truncate(data.len() - 1);
    }
    frame
}

/// Returns `byte` without an allocation.
fn one_byte(byte: u8) -> Bytes {
    static BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            bytes[byte] = byte as u8;
            byte += 1;
        }
        bytes
    };
    Bytes::from_static(&BYTES[usize::from(byte)..][..1])
}
