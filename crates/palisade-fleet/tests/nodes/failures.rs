//! What a real Redis does when it fails, and what the nodes do meanwhile and afterwards.

use crate::node::{Flood, Node};
use palisade_core::Gauge;
use palisade_fleet::{Fleet, OnFailure};
use palisade_rate_limit::Quota;
use palisade_testkit::redis::RedisServer;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    time::{Instant, sleep},
};

pub(crate) const NODES: u32 = 4;
pub(crate) const LIMIT: u32 = 40;
/// What all nodes have admitted and not reported at most: two allowances of two each.
const UNREPORTED: u32 = 2 * NODES * 2;
const PASSWORD: &str = "zebra-7-password";
/// The rights that the docs ask for.
const RIGHTS: [&str; 6] = ["+evalsha", "+eval", "+script|load", "+time", "+get", "+set"];
/// The next try of the store is due within 960 ms. On a machine that is busy it may fail once.
const BACK_WITHIN: Duration = Duration::from_secs(2);

pub(crate) fn quota() -> Quota {
    Quota::per_minute(LIMIT)
}

/// Returns what a client that has the limit `times` over may send in so long.
pub(crate) fn at_most(times: u32, took: Duration) -> u32 {
    let brings = f64::from(times * LIMIT) / 60.0 * took.as_secs_f64();
    times * LIMIT + brings.ceil() as u32
}

/// Returns the sum of a gauge of all nodes.
pub(crate) fn sum(nodes: &[Node], gauge: Gauge) -> u64 {
    nodes.iter().map(|node| node.gauge(gauge)).sum()
}

/// Floods nodes that count together, by a client that comes now.
pub(crate) async fn together(nodes: &[Node], client: u8) -> Flood {
    let changes = || nodes.iter().map(|node| node.journal.fleet().len()).sum();
    let before: usize = changes();
    let flood = Flood::of(nodes, client, 25).await;
    // On a machine that is too busy for an answer within 40 ms, a node is alone for a while.
    let most = if changes() == before {
        at_most(1, flood.took) + UNREPORTED
    } else {
        at_most(3, flood.took)
    };
    assert!((LIMIT..=most).contains(&flood.served), "{flood:?}");
    flood
}

/// The nodes count together before `fail`, each alone after it, and together again after `mend`.
pub(crate) async fn outage<F, M>(
    name: &str,
    redis: &mut RedisServer,
    url: &str,
    fail: F,
    mend: M,
) -> Vec<Node>
where
    F: AsyncFnOnce(&mut RedisServer),
    M: AsyncFnOnce(&mut RedisServer),
{
    let nodes = Node::start_all(url, NODES, quota());
    let before = together(&nodes, 1).await;

    fail(redis).await;
    // At first the nodes do not know it.
    let first = Flood::until(&nodes, 2, || nodes.iter().all(Node::is_alone)).await;
    assert!(first.served <= at_most(3, first.took), "{first:?}");
    assert_eq!(sum(&nodes, Gauge::FleetAlone), u64::from(NODES), "{name}");
    assert!(sum(&nodes, Gauge::FleetFailures) > 0, "{name}");
    // A client that comes now has twice its limit, a half on each of four nodes.
    let during = Flood::of(&nodes, 3, 25).await;
    let allowed = LIMIT..=at_most(2, during.took);
    assert!(allowed.contains(&during.served), "{name}: {during:?}");

    mend(redis).await;
    let mended = Instant::now();
    let last = Flood::until(&nodes, 4, || !nodes.iter().any(Node::is_alone)).await;
    let back = mended.elapsed();
    // The first node that is back is granted what the others have not reported yet: one limit more.
    assert!(last.served <= at_most(3, last.took), "{name}: {last:?}");
    assert!(back < BACK_WITHIN, "{name}: {back:?}");
    assert_eq!(sum(&nodes, Gauge::FleetAlone), 0, "{name}");
    let after = together(&nodes, 5).await;

    let longest = [before, first, during, last, after].map(|flood| flood.longest);
    let longest = longest.into_iter().max().unwrap();
    println!(
        "{name}: alone after {:?}, in order {back:?} after the end, the longest wait {longest:?}, \
         {} served in the outage",
        first.took, during.served,
    );
    nodes
}

/// Sends a command that must succeed.
async fn command(redis: &RedisServer, words: &[&str]) {
    let answer = redis.command(words).await;
    assert!(answer.starts_with('+'), "{words:?}: {answer}");
}

