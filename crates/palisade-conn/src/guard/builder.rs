//! The builder of a guard: its options, their defaults and their ranges.

mod proxies;

use super::{
    ConnGuard,
    limits::{CapFrom, Growth, Limits, default_cap, default_in_flight},
};
use crate::connection::memory_gate::MemoryGate;
use palisade_client_ip::Trust;
use palisade_core::{
    Budget, ConfigError, Gate, Memory, Mode, Network, Networks, Prefix, Pressure, Recorder,
    RequestHead, RuntimeLoad, shed::PicksRequests,
};
use palisade_guard::Gcra;
use std::{fmt, sync::Arc, time::Duration};

/// Builds a [`ConnGuard`]. Values are checked by [`build`](Self::build), which names every fault at
/// once.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` returns the guard"]
pub struct ConnGuardBuilder {
    mode: Mode,
    recorder: Recorder,
    connections: Option<usize>,
    reserve: usize,
    reserved: Vec<Network>,
    per_client: PerClient,
    per_network: PerNetwork,
    keep_alive: KeepAlive,
    accept_rate: Option<(u32, u32)>,
    accept_rate_per_network: AcceptRatePerNetwork,
    prefix: Prefix,
    first_request: Duration,
    head: Duration,
    idle: Duration,
    upgraded_idle: Duration,
    write_stall: Duration,
    max_age: Option<Duration>,
    age_grace: Option<Duration>,
    max_requests: Option<u32>,
    max_upgraded: Option<usize>,
    max_in_flight: Option<usize>,
    max_cancelled: Option<u16>,
    max_overhead: Option<u32>,
    probe: Option<Duration>,
    receive_buffer: Option<u32>,
    precision: Duration,
    pressure: Pressure,
    memory: Option<Memory>,
    runtime: Option<RuntimeLoad>,
    critical: Picked,
    sheddable: Picked,
    budget: ByteBudget,
    trust: Option<Trust>,
    header_peers: Option<Networks>,
    is_behind_proxy: bool,
    gate: Option<Arc<dyn Gate>>,
}

/// The budget of bytes.
#[derive(Clone, Debug)]
enum ByteBudget {
    /// That of the process, which follows the memory of the process.
    OfProcess,
    Own(Budget),
    Unlimited,
}

/// Tells some requests from the others.
#[derive(Clone)]
struct Picked(Option<PicksRequests>);

impl fmt::Debug for Picked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

/// The limit on the connections of one client.
#[derive(Clone, Copy, Debug)]
enum PerClient {
    /// It follows from the cap and tightens with load.
    Auto,
    Max(u32),
    Unlimited,
}

/// The limit on the connections of one network.
#[derive(Clone, Copy, Debug)]
enum PerNetwork {
    /// This many times the limit of one client.
    TimesClient(u32),
    Max(u32),
    Unlimited,
}

/// The limit on the idle connections of one client.
#[derive(Clone, Copy, Debug)]
enum KeepAlive {
    /// This number near the cap, if there is a limit per client. It tightens with load.
    Auto(u32),
    Max(u32),
    Unlimited,
}

/// The limit on the new connections of one network.
#[derive(Clone, Copy, Debug)]
enum AcceptRatePerNetwork {
    /// This many times the rate and the burst of one client.
    TimesClient(u32),
    /// A rate per second and a burst.
    Max(u32, u32),
    Unlimited,
}

const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);
const MAX_CONNECTIONS: usize = 1 << 24;
const MICROS_PER_SECOND: u32 = 1_000_000;
/// The largest accept rate and burst. A rate is kept as whole microseconds per connection.
const MAX_CONNECTIONS_PER_SECOND: u32 = MICROS_PER_SECOND;
const MAX_OVERHEAD_BYTES: u32 = 1 << 30;
/// Linux doubles the value into a signed number of 32 bits.
const MAX_RECEIVE_BUFFER: u32 = (1 << 30) - 1;
const ALLOWED_TIMEOUT: &str = "1 ms to 24 h";

// === ConnGuardBuilder ===

impl ConnGuardBuilder {
    pub(crate) fn new() -> Self {
        Self {
            mode: Mode::default(),
            recorder: Recorder::default(),
            connections: None,
            reserve: 0,
            reserved: Vec::new(),
            per_client: PerClient::Auto,
            per_network: PerNetwork::TimesClient(4),
            keep_alive: KeepAlive::Auto(8),
            accept_rate: Some((100, 200)),
            accept_rate_per_network: AcceptRatePerNetwork::TimesClient(4),
            prefix: Prefix::default(),
            first_request: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(65),
            upgraded_idle: Duration::from_secs(300),
            write_stall: Duration::from_secs(300),
            max_age: Some(Duration::from_secs(3600)),
            age_grace: None,
            max_requests: Some(10_000),
            max_upgraded: None,
            max_in_flight: None,
            max_cancelled: Some(200),
            max_overhead: Some(256 * 1024),
            probe: Some(Duration::from_secs(5)),
            receive_buffer: Some(256 * 1024),
            precision: Duration::from_millis(250),
            pressure: Pressure::default(),
            memory: Some(Memory::of_process()),
            runtime: Some(RuntimeLoad::default()),
            critical: Picked(None),
            sheddable: Picked(None),
            budget: ByteBudget::OfProcess,
            trust: None,
            header_peers: None,
            is_behind_proxy: false,
            gate: None,
        }
    }

