//! Keeps a hyper, axum or tonic server answering honest clients while somebody tries to exhaust
//! it, and through plain overload.
//!
//! [`Stack`] puts the guards together in the right order, checks their numbers and gives you one
//! `Layer` to put anywhere: on an axum `Router`, on a tonic `Server`, around a bare hyper service.
//!
//! ```
//! use palisade::{Quota, Snapshot, Stack};
//! # #[cfg(all(feature = "rate-limit", feature = "snapshot"))]
//! # fn main() -> Result<(), palisade::ConfigError> {
//! let metrics = Snapshot::new();
//! let guards = Stack::edge()
//!     .rate_limit(Quota::per_second(10).burst(40))
//!     .metrics(metrics.clone())
//!     .build()?;
//! // axum:  Router::new().route(..).layer(guards), served by `palisade::serve`
//! // tonic: Server::builder().layer(guards).add_service(..)
//! # let _ = guards;
//! println!("{metrics}"); // What was refused, and why.
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "rate-limit", feature = "snapshot")))]
//! # fn main() {}
//! ```
//!
//! | guard | stops | answer |
//! |---|---|---|
//! | [`rate_limit`] | one client sending more than its share | 429 with `Retry-After` |
//! | [`timeout`] | handlers that take too long | 503 |
//! | [`body_limit`] | bodies that are too long, or come in too many tiny pieces | 413 |
//! | [`slow_body`] | clients that drip their bodies | 408 |
//! | [`concurrency_limit`] | more requests at work than the server can do | 503 with `Retry-After` |
//! | [`conn`] | silent, slow, idle and hoarded connections | FIN or RST; 408, 503 |
//! | [`mod@serve`] | what hyper leaves open | 431, 400, 501, GOAWAY, `RST_STREAM` |
//!
//! gRPC clients get the same verdicts as a gRPC status. Each guard is a crate and a feature, all on
//! by default, and each of the first five is a `Layer` by itself. The features `axum` and `tonic`
//! teach the guards where those servers leave the peer's address; `metrics` and `tracing` bring
//! more [`Metrics`] than the [`Snapshot`] that the feature `snapshot` brings, on by default.
//!
//! A connection that never sends a request never reaches a `Layer`. [`serve()`] is the one line
//! that guards connections: how many there may be, how long they may say nothing, who goes first,
//! and what hyper takes of each. [`conn`] is its listener, for servers of other makes.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
mod builder;
#[cfg(any(
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
mod stack;

/// The types that all guards share. Not named `core`, which would hide the language's own.
pub use palisade_core as types;
pub use palisade_core::{
    ConfigError, ConfigFault, Guard, Metrics, Mode, Pressure, Reason, Recorder, Rejection,
};
#[cfg(any(
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
pub use {builder::Stack, stack::*};

#[cfg(feature = "body-limit")]
pub use palisade_body_limit as body_limit;
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
pub use palisade_client_ip::{self as client_ip, ClientIp};
#[cfg(feature = "concurrency-limit")]
pub use palisade_concurrency_limit as concurrency_limit;
#[cfg(feature = "conn")]
pub use palisade_conn as conn;
#[cfg(feature = "snapshot")]
pub use palisade_metrics::{self as metrics, Snapshot};
#[cfg(feature = "rate-limit")]
pub use palisade_rate_limit::{self as rate_limit, Quota};
/// The function, and the crate that it is of.
#[cfg(feature = "serve")]
pub use palisade_serve::{self as serve, serve};
#[cfg(feature = "slow-body")]
pub use palisade_slow_body as slow_body;
#[cfg(feature = "timeout")]
pub use palisade_timeout as timeout;

/// The README's snippets compile.
#[cfg(all(
    doctest,
    feature = "axum",
    feature = "rate-limit",
    feature = "serve",
    feature = "snapshot"
))]
#[doc = include_str!("../../../README.md")]
struct Readme;
