//! `palisade::serve`: the services and listeners that it accepts, what it passes to the app, and
//! its protocol options.

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Extension},
    handler::HandlerWithoutStateExt,
    routing::get,
};
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use palisade::{
    conn::{ConnGuard, ConnInfo, Reason},
    serve::{App, Http, Incoming, RequestBody},
};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, wait_until},
    guarded::{GET, all_gone, app},
    h2, servers,
};
use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::service_fn;

const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Serves `app` behind a new guard with default settings.
async fn serve<Kind: 'static>(app: impl App<Kind>) -> (SocketAddr, ConnGuard) {
    serve_with(app, Http::default()).await
}

/// Serves `app` behind a new guard with the settings of `http`.
async fn serve_with<Kind: 'static>(app: impl App<Kind>, http: Http) -> (SocketAddr, ConnGuard) {
    let guard = ConnGuard::default();
    let listener = guard.listen(servers::listener().await);
    let serve = palisade::serve(listener, app).http(http);
    let addr = serve.local_addr().unwrap();
    tokio::spawn(serve.into_future());
    (addr, guard)
}

async fn get_text(addr: SocketAddr) -> String {
    let response = clients::get(LOCAL, addr, "/").await.unwrap();
    String::from_utf8(response.into_body().to_vec()).unwrap()
}

/// A handler that checks the peer and the connection of its request.
async fn check_peer(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    conn: Extension<Arc<ConnInfo>>,
) -> String {
    assert_eq!(conn.peer(), peer);
    assert!(peer.ip().is_loopback());
    "known".to_owned()
}

#[tokio::test]
async fn it_accepts_the_services_that_axum_serve_accepts() {
    let router = || Router::new().route("/", get(check_peer));
    let (addr, _) = serve(router()).await;
    assert_eq!(get_text(addr).await, "known");
    let (addr, _) = serve(get(check_peer)).await;
    assert_eq!(get_text(addr).await, "known");
    let (addr, _) = serve(check_peer.into_service()).await;
    assert_eq!(get_text(addr).await, "known");
    let (addr, _) = serve(router().into_make_service()).await;
    assert_eq!(get_text(addr).await, "known");
    let (addr, _) = serve(router().into_make_service_with_connect_info::<SocketAddr>()).await;
    assert_eq!(get_text(addr).await, "known");
    let (addr, _) = serve(check_peer.into_make_service()).await;
    assert_eq!(get_text(addr).await, "known");
}

#[tokio::test]
async fn it_accepts_any_service_and_any_make_service() {
    let hello = service_fn(async |request: Request<RequestBody>| {
        let text = format!("{:?}", request.version());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    let (addr, guard) = serve(hello).await;
    assert_eq!(get_text(addr).await, "HTTP/1.1");
    let mut client = clients::http2(LOCAL, addr).await.unwrap();
    let request = Request::get(format!("http://{addr}/"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "HTTP/2.0"
    );
    drop(client);
    all_gone(&guard).await;

    let make = service_fn(|incoming: Incoming<'_>| {
        let peer = incoming.remote_addr().ip().to_string();
        let responds = service_fn(move |_: Request<RequestBody>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from(peer.clone()))))
        });
        std::future::ready(Ok::<_, Infallible>(responds))
    });
    let (addr, _) = serve(make).await;
    assert_eq!(get_text(addr).await, "127.0.0.1");
}

#[tokio::test]
async fn a_plain_listener_is_guarded_by_the_defaults() {
    let serve = palisade::serve(servers::listener().await, app());
    let addr = serve.local_addr().unwrap();
    let server = tokio::spawn(serve.into_future());
    assert_eq!(get_text(addr).await, "served");
    server.abort();
}

