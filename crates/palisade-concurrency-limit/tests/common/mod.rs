//! A guarded service, its requests and its handlers.
#![allow(dead_code, unused_imports, reason = "no test file uses all of it")]

pub(crate) use bytes::Bytes;
pub(crate) use futures_util::FutureExt;
pub(crate) use http::{Request, Response, StatusCode};
pub(crate) use http_body_util::{
    BodyExt, Collected, Empty, Full, channel::Channel, channel::Sender, combinators::BoxBody,
};
pub(crate) use palisade_client_ip::ClientIp;
pub(crate) use palisade_concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitLayer, RequestBody};
pub(crate) use palisade_core::{BoxError, Gauge, Guard, Mode, Reason, Violation};
pub(crate) use palisade_testkit::Journal;
pub(crate) use parking_lot::Mutex;
pub(crate) use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration,
};
pub(crate) use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::advance,
};
pub(crate) use tower::{Layer, Service, ServiceExt, service_fn};

pub(crate) type Body = BoxBody<Bytes, io::Error>;
pub(crate) type HandlerRequestBody = RequestBody<Body>;
pub(crate) type HandlerResponse = Response<Body>;
pub(crate) type HandlerFuture =
    Pin<Box<dyn Future<Output = Result<HandlerResponse, Infallible>> + Send>>;
pub(crate) type Handler =
    tower::util::BoxCloneService<Request<HandlerRequestBody>, HandlerResponse, Infallible>;
pub(crate) type Guarded = ConcurrencyLimit<Handler>;
pub(crate) type GuardedResponse = Response<palisade_concurrency_limit::ResponseBody<Body>>;

pub(crate) const GUARD: Guard = Guard::ConcurrencyLimit;

pub(crate) fn handler<F>(
    run: impl Fn(Request<HandlerRequestBody>) -> F + Clone + Send + 'static,
) -> Handler
where
    F: Future<Output = HandlerResponse> + Send + 'static,
{
    let run = move |request| -> HandlerFuture { Box::pin(run(request).map(Ok)) };
    Handler::new(service_fn(run))
}

pub(crate) fn full(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never| match never {})
        .boxed()
}

pub(crate) fn channel() -> (Sender<Bytes, io::Error>, Body) {
    let (sender, body) = Channel::<Bytes, io::Error>::new(16);
    (sender, body.boxed())
}

pub(crate) fn get() -> Request<Body> {
    Request::new(Empty::new().map_err(|never| match never {}).boxed())
}

pub(crate) fn post(body: Body) -> Request<Body> {
    Request::post("/").body(body).unwrap()
}

pub(crate) fn from_client(address: &str, mut request: Request<Body>) -> Request<Body> {
    request
        .extensions_mut()
        .insert(format!("{address}:1").parse::<SocketAddr>().unwrap());
    request
}

/// Sends `request` in a task, which then reads the response to its end.
pub(crate) fn send(
    service: &Guarded,
    request: Request<Body>,
) -> JoinHandle<(StatusCode, Result<Bytes, BoxError>)> {
    let response = service.clone().oneshot(request);
    tokio::spawn(async move {
        let (parts, body) = response.await.unwrap().into_parts();
        (parts.status, body.collect().await.map(Collected::to_bytes))
    })
}

/// Calls the service at once, while `ServiceExt::oneshot` calls it later.
pub(crate) fn call(
    service: &Guarded,
    request: Request<Body>,
) -> impl Future<Output = Result<GuardedResponse, Infallible>> + use<> {
    let mut service = service.clone();
    assert!(service.ready().now_or_never().unwrap().is_ok());
    service.call(request)
}

/// Lets all tasks run until each of them waits.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn assert_none_present(journal: &Journal) {
    for level in [Gauge::Working, Gauge::Waiting, Gauge::Queued] {
        assert_eq!(journal.gauge(GUARD, level), Some(0), "{level:?}");
    }
}

/// A handler that responds when the test opens the gate.
#[derive(Clone, Default)]
pub(crate) struct Gate(pub(crate) Arc<Mutex<Vec<oneshot::Sender<()>>>>);

impl Gate {
    pub(crate) fn handler(&self) -> Handler {
        let gate = self.clone();
        handler(move |_request| {
            let (sender, receiver) = oneshot::channel();
            gate.0.lock().push(sender);
            async move {
                receiver.await.ok();
                Response::new(full("done"))
            }
        })
    }

    pub(crate) fn started(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn open_one(&self) {
        self.0.lock().remove(0).send(()).ok();
    }
}

/// A handler that reads the whole body and reports whether it was empty.
pub(crate) fn reader() -> Handler {
    handler(|request| async {
        match request.into_body().collect().await {
            Ok(whole) => Response::new(full(if whole.to_bytes().is_empty() {
                "empty"
            } else {
                "read"
            })),
            Err(error) => {
                let evicted = error.downcast_ref::<Violation>().map(|v| v.reason);
                assert_eq!(evicted, Some(Reason::Evicted));
                Response::new(full("the handler received the error"))
            }
        }
    })
}
