//! What an HTTP/2 server should refuse: clients under invented names, and requests of which two
//! readers see differently.

use super::{
    frames::{
        DATA, END_STREAM, GOAWAY, HEADER_TABLE_SIZE, HEADERS, RST_STREAM, headers, window_update,
    },
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Protocol, Takes, remedy},
        identity::{self, Identity},
    },
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use std::time::Duration;

/// The fields that make a request without a body malformed, which is to be refused.
const SHAPES: [&[(&str, &str)]; 4] = [
    // RFC 9113 section 8.2.2: of HTTP/1 alone. A server behind this one would believe it.
    &[("transfer-encoding", "chunked")],
    // Section 8.1.1: the stream ends before its length.
    &[("content-length", "5")],
    &[("content-length", "0"), ("content-length", "5")],
    // Section 8.2.1: another request in the value of a field.
    &[("x-a", "b\r\n\r\nGET /hidden HTTP/1.1\r\nhost: c")],
];

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "h2-invented-identities",
            protocol: Protocol::Http2,
            in_quick: InQuick::Skipped("invented-identities tries the same in HTTP/1"),
            make: |plan, index| Box::new(Impostor::new(plan, index)),
            ..identity::base()
        },
        Attack {
            name: "h2-malformed",
            threat: "T09",
            title: "HTTP/2 requests that an HTTP/1 server behind would read differently",
            withholds: "nothing: a proxy and its server take different bytes for the next request",
            stopped_by: "a reset of the stream (RFC 9113 section 8.1.1)",
            protocol: Protocol::Http2,
            connections: 16,
            addresses: Addresses::Many(16),
            takes: Takes::Passage,
            in_quick: InQuick::Skipped("it is no denial of service"),
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "palisade::serve, or hyper 1.12 with h2 0.4.20 below it",
                    ),
                    remedy("hyper", "h2 0.4.20 or later"),
                    remedy("nginx", "1.21.1 or later"),
                    remedy("HAProxy", "2.4.4 or later"),
                ]
            },
            make: |plan, index| Box::new(Malformed::new(plan, SHAPES[index % SHAPES.len()])),
            ..Attack::BASE
        },
    ]
}

/// Sends one request after the other, each on a stream of its own.
struct Impostor {
    plan: Plan,
    identity: Identity,
    session: Session,
    /// The stream that waits for its answer, and whether that has begun with success.
    waiting: Option<(u32, bool)>,
}

impl Impostor {
    fn new(plan: &Plan, index: usize) -> Self {
        Self {
            plan: plan.clone(),
            identity: Identity::new(plan, index),
            session: Session::default(),
            waiting: None,
        }
    }

    fn send(&mut self, now: Duration, out: &mut Actions) {
        let own = self.identity.next(now);
        let mut fields = self.plan.fields("GET", &self.plan.get);
        fields.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        let stream = self.session.next_stream();
        self.waiting = Some((stream, false));
        out.send(headers(stream, END_STREAM, &fields));
    }
}

impl Machine for Impostor {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                // Without a table, each answer says its status itself.
                self.session.open(&[(HEADER_TABLE_SIZE, 0)], out);
                self.send(now, out);
            }
            Event::Received(bytes) => {
                let (mut received, mut ended) = (0, None);
                let waiting = &mut self.waiting;
                self.session.read(bytes, out, |frame| {
                    if frame.kind == DATA {
                        received += frame.length as u32;
                    }
                    let Some((stream, is_served)) = waiting else {
                        return;
                    };
                    if frame.stream != *stream {
                        return;
                    }
                    *is_served |= frame.is_success();
                    let is_end =
                        matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
                    if is_end || frame.kind == RST_STREAM {
                        ended = Some(*is_served && is_end);
                        *waiting = None;
                    }
                });
                if received > 0 {
                    out.send(window_update(0, received));
                }
                if let Some(is_served) = ended {
                    self.identity.answered(is_served, now, out);
                    out.wake_at(now + identity::INTERVAL);
                }
            }
            Event::Woken if now < self.plan.ends && self.waiting.is_none() => self.send(now, out),
            Event::Woken => {}
            Event::Closed => {
                if self.waiting.take().is_some() {
                    self.identity.answered(false, now, out);
                }
                out.reopen_at(now + identity::PAUSE);
            }
        }
    }
}

/// Sends one malformed request. It has passed if that is served.
struct Malformed {
    plan: Plan,
    shape: &'static [(&'static str, &'static str)],
    session: Session,
}

