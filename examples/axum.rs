//! An axum app behind the connection guard and all request guards.
//!
//! ```text
//! cargo run --example axum
//! curl -i http://127.0.0.1:3000/
//! curl http://127.0.0.1:9000/metrics
//! ```

use axum::{Router, body::Bytes, routing::get};
use palisade::{Quota, Snapshot, Stack, conn::ConnGuard};
use std::{error::Error, future::IntoFuture};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = Snapshot::new();
    let connections = ConnGuard::builder().metrics(metrics.clone()).build()?;
    let requests = Stack::edge()
        .rate_limit(Quota::per_second(10).burst(40))
        .metrics(metrics.clone())
        .build()?;

    let app = Router::new()
        .route(
            "/",
            get("hello\n").post(async |body: Bytes| format!("{} bytes\n", body.len())),
        )
        .layer(requests);

    // A separate port for operators. It responds also when all permits of the app are in use.
    let scrape = Router::new().route("/metrics", get(async move || metrics.prometheus()));
    let operators = TcpListener::bind("127.0.0.1:9000").await?;
    tokio::spawn(palisade::serve(operators, scrape).into_future());

    let listener = connections.bind("127.0.0.1:3000").await?;
    Ok(palisade::serve(listener, app).await?)
}
