//! The mechanism behind palisade's request guards. Internal crate of palisade: the API is not
//! stable.
//!
//! A request guard makes a few decisions about a request: whether to admit it, how its body may
//! arrive, and when its deadline has passed. These decisions are a [`Policy`]. Everything else is
//! implemented here, once for all guards: the [`Guarded`] service, its [`ResponseFuture`], the
//! [`RequestBody`] that the handler reads and the [`ResponseBody`] that the server sends. [`And`]
//! joins two policies into one, so that any number of guards cost one service, one future and two
//! bodies.
//!
//! # Lifecycle of a request
//!
//! | step | hooks | order | note |
//! |---|---|---|---|
//! | the head arrives | [`admit`] | outer to inner | A refusal releases what the outer policies hold. Nothing is allocated up to here. |
//! | the request has a body | [`share`], [`upload`] | outer to inner | One allocation, the exchange, for all policies. |
//! | the request is queued | [`poll_admission`] | innermost only | The handler is called when this is ready. |
//! | the handler is polled | [`before_handler`], the handler, [`after_handler`] | outer to inner, then inner to outer | The outermost refusal wins. The handler is dropped before the refusal is sent. |
//! | the handler is pending | [`deadline`], [`expired`] | earliest of all | One timer per request. |
//! | the request body is polled | [`poll_request`] | pulled: the innermost policy polls outwards | A frame that is ready and that [`fits`] all policies is only reported to [`passed`]. |
//! | the request body waits for the client | [`first_wait`], [`waits_for_client`], [`wait_expired`], [`wait_ended`] | outer to inner | The clock is read once at each end of a wait. |
//! | the response head is ready | [`response_head`] | inner to outer | Without a body to watch, the request is released here. |
//! | the response body is polled | [`poll_response`] | pulled: the outermost policy polls inwards | |
//! | the request ends | [`release_upload`], [`release`] | inner to outer | Exactly once: last frame, error, drop or panic. |
//!
//! Only the innermost body decides whether the request waits for its client: a policy that holds
//! bytes back returns [`Flow::Busy`]. The handler waits for its client if its latest poll polled
//! the request body and found it pending. A handler that has read ahead and then works on is not
//! waiting.
//!
//! A policy object counts a request once. While a [`Guarded`] service is being called or polled,
//! a nested one with the same policy passes the request on unguarded.
//!
//! The crate also contains the components that guards share: [`Settings`], and the bounded
//! [`Table`] of debts with its [`Gcra`] and [`Clock`].
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
//! [`waits_for_client`]: Policy::waits_for_client
//! [`wait_expired`]: Policy::wait_expired
//! [`wait_ended`]: Policy::wait_ended
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
mod per_request;
mod policy;
mod refusal;
mod request;
mod response;
mod response_head;
mod service;
mod settings;
mod table;
mod timer;
mod view;
mod wait;

pub use and::And;
pub use clock::Clock;
pub use facts::Facts;
pub use future::ResponseFuture;
pub use gcra::{Denied, Gcra};
pub use keys::Keys;
pub use linger::{DropUnread, KeepAny, KeepUnread, Unread, linger};
pub use nesting::{Entered, Task, enter, is_inside, task_of};
pub use per_request::PerRequest;
pub use policy::{
    Elapsed, Flow, Handler, NeverQueued, Policy, Polled, QueueByClone, QueuedService, Upstream,
};
pub use refusal::{OnReject, Refusal, Refused};
pub use request::RequestBody;
pub use response::ResponseBody;
pub use service::{GuardLayer, Guarded};
pub use settings::Settings;
pub use table::{Occupancy, Table};
pub use timer::poll_sleep;
pub use view::{RequestView, SharedView};
pub use wait::{ClientWait, Stamp};

/// What [`settings_methods!`] expands to, whatever the crate that calls it depends on.
#[doc(hidden)]
pub mod __private {
    pub use bytes;
    pub use http;
    pub use palisade_core;
}