#[tokio::test]
async fn a_stopped_redis_costs_no_request_more_than_the_wait() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let url = redis.url();
    let fail = async |redis: &mut RedisServer| redis.pause();
    let mend = async |redis: &mut RedisServer| {
        // Long enough for the tries to be as rare as they become.
        sleep(Duration::from_secs(5)).await;
        redis.resume();
    };
    outage("SIGSTOP", &mut redis, &url, fail, mend).await;
}

#[tokio::test]
async fn a_killed_redis_is_found_again_within_a_second_of_its_return() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let url = redis.url();
    let fail = async |redis: &mut RedisServer| redis.kill();
    let mend = async |redis: &mut RedisServer| {
        sleep(Duration::from_secs(1)).await;
        redis.restart().await;
    };
    outage("kill and restart", &mut redis, &url, fail, mend).await;
}

#[tokio::test]
async fn a_busy_redis_is_an_outage_until_it_has_time() {
    let options = ["--enable-debug-command", "local"];
    let Some(mut redis) = RedisServer::start_with(&options).await else {
        return;
    };
    let url = redis.url();
    let socket = redis.socket();
    let (sender, is_over) = oneshot::channel();
    let fail = async |_: &mut RedisServer| {
        tokio::spawn(async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(b"DEBUG SLEEP 1\r\n").await.unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"+OK\r\n");
            sender.send(()).unwrap();
        });
    };
    let mend = async |_: &mut RedisServer| is_over.await.unwrap();
    outage("DEBUG SLEEP 1", &mut redis, &url, fail, mend).await;
}

#[tokio::test]
async fn a_full_redis_is_an_outage_and_not_a_limit_for_each_node() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let url = redis.url();
    let fail = async |redis: &mut RedisServer| {
        command(redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    };
    let mend = async |redis: &mut RedisServer| {
        command(redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    };
    let nodes = outage("maxmemory", &mut redis, &url, fail, mend).await;
    assert!(nodes[0].texts().contains("OOM"), "{}", nodes[0].texts());
}

#[tokio::test]
async fn a_redis_that_has_become_a_replica_is_an_outage() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let url = redis.url();
    let fail = async |redis: &mut RedisServer| {
        command(redis, &["REPLICAOF", "127.0.0.1", "1"]).await;
    };
    let mend = async |redis: &mut RedisServer| {
        command(redis, &["REPLICAOF", "NO", "ONE"]).await;
    };
    let nodes = outage("REPLICAOF", &mut redis, &url, fail, mend).await;
    assert!(
        nodes[0].texts().contains("READONLY"),
        "{}",
        nodes[0].texts()
    );
}

/// Returns the URL for a user of `redis` with all rights of the docs.
async fn url_of_user(redis: &RedisServer) -> String {
    let password = format!(">{PASSWORD}");
    let mut words = vec!["ACL", "SETUSER", "palisade", "on", &password, "~palisade:*"];
    words.extend(RIGHTS);
    command(redis, &words).await;
    format!("{}?user=palisade&pass={PASSWORD}", redis.url())
}

#[tokio::test]
async fn the_documented_rights_suffice_and_each_of_them_is_needed() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let url = url_of_user(&redis).await;
    let nodes = Node::start_all(&url, 1, quota());
    // Whatever else may fail on a machine that is busy.
    let is_told = |node: &Node| {
        let texts = node.texts().to_lowercase();
        texts.contains("noperm") || texts.contains("run this command")
    };
    let flood = Flood::of(&nodes, 1, 50).await;
    let most = LIMIT + 1 + flood.took.as_secs() as u32;
    assert!((LIMIT..=most).contains(&flood.served), "{flood:?}");
    nodes[0].wait_reported().await;
    assert!(!is_told(&nodes[0]), "{}", nodes[0].texts());
    // `EVAL` is needed after the script is gone, the others always.
    command(&redis, &["SCRIPT", "FLUSH"]).await;
    Flood::of(&nodes, 2, 50).await;
    nodes[0].wait_reported().await;
    assert!(!is_told(&nodes[0]), "{}", nodes[0].texts());
    // Another database needs one more.
    let other = format!("{url}&db=1");
    let nodes = Node::start_all(&other, 1, quota());
    Flood::until(&nodes, 2, || nodes[0].is_alone()).await;
    command(&redis, &["ACL", "SETUSER", "palisade", "+select"]).await;
    Flood::until(&nodes, 2, || !nodes[0].is_alone()).await;
    for (client, right) in (3..).zip(RIGHTS) {
        let missing = right.replace('+', "-");
        command(&redis, &["ACL", "SETUSER", "palisade", &missing]).await;
        command(&redis, &["SCRIPT", "FLUSH"]).await;
        let nodes = Node::start_all(&url, 1, quota());
        if right == "+eval" {
            // A new connection brings the script again: this is one failure only.
            let mut clients = 100..=u8::MAX;
            while nodes[0].gauge(Gauge::FleetFailures) == 0 {
                Flood::of(&nodes, clients.next().unwrap(), 1).await;
                sleep(Duration::from_millis(40)).await;
                command(&redis, &["SCRIPT", "FLUSH"]).await;
            }
        } else {
            Flood::until(&nodes, client, || nodes[0].is_alone()).await;
            let texts = nodes[0].texts();
            // A call that takes too long makes the node alone as well.
            let is_told = is_told(&nodes[0]) || texts.contains("deadline has elapsed");
            assert!(is_told, "{right}: {texts}");
            assert!(!texts.contains(PASSWORD), "{texts}");
        }
        command(&redis, &["ACL", "SETUSER", "palisade", right]).await;
    }
}

