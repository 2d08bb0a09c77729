//! Fairness applies to queued requests too, and leaves some permits to a shared address.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const LIMIT: usize = 40;
const WORK_TIME: Duration = Duration::from_secs(1);

/// The address that many clients share, or that uploads. Every other client has its own address.
const SHARED_ADDRESS: &str = "198.51.100.1";

struct Traffic {
    service: Guarded,
    random: u64,
    count: u32,
}

impl Traffic {
    fn new(layer: &ConcurrencyLimitLayer) -> Self {
        let work = handler(|_| async {
            tokio::time::sleep(WORK_TIME).await;
            Response::new(full("worked"))
        });
        Self {
            service: layer.layer(work),
            random: 1,
            count: 0,
        }
    }

    /// Returns a number between 0 and 1.
    fn random(&mut self) -> f64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Returns the time until the next of `rate` requests per second.
    fn next_interval(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.random()).max(1e-9).ln() / rate)
    }

    /// Returns a request of a client that has sent none before.
    fn new_client_request(&mut self) -> Request<Body> {
        self.count += 1;
        let [_, a, b, c] = self.count.to_be_bytes();
        from_client(&format!("10.{a}.{b}.{c}"), get())
    }
}

/// Returns the percentage of requests served, of [`SHARED_ADDRESS`], which sends 15 % of them, and
/// of all others.
async fn served_percent(layer: ConcurrencyLimitLayer, load: f64) -> (usize, usize) {
    let mut traffic = Traffic::new(&layer);
    // Sent and served, by the shared address and by the others.
    let counts = Arc::new([const { AtomicUsize::new(0) }; 4]);
    for _ in 0..8_000 {
        let pause = traffic.next_interval(load * LIMIT as f64);
        tokio::time::sleep(pause).await;
        let is_shared = traffic.random() < 0.15;
        let request = if is_shared {
            from_client(SHARED_ADDRESS, get())
        } else {
            traffic.new_client_request()
        };
        let (response, counts) = (send(&traffic.service, request), counts.clone());
        tokio::spawn(async move {
            let status = response.await.unwrap().0;
            let at = if is_shared { 0 } else { 2 };
            counts[at].fetch_add(1, Relaxed);
            counts[at + 1].fetch_add(usize::from(status == 200), Relaxed);
        });
    }
    tokio::time::sleep(2 * WORK_TIME).await;
    let count = |at: usize| counts[at].load(Relaxed);
    (count(1) * 100 / count(0), count(3) * 100 / count(2))
}

#[tokio::test(start_paused = true)]
async fn a_shared_address_is_served_under_overload_by_others() {
    for load in [1.05, 1.15] {
        let plain = served_percent(ConcurrencyLimitLayer::new(LIMIT), load).await;
        let fair = served_percent(ConcurrencyLimitLayer::new(LIMIT).fairness(), load).await;
        println!("load {load}: without fairness {plain:?}, with it {fair:?}");
        assert!(fair.0 >= 60 && fair.0 + 20 >= plain.0, "{load}: {fair:?}");
        assert!(
            fair.1 >= plain.1,
            "{load}: {fair:?}, and {plain:?} without fairness"
        );
    }
}

