//! The app as hyper sees it on one connection.

use crate::{Http, HttpService, head, streams::ServedBody};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH},
};
use http_body::Body;
use hyper::body::Incoming;
use palisade_conn::{AccountedBody, Accounting, AccountingFuture};
use palisade_core::ConnInfo;
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// The app on one connection, which is told of each request from the moment its head is here.
pub(crate) struct ConnService<S> {
    accounting: Accounting<Once<S>>,
}

/// A service that is always ready, and waits for the app to be ready with the request in hand.
/// Good for one request, which it refuses if it is one of those.
#[derive(Clone)]
pub(crate) struct Once<S> {
    service: Option<S>,
    is_http2: bool,
    takes_connect: bool,
}

pin_project! {
    #[project = OnceProj]
    pub(crate) enum OnceFuture<S, F> {
        Waiting { service: Option<S>, request: Option<Request<Incoming>>, is_http2: bool },
        // `is_bare`: the answer is to have no body, which hyper sees to on HTTP/1 alone.
        Called { #[pin] future: F, is_http2: bool, is_bare: bool },
        Refused { status: StatusCode, is_http2: bool },
    }
}

// === ConnService ===

impl<S> ConnService<S> {
    pub(crate) fn new(conn: &Arc<ConnInfo>, service: S, http: &Http, is_http2: bool) -> Self {
        let once = Once { service: Some(service), is_http2, takes_connect: http.takes_connect };
        let accounting = Accounting::of(conn.clone(), once).cuts_streams();
        #[cfg(feature = "axum")]
        let accounting = accounting.connect_info();
        Self { accounting }
    }
}

impl<S: HttpService> hyper::service::Service<Request<Incoming>> for ConnService<S> {
    type Response = Response<AccountedBody<ServedBody<S::ResponseBody>>>;
    type Error = S::Error;
    type Future = AccountingFuture<OnceFuture<S, S::Future>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.accounting.clone().call(request)
    }
}

// === Once ===

impl<S: HttpService> Service<Request<Incoming>> for Once<S> {
    type Response = Response<ServedBody<S::ResponseBody>>;
    type Error = S::Error;
    type Future = OnceFuture<S, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (service, is_http2) = (self.service.take(), self.is_http2);
        if let Some(status) = head::fault(&request, self.takes_connect) {
            return OnceFuture::Refused { status, is_http2 };
        }
        OnceFuture::Waiting { service, request: Some(request), is_http2 }
    }
}

impl<S, F> OnceFuture<S, F> {
    /// The app failed where it should have answered. Why is its own to tell.
    fn failed(is_http2: bool) -> Self {
        Self::Refused { status: StatusCode::INTERNAL_SERVER_ERROR, is_http2 }
    }
}

/// The answer to HEAD: what a GET would be answered, as far as the head goes.
fn without_body<B: Body>(response: Response<B>, is_http2: bool) -> Response<ServedBody<B>> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| ServedBody::empty(is_http2));
    if let Some(length) = length.filter(|length| *length > 0) {
        let headers = response.headers_mut();
        headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    response
}

impl<S: HttpService> Future for OnceFuture<S, S::Future> {
    type Output = Result<Response<ServedBody<S::ResponseBody>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                OnceProj::Called { future, is_http2, is_bare } => {
                    let (is_http2, is_bare) = (*is_http2, *is_bare);
                    match ready!(future.poll(cx)) {
                        Ok(response) if is_bare => {
                            return Poll::Ready(Ok(without_body(response, is_http2)));
                        }
                        Ok(response) => {
                            let body = |body| ServedBody::new(body, is_http2);
                            return Poll::Ready(Ok(response.map(body)));
                        }
                        Err(_) => self.set(Self::failed(is_http2)),
                    }
                }
                OnceProj::Refused { status, is_http2 } => {
                    let mut response = Response::new(ServedBody::empty(*is_http2));
                    *response.status_mut() = *status;
                    if !*is_http2 {
                        // What comes after it on the connection is not to be believed either.
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                    }
                    return Poll::Ready(Ok(response));
                }
                OnceProj::Waiting { service, request, is_http2 } => {
                    let is_http2 = *is_http2;
                    let ready = service.as_mut().expect("called once");
                    if ready!(ready.poll_ready(cx)).is_err() {
                        self.set(Self::failed(is_http2));
                        continue;
                    }
                    let request = request.take().expect("called once");
                    let is_bare = is_http2 && request.method() == Method::HEAD;
                    let future = ready.call(request);
                    self.set(Self::Called { future, is_http2, is_bare });
                }
            }
        }
    }
}
