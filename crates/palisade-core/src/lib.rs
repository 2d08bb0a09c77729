//! The words that palisade's guards share.
//!
//! You rarely need this crate by itself: every guard re-exports what its own options take. It is
//! for those who write a [`Metrics`] of their own, a [`KeyExtractor`], or another guard.
//!
//! - What a guard says: [`Guard`], [`Reason`], [`Phase`], [`Mode`], [`Violation`], [`Rejection`].
//! - Who hears it: [`Metrics`], [`Event`], [`GaugeSource`], and a guard's handle on them, [`Recorder`].
//! - Who is asking: [`ConnInfo`], [`ClientKey`], [`Network`], [`RequestHead`], [`KeyExtractor`].
//! - What guards share besides: [`GuardBody`], [`Pressure`].
//! - What cannot be built, and why: [`ConfigError`].
#![forbid(unsafe_code)]

mod body;
mod client;
mod config;
mod connection;
mod event;
mod labels;
mod network;
mod pressure;
mod rejection;

pub use body::{BoxError, GuardBody};
pub use client::{ClientKey, KeyExtractor, KeyOutcome, Prefix, RequestHead};
pub use config::{ConfigError, ConfigFault};
pub use connection::ConnInfo;
pub use event::{Event, Gauge, GaugeSource, Metrics, Recorder};
pub use labels::{Guard, Mode, Phase, Reason};
pub use network::{InvalidNetwork, Network};
pub use pressure::Pressure;
pub use rejection::{Rejection, ResponseFormat, Violation};
