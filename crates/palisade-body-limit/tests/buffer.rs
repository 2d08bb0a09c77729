//! Short request bodies that are read before the handler is called.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, channel::Channel};
use palisade_body_limit::{
    BodyBudgetLayer, BodyLimitLayer, Budget, BufferLayer, Buffered, BufferedBody,
};
use palisade_core::{Guard, Reason};
use palisade_testkit::{Journal, bodies::Pieces, contract::poll_once};
use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const KIB: usize = 1 << 10;
const LIMIT: u64 = BufferLayer::DEFAULT;

type Answer = Response<Full<Bytes>>;

/// A body whose frames a test sends, with a declared length that may be a lie.
struct Declared<B> {
    body: B,
    bytes: u64,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Declared<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

/// A body of these frames that declares so many bytes.
fn frames(
    bytes: u64,
    frames: Vec<Result<Frame<Bytes>, io::Error>>,
) -> Declared<impl Body<Data = Bytes, Error = io::Error> + Unpin> {
    let body = http_body_util::StreamBody::new(stream::iter(frames));
    Declared { body, bytes }
}

fn data(bytes: usize) -> Result<Frame<Bytes>, io::Error> {
    Ok(Frame::data(vec![b'x'; bytes].into()))
}

/// What a handler saw of its body: the frames, until the end or an error.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    lengths: Vec<usize>,
    trailers: Option<HeaderMap>,
    error: Option<String>,
}

/// Sends `body` through the layer, and returns what the handler sees of it, and its size hint
/// before the first frame.
async fn send<B>(layer: BufferLayer, body: B) -> (Seen, Option<u64>)
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let handler = service_fn(async |request: Request<BufferedBody<B>>| {
        let mut body = request.into_body();
        let hint = body.size_hint().exact();
        let mut seen = Seen::default();
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => seen.lengths.push(data.len()),
                Ok(Err(frame)) => seen.trailers = frame.into_trailers().ok(),
                Err(error) => {
                    seen.error = Some(error.to_string());
                    break;
                }
            }
            if body.is_end_stream() {
                break;
            }
        }
        Ok::<_, Infallible>(Response::new((seen, hint)))
    });
    let response = layer.layer(handler).oneshot(Request::new(body)).await;
    response.unwrap().into_body()
}

