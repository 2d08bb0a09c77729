//! Whatever happens to a Redis, at random: the clients of four nodes get no more than the limit,
//! one burst for each loss of data, and the share of each node in an outage.

use crate::{
    SECRET,
    node::{LONGEST, Node},
    status,
};
use palisade_core::Gauge;
use palisade_fleet::{Fleet, OnFailure};
use palisade_rate_limit::Quota;
use palisade_testkit::{clients::wait_until, redis::RedisServer};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const NODES: u32 = 4;
/// Of a client: at once, and a second.
const BURST: u32 = 40;
const RATE: u32 = 20;
const CLIENTS: u8 = 8;

/// What is done to the Redis next.
struct Trouble {
    random: u64,
    /// How often all debts were lost.
    losses: u32,
}

impl Trouble {
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    async fn make(&mut self, redis: &mut RedisServer) {
        let millis = Duration::from_millis(self.random(300));
        match self.random(6) {
            0 => {
                redis.kill();
                sleep(millis).await;
                redis.restart().await;
                self.losses += 1;
            }
            1 => {
                redis.pause();
                sleep(millis).await;
                redis.resume();
            }
            2 => {
                redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
            }
            3 => {
                redis.command(&["SCRIPT", "FLUSH"]).await;
            }
            4 => {
                redis.command(&["FLUSHALL"]).await;
                self.losses += 1;
            }
            _ => {}
        }
        sleep(millis).await;
    }
}

/// Sends requests of all clients to all nodes for `time`. Returns how many of each were served.
async fn flood(nodes: &[Node], time: Duration) -> [u32; CLIENTS as usize] {
    let (started, mut served) = (Instant::now(), [0; CLIENTS as usize]);
    let (mut sent_in_all, mut slow) = (0, 0);
    while started.elapsed() < time {
        for node in nodes {
            for client in 0..CLIENTS {
                let sent = Instant::now();
                match status(&node.layer, client).await {
                    200 => served[usize::from(client)] += 1,
                    429 => {}
                    status => panic!("{status}"),
                }
                sent_in_all += 1;
                slow += u32::from(sent.elapsed() > LONGEST);
            }
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(slow <= 1 + sent_in_all / 20, "{slow} of {sent_in_all}");
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_gets_more_than_its_bound_whatever_happens_to_the_redis() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let seconds = std::env::var("PALISADE_SOAK_SECONDS").ok();
    let seconds: u64 = seconds.map_or(5, |text| text.parse().unwrap());
    let quota = Quota::per_second(RATE).burst(BURST);
    let start = |_| {
        let builder = Fleet::redis(redis.url()).unwrap().secret(SECRET);
        Node::start(builder, NODES, quota, OnFailure::LocalShare(2.0))
    };
    let nodes: Vec<_> = (0..NODES).map(start).collect();
    let started = Instant::now();
    let mut trouble = Trouble {
        random: 0x5eed_0003,
        losses: 0,
    };
    let time = Duration::from_secs(seconds);
    let (served, ()) = tokio::join!(flood(&nodes, time), async {
        while started.elapsed() < time {
            trouble.make(&mut redis).await;
        }
    });
    let took = started.elapsed().as_secs_f64();
    let alone: usize = nodes.iter().map(|node| node.journal.fleet().len()).sum();
    println!(
        "{served:?} served in {took:.1} s, {} losses",
        trouble.losses
    );
    println!("{alone} changes");
    // Twice the limit in an outage, and a burst for each loss of data and each outage of a node.
    let bursts = f64::from(2 + trouble.losses) + alone as f64;
    let most = 2.0 * f64::from(RATE) * took + bursts * f64::from(BURST);
    let least = 0.5 * f64::from(RATE) * took;
    for served in served {
        assert!(
            (least..=most).contains(&f64::from(served)),
            "{served} {least} {most}"
        );
    }
    // All counts together again, and nothing is left over.
    let after = flood(&nodes, Duration::from_secs(2)).await;
    let most = BURST + 3 * RATE + 2 * NODES * (BURST / (4 * NODES));
    assert!(after.iter().all(|served| *served <= most), "{after:?}");
    for node in &nodes {
        node.wait_reported().await;
        wait_until("it is not alone", || node.gauge(Gauge::FleetAlone) == 0).await;
        assert_eq!(node.gauge(Gauge::FleetLocalOnly), 0);
    }
}
