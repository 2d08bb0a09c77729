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

/// The result of one poll of a [`Script`].
#[derive(Clone, Debug)]
pub enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Pending, and the task is woken.
    Pending,
    /// Pending forever, and the task is not woken.
    Stall,
    Error,
}

/// A body that yields the given steps, and counts its polls.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub steps: VecDeque<Step>,
    pub hint: SizeHint,
    /// Whether `is_end_stream` returns true once no steps are left.
    pub reports_end: bool,
    pub polls: Arc<AtomicUsize>,
}

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Creates a body of `count` frames of `length` bytes each.
    pub fn frames(count: usize, length: usize) -> Self {
        Self::new((0..count).map(|_| data(length)))
    }

    /// Sets the exact size hint.
    pub fn with_length(mut self, length: u64) -> Self {
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
            Some(Step::Stall) => {
                self.steps.push_front(Step::Stall);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reports_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

pub type TextResponse = Response<http_body_util::Full<Bytes>>;

pub fn text_response(text: impl ToString) -> TextResponse {
    Response::new(text.to_string().into())
}

/// The content of a body that has been read: data frames, trailers, and the error if it failed.
#[derive(Debug, Default)]
pub struct ReadBody {
    pub frames: Vec<Bytes>,
    pub trailers: Option<HeaderMap>,
    pub error: Option<BoxError>,
}

impl ReadBody {
    pub fn bytes(&self) -> Vec<u8> {
        self.frames.concat()
    }
}

/// Reads `body` to its end or first error.
pub async fn read_body<B>(body: B) -> ReadBody
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let mut read = ReadBody::default();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => read.frames.push(data),
            Ok(Err(frame)) => read.trailers = frame.into_trailers().ok(),
            Err(error) => {
                read.error = Some(error.into());
                break;
            }
        }
    }
    read
}

/// A handler that responds with the number of bytes it read, even if the body failed.
pub async fn count_bytes<B>(request: Request<RequestBody<B>>) -> Result<TextResponse, Infallible>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    Ok(text_response(
        read_body(request.into_body()).await.bytes().len(),
    ))
}

/// Sends `body` through `layer` and returns what the handler reads.
pub async fn read_through(layer: &BodyLimitLayer, body: Script) -> ReadBody {
    serve(layer, Request::new(body)).await.1
}

/// Sends `request` through `layer`. Returns the status of the response and what the handler read.
pub async fn serve(
    layer: &BodyLimitLayer,
    request: Request<Script>,
) -> (http::StatusCode, ReadBody) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let handler = service_fn(move |request: Request<RequestBody<Script>>| {
        let sender = sender.clone();
        async move {
            // Read in a separate task, so that the result is kept even if the request is refused.
            let task = tokio::spawn(async move {
                let _ = sender.send(read_body(request.into_body()).await);
            });
            let _ = task.await;
            Ok::<_, Infallible>(text_response(""))
        }
    });
    let response = layer
        .layer(handler)
        .oneshot(request)
        .await
        .expect("the handler is infallible");
    // The task may still read the last frames.
    for _ in 0..100 {
        if let Ok(read) = receiver.try_recv() {
            return (response.status(), read);
        }
        tokio::task::yield_now().await;
    }
    (response.status(), ReadBody::default())
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
