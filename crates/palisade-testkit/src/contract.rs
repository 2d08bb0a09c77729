//! tower's contract, for every layer: the instance that was made ready is the one that is called,
//! errors pass through unchanged, and a dropped future leaves nothing behind.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};
use tower::{Layer, Service, ServiceExt};

type ProbeResult = Result<Response<Full<Bytes>>, Broken>;

/// The error of the probe service. No layer creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub u32);

/// A service that panics when it is called without having been made ready, and counts its running
/// calls. `/fails` returns an error, `/hangs` never responds.
#[derive(Debug, Default)]
pub struct Probe {
    is_ready: bool,
    readiness_error: Option<Broken>,
    running: Arc<AtomicUsize>,
}

/// Counts a call as running until it is dropped.
struct RunningCall(Arc<AtomicUsize>);

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Probe {
    /// Returns the number of running calls of this service and its clones.
    pub fn running(&self) -> usize {
        self.running.load(SeqCst)
    }
}

/// A clone is not ready, even if the original is.
impl Clone for Probe {
    fn clone(&self) -> Self {
        Self {
            is_ready: false,
            readiness_error: self.readiness_error,
            running: self.running.clone(),
        }
    }
}

impl<B: Body + Send + 'static> Service<Request<B>> for Probe {
    type Response = Response<Full<Bytes>>;
    type Error = Broken;
    type Future = Pin<Box<dyn Future<Output = ProbeResult> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let Some(broken) = self.readiness_error {
            return Poll::Ready(Err(broken));
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.is_ready),
            "the service is called without having been made ready"
        );
        self.running.fetch_add(1, SeqCst);
        let running_call = RunningCall(self.running.clone());
        Box::pin(async move {
            let _running_call = running_call;
            match request.uri().path() {
                "/fails" => Err(Broken(1)),
                "/hangs" => std::future::pending().await,
                _ => Ok(Response::new(Full::new(Bytes::from_static(b"served")))),
            }
        })
    }
}

/// Returns a request with a body.
pub fn request(path: &str) -> Request<Full<Bytes>> {
    Request::post(path)
        .body(Full::new(Bytes::from_static(b"body")))
        .unwrap()
}

/// Polls `future` once.
pub fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn assert_shareable<T: Clone + Debug + Send + Sync + 'static>(_: &T) {}
fn assert_sendable<T: Send + 'static>(_: &T) {}

/// Asserts that `layer` keeps the contract.
///
/// # Panics
///
/// If it does not.
pub async fn assert_contract<L, B>(layer: L)
where
    L: Layer<Probe> + Clone + Debug + Send + Sync + 'static,
    L::Service: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Broken>
        + Clone
        + Debug
        + Send
        + Sync
        + 'static,
    <L::Service as Service<Request<Full<Bytes>>>>::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Debug> + Send + 'static,
{
    assert_shareable(&layer);
    let probe = Probe::default();
    let running = || probe.running();
    let mut service = layer.layer(probe.clone());
    assert_shareable(&service);

    // The instance that was made ready is called, even if it has been cloned in between.
    service.ready().await.unwrap();
    let mut other = service.clone();
    let first = service.call(request("/"));
    assert_sendable(&first);
    other.ready().await.unwrap();
    let second = other.call(request("/"));
    for response in [first.await.unwrap(), second.await.unwrap()] {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "served"
        );
    }

    // Errors pass through unchanged, both from the response and from readiness.
    assert_eq!(
        service
            .ready()
            .await
            .unwrap()
            .call(request("/fails"))
            .await
            .err(),
        Some(Broken(1))
    );
    let unready = Probe {
        readiness_error: Some(Broken(2)),
        ..probe.clone()
    };
    assert_eq!(layer.layer(unready).ready().await.err(), Some(Broken(2)));
    assert_eq!(running(), 0);

    // A future may be dropped before or after it is first polled.
    drop(service.ready().await.unwrap().call(request("/hangs")));
    assert_eq!(running(), 0);
    let mut hangs = Box::pin(service.ready().await.unwrap().call(request("/hangs")));
    assert!(poll_once(hangs.as_mut()).is_pending());
    assert_eq!(running(), 1);
    drop(hangs);
    assert_eq!(running(), 0);
}
