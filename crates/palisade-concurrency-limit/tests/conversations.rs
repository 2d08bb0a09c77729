//! Requests whose two bodies go both ways, perhaps in two tasks: which hold a permit, which wait,
//! which are evicted.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;
use http_body::Body as _;
use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Context, Wake},
};

/// As in gRPC both ways: a task reads the request, and what comes goes into the answer.
fn bidi() -> Handler {
    handler(|request: Request<Inner>| {
        let (mut sender, answer) = channel();
        let mut body = request.into_body();
        async move {
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    if sender.send_data(frame.into_data().unwrap()).await.is_err() {
                        return;
                    }
                }
            });
            // The reader comes first to its client.
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            Response::new(answer)
        }
    })
}

#[tokio::test(start_paused = true)]
async fn both_halves_of_a_conversation_are_woken() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (talk, slow) = (layer.layer(bidi()), layer.layer(gate.handler()));
    let (mut sender, body) = channel();
    let response = call(&talk, post(body)).await.unwrap();
    settle().await; // The reader waits for its client: no permit is held.
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(0));
    let other = send(&slow, get());
    settle().await; // The only permit is taken.
    let mut answer = response.into_body();
    let echoed = tokio::spawn(async move {
        let f = answer.frame().await;
        (f, answer)
    });
    settle().await; // The answer's reader stands in line ...
    sender.send_data(Bytes::from("ping")).await.unwrap();
    settle().await; // ... and so does the request's.
    gate.open_one();
    assert_eq!(other.await.unwrap().0, 200);
    let done = tokio::time::timeout(Duration::from_secs(3600), echoed).await;
    assert!(
        done.is_ok(),
        "the answer is never woken; working {:?}",
        journal.level(GUARD, Gauge::Working)
    );
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_has_come_is_handed_on_when_the_head_is_out() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (talk, slow) = (layer.layer(bidi()), layer.layer(gate.handler()));
    let (mut sender, body) = channel();
    let response = call(&talk, post(body)).await.unwrap();
    settle().await;
    let other = send(&slow, get());
    settle().await;
    sender.send_data(Bytes::from("ping")).await.unwrap();
    settle().await; // The request's reader stands in line first, then the answer's.
    let mut answer = response.into_body();
    let echoed = tokio::spawn(async move {
        let f = answer.frame().await;
        (f, answer)
    });
    settle().await;
    gate.open_one();
    assert_eq!(other.await.unwrap().0, 200);
    let done = tokio::time::timeout(Duration::from_secs(3600), echoed).await;
    assert!(
        done.is_ok(),
        "stuck; working {:?}",
        journal.level(GUARD, Gauge::Working)
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_conversation_holds_no_permit() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (talk, other) = (layer.layer(bidi()), layer.layer(reader()));
    let (_sender, body) = channel();
    let response = call(&talk, post(body)).await.unwrap();
    settle().await; // The reader waits for its client ...
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(0));
    let mut answer = response.into_body();
    let _talking = tokio::spawn(async move {
        drop(answer.frame().await);
    });
    settle().await; // ... and hyper asks for the answer, which waits for the reader.
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(send(&other, get()).await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_its_answer_holds_no_permit_whatever_it_sends() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let (talk, other) = (layer.layer(bidi()), layer.layer(reader()));
    let (mut sender, body) = channel();
    let mut response = call(&talk, post(body)).await.unwrap();
    sender.send_data(Bytes::from("one")).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(0)); // Nobody asks for more.
    sender.send_data(Bytes::from("two")).await.unwrap();
    drop(sender); // The upload is over; the answer is still not read.
    settle().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(send(&other, get()).await.unwrap().0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_displaced_body_fails_once_and_is_then_at_its_end() {
    let layer = ConcurrencyLimitLayer::new(1).present(1);
    let (result, mut results) = mpsc::unbounded_channel();
    // Read in a task of its own, or the response future would drop it first.
    let spawning = layer.layer(handler(move |request: Request<Inner>| {
        let result = result.clone();
        let read = async move {
            let mut body = request.into_body();
            let mut errors = 0;
            while errors < 1000
                && let Some(frame) = body.frame().await
            {
                errors += usize::from(frame.is_err());
            }
            result.send(errors).unwrap();
        };
        async move {
            tokio::spawn(read).await.unwrap();
            Response::new(full("read"))
        }
    }));
    let (_sender, body) = channel();
    let upload = send(&spawning, post(body));
    settle().await;
    assert_eq!(send(&layer.layer(reader()), get()).await.unwrap().0, 200);
    assert_eq!(upload.await.unwrap().0, 408);
    assert_eq!(results.recv().await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn who_makes_progress_outlives_who_drips() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(2)
        .present(16)
        .metrics(journal.clone());
    let service = layer.layer(reader());
    let mut drips = tokio::task::JoinSet::new();
    for number in 0..15 {
        let (mut sender, body) = channel();
        let upload = send(&service, post(body));
        drips.spawn(async move {
            tokio::time::sleep(Duration::from_millis(number * 60)).await;
            while sender.send_data(Bytes::from("x")).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            upload.await.unwrap().0
        });
    }
    let (mut sender, body) = channel();
    let honest = send(&service, post(body));
    tokio::spawn(async move {
        for _ in 0..20 {
            // 64 KiB every three seconds: 21 KiB/s.
            if sender.send_data(Bytes::from(vec![0; 65536])).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    });
    // One honest newcomer every two seconds.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(send(&service, get()).await.unwrap());
        assert!(
            !honest.is_finished(),
            "evicted while {:?} drippers wait",
            journal.level(GUARD, Gauge::Waiting)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_displaced_body_stays_displaced_when_its_request_is_over() {
    let layer = ConcurrencyLimitLayer::new(1).present(1);
    let (keep, mut kept) = mpsc::unbounded_channel();
    let upload = layer.layer(handler(move |request: Request<Inner>| {
        let keep = keep.clone();
        async move {
            let mut body = request.into_body();
            assert!(body.frame().now_or_never().is_none()); // Waits for its client ...
            keep.send(body).unwrap(); // ... and is read elsewhere from here on.
            std::future::pending::<Answer>().await
        }
    }));
    let (mut sender, body) = channel();
    let mut first = Box::pin(call(&upload, post(body)));
    assert!(first.as_mut().now_or_never().is_none());
    drop(call(&layer.layer(reader()), get()).await.unwrap());
    let response = first.as_mut().now_or_never().unwrap().unwrap();
    assert_eq!(response.status(), 408);
    drop((first, response));
    sender.send_data(Bytes::from("drip")).await.unwrap();
    let mut body = kept.recv().await.unwrap();
    let frame = body.frame().await.unwrap();
    assert!(frame.is_err(), "408 was said, and the body is read on");
}

#[tokio::test(start_paused = true)]
async fn a_cut_says_whose_it_was_and_ends_grpc_with_trailers() {
    use palisade_core::{ConnInfo, Event, Metrics, Prefix};
    #[derive(Default)]
    struct Seen(Mutex<Vec<Option<u64>>>);
    impl Metrics for Seen {
        fn record(&self, event: &Event<'_>) {
            if let Event::Cut { conn, .. } = event {
                self.0.lock().push(conn.map(ConnInfo::id));
            }
        }
    }
    let seen = Arc::new(Seen::default());
    let layer = ConcurrencyLimitLayer::new(1)
        .present(1)
        .metrics(seen.clone());
    let service = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        sender.send_data(Bytes::from("piece")).await.ok();
        std::mem::forget(sender);
        Response::new(body)
    }));
    let conn = ConnInfo::new("192.0.2.1:1".parse().unwrap(), None, Prefix::default());
    let mut request = Request::post("/")
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .body(full(""))
        .unwrap();
    *request.body_mut() = Empty::new().map_err(|never| match never {}).boxed();
    request.extensions_mut().insert(conn.clone());
    let mut unread = call(&service, request).await.unwrap();
    unread.body_mut().frame().await.unwrap().unwrap();
    drop(call(&service, get()).await.unwrap());
    let last = unread.body_mut().frame().await.unwrap();
    let trailers = last.is_ok_and(|frame| frame.is_trailers());
    assert_eq!(
        (seen.0.lock().clone(), trailers),
        (vec![Some(conn.id())], true)
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_ready_is_not_thrown_away_where_its_request_was_displaced() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(1)
        .present(1)
        .metrics(journal.clone());
    // Waits for its client for a moment and goes on without it, though it keeps the body.
    let impatient = layer.layer(handler(|request: Request<Inner>| async {
        let mut body = request.into_body();
        assert!(body.frame().now_or_never().is_none());
        tokio::time::sleep(Duration::from_secs(1)).await;
        Response::new(full("enough"))
    }));
    let (_sender, body) = channel();
    let mut first = Box::pin(call(&impatient, post(body)));
    assert!(first.as_mut().now_or_never().is_none());
    drop(call(&layer.layer(reader()), get()).await.unwrap());
    advance(Duration::from_secs(2)).await;
    // Nobody asked the body since, and so nobody was told.
    let response = first.as_mut().now_or_never().unwrap().unwrap();
    drop(first);
    assert_eq!(
        (response.status().as_u16(), journal.refused()),
        (200, vec![])
    );
    drop(response);
    at_rest(&journal);
}

/// A conversation in gRPC whose client was silent for `silence`. How many requests are at work a
/// second after a message of it came, on which the handler works for an hour.
async fn at_work_on_a_message_after(silence: Duration) -> Option<u64> {
    let journal = Journal::default();
    // Slots are short at once.
    let layer = ConcurrencyLimitLayer::new(1).metrics(journal.clone());
    let talk = layer.layer(handler(|request: Request<Inner>| async {
        let (mut sender, answer) = channel();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                sender.send_data(frame.into_data().unwrap()).await.ok();
            }
        });
        let mut response = Response::new(answer);
        response
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        response
    }));
    let (mut sender, body) = channel();
    let mut request = post(body);
    *request.version_mut() = http::Version::HTTP_2;
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let mut answer = call(&talk, request).await.unwrap().into_body();
    let reading = tokio::spawn(async move { answer.frame().await.is_some() });
    settle().await;
    tokio::time::sleep(silence).await;
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(0));
    sender.send_data(Bytes::from("message")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let working = journal.level(GUARD, Gauge::Working);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(journal.level(GUARD, Gauge::Working), working);
    drop(sender);
    assert!(reading.await.unwrap());
    working
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_silent_for_long_gets_no_work_for_nothing() {
    for silence in [1, 6, 600] {
        let working = at_work_on_a_message_after(Duration::from_secs(silence)).await;
        assert_eq!(working, Some(1), "after {silence} s");
    }
}

/// A task that counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_nothing_to_give_does_not_wake_itself_beside_a_queue() {
    let layer = ConcurrencyLimitLayer::new(1).queue(5, Duration::from_secs(60));
    let service = layer.layer(bidi());
    let (client, body) = channel();
    let mut answer = call(&service, post(body)).await.unwrap().into_body();
    settle().await;
    let wakes = Arc::new(Wakes::default());
    let waker = wakes.clone().into();
    let mut cx = Context::from_waker(&waker);
    assert!(Pin::new(&mut answer).poll_frame(&mut cx).is_pending());
    assert_eq!(layer.handle().working(), 0);
    // It may have a permit, and the newcomer in the queue may not.
    layer.handle().set_limit(0);
    let newcomer = send(&service, get());
    settle().await;
    for _ in 0..100 {
        assert!(Pin::new(&mut answer).poll_frame(&mut cx).is_pending());
    }
    // Once as the permits that are kept are recalled.
    assert!(
        wakes.0.load(SeqCst) <= 1,
        "woken {} times",
        wakes.0.load(SeqCst)
    );
    drop((client, answer));
    layer.handle().set_limit(1);
    assert_eq!(newcomer.await.unwrap().0, StatusCode::OK);
}
