//! T07: clients that request much and read nothing of it, on HTTP/1 and HTTP/2, under stock
//! `axum::serve`. They are reset in time, and the kernel takes little for them meanwhile. A client
//! that reads slowly and steadily keeps its connection.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use palisade::conn::ConnGuard;
use palisade_core::{Phase, Reason};
use palisade_testkit::{
    Journal,
    clients::{RawClient, RawHead, wait_until},
    guarded::{GET, SECOND, SLACK, ServerKind, all_gone, app, assert_served, read_until_closed},
    h2, on_servers,
};
use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const GET_ENDLESS: &str = "GET /endless HTTP/1.1\r\nhost: test\r\n\r\n";

fn guard_with_write_timeout(write_timeout: Duration) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .write_timeout(write_timeout)
        .idle_timeout(write_timeout)
        .metrics(journal.clone());
    (builder.build().unwrap(), journal)
}

/// Sends `request` and reads nothing until the connection is reset. Returns the number of bytes
/// that had arrived, and whether the reset came in time.
async fn stall_until_reset(addr: SocketAddr, request: Vec<u8>) -> (usize, bool) {
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(request).await.unwrap();
    // `peek` and `take_error` report the reset without reading a byte of the response.
    let reset = timeout(5 * SECOND, async {
        let mut unseen = [0; 1];
        while client.stream.peek(&mut unseen).await.is_ok()
            && client.stream.take_error().unwrap().is_none()
        {
            sleep(Duration::from_millis(10)).await;
        }
    });
    let in_time = reset.await.is_ok();
    let (bytes, _, _) = read_until_closed(&mut client).await;
    (bytes.len(), in_time)
}

async fn a_client_that_reads_nothing_is_reset_in_time_and_few_bytes_wait_for_it(kind: ServerKind) {
    let (guard, journal) = guard_with_write_timeout(SECOND);
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut readers = JoinSet::new();
    let h2_request = || [h2::hello(0x7fff_ffff), h2::get(1, "/endless")].concat();
    for n in 0..20 {
        let request = if n % 2 == 0 {
            GET_ENDLESS.into()
        } else {
            h2_request()
        };
        readers.spawn(stall_until_reset(server.addr, request));
    }
    // Each connection has its own timeout: on a busy machine the first ones are reset before the
    // last have connected.
    for (_, in_time) in readers.join_all().await {
        assert!(in_time);
    }
    neighbour.was_served().await;
    all_gone(&guard).await;
    let ended = journal.disconnected();
    assert_eq!(ended.len(), 20);
    assert!(
        ended
            .iter()
            .all(|(v, _)| (v.reason, v.phase) == (Reason::WriteStall, Phase::Writing))
    );
    // Of an endless response the server's kernel takes as much as the client's kernel does, plus 64
    // KiB.
    let closed = guard.recently_closed();
    let in_time = 1000..(SECOND + SLACK).as_millis() as u64;
    assert!(
        closed.iter().all(|conn| in_time.contains(&conn.observed)),
        "{closed:?}"
    );
    let taken: Vec<_> = closed.iter().map(|conn| conn.written >> 10).collect();
    println!("KiB taken for each stalled reader: {taken:?}");
    assert!(taken.iter().all(|kib| *kib < 8 * 1024), "{taken:?}");
}

async fn window_updates_without_reading_do_not_extend_the_write_timeout(kind: ServerKind) {
    let (guard, journal) = guard_with_write_timeout(SECOND);
    let server = kind.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    // Not the largest window: one byte more would overflow it and reset the stream.
    client
        .send([h2::hello(0x7000_0000), h2::get(1, "/endless")].concat())
        .await
        .unwrap();
    wait_until("the reader stalls", || {
        guard.snapshot().connections_in(Phase::Writing) == 1
    })
    .await;
    let stalled = Instant::now();
    let update = h2::frame(h2::WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
    let ping = h2::frame(h2::PING, 0, 0, &[0; 8]);
    while client
        .stream
        .write_all(&[&update[..], &ping].concat())
        .await
        .is_ok()
    {
        assert!(
            stalled.elapsed() < SECOND + SLACK,
            "{:?}",
            stalled.elapsed()
        );
        sleep(Duration::from_millis(50)).await;
    }
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::WriteStall)]);
}

