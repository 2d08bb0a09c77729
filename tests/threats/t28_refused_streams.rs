//! T28: a refused upload on a shared HTTP/2 connection ends its own stream and no other, at any
//! round trip. The bytes that the server reads of it are not charged to the client.

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, StatusCode};
use palisade::{Quota, Stack, StackLayer, conn::ConnGuard};
use palisade_testkit::{
    Journal,
    bodies::Pieces,
    clients::{self, PATIENCE, RawClient, wait_until},
    guarded::{SECOND, ServerKind, all_gone},
    h2,
    line::Line,
    servers::Server,
};
use std::{net::Ipv4Addr, time::Duration};
use tokio::time::{sleep, timeout};

/// Round-trip times in milliseconds.
const ROUND_TRIP_MILLIS: [u64; 3] = [0, 20, 100];
const UPLOAD_BYTES: u64 = 20_000_000;

/// Starts a server on which `/slow` takes half a second and `stack` refuses `/upload`, by length or
/// from the second request of an hour on.
async fn serve_with_stack(server: ServerKind, stack: StackLayer) -> (ConnGuard, Journal, Server) {
    let journal = Journal::default();
    // Short sweeps and a small budget, so that an optimized build, which reads ten times as fast,
    // does not pass more easily than this one.
    let guard = ConnGuard::builder()
        .sweep_interval(SECOND / 100)
        .max_overhead(64 * 1024);
    let guard = guard.metrics(journal.clone()).build().unwrap();
    let slow = async || {
        sleep(SECOND / 2).await;
        "slow"
    };
    let upload =
        async |body: Result<Bytes, _>| -> Result<String, axum::extract::rejection::BytesRejection> {
            Ok(body?.len().to_string())
        };
    let refused = Router::new()
        .route("/upload", axum::routing::post(upload))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(stack);
    let app = Router::new().route("/slow", get(slow)).merge(refused);
    (guard.clone(), journal, server.serve(&guard, app).await)
}

fn refuse_by_length() -> StackLayer {
    Stack::edge().build().unwrap()
}

fn refuse_by_rate() -> StackLayer {
    Stack::edge()
        .max_body(1 << 30)
        .rate_limit(Quota::per_hour(1).burst(1))
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upload_ends_its_own_stream_and_no_other() {
    for name in ServerKind::ALL {
        for (round_trip, declared) in ROUND_TRIP_MILLIS.into_iter().zip([true, false, true]) {
            let (guard, journal, server) = serve_with_stack(name, refuse_by_length()).await;
            let line = Line::to(
                server.addr,
                Ipv4Addr::LOCALHOST,
                Duration::from_millis(round_trip),
            );
            let line = line.await.unwrap();
            let mut client = clients::http2::<Pieces>(Ipv4Addr::LOCALHOST, line.addr)
                .await
                .unwrap();
            let ask = |path: &str, body| {
                let method = if path == "/slow" { "GET" } else { "POST" };
                let uri = format!("http://{}{path}", server.addr);
                Request::builder()
                    .method(method)
                    .uri(uri)
                    .body(body)
                    .unwrap()
            };
            for _ in 0..2 {
                let slow = client.send_request(ask("/slow", Pieces::new(0, 0)));
                let upload = Pieces::new(UPLOAD_BYTES / 50_000, 50_000);
                let upload = if declared { upload.declared() } else { upload };
                let refused = client.send_request(ask("/upload", upload)).await;
                let refused = timeout(PATIENCE, clients::whole(refused.unwrap()))
                    .await
                    .unwrap();
                let what = format!("{name}, {round_trip} ms");
                assert_eq!(
                    refused.unwrap().status(),
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "{what}"
                );
                let slow = timeout(PATIENCE, slow).await.unwrap();
                let slow = clients::whole(slow.expect(&what)).await.expect(&what);
                assert_eq!(slow.body(), "slow", "{what}");
            }
            assert!(
                journal.disconnected().is_empty(),
                "{name}: {:?}",
                journal.disconnected()
            );
            drop((client, line));
            all_gone(&guard).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_sent_before_the_refusal_arrives_are_not_charged_to_the_client() {
    for name in ServerKind::ALL {
        for round_trip in ROUND_TRIP_MILLIS {
            let (guard, journal, server) = serve_with_stack(name, refuse_by_rate()).await;
            let line = Line::to(
                server.addr,
                Ipv4Addr::LOCALHOST,
                Duration::from_millis(round_trip),
            );
            let line = line.await.unwrap();
            let mut client = RawClient::connect(line.addr).await.unwrap();
            let post = |stream| {
                let fields = [
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":authority", "x"),
                    (":path", "/upload"),
                ];
                h2::headers(stream, 0, &fields)
            };
            let data = |stream, end| h2::frame(h2::DATA, end, stream, &[b'x'; 1000]);
            let first = [post(1), data(1, h2::END_STREAM)].concat();
            client
                .send([h2::hello(65_535), first].concat())
                .await
                .unwrap();
            h2::next(&mut client.stream, h2::HEADERS, 1).await;
            // Sends all that the windows allow, as fast as they open, until the stream is reset.
            client
                .send([h2::get(3, "/slow"), post(5)].concat())
                .await
                .unwrap();
            let (mut connection_window, mut stream_window, mut status, mut reset) =
                (65_535, 65_535, 0, None);
            let mut slow = false;
            while reset.is_none() || !slow {
                while reset.is_none() && connection_window >= 1000 && stream_window >= 1000 {
                    client.send(data(5, 0)).await.unwrap();
                    (connection_window, stream_window) =
                        (connection_window - 1000, stream_window - 1000);
                }
                let frame = h2::read(&mut client.stream).await;
                match (frame.kind, frame.stream) {
                    (h2::WINDOW_UPDATE, at) => {
                        let more = u32::from_be_bytes(frame.payload.try_into().unwrap());
                        *(if at == 0 {
                            &mut connection_window
                        } else {
                            &mut stream_window
                        }) += more as i64;
                    }
                    (h2::SETTINGS, 0) if frame.flags == 0 => {
                        // SETTINGS_INITIAL_WINDOW_SIZE is setting 4.
                        for setting in frame.payload.chunks(6).filter(|setting| setting[1] == 4) {
                            let window = u32::from_be_bytes(setting[2..].try_into().unwrap());
                            stream_window += i64::from(window) - 65_535;
                        }
                    }
                    (h2::HEADERS, 5) => status = 429,
                    (h2::RST_STREAM, 5) => reset = frame.code(),
                    (h2::DATA, 3) => slow |= frame.payload.ends_with(b"w"),
                    (h2::GOAWAY, _) => panic!("{name}: {frame:?}"),
                    _ => {}
                }
            }
            assert_eq!(
                (status, reset),
                (429, Some(0)),
                "{name}, {round_trip} ms: NO_ERROR"
            );
            // The connection stays open.
            client.send(h2::get(7, "/slow")).await.unwrap();
            h2::next(&mut client.stream, h2::DATA, 7).await;
            assert!(
                journal.disconnected().is_empty(),
                "{name}: {:?}",
                journal.disconnected()
            );
            drop((client, line));
            wait_until("the connection is gone", || guard.snapshot().open == 0).await;
            all_gone(&guard).await;
        }
    }
}
