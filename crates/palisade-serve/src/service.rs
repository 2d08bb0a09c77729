//! The app as hyper sees it on one connection.

use crate::{
    Http, HttpService, head,
    refusal::{Refusal, Refusals},
    streams::ServedBody,
};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH},
};
use http_body::Body;
use hyper::body::Incoming;
use palisade_conn::{ConnHandle, RequestTracking, TrackedBody, TrackingFuture};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

/// The app on one connection, which is told of each request from the moment its head is here.
pub(crate) struct ConnService<S> {
    tracking: RequestTracking<ConnApp<S>>,
}

/// Waits for the app to be ready with the request in hand, and refuses what is to be refused.
pub(crate) struct ConnApp<S> {
    service: S,
    refusals: Refusals,
    is_http2: bool,
    takes_connect: bool,
}

pin_project! {
    #[project = ConnAppProj]
    pub(crate) enum ConnAppFuture<S, F> {
        Waiting {
            service: S,
            request: Option<Request<Incoming>>,
            refusals: Refusals,
            is_http2: bool,
        },
        // `is_bare`: the answer is to have no body, which hyper sees to on HTTP/1 alone.
        Called { #[pin] future: F, refusals: Refusals, is_http2: bool, is_bare: bool },
        Refused { refusal: Refusal, is_http2: bool },
    }
}

// === ConnService ===

impl<S> ConnService<S> {
    pub(crate) fn new(
        conn: &ConnHandle,
        service: S,
        refusals: Refusals,
        http: &Http,
        is_http2: bool,
    ) -> Self {
        let app = ConnApp {
            service,
            refusals,
            is_http2,
            takes_connect: http.takes_connect,
        };
        let tracking = RequestTracking::for_connection(conn.clone(), app).cuts_streams();
        #[cfg(feature = "axum")]
        let tracking = tracking.connect_info();
        Self { tracking }
    }
}

impl<S: HttpService> hyper::service::Service<Request<Incoming>> for ConnService<S> {
    type Response = Response<TrackedBody<ServedBody<S::ResponseBody>>>;
    type Error = S::Error;
    type Future = TrackingFuture<ConnAppFuture<S, S::Future>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.tracking.call_with(request, ConnApp::call)
    }
}

// === ConnApp ===

impl<S: HttpService> ConnApp<S> {
    fn call(&self, request: Request<Incoming>) -> ConnAppFuture<S, S::Future> {
        let is_http2 = self.is_http2;
        let refusals = &self.refusals;
        if let Some(refusal) = head::fault(&request, self.takes_connect) {
            return ConnAppFuture::refused(refusal, refusals, is_http2);
        }
        let mut service = self.service.clone();
        // On HTTP/2 the connection would do what is a stream's, and fail with it.
        if !is_http2 {
            // If it is not ready, it is asked again with the waker of the request.
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => {
                    return ConnAppFuture::call(&mut service, request, refusals.clone(), is_http2);
                }
                Poll::Ready(Err(_)) => return ConnAppFuture::failed(refusals, is_http2),
                Poll::Pending => {}
            }
        }
        let (request, refusals) = (Some(request), refusals.clone());
        ConnAppFuture::Waiting {
            service,
            request,
            refusals,
            is_http2,
        }
    }
}

impl<S: HttpService> ConnAppFuture<S, S::Future> {
    /// Calls what is ready.
    fn call(
        service: &mut S,
        request: Request<Incoming>,
        refusals: Refusals,
        is_http2: bool,
    ) -> Self {
        let is_bare = is_http2 && request.method() == Method::HEAD;
        Self::Called {
            future: service.call(request),
            refusals,
            is_http2,
            is_bare,
        }
    }
}

impl<S, F> ConnAppFuture<S, F> {
    /// The app failed where it should have answered. Why is its own to tell.
    fn failed(refusals: &Refusals, is_http2: bool) -> Self {
        Self::refused(Refusal::AppFailed, refusals, is_http2)
    }

    /// Answers by itself, and tells of it.
    #[cold]
    fn refused(refusal: Refusal, refusals: &Refusals, is_http2: bool) -> Self {
        refusals.tell(refusal);
        Self::Refused { refusal, is_http2 }
    }
}

/// Whether an answer with this status would have to be followed by another one.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// The answer to HEAD: what a GET would be answered, as far as the head goes.
fn without_body<B: Body>(response: Response<B>, is_http2: bool) -> Response<ServedBody<B>> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| ServedBody::empty(is_http2));
    if let Some(length) = length.filter(|length| *length > 0) {
        let headers = response.headers_mut();
        headers
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    response
}

impl<S: HttpService> Future for ConnAppFuture<S, S::Future> {
    type Output = Result<Response<ServedBody<S::ResponseBody>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                ConnAppProj::Called {
                    future,
                    refusals,
                    is_http2,
                    is_bare,
                } => {
                    let (is_http2, is_bare) = (*is_http2, *is_bare);
                    let next = match ready!(future.poll(cx)) {
                        // No answer, and hyper sends none of them on.
                        Ok(response) if is_interim(response.status()) => {
                            Self::failed(refusals, is_http2)
                        }
                        Ok(response) if is_bare => {
                            return Poll::Ready(Ok(without_body(response, is_http2)));
                        }
                        Ok(response) => {
                            let body = |body| ServedBody::new(body, is_http2);
                            return Poll::Ready(Ok(response.map(body)));
                        }
                        Err(_) => Self::failed(refusals, is_http2),
                    };
                    self.set(next);
                }
                ConnAppProj::Refused { refusal, is_http2 } => {
                    let mut response = Response::new(ServedBody::empty(*is_http2));
                    *response.status_mut() = refusal.status();
                    if !*is_http2 {
                        // What comes after it on the connection is not to be believed either.
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                    }
                    return Poll::Ready(Ok(response));
                }
                ConnAppProj::Waiting {
                    service,
                    request,
                    refusals,
                    is_http2,
                } => {
                    let is_http2 = *is_http2;
                    let next = match ready!(service.poll_ready(cx)) {
                        Ok(()) => {
                            let request = request.take().expect("called once");
                            Self::call(service, request, refusals.clone(), is_http2)
                        }
                        Err(_) => Self::failed(refusals, is_http2),
                    };
                    self.set(next);
                }
            }
        }
    }
}
