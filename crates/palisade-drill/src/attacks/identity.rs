//! Invented identities: a client that a limit stops tries to pass as others.

use super::{
    attack::{Addresses, Attack, Takes, remedy},
    responses::Responses,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::{net::Ipv4Addr, time::Duration};

/// The time between an answer and the next request, and the pause after a closed connection.
pub(super) const INTERVAL: Duration = Duration::from_millis(2);
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// The answers of each kind that are looked at.
const MIN_ANSWERS: u32 = 20;
/// The fields in which proxies name the client.
const FIELDS: [&str; 6] = [
    "x-forwarded-for",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
    "x-client-ip",
    "fly-client-ip",
];

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "invented-identities",
        make: |plan, index| Box::new(Impostor::new(plan, index)),
        ..base()
    }]
}

/// Returns what the attacks of both protocols have in common.
pub(super) fn base() -> Attack {
    Attack {
        threat: "T13",
        title: "requests from one address until a limit refuses them, then each under another name",
        withholds: "its address, behind X-Forwarded-For, Forwarded and others",
        stopped_by: "fields of a proxy that are read from trusted addresses alone. A server that \
                     trusts loopback trusts this drill",
        connections: 16,
        addresses: Addresses::One,
        takes: Takes::Passage,
        remedies: const {
            &[
                remedy(
                    "palisade",
                    "ConnGuard: trust, with the networks of the proxies",
                ),
                remedy(
                    "axum",
                    "tower_governor: PeerIpKeyExtractor, not SmartIpKeyExtractor",
                ),
                remedy("nginx", "set_real_ip_from with the networks of the proxies"),
                remedy(
                    "HAProxy",
                    "http-request track-sc0 src, and del-header x-forwarded-for",
                ),
            ]
        },
        ..Attack::BASE
    }
}

/// The name that the next request bears. It is that of the client itself for the first half of the
/// attack. If most of the last requests were refused, the same requests follow under invented
/// identities, at the same pace. They pass if most are served: whatever limits the client does not
/// see that it is the same.
pub(super) struct Identity {
    ends: Duration,
    itself: Counter,
    invented: Counter,
    last: u32,
}

/// The last answers of one kind, at most [`MIN_ANSWERS`] and a few.
#[derive(Default)]
struct Counter {
    answers: u32,
    served: u32,
}

impl Counter {
    fn count(&mut self, is_served: bool) {
        // Older answers lose their weight: a limit lets a burst pass at first.
        if self.answers == 2 * MIN_ANSWERS {
            (self.answers, self.served) = (MIN_ANSWERS, self.served / 2);
        }
        self.answers += 1;
        self.served += u32::from(is_served);
    }

    fn is_mostly(&self, served: bool) -> bool {
        let count = if served {
            self.served
        } else {
            self.answers - self.served
        };
        self.answers >= MIN_ANSWERS && 10 * count >= 9 * self.answers
    }
}

impl Identity {
    pub(super) fn new(plan: &Plan, index: usize) -> Self {
        Self {
            ends: plan.ends,
            itself: Counter::default(),
            invented: Counter::default(),
            last: (index as u32) << 12 ^ plan.seed as u32,
        }
    }

    /// Returns whether identities are invented at `now`.
    fn invents(&self, now: Duration) -> bool {
        now >= self.ends / 2 && self.itself.is_mostly(false)
    }

    /// Returns the fields of the next request, which is the client's own if there are none.
    pub(super) fn next(&mut self, now: Duration) -> Vec<(&'static str, String)> {
        if !self.invents(now) {
            return Vec::new();
        }
        self.last = self.last.wrapping_add(1);
        // 198.18.0.0/15 is kept for tests of networks (RFC 2544), so that it is of no client.
        let identity = Ipv4Addr::from(0xc612_0000 | self.last & 0x1_ffff).to_string();
        let mut fields: Vec<_> = FIELDS.map(|name| (name, identity.clone())).into();
        fields.push(("forwarded", format!("for={identity}")));
        fields
    }

    /// Counts an answer.
    pub(super) fn answered(&mut self, is_served: bool, now: Duration, out: &mut Actions) {
        if self.invents(now) {
            self.invented.count(is_served);
            if self.invented.is_mostly(true) {
                out.passed();
            }
        } else {
            self.itself.count(is_served);
        }
        if is_served {
            out.served();
        } else {
            out.refused();
        }
    }
}

