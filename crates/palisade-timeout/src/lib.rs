//! Refuses a request with 503 if its response is not ready in time. The time for which the request
//! waits for its client does not count.
//!
//! A handler that hangs, or that waits in a queue, holds memory and often a permit until a timeout
//! ends it. Unlike the timeouts of tower and tower-http, this one
//!
//! - is paused while the handler waits for bytes of the request body, so that 30 seconds suit the
//!   upload of a slow phone as well as a database query. `palisade-slow-body` limits how slow a
//!   client may be; without it, a request never ends if its client stalls for ever;
//! - counts the wait for a permit of a concurrency limit inside it, because that limit waits in the
//!   response future and not in `poll_ready`;
//! - drops the handler's future before it sends the refusal, and refuses gRPC requests with
//!   `DEADLINE_EXCEEDED`;
//! - honors the client's own `grpc-timeout` if that is shorter;
//! - creates no timer and does not read the clock for a handler that is ready at once, and creates
//!   one timer for any other handler.
//!
//! Place it outside all services that wait, and inside guards that refuse without waiting:
//!
//! ```
//! use palisade_timeout::TimeoutLayer;
//! use std::{convert::Infallible, time::Duration};
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Empty;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Infallible> {
//! let service = ServiceBuilder::new()
//!     .layer(TimeoutLayer::new(Duration::from_secs(30)))
//!     .service(service_fn(|_| async {
//!         tokio::time::sleep(Duration::from_secs(60)).await;
//!         Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
//!     }));
//! let response = service.oneshot(Request::new(Empty::<Bytes>::new())).await?;
//! assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
//! # Ok(())
//! # }
//! ```
//!
//! # When the deadline is paused
//!
//! The deadline is paused while the request body is pending and the latest poll of the handler
//! polled it. A handler that has read ahead until the body was pending, as axum's `Multipart` does,
//! and that then works on what it has read, does not pause the deadline. Otherwise a client could
//! hold a byte back and extend the deadline without limit. This is detected at the next poll of the
//! handler, at the latest after the time of one deadline.
//!
//! A body that is read in another task, or inside a future that does not poll all its parts
//! (`FuturesUnordered` for example), pauses the deadline whenever it waits, even if the handler
//! works at the same time.
//!
//! # Panics
//!
//! The response future panics when the handler is first pending outside a tokio runtime, or in a
//! runtime without an enabled timer.
#![forbid(unsafe_code)]

mod deadline;
mod grpc;
mod layer;
mod limits;
mod policy;
mod total;

pub use deadline::Deadline;
pub use layer::{RequestBody, ResponseBody, ResponseFuture, Timeout, TimeoutLayer};
pub use limits::Limits;
pub use palisade_core::{Mode, Recorder, Rejection, RequestHead, Violation};
#[doc(hidden)]
pub use policy::{Own, ResponseState, SharedState, TimeoutPolicy};
#[doc(hidden)]
pub use total::TotalDeadline;