fn whole(length: usize) -> Seen {
    Seen {
        lengths: vec![length],
        ..Seen::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_up_to_the_limit_is_read_and_a_longer_one_streams() {
    let called_after = async |body: Pieces| {
        let started = Instant::now();
        let handler = service_fn(async |request: Request<BufferedBody<Pieces>>| {
            let called_after = started.elapsed();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Infallible>(Response::new((called_after, body.len())))
        });
        let layer = BufferLayer::default();
        let response = layer.layer(handler).oneshot(Request::new(body)).await;
        response.unwrap().into_body()
    };
    let second = Duration::from_secs(1);
    let pieces = |count, bytes| Pieces::new(count, bytes).every(second);
    assert_eq!(
        called_after(pieces(64, KIB).declared()).await,
        (64 * second, 64 * KIB)
    );
    assert_eq!(
        called_after(pieces(2, 32 * KIB + 1).declared()).await,
        (Duration::ZERO, 64 * KIB + 2)
    );
    assert_eq!(called_after(pieces(3, 10)).await, (Duration::ZERO, 30));
    assert_eq!(
        called_after(pieces(0, 0).declared()).await,
        (Duration::ZERO, 0)
    );
}

#[tokio::test]
async fn a_handler_gets_one_frame_and_its_length_and_the_trailers() {
    let layer = BufferLayer::default();
    let (seen, hint) = send(layer, Pieces::new(100, 100).declared()).await;
    assert_eq!((seen, hint), (whole(10_000), Some(10_000)));
    // A frame that is the whole body is passed on as it is.
    let only = Bytes::from(vec![b'x'; 1000]);
    let (first, declared) = (only.as_ptr() as usize, Full::from(only));
    let same = layer.layer(service_fn(async |request: Request<BufferedBody<_>>| {
        let frame = request.into_body().frame().await.unwrap().unwrap();
        Ok::<_, Infallible>(frame.into_data().unwrap().as_ptr() as usize == first)
    }));
    assert!(same.oneshot(Request::new(declared)).await.unwrap());

    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("1"));
    let body = vec![data(10), data(20), Ok(Frame::trailers(trailers.clone()))];
    let (seen, hint) = send(layer, frames(30, body)).await;
    let with_trailers = Seen {
        trailers: Some(trailers),
        ..whole(30)
    };
    assert_eq!((seen, hint), (with_trailers, Some(30)));
}

#[tokio::test]
async fn a_body_that_lies_about_its_length_is_not_kept_beyond_that() {
    let layer = BufferLayer::default();
    // Longer: what was declared, and the frame that was too much, then the rest as it comes.
    let body = (0..1000).map(|_| data(KIB)).collect();
    let (seen, hint) = send(layer, frames(10 * KIB as u64, body)).await;
    assert_eq!(seen.lengths[0], 11 * KIB);
    assert_eq!(seen.lengths[1..], [KIB; 989]);
    // What the body says that it has left is added. It lies.
    assert_eq!(hint, Some(21 * KIB as u64));
    // Shorter.
    let (seen, hint) = send(layer, frames(LIMIT, vec![data(5)])).await;
    assert_eq!((seen, hint), (whole(5), Some(5)));
    let (seen, hint) = send(layer, frames(LIMIT, vec![])).await;
    assert_eq!((seen, hint), (Seen::default(), Some(0)));
}

#[tokio::test]
async fn a_body_that_fails_gives_what_has_arrived_and_then_the_error() {
    let gone = || Err(io::Error::other("the client is gone"));
    let body = vec![data(10), data(20), gone()];
    let (seen, hint) = send(BufferLayer::default(), frames(100, body)).await;
    let failed = Seen {
        error: Some("the client is gone".to_owned()),
        ..whole(30)
    };
    // The length is not that of what has arrived.
    assert_eq!((seen, hint), (failed, None));
    let (seen, _) = send(BufferLayer::default(), frames(100, vec![gone()])).await;
    assert_eq!(seen.lengths, [0; 0]);
    assert!(seen.error.is_some());
}

/// A handler that counts its calls, and collects its body.
fn counting<B>(
    calls: &Arc<AtomicUsize>,
) -> impl Service<Request<B>, Response = Answer, Error = BoxError, Future: Send> + Clone
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send,
{
    let calls = calls.clone();
    service_fn(move |request: Request<B>| {
        calls.fetch_add(1, SeqCst);
        async move {
            let body = request.into_body().collect().await.map_err(Into::into)?;
            Ok(Response::new(Full::new(body.to_bytes())))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_ends_the_body_refuses_the_request_and_the_handler_is_not_called() {
    let calls = Arc::default();
    let journal = Journal::default();
    let budget = Budget::new(100_000).unwrap();
    let others = budget.charge(None);
    others.take(20_000).unwrap();
    let layers = ServiceBuilder::new()
        .layer(BodyLimitLayer::new(50_000).metrics(journal.clone()))
        .layer(BodyBudgetLayer::new(budget.clone()).metrics(journal.clone()))
        .layer(BufferLayer::default());
    let send = async |body: Pieces| {
        let service = layers.clone().service(counting(&calls));
        let response = service.oneshot(Request::new(body)).await.unwrap();
        response.status()
    };
    let pause = Duration::from_millis(1);
    for (pieces, status) in [(10, 200), (30, 200), (45, 503), (60, 413)] {
        for body in [
            Pieces::new(pieces, 1000).declared(),
            Pieces::new(pieces, 1000).declared().every(pause),
        ] {
            assert_eq!(send(body).await, status, "{pieces}");
            assert_eq!(budget.held(), others.bytes());
        }
    }
    assert_eq!(calls.load(SeqCst), 4);
    let (full, large) = (Reason::BytesFull, Reason::TooLarge);
    let refused = [full, full, large, large].map(|reason| (Guard::BodyLimit, reason));
    assert_eq!(journal.refused(), refused);
}

#[tokio::test]
async fn a_dropped_future_leaves_nothing() {
    let budget = Budget::new(1 << 20).unwrap();
    let (mut client, body) = Channel::<Bytes, Infallible>::new(4);
    let body = Declared { body, bytes: LIMIT };
    let calls = Arc::default();
    let mut service = ServiceBuilder::new()
        .layer(BodyBudgetLayer::new(budget.clone()))
        .layer(BufferLayer::default())
        .service(counting(&calls));
    let mut response = Box::pin(service.ready().await.unwrap().call(Request::new(body)));
    assert!(poll_once(response.as_mut()).is_pending());
    client.send_data(vec![0; 4 * KIB].into()).await.unwrap();
    assert!(poll_once(response.as_mut()).is_pending());
    assert!(budget.held() >= 6 * KIB as u64);
    drop(response);
    assert_eq!((budget.held(), calls.load(SeqCst)), (0, 0));
    assert!(client.send_data(Bytes::from_static(b"x")).await.is_err());
}

#[tokio::test]
async fn frames_without_data_do_not_keep_the_task() {
    let empty = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::new())));
    let body = Declared {
        body: http_body_util::StreamBody::new(empty),
        bytes: 10,
    };
    let calls = Arc::default();
    let service: Buffered<_> = BufferLayer::default().layer(counting(&calls));
    let mut response = pin!(service.oneshot(Request::new(body)));
    for _ in 0..10 {
        assert!(poll_once(response.as_mut()).is_pending());
    }
    assert_eq!(calls.load(SeqCst), 0);
}

#[tokio::test]
async fn without_a_limit_above_zero_nothing_is_read() {
    let (seen, hint) = send(BufferLayer::new(0), Pieces::new(3, 10).declared()).await;
    assert_eq!((seen.lengths, hint), (vec![10; 3], Some(30)));
    let (seen, _) = send(BufferLayer::new(u64::MAX), Pieces::new(3, 10).declared()).await;
    assert_eq!(seen.lengths, [30]);
    // A length that no machine has.
    let (seen, _) = send(
        BufferLayer::new(u64::MAX),
        frames(u64::MAX, vec![data(1), data(2)]),
    )
    .await;
    assert_eq!(seen.lengths, [3]);
}

#[tokio::test]
async fn the_handler_gets_the_status_that_it_gives() {
    let teapot = service_fn(async |_: Request<BufferedBody<Full<Bytes>>>| {
        let mut response = Answer::default();
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        Ok::<_, Infallible>(response)
    });
    let request = Request::new(Full::from("short"));
    let response = BufferLayer::default().layer(teapot).oneshot(request).await;
    assert_eq!(response.unwrap().status(), StatusCode::IM_A_TEAPOT);
}
