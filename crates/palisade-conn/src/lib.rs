//! Stops what no request-level layer can see: sockets that say nothing, heads that never end,
//! connections that are kept for nothing, readers that do not read. hyper, `axum::serve` and tonic
//! let in as many as come, and by default wait for them for ever; tower's limits see none of it,
//! because no request is made.
//!
//! A guarded listener works under stock `axum::serve` and tonic's `serve_with_incoming`, and, by
//! its plain [`accept`](GuardedListener::accept), under a loop of your own.
#![cfg_attr(
    feature = "axum",
    doc = r#"
```no_run
# use {axum::{Router, routing::get}, palisade_conn::{ConnGuard, connected}};
# async fn example() -> std::io::Result<()> {
# let app = Router::new().route("/", get("hello"));
let guard = ConnGuard::default();
axum::serve(guard.bind("127.0.0.1:3000").await?, connected(app)).await
# }
```
"#
)]
//! # The rules
//!
//! | rule | by default | ends with | reason |
//! |---|---|---|---|
//! | open connections, upgraded ones too | 0.8 × file limit − 64, a quarter of the memory at 64 KiB each, 16 to 10,000 | displacement, else RST | `ConnectionEvicted`, `ConnectionsFull` |
//! | of one client (IPv4 address, IPv6 /64) | half of what is left of nine tenths; where places are short max(64, a hundredth) | displacement of its own, else RST | `ConnectionEvicted`, `ClientConnectionsFull` |
//! | of one network (IPv4 /24, IPv6 /48) | four times that | displacement of its own, else RST | `ConnectionEvicted`, `NetworkConnectionsFull` |
//! | connections of one client per second, of its network | 100, burst 200; four times that | RST | `AcceptRate` |
//! | first request head, from accept | 10 s | RST; 408 and FIN where HTTP/1 has begun in plain text | `FirstRequest` |
//! | later request heads, from their first byte, HTTP/1 | 10 s | the same | `SlowHead` |
//! | nothing in flight | 65 s | FIN, after GOAWAY under `palisade::serve` | `Idle` |
//! | upgraded and silent | 5 min | FIN | `Idle` |
//! | upgraded connections | a quarter of all | 503 in place of the 101 | `UpgradedFull` |
//! | less than 500 B/s taken of what waits for the client | 5 min | RST | `WriteStall` |
//! | all answers of HTTP/2 wait for their windows, and less than 500 B/s is taken | 5 min | RST | `WindowStall` |
//! | requests in flight on all connections, of which [one client](ConnGuardBuilder::max_in_flight) may have what he leaves | four times the connections, ≥ 1,024 | 503 and `Retry-After` | `InFlightFull` |
//! | requests cancelled within a second, and more than half of all | 200, and 20/s | GOAWAY, RST | `CancelledRequests` |
//! | bytes of HTTP/2 that bring no request on | 256 KiB, 16 KiB/s, and 32 KiB a request | RST | `NoProgress` |
//! | age | 1 h ± 10 % | `Connection: close`; HTTP/2: GOAWAY, or FIN once idle for 30 s; RST after a grace if [asked for](ConnGuardBuilder::age_grace) | `MaxAge` |
//! | requests of one connection | 10,000 | the same | `MaxRequests` |
//! | idle connections of one client | a quarter of what is left; where places are short 8 | `Connection: close`, FIN once idle for 5 s | `KeepAlivePerClient` |
//! | client gone, request at work, HTTP/1 | looked for every 5 s, on Linux | RST | `HungUp` |
//!
//! Except [under pressure](#under-pressure) no time is cut short, and each may be two looks of the sweeper longer, 500 ms unless
//! [told otherwise](ConnGuardBuilder::precision).
//!
//! # Displacement
//!
//! Who fills the cap with silent sockets must not keep anybody out. From nine tenths of the cap on,
//! each connection that comes takes the place of the one that is of the least use: first one that
//! only lingers, then the oldest that has completed no request within 500 ms; then those above the
//! share that their client or its network has where places are short, whatever they do; then the
//! idle one with the fewest answers and bytes for its age, if that is no more than one answer in
//! 2 s; then, by a reset, the one that has made no progress for longest, and for 4 s at least, in a
//! response that waits for its client or an upload that does not arrive; then the oldest newcomer,
//! and idle ones that did more; and at last those that completed requests before, if an upload of
//! theirs that stands still may be whole.
//! Where more than half of all are newcomers they do not go late but second. Never another one that
//! has a request in work, an answer that is being taken, or a quiet upgrade. The sweeper keeps 64 of them ready;
//! where these are used up, 32 connections are looked at. Where none can be spared, what is left of
//! the places is for clients with fewer than four connections, in networks with fewer than 16, and
//! all others are reset; nor
//! does a newcomer go, or an idle connection that did something, for whoever has four. So those who
//! hold many with work can neither keep out nor drive out who holds few.
//!
//! Places can be [kept](ConnGuardBuilder::reserve) for networks that must get in whatever happens.
//!
//! # What is meant to take long
//!
//! Server-sent events, long polls, gRPC streams, downloads: each is one request in flight until its
//! answer has ended, however quiet it is. So it is never idle, never evicted unless its client
//! takes nothing of what waits for it, counts among the requests in flight, and outlives the age of
//! its connection unless a grace is asked for. `WriteStall` and `WindowStall` hold; on HTTP/1 a
//! client that closes its own direction of the connection while it waits for an answer counts as
//! gone, unless `palisade::serve` is told to answer it (`HttpBuilder::half_close`). A WebSocket, or any other upgrade, and a tunnel by
//! CONNECT are upgraded connections: no request is in flight there, and besides `WriteStall` only the silence of both
//! sides for 5 min ends them.
//!
//! # Under pressure
//!
//! Deadlines shrink as it gets tight, all on one curve: they are whole up to a pressure of 0.8, and
//! from there on go down in a straight line to what is left at 1.
//!
//! | deadline | by default | at 0.9 | at 1 |
//! |---|---|---|---|
//! | first request head, later heads | 10 s | 6.5 s | 3 s |
//! | nothing in flight | 65 s | 33.5 s | 2 s |
//! | upgraded and silent | 5 min | 3 min | 60 s |
//! | less than 500 B/s taken of what waits for the client | 5 min | 155 s | 10 s |
//!
//! What is set to less than the last column stays as it is. The pressure is that of the connections
//! themselves, 0 where displacement begins and 1 at the cap, without those that are told to go, or
//! the one that is [handed in](ConnGuardBuilder::pressure) if that is higher. It is looked at with
//! each look of the sweeper, and holds for connections that are open already. The connections' own
//! is 0.8 where 98 of a hundred places are taken.
//!
//! # RequestTracking
//!
//! Bytes do not tell a request that is being worked on from a client that waits for nothing. The
//! accounting layer tells the connection, by `Arc<ConnInfo>`, when a request's head is here and
//! when the body of its answer has ended or is dropped.
//!
//! - axum: serve `connected(app)`, which also puts `ConnectInfo<SocketAddr>` and `Arc<ConnInfo>`
//!   into each request;
//! - tonic: `harden(Server::builder()).layer(guard.track_requests())`, which also makes `remote_addr()`
//!   work;
//! - hyper: [`RequestTracking::for_connection(io.conn().clone(), service)`](RequestTracking::for_connection) for each connection. Where
//!   one service serves all of them, put the `Arc<ConnInfo>` into the extensions of each request,
//!   and call [`guard.track_requests()`](ConnGuard::track_requests) around the service with that request.
//!
//! Without it the guard still enforces the caps, the accept rate, the write stall, the age if it has
//! a grace, and cuts those who never sent a byte; a connection that sent one is taken to be
//! at work for ever after. [`ConnSnapshot::untracked`] counts those, and the metrics are told
//! once, after as long as a first request may take. A request that both `connected` and such a
//! layer see counts once.
//!
//! # What it cannot do
//!
//! Under `axum::serve` and tonic one HTTP/2 connection cannot be told to go away in good order (but
//! by tonic itself at an age, which `harden` sets), nor one stream of it be cut: a client that shuts the window of some streams keeps them for as long
//! as a handler of the connection is at work, unless places are short. Unfinished HEADERS after the first complete request end by the idle
//! rule only. A request that begins at the very moment in which its connection is ended as idle
//! is lost, as with every server; clients repeat it. HTTP/2 that is to take no more requests, of
//! its age or their number, goes there once it was idle for 30 s, and a client that never is goes on.
//!
//! Behind an upload that no handler reads, and that has filled the socket, a client's end does not
//! arrive: that he is gone is not seen, and his request lasts for as long as its handler does.
//!
//! A handler that answers and reads on in a task of its own is seen to be at work only where the
//! request is HTTP/1, and while 500 bytes a second come; on HTTP/2 such an upload has the idle time
//! from its answer on. Under TLS that is not `palisade::serve`'s own, the bytes of an HTTP/2 body
//! cannot be told from others, and a flood beside an upload passes. When a tunnel of HTTP/2 ends,
//! hyper tells the guard only under `palisade::serve`: elsewhere its connection counts as upgraded
//! for as long as it lives, and has the upgraded time, which only its DATA moves, whenever it has no
//! request in flight.
//!
//! Answers to pipelined requests that the kernels on both sides hold unread are not counted: to
//! ask for them takes an `ioctl` that no safe crate has. hyper reads no further request while its
//! socket is full, and then the write stall ends it.
//!
//! # Sockets
//!
//! A TCP connection that is let in gets `TCP_NODELAY`, a first keep-alive probe after 60 s of
//! silence, 64 KiB of unsent bytes at most (`TCP_NOTSENT_LOWAT`; a send buffer of 128 KiB where there
//! is no such thing), and on Linux an end by the kernel once its client has acknowledged nothing
//! for 30 s, or 5 s longer than the write stall if that is more (`TCP_USER_TIMEOUT`): a last resort
//! for clients that are gone, behind the guard's own rules.
//!
//! What got lost before it could be accepted the guard never sees. Among its levels on Linux are
//! therefore how many connections wait at its listeners, how many may, and how many the kernel lost
//! at any listener; `/proc` is read for them when they are asked for, and not otherwise.
//!
//! # Cost
//!
//! A read or a write costs two or three loads and stores and no clock; a Pending one also the lock
//! of its own two wakers. One task per guard looks at all connections, four times a second while
//! there are any; there is no timer per connection.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod accept;
mod connection;
mod eviction;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod integrations;
mod io;
mod log;
mod sweep;
mod sync;
mod sys;
#[cfg(test)]
mod tests;
mod track;

pub use accept::{
    bind::BindOptions,
    listener::{GuardedListener, Listener},
};
pub use connection::{ConnHandle, decision::CloseMode};
pub use guard::{
    ConnGuard,
    builder::ConnGuardBuilder,
    limits::CapFrom,
    recent::ClosedConn,
    snapshot::{AcceptErrorCounts, ConnHolder, ConnRates, ConnSnapshot},
};
#[cfg(feature = "axum")]
pub use integrations::axum::{Connected, ConnectedFuture, ConnectedService, connected, settled};
#[cfg(feature = "tonic")]
pub use integrations::tonic::harden;
#[doc(hidden)]
pub use io::frames::FrameReader;
pub use io::{guarded::GuardedIo, transport::Transport};
pub use palisade_core::{
    ClientKey, ConfigError, ConfigFault, ConnInfo, Mode, Network, Phase, Prefix, Pressure, Reason,
};
pub use track::{
    body::TrackedBody, future::TrackingFuture, layer::RequestTrackingLayer,
    service::RequestTracking,
};
