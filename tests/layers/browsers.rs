//! Pages of another origin, with tower-http's `CorsLayer` outside the stack. A browser shows a page
//! the response only with the headers of CORS, and asks with a preflight request before it sends
//! anything but the simplest requests.

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use palisade::{Quota, Stack, StackLayer};
use palisade_core::{Gauge, Guard, Reason};
use palisade_testkit::{Journal, clients, servers};
use std::net::{Ipv4Addr, SocketAddr};
use tower::ServiceBuilder;
use tower_http::cors::CorsLayer;

const ORIGIN: &str = "https://app.test";
const BURST: u32 = 3;
const ROUTE: &str = "/items";

/// A stack that admits [`BURST`] requests an hour and limits bodies to ten bytes.
fn stack(journal: &Journal) -> StackLayer {
    let stack = Stack::edge().rate_limit(Quota::per_hour(1).burst(BURST));
    stack.max_body(10).metrics(journal.clone()).build().unwrap()
}

/// CORS for one origin. A page may read `Retry-After`.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(HeaderValue::from_static(ORIGIN))
        .allow_methods([Method::GET, Method::PUT])
        .allow_headers([header::CONTENT_TYPE])
        .expose_headers([header::RETRY_AFTER])
}

fn routes() -> Router {
    let handler = get("item").put(async |body: Bytes| body);
    Router::new().route(ROUTE, handler)
}

/// Sends a request of a page, each on a connection of its own.
async fn send(to: SocketAddr, method: Method, body: &'static [u8]) -> Response<Bytes> {
    let request = Request::builder().method(&method).uri(ROUTE);
    let request = request.header("host", "api.test").header("origin", ORIGIN);
    let request = match method {
        Method::OPTIONS => request
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "content-type"),
        _ => request,
    };
    let request = request.body(Full::new(Bytes::from_static(body))).unwrap();
    let mut client = clients::http1(Ipv4Addr::LOCALHOST, to).await.unwrap();
    let response = client.send_request(request).await.unwrap();
    clients::whole(response).await.unwrap()
}

/// Returns whether a browser shows `response` to the page. If not, the page sees a failed request,
/// without its status.
fn is_shown(response: &Response<Bytes>) -> bool {
    let allowed = response.headers().get("access-control-allow-origin");
    allowed.is_some_and(|allowed| allowed == ORIGIN || allowed == "*")
}

/// Returns the header that a page reads: only if it is exposed, as `Retry-After` has to be.
fn read<'a>(response: &'a Response<Bytes>, name: &HeaderName) -> Option<&'a HeaderValue> {
    let exposed = response.headers().get("access-control-expose-headers")?;
    let mut names = exposed.to_str().unwrap().split(',').map(str::trim);
    let is_exposed =
        names.any(|exposed| exposed == "*" || exposed.eq_ignore_ascii_case(name.as_str()));
    let value = response.headers().get(name);
    value.filter(|_| is_shown(response) && is_exposed)
}

#[tokio::test]
async fn a_page_reads_a_429_and_its_retry_after() {
    let journal = Journal::default();
    let layers = ServiceBuilder::new().layer(cors()).layer(stack(&journal));
    let server = servers::axum(routes().layer(layers)).await;
    for _ in 0..BURST {
        let served = send(server.addr, Method::GET, b"").await;
        assert_eq!((served.status(), is_shown(&served)), (StatusCode::OK, true));
    }
    let refused = send(server.addr, Method::GET, b"").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(is_shown(&refused));
    let wait = read(&refused, &header::RETRY_AFTER).unwrap();
    let wait: u64 = wait.to_str().unwrap().parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}"); // A request an hour.
    // What is not exposed is sent, but no page reads it.
    assert!(refused.headers().contains_key(header::CONTENT_LENGTH));
    assert_eq!(read(&refused, &header::CONTENT_LENGTH), None);
    assert_eq!(
        journal.refused(),
        [(Guard::RateLimit, Reason::RateExceeded)]
    );
}

#[tokio::test]
async fn a_page_reads_every_other_refusal_too() {
    let journal = Journal::default();
    let layers = ServiceBuilder::new().layer(cors()).layer(stack(&journal));
    let server = servers::axum(routes().layer(layers)).await;
    let refused = send(server.addr, Method::PUT, b"more than ten bytes").await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(is_shown(&refused));
}

#[tokio::test]
async fn a_page_cannot_read_a_429_where_cors_is_inside_the_stack() {
    let journal = Journal::default();
    let layers = ServiceBuilder::new().layer(stack(&journal)).layer(cors());
    let server = servers::axum(routes().layer(layers)).await;
    // And each preflight uses the client's quota.
    for _ in 0..BURST {
        let preflight = send(server.addr, Method::OPTIONS, b"").await;
        assert_eq!(preflight.status(), StatusCode::OK);
    }
    let refused = send(server.addr, Method::GET, b"").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    assert!(!is_shown(&refused));
    assert_eq!(read(&refused, &header::RETRY_AFTER), None);
}

#[tokio::test]
async fn a_preflight_is_not_charged_and_is_answered_above_the_quota() {
    let journal = Journal::default();
    let layers = ServiceBuilder::new().layer(cors()).layer(stack(&journal));
    let server = servers::axum(routes().layer(layers)).await;
    let preflight = async || {
        let response = send(server.addr, Method::OPTIONS, b"").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(is_shown(&response));
        let methods = &response.headers()["access-control-allow-methods"];
        assert!(methods.to_str().unwrap().contains("PUT"));
    };
    for _ in 0..10 * BURST {
        preflight().await;
    }
    assert_eq!(journal.gauge(Guard::RateLimit, Gauge::Keys), Some(0));
    for _ in 0..BURST {
        preflight().await;
        assert_eq!(
            send(server.addr, Method::PUT, b"new").await.status(),
            StatusCode::OK
        );
    }
    let refused = send(server.addr, Method::PUT, b"new").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    preflight().await;
    assert_eq!(
        journal.refused(),
        [(Guard::RateLimit, Reason::RateExceeded)]
    );
}
