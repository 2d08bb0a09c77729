//! Fairness holds for waiting requests too, and leaves something to a shared address.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
use common::*;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const LIMIT: usize = 40;
const WORK: Duration = Duration::from_secs(1);

/// One who shares an address with many, or uploads; all others come from an address each.
const ONE: &str = "198.51.100.1";

struct Crowd {
    service: Guarded,
    random: u64,
    count: u32,
}

impl Crowd {
    fn new(layer: &ConcurrencyLimitLayer) -> Self {
        let work = handler(|_| async {
            tokio::time::sleep(WORK).await;
            Response::new(full("worked"))
        });
        Self {
            service: layer.layer(work),
            random: 1,
            count: 0,
        }
    }

    /// A number between 0 and 1.
    fn random(&mut self) -> f64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Until the next request comes, where so many come per second.
    fn pause(&mut self, rate: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.random()).max(1e-9).ln() / rate)
    }

    /// A request of somebody who has sent none before.
    fn newcomer(&mut self) -> Request<Body> {
        self.count += 1;
        let [_, a, b, c] = self.count.to_be_bytes();
        from(&format!("10.{a}.{b}.{c}"), get())
    }
}

/// How many of a hundred requests are served, of [`ONE`], which sends 15 % of all, and of the
/// others.
async fn served(layer: ConcurrencyLimitLayer, load: f64) -> (usize, usize) {
    let mut crowd = Crowd::new(&layer);
    // Sent and served, by the one and by the others.
    let counts = Arc::new([const { AtomicUsize::new(0) }; 4]);
    for _ in 0..8_000 {
        let pause = crowd.pause(load * LIMIT as f64);
        tokio::time::sleep(pause).await;
        let is_one = crowd.random() < 0.15;
        let request = if is_one {
            from(ONE, get())
        } else {
            crowd.newcomer()
        };
        let (response, counts) = (send(&crowd.service, request), counts.clone());
        tokio::spawn(async move {
            let status = response.await.unwrap().0;
            let at = if is_one { 0 } else { 2 };
            counts[at].fetch_add(1, Relaxed);
            counts[at + 1].fetch_add(usize::from(status == 200), Relaxed);
        });
    }
    tokio::time::sleep(2 * WORK).await;
    let count = |at: usize| counts[at].load(Relaxed);
    (count(1) * 100 / count(0), count(3) * 100 / count(2))
}

#[tokio::test(start_paused = true)]
async fn a_shared_address_is_served_under_overload_by_others() {
    for load in [1.05, 1.15] {
        let plain = served(ConcurrencyLimitLayer::new(LIMIT), load).await;
        let fair = served(ConcurrencyLimitLayer::new(LIMIT).fairness(), load).await;
        println!("load {load}: without fairness {plain:?}, with it {fair:?}");
        assert!(fair.0 >= 60 && fair.0 + 20 >= plain.0, "{load}: {fair:?}");
        assert!(
            fair.1 >= plain.1,
            "{load}: {fair:?}, and {plain:?} without fairness"
        );
    }
}

