//! What a Redis that announces gigabytes costs a node.
//!
//! There is one test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "nodes/false_redis.rs"]
#[allow(dead_code, reason = "the other tests use all of it")]
mod false_redis;

use false_redis::{FalseRedis, Reply, honest};
use palisade_core::{Gauge, Guard};
use palisade_fleet::Fleet;
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::{Journal, alloc::CountingAllocator, clients::wait_until};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::sleep;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// The most bytes that are read without a complete answer.
const MAX_ANSWER: usize = 64 << 10;

#[tokio::test]
async fn gigabytes_that_are_announced_or_sent_are_not_allocated() {
    let announced: [(&str, &[u8]); 10] = [
        ("an array of 2^31", b"*2147483648\r\n"),
        ("an array of 2^63 - 1", b"*9223372036854775807\r\n"),
        ("a map of 2^31", b"%2147483648\r\n"),
        ("a set of 2^31", b"~2147483648\r\n"),
        ("a push of 2^31", b">2147483648\r\n"),
        ("an attribute of 2^31", b"|2147483648\r\n"),
        ("a bulk of 2^31", b"$2147483648\r\nx"),
        ("a bulk of 2^63 - 1", b"$9223372036854775807\r\nx"),
        ("an error of 2^31", b"!2147483648\r\nx"),
        (
            "arrays in arrays",
            b"*2147483648\r\n*2147483648\r\n*2147483648\r\n",
        ),
    ];
    for (name, answer) in announced {
        let most = most_of(name, Reply::Bytes(answer.to_vec())).await;
        assert!(most < 1 << 18, "{name}: {most} bytes");
    }
    let sent = [
        ("a text without an end", Reply::Endless(b"+", &[b'x'; 4096])),
        (
            "a bulk without an end",
            Reply::Endless(b"$2147483648\r\n", &[b'x'; 4096]),
        ),
        (
            "numbers without an end",
            Reply::Endless(b"*2147483648\r\n", b":1\r\n:1\r\n"),
        ),
        (
            "nothings without an end",
            Reply::Endless(b"*2147483648\r\n", b"_\r\n_\r\n"),
        ),
    ];
    let kept = kept_of_messages().await;
    println!("of messages for which nobody has asked: {kept} bytes");
    assert!(kept < 1 << 20, "{kept} bytes");
    for (name, reply) in sent {
        let most = most_of(name, reply).await;
        // Each value takes 56 bytes, and at least three in the answer. A list doubles as it grows.
        assert!(most < 40 * MAX_ANSWER, "{name}: {most} bytes");
    }
}

/// Starts a node with this Redis, and asks `measure` about it. Ends it afterwards, so that the next
/// one is measured alone.
async fn with_node<F>(redis: &FalseRedis, measure: F) -> usize
where
    F: AsyncFnOnce(&Journal, &RateLimitLayer) -> usize,
{
    let journal = Journal::default();
    let builder = Fleet::redis(redis.url()).unwrap().nodes(1);
    let builder = builder.secret("a secret of the tests");
    let fleet = builder.metrics(journal.clone()).start().unwrap();
    let quota = Quota::per_second(10_000).fleet(&fleet);
    let layer = RateLimitLayer::new(quota).unwrap();
    let measured = measure(&journal, &layer).await;
    drop((fleet, layer));
    let has_ended = || journal.gauge(Guard::RateLimit, Gauge::FleetNodes).is_none();
    wait_until("the node has ended", has_ended).await;
    measured
}

/// Returns the most bytes that a node has allocated at once for this answer.
async fn most_of(name: &str, reply: Reply) -> usize {
    let redis = FalseRedis::start("EVAL", move |_| reply.clone());
    let measure = async |journal: &Journal, layer: &RateLimitLayer| {
        let before = ALLOCATOR.reset_peak();
        request(layer).await;
        let failed = || journal.gauge(Guard::RateLimit, Gauge::FleetFailures) > Some(0);
        wait_until(name, failed).await;
        ALLOCATOR.peak() - before
    };
    let most = with_node(&redis, measure).await;
    println!("{name}: {most} bytes");
    most
}

/// Returns the bytes that a node keeps of a Redis that answers rightly, and claims after each
/// answer that the connection has subscribed to 400 more channels. The client remembers channels.
async fn kept_of_messages() -> usize {
    const CALLS: usize = 60;
    let next = Arc::new(AtomicUsize::new(0));
    let redis = FalseRedis::start("EVAL", move |words| {
        let mut bytes = honest(words);
        for _ in 0..400 {
            let channel = next.fetch_add(1, Relaxed);
            let message = format!(">3\r\n+subscribe\r\n$32\r\n{channel:032}\r\n:1\r\n");
            bytes.extend(message.bytes());
        }
        Reply::Bytes(bytes)
    });
    let measure = async |_: &Journal, layer: &RateLimitLayer| {
        let before = ALLOCATOR.live();
        while redis.calls() < CALLS {
            request(layer).await;
            sleep(Duration::from_millis(2)).await;
        }
        ALLOCATOR.live().saturating_sub(before)
    };
    with_node(&redis, measure).await
}

async fn request(layer: &RateLimitLayer) {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Empty;
    use std::{convert::Infallible, net::SocketAddr};
    use tower::{Layer, ServiceExt, service_fn};
    let mut request = Request::new(Empty::<Bytes>::new());
    let peer = SocketAddr::from(([192, 0, 2, 1], 4711));
    request.extensions_mut().insert(peer);
    let handler = service_fn(async |_: Request<Empty<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
}
