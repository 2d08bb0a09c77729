//! HTTPS, WebSocket and gRPC behind a load balancer that forwards TCP and names its clients in a
//! header of the PROXY protocol. TLS ends here. Each client has its own limits.
//!
//! ```text
//! cargo run --example load_balancer 127.0.0.1:3000
//! curl --insecure --haproxy-protocol https://127.0.0.1:3000/  # as a balancer would
//! curl --insecure --interface 127.0.0.9 https://127.0.0.1:3000/
//! ```
//!
//! The second one comes from a client that is no balancer, and sends no header. `.ci/proxies` runs
//! this behind `HAProxy`.

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State, WebSocketUpgrade},
    routing::get,
};
use palisade::{
    Quota, Snapshot, Stack,
    conn::ConnGuard,
    serve::rustls::{ServerConfig, pki_types::PrivateKeyDer},
    types::Networks,
};
use palisade_testkit::{demo::echo_server::EchoServer, echo::Lengths};
use std::{error::Error, net::SocketAddr, sync::Arc};
use tonic::service::Routes;

/// Where the balancers connect from.
const BALANCERS: &str = "127.0.0.1/32 # HAProxy on this machine";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addr = std::env::args().nth(1);
    let addr = addr.as_deref().unwrap_or("127.0.0.1:3000");
    let metrics = Snapshot::new();
    let connections = ConnGuard::builder()
        .proxy_protocol(Networks::parse(BALANCERS)?)
        .metrics(metrics.clone())
        .build()?;
    // Peers are clients again, so this is not `Stack::behind_proxy`.
    let requests = Stack::edge()
        .grpc()
        .rate_limit(Quota::per_minute(60).burst(20))
        .metrics(metrics.clone())
        .build()?;

    let address = async |ConnectInfo(client): ConnectInfo<SocketAddr>| format!("{}\n", client.ip());
    let length = async |body: Bytes| format!("{} bytes\n", body.len());
    let app = Router::new()
        .route("/", get(address).post(length))
        .route("/echo", get(echo))
        .route("/metrics", get(text))
        .with_state(metrics)
        .merge(Routes::new(EchoServer::new(Lengths)).into_axum_router())
        .layer(requests);

    let listener = connections.bind(addr).await?;
    println!("listening on https://{}", listener.local_addr()?);
    Ok(palisade::serve(listener, app).tls(Arc::new(tls()?)).await?)
}

/// Sends back what a WebSocket receives.
async fn echo(upgrade: WebSocketUpgrade) -> axum::response::Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                break;
            }
        }
    })
}

async fn text(State(metrics): State<Snapshot>) -> String {
    metrics.prometheus()
}

/// A certificate for `localhost` that no client trusts.
fn tls() -> Result<ServerConfig, Box<dyn Error>> {
    let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der())?;
    Ok(ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![generated.cert.der().clone()], key)?)
}
