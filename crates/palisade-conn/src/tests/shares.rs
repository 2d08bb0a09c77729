//! Shares of the cap: connections per client and per network, and idle connections per client.

use super::*;
use crate::CloseMode;
use std::{collections::VecDeque, net::IpAddr};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_client_at_its_share_loses_only_its_own_connections() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_connections(100).max_per_client(3));
    let neighbour = connect_from(&guard, 9).unwrap();
    let flood: Vec<_> = (0..6).map_while(|_| connect_from(&guard, 1).ok()).collect();
    assert_eq!(flood.len(), 6);
    let is_kept = |pair: &&Pair| pair.decision().is_none();
    assert_eq!(flood.iter().filter(is_kept).count(), 3);
    assert!(is_kept(&&neighbour));
    // The number of evicted connections that stay open is limited, too.
    assert!(connect_from(&guard, 1).is_err());
    let snapshot = guard.snapshot();
    assert_eq!(
        (snapshot.distinct_clients, snapshot.clients[0].connections),
        (2, 6)
    );
    drop((flood, neighbour));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn at_the_soft_limit_a_client_at_its_share_loses_only_its_own_connections() {
    let builder = ConnGuard::builder().max_connections(10).max_per_client(2);
    let (guard, _) = tracking_guard(builder.max_per_network(None));
    let neighbours: Vec<_> = (0..7)
        .map(|n| connect_from(&guard, 100 + n).unwrap())
        .collect();
    let mut own = VecDeque::from([1, 1].map(|last| connect_from(&guard, last).unwrap()));
    for _ in 0..20 {
        own.push_back(connect_from(&guard, 1).unwrap());
        own.pop_front();
    }
    let is_kept = |pair: &Pair| pair.decision().is_none();
    assert!(neighbours.iter().all(is_kept));
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_client_shrinks_under_load_and_its_excess_is_evicted_first() {
    let builder = ConnGuard::builder().max_connections(1000).accept_rate(None);
    let (guard, journal) =
        tracking_guard(builder.max_per_network(None).accept_rate_per_network(None));
    let working = |last| connect_working(&guard, last).unwrap();
    // One client has 300 event streams, and its smallest share is 64. Others have 600 connections.
    let streams: Vec<_> = (0..300).map(|_| working(1)).collect();
    let mut idle_others = Vec::new();
    for last in 2..=12 {
        let mut idle: Vec<_> = (0..50)
            .map(|_| connect_from(&guard, last).unwrap())
            .collect();
        for pair in &mut idle {
            serve_once(pair, false).await;
        }
        idle_others.extend(idle);
    }
    sleep(2 * TICK).await;
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    let mut working_others: Vec<_> = (13..=17)
        .flat_map(|last| (0..10).map(move |_| last))
        .map(working)
        .collect();
    sleep(2 * TICK).await;
    // Above the soft limit each new connection evicts one of the streams above the share.
    for last in 18..=22 {
        for _ in 0..10 {
            working_others.push(working(last));
        }
        sleep(2 * TICK).await;
    }
    let is_evicted = |pair: &Pair| pair.decision().is_some();
    assert!(!idle_others.iter().any(is_evicted));
    assert!(!working_others.iter().any(|(pair, _)| is_evicted(pair)));
    let evicted = streams.iter().filter(|(pair, _)| is_evicted(pair));
    assert_eq!(evicted.count(), 50);
    // The newest are evicted, and none within the share.
    assert!(!streams[..64].iter().any(|(pair, _)| is_evicted(pair)));
    drop((streams, idle_others, working_others));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn working_connections_within_the_share_are_not_evicted() {
    let builder = ConnGuard::builder().max_connections(200).accept_rate(None);
    let (guard, _) = tracking_guard(builder.max_per_network(None).accept_rate_per_network(None));
    let working = |last| connect_working(&guard, last).ok();
    let mut streams: Vec<_> = (0..70).map_while(|_| working(1)).collect();
    let mut others = Vec::new();
    for last in 2..250 {
        others.extend(working(last));
        streams.retain(|(pair, _)| pair.decision().is_none());
        sleep(TICK).await;
    }
    // The last tenth of the places is for networks with few connections.
    assert_eq!((streams.len(), guard.snapshot().open), (64, 180));
}

#[tokio::test(start_paused = true)]
async fn a_network_at_its_share_loses_only_its_own_connections() {
    let builder = ConnGuard::builder().max_connections(100).max_per_client(3);
    let (guard, journal) = tracking_guard(builder.max_per_network(6));
    let connect = |peer: &str| {
        let (inner, client) = duplex(64);
        let peer = (peer.parse::<IpAddr>().unwrap(), 1).into();
        let io = guard.admit(TestTransport::new(inner), Some(peer), None)?;
        Ok::<_, io::Error>((io, client))
    };
    let neighbours: Vec<_> = ["192.0.3.1", "2001:db8:1::1"]
        .iter()
        .map(|peer| connect(peer).unwrap())
        .collect();
    let v4 = (0..6).map(|n| format!("192.0.2.{n}"));
    let v6 = (0..6).map(|n| format!("2001:db8:0:{n}::1"));
    let mut own: Vec<_> = v4.chain(v6).map(|peer| connect(&peer).unwrap()).collect();
    assert!(journal.disconnected().is_empty());
    // For each of two more clients, a connection of its network is evicted.
    own.push(connect("192.0.2.77").unwrap());
    own.push(connect("2001:db8:0:77::1").unwrap());
    let disconnected = journal.disconnected();
    let evicted = (Reason::ConnectionEvicted, 6);
    assert!(
        disconnected
            .iter()
            .all(|(violation, _)| (violation.reason, violation.limit) == evicted)
    );
    assert_eq!(disconnected.len(), 2);
    let is_kept =
        |(io, _): &(GuardedIo<TestTransport>, DuplexStream)| io.conn().state().decision().is_none();
    assert!(neighbours.iter().all(is_kept));
    own.retain(is_kept);
    // If all of them work, only the new connection is refused.
    let requests: Vec<_> = own
        .iter()
        .map(|(io, _)| io.conn().begin_request(false))
        .collect();
    let refused = violation(&connect("192.0.2.88").err().unwrap());
    assert_eq!(
        (refused.reason, refused.limit),
        (Reason::NetworkConnectionsFull, 6)
    );
    connect("192.0.3.2").unwrap();
    drop((own, neighbours, requests));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_socket_that_is_never_polled_keeps_its_part_of_the_share() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_connections(100).max_per_client(2));
    let unpolled = || {
        let pair = connect(&guard);
        pair.server.conn().upgrade().unwrap();
        assert!(guard.close(pair.server.conn(), Reason::Idle, CloseMode::Graceful));
        pair
    };
    let stuck = [unpolled(), unpolled()];
    assert_eq!(guard.snapshot().close_pending, 2);
    sleep(6 * SECOND).await;
    assert_eq!(guard.snapshot().close_pending, 0);
    assert!(
        connect_from(&guard, 1).is_err(),
        "sockets that stay open use up the share"
    );
    assert!(connect_from(&guard, 2).is_ok());
    drop(stuck);
    assert!(connect_from(&guard, 1).is_ok());
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn near_the_cap_a_client_keeps_eight_idle_connections() {
    let (guard, journal) = tracking_guard(ConnGuard::builder().max_connections(50));
    let mut pairs: Vec<_> = (0..12).map(|_| connect(&guard)).collect();
    let mut neighbours: Vec<_> = (2..10)
        .map(|last| connect_from(&guard, last).unwrap())
        .collect();
    for pair in pairs.iter_mut().chain(&mut neighbours) {
        serve_once(pair, false).await;
    }
    let working: Vec<_> = pairs[..2]
        .iter()
        .map(|pair| pair.server.conn().begin_request(false))
        .collect();
    let closing = |pairs: &[Pair]| -> Vec<_> {
        let closing = pairs.iter().map(Pair::closing);
        closing
            .map(|reason| reason == Some(Reason::KeepAlivePerClient))
            .collect()
    };
    sleep(Duration::from_millis(900)).await;
    assert!(!closing(&pairs).contains(&true)); // The client may be between two requests.
    sleep(SECOND).await;
    // Ten are idle. The two oldest of them are closed, and the working ones are not.
    let mut expected = [false; 12];
    (expected[2], expected[3]) = (true, true);
    assert_eq!(closing(&pairs), expected);
    assert!(!closing(&neighbours).contains(&true));
    let (after, result) = read_until_closed(&mut pairs[2].server).await;
    assert!((4 * SECOND..=5 * SECOND).contains(&after), "{after:?}");
    result.unwrap(); // The close is graceful.
    let (violation, _) = journal.disconnected()[0];
    assert_eq!(
        (violation.reason, violation.limit, violation.observed),
        (Reason::KeepAlivePerClient, 8, 9)
    );
    drop(working);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_kept_while_places_are_plentiful_or_no_limit_applies() {
    let reserved = "192.0.2.1".parse().unwrap();
    for builder in [
        ConnGuard::builder().max_connections(1000),
        ConnGuard::builder().max_per_client(None),
        ConnGuard::builder().keep_alive_per_client(None),
        ConnGuard::builder().reserve(1, [reserved]),
    ] {
        let (guard, _) = tracking_guard(builder);
        let mut pairs: Vec<_> = (0..60).map(|_| connect(&guard)).collect();
        for pair in &mut pairs {
            serve_once(pair, false).await;
        }
        sleep(30 * SECOND).await;
        assert!(pairs.iter().all(|pair| pair.closing().is_none()));
    }
}
