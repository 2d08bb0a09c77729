//! Tracked requests from their head to their end, on connections without a socket.

use super::{body::TrackedBody, layer::RequestTrackingLayer, service::RequestTracking};
use crate::{
    ConnGuard,
    connection::{ConnHandle, memory_gate::MemoryGate, stats::ConnStats, totals::ConnTotals},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING, UPGRADE},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Channel, Empty, Full};
use palisade_client_ip::Trust;
use palisade_core::{Budget, Guard, Mode, Prefix, Reason};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};
use tower::{Layer, Service, ServiceExt, service_fn};

type ResponseBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn conn() -> ConnHandle {
    ConnHandle::new(([127, 0, 0, 1], 1).into(), None, Prefix::default(), None)
}

fn conn_with_totals(totals: &Arc<ConnTotals>) -> ConnHandle {
    let totals = Some(Arc::clone(totals));
    ConnHandle::new(([127, 0, 0, 1], 1).into(), None, Prefix::default(), totals)
}

fn request(conn: &ConnHandle) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    request.extensions_mut().insert(conn.info());
    request
}

fn http2_request(conn: &ConnHandle) -> Request<Empty<Bytes>> {
    let mut request = request(conn);
    *request.version_mut() = Version::HTTP_2;
    request
}

fn layer() -> RequestTrackingLayer {
    ConnGuard::default().track_requests()
}

/// Returns the numbers of requests, requests in flight, answered and cancelled requests.
fn counts(conn: &ConnHandle) -> (u32, u32, u32, u32) {
    let ConnStats {
        requests,
        in_flight,
        answered,
        cancelled,
        ..
    } = conn.state().stats();
    (requests, in_flight, answered, cancelled)
}

/// Passes `request` on `conn` through the layer to a handler that returns `response`.
async fn serve<B: Body + Send + 'static>(
    conn: &ConnHandle,
    mut request: Request<B>,
    response: Response<ResponseBody>,
) -> Response<TrackedBody<ResponseBody>> {
    request.extensions_mut().insert(conn.info());
    let mut response = Some(response);
    let handler = service_fn(|_| {
        let response = response.take().unwrap();
        async { Ok::<_, Infallible>(response) }
    });
    layer().layer(handler).oneshot(request).await.unwrap()
}

/// A response with a body of this size.
fn full(bytes: usize) -> Response<ResponseBody> {
    Response::new(Full::new(Bytes::from(vec![b'x'; bytes])).boxed_unsync())
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_body_has_ended() {
    let conn = conn();
    let (mut send, body) = Channel::<Bytes, Infallible>::new(1);
    let response = serve(&conn, request(&conn), Response::new(body.boxed_unsync())).await;
    assert_eq!(counts(&conn), (1, 1, 0, 0));
    send.send_data(Bytes::from_static(b"x")).await.unwrap();
    drop(send);
    response.into_body().collect().await.unwrap();
    assert_eq!(counts(&conn), (1, 0, 1, 0));
}

#[tokio::test]
async fn a_response_counts_as_answered_though_the_end_of_its_body_is_never_polled() {
    let streamed = |header: &str| {
        let stream = futures_util::stream::iter(["abc", "def"])
            .map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
        let mut response = Response::new(http_body_util::StreamBody::new(stream).boxed_unsync());
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, header.parse().unwrap());
        response
    };
    // hyper drops a body once it has written as much as the head declares.
    let conn = conn();
    let mut body = serve(&conn, request(&conn), streamed("6"))
        .await
        .into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&conn), (1, 1, 0, 0));
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&conn), (1, 0, 1, 0));
    drop(body);
    // It also drops the body of a response that has none, whatever its head declares.
    let mut head = request(&conn);
    *head.method_mut() = Method::HEAD;
    drop(serve(&conn, head, streamed("6")).await);
    let mut not_modified = streamed("6");
    *not_modified.status_mut() = StatusCode::NOT_MODIFIED;
    drop(serve(&conn, request(&conn), not_modified).await);
    assert_eq!(counts(&conn), (3, 0, 3, 0));
    // It does not poll a body of declared length zero.
    let unpolled = serve(&conn, request(&conn), streamed("0")).await;
    assert_eq!(counts(&conn), (4, 1, 3, 0));
    drop(unpolled);
    assert_eq!(counts(&conn), (4, 0, 4, 0));
}

