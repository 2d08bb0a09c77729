//! The guards of a stack share one mechanism. Their limits also hold with small frames, with
//! several services of one stack, with short refused bodies and with `HEAD`.

use axum::{
    Router,
    routing::{get, post},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::{BodyExt, Channel, Empty, Full};
use palisade::{
    ClientIp, Quota, RequestBody, Stack, StackLayer, rate_limit::RateLimitLayer, slow_body::Pace,
    timeout::TimeoutLayer,
};
use palisade_core::{ConnInfo, Guard, KeyExtractor, Prefix, Reason, RequestHead};
use palisade_testkit::{
    Journal,
    clients::{self, RawClient},
    servers,
};
use std::{
    convert::Infallible,
    future::pending,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LIMIT: Duration = Duration::from_secs(30);
/// The interval at which the deadline of a request that waits for its client is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

type HandlerResult = Result<Response<Full<Bytes>>, Infallible>;
type Upload = Channel<Bytes, Infallible>;

fn stack() -> StackLayer {
    Stack::edge().timeout(LIMIT).build().unwrap()
}

/// Marks `request` as sent by a fixed client.
fn from_client<B>(mut request: Request<B>) -> Request<B> {
    let peer = ([192, 0, 2, 1], 4711).into();
    request
        .extensions_mut()
        .insert(ConnInfo::new(peer, None, Prefix::default()));
    request
}

async fn hello<B>(_: Request<B>) -> HandlerResult {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

/// Returns an upload with `frames` small frames that have arrived, and the sender of further
/// frames.
async fn upload(frames: usize) -> (http_body_util::channel::Sender<Bytes, Infallible>, Upload) {
    let (mut sender, body) = Channel::new(frames);
    for _ in 0..frames {
        sender
            .send_data(Bytes::from_static(b"ten bytes."))
            .await
            .unwrap();
    }
    (sender, body)
}

#[tokio::test(start_paused = true)]
async fn the_client_key_of_a_request_is_extracted_once() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    // With one permit, the concurrency limit needs the client key at once.
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(100))
        .max_requests(1)
        .client(move |head: &RequestHead<'_>| {
            counted.fetch_add(1, Relaxed);
            ClientIp::peer().extract(head)
        })
        .build()
        .unwrap();
    let mut service = stack.layer(service_fn(async |request: Request<RequestBody<Upload>>| {
        let _ = request.into_body().collect().await;
        hello(Request::new(())).await
    }));
    for requests in 1..=3 {
        let (sender, body) = upload(1).await;
        drop(sender);
        let request = from_client(Request::post("/").body(body).unwrap());
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(
            (response.status(), calls.load(Relaxed)),
            (StatusCode::OK, requests)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_gap_is_measured_from_a_frame_s_arrival_whatever_the_number_of_permits() {
    for permits in [1, 1000] {
        let stack = Stack::edge()
            .max_requests(permits)
            .tune_slow_body(|layer| layer.request(Pace::conversation()))
            .build()
            .unwrap();
        let service = stack.layer(service_fn(async |request: Request<RequestBody<Upload>>| {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            hello(Request::new(())).await
        }));
        let (mut sender, body) = Channel::new(1);
        let response =
            tokio::spawn(service.oneshot(from_client(Request::post("/").body(body).unwrap())));
        for wait in [1, 58] {
            sleep(Duration::from_secs(wait)).await;
            sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        }
        let last = Instant::now();
        assert_eq!(
            response.await.unwrap().unwrap().status(),
            StatusCode::REQUEST_TIMEOUT
        );
        assert_eq!(last.elapsed(), Duration::from_secs(60), "{permits} permits");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_after_many_small_frames_times_out_at_the_limit() {
    for frames in [1, 16, 17, 40] {
        let service = stack().layer(service_fn(async |request: Request<RequestBody<Upload>>| {
            let mut body = request.into_body();
            let mut received = 0;
            while received < frames * 10 {
                received += body
                    .frame()
                    .await
                    .unwrap()
                    .unwrap()
                    .into_data()
                    .unwrap()
                    .len();
            }
            // The handler has read enough, and the client holds the rest back.
            pending::<HandlerResult>().await
        }));
        let (_sender, body) = upload(frames).await;
        let began = Instant::now();
        let response = service
            .oneshot(from_client(Request::post("/").body(body).unwrap()))
            .await;
        assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        let taken = began.elapsed();
        assert!(
            (LIMIT..=LIMIT + CHECK_INTERVAL).contains(&taken),
            "{frames} frames: {taken:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn handler_work_between_small_frames_that_have_arrived_counts_toward_the_timeout() {
    let service = stack().layer(service_fn(async |request: Request<RequestBody<Upload>>| {
        let mut body = request.into_body();
        while body.frame().await.is_some() {
            sleep(Duration::from_millis(200)).await;
        }
        hello(Request::new(())).await
    }));
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        while sender
            .send_data(Bytes::from_static(&[0; 1000]))
            .await
            .is_ok()
        {}
    });
    let began = Instant::now();
    let response = service
        .oneshot(from_client(Request::post("/").body(body).unwrap()))
        .await;
    assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let taken = began.elapsed();
    assert!(
        (LIMIT..=LIMIT + CHECK_INTERVAL).contains(&taken),
        "{taken:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_slow_client_with_small_frames_does_not_count_toward_the_timeout() {
    let service = stack().layer(service_fn(async |request: Request<RequestBody<Upload>>| {
        let length = request
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .len();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(length.to_string()))))
    }));
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        // 600 B/s for 100 s.
        for _ in 0..1000 {
            sleep(Duration::from_millis(100)).await;
            sender
                .send_data(Bytes::from_static(&[0; 60]))
                .await
                .unwrap();
        }
    });
    let response = service
        .oneshot(from_client(Request::post("/").body(body).unwrap()))
        .await;
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "60000"
    );
}

