//! Connections that stay by doing a little: rare requests, and many requests at once.

use super::{
    attack::{Addresses, Attack, InQuick, Takes, remedy},
    pause::reopen,
};
use crate::machine::{Actions, Event, Machine};
use bytes::Bytes;
use std::time::Duration;

/// The time between two requests of a connection that hoards: less than the idle timeouts that
/// servers have.
const RARELY: Duration = Duration::from_millis(2_900);
/// The requests in a pipelined batch, and the time between batches.
const BATCH_REQUESTS: usize = 50;
const BATCH_INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "rare-requests",
            threat: "T05",
            title: "a small request every 2.9 seconds on 4 connections of each of 250 addresses",
            withholds: "its place, by work that is next to none",
            stopped_by: "a cap that gives the place of the connection with the least work to a \
                         newcomer; no timeout sees it, and no limit on the connections of a client",
            connections: 1_000,
            addresses: Addresses::Many(250),
            in_quick: InQuick::Skipped("it differs from silence after 3 s only"),
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "ConnGuard: max_connections, which evicts by work",
                    ),
                    remedy(
                        "nginx",
                        "keepalive_time 1m, and worker_connections to spare",
                    ),
                    remedy(
                        "HAProxy",
                        "timeout http-keep-alive 1s, and maxconn to spare",
                    ),
                ]
            },
            make: |plan, _| {
                Box::new(Hoard {
                    requests: plan.get_request(),
                    interval: RARELY,
                    ends: Duration::MAX,
                })
            },
            ..Attack::BASE
        },
        Attack {
            name: "pipelined-requests",
            threat: "T05",
            title: "50 requests in a packet on each of 16 connections, 20 times a second",
            withholds: "nothing: it takes the work of the server, a read for 50 requests",
            stopped_by: "a rate of requests for each client, and fair turns among connections",
            connections: 16,
            addresses: Addresses::One,
            takes: Takes::Work,
            in_quick: InQuick::Skipped("flood-from-one-address takes the same work"),
            remedies: const {
                &[
                    remedy("palisade", "Stack: rate_limit"),
                    remedy("axum", "tower_governor"),
                    remedy("nginx", "limit_req by $binary_remote_addr"),
                    remedy("HAProxy", "stick-table http_req_rate and http-request deny"),
                ]
            },
            make: |plan, _| {
                Box::new(Hoard {
                    requests: plan.get_request().repeat(BATCH_REQUESTS).into(),
                    interval: BATCH_INTERVAL,
                    ends: plan.ends,
                })
            },
            ..Attack::BASE
        },
    ]
}

/// Sends its requests at each interval, and reads the answers.
struct Hoard {
    requests: Bytes,
    interval: Duration,
    ends: Duration,
}

impl Machine for Hoard {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened | Event::Woken if now < self.ends => {
                out.send(self.requests.clone());
                out.wake_at(now + self.interval);
            }
            Event::Closed => reopen(now, out),
            Event::Opened | Event::Woken | Event::Received(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{machine::trace, plan::Plan};

    fn sent(name: &str, seconds: u64) -> Vec<(Duration, Vec<u8>)> {
        let attacks = attacks();
        let attack = attacks.iter().find(|attack| attack.name == name).unwrap();
        let mut machine = (attack.make)(&Plan::new("a"), 0);
        trace(&mut *machine, Duration::from_secs(seconds))
    }

    #[test]
    fn a_connection_that_hoards_sends_one_whole_request_every_2_9_seconds() {
        let (sent, request) = (sent("rare-requests", 60), Plan::new("a").get_request());
        assert_eq!(sent.len(), 21);
        assert!(sent.iter().all(|(_, bytes)| *bytes == request));
        assert_eq!(sent[20].0, Duration::from_secs(58));
    }

    #[test]
    fn a_pipeline_is_50_requests_at_once_until_the_attack_ends() {
        let (sent, request) = (sent("pipelined-requests", 60), Plan::new("a").get_request());
        assert_eq!(sent[1].0, Duration::from_millis(50));
        assert_eq!(sent[1].1, request.repeat(50));
        assert_eq!(sent.last().unwrap(), &(Duration::from_secs(10), vec![]));
    }
}