#[tokio::test]
async fn the_guard_does_not_rely_on_a_layer_whose_requests_have_no_connection() {
    let guard = ConnGuard::default();
    let layer = guard.track_requests();
    let handler = service_fn(|_: Request<Empty<Bytes>>| async { Ok::<_, Infallible>(full(1)) });
    assert!(guard.shared().is_tracked.load(Relaxed));
    layer
        .layer(handler)
        .oneshot(Request::new(Empty::new()))
        .await
        .unwrap();
    assert!(!guard.shared().is_tracked.load(Relaxed));
    // A later request with a connection shows that the first was an exception, such as a health
    // check inside the process.
    let conn = conn();
    assert!(!conn.state().is_tracked());
    layer.layer(handler).oneshot(request(&conn)).await.unwrap();
    assert!(guard.shared().is_tracked.load(Relaxed) && conn.state().is_tracked());

    // After a request with a connection, one without changes nothing.
    let guard = ConnGuard::default();
    let layer = guard.track_requests();
    layer.layer(handler).oneshot(request(&conn)).await.unwrap();
    layer
        .layer(handler)
        .oneshot(Request::new(Empty::new()))
        .await
        .unwrap();
    assert!(guard.shared().is_tracked.load(Relaxed));
}

/// A body that returns its size but not that it has ended.
struct SizedBody(Option<Bytes>);

impl Body for SizedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
    }
}

#[tokio::test]
async fn a_body_of_known_size_ends_with_its_last_byte() {
    let conn = conn();
    let declared = SizedBody(Some(Bytes::from_static(b"x"))).boxed_unsync();
    let mut body = serve(&conn, request(&conn), Response::new(declared))
        .await
        .into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&conn), (1, 0, 1, 0));
    let conn = self::conn();
    let mut body = serve(&conn, request(&conn), full(10)).await.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(counts(&conn), (1, 0, 1, 0));
    let response = serve(&conn, request(&conn), full(0)).await;
    assert_eq!(counts(&conn), (2, 0, 2, 0));
    drop(response);
}

#[tokio::test]
async fn the_connection_tracks_the_declared_end_of_a_body() {
    let uploaded = |name, value: &'static str, version| {
        let conn = conn();
        let mut request = Request::new(Full::<Bytes>::from("body"));
        *request.version_mut() = version;
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        (conn, request)
    };
    let cases = [
        (CONTENT_LENGTH, "10", Version::HTTP_11, (true, false)),
        (CONTENT_LENGTH, "0", Version::HTTP_10, (false, true)),
        (CONTENT_LENGTH, "5, 5", Version::HTTP_11, (false, true)),
        (
            TRANSFER_ENCODING,
            "chunked",
            Version::HTTP_11,
            (false, true),
        ),
        (CONTENT_LENGTH, "10", Version::HTTP_2, (false, false)),
    ];
    for (name, value, version, expected) in cases {
        let (conn, request) = uploaded(name, value, version);
        conn.state().add_read(1);
        drop(serve(&conn, request, full(0)).await);
        let before = conn.state().stats().body_left;
        conn.state().add_read(9);
        let stats = conn.state().stats();
        assert!(!stats.body_left);
        assert_eq!((before, stats.more_was_read), expected, "{value}");
    }
}

