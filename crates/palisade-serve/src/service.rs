//! The app as hyper sees it on one connection.

use crate::{Http, HttpService, head, streams::ServedBody};
use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
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
    #[cfg(feature = "axum")]
    peer: std::net::SocketAddr,
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
        Called { #[pin] future: F, is_http2: bool },
        Refused { status: StatusCode, is_http2: bool },
    }
}

// === ConnService ===

impl<S> ConnService<S> {
    pub(crate) fn new(conn: &Arc<ConnInfo>, service: S, http: &Http, is_http2: bool) -> Self {
        let once = Once { service: Some(service), is_http2, takes_connect: http.takes_connect };
        Self {
            accounting: Accounting::of(conn.clone(), once).cuts_streams(),
            #[cfg(feature = "axum")]
            peer: conn.peer(),
        }
    }
}

impl<S: HttpService> hyper::service::Service<Request<Incoming>> for ConnService<S> {
    type Response = Response<AccountedBody<ServedBody<S::ResponseBody>>>;
    type Error = S::Error;
    type Future = AccountingFuture<OnceFuture<S, S::Future>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        #[cfg(feature = "axum")]
        let request = {
            let mut request = request;
            request.extensions_mut().insert(axum::extract::ConnectInfo(self.peer));
            request
        };
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

impl<S: HttpService> Future for OnceFuture<S, S::Future> {
    type Output = Result<Response<ServedBody<S::ResponseBody>>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                OnceProj::Called { future, is_http2 } => {
                    let response = ready!(future.poll(cx))?;
                    let is_http2 = *is_http2;
                    return Poll::Ready(Ok(response.map(|body| ServedBody::new(body, is_http2))));
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
                    let ready = service.as_mut().expect("called once");
                    ready!(ready.poll_ready(cx))?;
                    let is_http2 = *is_http2;
                    let request = request.take().expect("called once");
                    let future = ready.call(request);
                    self.set(Self::Called { future, is_http2 });
                }
            }
        }
    }
}