async fn a_slow_and_steady_reader_keeps_its_connection(kind: ServerKind) {
    let (guard, journal) = guard_with_write_timeout(2 * SECOND);
    let server = kind.serve(&guard, app()).await;
    // A small receive buffer, as on a slow line: the window reopens in small steps.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut client = socket.connect(server.addr).await.unwrap();
    client.write_all(GET_ENDLESS.as_bytes()).await.unwrap();
    let started = Instant::now();
    let mut chunk = vec![0; 6 * 1024];
    // 64 KiB per second, for longer than the write timeout.
    while started.elapsed() < 4 * SECOND {
        client.read_exact(&mut chunk).await.unwrap();
        sleep(Duration::from_millis(94)).await;
    }
    assert!(journal.disconnected().is_empty());
    drop(client);
    all_gone(&guard).await;
}

/// Runs for `PALISADE_SOAK_SECONDS` with the default write timeout of 30 s. Without the variable,
/// runs for 8 s with a write timeout of 4 s.
async fn a_download_at_64_kib_per_second_is_never_cut(kind: ServerKind) {
    let soak = std::env::var("PALISADE_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let write_timeout = if soak.is_some() { 30 } else { 4 };
    let (guard, journal) = guard_with_write_timeout(write_timeout * SECOND);
    let server = kind.serve(&guard, app()).await;
    let lasts = Duration::from_secs(soak.unwrap_or(8));
    let mut plain = RawClient::connect(server.addr).await.unwrap();
    plain.send(GET_ENDLESS).await.unwrap();
    let mut framed = RawClient::connect(server.addr).await.unwrap();
    framed
        .send([h2::hello(65_535), h2::get(1, "/endless")].concat())
        .await
        .unwrap();
    let started = Instant::now();
    // The system's own receive buffers: the window reopens in large steps.
    let http1 = async {
        let mut piece = vec![0; 16 * 1024];
        while started.elapsed() < lasts {
            plain.stream.read_exact(&mut piece).await.unwrap();
            sleep(SECOND / 4).await;
        }
    };
    let http2 = async {
        while started.elapsed() < lasts {
            let frame = h2::read(&mut framed.stream).await;
            let length = frame.payload.len() as u32;
            if frame.kind == h2::DATA && length > 0 {
                sleep(SECOND / 4 * length / (16 * 1024)).await;
                framed
                    .send([h2::open(0, length), h2::open(1, length)].concat())
                    .await
                    .unwrap();
            }
        }
    };
    tokio::join!(http1, http2);
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    assert!(journal.cut().is_empty(), "{:?}", journal.cut());
    drop((plain, framed));
    all_gone(&guard).await;
}

async fn a_response_taken_slowly_behind_its_window_is_not_idle(kind: ServerKind) {
    // hyper takes the whole body at once, so the request has ended for the layers.
    let (guard, journal) = guard_with_write_timeout(SECOND);
    let big = axum::Router::new().route(
        "/big",
        axum::routing::get(|| async { vec![b'x'; 256 * 1024] }),
    );
    let server = kind.serve(&guard, big).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(16 * 1024), h2::get(1, "/big")].concat())
        .await
        .unwrap();
    let started = Instant::now();
    let mut got = 0;
    let mut chunk = vec![0; 64 * 1024];
    // 16 KiB of window every 200 ms, for three times the idle timeout in all.
    while got < 256 * 1024 {
        sleep(Duration::from_millis(200)).await;
        got += client.stream.read(&mut chunk).await.unwrap();
        let update = h2::frame(h2::WINDOW_UPDATE, 0, 1, &(16 * 1024u32).to_be_bytes());
        client.send(update).await.unwrap();
    }
    assert!(started.elapsed() > 2 * SECOND);
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    drop(client);
    all_gone(&guard).await;
}

