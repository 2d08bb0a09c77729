//! The allocations of the rate limit per request. A single test, because the counter counts the
//! allocations of the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use palisade_core::{ConnInfo, Prefix};
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::alloc::CountingAllocator;
use std::{
    convert::Infallible,
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn an_admitted_request_allocates_nothing_and_a_refused_one_only_its_headers() {
    let info = ConnInfo::new(([192, 0, 2, 1], 80).into(), None, Prefix::default());
    let handler = |_: Request<Empty<Bytes>>| {
        std::future::ready(Ok::<_, Infallible>(Response::<Full<Bytes>>::default()))
    };
    let quota = Quota::period(Duration::from_secs(9)).burst(100);
    let mut service = RateLimitLayer::new(quota)
        .unwrap()
        .layer(service_fn(handler));
    let mut outcomes = [(StatusCode::OK, 0); 200];
    for outcome in &mut outcomes {
        let mut request = Request::new(Empty::<Bytes>::new());
        request.extensions_mut().insert(info.clone());
        let before = ALLOCATOR.allocations();
        let future = pin!(service.call(request));
        let Poll::Ready(response) = future.poll(&mut Context::from_waker(Waker::noop())) else {
            unreachable!()
        };
        *outcome = (
            response.as_ref().unwrap().status(),
            ALLOCATOR.allocations() - before,
        );
        drop(black_box(response));
    }
    assert_eq!(outcomes[..100], [(StatusCode::OK, 0); 100]);
    for (status, allocations) in &outcomes[100..] {
        assert_eq!(*status, StatusCode::TOO_MANY_REQUESTS);
        assert!(*allocations <= 2, "{allocations}");
    }
}
