//! The connection guard under tonic's own server: the rules of T01, T03 and T04 hold, and handlers
//! know their peers. Also the bounds that `harden` sets, and tonic's services under
//! `palisade::serve`.

use palisade::conn::{ConnGuard, ConnInfo};
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    demo::{
        Piece, Total,
        echo_client::EchoClient,
        echo_server::{Echo, EchoServer},
    },
    echo::Lengths,
    servers::{self, Server},
};
use palisade_testkit::{
    guarded::{
        SECOND, SLACK, ServerKind, all_gone, app, read_until_closed, send_and_read_until_closed,
        serve_with_tonic,
    },
    h2,
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming, transport};

/// A service that returns 1 if the request carries its peer.
struct PeerCheck;

#[tonic::async_trait]
impl Echo for PeerCheck {
    async fn unary(&self, request: Request<Piece>) -> Result<Response<Total>, Status> {
        let conn = request.extensions().get::<Arc<ConnInfo>>();
        let peer = conn.map(|conn| conn.peer());
        let knows = peer.is_some() && request.remote_addr() == peer;
        Ok(Response::new(Total {
            bytes: knows.into(),
        }))
    }

    async fn collect(&self, request: Request<Streaming<Piece>>) -> Result<Response<Total>, Status> {
        let mut pieces = request.into_inner();
        while pieces.message().await?.is_some() {}
        Ok(Response::new(Total { bytes: 0 }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonic_s_server_is_guarded_and_its_handlers_know_their_peers() {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .idle_timeout(2 * SECOND);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let mut router = transport::Server::builder().layer(guard.track_requests());
    let router = router.add_service(EchoServer::new(PeerCheck));
    let server = tokio::spawn(async move { router.serve_with_incoming(listener).await.unwrap() });
    let server = Server::new(addr, server);

    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let piece = || Piece {
        data: b"four".as_slice().into(),
    };
    assert_eq!(client.unary(piece()).await.unwrap().get_ref().bytes, 1);

    let attacks = [
        Vec::new(),
        h2::PREFACE[..12].to_vec(),
        h2::PREFACE.to_vec(),
        h2::hello(65_535),
        [h2::hello(65_535), h2::frame(h2::HEADERS, 0, 1, &[0x82])].concat(),
    ];
    let attacks: JoinSet<_> = attacks
        .into_iter()
        .map(|bytes| async move {
            let mut client = RawClient::connect(addr).await.unwrap();
            client.send(bytes).await.unwrap();
            read_until_closed(&mut client).await.2
        })
        .collect();
    // The honest client is served during the attacks.
    while guard.snapshot().open > 1 {
        assert_eq!(client.unary(piece()).await.unwrap().get_ref().bytes, 1);
    }
    for after in attacks.join_all().await {
        assert!(after < SECOND + SLACK, "{after:?}");
    }
    let first = journal.disconnected();
    assert!(first.len() == 5 && first.iter().all(|(v, _)| v.reason == Reason::FirstRequest));

    // The honest client is idle for longer than the idle timeout: its connection is closed
    // gracefully, and it opens another one for the next request.
    all_gone(&guard).await;
    assert_eq!(journal.closed().last(), Some(&Some(Reason::Idle)));
    // The client may notice the close of its old connection a moment after the server's close.
    let mut again = client.unary(piece()).await;
    for _ in 0..100 {
        if again.is_ok() {
            break;
        }
        again = client.unary(piece()).await;
    }
    assert_eq!(again.unwrap().get_ref().bytes, 1);
    drop(client);
    all_gone(&guard).await;
}

/// A service that counts its handlers: those started, and those still at work.
#[derive(Clone, Default)]
struct CountedHandlers(Arc<[AtomicUsize; 2]>);

impl CountedHandlers {
    fn started(&self) -> usize {
        self.0[0].load(SeqCst)
    }

    fn at_work(&self) -> usize {
        self.0[1].load(SeqCst)
    }
}

#[tonic::async_trait]
impl Echo for CountedHandlers {
    async fn unary(&self, _: Request<Piece>) -> Result<Response<Total>, Status> {
        Ok(Response::new(Total { bytes: 0 }))
    }

    async fn collect(&self, request: Request<Streaming<Piece>>) -> Result<Response<Total>, Status> {
        struct AtWork(CountedHandlers);
        impl Drop for AtWork {
            fn drop(&mut self) {
                self.0.0[1].fetch_sub(1, SeqCst);
            }
        }
        self.0
            .iter()
            .for_each(|count| _ = count.fetch_add(1, SeqCst));
        let _at_work = AtWork(self.clone());
        let mut pieces = request.into_inner();
        while pieces.message().await?.is_some() {}
        Ok(Response::new(Total { bytes: 0 }))
    }
}

/// Encodes streaming calls that never end, one for each of `numbers`, on one connection.
fn unfinished_calls(numbers: Range<u32>) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/demo.Echo/Collect"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    numbers
        .flat_map(|n| h2::headers(2 * n + 1, 0, &fields))
        .collect()
}

/// Serves `echo` with `palisade::serve`.
async fn serve_with_palisade(guard: &ConnGuard, echo: impl Echo) -> Server {
    ServerKind::Serve.serve(guard, routes(echo)).await
}

fn routes(echo: impl Echo) -> axum::Router {
    tonic::service::Routes::new(EchoServer::new(echo)).into_axum_router()
}

#[tokio::test]
async fn palisade_serve_and_hardened_tonic_announce_the_same_http2_settings() {
    for with_palisade in [false, true] {
        let guard = ConnGuard::default();
        let server = if with_palisade {
            serve_with_palisade(&guard, Lengths).await
        } else {
            ServerKind::Tonic.serve(&guard, routes(Lengths)).await
        };
        let mut client = RawClient::connect(server.addr).await.unwrap();
        client.send(h2::hello(65_535)).await.unwrap();
        let settings = h2::next(&mut client.stream, h2::SETTINGS, 0).await;
        let announced = |id: u8| {
            let setting = settings.chunks(6).find(|setting| setting[..2] == [0, id])?;
            Some(u32::from_be_bytes(setting[2..].try_into().unwrap()))
        };
        // RFC 9113 section 6.5.2: concurrent streams, stream window, header list size.
        assert_eq!(
            [3, 4, 6].map(announced),
            [Some(100), Some(256 << 10), Some(32 << 10)]
        );
        let increment = h2::next(&mut client.stream, h2::WINDOW_UPDATE, 0).await;
        assert_eq!(increment, ((512u32 << 10) - 65_535).to_be_bytes());
        drop(client);
        all_gone(&guard).await;
    }
}

#[tokio::test]
async fn hardened_tonic_sends_goaway_to_a_connection_at_its_maximum_age() {
    let day = Duration::from_secs(86_400);
    let guard = ConnGuard::builder().idle_timeout(day).build().unwrap();
    let server = ServerKind::Tonic.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send([h2::hello(65_535), h2::get(1, "/")].concat())
        .await
        .unwrap();
    assert_eq!(h2::next(&mut client.stream, h2::DATA, 1).await, b"served");
    tokio::time::pause();
    // The clock is paused: everything sent meanwhile has arrived when this sleep ends.
    tokio::time::sleep(Duration::from_secs(52 * 60 + 1)).await;
    assert_eq!(guard.snapshot().close_pending, 0);
    tokio::time::resume();
    let announced = h2::next(&mut client.stream, h2::GOAWAY, 0).await;
    assert_eq!(
        announced[..8],
        [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        "GOAWAY without an error"
    );
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_100_of_5000_streams_on_one_connection_start_a_handler() {
    for with_palisade in [false, true] {
        let (guard, counted) = (ConnGuard::default(), CountedHandlers::default());
        let server = if with_palisade {
            serve_with_palisade(&guard, counted.clone()).await
        } else {
            ServerKind::Tonic
                .serve(&guard, routes(counted.clone()))
                .await
        };
        let mut neighbour = EchoClient::connect(server.url()).await.unwrap();
        let mut attacker = RawClient::connect(server.addr).await.unwrap();
        attacker
            .send([h2::hello(65_535), unfinished_calls(0..101)].concat())
            .await
            .unwrap();
        h2::next(&mut attacker.stream, h2::RST_STREAM, 201).await;
        wait_until("the first 100 calls are at work", || {
            counted.at_work() == 100
        })
        .await;
        let attack = send_and_read_until_closed(attacker, unfinished_calls(101..5000));
        let requests = async {
            for _ in 0..20 {
                neighbour.unary(Piece::default()).await.unwrap();
            }
        };
        let ((response, after), ()) = tokio::join!(attack, requests);
        assert!(after < SLACK, "{after:?}");
        assert_eq!(counted.started(), 100);
        let codes: Vec<_> = h2::frames(&response)
            .iter()
            .filter_map(h2::Frame::code)
            .collect();
        let (goaway, resets) = codes.split_last().unwrap();
        assert_eq!(*goaway, h2::ENHANCE_YOUR_CALM);
        assert_eq!(resets, [h2::REFUSED_STREAM; 1023]);
        wait_until("the handlers are dropped", || counted.at_work() == 0).await;
        drop(neighbour);
        all_gone(&guard).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hardening_all_5000_streams_start_a_handler() {
    let (guard, counted) = (ConnGuard::default(), CountedHandlers::default());
    let server = serve_with_tonic(&guard, false, routes(counted.clone())).await;
    let mut attacker = RawClient::connect(server.addr).await.unwrap();
    attacker
        .send([h2::hello(65_535), unfinished_calls(0..5000)].concat())
        .await
        .unwrap();
    wait_until("all calls are at work", || counted.at_work() == 5000).await;
    assert_eq!(guard.snapshot().in_flight, 5000);
    drop(attacker);
    wait_until("the handlers are dropped", || counted.at_work() == 0).await;
    all_gone(&guard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn palisade_serve_serves_tonic_s_services_and_they_know_their_peers() {
    let guard = ConnGuard::default();
    let server = serve_with_palisade(&guard, Lengths).await;
    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let piece = || Piece {
        data: b"four".as_slice().into(),
    };
    assert_eq!(client.unary(piece()).await.unwrap().get_ref().bytes, 4);
    // 4 MB, of which the flow-control windows admit a quarter at a time.
    let large = || Piece {
        data: vec![1; 40_000].into(),
    };
    let pieces = tokio_stream::iter((0..100).map(move |_| large()));
    assert_eq!(
        client.collect(pieces).await.unwrap().get_ref().bytes,
        4_000_000
    );
    drop(client);
    let server = serve_with_palisade(&guard, PeerCheck).await;
    let mut client = EchoClient::connect(server.url()).await.unwrap();
    assert_eq!(client.unary(piece()).await.unwrap().get_ref().bytes, 1);
    drop(client);
    all_gone(&guard).await;
}
