//! Connections that begin with a header of the PROXY protocol.

use super::*;
use crate::{CloseMode, GuardedListener, Listener, connection::registry::Place};
use palisade_client_ip::Trust;
use palisade_core::{Event, Metrics, Mode, Network, Networks, Violation};
use palisade_testkit::Journal;
use std::net::IpAddr;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{advance, timeout},
};

/// The addresses of the load balancers.
const BALANCERS: &str = "10.0.0.0/8";
const BALANCER: [u8; 4] = [10, 0, 0, 7];
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\n";
/// Version 2 for the same addresses.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\
    \xcb\x00\x71\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb";
/// The health check of `HAProxy`.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x07\x03\x00\x04\xa9\xb8\x7e\x8f";

type Arrival = (TestTransport, Option<SocketAddr>);

/// A listener that returns what a test sends.
struct ChannelListener(UnboundedReceiver<Arrival>);

impl Listener for ChannelListener {
    type Io = TestTransport;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(arrival)) => Poll::Ready(Ok(arrival)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 80).into())
    }

    fn local_of(_: &TestTransport) -> Option<SocketAddr> {
        Some(([127, 0, 0, 1], 80).into())
    }
}

/// A guarded listener, and its clients.
struct Server {
    guard: ConnGuard,
    journal: Journal,
    listener: GuardedListener<ChannelListener>,
    arrivals: UnboundedSender<Arrival>,
}

impl Server {
    fn new(builder: ConnGuardBuilder) -> Self {
        Self::with_tracking(builder, true)
    }

    /// Without tracking, the server itself reports a connection once it has accepted it.
    fn with_tracking(builder: ConnGuardBuilder, is_tracked: bool) -> Self {
        let networks = Networks::parse(BALANCERS).unwrap();
        let journal = Journal::default();
        let builder = builder.proxy_protocol(networks).metrics(journal.clone());
        let guard = builder.build().unwrap();
        if is_tracked {
            guard.track_requests();
        }
        Self::of(guard, journal)
    }

    fn of(guard: ConnGuard, journal: Journal) -> Self {
        let (arrivals, received) = unbounded_channel();
        let listener = guard.listen(ChannelListener(received));
        Self {
            guard,
            journal,
            listener,
            arrivals,
        }
    }

    /// Connects from this address. Returns the client, and whether it is reset.
    fn connect_from(&self, peer: [u8; 4]) -> (DuplexStream, Arc<AtomicBool>) {
        let (inner, client) = duplex(16 << 10);
        let transport = TestTransport::new(inner);
        let reset = transport.reset.clone();
        let peer = SocketAddr::from((peer, 4711));
        self.arrivals.send((transport, Some(peer))).unwrap();
        (client, reset)
    }

    /// Connects from a balancer, which sends `bytes`.
    async fn connect(&self, bytes: &[u8]) -> (DuplexStream, Arc<AtomicBool>) {
        let (mut client, reset) = self.connect_from(BALANCER);
        client.write_all(bytes).await.unwrap();
        (client, reset)
    }

