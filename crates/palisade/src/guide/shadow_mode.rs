//! How to go live without refusing an honest client: shadow, read the metrics, enforce.
//!
//! In [`Mode::Shadow`] a guard decides as always, records the decision with `mode="shadow"`, and
//! admits the request or keeps the connection. Nothing changes for a client. The mode is set when
//! the layer or the guard is built, so a change of mode is a restart.
//!
//! [`Mode::Shadow`]: crate::Mode::Shadow
//!
//! # 1. Everything in shadow mode
//!
//! The stack and the connection guard each have a mode. Set both, and give both one
//! [`Snapshot`](crate::Snapshot):
//!
//! ```
//! use axum::{Router, routing::get};
//! use palisade::{Guard, Mode, Quota, Reason, Snapshot, Stack, conn::ConnGuard};
//! use std::{future::IntoFuture, time::Duration};
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!
//! let metrics = Snapshot::new();
//! let guard = ConnGuard::builder()
//!     .first_request_timeout(Duration::from_millis(100)) // So that the example ends soon.
//!     .mode(Mode::Shadow)
//!     .metrics(metrics.clone())
//!     .build()?;
//! let stack = Stack::edge()
//!     .rate_limit(Quota::per_minute(1).burst(2))
//!     .mode(Mode::Shadow)
//!     .metrics(metrics.clone())
//!     .build()?;
//! let app = Router::new().route("/", get("hello")).layer(stack);
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # tokio::spawn(palisade::serve(listener, app).into_future());
//!
//! // Three requests where the quota grants two: all are served, and one is counted.
//! for _ in 0..3 {
//!     assert!(exchange(server, GET).await?.starts_with("HTTP/1.1 200"));
//! }
//! assert_eq!(metrics.would_refuse(Guard::RateLimit, Reason::RateExceeded), 1);
//! assert_eq!(metrics.refused(Guard::RateLimit, Reason::RateExceeded), 0);
//!
//! // A connection that is silent for longer than it may: it is counted, and still served.
//! let mut silent = TcpStream::connect(server).await?;
//! while metrics.would_disconnect(Reason::FirstRequest) == 0 {
//!     tokio::time::sleep(Duration::from_millis(10)).await;
//! }
//! silent.write_all(GET.as_bytes()).await?;
//! let mut answer = String::new();
//! silent.read_to_string(&mut answer).await?;
//! assert!(answer.ends_with("hello"));
//! assert_eq!(metrics.disconnected(Reason::FirstRequest), 0);
//!
//! // The table and the page for Prometheus keep the two modes apart. The request on the silent
//! // connection was the second one over the quota.
//! assert!(metrics.to_string().starts_with("requests refused: 0, and 2 more in shadow mode"));
//! let series = "palisade_requests_refused_total\
//!     {guard=\"rate_limit\",reason=\"rate_exceeded\",mode=\"shadow\"} 2";
//! assert!(metrics.prometheus().contains(series));
//! # Ok(())
//! # }
//! ```
//!
//! What shadow mode does not cover:
//!
//! - The limits of HTTP in [`Http`](crate::serve::Http), and 400, 431 and 501, hold in every mode,
//!   and are recorded with `mode="enforce"`.
//! - A shutdown ends in its time in shadow mode too.
//! - `max_age` without a grace period, `max_requests` and `keep_alive_per_client` refuse nothing.
//!   They only end the keep-alive of a connection. Shadow mode does not report them.
//! - Nothing is protected yet. A body over its limit reaches the handler whole.
//!
//! # 2. Read the metrics
//!
//! Leave it for a week, or at least over the busiest hour. Then ask Prometheus what share of the
//! requests would have been refused, by guard and reason. The concurrency limit alone counts the
//! requests that it admits:
//!
//! ```promql
//! sum by (guard, reason) (increase(palisade_requests_refused_total{mode="shadow"}[7d]))
//!   / scalar(sum(increase(palisade_requests_admitted_total[7d])))
//! ```
//!
//! Each count is an upper bound of what the mode `Enforce` would refuse:
//!
//! - A request that two guards would refuse is counted by both. Enforced, the first one refuses it.
//! - An open connection is counted once, for the first rule that it breaks.
//! - A request over its quota costs the client nothing of its quota, in both modes.
//! - Requests over the concurrency limit hold no permit in shadow mode, but they do work, and so
//!   make all others slower and the count larger.
//!
//! Below 0.1 % for every reason is a good threshold. For what is above it, find out which clients
//! it is. The feature `tracing` and [`Log`](crate::metrics) add sampled lines with the peer, the
//! limit, the observed value and the option to change. [`ConnGuard::recently_closed`] has the last
//! 1,000 connections that would have been closed. `Reason::option` names the option in code:
//!
//! ```
//! use palisade::Reason;
//! let option = "Stack::rate_limit(quota) or RateLimitLayer::new(quota)";
//! assert_eq!(Reason::RateExceeded.option(), option);
//! assert_eq!(Reason::Idle.unit(), "milliseconds");
//! ```
//!
//! [`ConnGuard::recently_closed`]: crate::conn::ConnGuard::recently_closed
//!
//! | would be refused | honest cause | change |
//! |---|---|---|
//! | `rate_exceeded` | many people behind one address, a client that polls | [`Stack::rate_limit`], [`Stack::quota_for`], [`Stack::client`] |
//! | `network_rate_exceeded` | a mobile carrier, a campus | [`Stack::quota_for`], [`Stack::wider`] with more |
//! | `deadline` | a slow report, a long poll | `TimeoutLayer::limits_for` by [`Stack::tune_timeout`] |
//! | `too_large` | uploads | [`Stack::max_body`], `BodyLimitLayer::limit_for` by [`Stack::tune_body_limit`] |
//! | `gap`, `rate` | streams with long silence | `SlowBodyLayer::pace_for` by [`Stack::tune_slow_body`] |
//! | `full` | the limit is below the load | [`Stack::max_requests`] |
//! | `client_connections_full`, `accept_rate` | a proxy or a load test | [`behind_proxy`](super::behind_proxy) |
//! | `idle`, `write_stall` | pools, paused downloads | `ConnGuardBuilder::idle_timeout`, `write_timeout` |
//!
//! [`Stack::rate_limit`]: crate::Stack::rate_limit
//! [`Stack::quota_for`]: crate::Stack::quota_for
//! [`Stack::wider`]: crate::Stack::wider
//! [`Stack::client`]: crate::Stack::client
//! [`Stack::max_body`]: crate::Stack::max_body
//! [`Stack::max_requests`]: crate::Stack::max_requests
//! [`Stack::tune_timeout`]: crate::Stack::tune_timeout
//! [`Stack::tune_body_limit`]: crate::Stack::tune_body_limit
//! [`Stack::tune_slow_body`]: crate::Stack::tune_slow_body
//!
//! # 3. Enforce, one guard at a time
//!
//! [`Stack::mode_of`] sets the mode of one guard, and the last call for a guard holds. Begin with
//! the guards that no honest client meets, and leave the quota for last:
//!
//! 1. the body limit and the slow-body guard,
//! 2. the connection guard,
//! 3. the timeout and the concurrency limit,
//! 4. the rate limit.
//!
//! [`Stack::mode_of`]: crate::Stack::mode_of
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use palisade::{Guard, Mode, Quota, Reason, Snapshot, Stack};
//! use tower::ServiceExt;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Snapshot::new();
//! let stack = Stack::edge()
//!     .max_body(10)
//!     .rate_limit(Quota::per_minute(1).burst(1))
//!     .mode(Mode::Shadow)
//!     .mode_of(Guard::BodyLimit, Mode::Enforce)
//!     .mode_of(Guard::SlowBody, Mode::Enforce)
//!     .metrics(metrics.clone())
//!     .build()?;
//! let app = Router::new().route("/", post(async |body: String| body)).layer(stack);
//! let send = async |body: &'static str| {
//!     let request = Request::post("/").body(Body::from(body)).unwrap();
//!     app.clone().oneshot(request).await.unwrap().status()
//! };
//! assert_eq!(send("short").await, 200);
//! assert_eq!(send("short").await, 200); // Over the quota, which is in shadow mode.
//! assert_eq!(send("longer than that").await, 413); // Enforced.
//! assert_eq!(metrics.refused(Guard::BodyLimit, Reason::TooLarge), 1);
//! assert_eq!(metrics.would_refuse(Guard::RateLimit, Reason::RateExceeded), 2);
//! # Ok(())
//! # }
//! ```
//!
//! To go back during an incident, set the mode of the guard to `Shadow` and restart. The
//! concurrency limit can be changed without a restart: `StackLayer::concurrency_limit` returns a
//! handle. `docs/operations/alerts.yml` of the repository has alerts for the time after.
