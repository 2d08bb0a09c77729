use super::*;
use crate::ConnGuard;
use std::time::Duration;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

const LOOPBACK: &str = "127.0.0.1:0";

#[tokio::test]
async fn listeners_on_one_address_share_the_limits_of_their_guard() {
    let guard = ConnGuard::builder().max_per_client(2).build().unwrap();
    let shared = BindOptions::new().reuse_port(true);
    let mut first = guard.bind_with(LOOPBACK, shared).await.unwrap();
    let address = first.local_addr().unwrap();
    let mut second = guard.bind_with(address, shared).await.unwrap();
    guard.bind(address).await.unwrap_err(); // It does not set the option.
    let mut open = Vec::new();
    for _ in 0..20 {
        let client = TcpStream::connect(address).await.unwrap();
        let (io, _) = tokio::select! {
            accepted = first.accept() => accepted.unwrap(),
            accepted = second.accept() => accepted.unwrap(),
        };
        open.push((client, io));
        let is_open = |(_, io): &(TcpStream, crate::GuardedIo<TcpStream>)| {
            io.conn().state().decision().is_none()
        };
        open.retain(is_open);
        assert!(open.len() <= 2);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn gauges_show_connections_that_wait_to_be_accepted() {
    use palisade_core::{Gauge, Guard};
    use palisade_testkit::{Journal, clients::wait_until};
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .metrics(journal.clone())
        .build()
        .unwrap();
    let gauge = |gauge| journal.gauge(Guard::Connection, gauge);
    assert_eq!(gauge(Gauge::AcceptQueue), None); // There is no listener.
    let mut first = guard
        .bind_with(LOOPBACK, BindOptions::new().backlog(3))
        .await
        .unwrap();
    let second = guard
        .bind_with("[::1]:0", BindOptions::new().backlog(50))
        .await;
    let (second, backlog) = second.map_or((None, 3), |second| (Some(second), 53));
    assert_eq!(
        (gauge(Gauge::AcceptQueue), gauge(Gauge::AcceptQueueLimit)),
        (Some(0), Some(backlog))
    );
    let lost = gauge(Gauge::ListenOverflows).unwrap();
    assert!(gauge(Gauge::ListenDrops).unwrap() >= lost);

    let address = first.local_addr().unwrap();
    let connect = || TcpStream::connect(address);
    let mut clients = vec![connect().await.unwrap(), connect().await.unwrap()];
    if let Some(second) = &second {
        clients.push(
            TcpStream::connect(second.local_addr().unwrap())
                .await
                .unwrap(),
        );
    }
    wait_until("the connections wait", || {
        gauge(Gauge::AcceptQueue) == Some(clients.len() as u64)
    })
    .await;
    let _accepted = first.accept().await.unwrap();
    assert_eq!(gauge(Gauge::AcceptQueue), Some(clients.len() as u64 - 1));
    drop((first, second));
    assert_eq!(gauge(Gauge::AcceptQueueLimit), None);
}

#[tokio::test]
async fn the_backlog_option_is_effective() {
    let guard = ConnGuard::default();
    let error = guard
        .bind_with(LOOPBACK, BindOptions::new().backlog(0))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let small = guard
        .bind_with(LOOPBACK, BindOptions::new().backlog(1))
        .await
        .unwrap();
    let large = guard.bind(LOOPBACK).await.unwrap();
    // Connects until a connection is not answered. Linux accepts one more than the backlog.
    let waiting_connections = async |address, max| {
        let mut waiting = Vec::new();
        let started = Instant::now();
        while waiting.len() < max && started.elapsed() < Duration::from_secs(10) {
            let connect = timeout(Duration::from_millis(300), TcpStream::connect(address));
            let Ok(Ok(client)) = connect.await else { break };
            waiting.push(client);
        }
        waiting.len()
    };
    assert!((1..=3).contains(&waiting_connections(small.local_addr().unwrap(), 20).await));
    assert_eq!(
        waiting_connections(large.local_addr().unwrap(), 100).await,
        100
    );
}
