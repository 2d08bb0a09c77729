//! The response body of a guard.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The error type of the bodies of guards, as in tower and axum.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// The body of the handler's response, or of a guard's own response in its place.
    #[derive(Debug)]
    pub struct GuardBody<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProj]
    #[derive(Debug)]
    enum Inner<B> {
        Handler { #[pin] body: B },
        Answer { bytes: Bytes },
    }
}

impl<B> GuardBody<B> {
    /// Passes the handler's body on unchanged.
    ///
    /// ```
    /// # use {bytes::Bytes, http_body::Body, http_body_util::Full, palisade_core::GuardBody};
    /// let body = GuardBody::passing(Full::new(Bytes::from("hello")));
    /// assert_eq!(body.size_hint().exact(), Some(5)); // So the response has a `Content-Length`.
    /// ```
    pub fn passing(body: B) -> Self {
        Self {
            inner: Inner::Handler { body },
        }
    }

    /// Creates the body of a guard's own response, a single frame of `bytes`. It has no frame if
    /// `bytes` is empty.
    ///
    /// ```
    /// # use {bytes::Bytes, http_body::Body, http_body_util::{BodyExt, Full}};
    /// # use palisade_core::GuardBody;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), std::convert::Infallible> {
    /// let body = GuardBody::<Full<Bytes>>::answer("body too large".into());
    /// assert_eq!(body.collect().await?.to_bytes(), "body too large");
    /// assert!(GuardBody::<Full<Bytes>>::answer(Bytes::new()).is_end_stream());
    /// # Ok(())
    /// # }
    /// ```
    pub fn answer(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Answer { bytes },
        }
    }
}

impl<B> Body for GuardBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InnerProj::Answer { bytes } if bytes.is_empty() => Poll::Ready(None),
            InnerProj::Answer { bytes } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            InnerProj::Handler { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Handler { body } => body.is_end_stream(),
            Inner::Answer { bytes } => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Handler { body } => body.size_hint(),
            Inner::Answer { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};
    use std::convert::Infallible;

    #[tokio::test]
    async fn a_response_of_a_guard_is_its_bytes_and_has_their_length() {
        let body = GuardBody::<Full<Bytes>>::answer(Bytes::from_static(b"too much"));
        assert_eq!(body.size_hint().exact(), Some(8));
        assert!(!body.is_end_stream());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "too much");
        assert!(GuardBody::<Full<Bytes>>::answer(Bytes::new()).is_end_stream());
    }

    #[tokio::test]
    async fn a_body_that_is_passed_on_keeps_its_length_and_trailers() {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let inner = Full::new(Bytes::from("abc")).with_trailers({
            let trailers = trailers.clone();
            async move { Some(Ok::<_, Infallible>(trailers)) }
        });
        let body = GuardBody::passing(Box::pin(inner));
        assert_eq!(body.size_hint().lower(), 3);
        assert_eq!(body.collect().await.unwrap().trailers(), Some(&trailers));
    }
}
