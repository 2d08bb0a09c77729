//! A refused upload sees its answer: 10 MB that nobody reads, by the clients that people use. On
//! HTTP/1 at least 98 of 100 see the status, on HTTP/2 all of them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic, and say why"
)]

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use palisade_body_limit::{BodyLimitLayer, RequestBody};
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::{
    bodies::Pieces,
    clients::{self, until},
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers::{self, Server},
};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::process::Command;
use tower::{ServiceBuilder, service_fn};

/// Of each kind.
const UPLOADS: usize = 125;
/// Of each of the seven kinds behind the guard: a thousand, and one.
const GUARDED: usize = 143;

async fn read(
    request: Request<RequestBody<Incoming>>,
) -> Result<http::Response<String>, Infallible> {
    let read = request.into_body().collect().await;
    Ok(http::Response::new(format!(
        "{:?}",
        read.map(|body| body.to_bytes().len())
    )))
}

async fn server() -> Server {
    let layer = ServiceBuilder::new().layer(BodyLimitLayer::default());
    servers::hyper(layer.service(service_fn(read))).await
}

/// 10 MB, once with a length and once without.
fn uploads() -> [Pieces; 2] {
    [
        Pieces::new(1, 10_000_000).declared(),
        Pieces::new(160, 65_536),
    ]
}

fn all_but(seen: usize, missed: usize) {
    assert!(
        seen >= 2 * UPLOADS - missed,
        "{seen} of {} saw the status",
        2 * UPLOADS
    );
}

/// hyper's client on HTTP/1 sees that its uploads are answered with `status`.
async fn seen_on_http1(server: &Server, status: StatusCode) {
    all_but(count_on_http1(server, status, UPLOADS).await, UPLOADS / 25);
}

/// How many of two times so many do.
async fn count_on_http1(server: &Server, status: StatusCode, times: usize) -> usize {
    let mut seen = 0;
    for body in (0..times).flat_map(|_| uploads()) {
        let mut client = clients::http1(Ipv4Addr::LOCALHOST, server.addr)
            .await
            .unwrap();
        let request = Request::post("/")
            .header("host", "test")
            .body(body)
            .unwrap();
        let answer = client.send_request(request).await;
        seen += usize::from(answer.is_ok_and(|answer| answer.status() == status));
    }
    seen
}

