//! A drill of the same axum app, without guards and with palisade.
//!
//! ```text
//! cargo run --release --example drilled                           # palisade, a minute or two
//! cargo run --release --example drilled -- bare                   # axum::serve
//! cargo run --release --example drilled -- palisade full          # longer attacks
//! cargo run --release --example drilled -- palisade quick silent  # the attacks of these names
//! ```
#![allow(clippy::print_stdout, reason = "a command-line program prints")]

use axum::{Router, body::Bytes, routing::get};
use palisade::{Stack, conn::ConnGuard};
use palisade_drill::Drill;
use std::time::Duration;
use tokio::net::TcpListener;
use tower::BoxError;

/// The number of connections that the guarded server admits.
const PLACES: usize = 500;
/// The body of `/large`.
static LARGE_BODY: [u8; 1 << 20] = [b'x'; 1 << 20];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let has = |name| arguments.iter().any(|argument| argument == name);
    let mut drill = if has("bare") {
        // It admits as many connections as it may open files.
        Drill::serving(async |listener| axum::serve(listener, app()).await)
    } else {
        Drill::serving(guarded).places(PLACES)
    };
    drill = drill.get("/").post("/").large("/large");
    if !has("full") {
        drill = drill.quick();
    }
    for name in &arguments {
        if !["bare", "palisade", "quick", "full"].contains(&name.as_str()) {
            drill = drill.only(name);
        }
    }
    println!("{}", drill.run().await?);
    Ok(())
}

/// The app.
fn app() -> Router {
    let upload = async |body: Bytes| format!("{} bytes\n", body.len());
    Router::new()
        .route("/", get("hello\n").post(upload))
        .route("/large", get(async || Bytes::from_static(&LARGE_BODY)))
}

/// Serves the app behind all guards. The timeouts are short because the attacks are.
async fn guarded(listener: TcpListener) -> Result<(), BoxError> {
    let second = Duration::from_secs(1);
    let connections = ConnGuard::builder()
        .max_connections(PLACES)
        .first_request_timeout(2 * second)
        .header_timeout(2 * second)
        .idle_timeout(5 * second)
        .write_timeout(3 * second)
        .build()?;
    let app = app().layer(Stack::edge().build()?);
    palisade::serve(connections.listen(listener), app).await?;
    Ok(())
}