/// A handler that works for 10 s and then reads its body.
async fn work_then_read(request: Request<RequestBody<Upload>>) -> HandlerResult {
    sleep(Duration::from_secs(10)).await;
    let length = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes().len());
    Ok(Response::new(Full::new(Bytes::from(format!("{length:?}")))))
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_after_handler_work_is_refused_after_the_gap() {
    let service = stack().layer(service_fn(work_then_read));
    let (_sender, body) = upload(1).await;
    let began = Instant::now();
    let response = service
        .oneshot(from_client(Request::post("/").body(body).unwrap()))
        .await;
    assert_eq!(response.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    // 10 s of work, and the gap.
    let taken = began.elapsed();
    assert!((24..=26).contains(&taken.as_secs()), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_after_handler_work_is_served() {
    let service = stack().layer(service_fn(work_then_read));
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        for _ in 0..100 {
            sleep(Duration::from_secs(1)).await;
            sender
                .send_data(Bytes::from_static(&[0; 1000]))
                .await
                .unwrap();
        }
    });
    let response = service
        .oneshot(from_client(Request::post("/").body(body).unwrap()))
        .await;
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "Ok(100000)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_exhausts_its_task_s_budget_and_hangs_times_out_at_the_limit() {
    for frames in [0, 1] {
        let service = stack().layer(service_fn(async |_: Request<RequestBody<Upload>>| {
            for _ in 0..1000 {
                tokio::task::consume_budget().await;
            }
            pending::<HandlerResult>().await
        }));
        let (sender, body) = upload(frames.max(1)).await;
        let sender = (frames > 0).then_some(sender);
        let began = Instant::now();
        let task = tokio::spawn(service.oneshot(from_client(Request::new(body))));
        let response = tokio::time::timeout(10 * LIMIT, task)
            .await
            .expect("the request ends");
        assert_eq!(
            response.unwrap().unwrap().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        let taken = began.elapsed();
        assert!(
            (LIMIT..=LIMIT + CHECK_INTERVAL).contains(&taken),
            "{taken:?}"
        );
        drop(sender);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_body_does_not_count_as_read_to_its_end() {
    let service = stack().layer(service_fn(async |request: Request<RequestBody<Upload>>| {
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            drop(frame);
        }
        pending::<HandlerResult>().await
    }));
    let (_sender, body) = upload(1).await;
    let response = service
        .oneshot(from_client(Request::post("/").body(body).unwrap()))
        .await;
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(response.headers()[header::CONNECTION], "close");
}

#[tokio::test]
async fn a_request_that_passes_one_stack_several_times_counts_once() {
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(10))
        .max_requests(1);
    let stack = stack.build().unwrap();
    let inner = Router::new()
        .route("/", get(async || "hello"))
        .route("/", post(async |body: Bytes| body.len().to_string()))
        .layer(stack.clone());
    let server = servers::axum(Router::new().nest("/inner", inner).layer(stack)).await;
    for n in 0..10 {
        let response = if n % 2 == 0 {
            clients::get(LOCALHOST, server.addr, "/inner")
                .await
                .unwrap()
        } else {
            let mut sender = clients::http1(LOCALHOST, server.addr).await.unwrap();
            let body = Full::new(Bytes::from_static(b"ten bytes!"));
            let request = Request::post("/inner")
                .header(header::HOST, "test")
                .body(body)
                .unwrap();
            clients::whole(sender.send_request(request).await.unwrap())
                .await
                .unwrap()
        };
        assert_eq!(response.status(), StatusCode::OK, "request {n}");
    }
    let denied = clients::get(LOCALHOST, server.addr, "/inner")
        .await
        .unwrap();
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_request_that_passes_single_layers_several_times_counts_once() {
    let rate_limit = RateLimitLayer::new(Quota::per_hour(10)).unwrap();
    let timeout = TimeoutLayer::new(LIMIT);
    let mut service = ServiceBuilder::new()
        .layer(rate_limit.clone())
        .layer(timeout.clone())
        .layer(rate_limit)
        .layer(timeout)
        .service(service_fn(hello));
    for n in 0..11 {
        let request = from_client(Request::new(Empty::<Bytes>::new()));
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        let expected = if n < 10 {
            StatusCode::OK
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        assert_eq!(response.status(), expected, "request {n}");
    }
}

#[tokio::test]
async fn requests_through_one_stack_in_separate_tasks_each_count() {
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(2))
        .build()
        .unwrap();
    let service = stack.layer(service_fn(hello));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let request = from_client(Request::new(Empty::<Bytes>::new()));
        tasks.spawn(service.clone().oneshot(request));
    }
    let statuses = tasks
        .join_all()
        .await
        .into_iter()
        .map(|result| result.unwrap().status());
    assert_eq!(
        statuses.filter(|status| *status == StatusCode::OK).count(),
        2
    );
}

#[tokio::test]
async fn short_refused_posts_leave_their_connection_open() {
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(1))
        .build()
        .unwrap();
    let router = Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
    let server = servers::axum(router.layer(stack)).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    for n in 0..20 {
        let post = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nten bytes!";
        client.send(post).await.unwrap();
        let head = client.head().await.unwrap();
        let expected = if n == 0 {
            StatusCode::OK
        } else {
            StatusCode::TOO_MANY_REQUESTS
        };
        assert_eq!(head.status, expected, "request {n}");
        assert_eq!(head.header("connection"), None);
        let length = head.header("content-length").unwrap().parse().unwrap();
        client.body(length).await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_post_with_an_incomplete_body_closes_its_connection() {
    let stack = Stack::edge().max_body(5).build().unwrap();
    let router = Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
    let server = servers::axum(router.layer(stack)).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    client
        .send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(
        client.head().await.unwrap().status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(client.rest().await, b"body too large");
}

#[tokio::test]
async fn the_body_of_a_refused_post_with_expect_100_continue_is_not_read() {
    let stack = Stack::edge().max_body(5).build().unwrap();
    let router = Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
    let server = servers::axum(router.layer(stack)).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n";
    client.send(head).await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(head.header("connection"), Some("close"));
}

#[tokio::test]
async fn the_response_to_a_refused_head_request_has_the_length_of_a_get_and_no_body() {
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(1))
        .build()
        .unwrap();
    let single = RateLimitLayer::new(Quota::per_hour(1)).unwrap();
    let request = |method: Method| {
        let request = Request::builder().method(method).version(Version::HTTP_2);
        from_client(request.body(Empty::<Bytes>::new()).unwrap())
    };
    let (mut stacked, mut single) = (
        stack.layer(service_fn(hello)),
        single.layer(service_fn(hello)),
    );
    stacked
        .ready()
        .await
        .unwrap()
        .call(request(Method::GET))
        .await
        .unwrap();
    single
        .ready()
        .await
        .unwrap()
        .call(request(Method::GET))
        .await
        .unwrap();
    let get = stacked.call(request(Method::GET)).await.unwrap();
    let length = get.body().size_hint().exact().unwrap();
    let head = stacked.call(request(Method::HEAD)).await.unwrap();
    assert_eq!(head.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(head.headers()[header::CONTENT_LENGTH], length.to_string());
    assert!(head.body().is_end_stream());
    let head = single.call(request(Method::HEAD)).await.unwrap();
    assert_eq!(head.headers()[header::CONTENT_LENGTH], length.to_string());
    assert!(head.body().is_end_stream());
}

#[tokio::test]
async fn a_refused_head_request_over_http2_is_not_a_protocol_error() {
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(1))
        .build()
        .unwrap();
    let server = servers::axum(Router::new().route("/", get(async || "hello")).layer(stack)).await;
    let mut sender = clients::http2(LOCALHOST, server.addr).await.unwrap();
    for status in [
        StatusCode::OK,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::TOO_MANY_REQUESTS,
    ] {
        let request = Request::head(server.url())
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let response = clients::whole(sender.send_request(request).await.unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), status);
        assert!(response.body().is_empty());
    }
}

#[tokio::test]
async fn the_body_of_a_refused_request_causes_no_further_violation() {
    let journal = Journal::default();
    let stack = Stack::edge()
        .max_body(5)
        .metrics(journal.clone())
        .build()
        .unwrap();
    stack.concurrency_limit().set_limit(0);
    let service = stack.layer(service_fn(hello));
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for _ in 0..50 {
            let (sender, body) = upload(20).await;
            let request = Request::post("/").version(version).body(body).unwrap();
            let response = service.clone().oneshot(from_client(request)).await.unwrap();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            drop(sender);
        }
    }
    sleep(Duration::from_millis(200)).await;
    assert_eq!(
        journal.refused(),
        [(Guard::ConcurrencyLimit, Reason::Full); 100]
    );
    assert_eq!(journal.cut(), []);
}
