//! The options of the rate limit in a stack, where the response passes all guards.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(all(feature = "rate-limit", feature = "body-limit", feature = "timeout"))]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use palisade::{Guard, Mode, Quota, Reason, Stack, StackLayer, rate_limit::Prefix};
use palisade_testkit::Journal;
use std::{convert::Infallible, net::SocketAddr, time::Duration};
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};

/// Ten at once, and one per hour.
fn ten() -> Stack {
    Stack::edge().rate_limit(Quota::per_hour(1).burst(10))
}

fn request(path: &str, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::post(path).body(Full::from(body)).unwrap();
    let peer = SocketAddr::new("2001:db8:1::1".parse().unwrap(), 4711);
    request.extensions_mut().insert(peer);
    request
}

/// Reads the body and answers with the status in the path, with the same body.
async fn respond<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let status = request.uri().path()[1..].parse::<StatusCode>();
    let Ok(status) = status else {
        sleep(Duration::from_secs(600)).await;
        return Ok(Response::default());
    };
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    Ok(response)
}

async fn send(stack: &StackLayer, request: Request<Full<Bytes>>) -> Response<()> {
    let response = stack
        .layer(service_fn(respond))
        .oneshot(request)
        .await
        .unwrap();
    response.map(drop)
}

/// Returns how many requests without a body are admitted.
async fn left(stack: &StackLayer) -> usize {
    let mut admitted = 0;
    while send(stack, request("/200", "")).await.status() == 200 {
        admitted += 1;
    }
    admitted
}

#[tokio::test(start_paused = true)]
async fn a_charge_is_settled_by_the_response_with_and_without_bodies() {
    let settle = |status: StatusCode| match status.as_u16() {
        401 => 4,
        304 => 0,
        _ => 1,
    };
    for body in ["", "a body"] {
        let stack = ten().settle(move |response| settle(response.status));
        let stack = stack.build().unwrap();
        for _ in 0..20 {
            assert_eq!(send(&stack, request("/304", body)).await.status(), 304);
        }
        assert_eq!(send(&stack, request("/401", body)).await.status(), 401);
        assert_eq!(left(&stack).await, 6);
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_guard_refuses_and_what_is_dropped_stays_as_charged() {
    let stack = ten().max_body(10).settle(|_| 0);
    let stack = stack.build().unwrap();
    let too_large = send(&stack, request("/200", "more than ten bytes")).await;
    assert_eq!(too_large.status(), 413);
    assert_eq!(send(&stack, request("/slow", "")).await.status(), 503);
    let service = stack.layer(service_fn(respond));
    let dropped = service.oneshot(request("/slow", ""));
    let dropped = tokio::time::timeout(Duration::from_secs(1), dropped).await;
    assert!(dropped.is_err());
    for _ in 0..20 {
        assert_eq!(send(&stack, request("/200", "")).await.status(), 200);
    }
    // A panic as well.
    let panicking = stack.layer(service_fn(async |_: Request<_>| {
        if true {
            panic!("the handler");
        }
        Ok::<Response<Full<Bytes>>, Infallible>(Response::default())
    }));
    let panicked = tokio::spawn(panicking.oneshot(request("/200", ""))).await;
    assert!(panicked.is_err());
    let quota_left = stack.layer(service_fn(respond));
    let mut failing = 0;
    // Six are left: each request that is dropped takes one.
    loop {
        let request = quota_left.clone().oneshot(request("/slow", ""));
        match tokio::time::timeout(Duration::from_millis(1), request).await {
            Err(_) => failing += 1,
            Ok(response) => {
                assert_eq!(response.unwrap().status(), 429);
                break;
            }
        }
    }
    assert_eq!(failing, 6);
}

#[tokio::test(start_paused = true)]
async fn the_fields_are_on_every_response_of_the_handler_when_asked() {
    let stack = ten().rate_limit_name("api");
    let stack = stack.tune_rate_limit(|layer| layer.fields_on_every_response(true));
    let stack = stack.build().unwrap();
    for (left, body) in [(9, ""), (8, "a body")] {
        let response = send(&stack, request("/404", body)).await;
        let fields = ["ratelimit-policy", "ratelimit"].map(|name| {
            let value = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        });
        let limit = format!("\"api\";r={left};t=3600");
        assert_eq!(fields[0].as_deref(), Some("\"api\";q=10;w=36000"));
        assert_eq!(fields[1], Some(limit));
    }
}

#[tokio::test(start_paused = true)]
async fn the_mode_of_the_stack_holds_for_networks() {
    let journal = Journal::default();
    let per_48 = Prefix::new(32, 48).unwrap();
    let stack = ten().wider(per_48, 1).wider_mode(Mode::Enforce);
    let stack = stack
        .mode_of(Guard::RateLimit, Mode::Shadow)
        .metrics(journal.clone())
        .build()
        .unwrap();
    for network in 0..20 {
        let mut request = request("/200", "");
        let address = format!("2001:db8:1:{network}::1").parse().unwrap();
        request
            .extensions_mut()
            .insert(SocketAddr::new(address, 4711));
        assert_eq!(send(&stack, request).await.status(), 200);
    }
    let network = (Guard::RateLimit, Reason::NetworkRateExceeded);
    assert_eq!(journal.refused(), vec![network; 10]);
}

#[test]
fn options_without_a_rate_limit_and_invalid_ones_are_faults() {
    let fields = |stack: Stack| -> Vec<_> {
        let error = stack.build().unwrap_err();
        let faults = error.faults().iter();
        faults.map(|fault| fault.field.to_string()).collect()
    };
    let networks = || palisade::rate_limit::Networks::default();
    let without = Stack::edge()
        .ladder()
        .wider_mode(Mode::Enforce)
        .quota_for(networks(), Quota::per_second(1))
        .settle(|_| 0)
        .rate_limit_name("api");
    assert_eq!(
        fields(without),
        [
            "wider",
            "wider_mode",
            "quota_for",
            "settle",
            "rate_limit_name"
        ]
    );
    let invalid = ten()
        .quota_for(networks(), Quota::per_second(0))
        .rate_limit_name("");
    assert_eq!(fields(invalid), ["quota_for.cells", "rate_limit.name"]);
}
