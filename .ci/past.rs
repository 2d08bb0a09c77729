//! The server that `.ci/past` drills, behind the guards of this revision or of an old one: only
//! what both of them have is used.
//!
//! | request | response |
//! |---|---|
//! | `GET /` | a few bytes |
//! | `GET /large` | 1 MiB |
//! | `POST /upload` | the length of the body |
//! | `GET /work` | a few bytes after 10 ms of processor time |
use axum::{
    Router,
    body::Bytes,
    routing::{get, post},
};
use palisade::{Quota, Stack, conn::ConnGuard, serve::Http};
use std::{
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};
use tower::Layer;

/// The connections that the server admits. The command of the drill has the same number.
const PLACES: usize = 100;
/// The processor time of `/work`.
const WORK_TIME: Duration = Duration::from_millis(10);
/// The body of `/large`.
static LARGE_BODY: [u8; 1 << 20] = [b'x'; 1 << 20];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let port: u16 = std::env::var("PORT")?.parse()?;
    let listener = ConnGuard::builder()
        .max_connections(PLACES)
        .build()?
        .bind(("127.0.0.1", port))
        .await?;
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(1_000).burst(2_000))
        .max_requests(1_000)
        .build()?;
    let app = Router::new()
        .route("/", get(async || "hello\n"))
        .route("/large", get(async || Bytes::from_static(&LARGE_BODY)))
        .route("/upload", post(async |body: Bytes| body.len().to_string()))
        .route("/work", get(async || work()));
    let http = Http::builder().extended_connect().build()?;
    palisade::serve(listener, stack.layer(app))
        .http(http)
        .await?;
    Ok(())
}

/// Uses the processor for [`WORK_TIME`].
fn work() -> &'static str {
    let began = Instant::now();
    let mut number = 1_u64;
    while began.elapsed() < WORK_TIME {
        number = black_box(number.wrapping_mul(6_364_136_223_846_793_005));
    }
    "worked\n"
}