    /// Returns the next connection within a second.
    async fn accept(&mut self) -> Option<GuardedIo<TestTransport>> {
        let accepted = timeout(SECOND, self.listener.accept()).await.ok()?;
        Some(accepted.unwrap().0)
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_a_proxy_is_that_of_the_client_that_its_header_names() {
    for mode in [Mode::Enforce, Mode::Shadow, Mode::Off] {
        let mut server = Server::new(ConnGuard::builder().mode(mode));
        for header in [V1, V2] {
            // What follows in the same segment is the client's.
            let (client, _) = server
                .connect(&[header, b"GET / HTTP/1.1\r\n"].concat())
                .await;
            let mut io = server.accept().await.unwrap();
            let conn = io.conn().clone();
            assert_eq!(conn.peer(), address("203.0.113.7:56324"));
            assert_eq!(conn.local(), Some(address("198.51.100.1:443")));
            assert!(!conn.is_proxy() && conn.is_proxied() && conn.known_client().is_some());
            let mut text = [0; 16];
            io.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"GET / HTTP/1.1\r\n");
            drop((client, io));
        }
        assert_nothing_left(&server.guard);
        let closed = if mode == Mode::Off { 0 } else { 2 };
        assert_eq!(server.journal.opened(), closed);
        assert_eq!(server.journal.closed(), vec![None; closed]);
        assert_eq!(server.journal.disconnected(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_may_arrive_byte_by_byte() {
    let mut server = Server::new(ConnGuard::builder());
    for header in [V1, V2] {
        let (mut client, _) = server.connect_from(BALANCER);
        for byte in header {
            client.write_u8(*byte).await.unwrap();
            assert!(
                timeout(Duration::from_millis(1), server.listener.accept())
                    .await
                    .is_err()
                    || byte == header.last().unwrap()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_header_is_read_from_any_other_peer() {
    let mut server = Server::new(ConnGuard::builder());
    let (mut client, _) = server.connect_from([192, 0, 2, 1]);
    client.write_all(V1).await.unwrap();
    let mut io = server.accept().await.unwrap();
    assert_eq!(io.conn().peer(), address("192.0.2.1:4711"));
    assert_eq!(io.read_u8().await.unwrap(), b'P');
}

#[tokio::test(start_paused = true)]
async fn the_networks_of_proxies_are_replaced_at_run_time() {
    let networks = Networks::parse(BALANCERS).unwrap();
    let builder = ConnGuard::builder().proxy_protocol(networks.clone());
    let mut server = Server::of(builder.build().unwrap(), Journal::default());
    networks.reload("172.16.0.0/12").unwrap();
    let _direct = server.connect_from(BALANCER);
    assert_eq!(
        server.accept().await.unwrap().conn().peer().ip(),
        IpAddr::from(BALANCER)
    );
    let (mut client, _) = server.connect_from([172, 16, 0, 1]);
    client.write_all(V1).await.unwrap();
    let io = server.accept().await.unwrap();
    assert_eq!(io.conn().peer(), address("203.0.113.7:56324"));
    // A set of all addresses is a mistake, and contains none.
    networks.reload("0.0.0.0/0").unwrap();
    let _direct = server.connect_from([172, 16, 0, 1]);
    assert_eq!(
        server.accept().await.unwrap().conn().peer().ip(),
        IpAddr::from([172, 16, 0, 1])
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_header_is_reset_in_every_mode() {
    let long_tlvs = [&V2[..14], b"\xff\xff", &V2[16..]].concat();
    let bad_checksum = [&LOCAL[..LOCAL.len() - 1], b"\x00"].concat();
    let bad: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 65536\r\n",
        &[b'P'; 1],
        &long_tlvs,
        &bad_checksum,
    ];
    for mode in [Mode::Enforce, Mode::Shadow, Mode::Off] {
        for bytes in bad {
            let mut server = Server::new(ConnGuard::builder().mode(mode));
            let (mut client, reset) = server.connect(bytes).await;
            client.shutdown().await.unwrap(); // Half a header, for `P`.
            assert!(server.accept().await.is_none());
            assert!(reset.load(Relaxed), "{bytes:?}");
            let [(violation, reported)] = server.journal.disconnected()[..] else {
                panic!("one report")
            };
            assert_eq!(
                (violation.reason, reported),
                (Reason::ProxyHeader, Mode::Enforce)
            );
            assert!(violation.observed <= bytes.len() as u64 && violation.limit == 4096);
            let closed: &[_] = match mode {
                Mode::Off => &[],
                _ => &[Some(Reason::ProxyHeader)],
            };
            assert_eq!(server.journal.closed(), closed);
            assert_nothing_left(&server.guard);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn health_checks_of_the_proxy_are_no_violation() {
    let mut server = Server::new(ConnGuard::builder().max_per_client(1).accept_rate((1, 1)));
    let mut open = Vec::new();
    for _ in 0..10 {
        // A TCP check connects and leaves.
        drop(server.connect_from(BALANCER));
        assert!(server.accept().await.is_none());
        // HAProxy's sends LOCAL and leaves.
        drop(server.connect(LOCAL).await);
        let mut io = server.accept().await.unwrap();
        assert_eq!(io.conn().peer().ip(), IpAddr::from(BALANCER));
        assert!(io.conn().is_proxy());
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        // Others name no client, and have no share.
        let (client, _) = server.connect(b"PROXY UNKNOWN\r\n").await;
        open.push((client, server.accept().await.unwrap()));
    }
    assert_eq!(server.guard.snapshot().open, 10);
    assert_eq!(server.journal.disconnected(), []);
    drop(open);
    assert_eq!(server.journal.closed(), [None; 30]);
    assert_nothing_left(&server.guard);
}

#[tokio::test(start_paused = true)]
async fn the_time_to_the_first_request_counts_from_accept() {
    let tries = [
        (&b""[..], false),
        (&b""[..], true),
        (&V1[..20], false),
        (&V1[..20], true),
        (V1, true),
    ];
    for (header, is_tracked) in tries {
        let mut server = Server::with_tracking(ConnGuard::builder(), is_tracked);
        let (mut client, reset) = server.connect_from(BALANCER);
        let started = Instant::now();
        assert!(server.accept().await.is_none());
        advance(7 * SECOND).await;
        client.write_all(header).await.unwrap();
        let end = match server.accept().await {
            Some(mut io) => read_until_closed(&mut io)
                .await
                .1
                .map_err(|error| violation(&error)),
            None => {
                // The connection is not the application's yet.
                for _ in 0..10 {
                    if server.guard.snapshot().open > 0 {
                        assert!(server.accept().await.is_none());
                    }
                }
                Ok(())
            }
        };
        assert!(end.is_err() == (header == V1), "{end:?}");
        let after = started.elapsed();
        assert!((10 * SECOND..12 * SECOND).contains(&after), "{after:?}");
        assert!(reset.load(Relaxed));
        let reasons = server.journal.disconnected();
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].0.reason, Reason::FirstRequest);
        assert_nothing_left(&server.guard);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_only_reports_does_not_wait_for_ever_either() {
    for mode in [Mode::Shadow, Mode::Off] {
        for header in [&b""[..], &V1[..20]] {
            let mut server = Server::new(ConnGuard::builder().mode(mode));
            let (_client, reset) = server.connect(header).await;
            for _ in 0..119 {
                assert!(server.accept().await.is_none());
            }
            assert!(!reset.load(Relaxed));
            assert!(server.accept().await.is_none());
            assert!(server.accept().await.is_none());
            assert!(reset.load(Relaxed), "{mode:?} {header:?}");
            let reports = server.journal.disconnected();
            let last = reports.last().unwrap();
            assert_eq!(
                (last.0.reason, last.1),
                (Reason::ProxyHeader, Mode::Enforce)
            );
            assert_nothing_left(&server.guard);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn proxies_that_send_nothing_keep_no_other_connection_waiting() {
    let mut server = Server::new(ConnGuard::builder().max_connections(100));
    let mut silent = Vec::new();
    for _ in 0..10_000 {
        silent.push(server.connect_from(BALANCER));
    }
    // They evict each other.
    for _ in 0..1000 {
        if server.journal.opened() < 9_000 {
            assert!(server.accept().await.is_none());
        }
    }
    let now = server.guard.snapshot();
    assert!(now.open <= 100);
    // Until the header has come they are those of a proxy, in each list and share.
    assert!(now.clients.iter().all(|holder| holder.is_proxy));
    let (_client, _) = server.connect(V1).await;
    let _direct = server.connect_from([192, 0, 2, 1]);
    let mut peers = Vec::new();
    let mut ios = Vec::new();
    for _ in 0..1000 {
        if peers.len() < 2
            && let Some(io) = server.accept().await
        {
            peers.push(io.conn().peer().ip());
            ios.push(io);
        }
    }
    peers.sort();
    assert_eq!(
        peers,
        [address("192.0.2.1:1").ip(), address("203.0.113.7:1").ip()]
    );
    // Without the listener the headers are not awaited.
    drop((server.listener, ios));
    timeout(SECOND, async {
        while server.guard.snapshot().open > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_nothing_left(&server.guard);
}

#[tokio::test(start_paused = true)]
async fn limits_per_client_apply_to_the_client_behind_the_proxy() {
    let builder = ConnGuard::builder().max_per_client(2).accept_rate((1, 4));
    let mut server = Server::new(builder.keep_alive_per_client(None));
    let mut open = Vec::new();
    for _ in 0..2 {
        let (client, _) = server.connect(V1).await;
        let io = server.accept().await.unwrap();
        let request = io.conn().begin_request(false);
        open.push((client, io, request));
    }
    // Both work, so that none can be evicted for a third one.
    let (_client, reset) = server.connect(V2).await;
    assert!(server.accept().await.is_none());
    assert!(reset.load(Relaxed));
    // A neighbour is served.
    let neighbour = b"PROXY TCP4 203.0.113.8 198.51.100.1 56324 443\r\n";
    let (_client, _) = server.connect(neighbour).await;
    let other = server.accept().await.unwrap();
    // And so is a direct peer with the address of the balancer's neighbour.
    drop((open, other));
    let mut admitted = 0;
    for _ in 0..10 {
        let (_client, _) = server.connect(V1).await;
        admitted += usize::from(server.accept().await.is_some_and(|io| {
            drop(io);
            true
        }));
    }
    assert!(admitted < 10, "{admitted}");
    let reasons: Vec<_> = server
        .journal
        .disconnected()
        .iter()
        .map(|(v, _)| v.reason)
        .collect();
    assert_eq!(reasons[0], Reason::ClientConnectionsFull);
    assert!(
        reasons[1..]
            .iter()
            .all(|reason| *reason == Reason::AcceptRate)
    );
    assert_nothing_left(&server.guard);
    let (opened, closed) = (server.journal.opened(), server.journal.closed());
    assert_eq!((opened, closed.len()), (14, 14));
    assert_eq!(
        closed.iter().filter(|reason| reason.is_some()).count(),
        reasons.len()
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_places_are_for_clients_with_few_connections_behind_the_proxy_too() {
    let builder = ConnGuard::builder().max_connections(100);
    let builder = builder.max_per_client(100).accept_rate(None);
    let mut server = Server::new(builder.accept_rate_per_network(None));
    let mut open = Vec::new();
    for _ in 0..120 {
        let (client, _) = server.connect(V1).await;
        if let Some(io) = server.accept().await {
            let request = io.conn().begin_request(false);
            open.push((client, io, request));
        }
    }
    assert_eq!(open.len(), 90);
    let reports = server.journal.disconnected();
    let is_full = |violation: &Violation| violation.reason == Reason::ConnectionsFull;
    assert!(reports.len() == 30 && reports.iter().all(|(violation, _)| is_full(violation)));
    let other = b"PROXY TCP4 198.51.100.8 198.51.100.1 56324 443\r\n";
    let (_client, _) = server.connect(other).await;
    assert!(server.accept().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_client_at_its_share_evicts_its_own_idle_connection() {
    let mut server = Server::new(ConnGuard::builder().max_per_client(1));
    let (_first_client, _) = server.connect(V1).await;
    let mut first = server.accept().await.unwrap();
    advance(SECOND).await;
    let (_second_client, _) = server.connect(V1).await;
    let _second = server.accept().await.unwrap();
    let _ = read_until_closed(&mut first).await;
    assert_eq!(
        first.conn().state().decision().unwrap().reason,
        Reason::ConnectionEvicted
    );
}

#[tokio::test(start_paused = true)]
async fn connections_are_compared_as_of_the_header_and_not_of_accept() {
    let mut server = Server::new(ConnGuard::builder().max_per_client(2));
    let (mut late, _) = server.connect_from(BALANCER);
    assert!(server.accept().await.is_none()); // A second.
    let mut open = Vec::new();
    for (requests, wait) in [(20, 6 * SECOND), (6, 2 * SECOND)] {
        let (client, _) = server.connect(V1).await;
        let io = server.accept().await.unwrap();
        for _ in 0..requests {
            io.conn().begin_request(false).set_answered();
        }
        open.push((client, io));
        advance(wait).await;
    }
    late.write_all(V1).await.unwrap();
    let _late = server.accept().await.unwrap();
    // The first one had more requests, but in four times as long.
    let decisions = open.iter().map(|(_, io)| io.conn().state().decision());
    let is_evicted: Vec<_> = decisions.map(|decision| decision.is_some()).collect();
    assert_eq!(is_evicted, [true, false]);
}

#[tokio::test(start_paused = true)]
async fn reserved_places_are_for_the_client_that_the_header_names() {
    let monitor: Network = "203.0.113.7/32".parse().unwrap();
    let builder = ConnGuard::builder()
        .max_connections(20)
        .reserve(5, [monitor]);
    let mut server = Server::new(builder.max_per_client(1).accept_rate((1, 1)));
    let mut open = Vec::new();
    for _ in 0..5 {
        let (client, _) = server.connect(V1).await;
        open.push((client, server.accept().await.unwrap()));
    }
    assert_eq!(server.journal.disconnected(), []);
}

#[tokio::test(start_paused = true)]
async fn the_protocol_is_looked_for_after_the_header() {
    let mut server = Server::new(ConnGuard::builder());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let (_client, _) = server.connect(&[V2, preface].concat()).await;
    let mut http2 = server.accept().await.unwrap();
    http2.read_exact(&mut [0; 33]).await.unwrap();
    assert!(http2.conn().state().stats().framed);
    // A slow head in plain text is answered with a 408.
    let (mut client, reset) = server.connect(&[V1, b"GET / HTTP/1.1\r\n"].concat()).await;
    let mut http1 = server.accept().await.unwrap();
    read_until_closed(&mut http1).await.1.unwrap();
    drop(http1);
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 408 ") && !reset.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_header_that_follows_a_header_is_data_of_the_client() {
    let mut server = Server::new(ConnGuard::builder());
    let (_client, _) = server.connect(&[V1, V2].concat()).await;
    let mut io = server.accept().await.unwrap();
    let mut data = [0; 28];
    io.read_exact(&mut data).await.unwrap();
    assert_eq!(data, V2);
}

#[tokio::test(start_paused = true)]
async fn an_ipv4_mapped_client_is_an_ipv4_client() {
    let mut server = Server::new(ConnGuard::builder());
    let mapped = b"PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 56324 443\r\n";
    let (_client, _) = server.connect(mapped).await;
    let io = server.accept().await.unwrap();
    assert_eq!(io.conn().peer(), address("203.0.113.7:56324"));
    assert_eq!(io.conn().local(), Some(address("[2001:db8::1]:443")));
    // A proxy that does not know where the client has connected to.
    let (_client, _) = server
        .connect(b"PROXY TCP4 203.0.113.7 0.0.0.0 56324 443\r\n")
        .await;
    let io = server.accept().await.unwrap();
    assert_eq!(io.conn().local(), Some(address("127.0.0.1:80")));
}

#[tokio::test(start_paused = true)]
async fn a_close_that_was_decided_before_the_header_arrived_holds_for_the_client() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
    let pair = connect_from(&guard, 1).unwrap();
    let before = pair.server.conn().clone();
    assert!(guard.close(&before, Reason::Idle, CloseMode::Reset));
    let after = guard.shared().connection(peer(2), None).continues(&before);
    let named = pair.server.after_header(|mut permit| {
        let (place, _) = guard
            .shared()
            .registry
            .enter(&after, permit.opened(), None)
            .unwrap();
        assert_ne!(place, Place::NOWHERE);
        permit.continue_as(after.clone(), place);
        Ok(permit)
    });
    let named = named.unwrap();
    assert_eq!(
        (named.conn().id(), named.conn().peer()),
        (before.id(), peer(2).unwrap())
    );
    assert_eq!(
        named.conn().state().decision().unwrap().reason,
        Reason::Idle
    );
    assert_eq!(guard.snapshot().close_pending, 1);
    // What is decided about the connection that is gone has no effect.
    assert!(!guard.close(&before, Reason::MaxAge, CloseMode::Reset));
    assert_eq!(guard.snapshot().close_pending, 1);
    drop(named);
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn two_closes_while_the_header_is_read_count_once() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let pair = connect_from(&guard, 1).unwrap();
    let before = pair.server.conn().clone();
    let after = guard.shared().connection(peer(2), None).continues(&before);
    let named = pair.server.after_header(|mut permit| {
        let registry = &guard.shared().registry;
        let (place, _) = registry.enter(&after, permit.opened(), None).unwrap();
        // Other threads find both of them.
        assert!(guard.close(&before, Reason::Idle, CloseMode::Reset));
        assert!(guard.close(&after, Reason::ConnectionEvicted, CloseMode::Reset));
        permit.continue_as(after.clone(), place);
        Ok(permit)
    });
    assert_eq!(guard.snapshot().close_pending, 1);
    drop(named);
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_named_client_are_those_of_a_proxy_also_with_trust_in_others() {
    let trust = Trust::networks(Networks::parse("172.16.0.0/12").unwrap());
    let mut server = Server::new(ConnGuard::builder().trust(trust.clone()));
    for header in [LOCAL, b"PROXY UNKNOWN\r\n"] {
        let (_client, _) = server.connect(header).await;
        let io = server.accept().await.unwrap();
        let client = trust.identify_guarded(&*io.conn().info(), &http::HeaderMap::new());
        assert_eq!(client.address(), Some(IpAddr::from(BALANCER)));
        assert!(client.is_proxy());
    }
    assert_eq!(trust.totals().missing, 0);
}

#[test]
fn networks_of_all_addresses_and_peers_that_are_no_clients_are_refused() {
    let everyone = Networks::parse("0.0.0.0/0\n::/0").unwrap();
    let builder = ConnGuard::builder().behind_proxy().proxy_protocol(everyone);
    let error = builder.build().unwrap_err();
    let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    assert_eq!(fields, ["proxy_protocol", "proxy_protocol", "behind_proxy"]);
}

/// Keeps the number and the peer of each connection that is opened or closed.
#[derive(Clone, Default)]
struct OpenedAndClosed(Arc<parking_lot::Mutex<Vec<(u64, IpAddr)>>>);

impl Metrics for OpenedAndClosed {
    fn record(&self, event: &Event<'_>) {
        if let Event::Opened { conn, .. } | Event::Closed { conn, .. } = event {
            self.0.lock().push((conn.id(), conn.peer().ip()));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_is_opened_and_closed_once_with_one_number() {
    let seen = OpenedAndClosed::default();
    let networks = Networks::parse(BALANCERS).unwrap();
    let builder = ConnGuard::builder().proxy_protocol(networks);
    let guard = builder.metrics(seen.clone()).build().unwrap();
    let mut server = Server::of(guard, Journal::default());
    let (_client, _) = server.connect(V2).await;
    let io = server.accept().await.unwrap();
    let id = io.conn().id();
    drop(io);
    let client = address("203.0.113.7:1").ip();
    assert_eq!(*seen.0.lock(), [(id, BALANCER.into()), (id, client)]);
}

/// Fills the places of a guard with 20, up to the last tenth, with connections of others that have
/// worked and are idle.
async fn fill_with_idle(guard: &ConnGuard) -> Vec<Pair> {
    let mut idle = Vec::new();
    for last in 1..=18 {
        let mut pair = connect_from(guard, last).unwrap();
        serve_once(&mut pair, false).await;
        idle.push(pair);
    }
    advance(3 * SECOND).await;
    idle
}

fn evicted(idle: &[Pair]) -> usize {
    let is_evicted = |pair: &&Pair| pair.decision().is_some();
    idle.iter().filter(is_evicted).count()
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_client_through_the_proxy_evicts_no_more_than_its_rate_admits() {
    let builder = ConnGuard::builder().max_connections(20).accept_rate((1, 2));
    let builder = builder.accept_rate_per_network(None).max_per_client(None);
    let mut server = Server::new(builder);
    let idle = fill_with_idle(&server.guard).await;
    for _ in 0..200 {
        let (client, _) = server.connect(V1).await;
        let accepted = timeout(Duration::from_millis(1), server.listener.accept()).await;
        drop((client, accepted));
    }
    assert!(evicted(&idle) <= 2, "{}", evicted(&idle));
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_header_comes_late_gets_the_place_of_an_idle_connection_and_not_its_own() {
    let mut server = Server::new(ConnGuard::builder().max_connections(20));
    let idle = fill_with_idle(&server.guard).await;
    let (mut client, _) = server.connect_from(BALANCER);
    assert!(server.accept().await.is_none());
    assert_eq!(evicted(&idle), 0); // Nothing is known of it yet.
    advance(3 * SECOND).await;
    client.write_all(V1).await.unwrap();
    let io = server.accept().await.unwrap();
    assert_eq!(io.conn().state().decision(), None);
    assert_eq!(evicted(&idle), 1);
}
