//! An axum app with guarded connections. Only the line that serves differs from plain
//! `axum::serve`.
//!
//! ```text
//! cargo run --example guarded
//! curl http://127.0.0.1:3000/             # is served
//! nc 127.0.0.1 3000                       # is closed when the first request's timeout ends
//! curl http://127.0.0.1:3000/connections  # the open and the recently closed connections
//! ```

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
        // For operators only. In production, serve it where clients cannot reach it.
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
