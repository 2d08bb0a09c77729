//! Handshakes without number, from 40 addresses. None is ever finished.

use super::{
    super::attack::{Addresses, Attack, InQuick, Needs, Remedy, Takes, remedy},
    hello::{Random, client_hello},
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use std::time::Duration;

const ADDRESSES: usize = 40;
/// The shortest lives of a connection, so that the rates are bounded: 64 connections that close
/// make at most 3,200 handshakes a second, and 1,280 that wait at most 3,600.
const CLOSING_LIFE: Duration = Duration::from_millis(20);
const WAITING_LIFE: Duration = Duration::from_millis(355);

const REMEDIES: &[Remedy] = &[
    remedy(
        "palisade",
        "Serve::max_handshakes, and ConnGuard: accept_rate for each client",
    ),
    remedy(
        "tokio-rustls",
        "a cap on the handshakes at once for each client, and on all of them",
    ),
    remedy(
        "nginx",
        "limit_conn by $binary_remote_addr, and client_header_timeout 5s",
    ),
    remedy(
        "HAProxy",
        "stick-table conn_rate and tcp-request connection reject, and maxsslrate",
    ),
];

pub(super) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T01",
        needs: Needs::Tls,
        takes: Takes::Work,
        addresses: Addresses::Many(ADDRESSES),
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "handshake-flood",
            in_quick: InQuick::Skipped("unfinished-handshakes takes as much work"),
            title: "TLS handshakes from 40 addresses that end at the ServerHello, again and again",
            withholds: "nothing: it takes signatures and key exchanges",
            stopped_by: "a rate of connections for each client",
            connections: 64,
            make: |plan, index| Box::new(Flood::new(plan, index, true)),
            ..base.clone()
        },
        Attack {
            name: "unfinished-handshakes",
            title: "TLS handshakes from 40 addresses without a second flight, each replaced at once",
            withholds: "the client's Finished",
            stopped_by: "a cap on handshakes that evicts those of a crowd, and not the slow ones",
            connections: 1_280,
            make: |plan, index| Box::new(Flood::new(plan, index, false)),
            ..base
        },
    ]
}

/// Sends a `ClientHello`. Closes the connection when the server answers, or waits until the server
/// does. Opens another at once.
struct Flood {
    host: String,
    random: Random,
    closes: bool,
    opened: Duration,
}

impl Flood {
    fn new(plan: &Plan, index: usize, closes: bool) -> Self {
        Self {
            host: plan.host.clone(),
            random: Random::new(plan.seed, index),
            closes,
            opened: Duration::ZERO,
        }
    }
}

impl Machine for Flood {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.opened = now;
                out.send(client_hello(&self.host, &mut self.random));
            }
            Event::Received(_) if self.closes => out.close(),
            // Also after one that could not be opened.
            Event::Closed => {
                let life = if self.closes {
                    CLOSING_LIFE
                } else {
                    WAITING_LIFE
                };
                self.opened = now.max(self.opened + life);
                out.reopen_at(self.opened);
            }
            Event::Received(_) | Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(at: usize) -> Box<dyn Machine> {
        (attacks()[at].make)(&Plan::new("localhost:1"), 5)
    }

    #[test]
    fn a_handshake_ends_at_the_server_hello_and_another_begins() {
        let mut machine = machine(0);
        let (second, mut random) = (Duration::from_secs(1), Random::new(0, 5));
        for _ in 0..3 {
            let mut out = Actions::default();
            machine.on(Event::Opened, second, &mut out);
            assert_eq!(out.sent(), client_hello("localhost:1", &mut random));
            assert!(!out.is_closing());
            machine.on(Event::Received(&[22, 3, 3]), second, &mut out);
            assert!(out.is_closing());
            machine.on(Event::Closed, second, &mut out);
            assert_eq!(out.reopening(), Some(second + CLOSING_LIFE));
        }
    }

    #[test]
    fn an_unfinished_handshake_stays_until_the_server_ends_it_and_is_replaced_at_once() {
        let mut machine = machine(1);
        let (second, mut out) = (Duration::from_secs(1), Actions::default());
        machine.on(Event::Opened, second, &mut out);
        machine.on(Event::Received(&[22, 3, 3]), second, &mut out);
        assert!(!out.is_closing() && out.wake().is_none());
        machine.on(Event::Closed, 3 * second, &mut out);
        assert_eq!(out.reopening(), Some(3 * second));
    }

    #[test]
    fn the_rates_are_bounded() {
        for (attack, life) in attacks().iter().zip([CLOSING_LIFE, WAITING_LIFE]) {
            let rate = attack.connections as f64 / life.as_secs_f64();
            assert!((3_000.0..3_700.0).contains(&rate), "{rate}");
            assert_eq!(attack.addresses, Addresses::Many(40));
            // Those of the longest round of the drill.
            assert!(rate * 10.0 < crate::bounds::MAX_OPENED as f64);
        }
    }
}