#[cfg(unix)]
#[tokio::test]
async fn it_serves_on_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("palisade-serve-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(palisade::serve(listener, app()).into_future());
    let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("/")
        .header("host", "x")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "served"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn a_make_service_sees_the_peer_credentials_of_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("palisade-peer-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let make = service_fn(async |incoming: Incoming<'_>| {
        assert!(
            incoming.io::<tokio::net::TcpStream>().is_none(),
            "the transport is a Unix socket"
        );
        let peer = incoming
            .io::<tokio::net::UnixStream>()
            .unwrap()
            .peer_cred()
            .unwrap();
        let text = format!("{:?}", peer.pid());
        Ok::<_, Infallible>(service_fn(move |_: Request<RequestBody>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from(text.clone()))))
        }))
    });
    tokio::spawn(palisade::serve(listener, make).into_future());
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    let expected = format!("\r\n\r\n{:?}", client.peer_cred().unwrap().pid());
    assert!(response.ends_with(&expected), "{response}");
}

#[tokio::test]
async fn a_server_of_one_protocol_does_not_serve_the_other() {
    let (addr, guard) = serve_with(app(), Http::builder().http1_only().build().unwrap()).await;
    assert_eq!(get_text(addr).await, "served");
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(h2::hello(65_535)).await.unwrap();
    let response = client.rest().await;
    assert!(
        response.starts_with(b"HTTP/1.1 400") || response.is_empty(),
        "{response:?}"
    );
    all_gone(&guard).await;

    let (addr, guard) = serve_with(app(), Http::builder().http2_only().build().unwrap()).await;
    let mut client = clients::http2(LOCAL, addr).await.unwrap();
    let request = Request::get(format!("http://{addr}/"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    assert_eq!(
        client.send_request(request).await.unwrap().version(),
        Version::HTTP_2
    );
    drop(client);
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(GET).await.unwrap();
    let response = client.rest().await;
    assert!(!response.starts_with(b"HTTP"), "{response:?}");
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_head_within_the_limits_is_served_and_a_larger_one_is_refused() {
    let (addr, guard) = serve(app()).await;
    let head = |bytes: usize| {
        let filler = "x".repeat(bytes - GET.len() - "f: \r\n".len());
        GET.replace("\r\n\r\n", &format!("\r\nf: {filler}\r\n\r\n"))
    };
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(head(32 * 1024)).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    client.body(6).await.unwrap();
    client.send(head(32 * 1024 + 1)).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 431);
    let mut client = RawClient::connect(addr).await.unwrap();
    let fields: String = (0..101).map(|n| format!("f{n}: x\r\n")).collect();
    client
        .send(format!("GET / HTTP/1.1\r\n{fields}\r\n"))
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 431);
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send("no such thing\r\n\r\n").await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 400);
    drop(client);
    all_gone(&guard).await;
}

/// Serves an app: `/` responds after several probes, `/hang` never responds. Returns the guard's
/// journal as well.
async fn serve_slow_app(http: Http) -> (SocketAddr, ConnGuard, Journal) {
    let journal = Journal::default();
    let guard = ConnGuard::builder()
        .probe_interval(Duration::from_millis(300))
        .metrics(journal.clone());
    let guard = guard.build().unwrap();
    let late = || async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        "late".repeat(100_000)
    };
    let app = Router::new()
        .route("/", get(late))
        .route("/hang", get(std::future::pending::<()>));
    let serve = palisade::serve(guard.listen(servers::listener().await), app).http(http);
    let addr = serve.local_addr().unwrap();
    tokio::spawn(serve.into_future());
    (addr, guard, journal)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_half_closed_client_is_answered_with_the_half_close_option() {
    let http = Http::builder().half_close().build().unwrap();
    let (addr, guard, journal) = serve_slow_app(http).await;
    for stray in ["", "x"] {
        let mut client = RawClient::connect(addr).await.unwrap();
        client.send(format!("{GET}{stray}")).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.head().await.unwrap().status, 200);
        assert_eq!(client.body(400_000).await.unwrap(), b"late".repeat(100_000));
        assert_eq!(client.rest().await, b"");
    }
    all_gone(&guard).await;
    assert_eq!(journal.closed(), [None, None]);
    // A client that is gone is detected, whether or not it has half-closed before.
    for is_half_closed in [false, true] {
        let mut client = RawClient::connect(addr).await.unwrap();
        client
            .send("GET /hang HTTP/1.1\r\nhost: x\r\n\r\nx")
            .await
            .unwrap();
        wait_until("the request is at work", || guard.snapshot().in_flight == 1).await;
        if is_half_closed {
            client.stream.shutdown().await.unwrap();
        }
        client.stream.set_zero_linger().unwrap();
        drop(client);
        all_gone(&guard).await;
    }
    assert_eq!(journal.closed()[2..], [Some(Reason::HungUp); 2]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_half_closed_client_counts_as_gone_by_default() {
    let (addr, guard, journal) = serve_slow_app(Http::default()).await;
    for (stray, reason) in [("", None), ("x", Some(Reason::HungUp))] {
        let mut client = RawClient::connect(addr).await.unwrap();
        client.send(format!("{GET}{stray}")).await.unwrap();
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.rest().await, b"");
        all_gone(&guard).await;
        assert_eq!(journal.closed().last(), Some(&reason));
    }
}