/// Returns the time until `done` has ended, while other clients offer 125 % of the load that can be
/// served.
async fn time_under_overload<T>(traffic: &mut Traffic, mut done: JoinHandle<T>) -> Duration {
    let begin = tokio::time::Instant::now();
    loop {
        let pause = traffic.next_interval(1.25 * LIMIT as f64);
        tokio::select! {
            biased;
            one = &mut done => {
                one.unwrap();
                return begin.elapsed();
            }
            () = tokio::time::sleep(pause) => {
                let request = traffic.new_client_request();
                drop(send(&traffic.service, request));
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(600), "not done");
    }
}

/// Makes `SHARED_ADDRESS` heavy: it has two more requests at work.
async fn make_heavy(traffic: &mut Traffic, service: &Guarded) -> tokio::task::AbortHandle {
    for _ in 0..3 * LIMIT {
        let request = traffic.new_client_request();
        drop(send(&traffic.service, request));
        let pause = traffic.next_interval(1.25 * LIMIT as f64);
        tokio::time::sleep(pause).await;
    }
    let service = service.clone();
    tokio::spawn(async move {
        loop {
            let two = [
                send(&service, from_client(SHARED_ADDRESS, get())),
                send(&service, from_client(SHARED_ADDRESS, get())),
            ];
            for one in two {
                drop(one.await.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .abort_handle()
}

#[tokio::test(start_paused = true)]
async fn new_requests_do_not_pass_an_admitted_upload() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(LIMIT)
        .fairness()
        .metrics(journal.clone());
    let mut traffic = Traffic::new(&layer);
    let (mut sender, body) = channel();
    let upload = send(
        &layer.layer(reader()),
        from_client(SHARED_ADDRESS, post(body)),
    );
    settle().await;
    let service = traffic.service.clone();
    let heavy = make_heavy(&mut traffic, &service).await;
    sender.send_data(Bytes::from("bytes")).await.unwrap();
    drop(sender);
    let took = time_under_overload(&mut traffic, upload).await;
    assert!(took <= 2 * WORK_TIME, "{took:?}");
    heavy.abort();
    tokio::time::sleep(3 * WORK_TIME).await;
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_download_that_is_read_continues_beside_new_requests() {
    let layer = ConcurrencyLimitLayer::new(LIMIT).fairness();
    let mut traffic = Traffic::new(&layer);
    let download = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        tokio::spawn(async move {
            for _ in 0..20 {
                sender.send_data(Bytes::from("piece")).await.ok();
            }
        });
        Response::new(body)
    }));
    let mut response = call(&download, from_client(SHARED_ADDRESS, get()))
        .await
        .unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    let service = traffic.service.clone();
    let heavy = make_heavy(&mut traffic, &service).await;
    let rest = tokio::spawn(response.into_body().collect());
    let took = time_under_overload(&mut traffic, rest).await;
    assert!(took <= 20 * WORK_TIME, "{took:?}");
    heavy.abort();
}

/// A handler that reads the whole body, and responds when the test opens the gate.
fn reads_and_works(gate: &Gate) -> Handler {
    let gate = gate.clone();
    handler(move |request| {
        let gate = gate.clone();
        async move {
            request.into_body().collect().await.unwrap();
            let (sender, receiver) = oneshot::channel();
            gate.0.lock().push(sender);
            receiver.await.ok();
            Response::new(full("read"))
        }
    })
}

/// Opens the gate until all of `requests` are served.
async fn assert_all_served(
    gate: &Gate,
    journal: &Journal,
    requests: Vec<JoinHandle<(StatusCode, Result<Bytes, BoxError>)>>,
) {
    while gate.started() > 0 {
        gate.open_one();
        settle().await;
    }
    for request in requests {
        assert_eq!(request.await.unwrap().0, 200);
    }
    assert_none_present(journal);
}

#[tokio::test(start_paused = true)]
async fn a_queued_upload_that_becomes_heavy_gets_the_next_permit() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .fairness()
        .metrics(journal.clone());
    let slow = layer.layer(gate.handler());
    let reads = layer.layer(reads_and_works(&gate));
    let (mut senders, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (sender, body) = channel();
        senders.push(sender);
        requests.push(send(&reads, from_client(SHARED_ADDRESS, post(body))));
    }
    settle().await;
    requests.extend((0..10).map(|n| send(&slow, from_client(&format!("192.0.2.{n}"), get()))));
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(10));
    // All three are light, because none holds a permit. The third is heavy when its turn comes.
    drop(senders);
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(3));
    for left in (0..3).rev() {
        gate.open_one();
        settle().await;
        assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(left));
    }
    assert_all_served(&gate, &journal, requests).await;
}

