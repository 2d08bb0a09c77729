//! The limit of a body after its decompression, and its charge, inside tower-http's layer.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use palisade_body_limit::{BodyBudgetLayer, BodyLimitLayer, Budget, Mode};
use palisade_core::{Guard, Phase, Reason, Violation};
use palisade_testkit::{Journal, bodies::gzip};
use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::task::{JoinHandle, yield_now};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_http::decompression::RequestDecompressionLayer;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What is charged for a decoder.
const DECODER: usize = 48 * KIB;

type Upload = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Response<Full<Bytes>>;

/// A budget, the outer layer that charges to it, and the inner limit.
#[derive(Clone)]
struct Server {
    budget: Budget,
    outer: BodyBudgetLayer,
    inner: BodyLimitLayer,
    journal: Journal,
}

impl Server {
    fn new(budget: usize, limit: usize) -> Self {
        let budget = Budget::new(budget as u64).expect("the budget is large enough");
        let journal = Journal::default();
        Self {
            outer: BodyBudgetLayer::new(budget.clone()),
            inner: BodyLimitLayer::decompressed(limit as u64).metrics(journal.clone()),
            budget,
            journal,
        }
    }

    /// Sends a request to a handler that collects the body and answers with its length.
    async fn send(
        &self,
        request: Request<Upload>,
    ) -> Response<impl Body<Data = Bytes, Error = BoxError> + use<>> {
        let handler = service_fn(async |request: Request<_>| {
            let body = BodyExt::collect(Request::into_body(request));
            let length = body.await?.to_bytes().len().to_string();
            Ok::<Answer, BoxError>(Response::new(length.into()))
        });
        let layers = ServiceBuilder::new()
            .layer(self.outer.clone())
            .layer(RequestDecompressionLayer::new())
            .layer(self.inner.clone());
        let response = layers.service(handler).oneshot(request).await;
        response.expect("the handler does not fail")
    }

    /// Sends a request in a task of its own.
    fn spawn(&self, request: Request<Upload>) -> JoinHandle<StatusCode> {
        let server = self.clone();
        tokio::spawn(async move { server.send(request).await.status() })
    }

    fn held(&self) -> usize {
        self.budget.held() as usize
    }
}

/// An upload in gzip of these frames. Silent for ever after them if it `hangs`.
fn upload(frames: Vec<Bytes>, hangs: bool) -> Request<Upload> {
    let frames = stream::iter(frames).map(|data| Ok::<_, Infallible>(Frame::data(data)));
    let end = stream::once(async move {
        if hangs {
            pending::<()>().await;
        }
    });
    let frames = frames.chain(end.filter_map(|()| async { None }));
    Request::post("/")
        .header(header::CONTENT_ENCODING, "gzip")
        .body(StreamBody::new(Box::pin(frames)).boxed_unsync())
        .expect("the request is valid")
}

/// So many zeros, about a thousandth of that in gzip.
fn zeros(count: usize) -> Bytes {
    gzip(&vec![0; count])
}

async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

#[tokio::test]
async fn a_body_is_refused_for_what_it_becomes() {
    let server = Server::new(64 * MIB, MIB);
    let response = server.send(upload(vec![zeros(MIB)], false)).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, MIB.to_string());

    let bomb = zeros(MIB + 1);
    assert!(bomb.len() < 2 * KIB, "{}", bomb.len());
    let response = server.send(upload(vec![bomb.clone()], false)).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, "decompressed body too large");
    let refusals = server.journal.refusals();
    let [(violation, Mode::Enforce)] = refusals[..] else {
        panic!("{refusals:?}");
    };
    let expected = Violation::new(
        Guard::BodyLimit,
        Reason::DecompressedTooLarge,
        Phase::RequestBody,
        MIB as u64,
        violation.observed,
    );
    assert_eq!(violation, expected);
    assert!((MIB + 1..=MIB + 64 * KIB).contains(&(violation.observed as usize)));

    // A body that is not compressed is refused by its declared length.
    let plain = Full::from(vec![0; MIB + 1]).boxed_unsync();
    let response = server.send(Request::new(plain)).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        server.journal.refusals()[1].0.reason,
        Reason::DecompressedTooLarge
    );

    // A client that claims to speak gRPC may not send the same again.
    let mut call = upload(vec![bomb], false);
    *call.version_mut() = http::Version::HTTP_2;
    let grpc = header::HeaderValue::from_static("application/grpc");
    call.headers_mut().insert(header::CONTENT_TYPE, grpc);
    let response = server.send(call).await;
    assert_eq!(response.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "-1");
}