async fn get_head(from: Ipv4Addr, addr: SocketAddr) -> std::io::Result<RawHead> {
    let mut client = RawClient::connect_from(from, addr).await?;
    client.send(GET).await?;
    client.head().await
}

async fn newcomers_are_served_while_stalled_readers_fill_the_cap_and_a_slow_reader_stays(
    kind: ServerKind,
) {
    const CAP: usize = 50;
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .max_connections(CAP)
        .metrics(journal.clone());
    let guard = builder.build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut slow = socket.connect(server.addr).await.unwrap();
    slow.write_all(GET_ENDLESS.as_bytes()).await.unwrap();
    let slow = tokio::spawn(async move {
        let mut chunk = vec![0; 6 * 1024];
        loop {
            slow.read_exact(&mut chunk).await.unwrap();
            sleep(Duration::from_millis(94)).await;
        }
    });
    let mut stalled = Vec::new();
    let started = Instant::now();
    for n in 1..(CAP * 9 / 10) as u8 {
        let from = Ipv4Addr::new(127, 0, 3, 1 + n % 8);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        client.send(GET_ENDLESS).await.unwrap();
        stalled.push(client);
    }
    wait_until("the readers stall", || {
        guard.snapshot().connections_in(Phase::Writing) >= stalled.len()
    })
    .await;
    let full = Instant::now();
    let newcomer = async |last| {
        let from = Ipv4Addr::new(127, 0, 4, last);
        kind.ask(from, server.addr, "/").await.unwrap();
    };
    // Before any reader has stalled for long, the last tenth of the cap serves clients with few
    // connections.
    for last in 1..=100 {
        newcomer(last).await;
    }
    wait_until("all newcomers have closed", || {
        journal.closed().len() == 100
    })
    .await;
    // An idle connection that was served is not evicted for a client with many connections.
    let mut idle = RawClient::connect_from(Ipv4Addr::new(127, 0, 5, 1), server.addr)
        .await
        .unwrap();
    assert_served(&mut idle).await;
    assert!(
        get_head(Ipv4Addr::new(127, 0, 3, 1), server.addr)
            .await
            .is_err()
    );
    assert_served(&mut idle).await;
    // On a machine that needs longer than this, the guard may have evicted stalled readers.
    if started.elapsed() < 4 * SECOND {
        assert_eq!(journal.closed().len(), 100);
    }
    // After 4 s a stalled reader is evicted for each newcomer, even for newcomers that stay.
    wait_until("the readers have stalled for long enough", || {
        full.elapsed() >= 5 * SECOND
    })
    .await;
    let mut newcomers = Vec::new();
    for last in 1..=CAP as u8 / 2 {
        let from = Ipv4Addr::new(127, 0, 4, last);
        let mut client = RawClient::connect_from(from, server.addr).await.unwrap();
        assert_served(&mut client).await;
        newcomers.push(client);
    }
    assert!(!slow.is_finished());
    slow.abort();
    drop((stalled, newcomers, slow.await));
    all_gone(&guard).await;
}

