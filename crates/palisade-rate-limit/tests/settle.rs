//! Charges that are corrected by the response, and the header fields that tell of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use palisade_core::{Guard, GuardBody, Reason};
use palisade_rate_limit::{
    Account, ClientKey, Decision, Limiter, Mode, Policy, Prefix, Quota, QuotaState, RateLimitLayer,
    TableLimiter,
};
use palisade_testkit::Journal;
use sfv::{BareItem, FieldType, ListEntry};
use std::{convert::Infallible, net::SocketAddr, panic::AssertUnwindSafe, time::Duration};
use tokio::time::{advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

const CLIENT: &str = "2001:db8:1::1";
const SECOND: Duration = Duration::from_secs(1);

type Answer = Response<GuardBody<Full<Bytes>>>;

fn layer(policy: impl Into<Policy>) -> RateLimitLayer {
    RateLimitLayer::with_limiter(TableLimiter::new(policy).unwrap().capacity(1 << 10))
}

/// Ten at once, and one per second.
fn ten() -> Quota {
    Quota::per_second(1).burst(10)
}

fn request(path: &str) -> Request<Full<Bytes>> {
    let mut request = Request::get(path).body(Full::default()).unwrap();
    let peer = SocketAddr::new(CLIENT.parse().unwrap(), 4711);
    request.extensions_mut().insert(peer);
    request
}

/// Answers with the status in the path, after a second if there is a query.
async fn respond(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().query().is_some() {
        sleep(SECOND / 2).await;
    }
    let mut response = Response::default();
    *response.status_mut() = request.uri().path()[1..].parse().unwrap();
    Ok(response)
}

async fn send(layer: &RateLimitLayer, request: Request<Full<Bytes>>) -> Answer {
    layer
        .layer(service_fn(respond))
        .oneshot(request)
        .await
        .unwrap()
}

async fn status(layer: &RateLimitLayer, path: &str) -> u16 {
    send(layer, request(path)).await.status().as_u16()
}

/// Returns how many requests that succeed are admitted.
async fn left(layer: &RateLimitLayer) -> usize {
    let mut admitted = 0;
    while status(layer, "/200").await == 200 {
        admitted += 1;
    }
    admitted
}

#[tokio::test(start_paused = true)]
async fn a_failed_login_costs_10_and_an_unchanged_page_nothing() {
    let layer = layer(Quota::per_second(1).burst(30)).settle(|response| {
        assert_eq!(response.charged, 1);
        match response.status {
            StatusCode::UNAUTHORIZED => 10,
            StatusCode::NOT_MODIFIED => 0,
            _ => response.charged,
        }
    });
    for _ in 0..100 {
        assert_eq!(status(&layer, "/304").await, 304);
    }
    assert_eq!(status(&layer, "/401").await, 401);
    assert_eq!(status(&layer, "/401").await, 401);
    assert_eq!(left(&layer).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_correction_is_never_more_than_one_burst_and_gives_no_more_than_the_charge() {
    let layer = layer(ten()).settle(|response| match response.status {
        StatusCode::UNAUTHORIZED => u32::MAX,
        _ => 0,
    });
    assert_eq!(status(&layer, "/401").await, 401);
    assert_eq!(status(&layer, "/401").await, 429);
    advance(10 * SECOND).await; // One burst.
    assert_eq!(status(&layer, "/401").await, 401);
    advance(SECOND).await;
    for _ in 0..20 {
        assert_eq!(status(&layer, "/200").await, 200);
    }
    // The nine cells of the failed login are still owed.
    let counted = layer.clone().settle(|response| response.charged);
    assert_eq!(left(&counted).await, 1);
}

#[tokio::test(start_paused = true)]
async fn failures_alone_count_and_guesses_at_the_same_time_do_not_slip_through() {
    let layer = layer(ten()).settle(|response| u32::from(!response.status.is_success()));
    for _ in 0..100 {
        assert_eq!(status(&layer, "/200").await, 200);
    }
    // Each guess takes half a second to be checked, and all are sent at once.
    let guesses = (0..100).map(|_| status(&layer, "/401?slow"));
    let statuses = futures_util::future::join_all(guesses).await;
    let checked = statuses.iter().filter(|&&status| status == 401).count();
    assert_eq!((checked, statuses.len()), (10, 100));
    assert_eq!(status(&layer, "/200").await, 429);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_fails_or_panics_stays_as_charged() {
    let layer = layer(ten()).settle(|_| 0);
    {
        let mut service = layer.layer(service_fn(respond));
        let mut pending = Box::pin(service.ready().await.unwrap().call(request("/200?slow")));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(pending.as_mut().poll(&mut cx).is_pending());
    }
    let failing = service_fn(async |_: Request<Full<Bytes>>| {
        Err::<Response<Full<Bytes>>, _>("the handler's own error")
    });
    let failed = layer.layer(failing).oneshot(request("/200")).await;
    assert_eq!(failed.err(), Some("the handler's own error"));
    let panicking = service_fn(async |_: Request<Full<Bytes>>| -> Result<_, Infallible> {
        if true {
            panic!("the handler");
        }
        Ok(Response::<Full<Bytes>>::default())
    });
    let panicked = layer.layer(panicking).oneshot(request("/200"));
    let panicked = futures_util::FutureExt::catch_unwind(AssertUnwindSafe(panicked)).await;
    assert!(panicked.is_err());
    assert_eq!(left(&layer.settle(|response| response.charged)).await, 7);
}

#[tokio::test(start_paused = true)]
async fn networks_are_corrected_with_their_client() {
    let layer = layer(ten())
        .wider(Prefix::new(32, 48).unwrap(), 1)
        .wider_mode(Mode::Enforce);
    let free = layer.clone().settle(|_| 0);
    for _ in 0..100 {
        assert_eq!(status(&free, "/200").await, 200);
    }
    let dear = layer.clone().settle(|_| 8);
    assert_eq!(status(&dear, "/200").await, 200);
    let mut neighbour = request("/200");
    let address = SocketAddr::new("2001:db8:1:2::1".parse().unwrap(), 1);
    neighbour.extensions_mut().insert(address);
    assert_eq!(send(&layer, neighbour).await.status(), 200);
    assert_eq!(left(&layer).await, 1); // 8 and 1 of the 10 of the network.
}

#[tokio::test(start_paused = true)]
async fn a_network_that_would_refuse_in_shadow_mode_is_not_given_back_what_it_was_not_charged() {
    let journal = Journal::default();
    let layer = layer(ten())
        .wider(Prefix::new(32, 48).unwrap(), 1)
        .metrics(journal.clone());
    assert_eq!(left(&layer).await, 10);
    let mut neighbour = request("/200");
    let address = SocketAddr::new("2001:db8:1:2::1".parse().unwrap(), 1);
    neighbour.extensions_mut().insert(address);
    let free = layer.clone().settle(|_| 0);
    assert_eq!(send(&free, neighbour).await.status(), 200);
    let refusals = journal.refusals();
    let network = (Reason::NetworkRateExceeded, Mode::Shadow);
    let (last, mode) = refusals.last().unwrap();
    assert_eq!((last.reason, *mode), network);
    // Still used up: another client of it would be refused.
    advance(SECOND / 2).await;
    let enforced = layer.wider_mode(Mode::Enforce);
    let mut other = request("/200");
    let address = SocketAddr::new("2001:db8:1:3::1".parse().unwrap(), 1);
    other.extensions_mut().insert(address);
    assert_eq!(send(&enforced, other).await.status(), 429);
}

#[tokio::test(start_paused = true)]
async fn a_free_request_can_be_charged_by_its_response() {
    let layer = layer(ten()).cost(|_| 0).settle(|response| {
        assert_eq!(response.charged, 0);
        4
    });
    for _ in 0..3 {
        assert_eq!(status(&layer, "/200").await, 200);
    }
    assert_eq!(status(&layer.cost(|_| 1), "/200").await, 429);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_of_what_was_not_charged() {
    let panics = || layer(ten()).settle(|_| panic!("nothing was charged"));
    let exempt = panics()
        .key(|_: &palisade_rate_limit::RequestHead<'_>| palisade_rate_limit::KeyOutcome::Exempt);
    assert_eq!(status(&exempt, "/200").await, 200);
    assert_eq!(status(&panics().mode(Mode::Off), "/200").await, 200);
    let shadow = layer(ten()).mode(Mode::Shadow);
    for _ in 0..10 {
        assert_eq!(status(&shadow, "/200").await, 200);
    }
    let shadow = shadow.settle(|_| panic!("nothing was charged"));
    assert_eq!(status(&shadow, "/200").await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_service_inside_another_one_of_the_layer_settles_once() {
    let layer = layer(ten()).settle(|response| response.charged + 1);
    let nested = layer.layer(layer.layer(service_fn(respond)));
    let mut admitted = 0;
    while nested
        .clone()
        .oneshot(request("/200"))
        .await
        .unwrap()
        .status()
        == 200
    {
        admitted += 1;
    }
    assert_eq!(admitted, 5);
}

// --- Header fields ---

/// The members of a list of strings with their parameters, as a parser of structured fields reads
/// them.
fn list(headers: &HeaderMap, name: &str) -> Vec<(String, Vec<(String, i64)>)> {
    let mut members = Vec::new();
    for line in headers.get_all(name) {
        let list = sfv::Parser::new(line.as_bytes())
            .parse::<sfv::List>()
            .unwrap();
        assert_eq!(list.serialize().as_deref(), line.to_str().ok()); // Canonical.
        for entry in list {
            let ListEntry::Item(item) = entry else {
                panic!("{line:?}");
            };
            let BareItem::String(member) = item.bare_item else {
                panic!("{line:?}");
            };
            let parameters = item.params.iter().map(|(key, value)| {
                let BareItem::Integer(value) = value else {
                    panic!("{line:?}");
                };
                (key.to_string(), i64::from(*value))
            });
            members.push((member.to_string(), parameters.collect()));
        }
    }
    members
}

fn member(name: &str, parameters: &[(&str, i64)]) -> (String, Vec<(String, i64)>) {
    let parameters = parameters.iter();
    let parameters = parameters.map(|&(key, value)| (key.to_owned(), value));
    (name.to_owned(), parameters.collect())
}

fn is_unnamed(headers: &HeaderMap) -> bool {
    !headers.contains_key("ratelimit") && !headers.contains_key("ratelimit-policy")
}

#[tokio::test(start_paused = true)]
async fn a_429_has_the_fields_and_a_success_has_them_when_asked() {
    let layer = layer(ten()).name("api").unwrap();
    assert!(is_unnamed(send(&layer, request("/200")).await.headers()));
    let always = layer.clone().fields_on_every_response(true);
    for left in (0..9).rev() {
        advance(Duration::from_millis(1)).await;
        let response = send(&always, request("/404")).await;
        assert_eq!(response.status(), 404);
        let policy = [member("api", &[("q", 10), ("w", 10)])];
        assert_eq!(list(response.headers(), "ratelimit-policy"), policy);
        let limit = [member("api", &[("r", left), ("t", 1)])];
        assert_eq!(list(response.headers(), "ratelimit"), limit);
    }
    for layer in [&layer, &always] {
        let refused = send(layer, request("/200")).await;
        assert_eq!(refused.status(), 429);
        let limit = [member("api", &[("r", 0), ("t", 1)])];
        assert_eq!(list(refused.headers(), "ratelimit"), limit);
        assert_eq!(refused.headers()["retry-after"], "1");
    }
    assert!(is_unnamed(
        send(&always.mode(Mode::Off), request("/200"))
            .await
            .headers()
    ));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_never_before_the_time_of_a_listed_quota() {
    // The hour has five left, of which the next comes in 36 s. The second refuses.
    let quota = Quota::per_hour(100).burst(6).and(ten().burst(1));
    let layer = layer(quota).name("api").unwrap();
    assert_eq!(status(&layer, "/200").await, 200);
    let refused = send(&layer, request("/200")).await;
    let policy = [
        member("api", &[("q", 6), ("w", 216)]),
        member("api-2", &[("q", 1), ("w", 1)]),
    ];
    assert_eq!(list(refused.headers(), "ratelimit-policy"), policy);
    let limit = [member("api-2", &[("r", 0), ("t", 1)])];
    assert_eq!(list(refused.headers(), "ratelimit"), limit);
    assert_eq!(refused.headers()["retry-after"], "1");

    for _ in 0..5 {
        advance(SECOND).await;
        assert_eq!(status(&layer, "/200").await, 200);
    }
    let refused = send(&layer, request("/200")).await;
    let limit = [
        member("api", &[("r", 0), ("t", 31)]),
        member("api-2", &[("r", 0), ("t", 1)]),
    ];
    assert_eq!(list(refused.headers(), "ratelimit"), limit);
    assert_eq!(refused.headers()["retry-after"], "31");
    // A request of several cells waits for all of them, and two of four are there.
    advance(72 * SECOND).await;
    let refused = send(&layer.cost(|_| 4), request("/200")).await;
    assert_eq!(refused.status(), 413); // More than the burst of the second.
    let layer = self::layer(ten()).name("api").unwrap().cost(|_| 4);
    assert_eq!(status(&layer, "/200").await, 200);
    assert_eq!(status(&layer, "/200").await, 200);
    let refused = send(&layer, request("/200")).await;
    let limit = [member("api", &[("r", 2), ("t", 1)])];
    assert_eq!(list(refused.headers(), "ratelimit"), limit);
    assert_eq!(refused.headers()["retry-after"], "2");
}

#[tokio::test(start_paused = true)]
async fn a_window_of_less_than_a_second_is_left_out() {
    let layer = layer(Quota::per_second(100).burst(99)).name("api").unwrap();
    let layer = layer.fields_on_every_response(true);
    let response = send(&layer, request("/200")).await;
    let policy = [member("api", &[("q", 99)])];
    assert_eq!(list(response.headers(), "ratelimit-policy"), policy);
}

#[tokio::test]
async fn numbers_of_a_limiter_have_no_more_digits_than_structured_fields_have() {
    struct Forever;
    impl Limiter for Forever {
        fn check(&self, _: ClientKey, _: u32) -> Decision {
            Decision::Deny {
                wait: Duration::MAX,
            }
        }
        fn quotas(&self, _: Account) -> Vec<QuotaState> {
            vec![QuotaState::new(1, Duration::MAX, 0, Some(Duration::MAX))]
        }
    }
    let layer = RateLimitLayer::with_limiter(Forever).name("api").unwrap();
    let answer = send(&layer, request("/")).await;
    let most = 999_999_999_999_999;
    let policy = list(answer.headers(), "ratelimit-policy");
    assert_eq!(policy, [member("api", &[("q", 1), ("w", most)])]);
    let limit = list(answer.headers(), "ratelimit");
    assert_eq!(limit, [member("api", &[("r", 0), ("t", most)])]);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_debt_has_no_time_to_wait_for() {
    let layer = layer(ten()).name("api").unwrap().settle(|_| 0);
    let layer = layer.fields_on_every_response(true);
    let response = send(&layer, request("/304")).await;
    assert_eq!(
        list(response.headers(), "ratelimit"),
        [member("api", &[("r", 10)])]
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_is_escaped_and_must_be_printable_ascii() {
    let name = r#"a "quoted" \ name"#;
    let layer = layer(ten())
        .name(name)
        .unwrap()
        .fields_on_every_response(true);
    let response = send(&layer, request("/200")).await;
    assert_eq!(list(response.headers(), "ratelimit")[0].0, name);
    for name in ["", "ü", "a\nb", "a\u{7f}", &"a".repeat(65)] {
        let error = layer.clone().name(name).unwrap_err();
        assert_eq!(error.faults()[0].field, "name");
    }
    assert!(layer.clone().name("a".repeat(64)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_network_that_refuses_is_named_as_one() {
    let journal = Journal::default();
    let layer = layer(ten())
        .wider(Prefix::new(32, 48).unwrap(), 1)
        .wider_mode(Mode::Enforce)
        .name("api")
        .unwrap()
        .metrics(journal.clone());
    assert_eq!(left(&layer).await, 10);
    let mut neighbour = request("/200");
    let address = SocketAddr::new("2001:db8:1:2::1".parse().unwrap(), 1);
    neighbour.extensions_mut().insert(address);
    let refused = send(&layer, neighbour).await;
    assert_eq!(refused.status(), 429);
    let policy = [member("api-network", &[("q", 10), ("w", 10)])];
    assert_eq!(list(refused.headers(), "ratelimit-policy"), policy);
    let limit = [member("api-network", &[("r", 0), ("t", 1)])];
    assert_eq!(list(refused.headers(), "ratelimit"), limit);
    let network = (Guard::RateLimit, Reason::NetworkRateExceeded);
    assert_eq!(journal.refused().last(), Some(&network));
}

#[tokio::test(start_paused = true)]
async fn grpc_a_413_and_a_layer_in_shadow_mode_have_no_fields() {
    let named = || {
        layer(ten())
            .name("api")
            .unwrap()
            .fields_on_every_response(true)
    };
    let grpc = || {
        let mut call = request("/200");
        *call.method_mut() = Method::POST;
        *call.version_mut() = Version::HTTP_2;
        let kind = "application/grpc".parse().unwrap();
        call.headers_mut().insert("content-type", kind);
        call
    };
    let layer = named();
    for _ in 0..12 {
        assert!(is_unnamed(send(&layer, grpc()).await.headers()));
    }
    let dear = named().cost(|_| 11);
    let refused = send(&dear, request("/200")).await;
    assert_eq!(refused.status(), 413);
    assert!(is_unnamed(refused.headers()));
    let shadow = named().mode(Mode::Shadow);
    for _ in 0..12 {
        assert!(is_unnamed(send(&shadow, request("/200")).await.headers()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_with_a_time_of_its_own_gets_no_second_one_and_lists_are_joined() {
    let inner = layer(Quota::per_hour(10)).name("tenant").unwrap();
    let outer = layer(ten()).name("address").unwrap();
    let both = (
        outer.fields_on_every_response(true),
        inner.fields_on_every_response(true),
    );
    let busy = service_fn(async |request: Request<Full<Bytes>>| {
        let response = Response::builder().status(503);
        let response = match request.uri().path() {
            "/busy" => response.header("retry-after", "5"),
            _ => response,
        };
        response.body(Full::<Bytes>::default())
    });
    let service = both.0.layer(both.1.layer(busy));
    let response = service.clone().oneshot(request("/")).await.unwrap();
    let names = |headers: &HeaderMap, field| {
        let members = list(headers, field).into_iter();
        members.map(|(name, _)| name).collect::<Vec<_>>()
    };
    for field in ["ratelimit", "ratelimit-policy"] {
        assert_eq!(names(response.headers(), field), ["tenant", "address"]);
    }
    let response = service.oneshot(request("/busy")).await.unwrap();
    let headers = response.headers();
    assert_eq!(names(headers, "ratelimit-policy"), ["tenant", "address"]);
    assert!(!headers.contains_key("ratelimit"));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_replaces_the_refusal_has_the_fields_as_well() {
    let layer = layer(ten()).name("api").unwrap();
    let layer = layer.on_reject(|_| Response::new(Bytes::from_static(b"slow down")));
    assert_eq!(left(&layer).await, 10);
    let refused = send(&layer, request("/200")).await;
    assert_eq!(list(refused.headers(), "ratelimit").len(), 1);
    assert_eq!(list(refused.headers(), "ratelimit-policy").len(), 1);
}
