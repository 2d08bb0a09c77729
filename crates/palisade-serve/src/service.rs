//! The service that hyper calls on one connection.

use crate::{
    Http, HttpService, head,
    held::{HeldBytes, Room},
    refusal::{Refusal, RefusalReporter},
    request_body::{BodyCharge, RequestBody},
    streams::{ServedBody, poll_room},
};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH},
};
use http_body::Body;
use hyper::body::Incoming;
use palisade_conn::{ConnHandle, RequestTracking, TrackedBody, TrackingFuture};
use palisade_core::{Client, Rejection};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

/// The app on one connection, with request tracking from the moment a request head has arrived.
pub(crate) struct ConnService<S> {
    tracking: RequestTracking<ConnApp<S>>,
}

/// Refuses invalid requests, waits until there is room for a response and the app is ready, and
/// calls it. A request counts as in flight while it waits.
pub(crate) struct ConnApp<S> {
    service: S,
    refusals: RefusalReporter,
    /// What the connection holds of its responses. `None` on HTTP/1.
    held: Option<HeldBytes>,
    allow_connect: bool,
}

pin_project! {
    #[project = ConnAppProj]
    pub(crate) enum ConnAppFuture<S, F> {
        AwaitingReady {
            service: S,
            request: Option<Request<RequestBody>>,
            charge: Option<Arc<BodyCharge>>,
            refusals: RefusalReporter,
            room: Option<Room>,
            // Set while the request waits for room.
            unread: Option<UnreadBody>,
        },
        // If `omits_body`, the response must have no body. hyper removes it on HTTP/1 only.
        Called {
            #[pin]
            future: F,
            refusals: RefusalReporter,
            room: Option<Room>,
            // Of the body of the request.
            charge: Option<Arc<BodyCharge>>,
            omits_body: bool,
        },
        Refused { refusal: Refusal, is_http2: bool },
        // The byte budget had no room for the body of the request.
        Shed { rejection: Option<Box<Rejection>>, is_http2: bool },
    }
}

// === ConnService ===

/// A request body that nothing reads. It fills a part of the window that all requests of its
/// connection share.
struct UnreadBody(ConnHandle);

impl<S> ConnService<S> {
    pub(crate) fn new(
        conn: &ConnHandle,
        service: S,
        refusals: RefusalReporter,
        http: &Http,
        held: Option<HeldBytes>,
    ) -> Self {
        let app = ConnApp {
            service,
            refusals,
            held,
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
        let is_http2 = self.held.is_some();
        let refusals = &self.refusals;
        if let Some(refusal) = head::check(&request, self.allow_connect) {
            let client = Client::beside(Some(refusals.conn()), request.extensions());
            return ConnAppFuture::refused(refusal, refusals, client, is_http2);
        }
        let (request, charge) = if RequestBody::is_upload(&request) {
            match RequestBody::wrap_upload(request, refusals) {
                Ok(wrapped) => wrapped,
                Err(rejection) => {
                    let rejection = Some(rejection);
                    return ConnAppFuture::Shed {
                        rejection,
                        is_http2,
                    };
                }
            }
        } else {
            (request.map(RequestBody::free), None)
        };
        let mut service = self.service.clone();
        // On HTTP/2 this is done in the task of the stream. Here it would run in the task of the
        // connection, and a panic would end all streams.
        if !is_http2 {
            // If the service is not ready, it is polled again with the waker of the request.
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => {
                    let refusals = refusals.clone();
                    return ConnAppFuture::call(&mut service, request, charge, refusals, None);
                }
                Poll::Ready(Err(_)) => return ConnAppFuture::failed(refusals, is_http2),
                Poll::Pending => {}
            }
        }
        let (request, refusals) = (Some(request), refusals.clone());
        ConnAppFuture::AwaitingReady {
            service,
            request,
            charge,
            refusals,
            room: self.held.clone().map(Room::new),
            unread: None,
        }
    }
}

// === UnreadBody ===

impl UnreadBody {
    fn new(conn: &ConnHandle) -> Self {
        conn.add_unread_body();
        Self(conn.clone())
    }
}

impl Drop for UnreadBody {
    fn drop(&mut self) {
        self.0.remove_unread_body();
    }
}

