//! The mechanism behind palisade's request guards. Used by palisade; no stability promise.
//!
//! A request guard decides a few things about a request: whether it is admitted, how its body may
//! arrive, when its time is over. These decisions are a [`Policy`]. Everything else is here, once:
//! the [`Guarded`] service, its [`ResponseFuture`], the [`RequestBody`] that the handler reads and
//! the [`ResponseBody`] that the server sends. [`And`] joins two policies into one, so that any
//! number of guards cost one service, one future and two bodies.
//!
//! # The way of a request
//!
//! | step | hooks | order | note |
//! |---|---|---|---|
//! | the head arrives | [`admit`] | outer to inner | A refusal releases what outer policies took. Nothing is allocated before. |
//! | it has a body | [`share`], [`upload`] | outer to inner | One allocation, the exchange, for all policies. |
//! | it must queue | [`poll_admission`] | innermost only | The handler is called when this is ready. |
//! | the handler is polled | [`before_handler`], the handler, [`after_handler`] | outer to inner, then inner to outer | The outermost refusal wins. The handler is dropped before it answers. |
//! | the handler waits | [`deadline`], [`expired`] | earliest of all | One timer per request. |
//! | the request body is polled | [`poll_request`] | pulled: the innermost asks outwards | A frame that is ready and that [`fits`] all policies is only [`passed`]. |
//! | the client is awaited | [`first_wait`], [`client_awaited`], [`wait_expired`], [`wait_ends`] | outer to inner | One look at the clock at each end of a wait. |
//! | the response head is ready | [`response_head`] | inner to outer | Without a body to watch, the request is released here. |
//! | the response body is polled | [`poll_response`] | pulled: the outermost asks inwards | |
//! | the request is over | [`release_upload`], [`release`] | inner to outer | Exactly once: last frame, error, drop or panic. |
//!
//! Only the body at the bottom decides whether the client is awaited: a policy that holds bytes
//! back answers [`Flow::Busy`]. The handler waits for its client where it asked for the body in its
//! latest poll; a handler that has read ahead and then works on is not waiting.
//!
//! The same policy object counts a request once: a [`Guarded`] service that is called while another
//! one with the same policy is polling passes the request on.
//!
//! What guards are made of is here, too: [`Settings`], and the bounded [`Table`] of debts with its
//! [`Gcra`] and [`Clock`].
//!
//! [`admit`]: Policy::admit
//! [`share`]: Policy::share
//! [`upload`]: Policy::upload
//! [`poll_admission`]: Policy::poll_admission
//! [`before_handler`]: Policy::before_handler
//! [`after_handler`]: Policy::after_handler
//! [`deadline`]: Policy::deadline
//! [`expired`]: Policy::expired
//! [`poll_request`]: Policy::poll_request
//! [`fits`]: Policy::fits
//! [`passed`]: Policy::passed
//! [`first_wait`]: Policy::first_wait
//! [`client_awaited`]: Policy::client_awaited
//! [`wait_expired`]: Policy::wait_expired
//! [`wait_ends`]: Policy::wait_ends
//! [`response_head`]: Policy::response_head
//! [`poll_response`]: Policy::poll_response
//! [`release_upload`]: Policy::release_upload
//! [`release`]: Policy::release
#![forbid(unsafe_code)]

mod and;
mod clock;
mod exchange;
mod facts;
mod future;
mod gcra;
mod handler_poll;
mod keys;
mod lease;
mod linger;
mod nesting;
mod policy;
mod refusal;
mod request;
mod response;
mod service;
mod settings;
mod table;
mod timer;
mod wait;

pub use and::And;
pub use clock::Clock;
pub use exchange::{Of, Shared};
pub use facts::Facts;
pub use future::ResponseFuture;
pub use gcra::{Denied, Gcra};
pub use keys::Keys;
pub use linger::{Drops, Keeps, KeepsWhole, Unread, linger};
pub use nesting::{Inside, Task, enter, is_inside, task_of};
pub use policy::{ByClone, Elapsed, Flow, Handler, Later, Never, Policy, Polled, Upstream};
pub use refusal::{Refusal, Refused};
pub use request::RequestBody;
pub use response::ResponseBody;
pub use service::{GuardLayer, Guarded};
pub use settings::{OnReject, Settings};
pub use table::{Occupancy, Table};
pub use timer::poll_sleep;
pub use wait::{ClientWait, Stamp};