#[tokio::test]
async fn a_request_whose_response_body_fails_or_is_dropped_is_cancelled() {
    let conn = conn();
    drop(serve(&conn, request(&conn), full(10)).await);
    assert_eq!(counts(&conn), (1, 0, 0, 1));
    let (send, body) = Channel::<Bytes, &str>::new(1);
    send.abort("gone");
    let mut body = Some(body);
    let handler = service_fn(|_| {
        let response = Response::new(body.take().unwrap());
        async { Ok::<_, Infallible>(response) }
    });
    let mut body = layer()
        .layer(handler)
        .oneshot(request(&conn))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap_err();
    assert_eq!(counts(&conn), (2, 0, 0, 2));
}

#[tokio::test]
async fn a_dropped_future_and_a_panicking_handler_end_their_requests() {
    let conn = conn();
    let pending =
        service_fn(|_| std::future::pending::<Result<Response<ResponseBody>, Infallible>>());
    let mut service = layer().layer(pending);
    let waiting = service.call(request(&conn));
    let clone = service.clone().call(request(&conn));
    assert_eq!(counts(&conn), (2, 2, 0, 0));
    drop((waiting, clone));
    assert_eq!(counts(&conn), (2, 0, 0, 2));

    let panics = service_fn(|_| async {
        if true {
            panic!("on purpose");
        }
        Ok::<_, Infallible>(full(1))
    });
    let call = tokio::spawn(layer().layer(panics).oneshot(request(&conn)));
    assert!(call.await.unwrap_err().is_panic());
    assert_eq!(counts(&conn), (3, 0, 0, 3));
}

#[tokio::test]
async fn the_last_response_says_close_on_http1_and_an_upgrade_is_not_in_flight() {
    let mut totals = ConnTotals::default();
    totals.max_requests = Some(2);
    let conn = conn_with_totals(&Arc::new(totals));
    let first = serve(&conn, request(&conn), full(1)).await;
    assert!(!first.headers().contains_key(CONNECTION));
    let last = serve(&conn, request(&conn), full(1)).await;
    assert_eq!(last.headers()[CONNECTION], "close");
    assert_eq!(conn.state().closing(), Some(Reason::MaxRequests));
    let response = serve(&conn, http2_request(&conn), full(1)).await;
    assert!(!response.headers().contains_key(CONNECTION));
    drop((first, last, response));

    let mut switching = full(1);
    *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let response = serve(&conn, request(&conn), switching).await;
    let stats = conn.state().stats();
    assert!(stats.upgraded && stats.in_flight == 0);
    drop(response);
}

