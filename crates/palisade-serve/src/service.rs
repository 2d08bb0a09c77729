//! The service that hyper calls on one connection.

use crate::{
    Http, HttpService, head,
    refusal::{Refusal, RefusalReporter},
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

/// The app on one connection, with request tracking from the moment a request head has arrived.
pub(crate) struct ConnService<S> {
    tracking: RequestTracking<ConnApp<S>>,
}

/// Refuses invalid requests, waits until the app is ready, and calls it. A request counts as in
/// flight while it waits.
pub(crate) struct ConnApp<S> {
    service: S,
    refusals: RefusalReporter,
    is_http2: bool,
    allow_connect: bool,
}

pin_project! {
    #[project = ConnAppProj]
    pub(crate) enum ConnAppFuture<S, F> {
        AwaitingReady {
            service: S,
            request: Option<Request<Incoming>>,
            refusals: RefusalReporter,
            is_http2: bool,
        },
        // If `omits_body`, the response must have no body. hyper removes it on HTTP/1 only.
        Called {
            #[pin]
            future: F,
            refusals: RefusalReporter,
            is_http2: bool,
            omits_body: bool,
        },
        Refused { refusal: Refusal, is_http2: bool },
    }
}

// === ConnService ===

impl<S> ConnService<S> {
    pub(crate) fn new(
        conn: &ConnHandle,
        service: S,
        refusals: RefusalReporter,
        http: &Http,
        is_http2: bool,
    ) -> Self {
        let app = ConnApp {
            service,
            refusals,
            is_http2,
            allow_connect: http.allow_connect,
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
        if let Some(refusal) = head::check(&request, self.allow_connect) {
            return ConnAppFuture::refused(refusal, refusals, is_http2);
        }
        let mut service = self.service.clone();
        // On HTTP/2 this is done in the task of the stream. Here it would run in the task of the
        // connection, and a panic would end all streams.
        if !is_http2 {
            // If the service is not ready, it is polled again with the waker of the request.
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => {
                    return ConnAppFuture::call(&mut service, request, refusals.clone(), is_http2);
                }
                Poll::Ready(Err(_)) => return ConnAppFuture::failed(refusals, is_http2),
                Poll::Pending => {}
            }
        }
        let (request, refusals) = (Some(request), refusals.clone());
        ConnAppFuture::AwaitingReady {
            service,
            request,
            refusals,
            is_http2,
        }
    }
}

impl<S: HttpService> ConnAppFuture<S, S::Future> {
    /// Calls the service, which must be ready.
    fn call(
        service: &mut S,
        request: Request<Incoming>,
        refusals: RefusalReporter,
        is_http2: bool,
    ) -> Self {
        let omits_body = is_http2 && request.method() == Method::HEAD;
        Self::Called {
            future: service.call(request),
            refusals,
            is_http2,
            omits_body,
        }
    }
}

impl<S, F> ConnAppFuture<S, F> {
    /// Refuses the request because the app failed. The app reports its error itself.
    fn failed(refusals: &RefusalReporter, is_http2: bool) -> Self {
        Self::refused(Refusal::AppFailed, refusals, is_http2)
    }

    /// Refuses the request and reports the refusal.
    #[cold]
    fn refused(refusal: Refusal, refusals: &RefusalReporter, is_http2: bool) -> Self {
        refusals.report(refusal);
        Self::Refused { refusal, is_http2 }
    }
}

/// Returns whether a response with this status must be followed by a final one.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Returns `response` without its body, as the response to HEAD. Its head is that of the response
/// to GET, including the length.
fn head_response<B: Body>(response: Response<B>, is_http2: bool) -> Response<ServedBody<B>> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| ServedBody::empty(is_http2));
    if let Some(length) = length
        && length > 0
    {
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
                    omits_body,
                } => {
                    let (is_http2, omits_body) = (*is_http2, *omits_body);
                    let next = match ready!(future.poll(cx)) {
                        // Not a final response, and hyper does not send it.
                        Ok(response) if is_interim(response.status()) => {
                            Self::failed(refusals, is_http2)
                        }
                        Ok(response) if omits_body => {
                            return Poll::Ready(Ok(head_response(response, is_http2)));
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
                        // What follows on the connection cannot be trusted either.
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                    }
                    return Poll::Ready(Ok(response));
                }
                ConnAppProj::AwaitingReady {
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