/// How long it takes until what `ONE` waits for is done, while others offer 125 % of what can be
/// served.
async fn beside_overload<T>(crowd: &mut Crowd, mut done: JoinHandle<T>) -> Duration {
    let begin = tokio::time::Instant::now();
    loop {
        let pause = crowd.pause(1.25 * LIMIT as f64);
        tokio::select! {
            biased;
            one = &mut done => {
                one.unwrap();
                return begin.elapsed();
            }
            () = tokio::time::sleep(pause) => {
                let newcomer = crowd.newcomer();
                drop(send(&crowd.service, newcomer));
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(600), "not done");
    }
}

/// `ONE` has two more requests at work, which makes it heavy.
async fn heavy(crowd: &mut Crowd, service: &Guarded) -> tokio::task::AbortHandle {
    for _ in 0..3 * LIMIT {
        let newcomer = crowd.newcomer();
        drop(send(&crowd.service, newcomer));
        let pause = crowd.pause(1.25 * LIMIT as f64);
        tokio::time::sleep(pause).await;
    }
    let service = service.clone();
    tokio::spawn(async move {
        loop {
            let two = [
                send(&service, from(ONE, get())),
                send(&service, from(ONE, get())),
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
async fn an_upload_that_was_let_in_is_not_passed_by_newcomers() {
    let journal = Journal::default();
    let layer = ConcurrencyLimitLayer::new(LIMIT)
        .fairness()
        .metrics(journal.clone());
    let mut crowd = Crowd::new(&layer);
    let (mut sender, body) = channel();
    let upload = send(&layer.layer(reader()), from(ONE, post(body)));
    settle().await;
    let service = crowd.service.clone();
    let heavy = heavy(&mut crowd, &service).await;
    sender.send_data(Bytes::from("bytes")).await.unwrap();
    drop(sender);
    let took = beside_overload(&mut crowd, upload).await;
    assert!(took <= 2 * WORK, "{took:?}");
    heavy.abort();
    tokio::time::sleep(3 * WORK).await;
    at_rest(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_download_that_is_read_goes_on_beside_newcomers() {
    let layer = ConcurrencyLimitLayer::new(LIMIT).fairness();
    let mut crowd = Crowd::new(&layer);
    let download = layer.layer(handler(|_| async {
        let (mut sender, body) = channel();
        tokio::spawn(async move {
            for _ in 0..20 {
                sender.send_data(Bytes::from("piece")).await.ok();
            }
        });
        Response::new(body)
    }));
    let mut response = call(&download, from(ONE, get())).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    let service = crowd.service.clone();
    let heavy = heavy(&mut crowd, &service).await;
    let rest = tokio::spawn(response.into_body().collect());
    let took = beside_overload(&mut crowd, rest).await;
    assert!(took <= 20 * WORK, "{took:?}");
    heavy.abort();
}

/// A handler that reads the whole body and then answers when the test says so.
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

/// Opens the gate until all of `requests` are answered.
async fn ends_well(
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
    at_rest(journal);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_became_heavy_while_it_waits_gets_the_next_permit_all_the_same() {
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
        requests.push(send(&reads, from(ONE, post(body))));
    }
    settle().await;
    requests.extend((0..10).map(|n| send(&slow, from(&format!("192.0.2.{n}"), get()))));
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(10));
    // All three are light, as none of them has a permit; the third is not when it is its turn.
    drop(senders);
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Queued), Some(3));
    for left in (0..3).rev() {
        gate.open_one();
        settle().await;
        assert_eq!(journal.level(GUARD, Gauge::Queued), Some(left));
    }
    ends_well(&gate, &journal, requests).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_became_light_while_it_waits_gets_a_permit_of_the_reserve() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let layer = ConcurrencyLimitLayer::new(10)
        .fairness()
        .metrics(journal.clone());
    let slow = layer.layer(gate.handler());
    let reads = layer.layer(reads_and_works(&gate));
    const OTHER: &str = "198.51.100.2";
    let (mut senders, mut requests) = (Vec::new(), Vec::new());
    for client in [OTHER, ONE] {
        let (sender, body) = channel();
        senders.push(sender);
        requests.push(send(&reads, from(client, post(body))));
    }
    settle().await;
    // Nine permits are taken, two by each of the clients that upload: both are heavy. The tenth is
    // taken by a light one.
    let mut working: Vec<_> = (0..5).map(|n| format!("192.0.2.{n}")).collect();
    working.extend([OTHER, OTHER, ONE, ONE, "192.0.2.99"].map(str::to_owned));
    for client in &working {
        requests.push(send(&slow, from(client, get())));
        settle().await;
    }
    assert_eq!(journal.level(GUARD, Gauge::Working), Some(10));
    for sender in senders {
        drop(sender);
        settle().await;
    }
    assert_eq!(journal.level(GUARD, Gauge::Queued), Some(2));
    // What one of the two frees is for the first in line, which is the other's.
    gate.0.lock().remove(8).send(()).unwrap();
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Queued), Some(1));
    // The second holds one permit now, and is light. It gets what the light one frees.
    gate.0.lock().remove(8).send(()).unwrap();
    settle().await;
    assert_eq!(journal.level(GUARD, Gauge::Queued), Some(0));
    ends_well(&gate, &journal, requests).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_full_of_heavy_newcomers_does_not_keep_a_light_one_from_free_permits() {
    let (journal, gate) = (Journal::default(), Gate::default());
    let queue = (24, Duration::from_secs(9));
    let layer = ConcurrencyLimitLayer::new(LIMIT)
        .fairness()
        .queue(queue.0, queue.1);
    let slow = layer.metrics(journal.clone()).layer(gate.handler());
    let level = |level| journal.level(GUARD, level).unwrap();
    let mut tasks = Vec::new();
    let mut heavy = async |count| {
        for _ in 0..count {
            tasks.push(send(&slow, from(ONE, get())));
            settle().await;
        }
    };
    heavy(36 + 24).await;
    assert_eq!((level(Gauge::Working), level(Gauge::Queued)), (36, 24));
    let light = |n: u8| send(&slow, from(&format!("192.0.2.{n}"), get()));
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
    at_rest(&journal);
}

#[tokio::test(start_paused = true)]
async fn a_layer_with_few_present_takes_nothing_from_one_with_many() {
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
    at_rest(&journal);
}
