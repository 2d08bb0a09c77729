//! Counts system calls by running a small server on loopback under strace.

use crate::table::{Limit::AtMost, Row};
use axum::{Router, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use palisade_benches::{
    Exchange, Identified, Protocol, Server, generous, palisade, peers, runtime,
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

/// The argument that makes this program the one that is watched.
pub(crate) const ARGUMENT: &str = "under-strace";

const FEW: usize = 100;
const MANY: usize = 600;

/// `None` without strace.
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
            "the same with the five layers, handler Pending once",
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
            "the same with the five layers, of palisade::serve",
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
        // The sweeper's four looks a second are in it.
        rows.push(Row::count("P5", figure, None, over, AtMost(0.05)));
    }
    Ok(Some(rows))
}

/// Of the server with its client, whose calls are the same for every server.
fn per_request(server: &str, path: &str) -> io::Result<Option<f64>> {
    let Some(few) = total(server, path, FEW)? else {
        return Ok(None);
    };
    let many = total(server, path, MANY)?.unwrap_or_default();
    Ok(Some((many - few) / (MANY - FEW) as f64))
}

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
    // The last line: share, seconds, microseconds a call, calls, errors, "total".
    let summary = fs::read_to_string(&summary)?;
    let last = summary.lines().rev().find(|line| line.ends_with("total"));
    let calls = last.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    calls
        .map(Some)
        .ok_or_else(|| io::Error::other("strace says no total"))
}

/// Serves `requests` requests of one client on one connection. `what` is a server, then the path.
pub(crate) fn be_counted(what: &str, requests: usize) {
    let (server, path) = what.split_once('/').expect("a server and a path");
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
            .expect("a free port");
        let addr = listener
            .local_addr()
            .expect("a bound socket has an address");
        let client = thread::spawn(move || ask(addr, protocol, &path, requests));
        if let Some(server) = server.strip_prefix("serve:") {
            return by_server(&runtime, server, listener, router, client).await;
        }
        let (stream, _) = listener.accept().await.expect("the client comes");
        let io = TokioIo::new(stream);
        let builder = auto::Builder::new(TokioExecutor::new());
        // An error is a client that has left, which it does at the end.
        let _ = match server {
            "palisade" => {
                let service = Identified(palisade(generous()).layer(router));
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

/// By a whole server, until the client has gone.
async fn by_server(
    runtime: &Runtime,
    name: &str,
    listener: TcpListener,
    router: Router,
    client: JoinHandle<()>,
) {
    let (name, router) = match name.strip_suffix("+layers") {
        Some(name) => (name, router.layer(palisade(generous()))),
        None => (name, router),
    };
    let server = Server::named(name).expect("there is such a server");
    let served = server.start(runtime, listener, router);
    let client = tokio::task::spawn_blocking(move || client.join().expect("it is served"));
    client.await.expect("the client has gone");
    served.abort();
}

fn ask(addr: SocketAddr, protocol: Protocol, path: &str, requests: usize) {
    let mut stream = TcpStream::connect(addr).expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut exchange, mut received) = (Exchange::new(protocol), Vec::new());
    let mut piece = [0; 4096];
    for _ in 0..requests {
        stream
            .write_all(&exchange.request(path))
            .expect("the server reads");
        let answer = loop {
            let length = stream.read(&mut piece).expect("the server answers");
            assert!(length > 0, "the server ended the connection");
            received.extend_from_slice(&piece[..length]);
            if let Some(answer) = exchange.answer(&mut received) {
                break answer;
            }
        };
        assert_eq!(answer.status, 200, "every request is served");
    }
}