#[tokio::test]
async fn a_user_without_a_right_is_an_outage_until_it_has_it() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let url = url_of_user(&redis).await;
    let fail = async |redis: &mut RedisServer| {
        command(redis, &["ACL", "SETUSER", "palisade", "-get"]).await;
    };
    let mend = async |redis: &mut RedisServer| {
        command(redis, &["ACL", "SETUSER", "palisade", "+get"]).await;
    };
    let nodes = outage("without +get", &mut redis, &url, fail, mend).await;
    assert!(!nodes[0].texts().contains(PASSWORD), "{}", nodes[0].texts());
}

#[tokio::test]
async fn a_wrong_password_is_an_outage_and_is_told_nowhere() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let url = url_of_user(&redis).await;
    let fail = async |redis: &mut RedisServer| {
        command(
            redis,
            &["ACL", "SETUSER", "palisade", "resetpass", ">another"],
        )
        .await;
        // Those that are connected keep their rights.
        redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    };
    let mend = async |redis: &mut RedisServer| {
        url_of_user(redis).await;
    };
    let nodes = outage("a wrong password", &mut redis, &url, fail, mend).await;
    let texts = nodes[0].texts();
    assert!(texts.contains("authentication failed"), "{texts}");
    assert!(!texts.contains(PASSWORD), "{texts}");
    assert!(!texts.contains("another"), "{texts}");
}

#[tokio::test]
async fn a_server_that_repeats_the_password_in_an_error_does_not_bring_it_into_the_log() {
    let options = ["--rename-command", "HELLO", ""];
    let Some(redis) = RedisServer::start_with(&options).await else {
        return;
    };
    let hello = redis
        .command(&["HELLO", "3", "AUTH", "palisade", PASSWORD])
        .await;
    assert!(hello.contains(PASSWORD), "it does not repeat it: {hello}");
    for password in [PASSWORD.to_owned(), "long ".repeat(60) + PASSWORD] {
        let url = format!(
            "{}?user=palisade&pass={password}&protocol=resp3",
            redis.url()
        );
        let builder = Fleet::redis(url).unwrap();
        assert!(!format!("{builder:?}").contains("zebra"));
        let nodes = [Node::start(builder, 1, quota(), OnFailure::LocalFull)];
        Flood::until(&nodes, 1, || nodes[0].is_alone()).await;
        let texts = nodes[0].texts();
        assert!(
            !texts.contains("zebra") && !texts.contains("long long"),
            "{texts}"
        );
    }
    let Err(error) = Fleet::redis(format!("redis://palisade:{PASSWORD}@host:port/")) else {
        panic!("a port must be a number");
    };
    assert!(!format!("{error} {error:?}").contains("zebra"), "{error:?}");
}

#[tokio::test]
async fn closed_connections_and_a_flushed_script_cost_an_idle_node_no_call_and_no_cell() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    for client in [1, 2, 3] {
        let nodes = Node::start_all(&redis.url(), 1, Quota::per_hour(LIMIT));
        let mut served = 0;
        for round in 0..14 {
            served += Flood::of(&nodes, client, 3).await.served;
            nodes[0].wait_reported().await;
            // A call that is in flight ends by then.
            sleep(Duration::from_millis(40)).await;
            if round % 2 == 0 {
                redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
                // The node learns of it when it reads next.
                while redis
                    .command(&["CLIENT", "LIST"])
                    .await
                    .matches(" addr=")
                    .count()
                    > 1
                {}
                sleep(Duration::from_millis(2)).await;
            } else {
                command(&redis, &["SCRIPT", "FLUSH"]).await;
            }
        }
        if nodes[0].journal.fleet().is_empty() {
            assert_eq!(nodes[0].gauge(Gauge::FleetFailures), 0);
            assert_eq!(served, LIMIT);
            // A node that knows nothing yet: no debt was lost.
            let other = Node::start_all(&redis.url(), 1, Quota::per_hour(LIMIT));
            let served = Flood::of(&other, client, 20).await.served;
            assert!(served <= LIMIT / 4 + 1, "{served}");
            return;
        }
        println!("once more: this machine had no time for an answer within 40 ms");
    }
    panic!("this machine is too busy");
}

