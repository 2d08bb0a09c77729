//! What is charged whatever handlers, methods and clients do with a body.

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::Frame;
use http_body_util::{
    BodyExt, Empty, Full, StreamBody, channel::Channel, combinators::UnsyncBoxBody,
};
use palisade_body_limit::{BodyBudgetLayer, BodyBudgetPolicy, Budget, Mode};
use palisade_core::{ConnInfo, Guard, Phase, Prefix, Reason, Violation};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, yield_now},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const FRAME: usize = 16 * KIB;

type Upload = UnsyncBoxBody<Bytes, Infallible>;
type Received = Request<palisade_guard::RequestBody<Upload, BodyBudgetPolicy>>;
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn budget(bytes: usize) -> Budget {
    Budget::new(bytes as u64).expect("the budget is large enough")
}

fn answer(text: &'static str) -> Answer {
    Response::new(Full::from(text).boxed_unsync())
}

/// A body of these frames.
fn body(frames: Vec<Bytes>) -> Upload {
    let frames = frames.into_iter().map(Frame::data).map(Ok);
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// A body of six frames, and its request.
fn upload() -> Request<Upload> {
    Request::new(body(vec![Bytes::from(vec![b'x'; FRAME]); 6]))
}

/// A body that the test sends.
fn sent() -> (http_body_util::channel::Sender<Bytes, Infallible>, Upload) {
    let (sender, body) = Channel::new(1);
    (sender, body.boxed_unsync())
}

/// Collects the body, and answers.
async fn collecting(request: Received) -> Result<Answer, BoxError> {
    request.into_body().collect().await?;
    Ok(answer("collected"))
}

fn spawn(layer: &BodyBudgetLayer, request: Request<Upload>) -> JoinHandle<StatusCode> {
    let service = layer.layer(service_fn(collecting));
    tokio::spawn(async move {
        let response = service.oneshot(request).await;
        response.expect("the handler does not fail").status()
    })
}

async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

#[tokio::test]
async fn a_body_that_declares_more_than_the_whole_budget_is_refused_at_its_head() {
    let (budget, journal) = (budget(64 * KIB), Journal::default());
    let layer = BodyBudgetLayer::new(budget.clone()).metrics(journal.clone());
    let read = Arc::new(AtomicUsize::new(0));
    let declared = |bytes: usize| Request::new(Full::from(vec![b'x'; bytes]));
    let status = async |layer: &BodyBudgetLayer, request| {
        let read = read.clone();
        let handler = service_fn(async |request: Request<_>| {
            let body: palisade_guard::RequestBody<Full<Bytes>, BodyBudgetPolicy> =
                Request::into_body(request);
            let bytes = body.collect().await?.to_bytes().len();
            read.fetch_add(bytes, Relaxed);
            Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))
        });
        layer
            .layer(handler)
            .oneshot(request)
            .await
            .unwrap()
            .status()
    };
    // 32 KiB fill it.
    assert_eq!(status(&layer, declared(32 * KIB)).await, 200);
    assert_eq!(read.swap(0, Relaxed), 32 * KIB);
    assert_eq!(status(&layer, declared(32 * KIB + 1)).await, 413);
    assert_eq!((read.load(Relaxed), budget.held()), (0, 0));
    let expected = Violation::new(
        Guard::BodyLimit,
        Reason::BytesFull,
        Phase::RequestHead,
        64 << 10,
        (64 << 10) + 2,
    );
    assert_eq!(journal.refusals(), [(expected, Mode::Enforce)]);
    // It is not refused where it is not held, or one message at a time is.
    let streamed = layer.clone().max_held(64 << 10);
    assert_eq!(status(&streamed, declared(MIB)).await, 200);
    let streamed = layer.clone().max_held_for(|_| Some(0));
    assert_eq!(status(&streamed, declared(MIB)).await, 200);
    assert_eq!(
        status(&layer.clone().mode(Mode::Off), declared(MIB)).await,
        200
    );
    assert_eq!(journal.refused().len(), 1);
    // In shadow mode it is reported once.
    assert_eq!(status(&layer.mode(Mode::Shadow), declared(MIB)).await, 200);
    assert_eq!(journal.refused().len(), 2);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn two_half_read_bodies_of_one_connection_are_charged_together_and_given_back_apart() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let peer = ([192, 0, 2, 1], 4711).into();
    let conn = ConnInfo::new(peer, None, Prefix::default());
    let mut clients = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let (client, body) = sent();
        let mut request = Request::new(body);
        *request.version_mut() = Version::HTTP_2;
        request.extensions_mut().insert(conn.clone());
        clients.push(client);
        tasks.push(spawn(&layer, request));
    }
    for _ in 0..3 {
        for client in &mut clients {
            let piece = Bytes::from(vec![b'x'; FRAME]);
            client.send_data(piece).await.unwrap();
        }
    }
    settle().await;
    let both = budget.held();
    assert_eq!(u64::from(conn.charged_bytes()), both);
    assert!((186 * KIB..=256 * KIB).contains(&(both as usize)), "{both}");
    // The client resets one of its streams.
    let second = tasks.pop().unwrap();
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(budget.held(), both / 2);
    assert_eq!(u64::from(conn.charged_bytes()), both / 2);
    // And finishes the other one.
    drop(clients);
    assert_eq!(tasks.pop().unwrap().await.unwrap(), StatusCode::OK);
    assert_eq!((budget.held(), conn.charged_bytes()), (0, 0));
}

