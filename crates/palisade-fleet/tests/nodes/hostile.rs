//! Stores that lie. The worst that comes of it: a node refuses for a while, or admits within its
//! own limit.

use crate::{
    false_redis::{FalseRedis, Reply, accounts, honest, numbers},
    node::{Flood, Node},
    status,
};
use palisade_core::{Gauge, Guard};
use palisade_fleet::{
    Answer, Answers, Batch, Fleet, MemoryStore, OnFailure, QuotaStore, StoreError,
};
use palisade_rate_limit::Quota;
use palisade_testkit::clients::wait_until;
use parking_lot::Mutex;
use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};

const LIMIT: u32 = 40;

fn quota() -> Quota {
    Quota::per_minute(LIMIT)
}

/// Returns what a client may send to one node in so long.
fn at_most(took: Duration) -> u32 {
    LIMIT + (f64::from(LIMIT) / 60.0 * took.as_secs_f64()).ceil() as u32
}

/// The requests of one client to a node whose Redis answers commands that begin with `which` so.
/// Returns the node.
async fn attack<F>(name: &str, which: &'static str, reply: F) -> Node
where
    F: Fn(&[Vec<u8>]) -> Reply + Clone + Send + Sync + 'static,
{
    let redis = FalseRedis::start(which, reply);
    let builder = Fleet::redis(redis.url()).unwrap();
    let node = [Node::start(builder, 4, quota(), OnFailure::LocalShare(2.0))];
    let first = Flood::of(&node, 1, 60).await;
    sleep(Duration::from_millis(300)).await;
    let second = Flood::of(&node, 1, 60).await;
    let served = first.served + second.served;
    let most = at_most(first.took + Duration::from_millis(300) + second.took);
    assert!(served <= most, "{name}: {first:?} {second:?}");
    assert!(redis.open() <= 2, "{name}: {} connections", redis.open());
    assert!(redis.most() < 1 << 20, "{name}: {} bytes", redis.most());
    let texts = node[0].texts();
    let is_short = texts.len() < 4096 && !texts.contains('\r');
    assert!(is_short, "{name}: {} bytes", texts.len());
    println!(
        "{name}: {served} served, alone: {}, {} failures of {}, the longest wait {:?}",
        node[0].is_alone(),
        node[0].gauge(Gauge::FleetFailures),
        node[0].gauge(Gauge::FleetCalls),
        first.longest.max(second.longest),
    );
    let [node] = node;
    node
}

/// A script of Redis whose answer is `answer` for so many accounts.
fn answers(
    answer: impl Fn(usize) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> impl Fn(&[Vec<u8>]) -> Reply + Clone + Send + Sync + 'static {
    move |words| Reply::Bytes(answer(accounts(words)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn numbers_that_cannot_be_true_admit_no_more_than_the_limit_of_the_node() {
    let cases = [
        ("9223372036854775807", "0"),
        ("4294967296", "0"),
        ("4294967295", "0"),
        ("1000", "9223372036854775807"),
        ("0", "9223372036854775807"),
        ("0", "0"),
        ("0", "-1"),
        ("-1", "-9223372036854775808"),
        ("-2", "0"),
        ("-9223372036854775808", "9223372036854775807"),
        ("9223372036854775808", "0"),
        ("1e9", "0"),
        ("", ""),
    ];
    let mut attacks = JoinSet::new();
    for (cells, wait) in cases {
        attacks.spawn(async move {
            let name = format!("grants of {cells} and retries of {wait}");
            attack(&name, "EVAL", answers(move |it| numbers(it, cells, wait))).await;
        });
    }
    attacks.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_of_another_form_are_failures() {
    let text = |text: &'static str| move |_: usize| text.as_bytes().to_vec();
    let mut attacks = JoinSet::new();
    let cases = [
        ("text", "+OK\r\n"),
        ("a bulk of text", "$5\r\nhello\r\n"),
        ("text in place of numbers", "*2\r\n+many\r\n+none\r\n"),
        ("nil", "$-1\r\n"),
        ("a nil array", "*-1\r\n"),
        ("an empty array", "*0\r\n"),
        ("a number", ":1\r\n"),
        ("nils", "*2\r\n$-1\r\n$-1\r\n"),
        ("nested arrays", "*2\r\n*1\r\n:1\r\n*1\r\n:1\r\n"),
        ("an error in an array", "*2\r\n-ERR no\r\n:1\r\n"),
        ("too few", "*1\r\n:1\r\n"),
        ("one too many", "*4\r\n:1\r\n:1\r\n:1\r\n:1\r\n"),
        ("no protocol", "HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("no text", "+\u{fffd}\u{0}\r\n"),
        ("a map", "%1\r\n:1\r\n:1\r\n"),
        ("a negative map", "%-1\r\n"),
        ("a huge map", "%4611686018427387904\r\n:1\r\n"),
        ("a huge attribute", "|9223372036854775807\r\n:1\r\n"),
        ("a negative error", "!-1\r\n"),
        ("a negative text", "=-9223372036854775808\r\n"),
        ("a negative set", "~-7\r\n"),
        ("a push without a kind", ">1\r\n:1\r\n"),
        ("an array of 2^31", "*2147483648\r\n"),
        ("an array of 2^63", "*9223372036854775807\r\n:1\r\n"),
        ("a bulk of 2^31", "$2147483648\r\n"),
        ("a bulk of 2^63", "$9223372036854775807\r\nx"),
    ];
    for (name, answer) in cases {
        attacks.spawn(async move {
            let node = attack(name, "EVAL", answers(text(answer))).await;
            assert!(node.gauge(Gauge::FleetFailures) > 0, "{name}");
            assert!(node.journal.fleet().contains(&true), "{name}");
        });
        // The same while the connection opens.
        let reply = move |_: &[Vec<u8>]| Reply::Bytes(answer.into());
        attacks.spawn(async move {
            attack(&format!("{name}, for the script"), "SCRIPT", reply).await;
        });
    }
    attacks.spawn(async move {
        let deep = |_: usize| "*1\r\n".repeat(16_000).into_bytes();
        attack("arrays in arrays", "EVAL", answers(deep)).await;
    });
    attacks.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_without_an_end_are_cut_off() {
    let cases: [(&str, Reply); 10] = [
        ("a text without an end", Reply::Endless(b"+", &[b'x'; 4096])),
        (
            "a bulk without an end",
            Reply::Endless(b"$4000000000\r\n", &[b'x'; 4096]),
        ),
        (
            "an array without an end",
            Reply::Endless(b"*2000000000\r\n", b":1\r\n:1\r\n:1\r\n"),
        ),
        (
            "pushes without an end",
            Reply::Endless(b"", b">2\r\n+message\r\n:1\r\n"),
        ),
        (
            "answers without an end",
            Reply::Endless(b"", b"*3\r\n:1\r\n:0\r\n:0\r\n"),
        ),
        ("errors without an end", Reply::Endless(b"", b"-ERR no\r\n")),
        ("one byte a second", Reply::Slow(numbers(1, "1", "0"))),
        (
            "a close in the middle",
            Reply::Last(b"*3\r\n:1\r\n:".to_vec()),
        ),
        (
            "a close after the answer",
            Reply::Last(numbers(1, "1", "0")),
        ),
        ("nothing", Reply::Nothing),
    ];
    for which in ["EVAL", "SCRIPT"] {
        let mut attacks = JoinSet::new();
        for (name, reply) in cases.clone() {
            attacks.spawn(async move {
                let name = format!("{name}, {which}");
                attack(&name, which, move |_: &[Vec<u8>]| reply.clone()).await;
            });
        }
        attacks.join_all().await;
    }
}

#[tokio::test]
async fn a_long_error_is_a_failure_whose_text_is_cut() {
    let error = || format!("-ERR {}\r\n", "\u{1b}[2J long ".repeat(6_000)).into_bytes();
    for which in ["EVAL", "SCRIPT"] {
        let node = attack("an error of 60 KiB", which, move |_: &[Vec<u8>]| {
            Reply::Bytes(error())
        })
        .await;
        assert!(node.texts().contains("long"), "{}", node.texts());
        assert!(!node.texts().contains('\u{1b}'));
        assert!(node.journal.fleet().contains(&true));
    }
}

#[tokio::test]
async fn messages_before_an_answer_are_skipped() {
    let push = ">3\r\n+message\r\n$1\r\nx\r\n:1\r\n"
        .repeat(100)
        .into_bytes();
    let node = attack("pushes", "EVAL", move |words: &[Vec<u8>]| {
        Reply::Bytes([push.clone(), honest(words)].concat())
    })
    .await;
    assert_eq!(node.gauge(Gauge::FleetFailures), 0);
    assert!(!node.is_alone());
}

#[tokio::test]
async fn answers_to_another_call_admit_no_more_than_the_limit_of_the_node() {
    let calls = Arc::new(AtomicUsize::new(0));
    let swap = move |words: &[Vec<u8>]| match calls.fetch_add(1, Relaxed) % 2 {
        0 => Reply::Later(honest(words)),
        _ => Reply::Bytes(honest(words)),
    };
    let redis = FalseRedis::start("EVAL", swap);
    let nodes = Node::start_all(&redis.url(), 1, quota());
    let (mut served, started) = ([0; 8], Instant::now());
    for _ in 0..60 {
        for (client, served) in (1..).zip(&mut served) {
            *served += Flood::of(&nodes, client, 1).await.served;
        }
    }
    println!("swapped answers: {served:?}, {} calls", redis.calls());
    let allowed = 1..=at_most(started.elapsed());
    let is_allowed = served.iter().all(|served| allowed.contains(served));
    assert!(is_allowed, "{served:?}");
    // Each answer twice: the second is that of the next call.
    let twice = |words: &[Vec<u8>]| Reply::Bytes(honest(words).repeat(2));
    attack("each answer twice", "EVAL", twice).await;
}

#[tokio::test]
async fn a_redis_that_does_not_answer_has_few_connections_and_none_after_the_end() {
    for which in ["EVAL", "SCRIPT"] {
        let redis = FalseRedis::start(which, |_| Reply::Nothing);
        let mut nodes = Node::start_all(&redis.url(), 1, quota());
        for _ in 0..8 {
            Flood::of(&nodes, 1, 50).await;
            assert!(redis.open() <= 2, "{which}: {}", redis.open());
        }
        println!("{which}: {} connections, one after another", redis.opened());
        assert!(redis.opened() >= 2);
        // The last handle and the last policy.
        let journal = nodes.pop().unwrap().journal;
        wait_until("all connections are closed", || redis.open() == 0).await;
        let is_gone = || journal.gauge(Guard::RateLimit, Gauge::FleetNodes).is_none();
        wait_until("the task has ended", is_gone).await;
    }
}

#[tokio::test]
async fn a_port_that_accepts_nothing_is_an_outage_until_it_does() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    // Until the next one waits.
    let mut queue = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(50), TcpStream::connect(addr)).await {
        queue.push(stream.unwrap());
        assert!(queue.len() < 64);
    }
    let nodes = Node::start_all(&format!("redis://{addr}"), 1, quota());
    Flood::until(&nodes, 1, || nodes[0].is_alone()).await;
    let flood = Flood::of(&nodes, 2, 100).await;
    println!("a port that accepts nothing: {flood:?}");
    assert_eq!(flood.refused + flood.served, 100);
    assert!(nodes[0].is_alone());
}

// === Stores of this process, in paused time ===

/// What a store does with the next calls.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Answer,
    Late,
    Never,
    Panic,
    Fail,
    Unsent,
    TooFew,
    TooMany,
    Endless,
}

/// A store that does what it is told.
#[derive(Clone)]
struct Told {
    how: Arc<Mutex<How>>,
    calls: Arc<AtomicUsize>,
    /// The cells that were reported.
    admitted: Arc<AtomicUsize>,
    memory: MemoryStore,
}

impl Told {
    fn new(how: How) -> Self {
        Self {
            how: Arc::new(Mutex::new(how)),
            calls: Arc::default(),
            admitted: Arc::default(),
            memory: MemoryStore::new(),
        }
    }

    fn node(&self, on_failure: OnFailure) -> Node {
        Node::start(Fleet::with_store(self.clone()), 4, quota(), on_failure)
    }
}

impl QuotaStore for Told {
    async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
        self.calls.fetch_add(1, Relaxed);
        let admitted: u32 = batch.asks.iter().map(|ask| ask.admitted).sum();
        self.admitted.fetch_add(admitted as usize, Relaxed);
        let how = *self.how.lock();
        let most = Answer::Granted {
            cells: u32::MAX,
            wait: Duration::MAX,
        };
        match how {
            How::Answer => self.memory.call(batch).await,
            How::Late => {
                sleep(Duration::from_millis(3)).await;
                self.memory.call(batch).await
            }
            How::Never => pending().await,
            How::Panic => panic!("a store that panics, as the test wants"),
            How::Fail => Err(StoreError::unanswered("as it was told")),
            How::Unsent => Err(StoreError::unsent("as it was told")),
            How::TooFew => Ok(Answers::new(Vec::new(), None)),
            How::TooMany => Ok(Answers::new(vec![most; batch.asks.len() + 1], None)),
            How::Endless => Ok(Answers::new(vec![most; batch.asks.len()], None)),
        }
    }
}

const ALL: [How; 7] = [
    How::Never,
    How::Panic,
    How::Fail,
    How::Unsent,
    How::TooFew,
    How::TooMany,
    How::Endless,
];

#[tokio::test(start_paused = true)]
async fn a_store_that_errs_in_any_way_is_asked_again_whatever_the_policy_does() {
    let policies = [
        OnFailure::LocalShare(2.0),
        OnFailure::LocalFull,
        OnFailure::Deny,
    ];
    for on_failure in policies {
        for how in ALL {
            let store = Told::new(how);
            let node = [store.node(on_failure)];
            let during = Flood::of(&node, 1, 200).await;
            assert!(during.served <= LIMIT + 1, "{on_failure:?} {during:?}");
            assert!(during.longest <= Duration::from_millis(6), "{during:?}");
            // A client that gets nothing else is no reason for the store to be forgotten.
            let denied = Flood::of(&node, 1, 600).await;
            assert!(denied.served <= 3, "{on_failure:?} {denied:?}");
            let calls = store.calls.load(Relaxed);
            *store.how.lock() = How::Answer;
            Flood::until(&node, 1, || !node[0].is_alone()).await;
            if how != How::Endless {
                assert!(calls >= 3, "{calls}");
                assert_eq!(node[0].journal.fleet().last(), Some(&false));
            }
            // What was admitted meanwhile and not lost is reported, and a new client is served.
            assert_eq!(status(&node[0].layer, 2).await, 200);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cells_that_are_paid_before_the_end_of_an_outage_are_not_reported_after_it() {
    for (pause, reported) in [(1, 18..=24), (25, 1..=8), (60, 0..=0)] {
        let store = Told::new(How::Unsent);
        let node = [store.node(OnFailure::LocalShare(2.0))];
        let during = Flood::of(&node, 1, 200).await;
        assert!((20..=24).contains(&during.served), "{during:?}");
        // Meanwhile the same account is tried all the time.
        sleep(Duration::from_secs(pause)).await;
        *store.how.lock() = How::Answer;
        store.admitted.store(0, Relaxed);
        // One more cell, of a node that may have had nothing to report.
        assert_eq!(status(&node[0].layer, 2).await, 200);
        wait_until("the nodes count together", || !node[0].is_alone()).await;
        sleep(Duration::from_millis(100)).await;
        let admitted = store.admitted.load(Relaxed) - 1;
        assert!(reported.contains(&admitted), "{pause} s: {admitted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_in_an_outage_serves_within_a_second_of_its_end() {
    let store = Told::new(How::Never);
    let node = [store.node(OnFailure::Deny)];
    Flood::until(&node, 1, || node[0].is_alone()).await;
    let during = Flood::of(&node, 2, 1_000).await;
    assert_eq!((during.served, during.unavailable), (0, 1_000));
    *store.how.lock() = How::Answer;
    let after = Flood::until(&node, 2, || !node[0].is_alone()).await;
    assert!(after.took < Duration::from_secs(1), "{after:?}");
    assert_eq!(status(&node[0].layer, 2).await, 200);
}

#[tokio::test(start_paused = true)]
async fn after_a_shutdown_nothing_is_sent_whatever_the_node_admits() {
    for how in [How::Answer, How::Late, How::Never, How::Fail, How::Unsent] {
        let store = Told::new(how);
        let node = store.node(OnFailure::LocalFull);
        let traffic = async {
            for turn in 0..200_u8 {
                assert_eq!(status(&node.layer, turn).await, 200);
                advance(Duration::from_micros(500)).await;
            }
        };
        let end = async {
            sleep(Duration::from_millis(30)).await;
            let ends = Instant::now();
            node.fleet.shutdown().await;
            assert!(ends.elapsed() <= Duration::from_millis(21));
            // A call that was in flight ends within 40 ms.
            store.calls.load(Relaxed)
        };
        let ((), calls) = tokio::join!(traffic, end);
        assert_eq!(store.calls.load(Relaxed), calls);
        for turn in 200..=255 {
            assert_eq!(status(&node.layer, turn).await, 200);
        }
        sleep(Duration::from_secs(10)).await;
        assert_eq!(store.calls.load(Relaxed), calls);
        assert_eq!(node.gauge(Gauge::FleetAlone), 1);
        node.fleet.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_reported_when_the_last_policy_is_dropped() {
    let store = Told::new(How::Answer);
    let node = store.node(OnFailure::LocalFull);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(store.calls.load(Relaxed), 1); // It has connected.
    assert_eq!(status(&node.layer, 1).await, 200);
    let Node { fleet, layer, .. } = node;
    drop(fleet);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(store.calls.load(Relaxed), 1);
    drop(layer);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(store.calls.load(Relaxed), 2);
    assert_eq!(store.admitted.load(Relaxed), 1);
}

#[test]
fn a_node_whose_runtime_has_ended_counts_alone() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let store = Told::new(How::Never);
    let first = runtime();
    let node = first.block_on(async {
        let node = store.node(OnFailure::LocalShare(2.0));
        assert_eq!(status(&node.layer, 1).await, 200);
        node
    });
    drop(first);
    let nodes = [node];
    let flood = runtime().block_on(Flood::of(&nodes, 2, 50));
    assert!(
        (LIMIT / 2..=LIMIT / 2 + 1).contains(&flood.served),
        "{flood:?}"
    );
    assert_eq!(nodes[0].gauge(Gauge::FleetUnreported), 1);
}
