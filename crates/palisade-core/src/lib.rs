//! The words that palisade's guards share.
//!
//! You rarely need this crate by itself: every guard re-exports what its own options take. It is
//! for those who write a [`Metrics`] of their own, a [`KeyExtractor`], or another guard.
//!
//! - What a guard says: [`Guard`], [`Reason`], [`Phase`], [`Mode`], [`Violation`], [`Rejection`].
//! - Who hears it: [`Metrics`], [`Event`], [`Levels`], and a guard's handle on them, [`Recorder`].
//! - Who is asking: [`ConnInfo`], [`ClientKey`], [`Network`], [`RequestHead`], [`KeyExtractor`].
//! - What happens on a connection: [`ConnState`], [`InFlight`], [`ConnVerdict`], [`ConnTotals`].
//! - What guards share besides: [`GuardBody`], [`Pressure`].
//! - What cannot be built, and why: [`ConfigError`].
#![forbid(unsafe_code)]

mod body;
mod client;
mod config;
mod conn;
mod event;
mod network;
mod pressure;
mod rejection;
mod sync;
mod totals;
mod words;

pub use body::{BoxError, GuardBody};
pub use client::{ClientKey, ConnInfo, Extracted, KeyExtractor, Prefix, RequestHead};
pub use config::{ConfigError, ConfigFault};
pub use conn::{ConnMemory, ConnRest, ConnSample, ConnState, ConnVerdict, Ending, InFlight};
pub use event::{Event, Level, Levels, Metrics, Recorder};
pub use network::{InvalidNetwork, Network};
pub use pressure::Pressure;
pub use rejection::{AnswerForm, Rejection, Violation};
pub use totals::ConnTotals;
pub use words::{Guard, Mode, Phase, Reason};
