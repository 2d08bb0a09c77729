//! From other limits to palisade's: which option replaces which, and what changes.
//!
//! The numbers of the other projects are those of tower 0.5, tower-http 0.7, `tower_governor` 0.8,
//! tonic 0.14 and nginx 1.31, unless set otherwise.
//!
//! # From `tower_governor`
//!
//! Its `.per_second(2)` is one request *every* 2 s. Its `SmartIpKeyExtractor` takes the leftmost
//! address of a header, which the client writes: [`behind_proxy`](super::behind_proxy) has what
//! replaces it. The document [from-tower-governor.md] has every option and its place here.
//!
//! [from-tower-governor.md]: https://github.com/palisade-rs/palisade/blob/main/docs/from-tower-governor.md
//!
//! ```
//! use axum::{Router, body::Body, http::{Method, Request, Response}, routing::get};
//! use palisade::{ClientIp, Quota, Stack};
//! use palisade::types::{KeyExtractor, KeyOutcome, RequestHead};
//! use std::{net::SocketAddr, time::Duration};
//! # use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), palisade::ConfigError> {
//! // GovernorConfigBuilder::default().per_second(2).burst_size(5).methods(vec![Method::POST])
//! let stack = Stack::edge()
//!     .rate_limit(Quota::period(Duration::from_secs(2)).burst(5))
//!     .tune_rate_limit(|layer| {
//!         layer.key(|head: &RequestHead<'_>| match *head.method {
//!             Method::POST => ClientIp::peer().extract(head),
//!             _ => KeyOutcome::Exempt,
//!         })
//!     })
//!     .build()?;
//! let app: Router = Router::new().route("/", get("hello").post("hello")).layer(stack);
//! # let send = async |method: Method, peer: &str| {
//! #     let request = Request::builder().method(method).extension(SocketAddr::new(
//! #         peer.parse().unwrap(), 4711,
//! #     ));
//! #     let response: Response<Body> =
//! #         app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
//! #     let wait = response.headers().get("retry-after");
//! #     (response.status().as_u16(), wait.map(|wait| wait.to_str().unwrap().to_owned()))
//! # };
//! for _ in 0..5 {
//!     assert_eq!(send(Method::POST, "2001:db8::1").await, (200, None));
//! }
//! assert_eq!(send(Method::POST, "2001:db8::ffff").await, (429, Some("2".into()))); // One /64.
//! assert_eq!(send(Method::POST, "192.0.2.1").await, (200, None));
//! assert_eq!(send(Method::GET, "2001:db8::1").await, (200, None));
//! # Ok(())
//! # }
//! ```
//!
//! # From tower and tower-http
//!
//! | today | palisade | what changes |
//! |---|---|---|
//! | `ConcurrencyLimitLayer`, `GlobalConcurrencyLimitLayer` | [`Stack::max_requests`] | over the limit 503 at once, no queue; one limit for all routes and connections; a request counts until its response body ends, and while it waits for its client it holds no permit |
//! | the same with a queue | `ConcurrencyLimitLayer::queue(waiters, wait)` | the queue is limited in number and time |
//! | permit released at the response head | `release_at_head()` | |
//! | `LoadShedLayer`, `BufferLayer`, `HandleErrorLayer` | none | a refusal is a response, and the error type stays |
//! | `RateLimitLayer` | [`Stack::rate_limit`] | for each client, and 429 in place of a wait |
//! | `TimeoutLayer` | [`Stack::timeout`] | 503 unless `TimeoutLayer::status` says otherwise; waits for the client's body do not count, waits for a permit do |
//! | `RequestBodyLimitLayer` | [`Stack::max_body`] | a chunked body over the limit gets 413 as well, whatever the handler does with the error; tiny frames are limited |
//! | axum's `DefaultBodyLimit` | keep it, raise it with `max_body` | it holds for extractors only, and extractors obey it |
//! | `RequestBodyTimeoutLayer` | [`Stack::pace`], `gap` | a minimum rate besides, and 408 in place of a body error |
//! | `RequestBodyDeadlineLayer` | `PaceBuilder::total` | for a body of known length, and only the waits for the client count |
//! | `ResponseBodyTimeoutLayer` | `SlowBodyLayer::response`, `write_timeout` | `Content-Length` is kept |
//! | `ResponseBodyDeadlineLayer` | [`Stack::total_timeout`] | from the request on |
//! | `InFlightRequestsLayer` | the gauges of [`Snapshot`](crate::Snapshot) | |
//!
//! [`Stack::max_requests`]: crate::Stack::max_requests
//! [`Stack::rate_limit`]: crate::Stack::rate_limit
//! [`Stack::timeout`]: crate::Stack::timeout
//! [`Stack::max_body`]: crate::Stack::max_body
//! [`Stack::pace`]: crate::Stack::pace
//! [`Stack::total_timeout`]: crate::Stack::total_timeout
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use http_body_util::BodyExt;
//! use palisade::Stack;
//! # use {palisade_testkit::bodies::Pieces, tower::ServiceExt};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ignores_errors = async |body: Body| {
//!     let _ = body.collect().await;
//!     "done"
//! };
//! let stack = Stack::edge().max_body(10).max_requests(1).build()?;
//! let app: Router = Router::new().route("/", post(ignores_errors)).layer(stack);
//! let send = async |body: Body| app.clone().oneshot(Request::post("/").body(body).unwrap()).await;
//! // Four chunks of five bytes, without `Content-Length`.
//! assert_eq!(send(Body::new(Pieces::new(4, 5))).await?.status(), 413);
//! // A response that is not sent yet is still at work.
//! let first = send(Body::empty()).await?;
//! assert_eq!(first.status(), 200);
//! assert_eq!(send(Body::empty()).await?.status(), 503);
//! drop(first);
//! assert_eq!(send(Body::empty()).await?.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! # From tonic's own options
//!
//! | today | palisade | what changes |
//! |---|---|---|
//! | `timeout` | [`Stack::timeout`] | `DEADLINE_EXCEEDED` in place of `CANCELLED`; `grpc-timeout` is obeyed if it is shorter, for the whole response |
//! | `concurrency_limit_per_connection`, `load_shed` | [`Stack::max_requests`], `max_requests_per_client` | over all connections |
//! | `max_concurrent_streams` | [`harden`] sets 100 | tonic by itself: no limit |
//! | `http2_max_local_error_reset_streams` | `harden` sets 1,024 | tonic by itself: no limit |
//! | `http2_max_pending_accept_reset_streams` | `harden` sets 20; `max_cancelled` counts those that a handler saw | |
//! | `max_connection_age` | `harden` sets 44 to 52 min; `max_age` of the guard | keep tonic's below the guard's, for GOAWAY |
//! | `max_connection_age_grace` | `age_grace` of the guard | with tonic's there is no GOAWAY |
//! | `http2_keepalive_interval` | not needed | the guard ends idle connections, the kernel ends those of vanished clients |
//! | `tcp_nodelay`, `tcp_keepalive` | not needed | the guard's listener sets both |
//! | `max_decoding_message_size`, 4 MiB | [`Stack::grpc`](crate::Stack::grpc) and `max_body`, 2 MiB | the lower one holds |
//! | `ServerTlsConfig::timeout` | `first_request_timeout` of the guard | one deadline for the handshake and the first request |
//!
//! [`harden`]: crate::conn::harden
//!
//! # From nginx
//!
//! Options of connections are those of `ConnGuard::builder()`.
//!
//! | directive, default | palisade, default | what changes |
//! |---|---|---|
//! | `limit_req rate=10r/s burst=20 nodelay` | `Quota::per_second(10).burst(21)` | nginx counts the first request apart from its burst; 429 in place of 503 |
//! | the same without `nodelay` | the same | no request is delayed |
//! | `limit_req_zone` of 10 MB | `Stack::max_clients`, 1,048,576 in 8 MiB | a full table evicts the client with the least debt |
//! | `limit_conn` by address | `max_per_client`, and [`Stack::max_requests_per_client`] for streams | connections count from accept on, silent ones too; over the limit one of the client's own is evicted or the new one reset, in place of 503 |
//! | `limit_conn` by server, `worker_connections` | `max_connections` | near the cap the least useful connection is evicted |
//! | `limit_req_dry_run` | [`Mode::Shadow`](crate::Mode::Shadow) | |
//! | `client_header_timeout`, 60 s | `first_request_timeout` and `header_timeout`, 10 s | the first one includes the TLS handshake and silence |
//! | `client_body_timeout`, 60 s | [`Stack::pace`], 15 s | and 500 B/s |
//! | `send_timeout`, 60 s | `write_timeout`, 5 min | under 500 B/s counts as nothing |
//! | `keepalive_timeout`, 75 s | `idle_timeout`, 65 s | shorter as the cap gets near |
//! | `keepalive_requests`, 1,000 | `max_requests`, 10,000 | |
//! | `keepalive_time`, 1 h | `max_age`, 1 h ± 10 % | |
//! | `client_max_body_size`, 1 MiB | [`Stack::max_body`], 2 MiB | |
//! | `large_client_header_buffers`, 4 × 8 KiB | `Http::builder().max_header_size`, 32 KiB | 431 |
//! | `http2_max_concurrent_streams`, 128 | `Http::builder().max_concurrent_streams`, 100 | |
//! | `reset_timedout_connection`, `lingering_close` | not needed | stalled readers are reset, refused uploads read on for a moment |
//! | `proxy_read_timeout`, 60 s | [`Stack::timeout`], 30 s | to the response head, not between two reads; 503 in place of 504 |
//! | `worker_shutdown_timeout`, none | `WithGracefulShutdown::drain`, 30 s | |
//! | `set_real_ip_from`, `real_ip_header`, `real_ip_recursive on` | `ConnGuardBuilder::trust`, [`Trust`](crate::client_ip::Trust) | one field, and always recursive: see [`behind_proxy`](super::behind_proxy) |
//! | `allow`, `deny` | `Ban::builder().allow(..).deny(..)`, with the feature `ban` | replaced at run time, and asked at accept as well: see [`banning`](super::banning) |
//! | `limit_rate` | none | no bandwidth is limited |
//!
//! [`Stack::max_requests_per_client`]: crate::Stack::max_requests_per_client
//!
//! The directives above in code. The last line shows that 21 requests pass at once, as in nginx:
//!
//! ```
//! use palisade::{Quota, Stack, conn::ConnGuard, serve::Http, slow_body::Pace};
//! use std::time::Duration;
//! # use {axum::{Router, body::Body, http::Request, routing::get}, tower::ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let seconds = Duration::from_secs;
//! let guard = ConnGuard::builder()
//!     .first_request_timeout(seconds(60)) // client_header_timeout 60s;
//!     .header_timeout(seconds(60))
//!     .write_timeout(seconds(60)) // send_timeout 60s;
//!     .idle_timeout(seconds(75)) // keepalive_timeout 75s;
//!     .max_requests(1_000) // keepalive_requests 1000;
//!     .max_connections(512) // worker_connections 512;
//!     .max_per_client(10) // limit_conn addr 10;
//!     .build()?;
//! let stack = Stack::edge()
//!     .rate_limit(Quota::per_second(10).burst(21)) // limit_req rate=10r/s burst=20 nodelay;
//!     .max_body(1 << 20) // client_max_body_size 1m;
//!     .pace(Pace::builder().gap(seconds(60)).rate(None)) // client_body_timeout 60s;
//!     .timeout(seconds(60)) // proxy_read_timeout 60s;
//!     .build()?;
//! let http = Http::builder().max_concurrent_streams(128).build()?; // http2_max_concurrent_streams
//! # let _ = (guard, http);
//! # let app: Router = Router::new().route("/", get("hello")).layer(stack);
//! # let mut served = 0;
//! # while app.clone().oneshot(Request::new(Body::empty())).await?.status() == 200 { served += 1; }
//! assert_eq!(served, 21);
//! # Ok(())
//! # }
//! ```
