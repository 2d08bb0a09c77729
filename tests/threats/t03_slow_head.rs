//! T03: request heads that never end, in every form of HTTP/1 and HTTP/2, under stock
//! `axum::serve`. Each connection is closed in time, and the neighbour is served throughout.

use palisade::conn::ConnGuard;
use palisade_core::{Phase, Reason};
use palisade_testkit::{
    Journal,
    clients::RawClient,
    guarded::{GET, SECOND, SLACK, ServerKind, all_gone, app, assert_served, read_until_closed},
    h2, on_servers,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Name, bytes sent at once, and bytes sent afterwards at one byte every 100 ms.
type Attack = (&'static str, Vec<u8>, Vec<u8>);

fn attacks() -> Vec<Attack> {
    let after_hello = |end: &[u8]| [&h2::hello(65_535)[..], end].concat();
    let headers = h2::frame(h2::HEADERS, h2::END_STREAM, 1, &[0x82, 0x86]);
    let ping = h2::frame(h2::PING, 0, 0, &[0; 8]);
    let endless = b"GET / HTTP/1.1\r\nhost: test\r\nx-endless: yes\r\n".repeat(10);
    vec![
        ("a byte, then silence", b"G".to_vec(), Vec::new()),
        ("a head, byte by byte", Vec::new(), endless.clone()),
        (
            "all but the last line",
            GET.as_bytes()[..GET.len() - 2].to_vec(),
            Vec::new(),
        ),
        ("empty lines", Vec::new(), b"\r\n".repeat(200)),
        ("half a preface", h2::PREFACE[..12].to_vec(), Vec::new()),
        ("a preface, byte by byte", Vec::new(), h2::PREFACE.to_vec()),
        ("a preface, then silence", h2::PREFACE.to_vec(), Vec::new()),
        ("settings, then silence", after_hello(&[]), Vec::new()),
        ("headers without an end", after_hello(&headers), Vec::new()),
        (
            "PING in place of headers",
            after_hello(&[]),
            ping.repeat(20),
        ),
        ("half a frame", after_hello(&headers[..5]), Vec::new()),
    ]
}

/// Runs one attack. Returns its name and the time until the server closed the connection.
async fn attack(addr: SocketAddr, (name, at_once, dripped): Attack) -> (&'static str, Duration) {
    let mut client = RawClient::connect(addr).await.unwrap();
    let started = Instant::now();
    client.send(at_once).await.unwrap();
    for byte in dripped {
        // The pause is the attack's own rate, not a wait for the server.
        sleep(Duration::from_millis(100)).await;
        if client.send([byte]).await.is_err() {
            return (name, started.elapsed());
        }
    }
    read_until_closed(&mut client).await;
    (name, started.elapsed())
}

async fn a_connection_without_a_complete_first_head_is_closed_in_time(kind: ServerKind) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .metrics(journal.clone());
    let guard = guard.build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let attacks: JoinSet<_> = attacks()
        .into_iter()
        .map(|each| attack(server.addr, each))
        .collect();
    let attack_count = attacks.len();
    for (name, after) in attacks.join_all().await {
        assert!(after < SECOND + SLACK, "{name}: {after:?}");
    }
    neighbour.was_served().await;
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let count = |reason| {
        ended
            .iter()
            .filter(|(ended, _)| ended.reason == reason)
            .count()
    };
    assert_eq!(count(Reason::FirstRequest), ended.len());
    // hyper itself closes up to two connections that are not HTTP.
    assert!(ended.len() + 2 >= attack_count, "{ended:?}");
}

async fn an_http1_client_gets_a_408_and_any_other_client_only_a_reset(kind: ServerKind) {
    let guard = ConnGuard::builder()
        .first_request_timeout(SECOND / 2)
        .header_timeout(SECOND / 2)
        .build()
        .unwrap();
    let server = kind.serve(&guard, app()).await;
    for (later, begun) in [
        (false, &b"G"[..]),
        (false, b"POST / HTTP/1.1\r\nhos"),
        (true, b"GE"),
    ] {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        if later {
            assert_served(&mut client).await;
            // Long enough for the sweeper to see the connection idle.
            sleep(SECOND).await;
        }
        client.send(begun).await.unwrap();
        let (answer, is_reset, _) = read_until_closed(&mut client).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 ") && !is_reset, "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    for begun in [&h2::PREFACE[..2], &h2::PREFACE[..12], b"PROXY", b""] {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(begun).await.unwrap();
        let (answer, is_reset, _) = read_until_closed(&mut client).await;
        assert!(is_reset && answer.is_empty(), "{answer:?}");
    }
    all_gone(&guard).await;
}

async fn the_header_timeout_of_a_later_head_starts_at_its_first_byte(kind: ServerKind) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .header_timeout(SECOND)
        .idle_timeout(5 * SECOND);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    assert_served(&mut client).await;
    // Longer than the header timeout. No head has begun, so the client may pause.
    sleep(SECOND * 3 / 2).await;
    assert_served(&mut client).await;
    // The slow write is the attack. The reader, not the next write, observes the close.
    let (mut read, mut write) = client.stream.into_split();
    let mut bytes = GET.bytes();
    write.write_all(&[bytes.next().unwrap()]).await.unwrap();
    let begun = Instant::now();
    let drip = tokio::spawn(async move {
        for byte in bytes {
            sleep(Duration::from_millis(100)).await;
            if write.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let mut answer = [0; 13];
    timeout(5 * SECOND, read.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let after = begun.elapsed();
    assert!((SECOND..SECOND + SLACK).contains(&after), "{after:?}");
    assert_eq!(&answer, b"HTTP/1.1 408 ");
    drip.await.unwrap();
    neighbour.was_served().await;
    drop(read);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let [(ended, _)] = &ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(
        (ended.reason, ended.phase),
        (Reason::SlowHead, Phase::NextHead)
    );
}

async fn half_a_head_pipelined_with_a_request_does_not_evade_the_timeouts(kind: ServerKind) {
    let guard = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .header_timeout(SECOND)
        .idle_timeout(2 * SECOND);
    let guard = guard.build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send(format!("{GET}GET / HT")).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    let (_, _, after) = timeout(5 * SECOND, read_until_closed(&mut client))
        .await
        .unwrap();
    assert!(after < 2 * SECOND + SLACK, "{after:?}"); // The idle timeout applies at the latest.
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    a_connection_without_a_complete_first_head_is_closed_in_time,
    an_http1_client_gets_a_408_and_any_other_client_only_a_reset,
    the_header_timeout_of_a_later_head_starts_at_its_first_byte,
    half_a_head_pipelined_with_a_request_does_not_evade_the_timeouts,
}
