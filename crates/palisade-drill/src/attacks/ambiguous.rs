//! Requests that two readers read differently, by which a request is smuggled past the first.

use super::{
    attack::{Addresses, Attack, InQuick, Takes, remedy},
    responses::Responses,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The time after an answer within which the server closes a connection.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// The fields that make a length ambiguous, each after the last line of a head.
const SHAPES: [&str; 4] = [
    // Read by its length or by its chunks (RFC 9112 section 6.1: the connection must be closed).
    "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    // Section 6.3: to be refused.
    "content-length: 0\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    // Section 5.1: to be refused.
    "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    // Section 6.3: the last coding is not chunked, so that the end of the body is unknown.
    "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
];

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "ambiguous-length",
        threat: "T09",
        title: "requests with two lengths, and another request behind each",
        withholds: "nothing: a proxy and its server take different bytes for the next request",
        stopped_by: "400 and the end of the connection, or one reading and its end (RFC 9112 \
                     section 6)",
        connections: 16,
        addresses: Addresses::Many(16),
        takes: Takes::Passage,
        in_quick: InQuick::Skipped("it is no denial of service"),
        remedies: const {
            &[
                remedy("palisade", "palisade::serve, or hyper 1.12 below it"),
                remedy(
                    "hyper",
                    "1.12: it refuses these, or closes the connection after them",
                ),
                remedy("nginx", "1.21.1 or later, which refuses two lengths"),
                remedy(
                    "HAProxy",
                    "2.4.4 or later, without option accept-invalid-http-request",
                ),
            ]
        },
        make: |plan, index| Box::new(Ambiguous::new(plan, SHAPES[index % SHAPES.len()])),
        ..Attack::BASE
    }]
}

/// Sends an ambiguous request with another behind it. It has passed if both are answered with
/// success, or if the connection is still open a while after one was.
struct Ambiguous {
    bytes: Bytes,
    responses: Responses,
    served: usize,
}

impl Ambiguous {
    fn new(plan: &Plan, shape: &str) -> Self {
        let head = plan.head("GET", &plan.get);
        let mut bytes = format!("{head}{shape}").into_bytes();
        bytes.extend_from_slice(&plan.get_request());
        Self {
            bytes: bytes.into(),
            responses: Responses::default(),
            served: 0,
        }
    }
}

impl Machine for Ambiguous {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.bytes.clone()),
            Event::Received(bytes) => {
                let served = &mut self.served;
                self.responses.read(bytes, |status| {
                    if (200..400).contains(&status) {
                        *served += 1;
                    }
                });
                if self.served > 1 {
                    out.passed();
                }
                out.wake_at(now + CLOSING_TIME);
            }
            Event::Woken => {
                if self.served > 0 {
                    out.passed();
                }
                out.close();
            }
            // Once is enough: the answer will be the same.
            Event::Closed if self.served < 2 => out.refused(),
            Event::Closed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(machine: &mut Ambiguous, event: Event<'_>) -> Actions {
        let mut out = Actions::default();
        machine.on(event, Duration::from_secs(1), &mut out);
        out
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    #[test]
    fn each_shape_hides_a_request_behind_its_body() {
        for shape in SHAPES {
            let mut machine = Ambiguous::new(&Plan::new("a"), shape);
            let sent = on(&mut machine, Event::Opened).sent();
            let text = String::from_utf8(sent).unwrap();
            assert!(
                text.contains(&format!("{shape}GET / HTTP/1.1\r\n")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_refusal_or_one_answer_and_the_end_does_not_pass() {
        for answer in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..],
            OK,
            b"",
        ] {
            let mut machine = Ambiguous::new(&Plan::new("a"), SHAPES[0]);
            if !answer.is_empty() {
                let out = on(&mut machine, Event::Received(answer));
                assert_eq!(out.wake(), Some(Duration::from_millis(1_500)));
                assert!(!out.signs().has_passed);
            }
            let closed = on(&mut machine, Event::Closed);
            assert!(!closed.signs().has_passed && closed.signs().refused == 1);
            assert_eq!(closed.reopening(), None);
        }
    }

    #[test]
    fn two_answers_pass_and_so_does_a_connection_that_stays_open() {
        let mut machine = Ambiguous::new(&Plan::new("a"), SHAPES[1]);
        assert!(
            on(&mut machine, Event::Received(&OK.repeat(2)))
                .signs()
                .has_passed
        );
        let mut machine = Ambiguous::new(&Plan::new("a"), SHAPES[0]);
        on(&mut machine, Event::Received(OK));
        let out = on(&mut machine, Event::Woken);
        assert!(out.signs().has_passed && out.is_closing());
    }
}
