//! Services that do nothing.

use crate::Frames;
use axum::body::Body as AxumBody;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use pin_project_lite::pin_project;
use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower::{Service, util::MapResponse};

/// What [`for_peers`] does to an answer.
pub type IntoAxum = fn(Response<Full<Bytes>>) -> Response<AxumBody>;

/// What [`for_peers_boxed`] does to an answer.
pub type Boxed = fn(Response<Frames>) -> Response<AxumBody>;

type Answer = Result<Response<Full<Bytes>>, Infallible>;

/// Answers at once.
#[derive(Clone, Copy, Debug)]
pub struct Ready;

/// Is Pending once, then answers.
#[derive(Clone, Copy, Debug)]
pub struct Pends;

/// Reads the request body to its end, then answers.
#[derive(Clone, Copy, Debug)]
pub struct Reads;

/// Answers at once with so many frames.
#[derive(Clone, Copy, Debug)]
pub struct Sends(pub usize);

/// Tells `S` who is asking, in the way that palisade and its peers both understand.
#[derive(Clone, Copy, Debug)]
pub struct Identified<S>(pub S);

/// The future of [`Pends`].
#[derive(Debug)]
pub struct PendsOnce(bool);

pin_project! {
    /// The future of [`Reads`].
    #[derive(Debug)]
    pub struct Reading<B> {
        #[pin]
        body: B,
    }
}

/// `service` with its answers in axum's body, which is what `tower_governor` refuses with.
pub fn for_peers<S>(service: S) -> MapResponse<S, IntoAxum> {
    // An empty body in axum's box takes no allocation.
    MapResponse::new(service, |response| response.map(|_| AxumBody::empty()))
}

/// The same for a service whose answers have bodies.
pub fn for_peers_boxed<S>(service: S) -> MapResponse<S, Boxed> {
    MapResponse::new(service, |response| response.map(AxumBody::new))
}

// === Ready ===

impl<B> Service<Request<B>> for Ready {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::ready(Ok(Response::default()))
    }
}

// === Sends ===

impl<B> Service<Request<B>> for Sends {
    type Response = Response<Frames>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Frames>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::ready(Ok(Response::new(Frames::new(self.0))))
    }
}

// === Pends ===

impl<B> Service<Request<B>> for Pends {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = PendsOnce;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> PendsOnce {
        PendsOnce(false)
    }
}

// === Reads ===

impl<B> Service<Request<B>> for Reads
where
    B: Body<Data = Bytes>,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Reading<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Reading<B> {
        Reading {
            body: request.into_body(),
        }
    }
}

// === Identified ===

impl<S, B> Service<Request<B>> for Identified<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let peer = SocketAddr::from(crate::PEER);
        request
            .extensions_mut()
            .insert(axum::extract::ConnectInfo(peer));
        self.0.call(request)
    }
}

// === PendsOnce ===

impl Future for PendsOnce {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        if self.0 {
            return Poll::Ready(Ok(Response::default()));
        }
        self.0 = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

// === Reading ===

impl<B> Future for Reading<B>
where
    B: Body<Data = Bytes>,
{
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let mut body = self.project().body;
        while let Some(Ok(frame)) = ready!(body.as_mut().poll_frame(cx)) {
            std::hint::black_box(frame);
        }
        Poll::Ready(Ok(Response::default()))
    }
}
