//! The connection guard under tonic's own server: what T01, T03 and T04 say of axum holds there,
//! and handlers know their peers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod guarded;

use guarded::{SECOND, SLACK, all_gone, cut, h2};
use palisade::conn::{ConnGuard, ConnInfo};
use palisade_core::Reason;
use palisade_testkit::{
    Journal,
    clients::RawClient,
    demo::{
        Piece, Total,
        echo_client::EchoClient,
        echo_server::{Echo, EchoServer},
    },
    servers::{self, Server},
};
use std::sync::Arc;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming, transport};

/// Answers 1 where it knows who is asking.
struct Known;

#[tonic::async_trait]
impl Echo for Known {
    async fn unary(&self, request: Request<Piece>) -> Result<Response<Total>, Status> {
        let conn = request.extensions().get::<Arc<ConnInfo>>();
        let peer = conn.map(|conn| conn.peer());
        let knows = peer.is_some() && request.remote_addr() == peer;
        Ok(Response::new(Total { bytes: knows.into() }))
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
    let builder = ConnGuard::builder().first_request(SECOND).idle(2 * SECOND);
    let guard = builder.metrics(journal.clone()).build().unwrap();
    let listener = guard.listen(servers::listener().await);
    let addr = listener.local_addr().unwrap();
    let mut router = transport::Server::builder().layer(guard.accounting());
    let router = router.add_service(EchoServer::new(Known));
    let server = tokio::spawn(async move { router.serve_with_incoming(listener).await.unwrap() });
    let server = Server::new(addr, server);

    let mut client = EchoClient::connect(server.url()).await.unwrap();
    let piece = || Piece { data: b"four".as_slice().into() };
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
            cut(&mut client).await.2
        })
        .collect();
    // Its neighbour, meanwhile.
    while guard.snapshot().open > 1 {
        assert_eq!(client.unary(piece()).await.unwrap().get_ref().bytes, 1);
    }
    for after in attacks.join_all().await {
        assert!(after < SECOND + SLACK, "{after:?}");
    }
    let first = journal.disconnected();
    assert!(first.len() == 5 && first.iter().all(|(v, _)| v.reason == Reason::FirstRequest));

    // The honest client does nothing for longer than it may: its connection is finished, and it
    // makes another one when it needs it.
    all_gone(&guard).await;
    assert_eq!(journal.closed().last(), Some(&Some(Reason::Idle)));
    // The end of the old one may be seen a moment later than the server has done with it.
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
