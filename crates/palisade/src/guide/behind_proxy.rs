//! Behind nginx or a load balancer: what holds, what does not, and how to tell clients apart.
//!
//! Behind a proxy the peer of every connection is the proxy. A limit for each client would then be
//! a limit for the proxy, so both halves of palisade must know:
//!
//! - [`ConnGuardBuilder::behind_proxy`] removes the limits for each client and network, the accept
//!   rate and the limit on cancelled requests, and keeps an idle connection for 620 s. Call it
//!   first: it overrides what was set before it, and what is set after it holds.
//! - [`Stack::behind_proxy`] has the numbers of [`Stack::edge`], but no guard uses the peer's
//!   address. A rate limit needs [`Stack::client`], and `build` says so:
//!
//! [`ConnGuardBuilder::behind_proxy`]: crate::conn::ConnGuardBuilder::behind_proxy
//! [`Stack::behind_proxy`]: crate::Stack::behind_proxy
//! [`Stack::edge`]: crate::Stack::edge
//! [`Stack::client`]: crate::Stack::client
//!
//! ```
//! use palisade::{Quota, Stack};
//!
//! let error = Stack::behind_proxy().rate_limit(Quota::per_second(10)).build().unwrap_err();
//! assert_eq!(error.faults()[0].field, "rate_limit");
//! assert_eq!(error.faults()[0].value, "set, without `client`");
//! ```
//!
//! # What holds
//!
//! | guard | behind a proxy |
//! |---|---|
//! | connections: cap, first request, head, write stall, age | hold, for connections of the proxy |
//! | connections: shares, accept rate, idle ones, cancelled requests | off: the proxy must do it (`limit_conn`) |
//! | requests in flight on all connections | holds as a whole, with no share for each client |
//! | eviction near the cap | takes the least useful connection of the proxy, which opens another |
//! | rate limit | by the key that [`Stack::client`] returns |
//! | timeout, body limit | hold |
//! | slow bodies | hold, but a proxy that buffers requests (nginx does by default) hides slow clients |
//! | concurrency limit | holds; fair shares and `max_requests_per_client` need [`Stack::client`] |
//! | addresses in logs, events, `snapshot()` and `recently_closed()` | are the proxy's: never ban by them |
//! | the PROXY protocol | is not read: see below |
//!
//! The proxy needs an idle timeout below 620 s for its connections to the server (nginx: 60 s), or
//! it may send a request on a connection that the guard is closing. Near the cap the guard closes
//! idle connections earlier.
//!
//! # Why a header is not trusted
//!
//! palisade reads no forwarding header by itself. A client can write `X-Forwarded-For` into its
//! request, and each invented address would get a quota of its own, or use up that of a victim. The
//! header is worth something under two conditions: the peer is a proxy of yours, and only the part
//! that your proxies wrote is used. A proxy appends the address that it saw at the *right* end.
//! So read from the right, pass over your own proxies, and stop at the first other address:
//!
//! ```
//! use palisade::client_ip::peer;
//! use palisade::types::{ClientKey, KeyExtractor, KeyOutcome, Network, Prefix, RequestHead};
//! use std::net::{IpAddr, SocketAddr};
//!
//! /// Longer chains of proxies are not followed.
//! const MAX_PROXIES: usize = 4;
//!
//! /// Identifies a client by the address that the nearest proxy of `proxies` reports.
//! fn behind(proxies: Vec<Network>) -> impl KeyExtractor {
//!     let is_proxy = move |address: IpAddr| proxies.iter().any(|own| own.contains(address));
//!     move |head: &RequestHead<'_>| {
//!         let Some(peer) = peer(head.extensions) else { return KeyOutcome::Refuse };
//!         let mut client = peer.ip();
//!         // Several lines are one list, and the last one is the rightmost.
//!         let lines = head.headers.get_all("x-forwarded-for").iter().rev();
//!         let entries = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
//!         for entry in entries.take(MAX_PROXIES) {
//!             // Only a proxy's word counts, and nothing behind an entry that is no address.
//!             let Some(address) = entry.trim().parse().ok().filter(|_| is_proxy(client)) else {
//!                 break;
//!             };
//!             client = address;
//!         }
//!         KeyOutcome::Key(ClientKey::address(client, Prefix::default()))
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let extractor = behind(vec!["10.0.0.0/8".parse()?]);
//! let key = |peer: &str, lines: &[&str]| {
//!     let mut request = axum::http::Request::new(());
//!     request.extensions_mut().insert(SocketAddr::new(peer.parse().unwrap(), 4711));
//!     for line in lines {
//!         request.headers_mut().append("x-forwarded-for", line.parse().unwrap());
//!     }
//!     extractor.extract(&RequestHead::from(&request))
//! };
//! let is = |address: &str| {
//!     KeyOutcome::Key(ClientKey::address(address.parse().unwrap(), Prefix::default()))
//! };
//! assert_eq!(key("10.0.0.1", &["192.0.2.7"]), is("192.0.2.7"));
//! assert_eq!(key("10.0.0.1", &["192.0.2.7, 10.0.0.2"]), is("192.0.2.7")); // Two proxies.
//! // What the client wrote stands to the left, or in an earlier line.
//! assert_eq!(key("10.0.0.1", &["198.51.100.1, 192.0.2.7"]), is("192.0.2.7"));
//! assert_eq!(key("10.0.0.1", &["198.51.100.1", "192.0.2.7"]), is("192.0.2.7"));
//! // A client that reaches the server directly is believed nothing.
//! assert_eq!(key("192.0.2.9", &["198.51.100.1"]), is("192.0.2.9"));
//! // Without an address the requests of a proxy count as one client.
//! assert_eq!(key("10.0.0.1", &["unknown"]), is("10.0.0.1"));
//! assert_eq!(key("10.0.0.1", &[]), is("10.0.0.1"));
//! # Ok(())
//! # }
//! ```
//!
//! List the addresses of the proxies, not a network that clients are in. Where requests carry an
//! identity that a layer outside the stack has checked, such as a tenant in the extensions, count
//! by that: `ClientKey::of(&tenant)`. An unchecked token is as bad as an unchecked header.
//!
//! # Both halves together
//!
//! ```
//! use palisade::{Quota, Stack, conn::ConnGuard};
//! # use palisade::types::{ClientKey, KeyOutcome, Prefix, RequestHead};
//! # use {axum::{Router, routing::get}, std::{future::IntoFuture, time::Duration}};
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! # fn behind(_: Vec<&str>) -> impl palisade::types::KeyExtractor {
//! #     |head: &RequestHead<'_>| {
//! #         let line = head.headers["x-forwarded-for"].to_str().unwrap();
//! #         let address = line.rsplit(',').next().unwrap().trim().parse().unwrap();
//! #         KeyOutcome::Key(ClientKey::address(address, Prefix::default()))
//! #     }
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let guard = ConnGuard::builder().behind_proxy().build()?;
//! let stack = Stack::behind_proxy()
//!     .client(behind(vec!["127.0.0.1"])) // The function of the previous example.
//!     .rate_limit(Quota::per_minute(1).burst(1))
//!     .build()?;
//! let app = Router::new().route("/", get("hello")).layer(stack);
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # tokio::spawn(palisade::serve(listener, app).into_future());
//!
//! // The example is its own proxy.
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
//! // The PROXY protocol is not HTTP: turn it off in the proxy.
//! let line = "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n";
//! assert!(exchange(server, line).await?.starts_with("HTTP/1.1 400"));
//! # Ok(())
//! # }
//! ```
//!
//! The part of nginx, for HTTP/1.1 with connections that are kept:
//!
//! ```text
//! upstream app { server 127.0.0.1:3000; keepalive 64; keepalive_timeout 60s; }
//! location / {
//!     proxy_pass http://app;
//!     proxy_http_version 1.1;
//!     proxy_set_header Connection "";
//!     proxy_set_header Host $host;
//!     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;  # Appends on the right.
//! }
//! ```
//!
//! # How to find out that there is a proxy
//!
//! While `behind_proxy` is not set, the guard looks for forwarding headers in one of 16 requests.
//! The gauge `palisade_forwarded_percent` has their share, and above 90 % the guard reports it
//! once, with the feature `tracing` in the log too. Clients can send the headers, so nothing else
//! follows. The runbook says what to look at before you change anything.