#[tokio::test]
async fn an_upgrade_above_the_limit_is_refused_and_its_connection_stays_open() {
    let mut totals = ConnTotals::default();
    totals.max_upgraded = Some(1);
    let totals = Arc::new(totals);
    let switching = || {
        let mut response = full(0);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response
    };
    let (first, second) = (conn_with_totals(&totals), conn_with_totals(&totals));
    let response = serve(&first, request(&first), switching()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let response = serve(&second, request(&second), switching()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
    assert!(!second.state().is_upgraded() && first.state().is_upgraded());
    drop(response);
    first.state().release_upgrade(&first);
    let response = serve(&second, request(&second), switching()).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    second.state().release_upgrade(&second);
    assert_eq!((totals.upgraded(), totals.in_flight()), (0, 0));
}

#[tokio::test]
async fn a_client_behind_a_proxy_may_upgrade_no_more_connections_than_it_leaves() {
    let journal = Journal::default();
    let mut totals = ConnTotals::default();
    totals.max_upgraded = Some(20);
    totals.recorder = journal.clone().into();
    totals.trust = Some(Trust::private());
    let totals = Arc::new(totals);
    let ask = async |client: String| {
        let conn = conn_with_totals(&totals); // The proxy opens one for each.
        let mut request = request(&conn);
        let headers = request.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert("x-forwarded-for", client.parse().unwrap());
        let mut switching = full(0);
        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let response = serve(&conn, request, switching).await;
        (conn, response.status() == StatusCode::SWITCHING_PROTOCOLS)
    };
    let greedy = (0..20).map(|_| ask("203.0.113.7".into()));
    let greedy = futures_util::future::join_all(greedy).await;
    assert_eq!(
        greedy
            .iter()
            .filter(|(_, is_upgraded)| *is_upgraded)
            .count(),
        7
    );
    let named = journal.clients();
    assert_eq!(named, [Some([203, 0, 113, 7].into()); 13]);
    let others = (0..13).map(|last| ask(format!("198.51.100.{last}")));
    let others = futures_util::future::join_all(others).await;
    assert!(others.iter().all(|(_, is_upgraded)| *is_upgraded));
    for (conn, _) in greedy.iter().chain(&others) {
        conn.state().release_upgrade(conn);
    }
    assert_eq!((totals.upgraded(), totals.upgraded_clients()), (0, (0, 0)));
    // The share is free again.
    assert!(ask("203.0.113.7".into()).await.1);
}

#[tokio::test]
async fn a_proxy_that_names_no_client_in_its_proxy_header_has_no_share() {
    let mut totals = ConnTotals::default();
    totals.trust = Some(Trust::private());
    let totals = Arc::new(totals);
    let conn = |peer: [u8; 4]| {
        let (peer, totals) = ((peer, 1).into(), Some(totals.clone()));
        ConnHandle::new(peer, None, Prefix::default(), totals).of_proxy()
    };
    // It has a share if it is asked for its clients.
    for (peer, clients) in [([198, 51, 100, 7], 0), ([10, 0, 0, 7], 1)] {
        let conn = conn(peer);
        let (_send, body) = Channel::<Bytes, Infallible>::new(1);
        let response = serve(&conn, request(&conn), Response::new(body.boxed_unsync())).await;
        assert_eq!((totals.in_flight(), totals.proxied().len()), (1, clients));
        drop(response);
    }
    assert_eq!((totals.in_flight(), totals.proxied().len()), (0, 0));
}

#[tokio::test]
async fn a_request_above_the_limit_is_refused_and_in_shadow_mode_only_reported() {
    for mode in [Mode::Enforce, Mode::Shadow] {
        let journal = Journal::default();
        let mut totals = ConnTotals::default();
        (totals.max_in_flight, totals.mode) = (Some(1), mode);
        totals.recorder = journal.clone().into();
        let totals = Arc::new(totals);
        let (first, second) = (conn_with_totals(&totals), conn_with_totals(&totals));
        let held = serve(&first, request(&first), full(1)).await;
        let grpc = {
            let mut request = request(&second);
            (*request.method_mut(), *request.version_mut()) = (Method::POST, Version::HTTP_2);
            let kind = HeaderValue::from_static("application/grpc");
            request.headers_mut().insert(CONTENT_TYPE, kind);
            request
        };
        let plain = serve(&second, request(&second), full(1)).await;
        drop(plain.into_body());
        let plain = serve(&second, request(&second), full(1)).await;
        let grpc = serve(&second, grpc, full(1)).await;
        if mode == Mode::Enforce {
            assert_eq!(plain.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(plain.headers()[RETRY_AFTER], "1");
            let body = plain.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "server is busy");
            assert_eq!(
                (grpc.status(), &grpc.headers()["grpc-status"]),
                (StatusCode::OK, &HeaderValue::from_static("8"))
            );
        } else {
            assert_eq!(
                (plain.status(), grpc.status()),
                (StatusCode::OK, StatusCode::OK)
            );
            drop(plain);
        }
        drop((held, grpc));
        assert_eq!(
            (totals.in_flight(), counts(&first).1, counts(&second).1),
            (0, 0, 0)
        );
        assert_eq!(
            journal.refused(),
            [(Guard::Connection, Reason::InFlightFull); 3]
        );
        let response = serve(&second, request(&second), full(1)).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_refused_request_leaves_the_total_before_its_response_is_polled() {
    let mut totals = ConnTotals::default();
    totals.max_in_flight = Some(1);
    let totals = Arc::new(totals);
    let (first, second) = (conn_with_totals(&totals), conn_with_totals(&totals));
    let held = serve(&first, request(&first), full(1)).await;
    let mut service = layer().layer(service_fn(|_| async { Ok::<_, Infallible>(full(1)) }));
    let refused = service.call(request(&second));
    assert_eq!(totals.in_flight(), 1);
    drop(held);
    assert_eq!(totals.in_flight(), 0);
    assert_eq!(
        refused.await.unwrap().status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!((totals.in_flight(), counts(&second).1), (0, 0));
}

#[tokio::test]
async fn the_head_of_an_http2_request_is_charged_until_the_request_ends() {
    let budget = Budget::new(64 << 10).unwrap();
    let (journal, mut totals) = (Journal::default(), ConnTotals::default());
    totals.recorder = journal.clone().into();
    totals.memory = MemoryGate::new(None, None, None, None, Some(budget.clone()));
    let conn = conn_with_totals(&Arc::new(totals));
    let head = |fields: usize, version| {
        let mut request = request(&conn);
        *request.version_mut() = version;
        for number in 0..fields {
            let name = format!("x-{number}").parse::<http::HeaderName>().unwrap();
            request
                .headers_mut()
                .append(name, HeaderValue::from_static("v"));
        }
        request
    };
    let first = serve(&conn, head(90, Version::HTTP_2), full(1)).await;
    let each = budget.held();
    assert!((90 * 224..90 * 240).contains(&each), "{each}");
    let mut held = vec![first];
    for _ in 0..2 {
        held.push(serve(&conn, head(90, Version::HTTP_2), full(1)).await);
    }
    assert_eq!(budget.held(), 3 * each);
    // There is no room for a fourth one. A usual one is not charged, and none of HTTP/1.
    let refused = serve(&conn, head(90, Version::HTTP_2), full(1)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[RETRY_AFTER], "1");
    for (fields, version) in [(90, Version::HTTP_11), (30, Version::HTTP_2)] {
        let before = budget.held();
        let served = serve(&conn, head(fields, version), full(1)).await;
        assert_eq!((served.status(), budget.held()), (StatusCode::OK, before));
    }
    assert_eq!(journal.refused(), [(Guard::Connection, Reason::BytesFull)]);
    drop(held);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn the_socket_charges_a_body_of_http1_until_the_request_ends() {
    let respond = |_| async { Ok::<_, Infallible>(full(1)) };
    for (method, version, expected) in [
        (Method::POST, Version::HTTP_10, true),
        (Method::POST, Version::HTTP_11, true),
        (Method::CONNECT, Version::HTTP_11, false),
        // Bodies of one connection overlap for hours, and the socket cannot tell them apart.
        (Method::POST, Version::HTTP_2, false),
    ] {
        let conn = conn();
        conn.set_charged_body(true); // By a layer, for the request before.
        let (_send, body) = Channel::<Bytes, Infallible>::new(1);
        let mut request = Request::new(body);
        request.extensions_mut().insert(conn.info());
        (*request.method_mut(), *request.version_mut()) = (method.clone(), version);
        let mut service = layer().layer(service_fn(respond));
        let response = service.call(request);
        assert_eq!(
            conn.state().charges_reads(),
            expected,
            "{method} {version:?}"
        );
        assert_eq!(conn.has_charged_body(), !expected);
        drop(response.await);
        assert!(!conn.state().charges_reads());
    }
}

#[tokio::test]
async fn an_http2_head_of_too_many_fields_is_answered_431() {
    let (journal, mut totals) = (Journal::default(), ConnTotals::default());
    totals.recorder = journal.clone().into();
    let conn = conn_with_totals(&Arc::new(totals));
    for (version, fields, expected) in [
        (Version::HTTP_2, 100, StatusCode::OK),
        (
            Version::HTTP_2,
            101,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
        (Version::HTTP_11, 101, StatusCode::OK), // hyper has a limit of its own.
    ] {
        let mut request = request(&conn);
        *request.version_mut() = version;
        for number in 0..fields {
            let name = format!("x-{number}").parse::<http::HeaderName>().unwrap();
            request
                .headers_mut()
                .append(name, HeaderValue::from_static("v"));
        }
        let response = serve(&conn, request, full(1)).await;
        assert_eq!(response.status(), expected, "{version:?}, {fields}");
    }
    assert_eq!(
        journal.refused(),
        [(Guard::Connection, Reason::HeadTooLarge)]
    );
}

#[tokio::test]
async fn a_request_that_two_services_track_counts_once() {
    let conn = conn();
    let inner = layer().layer(service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(full(1))
    }));
    let response = RequestTracking::for_connection(conn.clone(), inner)
        .oneshot(request(&conn))
        .await
        .unwrap();
    assert_eq!(counts(&conn), (1, 1, 0, 0));
    response.into_body().collect().await.unwrap();
    assert_eq!(counts(&conn), (1, 0, 1, 0));
}

#[tokio::test]
async fn an_http2_response_that_is_ready_and_not_polled_waits_for_the_client() {
    let conn = conn();
    let (mut send, body) = Channel::<Bytes, Infallible>::new(1);
    let mut body = serve(
        &conn,
        http2_request(&conn),
        Response::new(body.boxed_unsync()),
    )
    .await
    .into_body();
    let waiting = || conn.state().stats().waiting;
    assert_eq!(waiting(), 1); // The body has not been polled.
    assert!(body.frame().now_or_never().is_none());
    assert_eq!(waiting(), 0); // The handler has no data.
    send.send_data(Bytes::from_static(b"x")).await.unwrap();
    body.frame().await.unwrap().unwrap();
    assert_eq!(waiting(), 1); // The poll returned data, and no other poll follows.
    drop(body);
    assert_eq!(waiting(), 0);
}

#[tokio::test]
async fn on_http2_the_last_byte_of_a_response_is_a_frame_of_its_own() {
    let conn = conn();
    let mut body = serve(&conn, http2_request(&conn), full(1000))
        .await
        .into_body();
    assert_eq!(body.size_hint().exact(), Some(1000));
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((frame.len(), body.size_hint().exact()), (999, Some(1)));
    assert!(!body.is_end_stream());
    let stats = conn.state().stats();
    assert_eq!((stats.in_flight, stats.waiting, stats.answered), (1, 1, 0));
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(frame.len() == 1 && body.is_end_stream());
    drop(body);
    assert_eq!(counts(&conn), (1, 0, 1, 0));
    // A short body is one frame, and HTTP/1 has no windows.
    let mut body = serve(&conn, http2_request(&conn), full(256))
        .await
        .into_body();
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len(),
        256
    );
    assert!(body.is_end_stream());
    let mut body = serve(&conn, request(&conn), full(1000)).await.into_body();
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len(),
        1000
    );
}

#[tokio::test]
async fn a_failed_handler_is_no_early_cancellation() {
    let conn = conn_with_totals(&Arc::default());
    let fails = service_fn(|_| async { Err::<Response<ResponseBody>, _>("on purpose") });
    layer()
        .layer(fails)
        .oneshot(request(&conn))
        .await
        .unwrap_err();
    let never =
        service_fn(|_| std::future::pending::<Result<Response<ResponseBody>, Infallible>>());
    drop(layer().layer(never).oneshot(request(&conn)).now_or_never());
    let stats = conn.state().stats();
    assert_eq!((stats.cancelled, stats.early), (2, 1));
}

#[tokio::test]
async fn connect_is_an_upgrade_only_if_it_succeeds() {
    let conn = conn();
    let connect = || {
        let mut request = request(&conn);
        *request.method_mut() = Method::CONNECT;
        request
    };
    let mut refused = full(1);
    *refused.status_mut() = StatusCode::FORBIDDEN;
    drop(serve(&conn, connect(), refused).await);
    assert!(!conn.state().is_upgraded());
    drop(serve(&conn, connect(), full(0)).await);
    assert!(conn.state().is_upgraded());
}
