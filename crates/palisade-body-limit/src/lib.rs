//! Limits the length of request and response bodies, and the number of tiny frames they arrive in.
//!
//! The layer stops bodies that fill the memory:
//!
//! - a body with a `Content-Length` over the limit, before a byte of it is read;
//! - a chunked or HTTP/2 body that declares no length and does not end;
//! - a body below any byte limit that arrives one byte at a time: a handler that collects it needs
//!   30 to 8,000 bytes of memory for every byte received.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, Full};
//! use palisade_body_limit::{BodyLimitLayer, RequestBody};
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! async fn echo(
//!     request: Request<RequestBody<Full<Bytes>>>,
//! ) -> Result<Response<Full<Bytes>>, BoxError> {
//!     Ok(Response::new(Full::new(request.into_body().collect().await?.to_bytes())))
//! }
//!
//! let service = ServiceBuilder::new().layer(BodyLimitLayer::new(1024)).service(service_fn(echo));
//! let request = Request::post("/").body(Full::from(vec![0; 1025]))?;
//! let response = service.oneshot(request).await?;
//! assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! - A request that declares more than the limit is refused with 413 and its body is never polled,
//!   so a client that waits for `100 Continue` does not send the body.
//! - Every other request body is counted as it arrives. If it exceeds the limit before the response
//!   head is sent, the response is 413, whatever the handler does with the error that it sees.
//!   After the head the body fails, and the server cuts the request.
//! - Small frames are coalesced, and a request with too many of them is refused with 400; see
//!   [`TinyFrames`].
//! - With [`BodyLimitLayer::response`], a response that declares more than that limit is replaced
//!   by 500, and one that exceeds it later is cut.
//! - gRPC clients receive `RESOURCE_EXHAUSTED` in each case. With [`BodyLimitLayer::grpc`] the
//!   limit applies to each message of a gRPC request, not to their sum.
//!
//! A body that breaks a rule fails with a [`Violation`], which [`Violation::from_error`] finds. The
//! rest of the body is kept unread for a moment, so that the client sees the response
//! ([`Unread`](palisade_guard::Unread)). Request bodies must therefore be `Send + Unpin + 'static`,
//! as those of hyper, axum and tonic are.
//!
//! A request without a body costs no allocation, any other request costs one small allocation.
//!
//! # Compressed bodies
//!
//! The limit counts bytes as they arrive at this layer. A kilobyte of gzip becomes a megabyte
//! inside of a layer that decompresses, so [`BodyLimitLayer::decompressed`] belongs there. It
//! refuses 1 GiB that arrives as 1 MiB with 413, after its own limit. A stack with a minimum rate
//! stays outside: inside, a client that sends a byte in two seconds would look fast enough.
//!
//! A decoder of gzip takes 47 KiB for each request. One of Brotli or zstd may take megabytes, which
//! the client chooses and no budget counts: leave them off in tower-http's
//! `RequestDecompressionLayer` (`no_br`, `no_zstd`) where clients are not trusted. That layer
//! answers other codings, and several of them, with 415.
//!
//! # Short bodies
//!
//! [`BufferLayer`] reads a body of at most 64 KiB before the inner service is called, so that a
//! client on a slow line does not keep a handler waiting.
//!
//! # How it differs
//!
//! tower-http's `RequestBodyLimit` turns an overrun of a chunked body into a body error and leaves
//! the response to the handler. It has no limit for frames, responses, gRPC or single requests.
//! axum's `DefaultBodyLimit` applies only to extractors that ask for it: a handler that takes the
//! `Request` is not limited.
//!
//! # Limitations
//!
//! Frames of 4 KiB and more are handed on unchanged. hyper reads HTTP/1 into blocks of 8 KiB and
//! more, of which its frames are slices. A handler that collects the body may therefore hold about
//! twice the bytes it received, and more if the client alternates between fast and slow on purpose.
#![forbid(unsafe_code)]

mod account;
mod budget;
mod buffer;
mod buffered_body;
mod frames;
mod handle;
mod layer;
mod length;
mod policy;
mod request;
mod response;
mod violation;

pub use budget::{BodyBudget, BodyBudgetLayer};
#[doc(hidden)]
pub use budget::{BodyBudgetPolicy, BudgetState, BudgetUpload};
pub use buffer::{BufferLayer, Buffered, BufferedFuture};
pub use buffered_body::BufferedBody;
pub use frames::TinyFrames;
pub use handle::BodyLimitHandle;
pub use layer::{BodyLimit, BodyLimitLayer, RequestBody, ResponseBody, ResponseFuture};
pub use palisade_core::{
    Budget, BudgetFull, ConfigError, KeyExtractor, Metrics, Mode, Recorder, Rejection, RequestHead,
    Violation,
};
#[doc(hidden)]
pub use policy::{BodyLimitPolicy, ResponseState, UploadState};
#[doc(hidden)]
pub use request::SharedState;
#[doc(hidden)]
pub use response::Limited;
