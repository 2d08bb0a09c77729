//! One rate limit over many nodes, by way of a Redis that they share.
//!
//! A limit of 100 a minute is 800 a minute on eight nodes that count alone. Asking Redis for every
//! request repairs that, and each request then waits for the network, and for ever for a Redis that
//! is dead. Here a node admits first and reports afterwards:
//!
//! - **The rate is exact in the long run.** Every request that a node admits is charged in Redis
//!   once.
//! - **What exceeds the burst is bounded.** With N nodes and a burst of B, each node admits up to
//!   *a* requests of a client before it has reported them, where *a* is B / 4N, but one at least.
//!   All nodes together exceed the burst by 2·N·*a* at most, once, and never the rate.
//! - **No request sends a call.** A task of the node reports every 20 ms what was admitted, for up
//!   to 128 clients in one call, and learns which have nothing left. A request waits only if its
//!   client sends more than *a* requests in that time: for the next answer, 5 ms at most.
//! - **A dead Redis is the normal case.** After 40 ms without an answer a node counts alone, as
//!   each policy says, and tries again from time to time. Nothing queues meanwhile.
//!
//! ```
//! use palisade_fleet::{Fleet, MemoryStore};
//! use palisade_rate_limit::{Quota, RateLimitLayer};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! # let secret = "of 16 bytes at least, the same on all nodes";
//! // `Fleet::redis("redis://10.0.0.5")?` in place of a store in memory.
//! let redis = MemoryStore::new();
//! let node = || Fleet::with_store(redis.clone()).nodes(2).secret(secret).start();
//! let layer = |fleet: &Fleet| RateLimitLayer::new(Quota::per_minute(8).fleet(fleet));
//! let (first, second) = (layer(&node()?)?, layer(&node()?)?);
//! let mut served = 0;
//! for layer in [first, second] {
//!     let service = layer.layer(service_fn(echo));
//!     for _ in 0..8 {
//!         let response = service.clone().oneshot(request_from([192, 0, 2, 1])).await?;
//!         served += u32::from(response.status() == 200);
//!         tokio::time::sleep(Duration::from_millis(25)).await;
//!     }
//! }
//! assert!((8..=12).contains(&served), "{served}");
//! # Ok(())
//! # }
//! ```
//!
//! # What each node enforces alone
//!
//! The whole limit, always, in its own table: no node ever admits more than one node would,
//! whatever Redis says. While Redis does not answer, [`Fleet::on_failure`] says what else holds.
//!
//! # Keys
//!
//! Redis sees no address and no name: an account is a digest under the secret of the fleet, and has
//! the key `palisade:{name:0}:digest`, on a cluster with the number of one of 16 shards in place of
//! 0. All nodes must make the same key for a client. They do for
//! addresses. A key from [`ClientKey::of`] differs in each process, and each node counts it alone:
//! use [`Fleet::key`].
#![forbid(unsafe_code)]

mod bounded;
mod builder;
mod cluster;
mod digest;
mod driver;
mod fleet;
mod gauges;
mod machine;
mod memory;
mod policy;
mod redis;
mod redis_store;
mod sentinel;
mod shared;
mod store;
#[cfg(test)]
mod suite;

pub use crate::{
    builder::FleetBuilder,
    fleet::Fleet,
    memory::MemoryStore,
    policy::OnFailure,
    redis_store::RedisStore,
    store::{Answer, Answers, Ask, Batch, QuotaStore, StoreError},
};
pub use palisade_core::{ClientKey, ConfigError, Mode};
