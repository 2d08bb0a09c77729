//! The guards on real servers: axum, tonic and `palisade::serve`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bans;
mod behind_proxy;
mod blocked_runtime;
mod elsewhere;
mod grpc_web;
mod guarded_axum;
mod guarded_grpc;
mod guarded_tonic;
mod guarded_uploads;
mod honest_behind_proxy;
mod panicking_metrics;
mod proxy_protocol;
mod refused_uploads;
mod request_bodies;
mod serve;
mod serve_refusals;
mod serve_tls;
