//! Limits how long a body may be, and in how many tiny pieces it may come.
//!
//! It stops the body that fills the memory: the one whose `Content-Length` is too large, before a
//! byte of it is read; the chunked or HTTP/2 one that says nothing and does not end; and the one
//! that stays below any byte limit but comes a byte at a time, which a handler that collects its
//! body pays for with 30 to 8,000 bytes for every byte received.
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
//! async fn echo(request: Request<RequestBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, BoxError> {
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
//! - A request that declares more than the limit is answered 413 and its body is never polled, so
//!   that a client that waits for `100 Continue` is spared the upload.
//! - Every other request body is counted as it comes. If it turns out too long while the head of
//!   the response is unsent, the answer is 413, whatever the handler makes of the error it sees.
//!   After the head the body fails, and the server cuts the request.
//! - Small frames are put together, and too many of them are answered 400, see [`TinyFrames`].
//! - With [`BodyLimitLayer::response`] a response that declares more than that is replaced by
//!   500, and one that turns out longer is cut.
//! - gRPC clients see `RESOURCE_EXHAUSTED` in each case. With [`BodyLimitLayer::grpc`] the limit
//!   holds for each message of a gRPC request, not for all of them together.
//!
//! A body that breaks a rule fails with a [`Violation`], which [`Violation::behind`] finds. What is
//! left of it is kept unread for a moment, so that the client sees its answer
//! ([`Unread`](palisade_guard::Unread)): request bodies are therefore `Send + Unpin + 'static`, as
//! those of hyper, axum and tonic are.
//!
//! A request without a body costs no allocation, any other costs one small one. The limit counts
//! bytes as they arrive here: put the layer inside a decompressing one to limit what comes out of
//! it, and outside to limit what goes in. A stack with a minimum rate belongs outside, and a second
//! layer of this kind inside.
//!
//! # How it differs
//!
//! tower-http's `RequestBodyLimit` turns a chunked overrun into an error of the body and leaves
//! the answer to the handler; it knows no frames, no responses, no gRPC, and no other limit for one
//! request. axum's `DefaultBodyLimit` only holds in extractors that ask for it, so a handler that
//! takes the `Request` is not limited.
//!
//! # Limits of this
//!
//! Frames of 4 KiB and more are handed on as they come. hyper reads HTTP/1 into blocks of 8 KiB
//! and more and gives out slices of them, so a collecting handler may hold about twice the bytes
//! it was sent, and more from a client that alternates between fast and slow on purpose.
#![forbid(unsafe_code)]

mod frames;
mod handle;
mod layer;
mod length;
mod messages;
mod policy;
mod request;
mod response;
mod violation;

pub use frames::TinyFrames;
pub use handle::BodyLimitHandle;
pub use layer::{
    BodyLimit, BodyLimitLayer, MaxRequestBody, RequestBody, ResponseBody, ResponseFuture,
};
pub use palisade_core::{Metrics, Mode, Recorder, Rejection, Violation};
#[doc(hidden)]
pub use policy::{BodyLimitPolicy, Held, Upload};
#[doc(hidden)]
pub use request::Common;
#[doc(hidden)]
pub use response::Limited;
