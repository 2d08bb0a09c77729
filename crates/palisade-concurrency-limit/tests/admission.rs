//! Who is let in, and what stays behind of those who are not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;

#[tokio::test(start_paused = true)]
async fn present_holds_for_those_from_the_queue() {
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
        most = most.max(journal.level(GUARD, Gauge::Waiting).unwrap());
    }
    assert!(most <= 2, "{most} wait where 2 may be present");
}

#[tokio::test(start_paused = true)]
async fn those_from_the_queue_count_as_admitted() {
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
    assert_eq!(journal.level(GUARD, Gauge::Admitted), Some(2));
}

#[tokio::test(start_paused = true)]
async fn with_a_limit_of_zero_whoever_was_let_in_goes_on() {
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
fn no_waker_is_dropped_under_a_lock() {
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
        let mut second: Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>> = second;
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
        drop(_s1); // hyper's side lets go of its waker.
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
    let first = send(&service, from("192.0.2.1", get()));
    settle().await;
    for _ in 0..2 {
        send(&service, from("192.0.2.1", get())).await.unwrap_err();
    }
    gate.open_one();
    assert_eq!(first.await.unwrap().0, 200);
    let again = send(&service, from("192.0.2.1", get()));
    settle().await;
    if gate.started() == 1 {
        gate.open_one();
    }
    assert_eq!(again.await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn one_address_cannot_have_the_last_tenth_where_requests_are_quick() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(40)
        .fairness()
        .metrics(journal.clone());
    let service = layer.layer(handler(|request: Request<Inner>| async move {
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
        tasks.push(send(&service, from("198.51.100.1", slow())));
    }
    settle().await;
    // Others do what everybody does here.
    for n in 0..200 {
        drop(
            send(&service, from(&format!("203.0.113.{n}"), fast()))
                .await
                .unwrap(),
        );
    }
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tasks.push(send(&service, from("198.51.100.1", slow())));
    }
    settle().await;
    let working = journal.level(GUARD, Gauge::Working);
    let honest = send(&service, from("192.0.2.1", fast())).await.unwrap().0;
    assert_eq!(honest, 200, "one address holds {working:?} of 40");
}

#[tokio::test(start_paused = true)]
async fn a_download_begun_in_quiet_times_goes_on_while_the_last_tenth_is_free() {
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
    // Requests usually take a second here.
    for _ in 0..40 {
        let usual: Vec<_> = (0..5)
            .map(|n| send(&slow, from(&format!("203.0.113.{n}"), get())))
            .collect();
        settle().await;
        advance(Duration::from_secs(1)).await;
        for one in usual {
            gate.open_one();
            assert_eq!(one.await.unwrap().0, 200);
        }
    }
    let mut usual: Vec<_> = (0..5)
        .map(|n| send(&slow, from(&format!("203.0.113.{n}"), get())))
        .collect();
    for _ in 0..60 {
        usual.push(send(&slow, from("203.0.113.9", get())));
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
    let mut honest = call(&download, from("192.0.2.1", get())).await.unwrap();
    honest.body_mut().frame().await.unwrap().unwrap();
    let _attack: Vec<_> = (0..30)
        .map(|_| send(&slow, from("198.51.100.1", get())))
        .collect();
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(9)); // One permit is free, for the light.
    // A newcomer from the same address is served ...
    assert_eq!(
        call(&download, from("192.0.2.1", get()))
            .await
            .unwrap()
            .status(),
        200
    );
    // ... and the download that was here first?
    let next = tokio::time::timeout(Duration::from_secs(60), honest.body_mut().frame()).await;
    assert!(next.is_ok(), "frozen for as long as the attack lasts");
}

#[tokio::test(start_paused = true)]
async fn a_light_newcomer_in_the_queue_need_not_wait_for_the_heavy() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .fairness()
        .queue(8, Duration::from_secs(9));
    let service = layer.metrics(journal.clone()).layer(gate.handler());
    let mut tasks = Vec::new();
    // Nine permits are taken, and the last is for the light: the client of nine is not.
    for _ in 0..12 {
        tasks.push(send(&service, from("198.51.100.1", get())));
        settle().await;
    }
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(9));
    assert_eq!(journal.level(GUARD, Gauge::Queued), Some(3));
    tasks.push(send(&service, from("192.0.2.1", get())));
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(10));
    // Another light one waits, and comes before those who were here first.
    let light = send(&service, from("192.0.2.2", get()));
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Queued), Some(4));
    gate.open_one();
    settle().await;
    assert_eq!(
        (gate.started(), journal.level(GUARD, Gauge::Queued)),
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
    at_rest(&journal);
}

#[tokio::test(start_paused = true)]
async fn options_hold_for_the_layer_they_are_called_on_and_not_for_its_clones() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let plain = ConcurrencyLimitLayer::new(10).metrics(journal.clone());
    let fair = plain.clone().fairness().layer(gate.handler());
    let few = plain.clone().present(3).layer(gate.handler());
    let picks = |head: &palisade_core::RequestHead<'_>| head.headers.contains_key("probe");
    let reserve = plain.clone().reserve(1, picks).layer(gate.handler());
    let plain = plain.layer(gate.handler());
    let probe = || {
        let mut request = get();
        request.headers_mut().insert("probe", "1".parse().unwrap());
        request
    };
    let mut tasks = Vec::new();
    let mut working = 0;
    let mut try_on = async |service: &Guarded, request: Request<Body>| {
        let task = send(service, from("198.51.100.1", request));
        settle().await;
        let is_admitted = !task.is_finished();
        tasks.push(task);
        working += u64::from(is_admitted);
        assert_eq!(journal.level(GUARD, Gauge::Working), Some(working));
        is_admitted
    };
    for _ in 0..3 {
        assert!(try_on(&few, get()).await);
    }
    assert!(!try_on(&few, get()).await, "no more than three");
    for _ in 3..9 {
        assert!(try_on(&fair, get()).await);
    }
    assert!(!try_on(&fair, get()).await, "the last is for the light");
    assert!(try_on(&plain, get()).await);
    assert!(!try_on(&plain, probe()).await);
    assert!(try_on(&reserve, probe()).await);
    assert!(!try_on(&reserve, probe()).await);
    while gate.started() > 0 {
        gate.open_one();
        settle().await;
    }
    for task in tasks {
        drop(task.await.unwrap());
    }
    at_rest(&journal);
}

#[test]
fn a_handle_tells_the_metrics_that_come_after_it() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(10);
    let handle = layer.handle();
    let _layer = layer.metrics(journal.clone());
    handle.set_limit(5);
    assert_eq!(journal.limits(), [(GUARD, 5)]);
}
