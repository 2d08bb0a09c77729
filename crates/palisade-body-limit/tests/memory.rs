//! What requests cost, and what a handler that collects its body can be made to hold.
//!
//! One test: the allocator counts for the whole process.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{answer, count};
use futures_util::FutureExt;
use http::{Request, StatusCode, Version, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use palisade_body_limit::{BodyLimitLayer, RequestBody};
use palisade_testkit::alloc::CountingAllocator;
use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};
use tower::{BoxError, Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// What hyper reads HTTP/1 into while the block before is in use.
const BLOCK: usize = 8 * 1024;

/// `frames` frames of `length` bytes. Where they come `apart`, as from a client that sends each in
/// a segment of its own, each is a slice of its own block; else as many share one as have room.
struct Upload {
    frames: usize,
    length: usize,
    apart: bool,
    pendings: u8,
    block: Bytes,
}

impl Upload {
    fn new(bytes: usize, length: usize, apart: bool) -> Self {
        Self {
            frames: bytes / length,
            length,
            apart,
            pendings: 0,
            block: Bytes::new(),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.frames == 0 {
            return Poll::Ready(None);
        }
        if self.pendings > 0 {
            self.pendings -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Even at once hyper gives out one frame per turn.
        self.pendings = if self.apart { 2 } else { 1 };
        self.frames -= 1;
        if self.apart || self.block.len() < self.length {
            self.block = Bytes::from(vec![0; BLOCK.max(self.length)]);
        }
        let length = self.length;
        GIVEN.fetch_add(length, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.block.split_to(length)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

/// Collects, and answers what that made it hold at most.
async fn collect(request: Request<RequestBody<Upload>>) -> Result<common::Answer, Infallible> {
    GIVEN.store(0, Relaxed);
    let before = ALLOCATOR.reset_peak();
    let collected = request.into_body().collect().await;
    HELD.store(ALLOCATOR.peak() - before, Relaxed);
    Ok(answer(collected.is_ok()))
}

/// Bytes that the last collector held at most, and was given.
static HELD: AtomicUsize = AtomicUsize::new(0);
static GIVEN: AtomicUsize = AtomicUsize::new(0);

fn allocations<B>(service: &mut impl Service<Request<B>>, request: Request<B>) -> usize {
    let before = ALLOCATOR.allocations();
    let response = service.call(request).now_or_never();
    let after = ALLOCATOR.allocations();
    assert!(response.is_some_and(|response| response.is_ok()));
    after - before
}

#[tokio::test(start_paused = true)]
async fn requests_cost_little_and_collectors_hold_little() {
    // The cost of a request. The handler is ready at once and allocates nothing.
    fn handle<B>(request: Request<B>) -> Ready<Result<common::Answer, Infallible>> {
        drop(request);
        ready(Ok(common::Answer::default()))
    }
    let layer = BodyLimitLayer::default();
    let mut bodiless = layer.layer(service_fn(handle::<RequestBody<Empty<Bytes>>>));
    assert_eq!(allocations(&mut bodiless, Request::new(Empty::new())), 0);
    let mut service = layer.layer(service_fn(handle::<RequestBody<Full<Bytes>>>));
    let request = |length| Request::new(Full::from(vec![0; length]));
    assert_eq!(allocations(&mut service, request(1)), 1);
    assert_eq!(allocations(&mut service, request(1025)), 1);
    assert_eq!(allocations(&mut service, request(1 << 20)), 1);

    // Reading costs nothing more until a body comes in many small frames.
    let mut service = layer.layer(service_fn(async |request: Request<RequestBody<Upload>>| {
        let mut body = request.into_body();
        let before = ALLOCATOR.allocations();
        for _ in 0..15 {
            body.frame().await.unwrap().unwrap();
        }
        let after = ALLOCATOR.allocations();
        assert_eq!(after - before, 30, "the blocks and their counts of uses");
        Ok::<_, Infallible>(common::Answer::default())
    }));
    service
        .call(Request::new(Upload::new(15 * 4096, 4096, true)))
        .await
        .unwrap();
    service
        .call(Request::new(Upload::new(15, 1, true)))
        .await
        .unwrap();

    // What a collector holds, by the length of the frames.
    let mut service = layer.layer(service_fn(collect));
    for apart in [false, true] {
        for length in [
            1, 7, 8, 9, 32, 63, 64, 65, 200, 511, 512, 1000, 1460, 3000, 4095, 4096, 8192,
        ] {
            let total = (2 << 20) / length * length;
            let response = service
                .call(Request::new(Upload::new(total, length, apart)))
                .await;
            let passed = response.unwrap().status() == StatusCode::OK;
            let (held, given) = (HELD.load(Relaxed), GIVEN.load(Relaxed));
            assert!(
                held <= 2 * given + 256 * 1024,
                "{held} of {given}, {length} {apart}"
            );
            let honest = length >= 63 || (!apart && length >= 9);
            assert_eq!(passed, honest, "frames of {length}, apart: {apart}");
        }
    }

    // gRPC over HTTP/2 may come in a frame for every 4 bytes, and a frame is up to 64 on the
    // collector's list: the worst is the one that makes it grow for the last time.
    for length in [1, 2, 3, 4, 5, 7, 8, 16, 64, 512, 4095] {
        for total in [(1 << 20) + 4, 2 << 20] {
            // The last one, refused, is thrown away until then.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let upload = Upload::new(total / length * length, length, false);
            let request = Request::post("/").version(Version::HTTP_2);
            let request = request
                .header(CONTENT_TYPE, "application/grpc")
                .body(upload)
                .unwrap();
            let response = service.call(request).await.unwrap();
            let passed = !response.headers().contains_key("grpc-status");
            let (held, given) = (HELD.load(Relaxed), GIVEN.load(Relaxed));
            assert!(
                held <= 18 * given + 256 * 1024,
                "{held} of {given}, {length} of {total}"
            );
            assert_eq!(passed, length >= 4, "frames of {length}");
        }
    }

    // Without the rule the same handler holds many times what it was sent.
    let mut open = layer.clone().tiny_frames(None).layer(service_fn(collect));
    open.call(Request::new(Upload::new(64_000, 64, true)))
        .await
        .unwrap();
    assert!(HELD.load(Relaxed) > 100 * 64_000);

    // Nothing of all that is left.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let live = ALLOCATOR.live();
    for _ in 0..100 {
        let mut service = layer.layer(service_fn(count::<Upload>));
        service
            .call(Request::new(Upload::new(1 << 20, 1, false)))
            .await
            .unwrap();
        service
            .call(Request::new(Upload::new(10_000, 100, true)))
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await; // Refused bodies linger for a moment.
    let left = ALLOCATOR.live().saturating_sub(live);
    assert!(
        left < 4096,
        "{left}: the runtime itself keeps a little, bodies would be megabytes"
    );
}
