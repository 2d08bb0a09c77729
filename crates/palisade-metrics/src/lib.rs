//! What the guards did, for those who run the server: counted, scraped and logged, at a cost that
//! no attacker can drive up.
//!
//! Metrics and logs are a target themselves. A metrics layer that labels by path, method or
//! address lets every scanner add time series until the memory of the server, or of Prometheus,
//! is gone; a logging layer that writes a line per refusal turns a flood into a full disk; text
//! that a client wrote, unescaped, forges lines. tower has no metrics; tower-http's `Trace` makes
//! a span for each request and records its URI. Here every label is a closed enum, every table
//! has a fixed size, the log is sampled, and no text of a peer gets into either.
//!
//! - [`Snapshot`]: counts in this process, to read, print, or serve as Prometheus text. Always
//!   there, without another dependency.
//! - `Facade` (feature `metrics`): to any exporter of the `metrics` crate.
//! - `Log` (feature `tracing`): sampled lines to any subscriber of the `tracing` crate.
//!
//! Each is a [`Metrics`](palisade_core::Metrics); two of them are one as a tuple.
//!
//! ```
//! use palisade_core::{Guard, Gauge, Reason, Recorder};
//! use palisade_metrics::Snapshot;
//!
//! let snapshot = Snapshot::new();
//! // Each guard's layer takes this: `ConcurrencyLimitLayer::new(1024).metrics(recorder.clone())`.
//! let recorder = Recorder::from(snapshot.clone());
//!
//! assert_eq!(snapshot.refused(Guard::ConcurrencyLimit, Reason::Full), 0);
//! assert_eq!(snapshot.level(Guard::ConcurrencyLimit, Gauge::Working), None); // No guard yet.
//! println!("{snapshot}"); // A table.
//! let body = snapshot.prometheus(); // Serve it as `Snapshot::CONTENT_TYPE`.
//! # drop(recorder);
//! ```
//!
//! # Metrics
//!
//! | metric | type | labels | meaning | alert when |
//! |---|---|---|---|---|
//! | `palisade_requests_refused_total` | counter | `guard`, `reason`, `mode` | requests answered by a guard, not by the handler | `mode="enforce"` above 1 % of the admitted for 5 min; `reason="full"` above 0 for 2 min: too small or overloaded |
//! | `palisade_bodies_cut_total` | counter | `guard`, `reason`, `phase`, `mode` | bodies ended after the response head was sent | `reason="gap"` or `"rate"` at 5 times its hourly mean: somebody is reading or writing slowly on purpose |
//! | `palisade_connections_ended_total` | counter | `guard`, `reason`, `phase`, `mode` | connections that the guard ended or did not let in | `reason="connections_full"` above 0 for 2 min: nothing can be spared; `reason="first_request"`, `"slow_head"` or `"write_stall"` at 5 times its hourly mean: somebody holds connections on purpose |
//! | `palisade_connections_open` | gauge | `guard` | connections open | above 0.9 of `palisade_connections_limit` for 5 min: the least useful are being evicted |
//! | `palisade_connections_limit` | gauge | `guard` | connections that may be open | - |
//! | `palisade_connections_opened_total` | counter | `guard` | connections let in | - |
//! | `palisade_accept_queue` | gauge | `guard` | connections that wait in the kernel (Linux) | above 0.5 of `palisade_accept_queue_limit` for 1 min: accepting does not keep up |
//! | `palisade_accept_queue_limit` | gauge | `guard` | connections that may wait there, at listeners the guard bound | - |
//! | `palisade_listen_overflows_total` | counter | `guard` | connections lost at full accept queues, of the network namespace, since its start (Linux), once for each guard that listens | any increase: too small a backlog, or a stall |
//! | `palisade_listen_drops_total` | counter | `guard` | connections lost before they were accepted, those among them | - |
//! | `palisade_requests_admitted_total` | counter | `guard` | requests that the guard let in | - |
//! | `palisade_requests_working` | gauge | `guard` | requests that hold a slot | above 0.8 of `palisade_concurrency_limit` for 5 min |
//! | `palisade_requests_waiting` | gauge | `guard` | requests that wait for their own client, holding no slot | above 4 times `palisade_concurrency_limit`: slow bodies |
//! | `palisade_queue_depth` | gauge | `guard` | requests that wait for a slot | above 0 for 5 min: no longer a burst |
//! | `palisade_concurrency_limit` | gauge | `guard` | slots; in force now | changed and nobody knows why |
//! | `palisade_tracked_keys` | gauge | `guard` | clients with a debt in the table | above 0.6 of `palisade_tracked_keys_limit` |
//! | `palisade_tracked_keys_limit` | gauge | `guard` | clients the table can hold | - |
//! | `palisade_key_evictions_total` | counter | `guard` | clients whose debt was forgotten | any increase for 5 min: the table is too small, or somebody floods it |
//! | `palisade_limit_changes_total` | counter | `guard` | changes of a limit at run time; shown from the first one on | - |
//! | `palisade_levels_ignored_total` | counter | - | guards missing from the gauges | above 0: more than 1,024 guards are alive, one per request perhaps |
//!
//! `mode="shadow"` counts what would have been refused or cut, and was not: before you enforce, it
//! should be below 0.1 % of the admitted. Numbers count things, never seconds or bytes, so no name
//! carries a unit.
//!
//! Several instances of one guard (two concurrency limits, say) share its series: counters and
//! gauges are sums over them, the limit too. A total does not fall when an instance goes; what it
//! counted after the last look is lost. Series of combinations that palisade's guards produce
//! are there at zero from the start; any other appears when it is first counted. Their number
//! is bounded by the enums, whatever peers send.
//!
//! # OpenTelemetry
//!
//! None of these is emitted under an OpenTelemetry name: the conventions for HTTP servers want
//! the request's method and URL scheme on each of their metrics, which a guard does not record,
//! and a series without them would be taken for something that it is not. Let the
//! instrumentation of your server make those, outside of the guards, and map:
//!
//! | OpenTelemetry | here |
//! |---|---|
//! | `http.server.active_requests` | `palisade_requests_working` + `palisade_requests_waiting` + `palisade_queue_depth` |
//! | `http.server.request.duration` | not measured here; the refused are in it if it is measured outside of the guards |
//! | `error.type` | the label `reason`, where a request was refused with a 5xx status or a body was cut. A 4xx answer is no error of the server there, nor is shadow mode |
//! | `http.response.status_code` | the log field `status`; `reason` decides it unless the guard is told otherwise |
//! | `network.peer.address`, `network.peer.port` | the log field `peer` |
//!
//! For a body that was cut, [`Violation::behind`](palisade_core::Violation::behind) finds the
//! reason in the body's error.
#![forbid(unsafe_code)]

#[cfg(feature = "metrics")]
mod facade;
mod gauges;
#[cfg(feature = "tracing")]
mod log;
mod prometheus;
mod series;
mod snapshot;
#[cfg(test)]
mod testing;

#[cfg(feature = "metrics")]
pub use facade::Facade;
#[cfg(feature = "tracing")]
pub use log::Log;
pub use snapshot::Snapshot;
