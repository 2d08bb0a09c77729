//! Connections that send nothing, or nothing more after a request.

use super::{
    attack::{Attack, InQuick, remedy},
    pause::reopen,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "silent",
            threat: "T01",
            title: "connections that send nothing",
            withholds: "the first byte",
            stopped_by: "a deadline for the first request that begins at accept, and a cap that \
                         makes room",
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "ConnGuard: first_request_timeout and max_connections",
                    ),
                    remedy("hyper", "http1::Builder::timer and header_read_timeout"),
                    remedy("nginx", "client_header_timeout 5s"),
                    remedy("HAProxy", "timeout http-request 5s, and maxconn to spare"),
                ]
            },
            make: |_, _| Box::new(Silent { request: None }),
            ..Attack::BASE
        },
        Attack {
            name: "keep-alive-silence",
            in_quick: InQuick::Skipped("pipelined-silence holds the same places"),
            threat: "T04",
            title: "connections that are silent after one answered request",
            withholds: "the second request",
            stopped_by: "an idle timeout that shrinks when places are short",
            remedies: const {
                &[
                    remedy("palisade", "ConnGuard: idle_timeout and max_connections"),
                    remedy(
                        "hyper",
                        "none for HTTP/1: close the connection after a time of its own",
                    ),
                    remedy("nginx", "keepalive_timeout 10s"),
                    remedy(
                        "HAProxy",
                        "timeout http-keep-alive 1s, and maxconn to spare",
                    ),
                ]
            },
            make: |plan, _| {
                Box::new(Silent {
                    request: Some(plan.get_request()),
                })
            },
            ..Attack::BASE
        },
        Attack {
            name: "pipelined-silence",
            threat: "T01",
            title: "a GET and a POST in one packet, both answered, then silence",
            withholds: "the third request",
            stopped_by: "an idle timeout that a body read with its head does not switch off",
            remedies: const {
                &[
                    remedy("palisade", "ConnGuard: idle_timeout and max_connections"),
                    remedy("nginx", "keepalive_timeout 10s"),
                    remedy(
                        "HAProxy",
                        "timeout http-keep-alive 1s, and maxconn to spare",
                    ),
                ]
            },
            make: |plan, _| {
                Box::new(Silent {
                    request: Some(pipelined(plan)),
                })
            },
            ..Attack::BASE
        },
    ]
}

/// Returns a GET, and a POST with its body. Without a POST route the second answer is a refusal,
/// after which the connection is as silent.
fn pipelined(plan: &Plan) -> Bytes {
    let path = plan.post.as_deref().unwrap_or(&plan.get);
    let head = plan.head("POST", path);
    let mut bytes = plan.get_request().to_vec();
    bytes.extend_from_slice(format!("{head}content-length: 4\r\n\r\nbody").as_bytes());
    bytes.into()
}

/// Sends `request`, if there is one, and nothing more.
struct Silent {
    request: Option<Bytes>,
}

impl Machine for Silent {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.request.clone().unwrap_or_default()),
            Event::Closed => reopen(now, out),
            Event::Received(_) | Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    fn make(name: &str) -> Box<dyn Machine> {
        let attacks = attacks();
        let attack = attacks.iter().find(|attack| attack.name == name).unwrap();
        (attack.make)(&Plan::new("a"), 0)
    }

    #[test]
    fn a_silent_connection_sends_nothing_and_is_replaced_when_it_is_closed() {
        let mut machine = make("silent");
        let minute = Duration::from_secs(60);
        assert_eq!(trace(&mut *machine, minute), [(Duration::ZERO, vec![])]);
        let mut out = Actions::default();
        machine.on(Event::Closed, minute, &mut out);
        assert_eq!(out.reopening(), Some(minute + Duration::from_millis(500)));
    }

    #[test]
    fn a_keep_alive_connection_sends_one_request_and_is_silent() {
        let mut machine = make("keep-alive-silence");
        let sent = trace(&mut *machine, Duration::from_secs(60));
        assert_eq!(sent.len(), 1);
        assert!(sent[0].1.starts_with(b"GET / HTTP/1.1\r\n") && sent[0].1.ends_with(b"\r\n\r\n"));
        let mut out = Actions::default();
        machine.on(
            Event::Received(b"HTTP/1.1 200 OK\r\n"),
            Duration::ZERO,
            &mut out,
        );
        assert!(out.sent().is_empty() && out.wake().is_none());
    }

    #[test]
    fn a_pipelined_pair_ends_with_the_body_of_the_post() {
        let sent = trace(&mut *make("pipelined-silence"), Duration::from_secs(60));
        let text = String::from_utf8(sent[0].1.clone()).unwrap();
        assert!(
            text.contains("\r\n\r\nPOST / ") && text.ends_with("content-length: 4\r\n\r\nbody")
        );
    }
}