/// Answers without a look at the body.
fn ignore<B>(request: Request<B>) -> Ready<Result<http::Response<String>, Infallible>> {
    drop(request);
    ready(Ok(http::Response::default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_413_on_http1() {
    seen_on_http1(&server().await, StatusCode::PAYLOAD_TOO_LARGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_429_of_the_rate_limit_on_http1() {
    let layer = ServiceBuilder::new().layer(RateLimitLayer::new(Quota::per_hour(1)).unwrap());
    let server = servers::hyper(layer.service(service_fn(ignore))).await;
    let first = clients::get(Ipv4Addr::LOCALHOST, server.addr, "/")
        .await
        .unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    seen_on_http1(&server, StatusCode::TOO_MANY_REQUESTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_503_of_the_concurrency_limit_on_http1() {
    let layer = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(0));
    let server = servers::hyper(layer.service(service_fn(ignore))).await;
    seen_on_http1(&server, StatusCode::SERVICE_UNAVAILABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_413_on_http2() {
    let server = server().await;
    for body in (0..UPLOADS).flat_map(|_| uploads()) {
        let mut client = clients::http2(Ipv4Addr::LOCALHOST, server.addr)
            .await
            .unwrap();
        let answer = client
            .send_request(Request::post(server.url()).body(body).unwrap())
            .await;
        let answer = clients::whole(answer.unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.into_body(), "body too large");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tonic_sees_resource_exhausted() {
    let router = tonic::transport::Server::builder()
        .layer(BodyLimitLayer::default())
        .add_service(EchoServer::new(Lengths).max_decoding_message_size(usize::MAX));
    let server = servers::tonic(router).await;
    let data = Bytes::from(vec![b'x'; 10_000_000]);
    for _ in 0..UPLOADS {
        let mut client = EchoClient::connect(server.url()).await.unwrap();
        let status = client
            .unary(Piece { data: data.clone() })
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
        assert_eq!(status.message(), "body too large");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sees_413() {
    for (options, seen, failed) in curls(&server().await, UPLOADS).await {
        let missed = if options.contains(&HTTP2) {
            0
        } else {
            UPLOADS / 50
        };
        assert!(
            seen + missed >= UPLOADS,
            "{options:?}: {} {failed:?}",
            failed.len()
        );
    }
}

/// Behind the guard a connection that is closed lingers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_serve_all_but_one_in_two_hundred_see_it() {
    let guard = palisade::conn::ConnGuard::builder()
        .no_accept_rate()
        .build()
        .unwrap();
    let app = ServiceBuilder::new()
        .layer(BodyLimitLayer::default())
        .service(service_fn(read));
    let serve = palisade::serve(guard.listen(servers::listener().await), app);
    let addr = serve.local_addr().unwrap();
    let server = Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }));
    let seen = count_on_http1(&server, StatusCode::PAYLOAD_TOO_LARGE, GUARDED).await;
    assert!(
        seen * 200 >= 2 * GUARDED * 199,
        "hyper: {seen} of {}",
        2 * GUARDED
    );
    let curls = curls(&server, GUARDED).await;
    let (asked, seen) = curls.iter().fold((0, 0), |(asked, seen), curl| {
        (asked + GUARDED, seen + curl.1)
    });
    assert!(
        seen * 200 >= asked * 199,
        "curl: {seen} of {asked}, {curls:?}"
    );
    drop(server);
    until("everybody is gone", || guard.snapshot().open == 0).await;
}

/// Where the connection is closed at once hyper's client sees one in ten: writing fails, and it does
/// not look at what has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_serve_the_connection_lingers_where_no_layer_does() {
    let guard = palisade::conn::ConnGuard::builder()
        .no_accept_rate()
        .build()
        .unwrap();
    let serve = palisade::serve(guard.listen(servers::listener().await), service_fn(ignore));
    let addr = serve.local_addr().unwrap();
    let server = Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }));
    let seen = count_on_http1(&server, StatusCode::OK, 100).await;
    assert!(seen >= 199, "{seen} of 200");
    drop(server);
    until("everybody is gone", || guard.snapshot().open == 0).await;
}

const HTTP2: &str = "--http2-prior-knowledge";

/// For each of curl's ways to upload, how many of `times` saw 413, and what the others said.
async fn curls(
    server: &Server,
    times: usize,
) -> Vec<(&'static [&'static str], usize, Vec<String>)> {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let number = FILES.fetch_add(1, SeqCst);
    let name = format!("palisade-upload-{}-{number}", std::process::id());
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, vec![b'x'; 10_000_000]).unwrap();
    let mut all = Vec::new();
    let version = Command::new("curl").arg("--version").output().await;
    let Ok(version) = version else {
        eprintln!("SKIPPED: there is no curl here, so nothing is known about it");
        return all;
    };
    let knows_http2 = String::from_utf8_lossy(&version.stdout).contains("HTTP2");
    let kinds: [&[&str]; 5] = [
        &[],
        &["-HExpect:"],
        &["-HTransfer-Encoding: chunked", "-HExpect:"],
        &[HTTP2],
        &[HTTP2, "-HContent-Length:"],
    ];
    for options in kinds {
        if options.contains(&HTTP2) && !knows_http2 {
            eprintln!("SKIPPED: this curl knows no HTTP/2");
            continue;
        }
        let mut failed = Vec::new();
        for _ in 0..times {
            let mut curl = Command::new("curl");
            curl.args(options)
                .args(["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"]);
            curl.arg("--data-binary")
                .arg(format!("@{}", file.display()))
                .arg(server.url());
            let output = curl.output().await.unwrap();
            // On HTTP/2 the whole answer must be seen, and no stream error.
            let fine =
                output.stdout == b"413" && (!options.contains(&HTTP2) || output.status.success());
            if !fine {
                failed.push(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        all.push((options, times - failed.len(), failed));
    }
    std::fs::remove_file(file).unwrap();
    all
}
