//! How to choose limits: the arithmetic, and three services with their numbers.
//!
//! Start from measured numbers of honest traffic at the busiest hour, add headroom, and check that
//! the result fits into files and memory. Try it in [`shadow_mode`](super::shadow_mode) first.
//!
//! | limit | from | rule |
//! |---|---|---|
//! | `max_connections` | clients at once, connections for each | their product / 0.9: eviction begins at nine tenths |
//! | `ulimit -n` | `max_connections` | (`max_connections` + 64) / 0.8, as the default has it |
//! | memory for connections | `max_connections` | 64 KiB each, and no more than a quarter of all memory |
//! | `max_requests` | requests per second, mean time of a handler | their product (Little's law) × 2 to 4, and no more than what stands behind the handlers can do |
//! | `present` | streams and uploads at once | above their number; 8 × `max_requests` by default |
//! | memory for bodies | `present`, `max_body` | their product, if handlers collect bodies; about twice that at worst |
//! | `timeout` | the slowest honest handler (p99.9) | × 3 or so, and below the client's own timeout |
//! | `rate_limit` | one honest client | the mean as the rate, the largest burst as the burst; many people behind one address get their own by [`quota_for`](crate::Stack::quota_for) |
//! | `pace` | the slowest honest line | the default of 500 B/s suits any, more costs an attacker more |
//!
//! `max_requests` is the number of requests at *work*. A request that waits for its own client, for
//! the next bytes of an upload or until a response is read, holds no permit, so slow clients do
//! not count. `present` limits both together. Over it, the request that has waited longest for its
//! client is evicted.
//!
//! Without `max_connections` the guard computes the cap from what the process has, and says from
//! what. Look at it once in production:
//!
//! ```
//! use palisade::conn::ConnGuard;
//! # #[tokio::main]
//! # async fn main() {
//! let snapshot = ConnGuard::default().snapshot();
//! println!("at most {} connections: {}", snapshot.limit, snapshot.limit_from);
//! assert!((16..=10_000).contains(&snapshot.limit));
//! # }
//! ```
//!
//! # A JSON API
//!
//! Measured: 4,000 clients at once with one HTTP/2 connection each, 800 requests/s, handlers take
//! 25 ms in the mean and 900 ms at worst, bodies up to 200 KB are collected. A page sends 12
//! requests at once, a user opens one in 3 s, and 20 users share an office's address.
//!
//! ```
//! use palisade::{Quota, Stack, conn::ConnGuard};
//! use std::time::Duration;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connections = 4_000 * 10 / 9 + 1; // 4,445
//! let files = (connections + 64) * 10 / 8; // 5,636: `ulimit -n 8192`
//! let connection_memory_mib = connections * 64 / 1024; // 277 MiB
//! let at_work = 800 * 25 / 1000; // 20
//! let permits = at_work * 4; // 80: the database has a pool of 100
//! let body = 256 * 1024;
//! let body_memory_mib = (8 * permits) * (body / 1024) / 1024; // 160 MiB
//! let (rate, burst) = (20 * 12 / 3, 20 * 12); // 80 requests/s, 240 at once
//! assert_eq!((connections, files, connection_memory_mib), (4_445, 5_636, 277));
//! assert_eq!((permits, body_memory_mib, rate, burst), (80, 160, 80, 240));
//!
//! let guard = ConnGuard::builder().max_connections(connections).build()?;
//! let stack = Stack::edge()
//!     .max_requests(permits)
//!     .timeout(Duration::from_secs(3)) // The clients give up after 5 s.
//!     .max_body(body as u64)
//!     .rate_limit(Quota::per_second(rate).burst(burst))
//!     .build()?;
//! # assert_eq!((guard.snapshot().limit, stack.concurrency_limit().limit()), (4_445, 80));
//! # Ok(())
//! # }
//! ```
//!
//! - One client can take a tenth of the 800 requests/s. If no office uses the service, 4/s with a
//!   burst of 24 are enough, and one client is worth 0.5 %.
//! - The defaults here would be 1,024 permits and 2 MiB. They allow 8 × 1,024 × 2 MiB = 16 GiB of
//!   collected bodies. The [byte budget](crate::Stack::byte_budget) ends that at a quarter of the
//!   memory. A server that collects them should still lower one of the two, so that the budget is
//!   for attacks and not for the busy hour.
//! - HTTP/1.1 browsers open six connections. Count them.
//!
//! # Uploads
//!
//! Measured: up to 300 uploads at once of at most 50 MiB, streamed to a disk that writes 400 MiB/s.
//! A slow honest line has 50 KiB/s, and then an upload takes 17 min.
//!
//! ```
//! use axum::{Router, body::Body, extract::DefaultBodyLimit, routing::put};
//! use palisade::{Stack, conn::ConnGuard, serve::Http, slow_body::Pace};
//! use std::time::Duration;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let present = 300 * 2; // 600
//! let buffered_mib = present * 512 / 1024; // 300 MiB: one window of 512 KiB for each, unread
//! let longest_secs = 50 * 1024 / 50; // 1,024 s at the slowest honest line
//! let attacker_kib_per_sec = present * 8; // 4,800 KiB/s to hold all uploads at the pace below
//! assert_eq!((present, buffered_mib, longest_secs), (600, 300, 1_024));
//! # assert_eq!(attacker_kib_per_sec, 4_800);
//!
//! let guard = ConnGuard::builder().max_connections(1_000).build()?;
//! let stack = Stack::edge()
//!     .max_body(50 * 1024 * 1024)
//!     .pace(Pace::builder().rate(8 * 1024).gap(Duration::from_secs(15)))
//!     .timeout(Duration::from_secs(30)) // The time that an upload waits for its client is free.
//!     .max_requests(64)
//!     .max_requests_per_client(8)
//!     .tune_concurrency_limit(move |layer| layer.present(present))
//!     .build()?;
//! // One upload on HTTP/2 moves one window in each round trip: 512 KiB in 100 ms are 5 MiB/s.
//! let http = Http::builder().stream_window(512 * 1024).connection_window(512 * 1024).build()?;
//! let app: Router = Router::new()
//!     .route("/{file}", put(async |_: Body| ()))
//!     .layer(DefaultBodyLimit::max(50 * 1024 * 1024)) // axum's own limit is 2 MiB.
//!     .layer(stack);
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let _ = palisade::serve(listener, app).http(http);
//! # Ok(())
//! # }
//! ```
//!
//! - A deadline for the whole upload would end honest ones on slow lines. The pace ends the others:
//!   at the default of 500 B/s, 600 uploads are held with 300 KB/s.
//! - `timeout` and `max_requests` are small, because both count working time only.
//! - Handlers that stream hold a frame. Handlers that collect 50 MiB hold all of it: 600 of them
//!   30 GiB.
//!
//! # gRPC streams
//!
//! Measured: 5,000 devices with one connection and one bidirectional stream each. A device says
//! something every 10 min. Each also sends one call in 10 s, which takes 20 ms.
//!
//! ```
//! use palisade::{Quota, Stack, conn::{ConnGuard, harden}, slow_body::Pace};
//! use std::time::Duration;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connections = 5_000 * 10 / 9 + 445; // 6,000: room for those that reconnect
//! let in_flight = 4 * connections; // The default: 24,000. Streams and calls need 5,010.
//! let at_work = 5_000 / 10 * 20 / 1000; // 10 calls. A silent stream holds no permit.
//! let permits = 200; // All streams wake up at once now and then.
//! let present = 10_000; // Twice the streams: 8 × 200 would evict most of them.
//! assert!(5_000 + at_work < present && present < in_flight && 8 * permits < 5_000);
//! # assert_eq!((connections, at_work), (6_000, 10));
//!
//! let guard = ConnGuard::builder().max_connections(connections).build()?;
//! let silence = Pace::gap_only(Duration::from_secs(15 * 60))?;
//! let stack = Stack::edge()
//!     .grpc()
//!     .max_body(64 * 1024) // Of one message: 10,000 × 64 KiB are 625 MiB.
//!     .max_requests(permits)
//!     .tune_concurrency_limit(move |layer| layer.present(present))
//!     .tune_slow_body(move |layer| {
//!         layer.pace_for(move |head| (head.uri.path() == "/demo.Feed/Chat").then_some(silence))
//!     })
//!     .rate_limit(Quota::per_second(1).burst(20))
//!     .build()?;
//! let server = harden(tonic::transport::Server::builder())
//!     .layer(guard.track_requests())
//!     .layer(stack);
//! # let _ = server;
//! # Ok(())
//! # }
//! ```
//!
//! - By default a gRPC request body may be silent for 60 s, so these streams need a pace.
//! - A stream is one request in flight. It is never idle, and outlives the age of its connection.
//! - `timeout` ends at the response head, so it does not limit a stream. A `total_timeout` would.
//! - After a restart all devices connect at once. `accept_rate` is for each client, so that is
//!   fine, unless many devices share an address.