async fn a_window_that_stays_shut_or_opens_by_single_bytes_closes_the_connection(kind: ServerKind) {
    if kind == ServerKind::Serve {
        return; // It resets only the stream: see `t07_window_stall.rs`.
    }
    let (guard, journal) = guard_with_write_timeout(SECOND);
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    for drips in [false, true] {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        let requests = [h2::get(1, "/endless"), h2::get(3, "/endless")].concat();
        client
            .send([h2::hello(0), requests].concat())
            .await
            .unwrap();
        let started = Instant::now();
        let (mut read, mut write) = client.stream.into_split();
        let drip = tokio::spawn(async move {
            let ping = h2::frame(h2::PING, 0, 0, &[0; 8]);
            let more = [h2::open(1, 1), h2::open(3, 1), ping].concat();
            while !drips || write.write_all(&more).await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        });
        // Neither the bytes that the windows let through nor the answers to PING extend the time.
        while matches!(read.read(&mut [0; 4096]).await, Ok(count) if count > 0) {}
        assert!(started.elapsed() >= SECOND, "{:?}", started.elapsed());
        assert!(
            started.elapsed() < SECOND + SLACK,
            "{:?}",
            started.elapsed()
        );
        drip.abort();
    }
    neighbour.was_served().await;
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let stalled = (Reason::WindowStall, Phase::Writing);
    let count = ended
        .iter()
        .filter(|(v, _)| (v.reason, v.phase) == stalled)
        .count();
    assert_eq!(count, 2, "{ended:?}");
}

async fn responses_of_one_frame_behind_shut_windows_close_the_connection(kind: ServerKind) {
    if kind == ServerKind::Serve {
        return; // It resets only the streams.
    }
    let (guard, journal) = guard_with_write_timeout(SECOND);
    let server = kind.serve(&guard, app()).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let requests = (0..50).flat_map(|n| h2::get(2 * n + 1, "/"));
    let started = Instant::now();
    client
        .send([h2::hello(0), requests.collect()].concat())
        .await
        .unwrap();
    // The handlers are done, and hyper has taken all of their bodies.
    wait_until("the requests are in flight", || {
        guard.snapshot().in_flight >= 50
    })
    .await;
    let (_, is_reset, _) = read_until_closed(&mut client).await;
    let took = started.elapsed();
    assert!(
        is_reset && took >= SECOND && took < SECOND + SLACK,
        "{took:?}"
    );
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.disconnected()[0].0.reason, Reason::WindowStall);
}

async fn responses_behind_windows_of_one_byte_are_in_flight_until_they_are_cut(kind: ServerKind) {
    let (guard, journal) = guard_with_write_timeout(2 * SECOND);
    let whole = || async { Bytes::from(vec![b'x'; 16 * 1024]) };
    let server = kind.serve(&guard, app().route("/whole", get(whole))).await;
    let neighbour = kind.neighbour(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let requests: Vec<u8> = (0..99).flat_map(|n| h2::get(2 * n + 1, "/whole")).collect();
    client
        .send([h2::hello(1), requests].concat())
        .await
        .unwrap();
    let requested = Instant::now();
    let in_flight = || guard.snapshot().in_flight;
    wait_until("all requests are in flight", || in_flight() >= 99).await;
    // They stay in flight, although hyper has handed all but one byte of each to h2.
    sleep(SECOND / 2).await;
    assert!((99..=101).contains(&in_flight()), "{}", in_flight());
    // A small request now and then does not keep them in flight.
    let mut stream = 201;
    while in_flight() >= 99 {
        let _ = client
            .send([h2::get(stream, "/"), h2::open(stream, 10)].concat())
            .await;
        stream += 2;
        sleep(SECOND / 4).await;
        assert!(
            requested.elapsed() < 2 * SECOND + SLACK,
            "{} are still in flight",
            in_flight()
        );
    }
    assert!(
        requested.elapsed() >= 2 * SECOND,
        "{:?}",
        requested.elapsed()
    );
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    let closed = journal
        .disconnected()
        .iter()
        .map(|(closed, _)| closed.reason)
        .collect::<Vec<_>>();
    let cut = journal
        .cut()
        .iter()
        .map(|(_, reason)| *reason)
        .collect::<Vec<_>>();
    assert!([closed, cut].concat().contains(&Reason::WindowStall));
}

async fn a_small_window_that_opens_steadily_and_a_quiet_stream_are_not_stalled(kind: ServerKind) {
    // `palisade::serve` measures each stream on its own, by the time to take 16 KiB: four seconds
    // at this rate.
    let (guard, journal) = guard_with_write_timeout(if kind == ServerKind::Serve {
        5 * SECOND
    } else {
        SECOND
    });
    let big = || async {
        Body::from_stream(stream::repeat(Ok::<_, Infallible>(Bytes::from_static(
            &[b'x'; 64 * 1024],
        ))))
    };
    let quiet = || async {
        let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"data: 1\n\n")) });
        Body::from_stream(first.chain(stream::pending()))
    };
    let server = kind
        .serve(
            &guard,
            Router::new()
                .route("/big", get(big))
                .route("/quiet", get(quiet)),
        )
        .await;
    let mut slow = RawClient::connect(server.addr).await.unwrap();
    slow.send([h2::hello(1024), h2::get(1, "/big")].concat())
        .await
        .unwrap();
    let mut listening = RawClient::connect(server.addr).await.unwrap();
    listening
        .send([h2::hello(65_535), h2::get(1, "/quiet")].concat())
        .await
        .unwrap();
    let started = Instant::now();
    // 4 KiB per second of pieces of 64 KiB: no piece is complete before the loop ends.
    while started.elapsed() < 4 * SECOND {
        sleep(SECOND / 4).await;
        let got = slow.stream.read(&mut [0; 4096]).await.unwrap();
        assert!(got > 0);
        slow.send(h2::open(1, 1024)).await.unwrap();
    }
    assert_eq!(
        h2::next(&mut listening.stream, h2::DATA, 1).await,
        b"data: 1\n\n"
    );
    assert!(
        journal.disconnected().is_empty(),
        "{:?}",
        journal.disconnected()
    );
    drop((slow, listening));
    all_gone(&guard).await;
}

