//! Behind nginx or a load balancer: what holds, what does not, and how to tell clients apart.
//!
//! Behind a proxy the peer of every connection is the proxy. A limit for each client would then be
//! a limit for the proxy, so both halves of palisade must know:
//!
//! - [`ConnGuardBuilder::behind_proxy`] removes the limits for each client and network, the accept
//!   rate and the limit on cancelled requests, and keeps an idle connection for 620 s. Call it
//!   first: it overrides what was set before it, and what is set after it holds.
//! - [`ConnGuardBuilder::trust`] says which proxies are believed, and the one field in which they
//!   name the client. The guard finds the client of each request once.
//! - [`Stack::behind_proxy`] has the numbers of [`Stack::edge`], but no guard uses the peer's
//!   address. Clients are told apart by what the guard has found, or by [`Stack::client`].
//!
//! [`ConnGuardBuilder::behind_proxy`]: crate::conn::ConnGuardBuilder::behind_proxy
//! [`ConnGuardBuilder::trust`]: crate::conn::ConnGuardBuilder::trust
//! [`Stack::behind_proxy`]: crate::Stack::behind_proxy
//! [`Stack::edge`]: crate::Stack::edge
//! [`Stack::client`]: crate::Stack::client
//!
//! ```
//! use palisade::{Quota, Stack, client_ip::{NetworkSet, Trust}, conn::ConnGuard};
//! # use {axum::{Router, routing::get}, std::{future::IntoFuture, time::Duration}};
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let proxies = NetworkSet::parse("127.0.0.1/32  # The example is its own proxy.")?;
//! let guard = ConnGuard::builder().behind_proxy().trust(Trust::networks(proxies)).build()?;
//! let stack = Stack::behind_proxy().rate_limit(Quota::per_minute(1).burst(1)).build()?;
//! let app = Router::new().route("/", get("hello")).layer(stack);
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # tokio::spawn(palisade::serve(listener, app).into_future());
//!
//! let status = async |forwarded: &str| {
//!     let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {forwarded}\r\n");
//!     let answer = exchange(server, &(head + "connection: close\r\n\r\n")).await.unwrap();
//!     answer[9..12].to_owned()
//! };
//! assert_eq!(status("192.0.2.7").await, "200");
//! assert_eq!(status("192.0.2.7").await, "429");
//! assert_eq!(status("198.51.100.1, 192.0.2.7").await, "429"); // An invented address is no help.
//! assert_eq!(status("192.0.2.8").await, "200");
//!
//! // The PROXY protocol is read if `proxy_protocol` says from whom. Otherwise it is not HTTP.
//! let line = "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n";
//! assert!(exchange(server, line).await?.starts_with("HTTP/1.1 400"));
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! | guard | behind a proxy |
//! |---|---|
//! | connections: cap, first request, head, write stall, age | hold, for connections of the proxy |
//! | connections: shares, accept rate, idle ones, cancelled requests | off: the proxy must do it (`limit_conn`) |
//! | requests in flight on all connections | holds, with a share for each client that `trust` finds |
//! | eviction near the cap | takes the least useful connection of the proxy, which opens another |
//! | rate limit | by the client that `trust` finds, or the key that [`Stack::client`] returns |
//! | timeout, body limit | hold |
//! | slow bodies | hold, but a proxy that buffers requests (nginx does by default) hides slow clients |
//! | concurrency limit | holds; fair shares and `max_requests_per_client` by the same client |
//! | addresses of refused requests in events and logs | the proxy's as `peer`, the client's as `client` |
//! | addresses of connections in events, logs, `snapshot()` and `recently_closed()` | are the proxy's: never ban by them |
//! | the PROXY protocol | is read if [`ConnGuardBuilder::proxy_protocol`] is set, and makes all of this hold for clients |
//!
//! The proxy needs an idle timeout below 620 s for its connections to the server, or it may send a
//! request on a connection that the guard is closing. nginx has 60 s, but Envoy an hour, and
//! Cloudflare 900 s: set [`ConnGuardBuilder::idle_timeout`] above that. Near the cap the guard
//! closes idle connections earlier. The document [behind-a-proxy.md] has the lines for nginx,
//! `HAProxy`, Envoy, Caddy, AWS, Google, Cloudflare and Fly.
//!
//! [behind-a-proxy.md]: https://github.com/palisade-rs/palisade/blob/main/docs/behind-a-proxy.md
//! [`ConnGuardBuilder::proxy_protocol`]: crate::conn::ConnGuardBuilder::proxy_protocol
//! [`ConnGuardBuilder::idle_timeout`]: crate::conn::ConnGuardBuilder::idle_timeout
//!
//! # Which header is believed
//!
//! A client can write `X-Forwarded-For` into its request. If that were believed, each invented
//! address would get a quota of its own, or use up that of a victim. So nothing is read from a peer
//! that is no trusted proxy, and only one field from one that is. A proxy appends the address that
//! it saw at the *right* end: the field is read from there, past your own proxies, to the first
//! other address. [`Trust`](crate::client_ip::Trust) has the rules.
//!
//! List the addresses of the proxies, not a network that clients are in. A list that changes, such
//! as that of a CDN, is a [`Networks`](crate::client_ip::Networks), which the application reloads
//! while it runs. Where requests carry an identity that a layer outside the stack has checked, such
//! as a tenant in the extensions, count by that: [`Stack::client`] with `ClientKey::of(&tenant)`.
//! An unchecked token is as bad as an unchecked header.
//!
//! `cargo run --example behind_proxy` is a server for this, and `.ci/proxies` runs it behind nginx,
//! behind HAProxy, and behind both.
//!
//! # How to find out that there is a proxy
//!
//! While neither `behind_proxy` nor `trust` is set, the guard looks for forwarding headers in one
//! of 16 requests. After 2,048 requests the gauge `palisade_forwarded_percent` has their share, and
//! above 90 % the guard reports it once, with the feature `tracing` in the log too. Clients can
//! send the headers, so nothing else follows. The runbook says what to look at before you change
//! anything.
