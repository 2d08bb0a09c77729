//! The types that palisade's guards share.
//!
//! You rarely need this crate by itself: every guard re-exports what its own options take. Use it
//! to write a [`Metrics`] or a [`KeyExtractor`] of your own, or another guard.
//!
//! - Decisions: [`Violation`] is the rule that was broken, in numbers: [`Guard`], [`Reason`],
//!   [`Phase`], limit and observed value. [`Rejection`] is the response to a refused request.
//!   [`Mode`] says whether a guard acts on its decisions.
//! - Metrics: a guard records each [`Event`] and registers a [`GaugeSource`] with [`Metrics`],
//!   through its [`Recorder`].
//! - Clients: [`ConnInfo`] is the connection of a request, and [`Client`] what was found out about
//!   its client. [`ClientKey`] is what guards count by, and a [`KeyExtractor`] chooses it for a
//!   [`RequestHead`]. [`Network`] is a block of addresses, and [`Networks`] a set of them that can
//!   be replaced at run time.
//! - Access: a [`Gate`] decides which peers may connect at all.
//! - Shared state and bodies: [`Memory`], [`Budget`], [`RuntimeLoad`], [`Pressure`], [`GuardBody`].
//! - Configuration errors: [`ConfigError`].
#![forbid(unsafe_code)]

mod body;
mod budget;
mod client;
mod config;
mod connection;
mod event;
mod gate;
mod identity;
mod labels;
mod load;
mod memory;
mod messages;
mod network;
mod pressure;
mod rejection;
#[doc(hidden)]
pub mod shed;

pub use body::{BoxError, GuardBody};
#[doc(hidden)]
pub use budget::account::{BodyAccount, BodyAccountRef, HasBodyAccount};
pub use budget::{Budget, BudgetFull, Charge};
pub use client::{ClientKey, KeyExtractor, KeyOutcome, Prefix, RequestHead};
pub use config::{ConfigError, ConfigFault};
pub use connection::ConnInfo;
pub use event::{Event, Gauge, GaugeSource, Metrics, Recorder};
pub use gate::Gate;
#[cfg(feature = "axum")]
pub use identity::ClientMissing;
pub use identity::{Client, Found};
pub use labels::{AddressSource, Guard, Mode, Phase, Reason};
pub use load::RuntimeLoad;
pub use memory::{Memory, MemoryEvents};
#[doc(hidden)]
pub use messages::{MessageBoundaries, MessageScanner, MessageTooLong};
pub use network::{
    InvalidNetwork, Network,
    networks::{Networks, PresentNetworks},
    set::NetworkSet,
};
pub use pressure::Pressure;
pub use rejection::{Rejection, ResponseFormat, Violation};