#[tokio::test(start_paused = true)]
async fn a_queued_upload_that_becomes_light_gets_a_light_only_permit() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .fairness()
        .metrics(journal.clone());
    let slow = layer.layer(gate.handler());
    let reads = layer.layer(reads_and_works(&gate));
    const OTHER: &str = "198.51.100.2";
    let (mut senders, mut requests) = (Vec::new(), Vec::new());
    for client in [OTHER, SHARED_ADDRESS] {
        let (sender, body) = channel();
        senders.push(sender);
        requests.push(send(&reads, from_client(client, post(body))));
    }
    settle().await;
    // Nine permits are taken, two by each of the uploading clients, which makes both heavy. A light
    // client takes the tenth.
    let mut working: Vec<_> = (0..5).map(|n| format!("192.0.2.{n}")).collect();
    working.extend([OTHER, OTHER, SHARED_ADDRESS, SHARED_ADDRESS, "192.0.2.99"].map(str::to_owned));
    for client in &working {
        requests.push(send(&slow, from_client(client, get())));
        settle().await;
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Working), Some(10));
    for sender in senders {
        drop(sender);
        settle().await;
    }
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(2));
    // The permit that the second client gives back goes to the first request in the queue, which is
    // the other client's.
    gate.0.lock().remove(8).send(()).unwrap();
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(1));
    // The second client holds one permit now, and is light. It takes the permit that the light
    // client gives back.
    gate.0.lock().remove(8).send(()).unwrap();
    settle().await;
    assert_eq!(journal.gauge(GUARD, Gauge::Queued), Some(0));
    assert_all_served(&gate, &journal, requests).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_full_of_new_heavy_requests_does_not_keep_a_light_one_from_free_permits() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let queue = (24, Duration::from_secs(9));
    let layer = ConcurrencyLimitLayer::new(LIMIT)
        .fairness()
        .queue(queue.0, queue.1);
    let slow = layer.metrics(journal.clone()).layer(gate.handler());
    let level = |level| journal.gauge(GUARD, level).unwrap();
    let mut tasks = Vec::new();
    let mut heavy = async |count| {
        for _ in 0..count {
            tasks.push(send(&slow, from_client(SHARED_ADDRESS, get())));
            settle().await;
        }
    };
    heavy(36 + 24).await;
    assert_eq!((level(Gauge::Working), level(Gauge::Queued)), (36, 24));
    let light = |n: u8| send(&slow, from_client(&format!("192.0.2.{n}"), get()));
    let mut others: Vec<_> = (0..4).map(light).collect();
    settle().await;
    assert_eq!(level(Gauge::Working), 40);
    for _ in 0..10 {
        gate.open_one();
        settle().await;
    }
    heavy(queue.0).await;
    assert_eq!((level(Gauge::Working), level(Gauge::Queued)), (36, 24));
    others.push(light(9));
    settle().await;
    assert_eq!((level(Gauge::Working), level(Gauge::Queued)), (37, 24));
    while gate.started() > 0 {
        gate.open_one();
        settle().await;
    }
    for one in others {
        assert_eq!(one.await.unwrap().0, 200);
    }
    for task in tasks {
        drop(task.await.unwrap());
    }
    assert_none_present(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_layer_with_few_present_evicts_no_request_of_a_layer_with_many() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let plain = ConcurrencyLimitLayer::new(LIMIT).metrics(journal.clone());
    let few = plain.clone().present(3).layer(gate.handler());
    let plain = plain.layer(reader());
    let (mut senders, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let (sender, body) = channel();
        senders.push(sender);
        uploads.push(send(&plain, post(body)));
    }
    settle().await;
    assert_eq!(send(&few, get()).await.unwrap().0, 503);
    drop(senders);
    for upload in uploads {
        assert_eq!(upload.await.unwrap().0, 200);
    }
    assert_eq!(journal.refused(), [(GUARD, Reason::Full)]);
    assert_none_present(&journal);
}
