//! The words that palisade's guards share.
//!
//! You rarely need this crate by itself: every guard re-exports what its own options take. It is
//! for those who write a [`Metrics`] of their own, a [`KeyExtractor`], or another guard.
//!
//! - What a guard says: [`Guard`], [`Reason`], [`Phase`], [`Mode`], [`Violation`], [`Rejection`].
//! - Who hears it: [`Metrics`], [`Event`], [`GaugeSource`], and a guard's handle on them, [`Recorder`].
//! - Who is asking: [`ConnInfo`], [`ClientKey`], [`Network`], [`RequestHead`], [`KeyExtractor`].
//! - What happens on a connection: [`ConnState`], [`InFlight`], [`CloseDecision`], [`ConnTotals`].
//! - What guards share besides: [`GuardBody`], [`Pressure`].
//! - What cannot be built, and why: [`ConfigError`].
#![forbid(unsafe_code)]

mod body;
mod client;
mod config;
mod conn;
mod event;
mod labels;
mod network;
mod pressure;
mod rejection;
mod sync;
mod totals;

pub use body::{BoxError, GuardBody};
pub use client::{ClientKey, ConnInfo, KeyExtractor, KeyOutcome, Prefix, RequestHead};
pub use config::{ConfigError, ConfigFault};
pub use conn::{CloseDecision, CloseMode, ConnState, ConnStats, IdleStats, InFlight, SweepState};
pub use event::{Event, Gauge, GaugeSource, Metrics, Recorder};
pub use labels::{Guard, Mode, Phase, Reason};
pub use network::{InvalidNetwork, Network};
pub use pressure::Pressure;
pub use rejection::{Rejection, ResponseFormat, Violation};
pub use totals::ConnTotals;
