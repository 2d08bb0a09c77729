//! A server before whose connections a proxy stands, and whose guard takes that for one client, says
//! so once; what a few clients claim is not worth a word.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod guarded;

use guarded::{GET, all_gone, app, hardened, served};
use palisade::{
    Guard, Snapshot,
    conn::{ConnGuard, ConnGuardBuilder},
    words::Level,
};
use palisade_testkit::{Journal, clients::RawClient};

const FORWARDED: &str = "GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.7\r\n\r\n";

/// So many connections of which so many are forwarded, and what was said.
async fn said(builder: ConnGuardBuilder, all: u32, forwarded: u32) -> (Vec<u32>, Option<u64>) {
    let (journal, snapshot) = (Journal::default(), Snapshot::new());
    let guard = builder.metrics((journal.clone(), snapshot.clone())).build().unwrap();
    let server = hardened(&guard, app()).await;
    for n in 0..all {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(if n < forwarded { FORWARDED } else { GET }).await.unwrap();
        assert_eq!(client.head().await.unwrap().status, 200);
    }
    served(&mut RawClient::connect(server.addr).await.unwrap()).await;
    let level = journal.level(Guard::Connection, Level::ForwardedPercent);
    assert_eq!(snapshot.prometheus().contains("palisade_forwarded_percent{"), level.is_some());
    drop(server);
    all_gone(&guard).await;
    (journal.forwarded(), level)
}

#[tokio::test]
async fn a_proxy_that_counts_as_one_client_is_told_of_once() {
    let edge = || ConnGuard::builder().accept_rate(10_000, 10_000);
    assert_eq!(said(edge(), 300, 300).await, (vec![100], Some(100)));
    assert_eq!(said(edge(), 150, 100).await, (vec![], Some(78)));
    assert_eq!(said(edge().behind_proxy(), 150, 150).await, (vec![], None));
}
