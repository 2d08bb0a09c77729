//! Nodes that count on several Redis servers: a cluster, or a master that a sentinel watches.

use crate::{
    false_redis::{FalseRedis, Reply},
    node::{Flood, Node},
    status,
};
use palisade_core::Gauge;
use palisade_fleet::{Fleet, OnFailure};
use palisade_rate_limit::Quota;
use palisade_testkit::{
    clients::wait_until,
    redis::{RedisServer, free_port},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long servers may take to agree, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a server answers a command with a text that contains `expected`.
async fn wait_for(server: &RedisServer, command: &[&str], expected: &str) {
    let started = Instant::now();
    loop {
        let answer = server.command(command).await;
        if answer.contains(expected) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{command:?}: {answer}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the number of keys.
async fn keys(server: &RedisServer) -> u32 {
    let answer = server.command(&["DBSIZE"]).await;
    answer.trim_start_matches(':').trim_end().parse().unwrap()
}

/// Three masters, and a replica of the third one.
struct Cluster {
    servers: Vec<RedisServer>,
    ports: Vec<String>,
}

const SLOTS: [[&str; 2]; 3] = [["0", "5460"], ["5461", "10922"], ["10923", "16383"]];

impl Cluster {
    async fn start() -> Option<Self> {
        let (mut servers, mut ports) = (Vec::new(), Vec::new());
        let address = ["--bind", "127.0.0.1", "--cluster-enabled", "yes"];
        for _ in 0..4 {
            let [port, bus] = [free_port().to_string(), free_port().to_string()];
            let own = ["--port", &port, "--cluster-port", &bus];
            let server = RedisServer::start_with(&[&address[..], &own[..]].concat()).await?;
            if let Some(first) = servers.first() {
                let first: &RedisServer = first;
                let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus];
                assert_eq!(first.command(&meet).await, "+OK\r\n");
            }
            servers.push(server);
            ports.push(port);
        }
        for (server, [first, last]) in servers.iter().zip(SLOTS) {
            let add = ["CLUSTER", "ADDSLOTSRANGE", first, last];
            assert_eq!(server.command(&add).await, "+OK\r\n");
        }
        for server in &servers {
            wait_for(server, &["CLUSTER", "INFO"], "cluster_state:ok").await;
            wait_for(server, &["CLUSTER", "INFO"], "cluster_known_nodes:4").await;
        }
        let id = servers[2].command(&["CLUSTER", "MYID"]).await;
        let id = id.lines().nth(1).unwrap();
        wait_for(&servers[3], &["CLUSTER", "REPLICATE", id], "OK").await;
        let info = ["INFO", "replication"];
        wait_for(&servers[3], &info, "master_link_status:up").await;
        Some(Self { servers, ports })
    }

    /// Returns the URL of the cluster, of which some servers are named.
    fn url(&self, named: &[usize]) -> String {
        let host = |index: &usize| format!("127.0.0.1:{}", self.ports[*index]);
        let hosts: Vec<_> = named.iter().map(host).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    fn node(&self, named: &[usize], quota: Quota) -> Node {
        let builder = Fleet::redis(self.url(named)).unwrap();
        Node::start(builder, 2, quota, OnFailure::Deny)
    }
}

/// Sends a request of each client. Returns how many were served, and how many could not be decided.
async fn request_of_each(node: &Node) -> (u32, u32) {
    let (mut served, mut unavailable) = (0, 0);
    for client in 0..=u8::MAX {
        match status(&node.layer, client).await {
            200 => served += 1,
            503 => unavailable += 1,
            other => panic!("{other}"),
        }
    }
    (served, unavailable)
}

/// Sends requests of each client until all are served, or `is_over` says that it is enough.
async fn request_until(node: &Node, is_over: impl Fn((u32, u32)) -> bool) {
    let started = Instant::now();
    loop {
        let answers = request_of_each(node).await;
        if is_over(answers) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{answers:?} {}", node.texts());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nodes_count_together_on_a_cluster_also_while_one_master_is_dead() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    // One server is named, and names the others. One hour is too long for any cell to come back.
    let nodes = [[0], [2]].map(|named| cluster.node(&named, Quota::per_hour(20_000)));
    for node in &nodes {
        request_until(node, |answers| answers == (256, 0)).await;
        node.wait_reported().await;
    }
    let mut accounts = Vec::new();
    for server in &cluster.servers[..3] {
        accounts.push(keys(server).await);
    }
    assert_eq!(accounts.iter().sum::<u32>(), 256, "{accounts:?}");
    assert!(accounts.iter().all(|of| *of > 20), "{accounts:?}");

    // The clients of that master cannot be decided about, and those of the others can.
    let dead = accounts[2];
    cluster.servers[2].kill();
    request_until(&nodes[0], |answers| answers == (256 - dead, dead)).await;
    assert!(nodes[0].is_alone());
    let take_over = ["CLUSTER", "FAILOVER", "TAKEOVER"];
    assert_eq!(cluster.servers[3].command(&take_over).await, "+OK\r\n");
    for node in &nodes {
        request_until(node, |answers| answers == (256, 0)).await;
        assert!(!node.is_alone(), "{}", node.texts());
    }
}

#[tokio::test]
async fn a_node_learns_at_its_start_which_server_holds_each_shard() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let node = cluster.node(&[3], Quota::per_hour(9));
    let info = ["INFO", "commandstats"];
    for server in &cluster.servers[..3] {
        wait_for(server, &info, "cmdstat_evalsha").await;
    }
    // That is 16 calls, each to a replica that names another server, and again.
    assert!(!node.is_alone(), "{}", node.texts());
}

#[tokio::test]
async fn a_client_that_floods_all_nodes_gets_one_limit_on_a_cluster() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    // Both are learnt of by a node that knows of a replica only.
    let quota = Quota::per_hour(3600).burst(40);
    let nodes = [[3], [0]].map(|named| cluster.node(&named, quota));
    for node in &nodes {
        wait_until("the cluster answers", || {
            node.gauge(Gauge::FleetRoundTrip) > 0 && !node.is_alone()
        })
        .await;
    }
    let (started, mut served) = (Instant::now(), 0);
    while served < 40 {
        served += Flood::of(&nodes, 7, 20).await.served;
        assert!(started.elapsed() < PATIENCE, "{served}");
    }
    served += Flood::of(&nodes, 7, 100).await.served;
    // Two nodes may each have two allowances of 5 unreported at once.
    let most = 40 + started.elapsed().as_secs() as u32 + 1 + 20;
    assert!(served <= most, "{served}");
}

#[tokio::test]
async fn nodes_follow_the_master_that_a_sentinel_names() {
    let ports = [free_port(), free_port(), free_port()];
    let [master_port, replica_port, sentinel_port] = ports.map(|port| port.to_string());
    let on = |port| ["--bind", "127.0.0.1", "--port", port];
    let Some(mut master) = RedisServer::start_with(&on(&master_port)).await else {
        return;
    };
    let of = ["--replicaof", "127.0.0.1", &master_port];
    let options = [&on(&replica_port)[..], &of[..]].concat();
    let replica = RedisServer::start_with(&options).await.unwrap();
    let info = ["INFO", "replication"];
    wait_for(&replica, &info, "master_link_status:up").await;
    let sentinel = RedisServer::start_sentinel(ports[2], ports[0])
        .await
        .unwrap();
    let replicas = ["SENTINEL", "REPLICAS", "watched"];
    wait_for(&sentinel, &replicas, &replica_port).await;

    // The first sentinel is not there.
    let url = format!(
        "redis+sentinel://127.0.0.1:{},127.0.0.1:{sentinel_port}/watched",
        free_port()
    );
    let node = || {
        let builder = Fleet::redis(&url).unwrap();
        Node::start(builder, 2, Quota::per_hour(20_000), OnFailure::Deny)
    };
    let nodes = [node(), node()];
    for node in &nodes {
        request_until(node, |answers| answers == (256, 0)).await;
        node.wait_reported().await;
    }
    assert_eq!(keys(&master).await, 256);
    // What was counted is in the replica: no client begins anew.
    master.kill();
    for node in &nodes {
        request_until(node, |(served, _)| served == 0).await;
    }
    wait_for(&sentinel, &["SENTINEL", "MASTERS"], &replica_port).await;
    for node in &nodes {
        request_until(node, |answers| answers == (256, 0)).await;
        node.wait_reported().await;
    }
    assert_eq!(keys(&replica).await, 256);

    // A sentinel that does not know the name.
    let url = url.replace("/watched", "/other");
    let stranger = Node::start(
        Fleet::redis(&url).unwrap(),
        1,
        Quota::per_hour(9),
        OnFailure::Deny,
    );
    request_until(&stranger, |_| stranger.is_alone()).await;
    assert!(
        stranger.texts().contains("does not know the master"),
        "{}",
        stranger.texts()
    );
}

#[tokio::test]
async fn a_master_that_hangs_for_a_moment_is_followed_again_while_all_sentinels_are_dead() {
    let (master_port, sentinel_port) = (free_port(), free_port());
    let port = master_port.to_string();
    let options = ["--bind", "127.0.0.1", "--port", &port];
    let Some(master) = RedisServer::start_with(&options).await else {
        return;
    };
    let sentinel = RedisServer::start_sentinel(sentinel_port, master_port).await;
    let builder = Fleet::redis(format!(
        "redis+sentinel://127.0.0.1:{sentinel_port}/watched"
    ));
    let quota = Quota::per_hour(20_000);
    let node = Node::start(builder.unwrap(), 2, quota, OnFailure::Deny);
    request_until(&node, |answers| answers == (256, 0)).await;
    wait_until("the master answers", || {
        node.gauge(Gauge::FleetRoundTrip) > 0
    })
    .await;
    drop(sentinel);
    let pause = ["CLIENT", "PAUSE", "300", "ALL"];
    assert_eq!(master.command(&pause).await, "+OK\r\n");
    request_until(&node, |_| node.is_alone()).await;
    request_until(&node, |answers| answers == (256, 0)).await;
    assert!(!node.is_alone(), "{}", node.texts());
}

/// Sends requests of many clients to a node on a cluster of one server that answers the script so.
/// Returns the number of scripts that it was called with, and what the node says of itself.
async fn moved_by(reply: impl Fn() -> String + Clone + Send + Sync + 'static) -> (usize, String) {
    let redis = FalseRedis::start("EVAL", move |_| Reply::Bytes(reply().into_bytes()));
    let url = redis.url().replace("redis://", "redis+cluster://");
    let builder = Fleet::redis(url).unwrap();
    let node = Node::start(builder, 2, Quota::per_hour(20_000), OnFailure::Deny);
    request_until(&node, |(_, unavailable)| unavailable == 256).await;
    // Each shard is tried again after 200 ms at the earliest.
    request_of_each(&node).await;
    // Those that were closed have been noticed.
    wait_until("few connections are open", || redis.open() <= 2).await;
    let calls = node.gauge(Gauge::FleetCalls) as usize;
    assert!(redis.calls() <= 2 * calls, "{} {calls}", redis.calls());
    (redis.calls(), node.texts())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_move_accounts_for_ever_are_followed_once_and_remembered_within_bounds() {
    let own = "-MOVED 1 :1\r\n".to_owned();
    moved_by(move || own.clone()).await;
    let next = Arc::new(AtomicUsize::new(0));
    let many = move || format!("-MOVED 1 127.0.0.2:{}\r\n", 1 + next.fetch_add(1, Relaxed));
    let (calls, text) = moved_by(many).await;
    assert!(calls > 16 && text.len() < 64 << 10, "{calls} {text}");
    for host in ["a b", "\u{1b}[2J", "", &"h".repeat(300)] {
        let answer = format!("-MOVED 1 {host}:port\r\n");
        let (_, text) = moved_by(move || answer.clone()).await;
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn the_url_of_several_servers_is_checked_and_shows_no_password() {
    let valid = [
        "redis+cluster://10.0.0.5",
        "redis+cluster://user:password@10.0.0.5:7000,10.0.0.6,[::1]:7000/0",
        "redis+sentinel://10.0.0.5/watched",
        "redis+sentinel://user:password@10.0.0.5:7000,[::1]/watched/3",
        "redis+sentinel://h/watched?sentinel_user=user&sentinel_pass=password",
    ];
    for url in valid {
        let text = format!("{:?}", Fleet::redis(url).unwrap());
        assert!(!text.contains("password"), "{text}");
    }
    let invalid = [
        "redis+cluster://",
        "redis+cluster://10.0.0.5,",
        "redis+cluster://10.0.0.5/3",
        "redis+cluster://10.0.0.5?db=3",
        "redis+cluster://user:password@10.0.0.5:port",
        "redis+sentinel://user:password@10.0.0.5",
        "redis+sentinel://10.0.0.5/",
        "redis+sentinel://10.0.0.5/a%20name",
        "redis+sentinel://10.0.0.5/watched/db",
        "redis+sentinel://10.0.0.5/watched?password=password",
        // A host `user` with port 12, without any password.
        "redis+sentinel://user:12#word@10.0.0.5/watched",
        "redis+sentinel://10.0.0.5/watched?sentinel_user=user&sentinel_pass=12#word",
        "redis+sentinel://10.0.0.5/watched?sentinel_user=user&sentinel_pass=12?word",
        "redis+unix+cluster:///path",
        "rediss+cluster://user:password@10.0.0.5",
    ];
    for url in invalid {
        let error = Fleet::redis(url).map(|it| format!("{url}: {it:?}"));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("redis+cluster://") && !text.contains("password@10"),
            "{text}"
        );
    }
    let many = vec!["10.0.0.5"; 17].join(",");
    assert!(Fleet::redis(format!("redis+cluster://{many}")).is_err());
}
