//! HTTP/2 requests without number.

use super::{
    frames::{DATA, END_STREAM, HEADERS, RST_STREAM, headers, window_update},
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

/// The requests that each connection has under way.
const REQUESTS: usize = 50;
/// The time between an answer and the request that replaces it.
const INTERVAL: Duration = Duration::from_millis(10);

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "h2-flood-from-one-address",
        threat: "T11",
        title: "50 HTTP/2 requests under way on each of 8 connections from one address",
        withholds: "nothing: it takes the work of the server",
        stopped_by: "a rate of requests for each client, over all its connections",
        protocol: Protocol::Http2,
        connections: 8,
        addresses: Addresses::One,
        takes: Takes::Work,
        in_quick: InQuick::Skipped("flood-from-one-address takes the same work"),
        remedies: const {
            &[
                remedy("palisade", "Stack: rate_limit and concurrency_limit"),
                remedy("axum", "tower_governor, and tower's load_shed"),
                remedy("nginx", "limit_req by $binary_remote_addr"),
                remedy("HAProxy", "stick-table http_req_rate and http-request deny"),
            ]
        },
        make: |plan, _| {
            Box::new(Flood {
                plan: plan.clone(),
                wanted: REQUESTS,
                session: Session::default(),
            })
        },
        ..Attack::BASE
    }]
}

/// Replaces each answered request, and opens the windows for what it received.
struct Flood {
    plan: Plan,
    /// The requests to send at the next interval.
    wanted: usize,
    session: Session,
}

impl Flood {
    fn send(&mut self, out: &mut Actions) {
        let fields = self.plan.fields("GET", &self.plan.get);
        for _ in 0..std::mem::take(&mut self.wanted) {
            out.send(headers(self.session.next_stream(), END_STREAM, &fields));
        }
    }
}

impl Machine for Flood {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.session.open(&[], out);
                self.wanted = REQUESTS;
                self.send(out);
            }
            Event::Received(bytes) => {
                let (mut answered, mut received) = (0, 0);
                self.session.read(bytes, out, |frame| {
                    let ends = frame.flags & END_STREAM != 0;
                    match frame.kind {
                        DATA => received += frame.length as u32,
                        HEADERS => {}
                        RST_STREAM => return answered += 1,
                        _ => return,
                    }
                    answered += usize::from(ends);
                });
                if received > 0 {
                    out.send(window_update(0, received));
                }
                if answered > 0 && self.wanted == 0 {
                    out.wake_at(now + INTERVAL);
                }
                self.wanted = REQUESTS.min(self.wanted + answered);
            }
            Event::Woken if now < self.plan.ends => self.send(out),
            Event::Woken => {}
            Event::Closed => reopen(now, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{PREFACE, Reader, WINDOW_UPDATE, frame};
    use super::*;

    fn on(machine: &mut dyn Machine, event: Event<'_>, now: Duration) -> (Actions, Vec<(u8, u32)>) {
        let mut out = Actions::default();
        machine.on(event, now, &mut out);
        let (sent, mut seen) = (out.sent(), Vec::new());
        let sent = sent.strip_prefix(PREFACE).unwrap_or(&sent);
        Reader::default().read(sent, |frame| seen.push((frame.kind, frame.stream)));
        (out, seen)
    }

    #[test]
    fn each_answer_is_followed_by_a_request_after_10_ms_and_the_window_is_opened() {
        let mut machine = (attacks()[0].make)(&Plan::new("a"), 0);
        let (_, sent) = on(&mut *machine, Event::Opened, Duration::ZERO);
        assert_eq!((sent.len(), sent[50]), (51, (HEADERS, 99)));

        let body = frame(DATA, END_STREAM, 1, b"hello");
        let answers = [
            frame(HEADERS, 4, 1, &[0x88]),
            body,
            frame(HEADERS, 5, 3, &[0x88]),
        ]
        .concat();
        let (out, sent) = on(&mut *machine, Event::Received(&answers), INTERVAL);
        assert_eq!(
            (out.wake(), sent),
            (Some(2 * INTERVAL), vec![(WINDOW_UPDATE, 0)])
        );
        let (_, sent) = on(&mut *machine, Event::Woken, 2 * INTERVAL);
        assert_eq!(sent, [(HEADERS, 101), (HEADERS, 103)]);
        let (_, sent) = on(&mut *machine, Event::Woken, Duration::from_secs(10));
        assert_eq!(sent, []);
    }
}
