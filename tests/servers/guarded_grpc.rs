//! gRPC streams behind the stack: long streams are not cut, idle streams hold no permit.

use palisade::{Stack, StackLayer, conn::ConnGuard};
use palisade_core::{Gauge, Guard, Reason};
use palisade_testkit::{
    Journal,
    clients::wait_until,
    demo::{
        Piece, echo_client::EchoClient, echo_server::EchoServer, feed_client::FeedClient,
        feed_server::FeedServer,
    },
    echo::{BroadcastFeed, Lengths},
    guarded::{ServerKind, all_gone},
    servers::{self, Server},
};
use std::time::Duration;
use tonic::{Code, service::Routes, transport};

const LIMIT: u64 = 100_000;

/// Serves both services behind `stack`, with `palisade::serve` if `with_palisade`, else with
/// tonic's own server.
async fn serve(
    with_palisade: bool,
    guard: &ConnGuard,
    stack: StackLayer,
    feed: BroadcastFeed,
) -> Server {
    let mut routes = Routes::builder();
    routes
        .add_service(EchoServer::new(Lengths))
        .add_service(FeedServer::new(feed));
    let routes = routes.routes();
    if with_palisade {
        return ServerKind::Serve
            .serve(guard, routes.into_axum_router().layer(stack))
            .await;
    }
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let mut server = transport::Server::builder()
        .layer(guard.track_requests())
        .layer(stack);
    let router = server.add_routes(routes);
    Server::new(
        addr,
        tokio::spawn(async { router.serve_with_incoming(listener).await.unwrap() }),
    )
}

fn piece(bytes: u64) -> Piece {
    Piece {
        data: vec![1; usize::try_from(bytes).unwrap()].into(),
    }
}

/// A stream of three times the limit, in messages of a tenth of the limit.
fn pieces() -> impl tokio_stream::Stream<Item = Piece> {
    tokio_stream::iter((0..30).map(|_| piece(LIMIT / 10)))
}

#[tokio::test]
async fn a_stream_may_be_longer_than_the_limit_of_a_message() {
    for with_palisade in [true, false] {
        let (journal, guard) = (Journal::default(), ConnGuard::default());
        let stack = Stack::edge()
            .max_body(LIMIT)
            .grpc()
            .metrics(journal.clone());
        let stack = stack.build().unwrap();
        let server = serve(with_palisade, &guard, stack, BroadcastFeed::default()).await;
        let mut echo = EchoClient::connect(server.url()).await.unwrap();
        assert_eq!(
            echo.collect(pieces()).await.unwrap().get_ref().bytes,
            3 * LIMIT
        );

        let mut feed = FeedClient::connect(server.url()).await.unwrap();
        let mut replies = feed.chat(pieces()).await.unwrap().into_inner();
        let mut bytes = 0;
        while let Some(reply) = replies.message().await.unwrap() {
            bytes += reply.data.len() as u64;
        }
        assert_eq!(bytes, 3 * LIMIT);
        assert_eq!(journal.refused(), []);

        // The gRPC prefix and the field header of a message count as well.
        assert_eq!(
            echo.unary(piece(LIMIT - 9)).await.unwrap().get_ref().bytes,
            LIMIT - 9
        );
        let too_long = echo.unary(piece(LIMIT)).await.unwrap_err();
        assert_eq!(too_long.code(), Code::ResourceExhausted, "{too_long:?}");
        let one_too_long = tokio_stream::iter([piece(10), piece(LIMIT), piece(10)]);
        let cut = echo.collect(one_too_long).await.unwrap_err();
        assert_eq!(cut.code(), Code::ResourceExhausted, "{cut:?}");
        assert_eq!(journal.refused(), [(Guard::BodyLimit, Reason::TooLarge); 2]);
        // The connection stays open.
        assert_eq!(echo.unary(piece(4)).await.unwrap().get_ref().bytes, 4);
        drop((echo, feed, replies));
        all_gone(&guard).await;
    }
}

#[tokio::test]
async fn without_the_grpc_option_the_limit_holds_for_the_whole_body() {
    let (journal, guard) = (Journal::default(), ConnGuard::default());
    let stack = Stack::edge()
        .max_body(LIMIT)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let server = serve(true, &guard, stack, BroadcastFeed::default()).await;
    let mut echo = EchoClient::connect(server.url()).await.unwrap();
    let cut = echo.collect(pieces()).await.unwrap_err();
    assert_eq!(cut.code(), Code::ResourceExhausted, "{cut:?}");
    drop(echo);
    all_gone(&guard).await;
}

#[tokio::test]
async fn idle_response_streams_hold_no_permit() {
    for with_palisade in [true, false] {
        let (journal, guard) = (Journal::default(), ConnGuard::default());
        let feed = BroadcastFeed::default();
        let stack = Stack::edge()
            .max_requests(2)
            .grpc()
            .metrics(journal.clone());
        let server = serve(with_palisade, &guard, stack.build().unwrap(), feed.clone()).await;
        let level = |gauge| journal.gauge(Guard::ConcurrencyLimit, gauge).unwrap();
        let mut watchers = Vec::new();
        for _ in 0..2 {
            let mut client = FeedClient::connect(server.url()).await.unwrap();
            watchers.push(client.watch(piece(1)).await.unwrap().into_inner());
        }
        let mut echo = EchoClient::connect(server.url()).await.unwrap();
        // New streams hold a permit, because their handlers may be at work.
        assert_eq!(level(Gauge::Working), 2);
        let full = echo.unary(piece(4)).await.unwrap_err();
        assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
        for round in 0..2 {
            tokio::time::pause();
            tokio::time::advance(Duration::from_millis(5_001)).await;
            tokio::time::resume();
            wait_until("both streams have given their permits back", || {
                level(Gauge::Working) == 0
            })
            .await;
            assert_eq!(level(Gauge::Waiting), 2);
            for _ in 0..10 {
                assert_eq!(echo.unary(piece(4)).await.unwrap().get_ref().bytes, 4);
            }
            // The idle streams still deliver messages.
            feed.0.send(piece(1 + round)).unwrap();
            for watcher in &mut watchers {
                let piece = watcher.message().await.unwrap().unwrap();
                assert_eq!(piece.data.len() as u64, 1 + round);
            }
        }
        drop((watchers, echo));
        all_gone(&guard).await;
        wait_until("no request is left", || {
            level(Gauge::Working) + level(Gauge::Waiting) == 0
        })
        .await;
    }
}
