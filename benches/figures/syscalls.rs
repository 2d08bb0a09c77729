//! Counts system calls by running a server and its client on loopback under strace.

use crate::table::{Limit::AtMost, Row};
use axum::{Router, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade_benches::{
    ClientCodec, Identified, Protocol, Server, high_quota, palisade, peers, runtime,
};
use std::{
    env, fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    thread::{self, JoinHandle},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tower::Layer;

/// The argument that makes this program run a server and its client under strace.
pub(crate) const ARGUMENT: &str = "under-strace";

/// The number of requests of a short run. The difference to the long run has no setup cost.
const SHORT_RUN_REQUESTS: usize = 100;
/// The number of requests of a long run.
const LONG_RUN_REQUESTS: usize = 600;

/// Returns the rows of system calls, or `None` without strace.
pub(crate) fn count() -> io::Result<Option<Vec<Row>>> {
    let Some(bare) = per_request("bare", "ready")? else {
        return Ok(None);
    };
    let over = |server, path| -> io::Result<f64> {
        Ok(per_request(server, path)?.unwrap_or_default() - bare)
    };
    let bare_pending = over("bare", "pending")?;
    let of_server = |server: &str, path| -> io::Result<f64> {
        Ok(per_request(&format!("serve:{server}"), path)?.unwrap_or_default())
    };
    let (peers, ours) = (over("peers", "ready")?, over("palisade", "ready")?);
    let figure = "system calls per request over bare, handler ready";
    let ready = Row::count("P5", figure, peers, ours, AtMost(0.0));
    let (peers, ours) = (over("peers", "pending")?, over("palisade", "pending")?);
    let (peers, ours) = (peers - bare_pending, ours - bare_pending);
    let figure = "system calls per request over bare, handler Pending once";
    let mut rows = vec![ready, Row::count("P5", figure, peers, ours, AtMost(0.0))];
    for (server, path, figure) in [
        (
            "guarded",
            "ready",
            "axum::serve behind the connection guard, handler ready",
        ),
        (
            "guarded",
            "pending",
            "axum::serve behind it, handler Pending once",
        ),
        (
            "guarded+layers",
            "pending",
            "the same with the six layers, handler Pending once",
        ),
        ("palisade", "ready", "palisade::serve, handler ready"),
        (
            "palisade",
            "pending",
            "palisade::serve, handler Pending once",
        ),
        (
            "palisade+layers",
            "pending",
            "the same with the six layers, of palisade::serve",
        ),
        (
            "guarded",
            "ready2",
            "axum::serve behind the connection guard, HTTP/2, ready",
        ),
        (
            "guarded",
            "pending2",
            "axum::serve behind it, HTTP/2, Pending once",
        ),
        ("palisade", "ready2", "palisade::serve, HTTP/2, ready"),
        (
            "palisade",
            "pending2",
            "palisade::serve, HTTP/2, Pending once",
        ),
    ] {
        let over = of_server(server, path)? - of_server("axum", path)?;
        // This includes what is done by time: four sweeps, four looks at the memory and ten at the
        // load of the runtime in a second, with a few calls each.
        rows.push(Row::count("P5", figure, None, over, AtMost(0.05)));
    }
    Ok(Some(rows))
}

/// Returns the system calls per request of a server and its client. The client's calls are the same
/// for every server.
fn per_request(server: &str, path: &str) -> io::Result<Option<f64>> {
    let Some(short) = total(server, path, SHORT_RUN_REQUESTS)? else {
        return Ok(None);
    };
    let long = total(server, path, LONG_RUN_REQUESTS)?.unwrap_or_default();
    let requests = (LONG_RUN_REQUESTS - SHORT_RUN_REQUESTS) as f64;
    Ok(Some((long - short) / requests))
}

/// Returns the system calls of a run.
fn total(server: &str, path: &str, requests: usize) -> io::Result<Option<f64>> {
    let program = env::current_exe()?;
    let summary = program.with_file_name("figures-strace");
    let status = Command::new("strace")
        .args(["-f", "-c", "-o"])
        .arg(&summary)
        .arg(&program)
        .args([ARGUMENT, &format!("{server}/{path}"), &requests.to_string()])
        .status();
    match status {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(status) if !status.success() => return Err(io::Error::other("strace failed")),
        Ok(_) => {}
    }
    // The last line: percentage, seconds, microseconds per call, calls, errors, "total".
    let summary = fs::read_to_string(&summary)?;
    let last = summary.lines().rev().find(|line| line.ends_with("total"));
    let calls = last.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    calls
        .map(Some)
        .ok_or_else(|| io::Error::other("the summary of strace has no total"))
}

/// Serves `requests` requests of one client on one connection. `target` is the server, `/` and the
/// path.
pub(crate) fn serve_and_request(target: &str, requests: usize) {
    let (server, path) = target
        .split_once('/')
        .expect("the target has a server and a path");
    let (path, protocol) = match path.strip_suffix('2') {
        Some(path) => (path, Protocol::Http2),
        None => (path, Protocol::Http1),
    };
    let path = format!("/{path}");
    let router = Router::new().route("/ready", get(async || "ok")).route(
        "/pending",
        get(async || {
            tokio::task::yield_now().await;
            "ok"
        }),
    );
    let runtime = runtime();
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("loopback has a free port");
        let addr = listener
            .local_addr()
            .expect("a bound socket has an address");
        let client = thread::spawn(move || send_requests(addr, protocol, &path, requests));
        if let Some(server) = server.strip_prefix("serve:") {
            return serve_with(&runtime, server, listener, router, client).await;
        }
        let (stream, _) = listener.accept().await.expect("the client connects");
        let io = TokioIo::new(stream);
        let builder = auto::Builder::new(TokioExecutor::new());
        // An error means that the client has left, as it does after its last request.
        let _ = match server {
            "palisade" => {
                let service = Identified(palisade(high_quota()).layer(router));
                builder
                    .serve_connection(io, TowerToHyperService::new(service))
                    .await
            }
            "peers" => {
                let service = Identified(peers(true).service(router));
                builder
                    .serve_connection(io, TowerToHyperService::new(service))
                    .await
            }
            _ => {
                builder
                    .serve_connection(io, TowerToHyperService::new(Identified(router)))
                    .await
            }
        };
        client.join().expect("the client is served");
    });
}