/// Sends one request after the other, and looks at what becomes of each.
struct Impostor {
    plan: Plan,
    responses: Responses,
    /// Whether a request waits for its answer.
    is_waiting: bool,
    identity: Identity,
}

impl Impostor {
    fn new(plan: &Plan, index: usize) -> Self {
        Self {
            plan: plan.clone(),
            responses: Responses::default(),
            is_waiting: false,
            identity: Identity::new(plan, index),
        }
    }

    fn request(&mut self, now: Duration) -> Bytes {
        let mut head = self.plan.head("GET", &self.plan.get);
        for (name, value) in self.identity.next(now) {
            head.extend([name, ": ", &value, "\r\n"]);
        }
        format!("{head}\r\n").into()
    }
}

impl Machine for Impostor {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened | Event::Woken => {
                if now < self.plan.ends && !self.is_waiting {
                    self.is_waiting = true;
                    let request = self.request(now);
                    out.send(request);
                }
            }
            Event::Received(bytes) => {
                let mut status = None;
                self.responses.read(bytes, |next| status = Some(next));
                if let Some(status) = status {
                    self.is_waiting = false;
                    self.identity
                        .answered((200..400).contains(&status), now, out);
                    out.wake_at(now + INTERVAL);
                }
            }
            Event::Closed => {
                let status = self.responses.close();
                if self.is_waiting {
                    let is_served = status.is_some_and(|status| (200..400).contains(&status));
                    self.is_waiting = false;
                    self.identity.answered(is_served, now, out);
                }
                out.reopen_at(now + PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const REFUSED: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";

    /// Runs a machine against a server that answers by the fields of a request. Returns whether it
    /// passed, and the numbers of requests that were served and refused.
    fn run(mut serves: impl FnMut(&str) -> bool) -> crate::machine::Signs {
        let mut machine = Impostor::new(&Plan::new("a"), 3);
        let (mut signs, mut now) = (crate::machine::Signs::default(), Duration::ZERO);
        while now < Duration::from_secs(10) {
            let mut out = Actions::default();
            machine.on(Event::Woken, now, &mut out);
            let request = String::from_utf8(out.sent()).unwrap();
            let mut out = Actions::default();
            let answer = if serves(&request) { OK } else { REFUSED };
            machine.on(Event::Received(answer), now, &mut out);
            let seen = out.signs();
            signs.served += seen.served;
            signs.refused += seen.refused;
            signs.has_passed |= seen.has_passed;
            assert_eq!(out.wake(), Some(now + INTERVAL));
            now += INTERVAL * 5;
        }
        signs
    }

    #[test]
    fn a_limit_that_believes_the_fields_is_passed() {
        let mut left = 40;
        let signs = run(|request| {
            left -= 1;
            request.contains("x-forwarded-for: 198.1") || left > 0
        });
        assert!(signs.has_passed && signs.refused > 400);
    }

    #[test]
    fn a_limit_on_the_address_is_not_passed_by_any_name() {
        let mut number = 0;
        let signs = run(|_| {
            number += 1;
            number < 40 || number % 50 == 0
        });
        assert!(!signs.has_passed && signs.refused > 900);
    }

    #[test]
    fn a_client_that_nothing_refuses_stays_itself() {
        let signs = run(|request| {
            assert!(!request.contains("forwarded"));
            true
        });
        assert_eq!(
            (signs.has_passed, signs.refused, signs.served),
            (false, 0, 1_000)
        );
    }

    #[test]
    fn each_request_under_an_invented_name_has_another() {
        let mut names = std::collections::HashSet::new();
        run(|request| {
            let name = request.split("forwarded: for=").nth(1);
            let name = name.map(|rest| rest.trim_end().to_owned());
            name.is_some_and(|name| names.insert(name))
        });
        assert!(names.len() > 400);
    }

    #[test]
    fn a_connection_that_ends_without_an_answer_is_a_refusal() {
        let (mut machine, mut out) = (Impostor::new(&Plan::new("a"), 0), Actions::default());
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        machine.on(Event::Closed, Duration::ZERO, &mut out);
        assert_eq!((out.signs().refused, out.reopening()), (1, Some(PAUSE)));
    }
}
