//! PING without pause beside a tunnel that was reset.

use super::{
    frames::{CANCEL, HEADERS, PING, frame, headers, reset},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Needs, Protocol, Takes, remedy},
        pause::reopen,
    },
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The frames in a batch, and the time between batches: 10,000 frames a second on each connection.
const BATCH_FRAMES: usize = 100;
const INTERVAL: Duration = Duration::from_millis(10);
/// The longest wait for the answer to CONNECT.
const ANSWER_TIME: Duration = Duration::from_millis(500);

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "ping-beside-reset-tunnel",
        threat: "T15",
        title: "HTTP/2 PING frames without pause, beside a CONNECT tunnel that was reset",
        withholds: "nothing: a limit on such frames may excuse them, because tunnels send PING",
        stopped_by: "a limit on frames that carry no request on, which a tunnel at its end has \
                     again",
        cve: Some("CVE-2019-9512"),
        protocol: Protocol::Http2,
        connections: 10,
        addresses: Addresses::Many(10),
        needs: Needs::Tunnels,
        takes: Takes::Work,
        in_quick: InQuick::Skipped("ping-flood takes the same work"),
        remedies: const {
            &[
                remedy(
                    "palisade",
                    "palisade::serve, ConnGuard: its limit on HTTP/2 frames",
                ),
                remedy(
                    "hyper",
                    "none: bound the frames of a connection in its socket",
                ),
                remedy("nginx", "none needed: it offers no extended CONNECT"),
                remedy(
                    "HAProxy",
                    "3.0 or later, tune.h2.fe.glitches-threshold 1000",
                ),
            ]
        },
        make: |plan, _| Box::new(Tunnel::new(plan)),
        ..Attack::BASE
    }]
}

/// Asks for a tunnel, resets it when it is answered, and sends PING from then on.
struct Tunnel {
    connect: Bytes,
    batch: Bytes,
    ends: Duration,
    is_reset: bool,
    session: Session,
}

impl Tunnel {
    fn new(plan: &Plan) -> Self {
        let mut fields = plan.fields("CONNECT", &plan.get);
        // Pseudo-headers come first (RFC 9113 section 8.3).
        fields.insert(1, (":protocol", "websocket"));
        fields.push(("sec-websocket-version", "13"));
        Self {
            connect: headers(1, 0, &fields).into(),
            batch: frame(PING, 0, 0, &[7; 8]).repeat(BATCH_FRAMES).into(),
            ends: plan.ends,
            is_reset: false,
            session: Session::default(),
        }
    }

    fn reset(&mut self, now: Duration, out: &mut Actions) {
        if !std::mem::replace(&mut self.is_reset, true) {
            out.send(reset(1, CANCEL));
            out.wake_at(now + INTERVAL);
        }
    }
}

impl Machine for Tunnel {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.session.open(&[], out);
                self.is_reset = false;
                out.send(self.connect.clone());
                out.wake_at(now + ANSWER_TIME);
            }
            Event::Received(bytes) => {
                let mut is_answered = false;
                self.session.read(bytes, out, |frame| {
                    is_answered |= (frame.kind, frame.stream) == (HEADERS, 1);
                });
                if is_answered {
                    self.reset(now, out);
                }
            }
            Event::Woken if !self.is_reset => self.reset(now, out),
            Event::Woken if now < self.ends => {
                out.send(self.batch.clone());
                out.wake_at(now + INTERVAL);
            }
            Event::Woken => {}
            Event::Closed => reopen(now, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::PREFACE;
    use super::*;

    fn on(machine: &mut Tunnel, event: Event<'_>, now: Duration) -> Actions {
        let mut out = Actions::default();
        machine.on(event, now, &mut out);
        out
    }

    #[test]
    fn a_tunnel_is_reset_when_it_is_answered_and_pings_follow() {
        let (mut machine, second) = (Tunnel::new(&Plan::new("a")), Duration::from_secs(1));
        let out = on(&mut machine, Event::Opened, second);
        let sent = out.sent();
        assert!(sent.starts_with(PREFACE));
        let text = String::from_utf8_lossy(&sent).into_owned();
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}"));
        assert!(at(":method") < at(":protocol") && at(":protocol") < at("user-agent"));
        assert_eq!(out.wake(), Some(second + ANSWER_TIME));

        let answer = frame(HEADERS, 4, 1, &[0x88]);
        let out = on(&mut machine, Event::Received(&answer), second);
        assert_eq!(out.sent(), reset(1, CANCEL));
        assert_eq!(out.wake(), Some(second + INTERVAL));
        let out = on(&mut machine, Event::Woken, second + INTERVAL);
        assert_eq!(out.sent(), frame(PING, 0, 0, &[7; 8]).repeat(BATCH_FRAMES));
        let out = on(&mut machine, Event::Woken, Duration::from_secs(10));
        assert_eq!((out.sent(), out.wake()), (vec![], None));
    }

    #[test]
    fn a_tunnel_that_nobody_answers_is_reset_after_half_a_second() {
        let mut machine = Tunnel::new(&Plan::new("a"));
        on(&mut machine, Event::Opened, Duration::ZERO);
        let out = on(&mut machine, Event::Woken, ANSWER_TIME);
        assert_eq!(out.sent(), reset(1, CANCEL));
    }
}
