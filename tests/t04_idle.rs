//! T04: connections that are kept for nothing, HTTP/1 and HTTP/2, under stock `axum::serve`:
//! ended in good order when they have been idle for long enough, whatever they send meanwhile,
//! and never while a request is in work.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, WebSocketUpgrade},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use guarded::{GET, Neighbour, SECOND, SLACK, all_gone, app, cut, h2, serve, served};
use palisade::conn::{ConnGuard, ConnInfo, Pressure};
use palisade_core::{Guard, Phase, Reason};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, until},
};
use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep},
};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn guard(journal: &Journal) -> ConnGuard {
    let builder = ConnGuard::builder().idle(SECOND).upgraded_idle(2 * SECOND);
    builder.metrics(journal.clone()).build().unwrap()
}

fn is_on_time(after: Duration, due: Duration) {
    // From the answer on, which was here a moment before we looked at the clock.
    let early = Duration::from_millis(100);
    assert!((due - early..due + SLACK).contains(&after), "{after:?} for {due:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_of_http1_is_finished_and_not_reset() {
    let journal = Journal::default();
    let guard = guard(&journal);
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    served(&mut client).await;
    let (_, is_reset, after) = cut(&mut client).await;
    assert!(!is_reset);
    is_on_time(after, SECOND);
    neighbour.was_served().await;
    drop(client);
    all_gone(&guard).await;
    let ended = journal.disconnected();
    let [(ended, _)] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!((ended.reason, ended.phase), (Reason::Idle, Phase::Idle));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_ping_for_ever_is_idle_on_http2() {
    let journal = Journal::default();
    let guard = guard(&journal);
    let server = serve(&guard, app()).await;
    let neighbour = Neighbour::of(server.addr);
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send([h2::hello(65_535), h2::get(1, "/")].concat()).await.unwrap();
    until("it was answered", || guard.snapshot().at(Phase::Idle) > 0).await;
    let answered = Instant::now();
    let (mut read, mut write) = client.stream.into_split();
    let pings = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let ping = h2::frame(h2::PING, 0, 0, &[7; 8]);
        while write.write_all(&ping).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answers = Vec::new();
    let _ = read.read_to_end(&mut answers).await;
    is_on_time(answered.elapsed(), SECOND);
    assert!(answers.len() > 20 * 17, "its PINGs were answered: {}", answers.len());
    pings.await.unwrap();
    neighbour.was_served().await;
    all_gone(&guard).await;
    assert!(journal.closed().contains(&Some(Reason::Idle)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handler_and_a_slow_stream_are_not_idle() {
    let journal = Journal::default();
    let guard = guard(&journal);
    let slow = || async {
        sleep(2 * SECOND).await;
        "late"
    };
    let stream = || async {
        let ticks = stream::iter(0..3).then(|tick| async move {
            sleep(SECOND).await;
            Ok::<_, Infallible>(Bytes::from(format!("data: {tick}\n\n")))
        });
        Body::from_stream(ticks)
    };
    let app = Router::new().route("/slow", get(slow)).route("/stream", get(stream));
    let server = serve(&guard, app).await;
    let addr = server.addr;
    let (slow, stream) = tokio::join!(
        clients::get(LOCALHOST, addr, "/slow"),
        clients::get(LOCALHOST, addr, "/stream")
    );
    assert_eq!(slow.unwrap().body(), "late");
    assert_eq!(stream.unwrap().body(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    // On HTTP/2 as well, where hyper reads all the while.
    let mut client = clients::http2(LOCALHOST, addr).await.unwrap();
    let request = http::Request::get(format!("http://{addr}/slow"));
    let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let answer = clients::whole(client.send_request(request).await.unwrap()).await.unwrap();
    assert_eq!(answer.body(), "late");
    drop(client);
    all_gone(&guard).await;
    assert!(journal.disconnected().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_counts_and_has_its_own_silence() {
    let journal = Journal::default();
    let guard = guard(&journal);
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    break;
                }
            }
        })
    };
    let server = serve(&guard, Router::new().route("/ws", any(echo))).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.send(upgrade).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 101);
    // For longer than HTTP may be idle, a word now and then.
    for _ in 0..3 {
        sleep(SECOND).await;
        client.send([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
        let mut echoed = [0; 4];
        client.stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, [0x81, 2, b'h', b'i']);
        assert_eq!((guard.snapshot().open, guard.snapshot().at(Phase::Upgraded)), (1, 1));
    }
    let (_, _, after) = cut(&mut client).await;
    is_on_time(after, 2 * SECOND);
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::Idle)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_of_http2_is_an_upgrade_and_a_request_beside_it_is_a_request() {
    let journal = Journal::default();
    let builder = ConnGuard::builder().idle(SECOND / 2).upgraded_idle(2 * SECOND);
    let guard = builder.max_upgraded(1).metrics(journal.clone()).build().unwrap();
    let ws = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    };
    let server = serve(&guard, app().route("/ws", any(ws))).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client.send([h2::hello(65_535), h2::websocket(1, "/ws")].concat()).await.unwrap();
    // :status 200 and 503, as HPACK has them.
    assert_eq!(h2::next(&mut client.stream, h2::HEADERS, 1).await[0], 0x88);
    until("it is upgraded", || guard.snapshot().at(Phase::Upgraded) == 1).await;
    let mut second = RawClient::connect(server.addr).await.unwrap();
    second.send([h2::hello(65_535), h2::websocket(1, "/ws")].concat()).await.unwrap();
    assert_eq!(
        h2::next(&mut second.stream, h2::HEADERS, 1).await[..5],
        [0x48, 0x83, 0x6c, 0x0c, 0xff]
    );
    assert_eq!(guard.snapshot().upgraded, 1);
    drop(second);
    // Longer than HTTP may be idle, with nothing in flight and with a request.
    sleep(SECOND).await;
    client.send(h2::get(3, "/hang")).await.unwrap();
    until("it is at work", || guard.snapshot().at(Phase::Working) == 1).await;
    sleep(3 * SECOND).await;
    client.send(h2::frame(h2::RST_STREAM, 0, 3, &[0, 0, 0, 8])).await.unwrap();
    until("it is over", || guard.snapshot().at(Phase::Upgraded) == 1).await;
    let (_, _, after) = cut(&mut client).await;
    is_on_time(after, 2 * SECOND);
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.refused(), [(Guard::Connection, Reason::UpgradedFull)]);
    assert_eq!(guard.snapshot().upgraded, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_upgrade_too_many_is_refused_in_good_order() {
    let journal = Journal::default();
    let guard = ConnGuard::builder().max_upgraded(1).metrics(journal.clone()).build().unwrap();
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
    };
    let server = serve(&guard, app().route("/ws", any(echo))).await;
    let upgrade = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut first = RawClient::connect(server.addr).await.unwrap();
    first.send(upgrade).await.unwrap();
    assert_eq!(first.head().await.unwrap().status, 101);
    let mut second = RawClient::connect(server.addr).await.unwrap();
    second.send(upgrade).await.unwrap();
    let head = second.head().await.unwrap();
    assert_eq!((head.status.as_u16(), head.header("retry-after")), (503, Some("1")));
    let length = head.header("content-length").unwrap().parse().unwrap();
    second.body(length).await.unwrap();
    // It goes on as HTTP, and gets its turn when there is a place.
    served(&mut second).await;
    drop(first);
    until("the first is gone", || guard.snapshot().open == 1).await;
    second.send(upgrade).await.unwrap();
    assert_eq!(second.head().await.unwrap().status, 101);
    drop(second);
    all_gone(&guard).await;
    assert_eq!(journal.refused(), [(Guard::Connection, Reason::UpgradedFull)]);
    assert_eq!(guard.snapshot().upgraded, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn age_and_the_number_of_requests_say_close_and_then_end() {
    let journal = Journal::default();
    let builder = ConnGuard::builder().max_requests(3).metrics(journal.clone());
    let guard = builder.build().unwrap();
    let server = serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    // Pipelined, and one too many.
    client.send(GET.repeat(4)).await.unwrap();
    let answers = String::from_utf8(client.rest().await).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3);
    assert_eq!(answers.matches("connection: close").count(), 1);
    drop(client);
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [Some(Reason::MaxRequests)]);

    let guard = ConnGuard::builder().max_age(SECOND).build().unwrap();
    let server = serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let opened = Instant::now();
    let closed = loop {
        assert!(opened.elapsed() < SECOND + SLACK, "{:?}", opened.elapsed());
        if client.send(GET).await.is_err() {
            break None;
        }
        let Ok(head) = client.head().await else { break None };
        if head.header("connection") == Some("close") {
            break Some(head.status);
        }
        client.body(6).await.unwrap();
    };
    // Between two requests it may also be ended without a word.
    assert!(closed.is_none_or(|status| status == 200));
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_knows_its_peer_and_its_connection() {
    let guard = ConnGuard::default();
    let who = |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: axum::extract::Request| async move {
        let conn = request.extensions().get::<Arc<ConnInfo>>().unwrap();
        format!("{} {} {}", peer.ip(), conn.peer() == peer, conn.local().is_some())
    };
    let server = serve(&guard, Router::new().route("/", get(who))).await;
    let answer = clients::get(Ipv4Addr::new(127, 0, 0, 5), server.addr, "/").await.unwrap();
    assert_eq!(answer.body(), "127.0.0.5 true true");
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_pressure_the_idle_go_and_who_asks_now_and_then_is_served_throughout() {
    let pressure = Pressure::default();
    let guard = ConnGuard::builder().pressure(pressure.clone()).build().unwrap();
    let server = serve(&guard, app()).await;
    let mut idle = RawClient::connect(server.addr).await.unwrap();
    served(&mut idle).await;
    let mut silent = RawClient::connect(server.addr).await.unwrap();
    let neighbour = Neighbour::of(server.addr);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(guard.snapshot().going, 0);

    pressure.set(1.0);
    let (finished, reset) = tokio::join!(cut(&mut idle), cut(&mut silent));
    assert!(finished.0.is_empty() && !finished.1 && finished.2 < SECOND, "{finished:?}");
    assert!(reset.0.is_empty() && reset.1 && reset.2 < SECOND + SLACK, "{reset:?}");
    neighbour.was_served().await;
    all_gone(&guard).await;
}
