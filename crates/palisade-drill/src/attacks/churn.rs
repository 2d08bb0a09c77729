//! Connections that are opened and closed as fast as the server answers.

use super::attack::{Addresses, Attack, InQuick, Takes, remedy};
use crate::machine::{Actions, Event, Machine};
use bytes::Bytes;
use std::time::Duration;

/// The shortest life of a connection, so that the rate is bounded: 64 connections open at most
/// 3,200 times a second.
const LIFE: Duration = Duration::from_millis(20);

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "churn",
        in_quick: InQuick::Skipped("flood-from-one-address takes as much work"),
        threat: "T01",
        title: "connections from one address that are replaced after each answer",
        withholds: "nothing: it takes accepts",
        stopped_by: "a rate of connections for each client",
        connections: 64,
        addresses: Addresses::One,
        takes: Takes::Work,
        remedies: const {
            &[
                remedy("palisade", "ConnGuard: accept_rate for each client"),
                remedy("nginx", "limit_conn and limit_req by $binary_remote_addr"),
                remedy(
                    "HAProxy",
                    "stick-table conn_rate and tcp-request connection reject",
                ),
            ]
        },
        make: |plan, _| {
            Box::new(Churn {
                request: plan.get_request(),
                opened: Duration::ZERO,
            })
        },
        ..Attack::BASE
    }]
}

/// Sends one request, and closes the connection at the first byte of the answer.
struct Churn {
    request: Bytes,
    opened: Duration,
}

impl Machine for Churn {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.opened = now;
                out.send(self.request.clone());
            }
            Event::Received(_) => out.close(),
            // Also after one that could not be opened.
            Event::Closed => {
                self.opened = now.max(self.opened + LIFE);
                out.reopen_at(self.opened);
            }
            Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    #[test]
    fn a_connection_is_closed_at_the_first_byte_and_replaced() {
        let mut machine = (attacks()[0].make)(&Plan::new("a"), 0);
        let second = Duration::from_secs(1);
        let mut out = Actions::default();
        machine.on(Event::Opened, second, &mut out);
        machine.on(Event::Received(b"H"), second, &mut out);
        assert!(out.is_closing());
        machine.on(Event::Closed, second, &mut out);
        assert_eq!(out.reopening(), Some(second + LIFE));
    }
}
