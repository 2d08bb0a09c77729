//! Admission of requests, and state left behind by requests that are not admitted.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;

#[tokio::test(start_paused = true)]
async fn present_applies_to_requests_from_the_queue() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1)
        .present(2)
        .queue(4, Duration::from_secs(9))
        .metrics(journal.clone());
    let (slow, uploads) = (layer.layer(gate.handler()), layer.layer(reader()));
    let (mut senders, mut tasks) = (Vec::new(), Vec::new());
    let mut most = 0;
    for _ in 0..10 {
        let working = send(&slow, get());
        settle().await;
        for _ in 0..4 {
            let (sender, body) = channel();
            senders.push(sender);
            tasks.push(send(&uploads, post(body)));
            settle().await;
        }
        gate.open_one();
        assert_eq!(working.await.unwrap().0, 200);
        settle().await;
        most = most.max(journal.gauge(GUARD, Gauge::Waiting).unwrap());
    }
    assert!(most <= 2, "{most} requests wait, but 2 may be present");
}

#[tokio::test(start_paused = true)]
async fn requests_from_the_queue_count_as_admitted() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1)
        .queue(1, Duration::from_secs(9))
        .metrics(journal.clone());
    let slow = layer.layer(gate.handler());
    let both = [send(&slow, get()), send(&slow, get())];
    settle().await;
    gate.open_one();
    settle().await;
    gate.open_one();
    for one in both {
        assert_eq!(one.await.unwrap().0, 200);
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Admitted), Some(2));
}

#[tokio::test(start_paused = true)]
async fn with_a_limit_of_zero_admitted_requests_continue() {
    let layer = ConcurrencyLimitLayer::new(4);
    let download = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        for _ in 0..3 {
            sender.send_data(Bytes::from("piece")).await.ok();
        }
        Response::new(body)
    }));
    let mut response = call(&download, get()).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    layer.handle().set_limit(0);
    let rest =
        tokio::time::timeout(Duration::from_secs(3600), response.into_body().collect()).await;
    assert!(rest.is_ok(), "the download hangs");
}

#[test]
fn no_waker_is_dropped_while_a_lock_is_held() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        struct Task(Mutex<Option<Box<dyn std::any::Any + Send>>>);
        impl std::task::Wake for Task {
            fn wake(self: Arc<Self>) {}
        }
        let layer = ConcurrencyLimitLayer::new(4);
        let service = layer.layer(reader());
        let (_s1, b1) = channel();
        let (_s2, b2) = channel();
        let mut first: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(call(&service, post(b1)));
        let second = Box::pin(call(&service, post(b2)));
        let task = Arc::new(Task(Mutex::new(None)));
        let waker = std::task::Waker::from(task.clone());
        let mut second: Pin<Box<dyn Future<Output = Result<GuardedResponse, Infallible>> + Send>> =
            second;
        assert!(
            first
                .as_mut()
                .poll(&mut std::task::Context::from_waker(&waker))
                .is_pending()
        );
        assert!(
            second
                .as_mut()
                .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
                .is_pending()
        );
        *task.0.lock() = Some(Box::new(second));
        drop((task, waker));
        drop(_s1); // The sender, which stands for hyper, drops its waker.
        drop(first);
        done.send(()).unwrap();
    });
    finished
        .recv_timeout(Duration::from_secs(5))
        .expect("deadlock");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_predicate_leaves_no_count_behind() {
    let gate = Gate::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .per_client(2)
        .reserve(1, |head| {
            panic!("no such header: {:?}", head.headers.get("x").unwrap())
        });
    let service = layer.layer(gate.handler());
    let first = send(&service, from_client("192.0.2.1", get()));
    settle().await;
    for _ in 0..2 {
        send(&service, from_client("192.0.2.1", get()))
            .await
            .unwrap_err();
    }
    gate.open_one();
    assert_eq!(first.await.unwrap().0, 200);
    let again = send(&service, from_client("192.0.2.1", get()));
    settle().await;
    if gate.started() == 1 {
        gate.open_one();
    }
    assert_eq!(again.await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn one_address_cannot_take_the_last_tenth_even_if_requests_are_quick() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(40)
        .fairness()
        .metrics(journal.clone());
    let service = layer.layer(handler(|request: Request<HandlerRequestBody>| async move {
        let slow = request.uri().path() == "/slow";
        tokio::time::sleep(if slow {
            Duration::from_secs(10)
        } else {
            Duration::from_millis(5)
        })
        .await;
        Response::new(full("worked"))
    }));
    let slow = || Request::get("/slow").body(full("")).unwrap();
    let fast = || {
        Request::get("/fast")
            .body(Empty::new().map_err(|never| match never {}).boxed())
            .unwrap()
    };
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(send(&service, from_client("198.51.100.1", slow())));
    }
    settle().await;
    // Other clients send quick requests.
    for n in 0..200 {
        drop(
            send(&service, from_client(&format!("203.0.113.{n}"), fast()))
                .await
                .unwrap(),
        );
    }
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tasks.push(send(&service, from_client("198.51.100.1", slow())));
    }
    settle().await;
    let working = journal.gauge(GUARD, Gauge::Working);
    let honest = send(&service, from_client("192.0.2.1", fast()))
        .await
        .unwrap()
        .0;
    assert_eq!(honest, 200, "one address holds {working:?} of 40 permits");
}