#[tokio::test]
async fn a_handler_that_drops_its_body_is_charged_until_its_response_has_ended() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let handler = service_fn(async |request: Received| {
        let mut body = request.into_body();
        let mut kept = Vec::new();
        for _ in 0..3 {
            kept.extend(body.frame().await); // What it has made of them may be as large.
        }
        drop(body);
        assert!(budget.held() >= 90 << 10);
        Ok::<_, BoxError>(answer("dropped"))
    });
    let response = layer.layer(handler).oneshot(upload()).await.unwrap();
    assert!(budget.held() >= 90 << 10);
    response.into_body().collect().await.unwrap();
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_handler_that_keeps_clones_of_frames_and_extensions_does_not_keep_the_charge() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let (keep, mut kept) = mpsc::channel(10);
    let handler = service_fn(async |request: Received| {
        let (parts, mut body) = request.into_parts();
        keep.send((parts.extensions.clone(), Bytes::new())).await?;
        while let Some(frame) = body.frame().await {
            let data = frame?.into_data().unwrap_or_default();
            keep.send((parts.extensions.clone(), data.clone())).await?;
        }
        Ok::<_, BoxError>(answer("cloned"))
    });
    let mut request = upload();
    request.headers_mut().insert(
        header::CONTENT_ENCODING,
        header::HeaderValue::from_static("gzip"),
    );
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    assert!(budget.held() > 0);
    drop(response);
    assert_eq!((budget.held(), kept.len()), (0, 7));
    kept.close();
}

#[tokio::test]
async fn a_body_that_another_task_reads_is_charged_until_both_it_and_the_response_are_gone() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    for answers_first in [false, true] {
        let (mut client, body) = sent();
        let (reader, mut readers) = mpsc::channel::<JoinHandle<Result<usize, BoxError>>>(1);
        let (finish, finished) = oneshot::channel::<()>();
        let finished = std::sync::Mutex::new(Some(finished));
        let handler = service_fn(async |request: Received| {
            let body = request.into_body();
            let read = tokio::spawn(async move { Ok(body.collect().await?.to_bytes().len()) });
            reader.send(read).await?;
            let finished = finished.lock().unwrap().take().unwrap();
            if !answers_first {
                let _ = finished.await;
            }
            Ok::<_, BoxError>(answer("answered"))
        });
        let service = layer.layer(handler);
        let mut response = Box::pin(service.oneshot(Request::new(body)));
        let piece = || Bytes::from(vec![b'x'; FRAME]);
        if answers_first {
            // The answer is there before the end of the upload.
            drop(response.await.unwrap().into_body().collect().await);
            client.send_data(piece()).await.unwrap();
            client.send_data(piece()).await.unwrap();
            settle().await;
            assert!(budget.held() >= 60 << 10, "{}", budget.held());
            drop(client);
            let read = readers.recv().await.unwrap().await.unwrap().unwrap();
            assert_eq!((read, budget.held()), (2 * FRAME, 0));
        } else {
            assert!((&mut response).now_or_never().is_none());
            client.send_data(piece()).await.unwrap();
            drop(client);
            let read = readers.recv().await.unwrap().await.unwrap().unwrap();
            assert_eq!(read, FRAME);
            // The handler may still work with what the other task has read.
            assert!(budget.held() >= 30 << 10, "{}", budget.held());
            drop(finish);
            drop(response.await.unwrap());
            assert_eq!(budget.held(), 0);
        }
    }
}

