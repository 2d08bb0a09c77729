//! Drills of servers over TLS (T01): handshakes that stop, and those without number.

use crate::{HARMED, HELD, check_drill, row, servers};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade::conn::ConnGuard;
use palisade_drill::Drill;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::Mutex,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tower::BoxError;

/// The connections that palisade admits where places are short. With far fewer, attackers that
/// come back displace a slow handshake, which has no request to show either.
const PLACES: usize = 600;
/// More of them than any attack here opens.
const MANY_PLACES: usize = 1_800;
/// The handshakes that the servers make at once, fewer than those of a flood.
const MAX_HANDSHAKES: usize = 256;

fn config() -> Result<Arc<ServerConfig>, BoxError> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let config = ServerConfig::builder().with_no_client_auth();
    Ok(Arc::new(
        config.with_single_cert(vec![made.cert.der().clone()], key)?,
    ))
}

/// `palisade::serve` over TLS, on `places` connections.
async fn palisade_tls(listener: TcpListener, places: usize) -> Result<(), BoxError> {
    let guard = ConnGuard::builder().max_connections(places);
    let guard = guard
        .first_request_timeout(Duration::from_secs(2))
        .build()?;
    let serve = palisade::serve(guard.listen(listener), servers::app()).tls(config()?);
    serve.max_handshakes(MAX_HANDSHAKES).await?;
    Ok(())
}

/// hyper over TLS. A new handshake ends the oldest of too many.
async fn evicts_the_oldest(listener: TcpListener) -> Result<(), BoxError> {
    let acceptor = TlsAcceptor::from(config()?);
    let app = servers::app();
    let handshakes: Arc<Mutex<VecDeque<AbortHandle>>> = Arc::default();
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, handshakes) = (acceptor.clone(), handshakes.clone());
        let service = TowerToHyperService::new(app.clone());
        let mut under_way = handshakes.lock().await;
        under_way.retain(|handshake| !handshake.is_finished());
        if under_way.len() >= MAX_HANDSHAKES
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.abort();
        }
        let handshake = tokio::spawn(async move { acceptor.accept(stream).await });
        under_way.push_back(handshake.abort_handle());
        drop(under_way);
        connections.spawn(async move {
            if let Ok(Ok(stream)) = handshake.await {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Returns the drill of a server that admits `places`, over TLS.
fn over_tls<Fut: Future + 'static>(
    places: usize,
    serve: impl Fn(TcpListener) -> Fut + Clone + Send + 'static,
) -> impl Fn() -> Drill {
    move || {
        Drill::serving(serve.clone())
            .places(places)
            .tls("localhost")
    }
}

#[tokio::test]
async fn palisade_holds_handshakes_that_stop() {
    let table = [
        row(
            "silent-handshake",
            HELD,
            "the deadline of the first request begins at accept",
        ),
        row(
            "dripped-handshake",
            HELD,
            "a byte is no request, and makes room for a newcomer",
        ),
    ];
    let serve = |listener| palisade_tls(listener, PLACES);
    check_drill(over_tls(PLACES, serve), &table).await;
}

#[tokio::test]
async fn palisade_holds_handshakes_without_number_beside_slow_ones() {
    let table = [
        row("handshake-flood", HELD, "no handshake waits for another"),
        row(
            "unfinished-handshakes",
            HELD,
            "a crowd is evicted, and no slow handshake of another client",
        ),
    ];
    let serve = |listener| palisade_tls(listener, MANY_PLACES);
    check_drill(over_tls(MANY_PLACES, serve), &table).await;
}

#[tokio::test]
async fn a_server_that_evicts_the_oldest_handshake_serves_no_slow_one() {
    let table = [row(
        "unfinished-handshakes",
        HARMED,
        "a slow handshake is the oldest before it ends",
    )];
    check_drill(over_tls(MANY_PLACES, evicts_the_oldest), &table).await;
}