/// Returns the bytes in the kernel's send queues of the connections to `addr`.
#[cfg(target_os = "linux")]
fn send_queue_bytes(addr: SocketAddr) -> u64 {
    let port = format!(":{:04X}", addr.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|fields| fields[1].ends_with(&port));
    let queue = |fields: Vec<&str>| u64::from_str_radix(fields[4].split(':').next().unwrap(), 16);
    ours.map(|fields| queue(fields).unwrap()).sum()
}

#[cfg(target_os = "linux")]
async fn two_hundred_stalled_readers_hold_few_bytes_in_the_kernel(kind: ServerKind) {
    let guard = ConnGuard::builder().max_per_client(200).build().unwrap();
    let server = kind.serve(&guard, app()).await;
    let mut stalled = Vec::new();
    for _ in 0..200 {
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(GET_ENDLESS).await.unwrap();
        stalled.push(client);
    }
    wait_until("all readers stall", || {
        guard.snapshot().connections_in(Phase::Writing) == 200
    })
    .await;
    let held = send_queue_bytes(server.addr);
    println!("{} KiB for each", held / 200 / 1024);
    assert!(held > 0 && held <= 64 << 20, "{held}");
    drop(stalled);
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    a_client_that_reads_nothing_is_reset_in_time_and_few_bytes_wait_for_it,
    window_updates_without_reading_do_not_extend_the_write_timeout,
    a_slow_and_steady_reader_keeps_its_connection,
    a_download_at_64_kib_per_second_is_never_cut,
    a_response_taken_slowly_behind_its_window_is_not_idle,
    newcomers_are_served_while_stalled_readers_fill_the_cap_and_a_slow_reader_stays,
    responses_behind_windows_of_one_byte_are_in_flight_until_they_are_cut,
    a_small_window_that_opens_steadily_and_a_quiet_stream_are_not_stalled,
    two_hundred_stalled_readers_hold_few_bytes_in_the_kernel,
}

on_servers! {
    [axum, tonic]
    a_window_that_stays_shut_or_opens_by_single_bytes_closes_the_connection,
    responses_of_one_frame_behind_shut_windows_close_the_connection,
}