    /// Sets whether the guard enforces its limits, only reports what it would do, or does nothing.
    /// Defaults to [`Mode::Enforce`].
    ///
    /// [`Mode::Shadow`] does not report limits that refuse nothing and only end the keep-alive of a
    /// connection: [`max_age`](Self::max_age) without a grace period,
    /// [`max_requests`](Self::max_requests) and
    /// [`keep_alive_per_client`](Self::keep_alive_per_client).
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Mode, Reason};
    ///
    /// let guard = ConnGuard::builder().mode(Mode::Shadow).max_per_client(1).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// let second = connect(&guard, "192.0.2.1").await?;
    /// assert_eq!(guard.snapshot().open, 2); // Nothing was refused.
    /// let reported = guard.recently_closed()[0];
    /// assert_eq!(reported.reason, Reason::ClientConnectionsFull);
    /// assert_eq!(reported.mode, Mode::Shadow);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the sink for the events and gauges of the guard. Defaults to none.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    /// use palisade_core::{Event, Metrics};
    /// use std::sync::{Arc, Mutex};
    ///
    /// struct Refused(Arc<Mutex<Vec<Reason>>>);
    /// impl Metrics for Refused {
    ///     fn record(&self, event: &Event<'_>) {
    ///         if let Event::Disconnected { violation, .. } = event {
    ///             self.0.lock().unwrap().push(violation.reason);
    ///         }
    ///     }
    /// }
    /// let refused = Arc::default();
    /// let sink = Refused(Arc::clone(&refused));
    /// let guard = ConnGuard::builder().max_per_client(1).metrics(sink).build()?;
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// assert!(connect(&guard, "192.0.2.1").await.is_err());
    /// assert_eq!(*refused.lock().unwrap(), [Reason::ClientConnectionsFull]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = metrics.into();
        self
    }

    /// Limits the connections that are open at once, upgraded ones included.
    ///
    /// From nine tenths of the limit, each new connection evicts the least useful one: see
    /// [eviction](crate#eviction). A new connection that finds no place is reset.
    ///
    /// [`ConnSnapshot::limit_from`] says what the default follows from. With the feature `tracing`
    /// a log line says so when the guard is created.
    ///
    /// Range: 1 to 16,777,216. Defaults to the least of the following, and at least 16:
    ///
    /// - four fifths of the files that this process may open, less 64;
    /// - a quarter of the memory that this process may use, by its control group or on the machine,
    ///   at 64 KiB per connection;
    /// - 10,000.
    ///
    /// [`ConnSnapshot::limit_from`]: crate::ConnSnapshot::limit_from
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_connections(1).build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get(pending::<()>)).await?;
    /// let mut first = TcpStream::connect(server).await?;
    /// first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// # while guard.snapshot().in_flight == 0 { tokio::task::yield_now().await }
    /// // While that request is at work, its connection cannot be evicted.
    /// let mut second = TcpStream::connect(server).await?;
    /// assert_eq!(second.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::ConnectionsFull);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Reserves the last `places` of [`Self::max_connections`] for peers in `networks`: health
    /// checks, monitoring, an operator.
    ///
    /// These peers have no accept rate, no limit per client or network, no limit on idle
    /// connections, and are not refused for the number of requests in flight. Their timeouts are
    /// the same as for other peers. Their connections are evicted only for each other, and only if
    /// no other connection can be evicted.
    ///
    /// Range of `places`: less than [`Self::max_connections`]. Defaults to none.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let monitoring = "10.1.0.0/16".parse()?;
    /// let guard = ConnGuard::builder().max_connections(2).reserve(1, [monitoring]).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// assert!(connect(&guard, "192.0.2.2").await.is_err()); // One place is left, and reserved.
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::ConnectionsFull);
    /// let probe = connect(&guard, "10.1.0.5").await?;
    /// # assert_eq!(guard.snapshot().open, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reserve(mut self, places: usize, networks: impl IntoIterator<Item = Network>) -> Self {
        self.reserve = places;
        self.reserved = networks.into_iter().collect();
        self
    }

    /// Limits the open connections of one client.
    ///
    /// At the limit, a new connection evicts the least useful one of the same client. It is reset
    /// if none can be evicted.
    ///
    /// `None` removes the limit, for a server behind proxies, and with it the limits per network
    /// and on idle connections, unless they are set.
    ///
    /// Range: at least 1, or `None`. Defaults to a limit that tightens with load:
    ///
    /// - while places are plentiful, half of the places that are left below nine tenths of
    ///   [`Self::max_connections`], which is three tenths of all for a client alone;
    /// - near the cap, a hundredth of all places, at least 64. Connections above it are then among
    ///   the first to be evicted, whatever they do.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_per_client(1).build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get(pending::<()>)).await?;
    /// let mut first = TcpStream::connect(server).await?;
    /// first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// # while guard.snapshot().in_flight == 0 { tokio::task::yield_now().await }
    /// // The client has its share, with a request at work.
    /// let mut second = TcpStream::connect(server).await?;
    /// assert_eq!(second.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::ClientConnectionsFull);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_per_client(mut self, connections: impl Into<Option<u32>>) -> Self {
        self.per_client = match connections.into() {
            Some(connections) => PerClient::Max(connections),
            None => PerClient::Unlimited,
        };
        self
    }

    /// Sets the options for a server behind your own proxies or balancers, each with many clients.
    ///
    /// That is no [limit per client](Self::max_per_client), no [accept rate](Self::accept_rate), no
    /// [limit on cancelled requests](Self::max_cancelled), and 620 s for [idle](Self::idle_timeout)
    /// connections, which is longer than most balancers keep their own (Envoy an hour, Cloudflare
    /// 900 s). These replace earlier values.
    /// The guard cannot tell apart the clients behind a proxy. The layers can, by the address that
    /// the proxy forwards.
    ///
    /// Without this option, the guard reports if more than nine in ten requests have the headers of
    /// a proxy: once to the metrics, once in the log with the feature `tracing`, and as a gauge.
    /// Clients can send these headers themselves, and so can a flood. Check whether the few clients
    /// with the most connections are your proxies.
    ///
    /// Defaults to the options for a server without a proxy.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_per_client(1).behind_proxy().build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let proxy = [connect(&guard, "10.0.0.1").await?, connect(&guard, "10.0.0.1").await?];
    /// # assert_eq!(guard.snapshot().open, 2);
    ///
    /// // Options that are set later hold.
    /// let guard = ConnGuard::builder().behind_proxy().max_per_client(1).build()?;
    /// let first = connect(&guard, "10.0.0.1").await?;
    /// assert!(connect(&guard, "10.0.0.1").await.is_err());
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::ClientConnectionsFull);
    /// # Ok(())
    /// # }
    /// ```
    pub fn behind_proxy(mut self) -> Self {
        self.is_behind_proxy = true;
        let proxied = self
            .max_per_client(None)
            .accept_rate(None)
            .max_cancelled(None);
        proxied.idle_timeout(Duration::from_secs(620))
    }

    /// Limits the open connections of one network: the /24 or /48 of a client.
    ///
    /// At the limit, a new connection evicts one of the same network, the least useful of those
    /// that are examined. It is reset if none can be evicted.
    ///
    /// `None` removes the limit, for a server with most of its clients in one network.
    ///
    /// Range: at least 1, or `None`. Defaults to four times the limit of one client, which tightens
    /// with load in the same way, and to no limit if there is none per client.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_per_network(1).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "192.0.2.1").await?;
    /// assert!(connect(&guard, "192.0.2.2").await.is_err()); // In the same /24.
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::NetworkConnectionsFull);
    /// let other = connect(&guard, "198.51.100.1").await?;
    /// # assert_eq!(guard.snapshot().open, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_per_network(mut self, connections: impl Into<Option<u32>>) -> Self {
        self.per_network = match connections.into() {
            Some(connections) => PerNetwork::Max(connections),
            None => PerNetwork::Unlimited,
        };
        self
    }

    /// Limits the idle connections that one client keeps.
    ///
    /// A connection counts once it has been idle for 1 s. The older ones beyond the limit take no
    /// more requests: an HTTP/1 response says `Connection: close`, and the connection is closed
    /// with a FIN once it has been idle for 5 s. Connections at work do not count, so a load test
    /// is not slowed down. A browser keeps 6.
    ///
    /// `None` removes the limit, for a server behind proxies.
    ///
    /// Range: any number, or `None`. Defaults to a limit that tightens with load: a quarter of the
    /// places that are left below nine tenths of [`Self::max_connections`], near the cap 8, and no
    /// limit if there is none per client. So no idle connection is closed early while there are
    /// places.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().keep_alive_per_client(1).build()?;
    /// // Two connections of one client. A request was answered on each.
    /// let (_client, older, mut service) = tracked(&guard, hello).await?;
    /// let (_other_client, newer, mut other) = tracked(&guard, hello).await?;
    /// service.call(Request::new(String::new())).await?;
    /// other.call(Request::new(String::new())).await?;
    /// tokio::time::sleep(Duration::from_secs(2)).await; // Of tokio's paused clock.
    /// assert_eq!(older.conn().closing(), Some(Reason::KeepAlivePerClient));
    /// assert_eq!(newer.conn().closing(), None);
    /// let response = service.call(Request::new(String::new())).await?; // On the older one.
    /// assert_eq!(response.headers()["connection"], "close");
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_alive_per_client(mut self, connections: impl Into<Option<u32>>) -> Self {
        self.keep_alive = match connections.into() {
            Some(connections) => KeepAlive::Max(connections),
            None => KeepAlive::Unlimited,
        };
        self
    }

    /// Limits the new connections of one client to a number per second and a burst at once.
    ///
    /// A connection beyond the rate is reset. The guard keeps a table of 65,536 clients, which
    /// takes 512 KiB and is allocated at once.
    ///
    /// `None` removes the limit, for a server behind proxies, and with it the limit for networks,
    /// unless it is set.
    ///
    /// Range of both: 1 to 1,000,000, or `None`. Defaults to 100 and 200.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().accept_rate((1, 2)).build()?;
    /// // Four connections of one client.
    /// let peer = Some("192.0.2.1:4711".parse()?);
    /// let (_client_1, first) = pair().await?;
    /// let (_client_2, second) = pair().await?;
    /// let (mut client_3, third) = pair().await?;
    /// let (_client_4, fourth) = pair().await?;
    /// let burst = [guard.admit(first, peer, None)?, guard.admit(second, peer, None)?];
    /// let refused = guard.admit(third, peer, None).unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    /// assert_eq!(client_3.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::AcceptRate);
    /// tokio::time::sleep(Duration::from_secs(1)).await; // Of tokio's paused clock.
    /// guard.admit(fourth, peer, None)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_rate(mut self, per_second_and_burst: impl Into<Option<(u32, u32)>>) -> Self {
        self.accept_rate = per_second_and_burst.into();
        self
    }

    /// Limits the new connections of one network, the /24 or /48 of a client, to a number per
    /// second and a burst at once. Without it, a /48 would have 65,536 clients with a rate of their
    /// own.
    ///
    /// A connection beyond the rate is reset.
    ///
    /// `None` removes the limit.
    ///
    /// Range of both: 1 to 1,000,000, or `None`. Defaults to four times the rate and the burst of
    /// one client.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().accept_rate_per_network((1, 2)).build()?;
    /// let (_client_1, first) = pair().await?;
    /// let (_client_2, second) = pair().await?;
    /// let (_client_3, third) = pair().await?;
    /// let (_client_4, other) = pair().await?;
    /// let peer = |address: &str| Some((address.parse::<std::net::Ipv4Addr>().unwrap(), 1).into());
    /// let first = guard.admit(first, peer("192.0.2.1"), None)?;
    /// let second = guard.admit(second, peer("192.0.2.2"), None)?;
    /// assert!(guard.admit(third, peer("192.0.2.3"), None).is_err());
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::AcceptRate);
    /// let other = guard.admit(other, peer("198.51.100.1"), None)?; // Of another network.
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_rate_per_network(
        mut self,
        per_second_and_burst: impl Into<Option<(u32, u32)>>,
    ) -> Self {
        self.accept_rate_per_network = match per_second_and_burst.into() {
            Some((per_second, burst)) => AcceptRatePerNetwork::Max(per_second, burst),
            None => AcceptRatePerNetwork::Unlimited,
        };
        self
    }

    /// Sets how many bits of an address identify a client. Defaults to a whole IPv4 address and an
    /// IPv6 /64.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Prefix, Reason};
    ///
    /// // A provider gives each of its customers an IPv6 /56.
    /// let prefix = Prefix::new(32, 56).ok_or("out of range")?;
    /// let guard = ConnGuard::builder().prefix(prefix).max_per_client(1).build()?;
    /// // `connect` admits a connection of this client, with a request at work.
    /// let first = connect(&guard, "2001:db8:0:100::1").await?;
    /// assert!(connect(&guard, "2001:db8:0:1ff::1").await.is_err()); // The same client.
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::ClientConnectionsFull);
    /// let other = connect(&guard, "2001:db8:0:200::1").await?;
    /// # assert_eq!(guard.snapshot().distinct_clients, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// Limits the time from accept to the end of the first request head.
    ///
    /// It is one deadline for silence, protocol detection, the TLS handshake, an incomplete preface
    /// and an incomplete head. A connection that misses it is reset. If an HTTP/1 head has begun in
    /// plain text, it is answered with 408 and closed with a FIN instead. A client that connects
    /// ahead of need is closed as well, and connects again when it has a request.
    ///
    /// Range: 1 ms to 24 h. Defaults to 10 s.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder()
    ///     .first_request_timeout(Duration::from_millis(100))
    /// #   .sweep_interval(Duration::from_millis(10))
    ///     .build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get("hello")).await?;
    /// let mut silent = TcpStream::connect(server).await?;
    /// let mut slow = TcpStream::connect(server).await?;
    /// slow.write_all(b"GET / HTTP/1.1\r\nhost:").await?; // The head never ends.
    /// let mut answer = String::new();
    /// slow.read_to_string(&mut answer).await?;
    /// assert!(answer.starts_with("HTTP/1.1 408 "));
    /// assert_eq!(silent.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert!(guard.recently_closed().iter().all(|conn| conn.reason == Reason::FirstRequest));
    /// # Ok(())
    /// # }
    /// ```
    pub fn first_request_timeout(mut self, timeout: Duration) -> Self {
        self.first_request = timeout;
        self
    }

    /// Limits the time from the first byte of a later request head to its end. HTTP/1 only, because
    /// the bytes of HTTP/2 may be anything.
    ///
    /// A connection that misses it ends as with [`Self::first_request_timeout`]. Not all bytes
    /// begin a head:
    ///
    /// - bytes that arrive before the sweeper has seen the connection idle may belong to the
    ///   previous request. They count as idle;
    /// - the rest of a body of declared length has the idle timeout, which is extended while 500
    ///   bytes a second arrive;
    /// - behind a body of unknown length, chunked or pipelined, bytes at that rate may be the rest
    ///   of it. They extend this timeout.
    ///
    /// Range: 1 ms to 24 h. Defaults to 10 s.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().header_timeout(Duration::from_secs(5)).build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get("hello")).await?;
    /// let mut client = TcpStream::connect(server).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// client.read(&mut [0; 1024]).await?; // The first response.
    /// tokio::time::sleep(Duration::from_secs(1)).await; // Of tokio's paused clock.
    /// client.write_all(b"GET /").await?; // A second head, which never ends.
    /// let mut answer = String::new();
    /// client.read_to_string(&mut answer).await?;
    /// assert!(answer.starts_with("HTTP/1.1 408 "));
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::SlowHead);
    /// # Ok(())
    /// # }
    /// ```
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.head = timeout;
        self
    }

    /// Limits the time for which nothing is in flight.
    ///
    /// The connection is closed with a FIN. An HTTP/2 client receives GOAWAY a second before, if
    /// the server can send it. Bytes that do not complete a request, answers to PING among them, do
    /// not extend the time. A response that the client still receives does. Behind a balancer,
    /// choose 5 s more than its own idle timeout.
    ///
    /// Range: 1 ms to 24 h. Defaults to 65 s.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder()
    ///     .idle_timeout(Duration::from_millis(100))
    /// #   .sweep_interval(Duration::from_millis(10))
    ///     .build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get("hello")).await?;
    /// let mut client = TcpStream::connect(server).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// let mut answer = String::new();
    /// client.read_to_string(&mut answer).await?; // Returns at the FIN.
    /// assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"));
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::Idle);
    /// # Ok(())
    /// # }
    /// ```
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle = timeout;
        self
    }

    /// Limits the time for which an upgraded connection is silent in both directions. Any byte ends
    /// the silence.
    ///
    /// The connection is closed with a FIN.
    ///
    /// Range: 1 ms to 24 h. Defaults to 5 min.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Phase, Reason};
    ///
    /// let timeout = Duration::from_secs(30);
    /// let guard = ConnGuard::builder().upgraded_idle_timeout(timeout).build()?;
    /// let (mut client, socket) = pair().await?;
    /// let mut io = guard.admit(socket, None, None)?;
    /// io.conn().upgrade().map_err(|_| "too many upgrades")?; // `palisade::serve` does this.
    /// let started = tokio::time::Instant::now();
    /// assert_eq!(io.read(&mut [0]).await?, 0); // The end of the stream.
    /// assert!(started.elapsed() >= timeout); // Of tokio's paused clock.
    /// drop(io);
    /// assert_eq!(client.read(&mut [0]).await?, 0);
    /// let closed = guard.recently_closed()[0];
    /// assert_eq!((closed.reason, closed.phase), (Reason::Idle, Phase::Upgraded));
    /// # Ok(())
    /// # }
    /// ```
    pub fn upgraded_idle_timeout(mut self, timeout: Duration) -> Self {
        self.upgraded_idle = timeout;
        self
    }

    /// Limits the time for which a client takes less than 500 bytes a second of the bytes that wait
    /// for it. On HTTP/2, it also limits the time for which all responses wait for their windows,
    /// at less than that rate.
    ///
    /// The connection is reset. Near the cap the time shrinks, at last to 10 s, and a connection
    /// that has stalled for 4 s may be evicted. A receive window opens in large steps, of up to a
    /// sixteenth of its buffer: a client that reads 2,000 B/s may take nothing for three minutes,
    /// and then 384 KiB at once.
    ///
    /// Range: 1 ms to 24 h. Defaults to 5 min.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().write_timeout(Duration::from_secs(30)).build()?;
    /// let (mut client, socket) = pair().await?;
    /// let mut io = guard.admit(socket, None, None)?;
    /// client.write_u8(b'?').await?;
    /// io.read_u8().await?;
    /// // The client reads nothing, and the response exceeds all buffers.
    /// let error = io.write_all(&vec![0; 64 << 20]).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    /// drop(io);
    /// let read = client.read_to_end(&mut Vec::new()).await;
    /// assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::WriteStall);
    /// # Ok(())
    /// # }
    /// ```
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_stall = timeout;
        self
    }

    /// Limits the age of a connection, give or take a tenth.
    ///
    /// A connection at its age takes no more requests. On HTTP/1, the next response says
    /// `Connection: close`. On HTTP/2, the client receives GOAWAY if the server can send it, and
    /// the connection is closed once it has been idle for 5 s. Other servers close it with a FIN
    /// once it has been idle for 30 s, because its client may be about to use it. Upgraded
    /// connections have no age.
    ///
    /// Range: 1 ms to 30 days, or `None` for no limit. Defaults to 1 h.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_age(Duration::from_secs(30)).build()?;
    /// // A connection, and a handler with `RequestTracking` around it.
    /// let (client, io, mut service) = tracked(&guard, hello).await?;
    /// let response = service.call(Request::new(String::new())).await?;
    /// assert!(!response.headers().contains_key("connection"));
    /// drop(response);
    /// tokio::time::sleep(Duration::from_secs(34)).await; // Of tokio's paused clock.
    /// let response = service.call(Request::new(String::new())).await?;
    /// assert_eq!(response.headers()["connection"], "close");
    /// assert_eq!(io.conn().closing(), Some(Reason::MaxAge));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.max_age = age.into();
        self
    }

    /// Limits the time after the [age](Self::max_age) for which a connection may have requests in
    /// flight.
    ///
    /// Then the connection is reset. That ends long downloads, event streams and gRPC streams as
    /// well, so choose a time that is longer than the longest of them.
    ///
    /// Range: 0 to 24 h. Defaults to no limit: requests in flight continue to their end.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let (age, grace) = (Duration::from_secs(30), Duration::from_secs(10));
    /// let guard = ConnGuard::builder().max_age(age).age_grace(grace).build()?;
    /// // A connection, and a handler with `RequestTracking` around it.
    /// let (mut client, mut io, mut service) = tracked(&guard, hello).await?;
    /// // The response is not read to its end, so its request stays in flight.
    /// let response = service.call(Request::new(String::new())).await?;
    /// let error = io.read(&mut [0]).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    /// drop(io);
    /// assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::MaxAge);
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    pub fn age_grace(mut self, grace: Duration) -> Self {
        self.age_grace = Some(grace);
        self
    }

    /// Limits the requests of one connection. Needs [request tracking](crate#request-tracking).
    ///
    /// On HTTP/1, the last response says `Connection: close`. On HTTP/2, the connection ends as at
    /// its [age](Self::max_age).
    ///
    /// Range: at least 1, or `None` for no limit. Defaults to 10,000.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::builder().max_requests(2).build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get("hello")).await?;
    /// let mut client = TcpStream::connect(server).await?;
    /// for _ in 0..3 {
    ///     client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    /// }
    /// let mut answers = String::new();
    /// client.read_to_string(&mut answers).await?; // Until the server closes the connection.
    /// assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 2);
    /// assert_eq!(answers.matches("connection: close").count(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_requests(mut self, requests: impl Into<Option<u32>>) -> Self {
        self.max_requests = requests.into();
        self
    }

    /// Limits the connections that are upgraded at once. Needs
    /// [request tracking](crate#request-tracking).
    ///
    /// Beyond the limit, a request gets 503 in place of its 101 or its successful `CONNECT`, and
    /// its handler learns that the upgrade has failed. An HTTP/2 connection that carries a tunnel
    /// counts until its last tunnel ends under `palisade::serve`, and elsewhere for as long as it
    /// lives. Every other rule applies beside the tunnel.
    ///
    /// A client may always have one upgraded connection. It may have more while it has no more than
    /// it leaves of three quarters of the limit. Where peers are not clients
    /// ([`Self::behind_proxy`]), only the total is limited.
    ///
    /// Range: at least 1. Defaults to a quarter of [`Self::max_connections`].
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::builder().max_upgraded(1).build()?;
    /// // Two connections, and a handler that responds with 101.
    /// let (_client, _io, mut first) = tracked(&guard, upgrade).await?;
    /// let (_other_client, _other_io, mut second) = tracked(&guard, upgrade).await?;
    /// assert_eq!(first.call(Request::new(String::new())).await?.status(), 101);
    /// assert_eq!(second.call(Request::new(String::new())).await?.status(), 503);
    /// assert_eq!(guard.snapshot().upgraded, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_upgraded(mut self, connections: usize) -> Self {
        self.max_upgraded = Some(connections);
        self
    }

    /// Limits the requests in flight on all connections together. Needs
    /// [request tracking](crate#request-tracking).
    ///
    /// Beyond the limit, a request is refused at its head with 503 and `Retry-After`.
    ///
    /// A connection may always have one request in flight. It may have more while its client has no
    /// more than it leaves of three quarters of the limit. A client alone may have three eighths of
    /// the limit, and a client beside three others that ask for all they can get three twentieths.
    /// So a client with one request at a time is not refused because others have thousands, as long
    /// as the limit is at least four times [`Self::max_connections`]. Where peers are not clients
    /// ([`Self::behind_proxy`], a Unix socket), only the total is limited.
    ///
    /// Range: at least 1. Defaults to four times [`Self::max_connections`], and at least 1,024 or
    /// as many as fit into an eighth of the [memory](Self::memory) at 8 KiB each, whichever is
    /// less. A head takes no more without a charge to the [budget](Self::byte_budget).
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::builder().max_in_flight(1).build()?;
    /// // A connection, and a handler with `RequestTracking` around it.
    /// let (client, io, mut service) = tracked(&guard, hello).await?;
    /// let first = service.call(Request::new(String::new())).await?;
    /// // The body of the first response is not sent yet.
    /// let second = service.call(Request::new(String::new())).await?;
    /// assert_eq!(second.status(), 503);
    /// assert_eq!(second.headers()["retry-after"], "1");
    /// drop((first, second));
    /// assert_eq!(service.call(Request::new(String::new())).await?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = Some(requests);
        self
    }

    /// Limits the requests that one connection cancels within about a second of their start, before
    /// their response head. Needs [request tracking](crate#request-tracking).
    ///
    /// Twenty are forgiven every second, so a search while typing never reaches the limit. The
    /// limit applies once more than half of all ended requests of the connection were cancelled.
    /// Then the client receives GOAWAY if the server can send it, and the connection is reset at
    /// twice the limit. Other servers reset it at once. The second may be up to one sweep longer.
    ///
    /// Range: 1 to 65,535, or `None` for no limit. Defaults to 200.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().max_cancelled(50).build()?;
    /// // A connection, and a handler that never responds.
    /// let (mut client, mut io, mut service) = tracked(&guard, never).await?;
    /// for _ in 0..100 {
    ///     drop(service.call(request(Version::HTTP_2))); // As after RST_STREAM.
    /// }
    /// let error = io.read(&mut [0]).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    /// drop(io);
    /// assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::CancelledRequests);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_cancelled(mut self, requests: impl Into<Option<u16>>) -> Self {
        self.max_cancelled = requests.into();
        self
    }

    /// Limits the HTTP/2 bytes of a connection that carry no request on: PING, SETTINGS, window
    /// updates, priorities, unknown frames. Needs [request tracking](crate#request-tracking).
    ///
    /// The connection is reset. Some bytes are free:
    ///
    /// - 16 KiB for every second;
    /// - 32 KiB for every request, as much as its head may have under `palisade::serve` and
    ///   `harden`;
    /// - one byte for every eight that the server sends.
    ///
    /// DATA does not count, because windows limit it. Where frames cannot be told apart, under TLS
    /// that is not `palisade::serve`'s own, nothing counts while a request with a body is in
    /// flight, nor for 64 MiB after it. Before the first request, all bytes count.
    ///
    /// Range: 1 KiB to 1 GiB, or `None` for no limit. Defaults to 256 KiB.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder()
    ///     .max_overhead(1024)
    /// #   .sweep_interval(Duration::from_millis(10))
    ///     .build()?;
    /// let (mut client, socket) = pair().await?;
    /// let mut io = guard.admit(socket, None, None)?;
    /// io.conn().set_tracked(); // `palisade::serve` does this.
    /// client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    /// let ping = b"\0\0\x08\x06\0\0\0\0\0palisade";
    /// client.write_all(&ping.repeat(6000)).await?; // 100 KiB.
    /// let error = io.read_to_end(&mut Vec::new()).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    /// drop(io);
    /// assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::NoProgress);
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_overhead(mut self, bytes: impl Into<Option<u32>>) -> Self {
        self.max_overhead = bytes.into();
        self
    }

    /// Sets how often the guard checks whether the client of an HTTP/1 request at work has hung up.
    ///
    /// If it has, the connection is reset. hyper itself does not notice if the client has sent even
    /// one byte more than its request. Each check is one system call, on Linux only. A client that
    /// has closed only its own direction counts as gone, as it does for hyper, unless the server
    /// allows it: `HttpBuilder::half_close` of `palisade_serve`.
    ///
    /// Range: 1 ms to 24 h, or `None` for no check. Defaults to every 5 s.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(target_os = "linux"))] fn main() {}
    /// # #[cfg(target_os = "linux")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder()
    ///     .probe_interval(Duration::from_millis(50))
    /// #   .sweep_interval(Duration::from_millis(10))
    ///     .build()?;
    /// // The address of an `axum::serve` behind the guard, with this handler.
    /// let server = serve(&guard, get(pending::<()>)).await?;
    /// let mut client = TcpStream::connect(server).await?;
    /// client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nG").await?; // One byte more.
    /// # while guard.snapshot().in_flight == 0 { tokio::task::yield_now().await }
    /// drop(client);
    /// // The handler would never return.
    /// while guard.snapshot().open > 0 {
    ///     tokio::time::sleep(Duration::from_millis(5)).await;
    /// }
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::HungUp);
    /// # Ok(())
    /// # }
    /// ```
    pub fn probe_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.probe = interval.into();
        self
    }

    /// Limits the bytes that the kernel keeps of a TCP connection until the server reads them
    /// (`SO_RCVBUF`). Otherwise Linux keeps megabytes of a client that is read fast for a while and
    /// then not at all, and a control group of version 2 counts them.
    ///
    /// This is also about the most that a client can upload in one round trip: 256 KiB are 3 MB/s
    /// at 100 ms. `None` leaves the size to the kernel, for fast uploads over long distances.
    ///
    /// [`ConnGuard::bind`] and [`ConnGuard::listen`] set it on the listener. On Linux accepted
    /// connections have it from there, without a system call for each. Elsewhere, and for
    /// [`ConnGuard::admit`], it is set on the connection. Connections that were waiting at a
    /// listener before [`ConnGuard::listen`] keep what they have. While 80 % of the
    /// [memory](crate#memory) are in use, new connections get 64 KiB, if that is less, and so do
    /// those of which the server leaves as much unread while the memory grows. They keep that.
    ///
    /// Linux allows at most `net.core.rmem_max`, which is 208 KiB on older kernels, and uses up to
    /// twice the value. Only [`Mode::Enforce`] sets it.
    ///
    /// Range: 4 KiB to 1 GiB less a byte, or `None`. Defaults to 256 KiB.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(target_os = "linux"))] fn main() {}
    /// # #[cfg(target_os = "linux")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use socket2::SockRef;
    ///
    /// let guard = ConnGuard::builder().receive_buffer(128 * 1024).build()?;
    /// let mut listener = guard.bind("127.0.0.1:0").await?;
    /// let client = TcpStream::connect(listener.local_addr()?).await?;
    /// let (io, _) = listener.accept().await?;
    /// // Linux returns twice the value, for its own bookkeeping (socket(7)).
    /// assert_eq!(SockRef::from(io.get_ref()).recv_buffer_size()?, 256 * 1024);
    /// # drop(client);
    /// # Ok(())
    /// # }
    /// ```
    pub fn receive_buffer(mut self, bytes: impl Into<Option<u32>>) -> Self {
        self.receive_buffer = bytes.into();
        self
    }

    /// Sets the interval between two sweeps, each of which checks every connection.
    ///
    /// No deadline is early, and each is at most two intervals late. That of a silent connection is
    /// up to ten seconds later if its task does not run.
    ///
    /// Range: 1 ms to 10 s. Defaults to 250 ms.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use tokio::time::Instant;
    ///
    /// let (interval, timeout) = (Duration::from_secs(1), Duration::from_millis(5500));
    /// let guard = ConnGuard::builder()
    ///     .sweep_interval(interval)
    ///     .upgraded_idle_timeout(timeout)
    ///     .build()?;
    /// let (_client, socket) = pair().await?;
    /// let started = Instant::now();
    /// let mut io = guard.admit(socket, None, None)?;
    /// io.conn().upgrade().map_err(|_| "too many upgrades")?;
    /// // An upgraded connection from which nothing arrives.
    /// assert_eq!(io.read(&mut [0]).await?, 0);
    /// let after = started.elapsed(); // Of tokio's paused clock.
    /// assert!((timeout..=timeout + 2 * interval).contains(&after), "{after:?}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn sweep_interval(mut self, interval: Duration) -> Self {
        self.precision = interval;
        self
    }

    /// Sets the pressure on the process beside that of its connections.
    ///
    /// Above 0.8, timeouts shrink: see [under pressure](crate#under-pressure). All clones of
    /// `pressure` share the value, so keep one to set it.
    ///
    /// Defaults to a pressure that stays 0.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Pressure, Reason};
    ///
    /// let pressure = Pressure::default();
    /// let guard = ConnGuard::builder().pressure(pressure.clone()).build()?;
    /// pressure.set(1.0); // Memory is nearly used up.
    /// let (_client, socket) = pair().await?;
    /// let mut io = guard.admit(socket, None, None)?;
    /// // A silent connection.
    /// assert_eq!(io.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    /// let closed = guard.recently_closed()[0];
    /// assert_eq!((closed.reason, closed.limit), (Reason::FirstRequest, 3000)); // Not 10,000 ms.
    /// # Ok(())
    /// # }
    /// ```
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        self.pressure = pressure;
        self
    }

    /// Sets the memory that the guard protects. See [while memory is short](crate#memory).
    ///
    /// `None` removes this protection. Defaults to [`Memory::of_process`], which knows the control
    /// groups of the process.
    ///
    /// ```
    /// # use palisade_conn::{ConnGuard, Memory};
    /// // The bytes that jemalloc has allocated, for example.
    /// # fn allocated() -> Option<u64> { Some(475 << 20) }
    /// let memory = Memory::with_source(512 << 20, allocated)?;
    /// let guard = ConnGuard::builder().memory(memory).build()?;
    /// // Above a pressure of 0.8 timeouts are shorter.
    /// assert!(guard.snapshot().pressure > 0.9);
    /// # Ok::<_, palisade_conn::ConfigError>(())
    /// ```
    pub fn memory(mut self, memory: impl Into<Option<Memory>>) -> Self {
        self.memory = memory.into();
        self
    }

    /// Sets the load of the runtime by which requests are refused. See
    /// [overload of the runtime](crate#overload-of-the-runtime).
    ///
    /// `None` removes this protection. Defaults to a [`RuntimeLoad`] that watches the runtimes in
    /// which the guard admits connections. Guards with clones of one share what they see.
    ///
    /// ```
    /// use palisade_conn::{ConnGuard, RuntimeLoad};
    /// use std::time::Duration;
    ///
    /// let load = RuntimeLoad::default();
    /// let guard = ConnGuard::builder().runtime_load(load.clone()).build()?;
    /// assert_eq!((load.share(), load.delay()), (1.0, Duration::ZERO)); // For your dashboard.
    /// # Ok::<_, palisade_conn::ConfigError>(())
    /// ```
    pub fn runtime_load(mut self, load: impl Into<Option<RuntimeLoad>>) -> Self {
        self.runtime = load.into();
        self
    }

    /// Sets the budget of bytes of what is held for requests. As it fills, timeouts shrink: see
    /// [under pressure](crate#under-pressure). A large head of HTTP/2 that finds no room is refused
    /// with 503, and so is a body that finds none under `palisade::serve`, if no layer charges it.
    /// Under other servers the connection of an HTTP/1 body is reset then. The reason is
    /// [`Reason::BytesFull`](crate::Reason). Under `palisade::serve`, HTTP/2 responses wait if
    /// their connection leaves others unread and half of the budget is held.
    ///
    /// What hyper keeps of a head is several times its bytes on the wire: a field takes up to 224
    /// bytes beyond its name and value. A head of HTTP/2 that takes more than 8 KiB so is charged
    /// until its request ends. A head of HTTP/1 is not charged. `None` removes all of it. Defaults
    /// to [`Budget::of_process`], which layers charge request bodies to as well.
    ///
    /// A server that takes many large uploads at once without a layer, and passes them on, needs a
    /// larger budget: each of them is charged up to 4 MiB.
    ///
    /// Range: at most the [limit](Memory::least_limit) of the [memory](Self::memory).
    pub fn byte_budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.budget = match budget.into() {
            Some(budget) => ByteBudget::Own(budget),
            None => ByteBudget::Unlimited,
        };
        self
    }

    /// Sets the requests that are never refused while [memory is short](crate#memory) or the
    /// [runtime is overloaded](crate#overload-of-the-runtime), such as health checks. Match on
    /// something that a client cannot forge, or that costs nothing to answer. A health check that
    /// connects anew each time also needs a [reserved](Self::reserve) network: a new connection may
    /// be reset before its request is read. Defaults to no requests.
    pub fn critical(
        mut self,
        is_critical: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.critical = Picked(Some(Arc::new(is_critical)));
        self
    }

    /// Sets the requests that are refused first while [memory is short](crate#memory), such as
    /// prefetches and exports: from 92 % on, and not from 95 %, if they are outside of the share.
    /// One that is also [critical](Self::critical) is not refused. Defaults to no requests.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Memory};
    ///
    /// let memory = Memory::reported(1000)?;
    /// let guard = ConnGuard::builder()
    ///     .memory(memory.clone())
    ///     .sheddable(|head| head.uri.path() == "/export")
    ///     .build()?;
    /// for used in [900, 920, 940] {
    ///     memory.report(used); // It grows. A quarter of the requests is inside of the share.
    /// }
    /// // A connection, and a handler with `RequestTracking` around it.
    /// let (_client, _io, mut service) = tracked(&guard, hello).await?;
    /// for (path, refused) in [("/", 0), ("/export", 12)] {
    ///     let mut statuses = Vec::new();
    ///     for _ in 0..16 {
    ///         let request = Request::builder().uri(path).body(String::new())?;
    ///         statuses.push(service.call(request).await?.status());
    ///     }
    ///     assert_eq!(statuses.iter().filter(|status| **status == 503).count(), refused);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn sheddable(
        mut self,
        is_sheddable: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.sheddable = Picked(Some(Arc::new(is_sheddable)));
        self
    }

    /// Builds the guard.
    ///
    /// ```
    /// use palisade_conn::ConnGuard;
    /// use std::time::Duration;
    ///
    /// let refused = ConnGuard::builder().max_requests(0).idle_timeout(Duration::ZERO).build();
    /// let error = refused.unwrap_err();
    /// let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    /// assert_eq!(fields, ["idle_timeout", "max_requests"]);
    /// assert!(error.to_string().contains("max_requests is 0, allowed is at least 1"));
    /// ```
    ///
    /// # Errors
    ///
    /// If a value is out of its range. The error names every such value.
    pub fn build(self) -> Result<ConnGuard, ConfigError> {
        let memory = self.memory.clone().unwrap_or_else(Memory::of_process);
        let (connections, connections_from) = match self.connections {
            Some(connections) => (connections, CapFrom::Configured),
            None => default_cap(&memory),
        };
        self.check(connections)?;
        let per_client = match self.per_client {
            PerClient::Auto => Some(u32::try_from(connections / 100).unwrap_or(u32::MAX).max(64)),
            PerClient::Max(max) => Some(max),
            PerClient::Unlimited => None,
        };
        let per_network = match self.per_network {
            PerNetwork::TimesClient(times) => per_client.map(|max| max.saturating_mul(times)),
            PerNetwork::Max(max) => Some(max),
            PerNetwork::Unlimited => None,
        };
        let accept_rate = self.accept_rate;
        let accept_rate_per_network = match self.accept_rate_per_network {
            AcceptRatePerNetwork::TimesClient(times) => {
                let multiply =
                    |number: u32| number.saturating_mul(times).min(MAX_CONNECTIONS_PER_SECOND);
                accept_rate.map(|(rate, burst)| (multiply(rate), multiply(burst)))
            }
            AcceptRatePerNetwork::Max(rate, burst) => Some((rate, burst)),
            AcceptRatePerNetwork::Unlimited => None,
        };
        let client_grows = matches!(self.per_client, PerClient::Auto);
        let grows = Growth {
            per_client: client_grows,
            per_network: client_grows && matches!(self.per_network, PerNetwork::TimesClient(_)),
            keep_alive: matches!(self.keep_alive, KeepAlive::Auto(_)),
        };
        let limits = Limits {
            mode: self.mode,
            connections,
            connections_from,
            reserve: self.reserve,
            reserved: self.reserved.into(),
            per_client,
            per_network,
            keep_alive: match self.keep_alive {
                KeepAlive::Auto(max) => per_client.map(|_| max),
                KeepAlive::Max(max) => Some(max),
                KeepAlive::Unlimited => None,
            },
            gate: self.gate,
            // `check` has verified that neither is 0. Their product is at most 2^40.
            accept_rate: accept_rate.and_then(|(rate, burst)| gcra(rate, burst)),
            accept_rate_per_network: accept_rate_per_network
                .and_then(|(rate, burst)| gcra(rate, burst)),
            grows,
            prefix: self.prefix,
            first_request: millis(self.first_request),
            head: millis(self.head),
            idle: millis(self.idle),
            upgraded_idle: millis(self.upgraded_idle),
            write_stall: millis(self.write_stall),
            max_age: self.max_age.map(millis),
            age_grace: self.age_grace.map(millis),
            max_requests: self.max_requests,
            max_upgraded: self.max_upgraded.unwrap_or((connections / 4).max(1)),
            max_in_flight: self
                .max_in_flight
                .unwrap_or_else(|| default_in_flight(connections, &memory)),
            max_cancelled: self.max_cancelled,
            max_overhead: self.max_overhead,
            probe: self.probe.map(millis),
            // Like the timeout of the kernel, it changes what clients get.
            receive_buffer: self.receive_buffer.filter(|_| self.mode == Mode::Enforce),
            tick: self.precision,
        };
        let runtime = self.runtime.filter(|_| self.mode != Mode::Off);
        if let Some(load) = &runtime {
            load.record_to(&self.recorder);
        }
        let budget = match self.budget {
            ByteBudget::OfProcess => Some(Budget::of_process()),
            ByteBudget::Own(budget) => Some(budget),
            ByteBudget::Unlimited => None,
        };
        if let (Some(memory), Some(budget)) = (&self.memory, &budget) {
            budget.report_to(memory);
        }
        let (critical, sheddable) = (self.critical.0, self.sheddable.0);
        let gate = MemoryGate::new(self.memory, runtime, critical, sheddable, budget);
        let trust = self.trust.filter(|_| self.mode != Mode::Off);
        let trust = trust.map(|trust| trust.prefix(self.prefix));
        let header_peers = self.header_peers.map(Trust::networks);
        Ok(ConnGuard::new(
            limits,
            self.recorder,
            self.pressure,
            gate,
            (trust, header_peers),
        ))
    }

    fn check(&self, connections: usize) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("the connection guard cannot be built");
        let mut check = |is_allowed, field, value: &dyn fmt::Debug, allowed| {
            error.check(is_allowed, field, value, allowed);
        };
        if let Some(max) = self.connections {
            let is_allowed = (1..=MAX_CONNECTIONS).contains(&max);
            check(is_allowed, "max_connections", &max, "1 to 16777216");
        }
        check(
            self.reserve < connections.max(1),
            "reserve",
            &self.reserve,
            "less than max_connections",
        );
        if let PerClient::Max(max) = self.per_client {
            check(max > 0, "max_per_client", &max, "at least 1");
        }
        if let PerNetwork::Max(max) = self.per_network {
            check(max > 0, "max_per_network", &max, "at least 1");
        }
        if let Some((rate, burst)) = self.accept_rate {
            let is_allowed = gcra(rate, burst).is_some();
            let allowed = "each 1 to 1000000";
            check(is_allowed, "accept_rate", &(rate, burst), allowed);
        }
        if let AcceptRatePerNetwork::Max(rate, burst) = self.accept_rate_per_network {
            let is_allowed = gcra(rate, burst).is_some();
            check(
                is_allowed,
                "accept_rate_per_network",
                &(rate, burst),
                "each 1 to 1000000",
            );
        }
        let timeouts = MILLISECOND..=DAY;
        for (field, time) in [
            ("first_request_timeout", self.first_request),
            ("header_timeout", self.head),
            ("idle_timeout", self.idle),
            ("upgraded_idle_timeout", self.upgraded_idle),
            ("write_timeout", self.write_stall),
        ] {
            check(timeouts.contains(&time), field, &time, ALLOWED_TIMEOUT);
        }
        if let Some(age) = self.max_age {
            check(
                (MILLISECOND..=30 * DAY).contains(&age),
                "max_age",
                &age,
                "1 ms to 30 days",
            );
        }
        if let Some(grace) = self.age_grace {
            check(grace <= DAY, "age_grace", &grace, "0 to 24 h");
        }
        if let Some(max) = self.max_requests {
            check(max > 0, "max_requests", &max, "at least 1");
        }
        let at_least_1 = [
            ("max_upgraded", self.max_upgraded),
            ("max_in_flight", self.max_in_flight),
        ];
        for (field, max) in at_least_1 {
            check(
                max != Some(0),
                field,
                &max.unwrap_or_default(),
                "at least 1",
            );
        }
        if let Some(max) = self.max_cancelled {
            check(max > 0, "max_cancelled", &max, "1 to 65535");
        }
        if let Some(max) = self.max_overhead {
            let is_allowed = (1024..=MAX_OVERHEAD_BYTES).contains(&max);
            check(is_allowed, "max_overhead", &max, "1024 to 1073741824");
        }
        if let Some(interval) = self.probe {
            check(
                timeouts.contains(&interval),
                "probe_interval",
                &interval,
                ALLOWED_TIMEOUT,
            );
        }
        if let Some(bytes) = self.receive_buffer {
            let is_allowed = (4096..=MAX_RECEIVE_BUFFER).contains(&bytes);
            check(is_allowed, "receive_buffer", &bytes, "4096 to 1073741823");
        }
        let is_allowed = (MILLISECOND..=Duration::from_secs(10)).contains(&self.precision);
        check(
            is_allowed,
            "sweep_interval",
            &self.precision,
            "1 ms to 10 s",
        );
        let limit = self.memory.as_ref().and_then(Memory::least_limit);
        if let (ByteBudget::Own(budget), Some(limit)) = (&self.budget, limit)
            && budget.limit() > limit
        {
            let allowed = format!("at most the limit of the memory, {limit}");
            error.push("byte_budget", budget.limit().to_string(), allowed);
        }
        self.check_proxies(&mut error);
        error.into_result()
    }
}

/// Returns the limit for this rate and burst; `None` if one of them is out of range.
fn gcra(per_second: u32, burst: u32) -> Option<Gcra> {
    let range = 1..=MAX_CONNECTIONS_PER_SECOND;
    if !range.contains(&per_second) || !range.contains(&burst) {
        return None;
    }
    Gcra::new(u64::from(MICROS_PER_SECOND / per_second), burst)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
