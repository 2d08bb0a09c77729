//! An axum app behind all guards. `cargo run --example axum`, then
//! `curl -i http://127.0.0.1:3000/` and `curl http://127.0.0.1:3000/metrics`.

use axum::{Router, body::Bytes, routing::get};
use palisade::{Quota, Snapshot, Stack};
use std::{error::Error, net::SocketAddr};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = Snapshot::new();
    let guards = Stack::edge()
        .rate_limit(Quota::per_second(10).burst(40))
        .metrics(metrics.clone())
        .build()?;

    let app = Router::new()
        .route("/", get("hello\n").post(async |body: Bytes| format!("{} bytes\n", body.len())))
        .layer(guards)
        // What stands after the layer is not guarded: operators look here when all slots are taken.
        .route("/metrics", get(async move || metrics.prometheus()));

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    // The guards want to know who is asking.
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    Ok(axum::serve(listener, app).await?)
}
