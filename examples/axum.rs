//! An axum app behind all guards, of its connections and of its requests. `cargo run --example axum`, then
//! `curl -i http://127.0.0.1:3000/` and `curl http://127.0.0.1:3000/metrics`.

use axum::{Router, body::Bytes, routing::get};
use palisade::{Quota, Snapshot, Stack, conn::ConnGuard};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = Snapshot::new();
    let connections = ConnGuard::builder().metrics(metrics.clone()).build()?;
    let requests = Stack::edge()
        .rate_limit(Quota::per_second(10).burst(40))
        .metrics(metrics.clone())
        .build()?;

    let app = Router::new()
        .route("/", get("hello\n").post(async |body: Bytes| format!("{} bytes\n", body.len())))
        .layer(requests)
        // What stands after the layer is not guarded: operators look here when all slots are taken.
        .route("/metrics", get(async move || metrics.prometheus()));

    let listener = connections.bind("127.0.0.1:3000").await?;
    Ok(palisade::serve(listener, app).await?)
}
