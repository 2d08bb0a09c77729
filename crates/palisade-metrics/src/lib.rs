//! Metrics and logs of the guards for the operator of a server, at a cost that an attacker cannot
//! increase.
//!
//! Metrics and logs are targets themselves:
//!
//! - A metrics layer with labels for path, method or address lets any scanner add time series until
//!   the server, or Prometheus, is out of memory.
//! - A logging layer that writes a line per refusal turns a flood into a full disk.
//! - Unescaped text of a client forges log lines.
//!
//! tower has no metrics. tower-http's `Trace` creates a span for each request and records its URI.
//! Here every label is a closed enum, every table has a fixed size, the log is sampled, and neither
//! metrics nor logs contain text of a peer.
//!
//! - [`Snapshot`]: counts in this process, to read, print, or serve as Prometheus text. Always
//!   available, without a further dependency.
//! - `Facade` (feature `metrics`): reports to any exporter of the `metrics` crate.
//! - `Log` (feature `tracing`): writes sampled lines to any subscriber of the `tracing` crate.
//!
//! Each implements [`Metrics`](palisade_core::Metrics), and so does a tuple of two of them.
//!
//! ```
//! use palisade_core::{Guard, Gauge, Reason, Recorder};
//! use palisade_metrics::Snapshot;
//!
//! let snapshot = Snapshot::new();
//! // For each guard's layer: `ConcurrencyLimitLayer::new(1024).metrics(recorder.clone())`.
//! let recorder = Recorder::from(snapshot.clone());
//!
//! assert_eq!(snapshot.refused(Guard::ConcurrencyLimit, Reason::Full), 0);
//! assert_eq!(snapshot.gauge(Guard::ConcurrencyLimit, Gauge::Working), None); // No guard yet.
//! println!("{snapshot}"); // A table.
//! let body = snapshot.prometheus(); // Serve it as `Snapshot::CONTENT_TYPE`.
//! # drop(recorder);
//! ```
//!
//! # Metrics
//!
//! | metric | type | labels | meaning | alert when |
//! |---|---|---|---|---|
//! | `palisade_requests_refused_total` | counter | `guard`, `reason`, `mode` | requests answered by a guard, not by the handler | `mode="enforce"` above 1 % of the admitted for 5 min; `reason="full"` above 0 for 2 min: the limit is too small, or the server is overloaded |
//! | `palisade_bodies_cut_total` | counter | `guard`, `reason`, `phase`, `mode` | bodies ended after the response head was sent | `reason="gap"` or `"rate"` at 5 times its hourly mean: clients read or write slowly on purpose |
//! | `palisade_connections_ended_total` | counter | `guard`, `reason`, `phase`, `mode` | connections that the guard closed or refused | `reason="connections_full"` above 0 for 2 min: no connection can be evicted; `reason="first_request"`, `"slow_head"` or `"write_stall"` at 5 times its hourly mean: clients hold connections on purpose |
//! | `palisade_connections_open` | gauge | `guard` | connections open | above 0.9 of `palisade_connections_limit` for 5 min: the least useful are being evicted |
//! | `palisade_connections_limit` | gauge | `guard` | connections that may be open | - |
//! | `palisade_connections_opened_total` | counter | `guard` | connections admitted | - |
//! | `palisade_accept_queue` | gauge | `guard` | connections that wait in the kernel (Linux) | above 0.5 of `palisade_accept_queue_limit` for 1 min: the accept loop does not keep up |
//! | `palisade_accept_queue_limit` | gauge | `guard` | connections that may wait there, at listeners that the guard bound | - |
//! | `palisade_listen_overflows_total` | counter | `guard` | connections dropped at full accept queues, in the network namespace since its start (Linux), once for each guard that listens | any increase: the backlog is too small, or accepting stalled |
//! | `palisade_listen_drops_total` | counter | `guard` | connections dropped before they were accepted, including `palisade_listen_overflows_total` | - |
//! | `palisade_requests_admitted_total` | counter | `guard` | requests that the guard admitted | - |
//! | `palisade_requests_working` | gauge | `guard` | requests that hold a permit | above 0.8 of `palisade_concurrency_limit` for 5 min |
//! | `palisade_requests_waiting` | gauge | `guard` | requests that wait for their own client and hold no permit | above 4 times `palisade_concurrency_limit`: slow bodies |
//! | `palisade_queue_depth` | gauge | `guard` | requests that wait for a permit | above 0 for 5 min: longer than a burst |
//! | `palisade_concurrency_limit` | gauge | `guard` | permits, as currently configured | an unexplained change |
//! | `palisade_tracked_keys` | gauge | `guard` | clients in debt in the table | above 0.6 of `palisade_tracked_keys_limit` |
//! | `palisade_tracked_keys_limit` | gauge | `guard` | clients that the table can hold | - |
//! | `palisade_key_evictions_total` | counter | `guard` | clients evicted from the table while in debt | any increase for 5 min: the table is too small, or under a flood of keys |
//! | `palisade_bans_total` | counter | `guard` | clients that were banned | an unexplained increase |
//! | `palisade_denied_networks`, `palisade_denied_networks_age_seconds` | gauge | `guard` | ranges of the list of denied networks, and the time since it was put in place | an age beyond the interval at which the list is read |
//! | `palisade_allowed_networks`, `palisade_allowed_networks_age_seconds` | gauge | `guard` | the same of allowed networks | - |
//! | `palisade_fleet_alone` | gauge | `guard` | 1 while this node counts alone, because the store of its fleet does not answer | 1 for 1 min |
//! | `palisade_fleet_nodes` | gauge | `guard` | nodes that count together, as configured or counted | differs from the nodes that serve |
//! | `palisade_fleet_round_trip_microseconds` | gauge | `guard` | time from the last call of the store to its answer | above 2,000 for 5 min: from 5,000 on, requests wait in vain |
//! | `palisade_fleet_unreported_cells` | gauge | `guard` | cells that were admitted and not reported to the store yet | - |
//! | `palisade_fleet_clock_skew_milliseconds` | gauge | `guard` | time by which the clock of the store has moved against that of the node, if calls carry the time | above 10 for 5 min; above 50 the node counts alone |
//! | `palisade_fleet_calls_total` | counter | `guard` | calls of the store | - |
//! | `palisade_fleet_accounts_total` | counter | `guard` | accounts in all calls of the store, 128 in each at most | 128 a call for 5 min: there are more clients than a node can report |
//! | `palisade_fleet_failures_total` | counter | `guard` | calls of the store that were not answered in time, or not rightly | any increase for 5 min |
//! | `palisade_fleet_waited_total` | counter | `guard` | requests that have waited for an answer of the store | above 1 % of the requests for 5 min: many clients send bursts, or fewer nodes serve than configured |
//! | `palisade_fleet_waited_in_vain_total` | counter | `guard` | requests that have waited for 5 ms without an answer | above a tenth of those that wait, for 5 min: the store is slow or far away |
//! | `palisade_fleet_waiters_full_total` | counter | `guard` | requests that did not wait, because 1,024 did | any increase: a flood from many clients, or a slow store |
//! | `palisade_fleet_local_only_total` | counter | `guard` | accounts of requests that were counted by this node alone | any increase for 10 min: a key that other nodes do not know (use `Fleet::key`), a store that is full, or too many clients |
//! | `palisade_fleet_would_refuse_total`, `palisade_fleet_would_wait_total` | counter | `guard` | requests that the fleet would have refused or let wait, in shadow mode | - |
//! | `palisade_limit_changes_total` | counter | `guard` | changes of a limit at run time; present from the first change on | - |
//! | `palisade_levels_ignored_total` | counter | - | guards with unreported gauges | above 0: more than 1,024 guards are alive, one per request perhaps |
//!
//! `mode="shadow"` counts what would have been refused, cut or closed, and was not. Before you
//! enforce, it should be below 0.1 % of the admitted requests. Nearly all metrics count things, and
//! their names carry no unit. The others end in it.
//!
//! All instances of one guard (two concurrency limits, for example) share its series: counters and
//! gauges, including the limit, are sums over them. A total does not fall when an instance is
//! dropped, but what the instance counted after the last scrape is lost. Series of combinations
//! that palisade's guards produce start at zero; any other series appears when it is first counted.
//! The number of series is bounded by the enums, whatever peers send.
//!
//! # OpenTelemetry
//!
//! No metric has an OpenTelemetry name. The conventions for HTTP servers require the request's
//! method and URL scheme on each metric. A guard does not record these, and a series without them
//! would be misread. Use the instrumentation of your server for those metrics, outside of the
//! guards, and map:
//!
//! | OpenTelemetry | palisade |
//! |---|---|
//! | `http.server.active_requests` | `palisade_requests_working` + `palisade_requests_waiting` + `palisade_queue_depth` |
//! | `http.server.request.duration` | not measured; includes refused requests if measured outside of the guards |
//! | `error.type` | the label `reason`, if a request was refused with a 5xx status or a body was cut. OpenTelemetry counts neither a 4xx response nor shadow mode as an error of the server |
//! | `http.response.status_code` | the log field `status`; `reason` determines it unless the guard is configured otherwise |
//! | `network.peer.address`, `network.peer.port` | the log field `peer` |
//!
//! For a body that was cut, [`Violation::from_error`](palisade_core::Violation::from_error) finds
//! the violation in the body's error.
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