/// Serves with a whole server until the client has finished.
async fn serve_with(
    runtime: &Runtime,
    name: &str,
    listener: TcpListener,
    router: Router,
    client: JoinHandle<()>,
) {
    let (name, router) = match name.strip_suffix("+layers") {
        Some(name) => (name, router.layer(palisade(high_quota()))),
        None => (name, router),
    };
    let server = Server::from_name(name).expect("the server exists");
    let served = server.start(runtime, listener, router);
    let client = tokio::task::spawn_blocking(move || client.join().expect("the client is served"));
    client.await.expect("the client has finished");
    served.abort();
}

/// Sends `requests` requests and asserts that each is served.
fn send_requests(addr: SocketAddr, protocol: Protocol, path: &str, requests: usize) {
    let mut stream = TcpStream::connect(addr).expect("the server listens");
    stream
        .set_nodelay(true)
        .expect("TCP sockets have the option");
    let (mut codec, mut received) = (ClientCodec::new(protocol), Vec::new());
    let mut piece = [0; 4096];
    for _ in 0..requests {
        stream
            .write_all(&codec.request(path))
            .expect("the server reads");
        let response = loop {
            let length = stream.read(&mut piece).expect("the server responds");
            assert!(length > 0, "the server closed the connection");
            received.extend_from_slice(&piece[..length]);
            if let Some(response) = codec.response(&mut received) {
                break response;
            }
        };
        assert_eq!(response.status, 200, "every request is served");
    }
}
