//! The layer that reads short request bodies before the handler is called.

use crate::{
    buffered_body::{Arrived, BufferedBody},
    request::MAX_FRAMES_PER_POLL,
};
use bytes::Bytes;
use http::Request;
use http_body::Body;
use palisade_core::BoxError;
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// Reads short request bodies completely before the inner service is called.
///
/// A client on a slow line takes seconds for a form of 20 KiB. A handler that is called with the
/// head holds what it needs for the response meanwhile: its memory, a connection to a database.
/// Behind this layer it is called when the body is there, and gets it in one frame.
///
/// - A body that declares its length is read if that is within the [limit](Self::new). A longer
///   one, and one of unknown length, is passed on as it arrives.
/// - Nothing is reserved for what is declared. What is kept is less than twice what has arrived.
/// - If the body fails, the inner service gets what has arrived, and then the error. If it fails
///   because a guard outside ends it, that guard refuses the request and the inner service is not
///   called.
/// - The client gets `100 Continue`, if it asks for that, before the inner service is called.
///
/// The layer has no deadline of its own. It belongs inside of `SlowBodyLayer`, which ends bodies
/// that do not arrive, and of [`BodyBudgetLayer`](crate::BodyBudgetLayer), which charges what has
/// arrived. It belongs outside of the concurrency limit: a request that is being read then needs no
/// permit. `palisade::StackLayer::buffered` puts it there.
///
/// A handler that refuses requests by their head, as for lack of authorization, refuses them later.
/// What the inner service reserves in `poll_ready`, as tower's `ConcurrencyLimit` does, is held
/// while a body is read.
///
/// ```
/// use palisade_body_limit::BufferLayer;
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let started = tokio::time::Instant::now();
/// let service = BufferLayer::default().layer(service_fn(async |request: Request<_>| {
///     // Ten pieces, a second before each.
///     assert_eq!(started.elapsed(), 10 * SECOND);
///     let frame = BodyExt::frame(&mut Request::into_body(request)).await.ok_or("no frame")??;
///     assert_eq!(frame.data_ref().map(Bytes::len), Some(10_000));
///     Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
/// }));
/// let upload = Pieces::new(10, 1_000).declared().every(SECOND);
/// assert_eq!(service.oneshot(Request::new(upload)).await?.status(), 200);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct BufferLayer {
    max_bytes: u64,
}

/// The service of [`BufferLayer`].
#[derive(Clone, Debug)]
pub struct Buffered<S> {
    inner: S,
    max_bytes: u64,
}

pin_project! {
    /// Response future of [`Buffered`]. Dropping it drops what has been read, or the handler.
    pub struct BufferedFuture<S, B>
    where
        S: Service<Request<BufferedBody<B>>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<BufferedBody<B>>>,
    {
        Reading { reading: Option<Box<Reading<S, B>>> },
        Handler { #[pin] inner: S::Future },
    }
}

/// A request whose body is being read.
struct Reading<S, B> {
    /// The instance that was made ready.
    service: S,
    request: Request<B>,
    declared: u64,
    received: Vec<u8>,
    arrived: Arrived,
}

// === BufferLayer ===

impl BufferLayer {
    /// The limit of [`Self::default`] in bytes: 64 KiB.
    pub const DEFAULT: u64 = 64 << 10;

    /// Reads bodies that declare at most `max_bytes`. With 0 nothing is read.
    ///
    /// ```
    /// use palisade_body_limit::BufferLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // The time until the handler is called. The body takes ten seconds.
    /// let called_after = async |max_bytes| {
    ///     let started = tokio::time::Instant::now();
    ///     let layer = BufferLayer::new(max_bytes);
    ///     let service = layer.layer(service_fn(async |_| {
    ///         Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
    ///     }));
    ///     let upload = Pieces::new(10, 1_000).declared().every(SECOND);
    ///     service.oneshot(Request::new(upload)).await?;
    ///     Ok::<_, BoxError>(started.elapsed())
    /// };
    /// assert_eq!(called_after(10_000).await?, 10 * SECOND);
    /// assert_eq!(called_after(9_999).await?, Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(max_bytes: u64) -> Self {
        Self { max_bytes }
    }
}