#[tokio::test(start_paused = true)]
async fn a_download_admitted_before_an_attack_continues_while_the_last_tenth_is_free() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .fairness()
        .metrics(journal.clone());
    let (slow, download) = (
        layer.layer(gate.handler()),
        layer.layer(handler(|_| async {
            let (mut sender, body) = channel();
            for _ in 0..3 {
                sender.send_data(Bytes::from("piece")).await.ok();
            }
            Response::new(body)
        })),
    );
    // The mean request takes one second.
    for _ in 0..40 {
        let usual: Vec<_> = (0..5)
            .map(|n| send(&slow, from_client(&format!("203.0.113.{n}"), get())))
            .collect();
        settle().await;
        advance(Duration::from_secs(1)).await;
        for one in usual {
            gate.open_one();
            assert_eq!(one.await.unwrap().0, 200);
        }
    }
    let mut usual: Vec<_> = (0..5)
        .map(|n| send(&slow, from_client(&format!("203.0.113.{n}"), get())))
        .collect();
    for _ in 0..60 {
        usual.push(send(&slow, from_client("203.0.113.9", get())));
        settle().await;
        advance(Duration::from_secs(1)).await;
        gate.open_one();
        settle().await;
    }
    while gate.started() > 0 {
        gate.open_one();
        settle().await;
    }
    advance(Duration::from_secs(120)).await;
    let mut honest = call(&download, from_client("192.0.2.1", get()))
        .await
        .unwrap();
    honest.body_mut().frame().await.unwrap().unwrap();
    let _attack: Vec<_> = (0..30)
        .map(|_| send(&slow, from_client("198.51.100.1", get())))
        .collect();
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(9)); // One light-only permit is free.
    // A new request from the same address is served ...
    assert_eq!(
        call(&download, from_client("192.0.2.1", get()))
            .await
            .unwrap()
            .status(),
        200
    );
    // ... and so is the download admitted earlier.
    let next = tokio::time::timeout(Duration::from_secs(60), honest.body_mut().frame()).await;
    assert!(next.is_ok(), "the download stalls during the attack");
}

#[tokio::test(start_paused = true)]
async fn a_queued_light_request_does_not_wait_for_heavy_ones() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .fairness()
        .queue(8, Duration::from_secs(9));
    let service = layer.metrics(journal.clone()).layer(gate.handler());
    let mut tasks = Vec::new();
    // Nine permits are taken and the last one is light-only. The client that holds nine is heavy.
    for _ in 0..12 {
        tasks.push(send(&service, from_client("198.51.100.1", get())));
        settle().await;
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(9));
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(3));
    tasks.push(send(&service, from_client("192.0.2.1", get())));
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(10));
    // Another light request is queued, and comes before the heavy ones queued earlier.
    let light = send(&service, from_client("192.0.2.2", get()));
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(4));
    gate.open_one();
    settle().await;
    assert_eq!(
        (gate.started(), journal.gauge(GUARD, Gauge::Queued)),
        (10, Some(3))
    );
    while gate.started() > 0 {
        gate.open_one();
        settle().await;
    }
    assert_eq!(light.await.unwrap().0, 200);
    for task in tasks {
        assert_eq!(task.await.unwrap().0, 200);
    }
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn options_apply_to_the_layer_they_are_called_on_and_not_to_its_clones() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let plain = ConcurrencyLimitLayer::new(10).metrics(journal.clone());
    let fair = plain.clone().fairness().layer(gate.handler());
    let few = plain.clone().present(3).layer(gate.handler());
    let predicate = |head: &palisade_core::RequestHead<'_>| head.headers.contains_key("probe");
    let reserve = plain.clone().reserve(1, predicate).layer(gate.handler());
    let plain = plain.layer(gate.handler());
    let probe = || {
        let mut request = get();
        request.headers_mut().insert("probe", "1".parse().unwrap());
        request
    };
    let mut tasks = Vec::new();
    let mut working = 0;
    let mut is_admitted = async |service: &Guarded, request: Request<Body>| {
        let task = send(service, from_client("198.51.100.1", request));
        settle().await;
        let was_admitted = !task.is_finished();
        tasks.push(task);
        working += u64::from(was_admitted);
        assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(working));
        was_admitted
    };
    for _ in 0..3 {
        assert!(is_admitted(&few, get()).await);
    }
    assert!(!is_admitted(&few, get()).await, "at most three are present");
    for _ in 3..9 {
        assert!(is_admitted(&fair, get()).await);
    }
    assert!(
        !is_admitted(&fair, get()).await,
        "the last permit is light-only"
    );
    assert!(is_admitted(&plain, get()).await);
    assert!(!is_admitted(&plain, probe()).await);
    assert!(is_admitted(&reserve, probe()).await);
    assert!(!is_admitted(&reserve, probe()).await);
    while gate.started() > 0 {
        gate.open_one();
        settle().await;
    }
    for task in tasks {
        drop(task.await.unwrap());
    }
    assert_none_present(&journal);
}

#[test]
fn a_handle_records_to_metrics_set_after_it_was_created() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(10);
    let handle = layer.handle();
    let _layer = layer.metrics(journal.clone());
    handle.set_limit(5);
    assert_eq!(journal.limits(), [(GUARD, 5)]);
}
