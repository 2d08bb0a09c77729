//! The hidden lines of the examples in the documentation: what they import, and their handlers.

pub use crate::bodies::{Pieces, gzip};
pub use bytes::Bytes;
pub use futures_util::future::join_all;
pub use http::{Method, Request, Response, StatusCode, Version};
pub use http_body_util::{BodyExt, Empty, Full};
pub use std::{net::SocketAddr, time::Duration};
pub use tower::{BoxError, Layer, ServiceExt, service_fn};

use http_body::Body;
use palisade_core::Memory;
use std::{
    fmt::Debug,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{sleep, timeout};
use tower_service::Service;

/// The response of the handlers here.
pub type Answer = Result<Response<Full<Bytes>>, BoxError>;

/// One second.
pub const SECOND: Duration = Duration::from_secs(1);

/// Responds at once, with an empty body.
pub async fn handler(_: Request<Full<Bytes>>) -> Answer {
    Ok(Response::default())
}

/// Responds with the request body.
pub async fn echo<B>(request: Request<B>) -> Answer
where
    B: Body<Error: Into<BoxError>>,
{
    let body = request.into_body().collect().await.map_err(Into::into)?;
    Ok(Response::new(body.to_bytes().into()))
}

/// Reads the request body, and works for a second.
pub async fn work_for_a_second<B: Body>(request: Request<B>) -> Answer {
    drop(request.into_body().collect().await);
    sleep(SECOND).await;
    Ok(Response::default())
}

/// Reads the request body, and works for a minute.
pub async fn work_for_a_minute<B: Body>(request: Request<B>) -> Answer {
    drop(request.into_body().collect().await);
    sleep(60 * SECOND).await;
    Ok(Response::default())
}

/// Waits for the request body, for a minute at most.
pub async fn wait_for_a_minute<B: Body>(request: Request<B>) -> Answer {
    drop(timeout(60 * SECOND, request.into_body().collect()).await);
    Ok(Response::default())
}

/// Returns a request that declares a body of 4 bytes. None of them arrives within a minute.
pub fn stalled_upload() -> Request<Pieces> {
    Request::new(Pieces::new(1, 4).declared().every(3_600 * SECOND))
}

/// Returns a request with a body of so many pieces of so many bytes, with a pause before each.
pub fn upload(pieces: u64, bytes: usize, pause: Duration) -> Request<Pieces> {
    Request::new(Pieces::new(pieces, bytes).every(pause))
}

/// Returns memory that is short and has just grown: a quarter of the requests is to be admitted,
/// and the first one is not among them.
pub fn growing_memory() -> Memory {
    let memory = Memory::reported(1_000_000).expect("the limit is not 0");
    memory.report(960_000);
    memory.report(990_000);
    memory
}

/// Returns a request of the client with this address.
pub fn request_from(client: [u8; 4]) -> Request<Empty<Bytes>> {
    let mut request = Request::default();
    request
        .extensions_mut()
        .insert(SocketAddr::from((client, 4711)));
    request
}

/// Returns a body that declares its length.
pub fn declared(bytes: usize) -> Pieces {
    Pieces::new(1, bytes).declared()
}

/// Returns a body of so many frames of so many bytes. It declares no length.
pub fn chunked(frames: u64, bytes: usize) -> Pieces {
    Pieces::new(frames, bytes)
}

/// Sends `request` to [`echo`] inside `layer`, and returns the status of the response.
pub async fn status<L, B, ResBody>(layer: &L, request: Request<B>) -> StatusCode
where
    L: Layer<Echo>,
    L::Service: Service<Request<B>, Response = Response<ResBody>, Error: Debug>,
{
    let response = layer.layer(Echo).oneshot(request).await;
    response.expect("the guards respond").status()
}

/// The service of [`echo`].
#[derive(Clone, Copy, Debug)]
pub struct Echo;

impl<B> Service<Request<B>> for Echo
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(echo(request))
    }
}