#[tokio::test]
async fn what_a_body_becomes_is_charged_with_what_arrives_until_the_response_has_ended() {
    let server = Server::new(64 * MIB, 8 * MIB);
    // It is short enough to be free if it were not compressed.
    let small = zeros(512 * KIB);
    assert!(small.len() < KIB, "{}", small.len());
    let response = server.send(upload(vec![small], false)).await;
    let held = server.held();
    assert!(
        (MIB + DECODER - 2 * KIB..=MIB + DECODER + 32 * KIB).contains(&held),
        "{held}"
    );
    drop(response.into_body().collect().await);
    assert_eq!(server.held(), 0);

    // What cannot be compressed is charged on both sides, up to one bound for both.
    let mut noise = 1_u64;
    let bytes = (0..MIB).map(|_| {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (noise >> 56) as u8
    });
    let noise = gzip(&bytes.collect::<Vec<_>>());
    assert!(noise.len() > MIB);
    let response = server.send(upload(vec![noise.clone()], false)).await;
    let held = server.held();
    assert!((4 * MIB - KIB..=4 * MIB).contains(&held), "{held}");
    drop(response);
    assert_eq!(server.held(), 0);
    let mut less = server.clone();
    less.outer = less.outer.max_held(MIB as u64);
    let response = less.send(upload(vec![noise], false)).await;
    assert_eq!((response.status(), less.held()), (StatusCode::OK, MIB));
    drop(response);
    assert_eq!(server.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn uploads_that_become_more_than_the_budget_are_refused_and_all_is_given_back() {
    let server = Server::new(4 * MIB, MIB);
    // Each becomes 512 KiB, of which the last bytes are held back.
    let bomb = zeros(512 * KIB);
    let open = bomb.slice(..bomb.len() - 9);
    let uploads: Vec<_> = (0..20)
        .map(|_| server.spawn(upload(vec![open.clone()], true)))
        .collect();
    settle().await;
    let mut refused = 0;
    for upload in uploads {
        if upload.is_finished() {
            assert_eq!(upload.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
            refused += 1;
        } else {
            upload.abort();
            let _ = upload.await;
        }
    }
    assert!((16..=18).contains(&refused), "{refused}");
    let reasons = server.journal.refused();
    assert_eq!(
        reasons,
        vec![(Guard::BodyLimit, Reason::BytesFull); refused]
    );
    // The clients have a moment to see the response.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn decoders_that_decode_nothing_are_charged() {
    let server = Server::new(MIB, MIB);
    let uploads: Vec<_> = (0..30)
        .map(|_| server.spawn(upload(vec![], true)))
        .collect();
    settle().await;
    let waiting = uploads
        .iter()
        .filter(|upload| !upload.is_finished())
        .count();
    assert_eq!(waiting, MIB / DECODER);
    assert_eq!(server.held(), waiting * DECODER);
    for upload in uploads {
        if upload.is_finished() {
            assert_eq!(upload.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        } else {
            upload.abort();
            let _ = upload.await;
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_bomb_is_not_decompressed() {
    let bomb = zeros(64 * MIB);
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let server = Server::new(64 * MIB, MIB);
        // About 256 KiB in each frame. A frame is read when those before are decompressed.
        let frames = bomb.chunks(256).map(Bytes::copy_from_slice);
        let read = Arc::new(AtomicUsize::new(0));
        let count = read.clone();
        let frames = stream::iter(frames.collect::<Vec<_>>()).map(move |frame| {
            count.fetch_add(1, SeqCst);
            Ok::<_, Infallible>(Frame::data(frame))
        });
        let mut request = upload(vec![], false);
        *request.version_mut() = version;
        *request.body_mut() = StreamBody::new(frames).boxed_unsync();
        let response = server.send(request).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let refused_after = read.load(SeqCst);
        assert!((5..=6).contains(&refused_after), "{refused_after}");
        // The client has a moment to see the response, for which the decoder is kept.
        drop(response);
        assert_eq!(server.held(), DECODER);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(read.load(SeqCst), refused_after, "{version:?}");
        assert_eq!(server.held(), 0);
    }
}

#[tokio::test]
async fn in_shadow_mode_a_bomb_is_recorded_once_and_served() {
    let mut server = Server::new(MIB, 64 * KIB);
    server.inner = server.inner.mode(Mode::Shadow);
    // Longer than the limit, and more than the budget has room for.
    let response = server.send(upload(vec![zeros(4 * MIB)], false)).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, (4 * MIB).to_string());
    let (mut refused, mut reasons) = (server.journal.refused(), Vec::new());
    refused.sort_by_key(|(_, reason)| *reason as usize);
    reasons.extend(refused.iter().map(|(_, reason)| *reason));
    assert_eq!(reasons, [Reason::DecompressedTooLarge, Reason::BytesFull]);
    assert_eq!(server.held(), 0);

    server.inner = server.inner.mode(Mode::Off);
    let response = server.send(upload(vec![zeros(4 * MIB)], false)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(server.held() < 64 * KIB); // The compressed bytes alone.
    assert_eq!(server.journal.refused().len(), 2);
}

#[tokio::test]
async fn a_body_that_is_passed_on_as_it_arrives_is_charged_once() {
    let server = Server::new(64 * MIB, MIB);
    for encoding in [None, Some("identity")] {
        let mut request = upload(vec![Bytes::from(vec![0; 512 * KIB])], false);
        request.headers_mut().remove(header::CONTENT_ENCODING);
        if let Some(encoding) = encoding {
            let encoding = header::HeaderValue::from_static(encoding);
            request
                .headers_mut()
                .insert(header::CONTENT_ENCODING, encoding);
        }
        let response = server.send(request).await;
        let held = server.held();
        assert!((MIB - 2 * KIB..=MIB).contains(&held), "{held}");
        drop(response);
    }
}

#[tokio::test]
async fn a_handler_that_keeps_the_head_does_not_keep_the_charge() {
    let server = Server::new(64 * MIB, MIB);
    let kept = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let keep = kept.clone();
    let handler = service_fn(move |request: Request<_>| {
        let keep = keep.clone();
        async move {
            let (parts, body) = Request::into_parts(request);
            keep.lock().push(parts);
            BodyExt::collect(body).await?;
            Ok::<Answer, BoxError>(Response::default())
        }
    });
    let layers = ServiceBuilder::new()
        .layer(server.outer.clone())
        .layer(RequestDecompressionLayer::new())
        .layer(server.inner.clone());
    let request = upload(vec![zeros(MIB)], false);
    let response = layers.service(handler).oneshot(request).await.unwrap();
    drop(response);
    assert_eq!((kept.lock().len(), server.held()), (1, 0));
}

#[tokio::test]
async fn without_an_outer_budget_a_bomb_is_refused_and_nothing_is_charged() {
    let layers = ServiceBuilder::new()
        .layer(RequestDecompressionLayer::new())
        .layer(BodyLimitLayer::decompressed(MIB as u64))
        .into_inner();
    for (length, status) in [(MIB, 200), (100 * MIB, 413)] {
        let service = layers.layer(service_fn(async |request: Request<_>| {
            BodyExt::collect(Request::into_body(request)).await?;
            Ok::<Answer, BoxError>(Response::default())
        }));
        let response = service.oneshot(upload(vec![zeros(length)], false)).await;
        assert_eq!(response.unwrap().status(), status);
    }
}

#[tokio::test]
async fn the_messages_of_an_encoded_body_are_not_looked_for() {
    let mut server = Server::new(MIB, 8 * MIB);
    server.outer = server.outer.grpc();
    // Zeros are messages of no bytes: each would give back what was charged before.
    let stored = (0..100).map(|_| Bytes::from(vec![0; 8 * KIB])).collect();
    let mut call = upload(stored, false);
    *call.version_mut() = http::Version::HTTP_2;
    let grpc = header::HeaderValue::from_static("application/grpc");
    call.headers_mut().insert(header::CONTENT_TYPE, grpc);
    // A handler that reads without decompression.
    let layers = ServiceBuilder::new().layer(server.outer.clone());
    let service = layers.service(service_fn(async |request: Request<_>| {
        BodyExt::collect(Request::into_body(request)).await?;
        Ok::<Answer, BoxError>(Response::default())
    }));
    let response = service.oneshot(call).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    assert_eq!(server.held(), 0);
}