#[tokio::test]
async fn head_upgrades_and_tunnels_leave_no_charge() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    for (method, version, status) in [
        (Method::HEAD, Version::HTTP_11, StatusCode::OK),
        (Method::HEAD, Version::HTTP_2, StatusCode::OK),
        (
            Method::GET,
            Version::HTTP_11,
            StatusCode::SWITCHING_PROTOCOLS,
        ),
        (Method::CONNECT, Version::HTTP_11, StatusCode::OK),
        (Method::CONNECT, Version::HTTP_2, StatusCode::OK),
    ] {
        let handler = service_fn(async |request: Received| {
            request.into_body().collect().await?;
            let mut response = Response::new(Empty::new().boxed_unsync());
            *response.status_mut() = status;
            Ok::<_, BoxError>(response)
        });
        let mut request = upload();
        (*request.method_mut(), *request.version_mut()) = (method.clone(), version);
        let response = layer.layer(handler).oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
        // There is no response body that could keep it.
        assert_eq!(budget.held(), 0, "{method} {version:?} {status}");
    }
    // A tunnel over HTTP/2: both directions are bodies.
    let (mut client, body) = sent();
    let (mut server, response_body) = sent();
    let response_body = std::sync::Mutex::new(Some(response_body));
    let handler = service_fn(async |request: Received| {
        let body = request.into_body();
        tokio::spawn(body.collect());
        let tunnel = response_body.lock().unwrap().take().unwrap();
        Ok::<_, BoxError>(Response::new(tunnel))
    });
    let mut request = Request::new(body);
    (*request.method_mut(), *request.version_mut()) = (Method::CONNECT, Version::HTTP_2);
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    let received = tokio::spawn(response.into_body().collect());
    for _ in 0..3 {
        let piece = Bytes::from(vec![b'x'; FRAME]);
        client.send_data(piece.clone()).await.unwrap();
        server.send_data(piece).await.unwrap();
    }
    settle().await;
    assert!(budget.held() >= 90 << 10);
    drop((client, server));
    assert_eq!(received.await.unwrap().unwrap().to_bytes().len(), 3 * FRAME);
    settle().await;
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_body_without_end_is_refused_when_the_budget_is_full() {
    let (budget, journal) = (budget(64 * KIB), Journal::default());
    let layer = BodyBudgetLayer::new(budget.clone()).metrics(journal.clone());
    let read = Arc::new(AtomicUsize::new(0));
    let count = read.clone();
    let endless = stream::repeat(Bytes::from(vec![b'x'; KIB])).map(move |piece| {
        count.fetch_add(piece.len(), Relaxed);
        Ok(Frame::data(piece))
    });
    let request = Request::new(StreamBody::new(endless).boxed_unsync());
    assert_eq!(spawn(&layer, request).await.unwrap(), 503);
    assert!(read.load(Relaxed) <= 34 * KIB, "{read:?}");
    assert_eq!(journal.refused(), [(Guard::BodyLimit, Reason::BytesFull)]);
    assert_eq!(budget.held(), 0);
}

/// A gRPC request of these frames.
fn grpc(frames: Vec<Bytes>) -> Request<Upload> {
    let request = Request::post("/").version(Version::HTTP_2);
    let request = request.header(header::CONTENT_TYPE, "application/grpc");
    request.body(body(frames)).expect("the request is valid")
}

/// Returns `bytes` in frames of so many bytes each.
fn split(bytes: &[u8], length: usize) -> Vec<Bytes> {
    bytes.chunks(length).map(Bytes::copy_from_slice).collect()
}

#[tokio::test]
async fn prefixes_of_grpc_are_followed_however_they_are_split() {
    let budget = budget(128 * KIB);
    let layer = BodyBudgetLayer::new(budget.clone()).grpc();
    let served = async |frames| {
        let service = layer.layer(service_fn(collecting));
        let response = service.oneshot(grpc(frames)).await.unwrap();
        let is_served = !response.headers().contains_key("grpc-status");
        (is_served, budget.held())
    };
    // Twenty messages of 20 KB, of which one is held at a time.
    let message = [&[0, 0, 0, 0x4e, 0x20], &[b'x'; 20_000][..]].concat();
    let messages = message.repeat(20);
    for length in [1, 2, 3, 4, 5, 6, 7, 1000, 20_003, 20_004, 20_005, 20_006] {
        let (is_served, held) = served(split(&messages, length)).await;
        assert!(is_served, "{length}");
        assert!(held <= 2 * (20_005 + 20_006 + 16_384), "{length}: {held}");
    }
    // Messages of no bytes hold nothing.
    let empty = [0; 5].repeat(20_000);
    for length in [1, 4, 5, 6, FRAME] {
        let (is_served, held) = served(split(&empty, length)).await;
        assert!(is_served && held <= 4 * FRAME as u64, "{length}: {held}");
    }
    // A prefix of no bytes before much that is none, and one of 4 GiB, are charged in full.
    for lie in [[0, 0, 0, 0, 0], [0, 0xff, 0xff, 0xff, 0xff]] {
        let stream = [&lie[..], &[b'x'; 200_000]].concat();
        for length in [1, 3, 5, FRAME] {
            assert!(!served(split(&stream, length)).await.0, "{lie:?} {length}");
        }
    }
    assert_eq!(budget.held(), 0);
}