impl Malformed {
    fn new(plan: &Plan, shape: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            plan: plan.clone(),
            shape,
            session: Session::default(),
        }
    }
}

impl Machine for Malformed {
    fn on(&mut self, event: Event<'_>, _: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.session.open(&[(HEADER_TABLE_SIZE, 0)], out);
                let mut fields = self.plan.fields("GET", &self.plan.get);
                fields.extend(self.shape);
                out.send(headers(self.session.next_stream(), END_STREAM, &fields));
            }
            Event::Received(bytes) => {
                let (mut is_served, mut is_answered) = (false, false);
                self.session.read(bytes, out, |frame| {
                    is_served |= frame.is_success();
                    is_answered |= matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY);
                });
                if is_served {
                    out.passed();
                }
                if is_answered {
                    out.close();
                }
            }
            // Once is enough: the answer will be the same.
            Event::Closed => out.refused(),
            Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{CANCEL, PREFACE, Reader, frame, reset};
    use super::*;

    fn on(machine: &mut dyn Machine, event: Event<'_>, now: Duration) -> Actions {
        let mut out = Actions::default();
        machine.on(event, now, &mut out);
        out
    }

    fn answer(stream: u32, block: &[u8]) -> Vec<u8> {
        frame(HEADERS, END_STREAM | 4, stream, block)
    }

    const TOO_MANY: &[u8] = &[0x20, 0x08, 3, b'4', b'2', b'9'];
    const OK: &[u8] = &[0x88];

    /// Answers each request by `serves`, which sees its bytes. Returns whether the machine passed.
    fn run(serves: impl Fn(&str) -> bool) -> bool {
        let mut machine = Impostor::new(&Plan::new("a"), 0);
        let mut sent = on(&mut machine, Event::Opened, Duration::ZERO).sent();
        let (mut has_passed, mut now, mut stream) = (false, Duration::ZERO, 1);
        while now < Duration::from_secs(10) {
            let text = String::from_utf8_lossy(&sent).into_owned();
            let block = if serves(&text) { OK } else { TOO_MANY };
            let out = on(&mut machine, Event::Received(&answer(stream, block)), now);
            has_passed |= out.signs().has_passed;
            assert_eq!(out.wake(), Some(now + identity::INTERVAL));
            now += identity::INTERVAL * 5;
            stream += 2;
            sent = on(&mut machine, Event::Woken, now).sent();
        }
        has_passed
    }

    #[test]
    fn a_limit_that_believes_the_fields_is_passed_and_others_are_not() {
        assert!(run(|request| request.contains("x-forwarded-for")));
        assert!(!run(|_| false));
        assert!(!run(|request| !request.contains("x-forwarded-for")));
    }

    #[test]
    fn a_reset_and_the_end_of_the_connection_are_refusals() {
        let mut machine = Impostor::new(&Plan::new("a"), 0);
        on(&mut machine, Event::Opened, Duration::ZERO);
        let out = on(
            &mut machine,
            Event::Received(&reset(1, CANCEL)),
            Duration::ZERO,
        );
        assert_eq!((out.signs().refused, out.signs().served), (1, 0));
        on(&mut machine, Event::Woken, Duration::ZERO);
        let out = on(&mut machine, Event::Closed, Duration::ZERO);
        assert_eq!(
            (out.signs().refused, out.reopening()),
            (1, Some(identity::PAUSE))
        );
    }

    #[test]
    fn a_malformed_request_passes_only_if_it_is_served() {
        for (frames, passes) in [
            (answer(1, OK), true),
            (answer(1, TOO_MANY), false),
            (reset(1, CANCEL), false),
            (frame(GOAWAY, 0, 0, &[0; 8]), false),
        ] {
            let mut machine = Malformed::new(&Plan::new("a"), SHAPES[3]);
            let sent = on(&mut machine, Event::Opened, Duration::ZERO).sent();
            let mut kinds = Vec::new();
            Reader::default().read(sent.strip_prefix(PREFACE).unwrap(), |f| kinds.push(f.kind));
            assert_eq!(kinds, [super::super::frames::SETTINGS, HEADERS]);
            assert!(sent.windows(6).any(|bytes| bytes == b"hidden"));
            let out = on(&mut machine, Event::Received(&frames), Duration::ZERO);
            assert_eq!((out.signs().has_passed, out.is_closing()), (passes, true));
            let out = on(&mut machine, Event::Closed, Duration::ZERO);
            assert_eq!(out.reopening(), None);
        }
    }
}