impl Default for BufferLayer {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl<S> Layer<S> for BufferLayer {
    type Service = Buffered<S>;

    fn layer(&self, inner: S) -> Buffered<S> {
        Buffered {
            inner,
            max_bytes: self.max_bytes,
        }
    }
}

// === Buffered ===

impl<S, B> Service<Request<B>> for Buffered<S>
where
    S: Service<Request<BufferedBody<B>>> + Clone,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BufferedFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let declared = request.body().size_hint().exact();
        let is_short = |bytes: &u64| (1..=self.max_bytes).contains(bytes);
        let state = match declared.filter(is_short) {
            Some(declared) => {
                let fresh = self.inner.clone();
                let reading = Reading {
                    // Only the instance on which `poll_ready` returned ready may be called.
                    service: std::mem::replace(&mut self.inner, fresh),
                    request,
                    declared,
                    received: Vec::new(),
                    arrived: Arrived::default(),
                };
                State::Reading {
                    reading: Some(Box::new(reading)),
                }
            }
            None => State::Handler {
                inner: self.inner.call(request.map(BufferedBody::streamed)),
            },
        };
        BufferedFuture { state }
    }
}

// === BufferedFuture ===

impl<S, B> Future for BufferedFuture<S, B>
where
    S: Service<Request<BufferedBody<B>>>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        if let StateProj::Reading { reading: slot } = state.as_mut().project() {
            let reading = slot.as_mut().expect("polled after completion");
            ready!(reading.poll_body(cx));
            let reading = slot.take().expect("it was there a moment ago");
            let (mut service, request) = reading.finish();
            let inner = service.call(request);
            state.set(State::Handler { inner });
        }
        match state.project() {
            StateProj::Handler { inner } => inner.poll(cx),
            StateProj::Reading { .. } => Poll::Pending,
        }
    }
}

impl<S, B> fmt::Debug for BufferedFuture<S, B>
where
    S: Service<Request<BufferedBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedFuture").finish_non_exhaustive()
    }
}

// === Reading ===

impl<S, B> Reading<S, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    /// Ready when the body has ended, has failed, or is longer than it declared.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.arrived.has_failed() {
            return Poll::Ready(());
        }
        for _ in 0..MAX_FRAMES_PER_POLL {
            let body = self.request.body_mut();
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => return Poll::Ready(()),
                Some(Ok(frame)) => {
                    let is_last = body.is_end_stream();
                    match frame.into_data() {
                        Ok(data) => self.keep(data, is_last),
                        Err(frame) => self.arrived.trailers = frame.into_trailers().ok(),
                    }
                    if is_last || self.is_longer_than_declared() {
                        return Poll::Ready(());
                    }
                }
                Some(Err(error)) => {
                    self.arrived.error = Some(error.into());
                    // A guard that has ended the body finds that now, and refuses the request.
                    break;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Keeps the bytes of a frame. A copy of them, unless the frame is the whole body, because a
    /// frame of a byte may be a part of a large block.
    fn keep(&mut self, data: Bytes, is_last: bool) {
        if is_last && self.received.is_empty() {
            self.arrived.data = data;
            return;
        }
        let length = self.received.len().saturating_add(data.len());
        if length > self.received.capacity() {
            let declared = usize::try_from(self.declared).unwrap_or(usize::MAX);
            let capacity = length.saturating_mul(2).min(declared).max(length);
            self.received.reserve_exact(capacity - self.received.len());
        }
        self.received.extend_from_slice(&data);
    }

    fn is_longer_than_declared(&self) -> bool {
        self.received.len() as u64 > self.declared
    }

    /// Returns the service, and the request with what has arrived as its body.
    fn finish(self) -> (S, Request<BufferedBody<B>>) {
        let is_longer = self.is_longer_than_declared();
        let Self {
            service,
            request,
            received,
            mut arrived,
            ..
        } = self;
        if !received.is_empty() {
            arrived.data = received.into();
        }
        let request = request.map(|rest| BufferedBody::new(arrived, is_longer.then_some(rest)));
        (service, request)
    }
}
