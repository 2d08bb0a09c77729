//! Limits what no request-level layer can see: the connections themselves.
//!
//! Silent sockets, request heads that never end, idle connections and clients that do not read
//! their responses all use up a server. hyper, `axum::serve` and tonic accept any number of
//! connections, and by default wait forever for each of them. The limits of tower see none of this,
//! because there is no request yet.
//!
//! A guarded listener works with unmodified `axum::serve` and with tonic's `serve_with_incoming`.
//! Its plain [`accept`](GuardedListener::accept) is for an accept loop of your own.
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
//! # Rules
//!
//! | limit | default | what happens beyond it | reason |
//! |---|---|---|---|
//! | open connections, upgraded ones included | 0.8 × file limit − 64, or a quarter of the memory at 64 KiB each; 16 to 10,000 | eviction, else RST | `ConnectionEvicted`, `ConnectionsFull` |
//! | connections of one client (IPv4 address, IPv6 /64) | half of the places that are left below nine tenths of the cap; near the cap max(64, a hundredth of it) | eviction of one of its own, else RST | `ConnectionEvicted`, `ClientConnectionsFull` |
//! | connections of one network (IPv4 /24, IPv6 /48) | four times that | eviction of one of its own, else RST | `ConnectionEvicted`, `NetworkConnectionsFull` |
//! | new connections per second, of one client and of its network | 100, burst 200; four times that | RST | `AcceptRate` |
//! | time to the first request head, from accept | 10 s | RST; 408 and FIN if an HTTP/1 head has begun in plain text | `FirstRequest` |
//! | time to a later request head, from its first byte, HTTP/1 | 10 s | the same | `SlowHead` |
//! | time with nothing in flight | 65 s | FIN, after GOAWAY under `palisade::serve` | `Idle` |
//! | silence of an upgraded connection | 5 min | FIN | `Idle` |
//! | upgraded connections | a quarter of the cap | 503 in place of the 101 | `UpgradedFull` |
//! | time in which less than 500 B/s is taken of the bytes that wait for the client | 5 min | RST | `WriteStall` |
//! | time in which all HTTP/2 responses wait for their windows, at less than 500 B/s | 5 min | RST | `WindowStall` |
//! | requests in flight on all connections, of which [one client](ConnGuardBuilder::max_in_flight) may have a share | four times the cap, at least 1,024 if an eighth of the memory has 8 KiB for each | 503 and `Retry-After` | `InFlightFull` |
//! | requests cancelled within a second, if they are more than half of all | 200, and 20 per second | GOAWAY, RST | `CancelledRequests` |
//! | HTTP/2 bytes that carry no request on | 256 KiB, and 16 KiB per second, and 32 KiB per request | RST | `NoProgress` |
//! | age | 1 h ± 10 % | `Connection: close`; on HTTP/2 GOAWAY, or FIN after 30 s idle; RST after an [optional grace period](ConnGuardBuilder::age_grace) | `MaxAge` |
//! | requests of one connection | 10,000 | the same | `MaxRequests` |
//! | idle connections of one client | a quarter of the places that are left below nine tenths of the cap; near the cap 8 | `Connection: close`, FIN after 5 s idle | `KeepAlivePerClient` |
//! | a peer that [is a proxy](ConnGuardBuilder::proxy_protocol) and sends no valid PROXY header | off; 4 KiB | RST, in every mode | `ProxyHeader` |
//! | a client that has hung up while its HTTP/1 request is at work | checked every 5 s, on Linux | RST | `HungUp` |
//!
//! No deadline is early, except that they shrink [under pressure](#under-pressure). Each may be up
//! to two sweeps late: 500 ms, unless [`sweep_interval`](ConnGuardBuilder::sweep_interval) is set.
//!
//! # Eviction
//!
//! A client that fills the cap with silent sockets must not keep other clients out. From nine
//! tenths of the cap, each new connection evicts the least useful one, in this order:
//!
//! 1. connections that only linger;
//! 2. connections that have completed no request within 500 ms, the oldest first;
//! 3. connections above the share that their client or network has near the cap, whatever they do;
//! 4. idle connections with at most one response in 2 s, the fewest responses and bytes for their
//!    age first;
//! 5. connections without progress for at least 4 s, in a response that waits for its client or an
//!    upload that does not arrive, the longest stall first. They are reset;
//! 6. newcomers (open for less than 500 ms), the oldest first, and idle connections that have done
//!    more;
//! 7. connections that have completed requests before, with an upload that has stopped but may be
//!    complete.
//!
//! If more than half of all connections are newcomers, they come second and not sixth. A connection
//! with a request at work, a response that its client takes, or a quiet upgrade is evicted only
//! above its share. The sweeper keeps 64 candidates ready. Once these are used up, 32 connections
//! are examined instead.
//!
//! Clients with many connections that do work can neither keep out nor evict clients with few:
//!
//! - if no connection can be evicted, the places that are left are for clients with fewer than four
//!   connections, in networks with fewer than 16. All others are reset;
//! - a client with more does not evict newcomers, nor idle connections that have done work.
//!
//! Places can be [reserved](ConnGuardBuilder::reserve) for networks that must always get in.
//!
//! # Long responses and streams
//!
//! A server-sent event stream, a long poll, a gRPC stream or a download is one request in flight
//! until its response has ended, however quiet it is. Its connection
//!
//! - is never idle, and is evicted only above its share, or if its client takes none of the bytes
//!   that wait for it;
//! - counts among the requests in flight;
//! - outlives its maximum age, unless a grace period is set;
//! - is subject to `WriteStall` and `WindowStall`.
//!
//! On HTTP/1, a client that closes its own direction of the connection while it waits for a
//! response counts as gone, unless `palisade::serve` is told to answer it
//! (`HttpBuilder::half_close`).
//!
//! A WebSocket or any other upgrade, and a CONNECT tunnel, are upgraded connections. No request is
//! in flight on them. Besides `WriteStall`, only 5 min of silence in both directions close them.
//!
//! # Under pressure
//!
//! Timeouts shrink when the server is near its limits, all on one curve. They have their full
//! length up to a pressure of 0.8, and shrink linearly from there to a minimum at 1.
//!
//! | timeout | default | at 0.9 | at 1 |
//! |---|---|---|---|
//! | first request head, later heads | 10 s | 6.5 s | 3 s |
//! | nothing in flight | 65 s | 33.5 s | 2 s |
//! | upgraded and silent | 5 min | 3 min | 60 s |
//! | less than 500 B/s taken of the bytes that wait | 5 min | 155 s | 10 s |
//!
//! A timeout that is set below the last column stays as it is. The pressure is the highest of four:
//!
//! - that of the connections, which is 0 where eviction begins and 1 at the cap. It reaches 0.8 at
//!   98 of 100 places. Connections that have been asked to close do not count;
//! - that of the [memory](ConnGuardBuilder::memory), which is the part of its limit in use;
//! - that of the [budget of bytes](ConnGuardBuilder::byte_budget), which is the part that is held;
//! - the one that the application [supplies](ConnGuardBuilder::pressure).
//!
//! Every sweep reads the pressure and applies it to all open connections.
//!
//! # Memory
//!
//! A guard protects the memory of the process, within the limit of its control group, unless it is
//! told otherwise: see [`Memory`] and [`ConnGuardBuilder::memory`].
//!
//! | in use | what happens |
//! |---|---|
//! | 80 % | the timeouts above get shorter, new connections have a receive buffer of 64 KiB, and, while it grows, those that have as much unread |
//! | 88 % | after a request outside of the share, the connection ends with the response |
//! | 90 % | each new connection evicts a less useful one, as at the cap. 64 connections stay |
//! | 90 % | in a sweep in which it has grown, the 50 connections with most bytes unread are reset: `MemoryPressure` |
//! | 92 % | [sheddable](ConnGuardBuilder::sheddable) requests outside of the share are refused |
//! | 95 % | requests and new connections outside of the share are refused: `MemoryPressure` |
//! | 97 % | in a sweep in which it has grown, the 50 connections that hold most are reset: `MemoryPressure` |
//!
//! The share is the part of requests that are admitted. It is 1 while memory does not grow, however
//! much is in use: what an allocator keeps after a flood refuses nothing. Each growth by 1/256 of
//! the limit halves the share, down to a quarter. Each look without growth adds a sixteenth. With
//! 32 clients or more, a client is inside or outside of the share for one second. With fewer, each
//! request is. [`Memory::release`] lets the application return what the allocator keeps.
//!
//! A connection holds what is charged for its requests, and what the kernel has for the server to
//! read, which counts alone below 97 %. One that holds less than 64 KiB is not reset, nor one whose
//! client takes an answer: bytes wait for it or were just written, and it has not stalled for 4 s.
//! Reserved networks are left as well. At the same level this happens once a second at most.
//!
//! Heads of HTTP/2 requests that take more than 8 KiB are charged to a
//! [budget of bytes](ConnGuardBuilder::byte_budget) and refused with 503 if there is no room:
//! `BytesFull`. A head of more than 100 fields, or of more
//! than 200 `cookie` fields, is answered 431: `HeadTooLarge`.
//!
//! Request bodies are charged to the same budget by a layer, such as palisade's `Stack`. Without
//! one `palisade::serve` charges them, and answers 503 if there is no room. Under other servers the
//! socket charges what it reads during a body of HTTP/1, at most 4 MiB. A connection that finds no
//! room is reset: `BytesFull`. Bodies of HTTP/2 need a layer there, because a socket cannot tell
//! the bodies of one connection apart. `palisade::serve` charges HTTP/2 responses that clients do
//! not take, up to half of the budget: [`ConnHandle::charge_response`].
//!
//! A refused request gets 503 and a `Retry-After` of one to five seconds.
//! [Critical](ConnGuardBuilder::critical) requests and [reserved](ConnGuardBuilder::reserve)
//! networks are not refused.
//!
//! # Overload of the runtime
//!
//! Requests whose handlers need more processor time than there is wait in the run queue of the
//! runtime, before any layer is called, and none of them is answered in time. A guard watches the
//! runtimes in which it admits connections: see [`RuntimeLoad`]. If tasks wait for 250 ms or more,
//! for a second, it admits a share of the requests and refuses the others with 503: `RuntimeBusy`.
//! The share is chosen by client as above, and controlled until tasks wait for about 100 ms. No
//! connection is closed.
//!
//! A runtime that runs out of work once in that second refuses nothing: bursts, handlers that wait,
//! a blocked worker beside others. If refusing does not help, because tasks that are no requests
//! keep the runtime busy, everything is admitted for 10 s and more. See
//! [`ConnGuardBuilder::runtime_load`].
//!
//! # Request tracking
//!
//! Bytes do not show whether a request is at work or a client is idle. Request tracking reports to
//! the connection, by its `Arc<ConnInfo>`, when a request head has arrived, and when the body of
//! its response has ended or is dropped.
//!
//! - axum: serve `connected(app)`, which also puts `ConnectInfo<SocketAddr>` and `Arc<ConnInfo>`
//!   into each request;
//! - tonic: `harden(Server::builder()).layer(guard.track_requests())`, which also makes
//!   `remote_addr()` work;
//! - hyper: [`RequestTracking::for_connection(conn, service)`](RequestTracking::for_connection) for
//!   each connection, with the [`conn`](GuardedIo::conn) of its socket. If one service serves all
//!   of them, put the `Arc<ConnInfo>` into the extensions of each request, and wrap the service
//!   with the layer that [`guard.track_requests()`](ConnGuard::track_requests) returns.
//!
//! Without it, the guard still enforces the caps, the accept rate, the write timeout, and the
//! maximum age if it has a grace period. It closes connections that never send a byte. A connection
//! that has sent one counts as at work from then on. [`ConnSnapshot::untracked`] counts the
//! connections without request tracking. The metrics receive one event for them, after the time
//! that a first request may take.
//!
//! A request that both `connected` and the layer see counts once.
//!
//! # Limitations
//!
//! **HTTP/2 under `axum::serve` and tonic.** The guard cannot send GOAWAY there, and cannot reset a
//! single stream. (tonic itself sends GOAWAY at a maximum age, which `harden` sets.) So:
//!
//! - a client that closes the window of some streams keeps them for as long as a handler of the
//!   connection is at work, except near the cap;
//! - a connection that is to take no more requests, for its age or their number, is closed after it
//!   was idle for 30 s. A client that is never idle keeps its connection.
//!
//! **HTTP/2 heads.** Unfinished HEADERS after the first complete request are ended by the idle
//! timeout only.
//!
//! **A race at the idle timeout.** A request that begins at the moment when its connection is
//! closed as idle is lost, as with every server. Clients repeat it.
//!
//! **Unread uploads.** If no handler reads an upload that has filled the socket, the client's end
//! of the stream does not arrive. The guard does not notice that the client is gone, and the
//! request lasts for as long as its handler does.
//!
//! **Reading on after the response.** A handler that responds and then reads on in another task is
//! seen to be at work only on HTTP/1, and while 500 bytes a second arrive. On HTTP/2 such an upload
//! has the idle timeout, from its response on.
//!
//! **HTTP/2 under foreign TLS.** Under TLS that is not `palisade::serve`'s own, the bytes of a body
//! cannot be told apart from others, and a flood beside an upload passes.
//!
//! **HTTP/2 tunnels.** hyper reports the end of a tunnel to the guard only under `palisade::serve`.
//! Elsewhere the connection counts as upgraded for as long as it lives. Whenever it has no request
//! in flight, it has the timeout of upgraded connections, which only its DATA extends.
//!
//! **Unread responses.** Responses to pipelined requests that the kernels on both sides hold unread
//! are not counted: that takes an `ioctl` that no safe crate offers. hyper reads no further request
//! while its socket is full, and then the write timeout ends the connection.
//!
//! # Sockets
//!
//! An admitted TCP connection gets
//!
//! - `TCP_NODELAY`;
//! - a first keep-alive probe after 60 s of silence;
//! - a [receive buffer](ConnGuardBuilder::receive_buffer) of 256 KiB, which the kernel doubles. On
//!   Linux it comes from the listener;
//! - at most 64 KiB of unsent bytes (`TCP_NOTSENT_LOWAT`), or a send buffer of 128 KiB where that
//!   option does not exist;
//! - on Linux, a close by the kernel once the client has acknowledged nothing for 30 s, or for 5 s
//!   longer than the write timeout if that is more (`TCP_USER_TIMEOUT`). It is a last resort for
//!   clients that are gone, behind the guard's own rules.
//!
//! The guard does not see connections that are lost before they are accepted. On Linux its gauges
//! therefore include how many connections wait at its listeners, how many may wait, and how many
//! the kernel has lost at any listener. `/proc` is read only when these gauges are sampled.
//!
//! # Cost
//!
//! A read or a write costs two or three loads and stores, and reads no clock. One that is pending
//! also locks the connection's own wakers. One task per guard checks all connections four times a
//! second while there are any. There is no timer per connection.
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
pub use connection::{ConnHandle, decision::CloseMode, response_charge::ResponseCharge};
pub use guard::{
    ConnGuard,
    bound::MemoryBound,
    builder::ConnGuardBuilder,
    limits::CapFrom,
    recent::ClosedConn,
    snapshot::{AcceptErrorCounts, ConnHolder, ConnRates, ConnSnapshot, RequestHolder},
};
#[cfg(feature = "axum")]
pub use integrations::axum::{Connected, ConnectedFuture, ConnectedService, connected, settled};
#[cfg(feature = "tonic")]
pub use integrations::tonic::harden;
#[doc(hidden)]
pub use io::frames::FrameReader;
pub use io::{guarded::GuardedIo, transport::Transport};
pub use palisade_core::{
    Budget, ClientKey, ConfigError, ConfigFault, ConnInfo, Memory, Mode, Network, Phase, Prefix,
    Pressure, Reason, RuntimeLoad,
};
pub use track::{
    body::TrackedBody, future::TrackingFuture, layer::RequestTrackingLayer,
    service::RequestTracking,
};
