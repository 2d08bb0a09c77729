//! Keeps a hyper, axum or tonic server responsive to honest clients during exhaustion attacks and
//! plain overload.
//!
//! [`Stack`] combines the guards in the right order, validates their settings, and builds one
//! `Layer` that works anywhere: on an axum `Router`, on a tonic `Server`, around a bare hyper
//! service.
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
//! println!("{metrics}"); // The refusals, by guard and reason.
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "rate-limit", feature = "snapshot")))]
//! # fn main() {}
//! ```
//!
//! | guard | stops | response |
//! |---|---|---|
//! | [`ban`] | banned clients, and networks of your lists | 403; RST at accept |
//! | [`load_shed`] | requests that memory or processors are short for | 503 with `Retry-After` |
//! | [`rate_limit`] | a client that sends more requests than its quota | 429 with `Retry-After` |
//! | [`timeout`] | handlers that take too long | 503 |
//! | [`body_limit`] | bodies that are too long, or arrive in too many tiny frames | 413 |
//! | [`slow_body`] | clients that send their bodies too slowly | 408 |
//! | [`concurrency_limit`] | more concurrent requests than the server can handle | 503 with `Retry-After` |
//! | [`conn`] | silent, slow, idle and hoarded connections | FIN or RST; 408, 503 |
//! | [`mod@serve`] | attacks that hyper does not stop | 431, 400, 501, GOAWAY, `RST_STREAM` |
//!
//! gRPC clients get the same decisions as a gRPC status. Each guard is a crate and a feature, all
//! on by default, and each of the first seven is a `Layer` by itself. With the features `axum` and
//! `tonic` the guards read the peer's address from where those servers put it. The features
//! `metrics` and `tracing` add further [`Metrics`] to the [`Snapshot`] of the feature `snapshot`,
//! which is on by default.
//!
//! A connection that never sends a request never reaches a `Layer`. [`serve()`] guards connections
//! in one line: how many may be open, how long they may be silent, which are evicted first, and
//! how much hyper accepts from each. [`conn`] is its listener, for other servers.
//!
//! A rate limit that several nodes count together, on a Redis, is the feature `fleet`, which is off
//! by default: [`Fleet`].
//!
//! [`guide`] takes up one task at a time: getting started, shadow mode, the choice of numbers,
//! other layers, tonic, proxies, migration.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(
    feature = "ban",
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "load-shed",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
mod builder;
#[cfg(any(
    feature = "ban",
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "load-shed",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
mod stack;

/// The types that all guards share. Not named `core`, which would shadow the standard `core` crate.
pub use palisade_core as types;
pub use palisade_core::{
    Budget, ConfigError, ConfigFault, Guard, Memory, Metrics, Mode, Pressure, Reason, Recorder,
    Rejection, RuntimeLoad,
};
#[cfg(any(
    feature = "ban",
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "load-shed",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
pub use {builder::Stack, stack::*};

#[cfg(feature = "ban")]
pub use palisade_ban::{self as ban, Ban};
#[cfg(feature = "body-limit")]
pub use palisade_body_limit as body_limit;
#[cfg(any(
    feature = "ban",
    feature = "concurrency-limit",
    feature = "conn",
    feature = "rate-limit"
))]
pub use palisade_client_ip::{self as client_ip, ClientIp};
#[cfg(feature = "concurrency-limit")]
pub use palisade_concurrency_limit as concurrency_limit;
#[cfg(feature = "conn")]
pub use palisade_conn as conn;
#[cfg(feature = "fleet")]
pub use palisade_fleet::{self as fleet, Fleet};
#[cfg(feature = "load-shed")]
pub use palisade_load_shed as load_shed;
#[cfg(feature = "snapshot")]
pub use palisade_metrics::{self as metrics, Snapshot};
#[cfg(feature = "rate-limit")]
pub use palisade_rate_limit::{self as rate_limit, Quota};
/// The function `serve`, and the crate that defines it.
#[cfg(feature = "serve")]
pub use palisade_serve::{self as serve, serve};
#[cfg(feature = "slow-body")]
pub use palisade_slow_body as slow_body;
#[cfg(feature = "timeout")]
pub use palisade_timeout as timeout;

#[cfg(all(
    any(doc, doctest),
    feature = "axum",
    feature = "ban",
    feature = "body-limit",
    feature = "concurrency-limit",
    feature = "load-shed",
    feature = "rate-limit",
    feature = "serve",
    feature = "slow-body",
    feature = "snapshot",
    feature = "timeout",
    feature = "tonic"
))]
pub mod guide;

/// Compiles the snippets of the README as doctests.
#[cfg(all(
    doctest,
    feature = "axum",
    feature = "rate-limit",
    feature = "serve",
    feature = "snapshot"
))]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Compiles and runs the snippets of documents that are not part of the crate.
#[cfg(all(doctest, feature = "axum", feature = "conn", feature = "rate-limit"))]
mod documents {
    #[doc = include_str!("../../../docs/behind-a-proxy.md")]
    struct BehindAProxy;
    #[doc = include_str!("../../../docs/from-tower-governor.md")]
    struct FromTowerGovernor;
    #[cfg(all(feature = "ban", feature = "fleet", feature = "snapshot"))]
    #[doc = include_str!("../../../docs/fleet.md")]
    struct FleetOnRedis;
}
