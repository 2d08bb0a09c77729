//! Clients of refused uploads see the response: hyper, tonic and curl send 10 MB that the server
//! does not read. On HTTP/1 at least 98 of 100 see the status, on HTTP/2 all of them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic and print"
)]

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use palisade_body_limit::{BodyLimitLayer, RequestBody};
use palisade_concurrency_limit::ConcurrencyLimitLayer;
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::{
    bodies::Pieces,
    clients::{self, wait_until},
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers::{self, Server},
};
use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::process::Command;
use tower::{ServiceBuilder, service_fn};

/// The number of uploads of each kind.
const UPLOADS: usize = 125;
/// The number of uploads of each kind behind the guard. There are seven kinds, so 1,001 in all.
const GUARDED_UPLOADS: usize = 143;

/// A handler that reads the body.
async fn read_body<B>(
    request: Request<RequestBody<B>>,
) -> Result<http::Response<String>, Infallible>
where
    RequestBody<B>: Body<Error: fmt::Debug>,
{
    let read = request.into_body().collect().await;
    Ok(http::Response::new(format!(
        "{:?}",
        read.map(|body| body.to_bytes().len())
    )))
}

async fn server() -> Server {
    let layer = ServiceBuilder::new().layer(BodyLimitLayer::default());
    servers::hyper(layer.service(service_fn(read_body))).await
}

/// Returns bodies of 10 MB, one with a declared length and one without.
fn uploads() -> [Pieces; 2] {
    [
        Pieces::new(1, 10_000_000).declared(),
        Pieces::new(160, 65_536),
    ]
}

/// Asserts that at most `missed` of all uploads did not see the status.
fn assert_seen(seen: usize, missed: usize) {
    assert!(
        seen >= 2 * UPLOADS - missed,
        "{seen} of {} saw the status",
        2 * UPLOADS
    );
}

/// Asserts that hyper's client on HTTP/1 sees `status` for its uploads.
async fn assert_seen_on_http1(server: &Server, status: StatusCode) {
    assert_seen(count_on_http1(server, status, UPLOADS).await, UPLOADS / 25);
}

/// Sends each of [`uploads`] `times` times, and returns the number of uploads that saw `status`.
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
        let response = client.send_request(request).await;
        seen += usize::from(response.is_ok_and(|response| response.status() == status));
    }
    seen
}

/// A handler that does not read the body.
fn ignore_body<B>(request: Request<B>) -> Ready<Result<http::Response<String>, Infallible>> {
    drop(request);
    ready(Ok(http::Response::default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_413_on_http1() {
    assert_seen_on_http1(&server().await, StatusCode::PAYLOAD_TOO_LARGE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_429_of_the_rate_limit_on_http1() {
    let layer = ServiceBuilder::new().layer(RateLimitLayer::new(Quota::per_hour(1)).unwrap());
    let server = servers::hyper(layer.service(service_fn(ignore_body))).await;
    let first = clients::get(Ipv4Addr::LOCALHOST, server.addr, "/")
        .await
        .unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    assert_seen_on_http1(&server, StatusCode::TOO_MANY_REQUESTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_503_of_the_concurrency_limit_on_http1() {
    let layer = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(0));
    let server = servers::hyper(layer.service(service_fn(ignore_body))).await;
    assert_seen_on_http1(&server, StatusCode::SERVICE_UNAVAILABLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_sees_413_on_http2() {
    let server = server().await;
    for body in (0..UPLOADS).flat_map(|_| uploads()) {
        let mut client = clients::http2(Ipv4Addr::LOCALHOST, server.addr)
            .await
            .unwrap();
        let response = client
            .send_request(Request::post(server.url()).body(body).unwrap())
            .await;
        let response = clients::whole(response.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(response.into_body(), "body too large");
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
    for (options, seen, failed) in curl_uploads(&server().await, UPLOADS).await {
        // On a busy machine curl may write for longer than the server lingers.
        let missed = UPLOADS / 50;
        assert!(
            seen + missed >= UPLOADS,
            "{options:?}: {} {failed:?}",
            failed.len()
        );
    }
}

/// Behind the guard, a connection lingers when it is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_serve_199_of_200_clients_see_413() {
    let guard = palisade::conn::ConnGuard::builder()
        .accept_rate(None)
        .build()
        .unwrap();
    let app = ServiceBuilder::new()
        .layer(BodyLimitLayer::default())
        .service(service_fn(read_body));
    let serve = palisade::serve(guard.listen(servers::listener().await), app);
    let addr = serve.local_addr().unwrap();
    let server = Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }));
    let seen = count_on_http1(&server, StatusCode::PAYLOAD_TOO_LARGE, GUARDED_UPLOADS).await;
    assert!(
        seen * 200 >= 2 * GUARDED_UPLOADS * 199,
        "hyper: {seen} of {}",
        2 * GUARDED_UPLOADS
    );
    let curls = curl_uploads(&server, GUARDED_UPLOADS).await;
    let (sent, seen) = curls.iter().fold((0, 0), |(sent, seen), curl| {
        (sent + GUARDED_UPLOADS, seen + curl.1)
    });
    assert!(
        seen * 200 >= sent * 199,
        "curl: {seen} of {sent}, {curls:?}"
    );
    drop(server);
    wait_until("all connections are closed", || guard.snapshot().open == 0).await;
}

/// Without lingering, hyper's client sees one response in ten: its write fails, and it does not
/// read the response that has arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_serve_the_connection_lingers_without_any_layer() {
    let guard = palisade::conn::ConnGuard::builder()
        .accept_rate(None)
        .build()
        .unwrap();
    let serve = palisade::serve(
        guard.listen(servers::listener().await),
        service_fn(ignore_body),
    );
    let addr = serve.local_addr().unwrap();
    let server = Server::new(addr, tokio::spawn(async move { serve.await.unwrap() }));
    let seen = count_on_http1(&server, StatusCode::OK, 100).await;
    assert!(seen >= 199, "{seen} of 200");
    drop(server);
    wait_until("all connections are closed", || guard.snapshot().open == 0).await;
}

const HTTP2: &str = "--http2-prior-knowledge";

/// Uploads `times` times in each of curl's ways. Returns for each way curl's options, the number of
/// uploads that saw 413, and the errors of the others.
async fn curl_uploads(
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
        eprintln!("SKIPPED: curl is not installed");
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
            eprintln!("SKIPPED: this curl does not support HTTP/2");
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
            // On HTTP/2 curl must receive the whole response without a stream error.
            let is_seen =
                output.stdout == b"413" && (!options.contains(&HTTP2) || output.status.success());
            if !is_seen {
                failed.push(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        all.push((options, times - failed.len(), failed));
    }
    std::fs::remove_file(file).unwrap();
    all
}
