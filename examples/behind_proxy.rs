//! An axum app behind nginx or `HAProxy` on the same machine. Each client has its own limit.
//!
//! ```text
//! cargo run --example behind_proxy 127.0.0.1:3000
//! curl -H 'X-Forwarded-For: 203.0.113.7' http://127.0.0.1:3000/  # as a proxy would
//! curl --interface 127.0.0.9 -H 'X-Forwarded-For: 203.0.113.7' http://127.0.0.1:3000/
//! ```
//!
//! The second one comes from a client that is no trusted proxy: what it says is not read.
//! `.ci/proxies` runs this behind both proxies.

use axum::{Router, body::Bytes, routing::get};
use palisade::{
    Quota, Stack,
    client_ip::{Client, NetworkSet, Trust},
    conn::ConnGuard,
};
use std::error::Error;

/// Where the proxies connect from.
const PROXIES: &str = "127.0.0.1/32 # nginx and HAProxy on this machine";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addr = std::env::args().nth(1);
    let addr = addr.as_deref().unwrap_or("127.0.0.1:3000");
    let connections = ConnGuard::builder()
        .behind_proxy()
        .trust(Trust::networks(NetworkSet::parse(PROXIES)?))
        .build()?;
    let requests = Stack::behind_proxy()
        .rate_limit(Quota::per_minute(60).burst(20))
        .build()?;

    let address = async |client: Client| match client.address() {
        Some(address) => format!("{address}\n"),
        None => "unknown\n".to_owned(),
    };
    let length = async |body: Bytes| format!("{} bytes\n", body.len());
    let app = Router::new()
        .route("/", get(address).post(length))
        .layer(requests);

    let listener = connections.bind(addr).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(palisade::serve(listener, app).await?)
}