#[tokio::test]
async fn connections_that_are_closed_all_the_time_stop_nothing() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let nodes = Node::start_all(&redis.url(), NODES, quota());
    let kills = async {
        for _ in 0..25 {
            redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (flood, ()) = tokio::join!(Flood::of(&nodes, 1, 150), kills);
    println!("CLIENT KILL every 20 ms: {flood:?}");
    assert!(
        flood.served <= at_most(2, flood.took) + UNREPORTED,
        "{flood:?}"
    );
    let is_back = || !nodes.iter().any(Node::is_alone);
    Flood::until(&nodes, 2, is_back).await;
    together(&nodes, 3).await;
}

#[tokio::test]
async fn lost_data_gives_each_client_one_burst() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let nodes = Node::start_all(&redis.url(), NODES, quota());
    let before = Flood::of(&nodes, 1, 25).await;
    command(&redis, &["FLUSHALL"]).await;
    // For so long nodes know that there is nothing left.
    let denied = Instant::now();
    let is_over = || denied.elapsed() > Duration::from_millis(2_500);
    let after = Flood::until(&nodes, 1, is_over).await;
    println!("FLUSHALL: {before:?} and {after:?}");
    let all = before.served + after.served;
    assert!(
        all <= at_most(1, before.took + after.took) + LIMIT + 2 * UNREPORTED,
        "{all}"
    );
}

#[tokio::test]
async fn a_key_of_a_wrong_type_harms_its_account_alone_and_not_for_long() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let nodes = Node::start_all(&redis.url(), NODES, quota());
    Flood::of(&nodes, 1, 1).await;
    let key = &key_of_one(&redis).await;
    redis.command(&["DEL", key]).await;
    redis.command(&["LPUSH", key, "no number"]).await;
    let spoilt = Flood::of(&nodes, 1, 60).await;
    // The whole limit of each node.
    assert!(spoilt.served <= at_most(NODES, spoilt.took), "{spoilt:?}");
    assert!(
        nodes
            .iter()
            .all(|node| node.gauge(Gauge::FleetLocalOnly) > 0)
    );
    together(&nodes, 2).await;
    redis.command(&["DEL", key]).await;
    // The nodes try it again after a second.
    let started = Instant::now();
    while redis.command(&["TYPE", key]).await == "+none\r\n" {
        Flood::of(&nodes, 1, 1).await;
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    println!(
        "a key of a wrong type: {spoilt:?}, in order after {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_value_that_is_no_number_is_replaced() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let nodes = Node::start_all(&redis.url(), 1, quota());
    let values = [
        "", "text", "nan", "-nan", "inf", "-inf", "-1e300", "1e300", "0x7f", "1\n2",
    ];
    for (client, value) in (1..).zip(values) {
        Flood::of(&nodes, client, 1).await;
        let key = key_of_one(&redis).await;
        command(&redis, &["SET", &key, value]).await;
        let started = Instant::now();
        let mut stored = value.to_owned();
        while stored == value {
            Flood::of(&nodes, client, 1).await;
            let answer = redis.command(&["GET", &key]).await;
            answer.split("\r\n").nth(1).unwrap().clone_into(&mut stored);
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "{value}: {answer}"
            );
        }
        assert!(stored.parse::<u64>().is_ok(), "{value}: {stored}");
        nodes[0].wait_reported().await;
        sleep(Duration::from_millis(20)).await;
        command(&redis, &["FLUSHALL"]).await;
    }
    assert_eq!(nodes[0].gauge(Gauge::FleetFailures), 0);
}

/// Waits for the only key there is.
async fn key_of_one(redis: &RedisServer) -> String {
    let started = Instant::now();
    loop {
        let keys = redis.command(&["KEYS", "*"]).await;
        if let Some(key) = keys.strip_prefix("*1\r\n") {
            return key.split("\r\n").nth(1).unwrap().to_owned();
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{keys}");
        sleep(Duration::from_millis(2)).await;
    }
}
