//! The allocations of a request, and the memory of a handler that collects its body, and of a
//! buffer.
//!
//! A single test, because the allocator counts for the whole process.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{TextResponse, count_bytes, text_response};
use futures_util::FutureExt;
use http::{Request, StatusCode, Version, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use palisade_body_limit::{BodyLimitLayer, BufferLayer, BufferedBody, RequestBody};
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

/// Size of the blocks into which hyper reads HTTP/1 while the previous block is in use.
const BLOCK_BYTES: usize = 8 * 1024;

/// A body of `frames` frames of `length` bytes.
///
/// If `has_own_blocks`, each frame is a slice of its own block, as from a client that sends each
/// frame in its own segment. Otherwise a block holds as many frames as fit.
struct Upload {
    frames: usize,
    length: usize,
    has_own_blocks: bool,
    /// Pending polls before the next frame.
    pending_polls: u8,
    block: Bytes,
}

impl Upload {
    fn new(bytes: usize, length: usize, has_own_blocks: bool) -> Self {
        Self {
            frames: bytes / length,
            length,
            has_own_blocks,
            pending_polls: 0,
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
        if self.pending_polls > 0 {
            self.pending_polls -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // hyper yields one frame per poll of its connection, even if more bytes have arrived.
        self.pending_polls = if self.has_own_blocks { 2 } else { 1 };
        self.frames -= 1;
        if self.has_own_blocks || self.block.len() < self.length {
            self.block = Bytes::from(vec![0; BLOCK_BYTES.max(self.length)]);
        }
        let length = self.length;
        YIELDED_BYTES.fetch_add(length, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(self.block.split_to(length)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

/// A body that declares 64 KiB and yields so many bytes, each in a block of its own.
struct Slow {
    frames: usize,
}

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.frames == 0 {
            return Poll::Pending;
        }
        self.frames -= 1;
        let block = Bytes::from(vec![0; BLOCK_BYTES]);
        Poll::Ready(Some(Ok(Frame::data(block.slice(..1)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(BufferLayer::DEFAULT)
    }
}

/// A handler that collects its body and records the memory that this takes.
async fn collect_body(request: Request<RequestBody<Upload>>) -> Result<TextResponse, Infallible> {
    YIELDED_BYTES.store(0, Relaxed);
    let before = ALLOCATOR.reset_peak();
    let collected = request.into_body().collect().await;
    PEAK_BYTES.store(ALLOCATOR.peak() - before, Relaxed);
    Ok(text_response(collected.is_ok()))
}

/// The most bytes of memory that the last [`collect_body`] used.
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The bytes that the last [`Upload`] yielded.
static YIELDED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of allocations of one call.
fn allocations<B>(service: &mut impl Service<Request<B>>, request: Request<B>) -> usize {
    let before = ALLOCATOR.allocations();
    let response = service.call(request).now_or_never();
    let after = ALLOCATOR.allocations();
    assert!(response.is_some_and(|response| response.is_ok()));
    after - before
}

#[tokio::test(start_paused = true)]
async fn a_request_allocates_once_and_collecting_its_body_takes_bounded_memory() {
    // The allocations of a request. The handler is ready at once and allocates nothing.
    fn drop_request<B>(request: Request<B>) -> Ready<Result<TextResponse, Infallible>> {
        drop(request);
        ready(Ok(TextResponse::default()))
    }
    let layer = BodyLimitLayer::default();
    let mut bodiless = layer.layer(service_fn(drop_request::<RequestBody<Empty<Bytes>>>));
    assert_eq!(allocations(&mut bodiless, Request::new(Empty::new())), 0);
    let mut service = layer.layer(service_fn(drop_request::<RequestBody<Full<Bytes>>>));
    let request = |length| Request::new(Full::from(vec![0; length]));
    assert_eq!(allocations(&mut service, request(1)), 1);
    assert_eq!(allocations(&mut service, request(1025)), 1);
    assert_eq!(allocations(&mut service, request(1 << 20)), 1);

    // Reading does not allocate until small frames are coalesced.
    let mut service = layer.layer(service_fn(async |request: Request<RequestBody<Upload>>| {
        let mut body = request.into_body();
        let before = ALLOCATOR.allocations();
        for _ in 0..15 {
            body.frame().await.unwrap().unwrap();
        }
        let after = ALLOCATOR.allocations();
        assert_eq!(after - before, 30, "the blocks and their reference counts");
        Ok::<_, Infallible>(TextResponse::default())
    }));
    service
        .call(Request::new(Upload::new(15 * 4096, 4096, true)))
        .await
        .unwrap();
    service
        .call(Request::new(Upload::new(15, 1, true)))
        .await
        .unwrap();

    // The memory of a handler that collects its body, by the length of the frames.
    let mut service = layer.layer(service_fn(collect_body));
    for has_own_blocks in [false, true] {
        for length in [
            1, 7, 8, 9, 32, 63, 64, 65, 200, 511, 512, 1000, 1460, 3000, 4095, 4096, 8192,
        ] {
            let total = (2 << 20) / length * length;
            let response = service
                .call(Request::new(Upload::new(total, length, has_own_blocks)))
                .await;
            let passed = response.unwrap().status() == StatusCode::OK;
            let (peak, yielded) = (PEAK_BYTES.load(Relaxed), YIELDED_BYTES.load(Relaxed));
            assert!(
                peak <= 2 * yielded + 256 * 1024,
                "{peak} bytes for {yielded} in frames of {length}, own blocks: {has_own_blocks}"
            );
            let expected = length >= 63 || (!has_own_blocks && length >= 9);
            assert_eq!(
                passed, expected,
                "frames of {length}, own blocks: {has_own_blocks}"
            );
        }
    }

    // gRPC over HTTP/2 may have a frame for every 4 bytes, and a frame takes up to 64 bytes in the
    // list of the handler. The worst case is the frame at which the list grows for the last time.
    for length in [1, 2, 3, 4, 5, 7, 8, 16, 64, 512, 4095] {
        for total in [(1 << 20) + 4, 2 << 20] {
            // A refused body of the previous round lingers until then.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let upload = Upload::new(total / length * length, length, false);
            let request = Request::post("/").version(Version::HTTP_2);
            let request = request
                .header(CONTENT_TYPE, "application/grpc")
                .body(upload)
                .unwrap();
            let response = service.call(request).await.unwrap();
            let passed = !response.headers().contains_key("grpc-status");
            let (peak, yielded) = (PEAK_BYTES.load(Relaxed), YIELDED_BYTES.load(Relaxed));
            assert!(
                peak <= 18 * yielded + 256 * 1024,
                "{peak} bytes for {yielded} in frames of {length}, body of {total}"
            );
            assert_eq!(passed, length >= 4, "frames of {length}");
        }
    }

    // Without a frame limit, the same handler holds many times the bytes that it was sent.
    let mut unlimited = layer
        .clone()
        .tiny_frames(None)
        .layer(service_fn(collect_body));
    unlimited
        .call(Request::new(Upload::new(64_000, 64, true)))
        .await
        .unwrap();
    assert!(PEAK_BYTES.load(Relaxed) > 100 * 64_000);

    // A buffer reserves nothing for what is declared, and does not keep the blocks of small frames.
    let mut buffered = BufferLayer::default().layer(service_fn(drop_request::<BufferedBody<Slow>>));
    for (frames, allowed) in [(0, 1024), (1, 1024), (100, 1024 + 2 * 100)] {
        let (before, count) = (ALLOCATOR.live(), 100);
        let waiting: Vec<_> = (0..count)
            .map(|_| {
                let mut response = Box::pin(buffered.call(Request::new(Slow { frames })));
                assert!(response.as_mut().now_or_never().is_none());
                response
            })
            .collect();
        let each = (ALLOCATOR.live() - before) / count;
        assert!(each <= allowed, "{each} bytes for {frames} bytes");
        drop(waiting);
    }

    // No body stays in memory.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let live = ALLOCATOR.live();
    for _ in 0..100 {
        let mut service = layer.layer(service_fn(count_bytes::<Upload>));
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
        "{left} bytes left: the runtime keeps a little, bodies would be megabytes"
    );
}
