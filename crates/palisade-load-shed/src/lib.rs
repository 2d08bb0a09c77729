//! Refuses a share of the requests with 503 while memory is short and grows, or the runtime is
//! overloaded.
//!
//! Limits on single requests do not bound all of them together: a thousand uploads below each limit
//! fill the memory, and handlers that need more processor time than there is make all requests
//! late. Unlike the `LoadShed` of tower, which refuses what an inner service is not ready for, this
//! layer
//!
//! - measures memory and runtime themselves: [`Memory`] counts what the kernel cannot drop, by the
//!   control groups of the process, and [`RuntimeLoad`] the time for which a task waits in the run
//!   queue, where no layer sees the requests that wait;
//! - refuses a *share* of the requests, which follows the measurement: the others are served in
//!   time;
//! - refuses while memory *grows*, and not because much of it is in use: what an allocator keeps
//!   after a flood refuses nothing;
//! - never refuses [critical](LoadShedLayer::critical) requests, and
//!   [sheddable](LoadShedLayer::sheddable) ones first;
//! - costs two loads for a request at rest, besides counting it.
//!
//! ```
//! use palisade_load_shed::{LoadShedLayer, Memory, RuntimeLoad};
//! # use palisade_testkit::example::*;
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! // `LoadShedLayer::new()` measures. This example reports numbers of its own.
//! let (memory, load) = (Memory::reported(1_000_000)?, RuntimeLoad::reported());
//! let layer = LoadShedLayer::new()
//!     .memory(memory.clone())
//!     .runtime_load(load.clone())
//!     .critical(|head| head.uri.path() == "/health");
//! let served = async |path| {
//!     let mut served = 0;
//!     for _ in 0..16 {
//!         let request = Request::get(path).body(Empty::<Bytes>::new())?;
//!         served += i32::from(status(&layer, request).await == 200);
//!     }
//!     Ok::<_, BoxError>(served)
//! };
//! memory.report(970_000);
//! assert_eq!(served("/").await?, 16); // Much is in use, and it does not grow.
//! memory.report(990_000);
//! assert_eq!(served("/").await?, 4); // It grows.
//! assert_eq!(served("/health").await?, 16);
//! (0..12).for_each(|_| memory.report(990_000));
//! assert_eq!(served("/").await?, 16); // It stands still.
//!
//! (0..12).for_each(|_| load.report(Duration::from_secs(2)));
//! assert_eq!(served("/").await?, 0); // One in 64.
//! # Ok(())
//! # }
//! ```
//!
//! # Place
//!
//! Place it outside of all other layers. A refusal costs least there, and no body has been read.
//!
//! Request tracking of `palisade-conn`'s guard asks the same, before any layer, and knows more: it
//! counts clients, so that a page loads whole, ends connections, and refuses new ones. A request
//! that it has asked for is not asked again here for the load of the runtime, nor for the same
//! [`Memory`]. The guard's own mode, `critical` and `sheddable` count then. So this layer is for
//! servers without such a guard, and does no harm with one.
//!
//! # Shares
//!
//! - Memory: from 88 % of the limit on, each look in which it has grown halves the share, down to a
//!   quarter, and each other look adds a sixteenth. From 92 % on sheddable requests outside of the
//!   share are refused, from 95 % on all others too. See [`Memory`].
//! - Runtime: from a delay of 250 ms for a second on, the share is controlled until a task waits
//!   for about 100 ms. Of sheddable requests the square of the share is served. See
//!   [`RuntimeLoad`].
//!
//! The layer does not know how many clients there are, so each request has a place in the share of
//! its own. One page may be served in part. Of sixteen requests in a row as many are served as the
//! share says.
//!
//! A refusal has `Retry-After`, at random from 1 to 5 seconds, so that clients do not return
//! together. gRPC clients get `RESOURCE_EXHAUSTED`. Connections stay open: unlike the guard, the
//! layer does not end them with `Connection: close` from 88 % on.
//!
//! Requests count as in flight until their response head, at least. If shedding does not help while
//! few requests are in flight, other tasks keep the runtime busy, and everything is admitted for a
//! while.
#![forbid(unsafe_code)]

mod gauges;
mod layer;
mod policy;

pub use layer::{LoadShed, LoadShedLayer, RequestBody, ResponseBody, ResponseFuture};
pub use palisade_core::{Memory, Mode, Recorder, Rejection, RequestHead, RuntimeLoad};
#[doc(hidden)]
pub use policy::LoadShedPolicy;
