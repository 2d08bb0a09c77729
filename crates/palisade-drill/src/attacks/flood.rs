//! Requests without number.

use super::{
    attack::{Addresses, Attack, InQuick, Remedy, Takes, remedy},
    pause::reopen,
};
use crate::machine::{Actions, Event, Machine};
use bytes::Bytes;
use std::time::Duration;

const REMEDIES: &[Remedy] = &[
    remedy("palisade", "Stack: rate_limit and concurrency_limit"),
    remedy(
        "axum",
        "tower_governor, and tower's load_shed outside a concurrency limit",
    ),
    remedy(
        "nginx",
        "limit_req by $binary_remote_addr, which return passes by",
    ),
    remedy("HAProxy", "stick-table http_req_rate and http-request deny"),
];

pub(super) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T11",
        takes: Takes::Work,
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "flood-from-one-address",
            title: "requests from one address, again after each response",
            withholds: "nothing: it takes the work of the server",
            stopped_by: "a rate of requests for each client",
            connections: 64,
            addresses: Addresses::One,
            make: |plan, _| {
                Box::new(Flood {
                    request: plan.get_request(),
                    interval: Duration::from_millis(2),
                    ends: plan.ends,
                })
            },
            ..base.clone()
        },
        Attack {
            name: "flood-from-many-addresses",
            in_quick: InQuick::Skipped("flood-from-one-address takes more work"),
            title: "5 requests a second from each of 250 addresses",
            withholds: "nothing: each client stays below a usual limit",
            stopped_by: "a limit on the requests of all clients together",
            connections: 250,
            addresses: Addresses::Many(250),
            make: |plan, _| {
                Box::new(Flood {
                    request: plan.get_request(),
                    interval: Duration::from_millis(200),
                    ends: plan.ends,
                })
            },
            ..base
        },
    ]
}

/// Sends a request when the last is answered, at least one interval after it. Responses are told
/// apart by time alone: a large one in several reads counts as several answers at most once in an
/// interval.
struct Flood {
    request: Bytes,
    interval: Duration,
    ends: Duration,
}

impl Machine for Flood {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened | Event::Woken if now < self.ends => out.send(self.request.clone()),
            Event::Received(_) => out.wake_at(now + self.interval),
            Event::Closed => reopen(now, out),
            Event::Opened | Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn a_request_follows_each_answer_until_the_attack_ends() {
        let plan = Plan::new("a");
        let mut machine = (attacks()[0].make)(&plan, 0);
        let mut out = Actions::default();
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        assert_eq!(out.sent(), plan.get_request());
        assert_eq!(out.wake(), None);

        let mut out = Actions::default();
        machine.on(Event::Received(b"HTTP"), Duration::ZERO, &mut out);
        assert_eq!(out.wake(), Some(Duration::from_millis(2)));
        machine.on(Event::Woken, plan.ends, &mut out);
        assert!(out.sent().is_empty());
    }
}
