//! Trivial services.

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

/// The response conversion of [`for_peers`].
pub type IntoAxum = fn(Response<Full<Bytes>>) -> Response<AxumBody>;

/// The response conversion of [`for_peers_boxed`].
pub type Boxed = fn(Response<Frames>) -> Response<AxumBody>;

type HandlerResult = Result<Response<Full<Bytes>>, Infallible>;

/// A service that responds at once.
#[derive(Clone, Copy, Debug)]
pub struct Ready;

/// A service with a future that is pending once before it responds.
#[derive(Clone, Copy, Debug)]
pub struct Pends;

/// A service that reads the request body to its end and then responds.
#[derive(Clone, Copy, Debug)]
pub struct Reads;

/// A service that responds at once with a body of this number of frames.
#[derive(Clone, Copy, Debug)]
pub struct Sends(pub usize);

/// Adds the peer to requests for `S`, in the form that both palisade and its peers read.
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

/// Converts the responses of `service` to axum's body, the type of `tower_governor`'s refusals.
pub fn for_peers<S>(service: S) -> MapResponse<S, IntoAxum> {
    // An empty body of axum does not allocate.
    MapResponse::new(service, |response| response.map(|_| AxumBody::empty()))
}

/// Converts the responses of `service` like [`for_peers`], and keeps their bodies.
pub fn for_peers_boxed<S>(service: S) -> MapResponse<S, Boxed> {
    MapResponse::new(service, |response| response.map(AxumBody::new))
}

// === Ready ===

impl<B> Service<Request<B>> for Ready {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<HandlerResult>;

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
    type Output = HandlerResult;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HandlerResult> {
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
    type Output = HandlerResult;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HandlerResult> {
        let mut body = self.project().body;
        while let Some(Ok(frame)) = ready!(body.as_mut().poll_frame(cx)) {
            std::hint::black_box(frame);
        }
        Poll::Ready(Ok(Response::default()))
    }
}
