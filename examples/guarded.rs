//! An axum app whose connections are guarded: one line differs from `axum::serve` as it is.
//! `cargo run --example guarded`, then `curl http://127.0.0.1:3000/`, and for the other side
//! `nc 127.0.0.1 3000` and a little patience; `curl http://127.0.0.1:3000/connections` shows who
//! is there and who had to go.

use axum::{Router, routing::get};
use palisade::{
    Snapshot,
    conn::{ConnGuard, connected},
};
use std::error::Error;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let metrics = Snapshot::new();
    let guard = ConnGuard::builder().metrics(metrics.clone()).build()?;

    let report = {
        let guard = guard.clone();
        // For operators only: put it where nobody else reaches it.
        async move || {
            format!(
                "{:#?}\n{:#?}\n{metrics}",
                guard.snapshot(),
                guard.recently_closed()
            )
        }
    };
    let app = Router::new()
        .route("/", get("hello\n"))
        .route("/connections", get(report));

    let listener = guard.bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, connected(app)).await?) // This line guards the connections.
}