impl<S: HttpService> ConnAppFuture<S, S::Future> {
    /// Calls the service, which must be ready.
    fn call(
        service: &mut S,
        request: Request<RequestBody>,
        charge: Option<Arc<BodyCharge>>,
        refusals: RefusalReporter,
        room: Option<Room>,
    ) -> Self {
        let omits_body = room.is_some() && request.method() == Method::HEAD;
        Self::Called {
            future: service.call(request),
            refusals,
            room,
            charge,
            omits_body,
        }
    }
}

impl<S, F> ConnAppFuture<S, F> {
    /// Refuses the request because the app failed. The app reports its error itself.
    fn failed(refusals: &RefusalReporter, is_http2: bool) -> Self {
        Self::refused(Refusal::AppFailed, refusals, None, is_http2)
    }

    /// Refuses the request and reports the refusal.
    #[cold]
    fn refused(
        refusal: Refusal,
        refusals: &RefusalReporter,
        client: Option<&Client>,
        is_http2: bool,
    ) -> Self {
        refusals.report(refusal, client);
        Self::Refused { refusal, is_http2 }
    }
}

/// Returns whether a response with this status must be followed by a final one.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Returns `response` without its body, as the response to HEAD. Its head is that of the response
/// to GET, including the length.
fn head_response<B: Body>(response: Response<B>) -> Response<ServedBody<B>> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| ServedBody::of_server(Bytes::new()));
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
                    room,
                    charge,
                    omits_body,
                } => {
                    let result = future.poll(cx);
                    // The response of the server comes in place of that of the app.
                    let refusal = charge.as_ref().and_then(|charge| match &result {
                        Poll::Ready(Ok(_)) => charge.set_responded(),
                        _ => charge.refusal(),
                    });
                    if let Some(rejection) = refusal {
                        let rejection = Some(Box::new(rejection));
                        let is_http2 = room.is_some();
                        self.set(Self::Shed {
                            rejection,
                            is_http2,
                        });
                        continue;
                    }
                    let next = match ready!(result) {
                        // Not a final response, and hyper does not send it.
                        Ok(response) if is_interim(response.status()) => {
                            Self::failed(refusals, room.is_some())
                        }
                        Ok(response) if *omits_body => {
                            return Poll::Ready(Ok(head_response(response)));
                        }
                        Ok(response) => {
                            let body =
                                |body| ServedBody::new(body, room.take()).of_request(charge.take());
                            return Poll::Ready(Ok(response.map(body)));
                        }
                        Err(_) => Self::failed(refusals, room.is_some()),
                    };
                    self.set(next);
                }
                ConnAppProj::Refused { refusal, is_http2 } => {
                    let mut response = Response::new(ServedBody::of_server(Bytes::new()));
                    *response.status_mut() = refusal.status();
                    if !*is_http2 {
                        // What follows on the connection cannot be trusted either.
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                    }
                    return Poll::Ready(Ok(response));
                }
                ConnAppProj::Shed {
                    rejection,
                    is_http2,
                } => {
                    let rejection = rejection.take().expect("polled once");
                    let is_http2 = *is_http2;
                    let body = |text| match is_http2 {
                        true => ServedBody::of_server(Bytes::new()),
                        false => ServedBody::of_server(text),
                    };
                    return Poll::Ready(Ok(rejection.into_bytes().map(body)));
                }
                ConnAppProj::AwaitingReady {
                    service,
                    request,
                    charge,
                    refusals,
                    room,
                    unread,
                } => {
                    // A client that does not take its responses gets no more of them.
                    if let Some(room) = room {
                        let Poll::Ready(was_waiting) = poll_room(room, cx) else {
                            let has_body =
                                |request: &Request<RequestBody>| !request.body().is_end_stream();
                            if unread.is_none() && request.as_ref().is_some_and(has_body) {
                                *unread = Some(UnreadBody::new(room.conn()));
                            }
                            return Poll::Pending;
                        };
                        if was_waiting {
                            room.pass_on();
                        }
                    }
                    let next = match ready!(service.poll_ready(cx)) {
                        Ok(()) => {
                            let request = request.take().expect("called once");
                            let (charge, room) = (charge.take(), room.take());
                            Self::call(service, request, charge, refusals.clone(), room)
                        }
                        Err(_) => Self::failed(refusals, room.is_some()),
                    };
                    self.set(next);
                }
            }
        }
    }
}
