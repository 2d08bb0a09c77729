//! The budget of bytes that all request bodies share.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, channel::Channel, combinators::UnsyncBoxBody};
use palisade_body_limit::{BodyBudgetLayer, BodyBudgetPolicy, Budget, Mode, Violation};
use palisade_core::{ConnInfo, Guard, Prefix, Reason};
use palisade_testkit::Journal;
use std::{convert::Infallible, future::pending, io, time::Duration};
use tokio::task::{JoinHandle, yield_now};
use tower::{BoxError, Layer, ServiceExt, service_fn};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

type Upload = UnsyncBoxBody<Bytes, io::Error>;
/// What the handler gets.
type Received = Request<palisade_guard::RequestBody<Upload, BodyBudgetPolicy>>;
type Answer = Response<Full<Bytes>>;

fn budget(bytes: usize) -> Budget {
    Budget::new(bytes as u64).expect("the budget is large enough")
}

/// A body of so many frames, after which it is silent for ever if it `hangs`.
fn frames(count: usize, length: usize, hangs: bool) -> Upload {
    let piece = Bytes::from(vec![b'x'; length]);
    let frames =
        stream::iter(0..count).map(move |_| Ok::<_, io::Error>(Frame::data(piece.clone())));
    let end = stream::once(async move {
        if hangs {
            pending::<()>().await;
        }
    });
    let frames = frames.chain(end.filter_map(|()| async { None }));
    StreamBody::new(Box::pin(frames)).boxed_unsync()
}

/// Collects the body and answers with its length.
async fn collecting(request: Received) -> Result<Answer, BoxError> {
    let body = request.into_body().collect().await?.to_bytes();
    Ok(Response::new(body.len().to_string().into()))
}

/// Sends a request to the handler [`collecting`].
async fn collect(
    layer: &BodyBudgetLayer,
    request: Request<Upload>,
) -> Response<impl Body<Data = Bytes, Error = BoxError> + use<>> {
    let service = layer.layer(service_fn(collecting));
    service
        .oneshot(request)
        .await
        .expect("the handler does not fail")
}

/// Sends a request in a task of its own.
fn spawn(layer: &BodyBudgetLayer, request: Request<Upload>) -> JoinHandle<StatusCode> {
    let layer = layer.clone();
    tokio::spawn(async move { collect(&layer, request).await.status() })
}

async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

fn upload(body: Upload) -> Request<Upload> {
    let request = Request::post("/").body(body);
    request.expect("the request is valid")
}

