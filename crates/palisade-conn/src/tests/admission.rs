//! The cap, reserved places and accept rates.

use super::*;
use palisade_core::Phase;
use tokio::time::{advance, sleep};

#[tokio::test(start_paused = true)]
async fn at_the_cap_a_new_connection_is_refused_if_all_others_work() {
    let (guard, journal) =
        tracking_guard(ConnGuard::builder().max_connections(4).max_per_client(None));
    let pairs: Vec<_> = (0..4)
        .map(|_| connect_working(&guard, 1).unwrap())
        .collect();
    sleep(2 * TICK).await;
    let error = connect_from(&guard, 2).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let expected = (Reason::ConnectionsFull, Phase::Accept);
    assert_eq!(
        (violation(&error).reason, violation(&error).phase),
        expected
    );
    assert_eq!(journal.disconnected().len(), 1);
    assert_eq!(guard.snapshot().refused, 1);
    drop(pairs);
    connect_from(&guard, 2).unwrap();
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn the_last_places_are_reserved_for_the_given_networks() {
    let builder = ConnGuard::builder()
        .max_connections(10)
        .max_per_client(1)
        .accept_rate((1, 1));
    let office = "192.0.2.200/29".parse().unwrap();
    let builder = builder.max_per_network(None).accept_rate_per_network(None);
    let (guard, journal) = tracking_guard(builder.reserve(4, [office]));
    let working = |last| connect_working(&guard, last);
    let mut attack: Vec<_> = (0..6).map(|last| working(last).unwrap()).collect();
    let refused = violation(&working(7).err().unwrap());
    assert_eq!(
        (refused.reason, refused.limit),
        (Reason::ConnectionsFull, 6)
    );
    // One reserved address may take all places, at any rate.
    let reserved: Vec<_> = (0..4).map(|_| working(201).unwrap()).collect();
    let refused = violation(&working(202).err().unwrap());
    assert_eq!(
        (refused.reason, refused.limit),
        (Reason::ConnectionsFull, 10)
    );
    drop(reserved);

    // An idle connection with a reserved place is evicted after all others, and only for another
    // connection with a reserved place.
    let mut idle = connect_from(&guard, 201).unwrap();
    serve_once(&mut idle, false).await;
    attack.truncate(3);
    sleep(10 * SECOND).await;
    let mut other = connect_from(&guard, 20).unwrap();
    for _ in 0..100 {
        serve_once(&mut other, false).await;
    }
    let _next = working(21).unwrap();
    assert!(other.decision().is_some());
    assert!(idle.decision().is_none());
    drop(other);
    let _last = working(22).unwrap();
    assert!(idle.decision().is_none());
    let _reserved = [working(203).unwrap(), working(203).unwrap()];
    assert!(idle.decision().is_some());
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(violation, _)| violation.reason != Reason::AcceptRate)
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_twentieth_of_the_places_is_for_clients_without_a_connection() {
    let builder = ConnGuard::builder().max_connections(100);
    let (guard, _) = tracking_guard(builder.accept_rate(None));
    // Each client is in a network of its own.
    let working = |client: u8| {
        let peer = ([10, 0, client, 1], 1).into();
        let transport = TestTransport::new(duplex(64).0);
        let io = guard.admit(transport, Some(peer), None)?;
        let request = io.conn().begin_request(false);
        Ok::<_, io::Error>((io, request))
    };
    let refused = |client| violation(&working(client).err().unwrap());
    let mut attack: Vec<_> = (0..96).map_while(|n| working(n % 32).ok()).collect();
    assert_eq!(attack.len(), 95);
    assert_eq!(refused(31).limit, 95);
    // They stay as long as they work, and no more are admitted than the cap.
    let mut newcomers: Vec<_> = (100..105).map(|n| working(n).unwrap()).collect();
    assert_eq!(refused(105).limit, 100);
    // A newcomer with half a head stays, too: a client with a connection does not take its place.
    newcomers.pop();
    attack.pop();
    let (inner, _client) = duplex(64);
    let peer = Some(([10, 0, 110, 1], 1).into());
    let mut young = guard.admit(TestTransport::new(inner), peer, None).unwrap();
    assert!(young.read_u8().now_or_never().is_none());
    assert_eq!(refused(0).reason, Reason::ConnectionsFull);
    assert!(young.conn().state().decision().is_none());
    drop((attack, newcomers, young));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_network_has_the_accept_rate_of_four_clients() {
    let (guard, journal) = tracking_guard(ConnGuard::builder().accept_rate((10, 20)));
    let admitted = (0..200)
        .filter_map(|last| connect_from(&guard, last).ok())
        .count();
    assert_eq!(admitted, 80);
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(violation, _)| violation.reason == Reason::AcceptRate)
    );
    let of_other_network = Some(([198, 51, 100, 1], 1).into());
    let transport = TestTransport::new(duplex(1).0);
    guard.admit(transport, of_other_network, None).unwrap();
    sleep(SECOND).await;
    let admitted = (0..200)
        .filter_map(|last| connect_from(&guard, last).ok())
        .count();
    assert_eq!(admitted, 40);
}

#[tokio::test(start_paused = true)]
async fn a_client_above_the_accept_rate_is_refused_and_others_are_not() {
    let (guard, journal) = tracking_guard(ConnGuard::builder().accept_rate((10, 5)));
    let admitted = |last, times| {
        (0..times)
            .filter(|_| connect_from(&guard, last).is_ok())
            .count()
    };
    assert_eq!(admitted(1, 20), 5);
    assert_eq!(admitted(2, 5), 5);
    advance(SECOND / 2).await;
    assert_eq!(admitted(1, 20), 5);
    let (violation, _) = journal.disconnected()[0];
    assert_eq!(
        (violation.reason, violation.phase, violation.limit),
        (Reason::AcceptRate, Phase::Accept, 0)
    );
    assert_eq!(violation.observed, 100); // Milliseconds until the next connection is admitted.
}
