//! A server before whose connections a proxy stands, and whose guard takes that for one client, says
//! so once; what a few clients claim is not worth a word.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod guarded;

use guarded::{all_gone, app, hardened, served};
use palisade::{
    Guard, Snapshot,
    conn::{ConnGuard, ConnGuardBuilder},
    types::Gauge,
};
use palisade_testkit::{Journal, clients::RawClient};

const FORWARDED: &str = "GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.7\r\n\r\n";

/// What a server is told of that has `kept` requests on each of four connections that stay, and as
/// many as a `part` of them on new ones without a word of a proxy, one on each.
async fn said(builder: ConnGuardBuilder, kept: usize, part: usize) -> (Vec<u32>, Option<u64>) {
    let (journal, snapshot) = (Journal::default(), Snapshot::new());
    let guard = builder
        .metrics((journal.clone(), snapshot.clone()))
        .build()
        .unwrap();
    let server = hardened(&guard, app()).await;
    let mut proxies = Vec::new();
    for _ in 0..4 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        for _ in 0..kept / 20 {
            client.send(FORWARDED.repeat(20)).await.unwrap();
            for _ in 0..20 {
                assert_eq!(client.head().await.unwrap().status, 200);
                assert_eq!(client.body(6).await.unwrap(), b"served");
            }
            for _ in 0..20 / part {
                served(&mut RawClient::connect(server.addr).await.unwrap()).await;
            }
        }
        proxies.push(client);
    }
    let level = journal.level(Guard::Connection, Gauge::ForwardedPercent);
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
async fn a_proxy_that_counts_as_one_client_is_told_of_once() {
    let edge = || {
        ConnGuard::builder()
            .accept_rate(10_000, 10_000)
            .max_requests(1_000_000)
    };
    // Beside it a probe that asks without one, and connects anew each time.
    let (told, level) = said(edge(), 1200, 20).await;
    assert_eq!(told.len(), 1);
    assert!(told[0] > 90 && level > Some(90), "{told:?} {level:?}");
    // Many clients that come without one are no proxy.
    let (told, level) = said(edge(), 600, 1).await;
    assert!(told.is_empty() && level < Some(70), "{told:?} {level:?}");
    assert_eq!(said(edge().behind_proxy(), 600, 20).await, (vec![], None));
}