#[tokio::test]
async fn two_bytes_are_charged_for_each_until_the_response_has_ended() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let response = collect(&layer, upload(frames(10, 16 * KIB, false))).await;
    // In steps of 16 KiB, of which 1 KiB is free.
    let held = budget.held() as usize;
    assert!((318 * KIB..=352 * KIB).contains(&held), "{held}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, (160 * KIB).to_string());
    assert_eq!(budget.held(), 0);
    // A body that the handler dropped unread is not charged, nor is a short one.
    let response = collect(&layer, upload(frames(1, KIB, false))).await;
    assert_eq!((response.status(), budget.held()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn short_uploads_are_not_charged_much_more_than_they_are() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    // Sensors on slow lines, each with 3 KiB of what it has to say.
    let held: Vec<_> = (0..100)
        .map(|_| spawn(&layer, upload(frames(3, KIB, true))))
        .collect();
    settle().await;
    assert!(held.iter().all(|task| !task.is_finished()));
    let charged = budget.held() as usize;
    assert!((400 * KIB..=800 * KIB).contains(&charged), "{charged}");
    for task in held {
        task.abort();
        let _ = task.await;
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_body_of_one_frame_for_which_there_is_no_room_is_refused() {
    let budget = budget(64 * KIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let response = collect(&layer, upload(frames(1, 64 * KIB, false))).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Also where the reader would not ask for more: the body says that it has ended.
    let reads_one = service_fn(async |request: Request<_>| {
        let mut body: palisade_guard::RequestBody<Full<Bytes>, BodyBudgetPolicy> =
            Request::into_body(request);
        let mut frames = 0;
        while !body.is_end_stream() && body.frame().await.is_some_and(|frame| frame.is_ok()) {
            frames += 1;
        }
        Ok::<Answer, BoxError>(Response::new(frames.to_string().into()))
    });
    let others = budget.charge(None);
    others.take(40 << 10).unwrap();
    let whole = Request::post("/")
        .body(Full::from(vec![b'x'; 24 * KIB]))
        .unwrap();
    let response = layer.layer(reads_one).oneshot(whole).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop((response, others));
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_declared_length_reserves_nothing() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let (_senders, tasks): (Vec<_>, Vec<_>) = (0..1000)
        .map(|_| {
            let (sender, body) = Channel::<Bytes, io::Error>::new(1);
            let request = Request::post("/").header(header::CONTENT_LENGTH, 2 * MIB);
            (
                sender,
                spawn(&layer, request.body(body.boxed_unsync()).unwrap()),
            )
        })
        .unzip();
    settle().await;
    assert_eq!(budget.held(), 0);
    let honest = collect(&layer, upload(frames(10, 4 * KIB, false))).await;
    assert_eq!(honest.status(), StatusCode::OK);
    for task in tasks {
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    drop(honest);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn uploads_that_are_held_open_never_exceed_the_budget_and_those_over_it_are_refused() {
    let (budget, journal) = (budget(MIB), Journal::default());
    let layer = BodyBudgetLayer::new(budget.clone()).metrics(journal.clone());
    let held: Vec<_> = (0..100)
        .map(|_| spawn(&layer, upload(frames(6, 16 * KIB, true))))
        .collect();
    settle().await;
    let (mut refused, mut open) = (0, Vec::new());
    for task in held {
        if task.is_finished() {
            assert_eq!(task.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
            refused += 1;
        } else {
            open.push(task);
        }
    }
    // Each holds 192 KiB.
    assert_eq!((refused, open.len()), (95, 5));
    assert!(budget.held() <= budget.limit());
    assert_eq!(
        journal.refused(),
        vec![(Guard::BodyLimit, Reason::BytesFull); 95]
    );
    let response = collect(&layer, upload(frames(6, 16 * KIB, false))).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    // A request without a body, or with a short one, needs no room.
    let short = collect(&layer, upload(frames(1, 500, false))).await;
    assert_eq!(short.status(), StatusCode::OK);
    for task in open {
        task.abort();
        let _ = task.await;
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn after_the_response_head_the_body_fails_and_the_charge_ends_with_the_response() {
    let (budget, journal) = (budget(128 * KIB), Journal::default());
    let layer = BodyBudgetLayer::new(budget.clone()).metrics(journal.clone());
    let (sender, response_body) = Channel::<Bytes, Infallible>::new(1);
    let response_body = std::sync::Mutex::new(Some(response_body));
    let (failure, failed) = tokio::sync::oneshot::channel();
    let failure = std::sync::Mutex::new(Some(failure));
    let handler = service_fn(async |request: Received| {
        let body = request.into_body();
        let failure = failure.lock().unwrap().take().unwrap();
        tokio::spawn(async move {
            let _ = failure.send(body.collect().await.map(|_| ()));
        });
        Ok::<_, BoxError>(Response::new(response_body.lock().unwrap().take().unwrap()))
    });
    let response = layer
        .layer(handler)
        .oneshot(upload(frames(100, 16 * KIB, false)))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let error: BoxError = failed.await.unwrap().unwrap_err();
    let violation = Violation::from_error(&*error).unwrap();
    assert_eq!(violation.reason, Reason::BytesFull);
    assert_eq!(journal.cut(), [(Guard::BodyLimit, Reason::BytesFull)]);
    assert!(budget.held() > 0);
    drop((sender, response));
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn whatever_becomes_of_a_request_its_charge_is_given_back() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    // The client is gone.
    let task = spawn(&layer, upload(frames(6, 16 * KIB, true)));
    settle().await;
    assert!(budget.held() > 0);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(budget.held(), 0);
    // The body fails.
    let failing = stream::iter([
        Ok(Frame::data(Bytes::from(vec![0; 64 * KIB]))),
        Err(io::Error::other("broken")),
    ]);
    let body = StreamBody::new(failing).boxed_unsync();
    let handler = service_fn(async |request: Received| {
        let result = request.into_body().collect().await;
        Ok::<Answer, BoxError>(Response::new(result.is_err().to_string().into()))
    });
    drop(layer.layer(handler).oneshot(upload(body)).await.unwrap());
    assert_eq!(budget.held(), 0);
    // The handler panics, or keeps the body beyond its response.
    let panicking = service_fn(async |request: Received| -> Result<Answer, BoxError> {
        let _body = request.into_body().collect().await?;
        panic!("the handler panics, as it should here");
    });
    let service = layer.layer(panicking);
    let task = tokio::spawn(async move {
        service
            .oneshot(upload(frames(6, 16 * KIB, false)))
            .await
            .map(|_| ())
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(budget.held(), 0);
    let (keep, mut kept) = tokio::sync::mpsc::channel(1);
    let keeping = service_fn(async |request: Received| {
        let mut body = request.into_body();
        for _ in 0..3 {
            body.frame().await;
        }
        let _ = keep.send(body).await;
        Ok::<Answer, BoxError>(Response::new("kept".into()))
    });
    drop(
        layer
            .layer(keeping)
            .oneshot(upload(frames(6, 16 * KIB, false)))
            .await
            .unwrap(),
    );
    assert!(budget.held() > 0);
    drop(kept.recv().await);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn in_shadow_mode_a_full_budget_is_reported_once_per_request_and_refuses_nothing() {
    let (budget, journal) = (budget(64 * KIB), Journal::default());
    let layer = BodyBudgetLayer::new(budget.clone()).metrics(journal.clone());
    let shadow = layer.clone().mode(Mode::Shadow);
    let response = collect(&shadow, upload(frames(100, 16 * KIB, false))).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(journal.refused(), [(Guard::BodyLimit, Reason::BytesFull)]);
    drop(response);
    let off = layer.mode(Mode::Off);
    let response = collect(&off, upload(frames(100, 16 * KIB, false))).await;
    assert_eq!((response.status(), budget.held()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn a_request_is_charged_no_more_than_is_held_and_routes_may_hold_less() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone())
        .max_held(100_000)
        .max_held_for(|head| (head.uri.path() == "/stream").then_some(0));
    let large = || frames(1000, 16 * KIB, false);
    let response = collect(&layer, upload(large())).await;
    assert_eq!(
        (response.status(), budget.held()),
        (StatusCode::OK, 100_000)
    );
    drop(response);
    let streamed = Request::post("/stream").body(large()).unwrap();
    let response = collect(&layer, streamed).await;
    assert_eq!((response.status(), budget.held()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn a_body_at_what_it_may_hold_goes_on_while_others_fill_the_budget() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone()).max_held(300_000);
    let (mut client, body) = Channel::<Bytes, io::Error>::new(1);
    let long = spawn(&layer, upload(body.boxed_unsync()));
    let piece = || Bytes::from(vec![b'x'; 16 * KIB]);
    for _ in 0..20 {
        client.send_data(piece()).await.unwrap();
    }
    settle().await;
    assert_eq!(budget.held(), 300_000);
    let others = budget.charge(None);
    others.take(budget.limit() - budget.held()).unwrap();
    for _ in 0..20 {
        client.send_data(piece()).await.unwrap();
    }
    drop(client);
    assert_eq!(long.await.unwrap(), StatusCode::OK);
    drop(others);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn one_client_cannot_take_the_budget_of_the_others() {
    let budget = budget(MIB);
    let layer = BodyBudgetLayer::new(budget.clone());
    let from = |client: u8, body| {
        let peer = ([192, 0, 2, client], 4711).into();
        let mut request = upload(body);
        let conn = ConnInfo::new(peer, None, Prefix::default());
        request.extensions_mut().insert(conn);
        request
    };
    let greedy: Vec<_> = (0..20)
        .map(|_| spawn(&layer, from(1, frames(6, 16 * KIB, true))))
        .collect();
    settle().await;
    // Two of 192 KiB: it may hold what it leaves of 768 KiB.
    assert_eq!(greedy.iter().filter(|task| !task.is_finished()).count(), 2);
    let other = collect(&layer, from(2, frames(3, 16 * KIB, false))).await;
    assert_eq!(other.status(), StatusCode::OK);
    // What is charged is known of each connection.
    let request = from(3, frames(2, 16 * KIB, true));
    let conn = ConnInfo::from_extensions(request.extensions()).cloned();
    let conn = conn.expect("the request has a connection");
    let held = spawn(&layer, request);
    settle().await;
    assert_eq!(conn.charged_bytes(), 62 * KIB as u32); // The first KiB is free.
    held.abort();
    let _ = held.await;
    assert_eq!(conn.charged_bytes(), 0);
    // Where peers are not clients, there is no share.
    let by_proxy = BodyBudgetLayer::new(budget.clone()).unknown_clients();
    let response = collect(&by_proxy, from(1, frames(12, 16 * KIB, false))).await;
    assert_eq!(response.status(), StatusCode::OK);
    for task in greedy {
        task.abort();
        let _ = task.await;
    }
    drop((other, response));
    assert_eq!(budget.held(), 0);
}

/// A gRPC body of so many messages, in frames of 16 KiB.
fn messages(count: usize, length: usize) -> Upload {
    let mut message = vec![0];
    message.extend((length as u32).to_be_bytes());
    message.resize(5 + length, b'x');
    let message = Bytes::from(message);
    let pieces = move |_| {
        let message = message.clone();
        stream::iter((0..message.len()).step_by(16 * KIB).map(move |start| {
            let end = message.len().min(start + 16 * KIB);
            Ok::<_, io::Error>(Frame::data(message.slice(start..end)))
        }))
    };
    StreamBody::new(stream::iter(0..count).flat_map(pieces)).boxed_unsync()
}

fn grpc(body: Upload) -> Request<Upload> {
    let request = Request::post("/").version(http::Version::HTTP_2);
    let request = request.header(header::CONTENT_TYPE, "application/grpc");
    request.body(body).expect("the request is valid")
}

#[tokio::test]
async fn a_grpc_stream_holds_one_message_and_not_the_sum() {
    let budget = budget(512 * KIB);
    let layer = BodyBudgetLayer::new(budget.clone()).grpc();
    for length in [10, 1000, 100 * KIB] {
        let response = collect(&layer, grpc(messages(200, length))).await;
        assert_eq!(response.headers().get("grpc-status"), None, "{length}");
        let most = 2 * (length + 16 * KIB + 16 * KIB) as u64;
        assert!(budget.held() <= most, "{length}: {}", budget.held());
    }
    assert_eq!(budget.held(), 0);
    // One message is charged in full.
    let response = collect(&layer, grpc(messages(1, 300 * KIB))).await;
    assert_eq!(response.headers()["grpc-status"], "8");
    // A client that only claims to be gRPC gains nothing where it is not expected.
    let plain = BodyBudgetLayer::new(budget.clone());
    let response = collect(&plain, grpc(messages(200, 100 * KIB))).await;
    assert_eq!(response.headers()["grpc-status"], "8");
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn prefixes_that_lie_are_charged_by_what_arrives() {
    let budget = budget(512 * KIB);
    let layer = BodyBudgetLayer::new(budget.clone()).grpc();
    let lies = |bytes: &'static [u8]| {
        let first = Frame::data(Bytes::from_static(bytes));
        let first = stream::once(async move { Ok::<_, io::Error>(first) });
        let piece = Bytes::from(vec![b'x'; 16 * KIB]);
        let rest = stream::iter(0..100).map(move |_| Ok(Frame::data(piece.clone())));
        StreamBody::new(Box::pin(first.chain(rest))).boxed_unsync()
    };
    // A message of 4 GiB.
    let response = collect(&layer, grpc(lies(&[0, 0xff, 0xff, 0xff, 0xff]))).await;
    assert_eq!(response.headers()["grpc-status"], "8");
    // Half a prefix.
    drop(collect(&layer, grpc(lies(&[0, 0, 0]))).await);
    drop(collect(&layer, grpc(lies(&[]))).await);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_budget_keeps_the_contract_of_tower() {
    let (budget, journal) = (budget(MIB), Journal::default());
    let layer = BodyBudgetLayer::new(budget.clone()).metrics(journal.clone());
    palisade_testkit::contract::assert_contract(layer).await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(budget.held(), 0);
}
