//! A gRPC service behind all guards, on tonic's hardened server, and a client that exceeds its
//! quota.
//!
//! ```text
//! cargo run --example tonic
//! ```

use palisade::{
    Quota, Snapshot, Stack,
    conn::{ConnGuard, harden},
};
use palisade_testkit::{
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
};
use std::error::Error;
use tonic::transport::Server;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = Snapshot::new();
    let guards = Stack::edge()
        .grpc()
        .rate_limit(Quota::per_second(1).burst(3))
        .metrics(metrics.clone())
        .build()?;

    let conn = ConnGuard::builder().metrics(metrics.clone()).build()?;
    let listener = conn.bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = harden(Server::builder())
        .layer(conn.track_requests())
        .layer(guards)
        .add_service(EchoServer::new(Lengths));
    let server = tokio::spawn(server.serve_with_incoming(listener));

    let mut client = EchoClient::connect(url).await?;
    for number in 1..=5 {
        let piece = Piece {
            data: b"four".as_slice().into(),
        };
        match client.unary(piece).await {
            Ok(total) => println!("{number}: {} bytes", total.get_ref().bytes),
            Err(status) => println!("{number}: {:?}, {}", status.code(), status.message()),
        }
    }
    println!("\n{metrics}");
    server.abort();
    Ok(())
}