#[tokio::test]
async fn an_upgraded_connection_stays_open_and_counts_as_open() {
    let upgrade = service_fn(async |request: Request<RequestBody>| {
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let mut upgraded = TokioIo::new(upgraded);
            let mut four = [0; 4];
            upgraded.read_exact(&mut four).await.unwrap();
            upgraded.write_all(&four).await.unwrap();
        });
        let switching = Response::builder().status(101).header("upgrade", "echo");
        let switching = switching.header("connection", "upgrade");
        Ok::<_, Infallible>(switching.body(Empty::<Bytes>::new()).unwrap())
    });
    let (addr, guard) = serve(upgrade).await;
    let mut client = RawClient::connect(addr).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    client.send(head).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 101);
    assert_eq!(guard.snapshot().open, 1);
    client.send("echo").await.unwrap();
    assert_eq!(client.body(4).await.unwrap(), b"echo");
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test]
async fn connect_reaches_the_app_only_with_the_connect_option() {
    let tunnel = service_fn(async |request: Request<RequestBody>| {
        tokio::spawn(async move {
            let mut tunnel = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            tunnel.write_all(b"there").await.unwrap();
        });
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let connect = "CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n";
    let (addr, guard) = serve(tunnel).await;
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(connect).await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(
        (head.status.as_u16(), head.header("connection")),
        (501, Some("close"))
    );
    assert_eq!(client.rest().await, b"");
    all_gone(&guard).await;

    let (addr, guard) = serve_with(tunnel, Http::builder().allow_connect().build().unwrap()).await;
    let mut client = RawClient::connect(addr).await.unwrap();
    client.send(connect).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.rest().await, b"there");
    drop(client);
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_service_of_axum_requests_is_accepted_through_from_axum() {
    use axum::middleware::{Next, from_fn};
    use tower::Layer;
    let rewrite_path = async |mut request: axum::extract::Request, next: Next| {
        *request.uri_mut() = "/".parse().unwrap();
        next.run(request).await
    };
    let app = from_fn(rewrite_path).layer(Router::new().route("/", get(check_peer)));
    let (addr, _) = serve(palisade::serve::from_axum(app)).await;
    let response = clients::get(LOCAL, addr, "/elsewhere").await.unwrap();
    assert_eq!(response.into_body(), "known");
}

#[tokio::test]
async fn the_response_to_head_has_a_content_length_and_no_body() {
    let hello = service_fn(async |_: Request<RequestBody>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    let (addr, guard) = serve(hello).await;
    let mut client = clients::http2(LOCAL, addr).await.unwrap();
    let request = Request::head(format!("http://{addr}/"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
    drop(client);
    let mut client = RawClient::connect(addr).await.unwrap();
    client
        .send("HEAD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(
        (head.header("content-length"), client.rest().await),
        (Some("5"), vec![])
    );
    all_gone(&guard).await;
}
