//! Bans clients for a while, and keeps lists of networks out: at accept, before a connection costs
//! anything, and per request, where the client is behind a proxy.
//!
//! - **Strikes.** The application holds what it sees against a client, such as a failed login, and
//!   so do other guards for the refusals that you select. Too many strikes ban the client: for 10
//!   s, twice as long each further time, up to an hour.
//! - **Lists.** Networks that are allowed or denied, from your own files, replaced while the server
//!   runs. A network that is allowed takes precedence over everything else.
//! - **Bounded.** All bans, strikes and levels are debts in one table of fixed size, 8 bytes each.
//!   No flood of clients makes it grow.
//!
//! fail2ban reads logs, seconds after the fact, and blocks the address of the socket, which is your
//! proxy's if there is one. A ban acts on the next request, and on the same client as all guards:
//! an IPv6 /64, or the address that [trusted proxies](palisade_client_ip::Trust) name. It also
//! [tells fail2ban](#fail2ban-and-firewalls).
//!
//! ```
//! use palisade_ban::{Ban, BanLayer, RequestBody};
//! # use palisade_testkit::example::*;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let ban = Ban::builder().strikes(5, Duration::from_secs(300)).build()?;
//!
//! let of_handler = ban.clone();
//! let login = service_fn(move |request: Request<RequestBody<_>>| {
//!     let ban = of_handler.clone();
//!     async move {
//!         let client = ban.client_of(request.extensions());
//!         let password = request.into_body().collect().await?.to_bytes();
//!         if password == "secret" {
//!             return Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()));
//!         }
//!         if let Some(client) = client {
//!             ban.strike(&client, 1); // Five at once ban the client.
//!         }
//!         Ok(Response::builder().status(401).body(Full::default())?)
//!     }
//! });
//! let service = BanLayer::new(ban).layer(login);
//! let log_in = async |from: [u8; 4], password: &'static str| {
//!     let mut request = Request::new(Full::from(password));
//!     request.extensions_mut().insert(SocketAddr::from((from, 4711))); // The server does this.
//!     service.clone().oneshot(request).await.map(|response| response.status())
//! };
//! let (guesser, user) = ([203, 0, 113, 7], [192, 0, 2, 1]);
//! for _ in 0..5 {
//!     assert_eq!(log_in(guesser, "123456").await?, 401);
//! }
//! assert_eq!(log_in(guesser, "secret").await?, 403); // Banned.
//! assert_eq!(log_in(user, "secret").await?, 200);
//! tokio::time::advance(Duration::from_secs(10)).await;
//! assert_eq!(log_in(guesser, "secret").await?, 200); // Ten seconds later.
//! # Ok(())
//! # }
//! ```
//!
//! # Place
//!
//! | where | what it is asked | response |
//! |---|---|---|
//! | `ConnGuard::builder().gate(ban.clone())` | each new connection, by its peer | RST |
//! | [`BanLayer`], or `Stack::ban`, outside of all other layers | each request, by its client | 403; gRPC `PERMISSION_DENIED` |
//! | `.metrics((snapshot, ban.clone()))` of every guard | nothing: it counts the refusals of [`BanBuilder::strike_for`] | - |
//!
//! A connection that is open stays open when its client is banned, and its requests get 403. The
//! body of a refused request is not read.
//!
//! # Clients
//!
//! The client of a request is the [`Client`] that a connection guard with a `Trust` or a
//! `ClientIpLayer` has inserted, or else the peer. The same client is one whether it connects
//! directly or is forwarded.
//!
//! - A trusted proxy is never struck, banned or denied: that would keep all its clients out. Behind
//!   proxies that no `Trust` names, set [`BanBuilder::behind_proxy`].
//! - A client without an address, such as the peer of a Unix socket, is never struck or banned.
//! - With `Trust::hops` alone every peer is believed, so a client can write the address of a
//!   victim. A ban of such an address refuses requests that name it, and never a connection.
//!
//! # How bans grow and end
//!
//! `strikes(10, 60 s)` bans a client that gets ten strikes at once, or more than ten per minute for
//! long: a strike is forgotten after 6 s. The ban lasts for 10 s, and has no further strikes: what
//! arrives meanwhile is refused anyway. The next ban lasts for 20 s, and so on up to an hour. After
//! ten minutes without a ban the next one is half as long again. See [`BanBuilder::ban_times`] and
//! [`BanBuilder::forgive_after`].
//!
//! If there are more accounts than the table holds, a new one evicts the one of sixteen that would
//! be paid first: strikes before bans, short bans before long ones. A client that was evicted is
//! admitted again, and starts anew. `palisade_key_evictions_total{guard="ban"}` counts them. A key
//! is told apart by 22 bits among the sixteen words in which it may be: in a table that is full,
//! four in a million clients share the account of another one.
//!
//! The clock is tokio's. A machine that sleeps does not shorten a ban.
//!
//! # fail2ban and firewalls
//!
//! Each ban is one [`Event::Banned`](palisade_core::Event::Banned), which any `Metrics` may hand to
//! a firewall. `Log` of palisade-metrics writes one line, with the address first:
//!
//! ```text
//! 2026-11-30T12:00:00.000000Z  WARN palisade::ban: client=203.0.113.7 source=peer seconds=10 ...
//! ```
//!
//! A firewall sees the addresses of sockets. Behind a proxy that is the proxy's, so blocking the
//! client of a line with `source=forwarded` or `source=proxy` has no effect there, and the filter
//! in `docs/operations/fail2ban` takes lines with `source=peer` only.
#![forbid(unsafe_code)]

mod accounts;
mod ban;
mod builder;
mod gauges;
mod layer;
mod policy;
mod strikes;

pub use ban::Ban;
pub use builder::BanBuilder;
pub use layer::{BanGuard, BanLayer, RequestBody, ResponseBody, ResponseFuture};
pub use palisade_core::{
    Client, ConfigError, Mode, Network, NetworkSet, Networks, Prefix, Reason, Recorder, Rejection,
};
#[doc(hidden)]
pub use policy::BanPolicy;
