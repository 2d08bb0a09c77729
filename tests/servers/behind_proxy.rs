//! Detection of a proxy that the guard counts as one client. The guard reports it once. Forwarding
//! headers from a few clients only are not reported.

use palisade::{
    Guard, Snapshot,
    conn::{ConnGuard, ConnGuardBuilder},
    types::Gauge,
};
use palisade_testkit::{
    Journal,
    clients::RawClient,
    guarded::{ServerKind, all_gone, app, assert_served},
};

const FORWARDED: &str = "GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.7\r\n\r\n";

/// Sends `forwarded` requests with a forwarding header on each of four kept connections. For every
/// `ratio` of them, sends one request without the header on a new connection.
///
/// Returns the reported percentages and the gauge of the percentage.
async fn detected_proxy(
    builder: ConnGuardBuilder,
    forwarded: usize,
    ratio: usize,
) -> (Vec<u32>, Option<u64>) {
    let (journal, snapshot) = (Journal::default(), Snapshot::new());
    let guard = builder
        .metrics((journal.clone(), snapshot.clone()))
        .build()
        .unwrap();
    let server = ServerKind::Serve.serve(&guard, app()).await;
    let mut proxies = Vec::new();
    for _ in 0..4 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        for _ in 0..forwarded / 20 {
            client.send(FORWARDED.repeat(20)).await.unwrap();
            for _ in 0..20 {
                assert_eq!(client.head().await.unwrap().status, 200);
                assert_eq!(client.body(6).await.unwrap(), b"served");
            }
            for _ in 0..20 / ratio {
                assert_served(&mut RawClient::connect(server.addr).await.unwrap()).await;
            }
        }
        proxies.push(client);
    }
    let level = journal.gauge(Guard::Connection, Gauge::ForwardedPercent);
    assert_eq!(
        snapshot
            .prometheus()
            .contains("palisade_forwarded_percent{"),
        level.is_some()
    );
    drop((server, proxies));
    all_gone(&guard).await;
    (journal.forwarded(), level)
}

#[tokio::test]
async fn a_proxy_that_counts_as_one_client_is_reported_once() {
    let edge = || {
        ConnGuard::builder()
            .accept_rate((10_000, 10_000))
            .max_requests(1_000_000)
    };
    // A health check beside the proxy sends no header, and connects anew for each request.
    let (reported, level) = detected_proxy(edge(), 1200, 20).await;
    assert_eq!(reported.len(), 1);
    assert!(
        reported[0] > 90 && level > Some(90),
        "{reported:?} {level:?}"
    );
    // With as many clients that send no header there is no proxy.
    let (reported, level) = detected_proxy(edge(), 600, 1).await;
    assert!(
        reported.is_empty() && level < Some(70),
        "{reported:?} {level:?}"
    );
    assert_eq!(
        detected_proxy(edge().behind_proxy(), 600, 20).await,
        (vec![], None)
    );
}
