//! Bodies and handlers for the tests of this crate.
#![allow(dead_code, unreachable_pub, clippy::needless_pass_by_value)]

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use palisade_body_limit::{BodyLimitLayer, RequestBody};
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

/// What an inner body does when it is polled.
#[derive(Clone, Debug)]
pub enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Pending, and the task is woken at once.
    Pending,
    /// Pending, and nobody wakes.
    Silence,
    Error,
}

/// A body that follows a script, and tells how often it was polled.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub steps: VecDeque<Step>,
    pub hint: SizeHint,
    /// Whether it says that it is at its end as soon as it is.
    pub knows_its_end: bool,
    pub polls: Arc<AtomicUsize>,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            ..Self::default()
        }
    }

    /// `count` frames of `length` bytes each.
    pub fn frames(count: usize, length: usize) -> Self {
        Self::new((0..count).map(|_| data(length)))
    }

    pub fn exact(mut self, length: u64) -> Self {
        self.hint = SizeHint::with_exact(length);
        self
    }
}

pub fn data(length: usize) -> Step {
    Step::Data(Bytes::from(vec![b'x'; length]))
}

pub fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("last"))])
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls.fetch_add(1, Relaxed);
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers(map)) => Poll::Ready(Some(Ok(Frame::trailers(map)))),
            Some(Step::Error) => Poll::Ready(Some(Err("broken".into()))),
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Silence) => {
                self.steps.push_front(Step::Silence);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

pub type Answer = Response<http_body_util::Full<Bytes>>;

pub fn answer(text: impl ToString) -> Answer {
    Response::new(text.to_string().into())
}

/// Everything of a body: its frames, in pieces as they came, trailers, and the error if it failed.
#[derive(Debug, Default)]
pub struct Read {
    pub pieces: Vec<Bytes>,
    pub trailers: Option<HeaderMap>,
    pub error: Option<BoxError>,
}

impl Read {
    pub fn bytes(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

pub async fn read<B>(body: B) -> Read
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let mut read = Read::default();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => read.pieces.push(data),
            Ok(Err(frame)) => read.trailers = frame.into_trailers().ok(),
            Err(error) => {
                read.error = Some(error.into());
                break;
            }
        }
    }
    read
}

/// Answers the number of bytes that came, whether the body failed or not.
pub async fn count<B>(request: Request<RequestBody<B>>) -> Result<Answer, Infallible>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    Ok(answer(read(request.into_body()).await.bytes().len()))
}

/// Sends `body` through `layer` and returns what the body yields on the other side.
pub async fn through(layer: &BodyLimitLayer, body: Script) -> Read {
    through_request(layer, Request::new(body)).await
}

pub async fn through_request(layer: &BodyLimitLayer, request: Request<Script>) -> Read {
    body_of(layer, request).await.1
}

/// The answer and what the handler read.
pub async fn body_of(layer: &BodyLimitLayer, request: Request<Script>) -> (http::StatusCode, Read) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let handler = service_fn(move |request: Request<RequestBody<Script>>| {
        let sender = sender.clone();
        async move {
            // In a task of its own: what it reads shall be seen even if the answer is a refusal.
            let task = tokio::spawn(async move {
                let _ = sender.send(read(request.into_body()).await);
            });
            let _ = task.await;
            Ok::<_, Infallible>(answer(""))
        }
    });
    let response = layer
        .layer(handler)
        .oneshot(request)
        .await
        .expect("infallible");
    let (sender, done) = (response.status(), receiver);
    // The task may still be at its last frames.
    for _ in 0..100 {
        if let Ok(read) = done.try_recv() {
            return (sender, read);
        }
        tokio::task::yield_now().await;
    }
    (sender, Read::default())
}

/// Calls `service` once.
pub async fn call<S, B, R>(service: &mut S, request: Request<B>) -> Response<R>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
{
    let Ok(service) = service.ready().await;
    let Ok(response) = service.call(request).await;
    response
}
