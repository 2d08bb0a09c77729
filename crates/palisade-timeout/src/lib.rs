//! Answers 503 when the response is not ready in time. The time in which the client is waited for
//! does not count.
//!
//! A handler that hangs, or that stands in a queue, holds memory and often a slot for as long as
//! nobody ends it. Unlike tower's and tower-http's timeouts this one
//!
//! - stands still while the handler waits for bytes of the request body, so that 30 seconds are
//!   right for a slow phone's upload as well as for a database query. How slow a client may be
//!   is for `palisade-slow-body` to say: without it, a client that stalls for ever is never ended;
//! - counts the wait for a slot of a concurrency limit inside it, because that limit waits in the
//!   response future and not in `poll_ready`;
//! - drops the handler's future before it answers, and answers gRPC with `DEADLINE_EXCEEDED`;
//! - obeys the client's own `grpc-timeout` where that is shorter;
//! - costs a handler that is ready at once no timer and no look at the clock, and any other
//!   handler one timer.
//!
//! Put it outside of whatever waits, and inside of what refuses without waiting:
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
//! # What counts as waiting for the client
//!
//! The clock stands still while the request body has nothing to give and the handler asked for it
//! in the latest of its polls. A handler that has read enough to work on does not stop the clock
//! by having read ahead in vain, as axum's `Multipart` does: otherwise a client could hold a byte
//! back and have all the time in the world. Such a handler is found out when it is next polled,
//! at the latest after once the deadline.
//!
//! A body that is read in another task, or inside something that does not poll all its parts
//! (`FuturesUnordered` for example), stops the clock whenever it waits, whatever the handler does
//! meanwhile.
//!
//! # Panics
//!
//! The first wait of a request needs a tokio runtime whose timer is on.
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
pub use palisade_core::{Mode, Recorder, Rejection, RequestHead};
#[doc(hidden)]
pub use policy::{Common, Held, Own, TimeoutPolicy};
#[doc(hidden)]
pub use total::Total;
