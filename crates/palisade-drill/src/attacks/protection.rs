//! Honest clients that look like attackers. A server that refuses them protects too much.

use super::{
    attack::{Addresses, Attack, InQuick, Needs, Takes, Times, remedy},
    responses::Responses,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The longest wait for an answer, if the attack does not end before.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between the two requests of each of a hundred clients.
const SECOND_VISIT: Duration = Duration::from_secs(1);
/// The pause between the requests of a visit.
const CLICK: Duration = Duration::from_millis(200);
/// The pause in which a pool keeps a connection.
const POOL_IDLE: Duration = Duration::from_secs(5);
/// A slow steady upload: a piece and the time between two, 4 KiB a second.
const PIECE_BYTES: usize = 1_024;
const PIECE_INTERVAL: Duration = Duration::from_millis(250);
/// The time of a steady upload in the full drill.
const STEADY_TIME: Duration = Duration::from_secs(16);
/// The largest body of a steady upload: one that any server admits.
const MAX_UPLOAD_BYTES: usize = 90_000;

/// Returns the clients that come back. They are to be the last in a drill, so that a minute has
/// passed since they came first.
pub(super) fn returning() -> Attack {
    Attack {
        name: "returning-client",
        in_quick: InQuick::Less("the clients return before a minute has passed"),
        title: "20 clients that come again after a minute, with three requests each",
        stopped_by: "bans and tables of clients that do not hold one visit against the next",
        connections: 20,
        addresses: Addresses::Many(20),
        times: Times {
            returns: Some([Duration::from_secs(3), Duration::from_secs(60)]),
            ..Attack::BASE.times
        },
        make: |plan, _| Box::new(Visitor::new(plan, &[Duration::ZERO, CLICK, CLICK])),
        ..base()
    }
}

fn base() -> Attack {
    Attack {
        threat: "T14",
        withholds: "nothing: these clients are honest",
        takes: Takes::Nothing,
        addresses: Addresses::One,
        remedies: const {
            &[
                remedy(
                    "palisade",
                    "Stack: rate_limit with a burst, ConnGuard: max_per_client",
                ),
                remedy(
                    "axum",
                    "tower_governor: GovernorConfigBuilder::burst_size 100",
                ),
                remedy("nginx", "limit_req burst=100 nodelay, limit_conn 200"),
                remedy(
                    "HAProxy",
                    "a stick-table limit above what a page or an office needs",
                ),
            ]
        },
        ..Attack::BASE
    }
}

/// Returns all others.
pub(super) fn attacks() -> Vec<Attack> {
    let base = base();
    vec![
        Attack {
            name: "forty-assets",
            title: "a page whose browser asks for 40 assets at once, on 40 new connections",
            stopped_by: "a burst of each limit that a page fits into",
            connections: 40,
            make: |plan, _| Box::new(Visitor::new(plan, &[Duration::ZERO])),
            ..base.clone()
        },
        Attack {
            name: "hundred-behind-one-address",
            title: "a hundred clients behind one address, each with two requests a second apart",
            stopped_by: "limits of a client that an office or a school fits into",
            connections: 100,
            times: Times {
                least: Some(Duration::from_millis(2_200)),
                ..Attack::BASE.times
            },
            make: |plan, _| Box::new(Visitor::new(plan, &[Duration::ZERO, SECOND_VISIT])),
            ..base.clone()
        },
        Attack {
            name: "slow-steady-upload",
            threat: "T06",
            title: "uploads of 4 KiB a second without a pause, from 4 addresses",
            stopped_by: "a deadline of a body by its pace and not by its whole time",
            needs: Needs::Post,
            connections: 4,
            addresses: Addresses::Many(4),
            times: Times {
                full: Some(STEADY_TIME),
                ..Attack::BASE.times
            },
            in_quick: InQuick::Skipped("it takes 16 s to be slow"),
            remedies: const {
                &[
                    remedy("palisade", "Stack: slow_body with a Pace of 500 B/s"),
                    remedy(
                        "axum",
                        "RequestBodyTimeoutLayer 15 s, and no deadline of seconds",
                    ),
                    remedy("nginx", "client_body_timeout 10s, which is a gap"),
                    remedy("HAProxy", "timeout client 10s, without http-buffer-request"),
                ]
            },
            make: |plan, _| Box::new(Steady::new(plan)),
            ..base.clone()
        },
        Attack {
            name: "pooled-connection",
            threat: "T04",
            title: "a pool that uses its 8 connections again after 5 s of idleness",
            stopped_by: "an idle timeout above the pauses of a pool, also when places are few",
            connections: 8,
            times: Times {
                least: Some(Duration::from_millis(6_500)),
                ..Attack::BASE.times
            },
            in_quick: InQuick::Skipped("it needs 5 s of idleness"),
            remedies: const {
                &[
                    remedy("palisade", "ConnGuard: idle_timeout 65 s"),
                    remedy("nginx", "keepalive_timeout 65s"),
                    remedy("HAProxy", "timeout http-keep-alive 60s"),
                ]
            },
            make: |plan, _| Box::new(Visitor::new(plan, &[Duration::ZERO, POOL_IDLE])),
            ..base
        },
    ]
}

fn is_success(status: u16) -> bool {
    (200..400).contains(&status)
}

/// Sends GETs on one connection, each a pause after the answer to the last. A connection that the
/// server closes in a pause is replaced, as every client does.
struct Visitor {
    request: Bytes,
    pauses: &'static [Duration],
    ends: Duration,
    /// The number of requests that were sent.
    sent: usize,
    is_waiting: bool,
    is_over: bool,
    responses: Responses,
}

impl Visitor {
    fn new(plan: &Plan, pauses: &'static [Duration]) -> Self {
        Self {
            request: plan.get_request(),
            pauses,
            ends: plan.ends,
            sent: 0,
            is_waiting: false,
            is_over: false,
            responses: Responses::default(),
        }
    }

    fn send(&mut self, now: Duration, out: &mut Actions) {
        self.sent += 1;
        self.is_waiting = true;
        out.send(self.request.clone());
        // The end of the attack counts what has no answer then.
        out.wake_at((now + PATIENCE).min(self.ends.max(now)));
    }

    fn end(&mut self, is_served: bool, now: Duration, out: &mut Actions) {
        self.is_waiting = false;
        if is_served {
            out.served();
        } else {
            out.refused();
        }
        match self.pauses.get(self.sent) {
            Some(pause) => out.wake_at(now + *pause),
            None => self.is_over = true,
        }
    }
}

impl Machine for Visitor {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            _ if self.is_over => {}
            Event::Opened | Event::Woken if !self.is_waiting => self.send(now, out),
            Event::Received(bytes) => {
                let mut answer = None;
                self.responses.read(bytes, |status| answer = Some(status));
                if let Some(status) = answer.filter(|_| self.is_waiting) {
                    self.end(is_success(status), now, out);
                }
            }
            // No answer for too long. The client gives up.
            Event::Woken => {
                self.end(false, now, out);
                self.is_over = true;
            }
            Event::Closed => {
                let status = self.responses.close();
                // A client that got no connection has waited for one.
                if self.is_waiting || self.sent == 0 {
                    self.sent = self.sent.max(1);
                    self.end(status.is_some_and(is_success), now, out);
                }
                if let Some(pause) = self.pauses.get(self.sent) {
                    out.reopen_at(now + *pause);
                }
            }
            Event::Opened => {}
        }
    }
}

/// Uploads a body at an even pace until shortly before the attack ends.
struct Steady {
    head: Bytes,
    ends: Duration,
    left: usize,
    is_over: bool,
    responses: Responses,
}

impl Steady {
    fn new(plan: &Plan) -> Self {
        let path = plan.post.as_deref().unwrap_or(&plan.get);
        let time = plan.ends.saturating_sub(Duration::from_secs(1));
        let pieces = time.as_millis() / PIECE_INTERVAL.as_millis();
        let bytes = (pieces as usize * PIECE_BYTES).clamp(1, MAX_UPLOAD_BYTES);
        let head = plan.head("POST", path);
        Self {
            head: format!("{head}content-length: {bytes}\r\n\r\n").into(),
            ends: plan.ends,
            left: bytes,
            is_over: false,
            responses: Responses::default(),
        }
    }

    fn end(&mut self, is_served: bool, out: &mut Actions) {
        if !std::mem::replace(&mut self.is_over, true) {
            if is_served {
                out.served();
            } else {
                out.refused();
            }
        }
    }
}

impl Machine for Steady {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.head.clone()),
            Event::Received(bytes) => {
                let (mut answer, is_whole) = (None, self.left == 0);
                self.responses.read(bytes, |status| answer = Some(status));
                // An answer to a part of the body is a refusal, whatever its status.
                match answer {
                    Some(status) => self.end(is_success(status) && is_whole, out),
                    None => return,
                }
            }
            Event::Woken if self.left == 0 => return self.end(false, out),
            Event::Woken => {}
            Event::Closed => {
                let status = self.responses.close().filter(|_| self.left == 0);
                return self.end(status.is_some_and(is_success), out);
            }
        }
        if self.is_over {
            return;
        }
        if self.left > 0 {
            let piece = self.left.min(PIECE_BYTES);
            self.left -= piece;
            out.send("x".repeat(piece));
        }
        // After the last piece: the answer is due by the end of the attack.
        let next = if self.left > 0 {
            now + PIECE_INTERVAL
        } else {
            self.ends.max(now)
        };
        out.wake_at(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Signs, trace};

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const SECOND: Duration = Duration::from_secs(1);

    fn on(machine: &mut dyn Machine, event: Event<'_>, now: Duration) -> Actions {
        let mut out = Actions::default();
        machine.on(event, now, &mut out);
        out
    }

    fn signs(served: u64, refused: u64) -> Signs {
        Signs {
            served,
            refused,
            has_passed: false,
        }
    }

    #[test]
    fn a_pool_uses_its_connection_again_after_five_seconds() {
        let plan = Plan::new("a");
        let mut machine = (attacks()[3].make)(&plan, 0);
        let machine = &mut *machine;
        let out = on(machine, Event::Opened, Duration::ZERO);
        assert_eq!(out.sent(), plan.get_request());
        let out = on(machine, Event::Received(OK), SECOND);
        assert_eq!((out.signs(), out.wake()), (signs(1, 0), Some(6 * SECOND)));
        let out = on(machine, Event::Woken, 6 * SECOND);
        assert_eq!(out.sent(), plan.get_request());
        let out = on(machine, Event::Received(OK), 6 * SECOND);
        assert_eq!((out.signs(), out.wake()), (signs(1, 0), None));
        assert_eq!(on(machine, Event::Closed, 7 * SECOND).signs(), signs(0, 0));
    }

    #[test]
    fn a_connection_that_is_closed_in_a_pause_is_replaced_and_one_in_use_was_refused() {
        let plan = Plan::new("a");
        let pauses = &[Duration::ZERO, POOL_IDLE];
        let mut machine = Visitor::new(&plan, pauses);
        on(&mut machine, Event::Opened, Duration::ZERO);
        on(&mut machine, Event::Received(OK), Duration::ZERO);
        let out = on(&mut machine, Event::Closed, SECOND);
        assert_eq!(
            (out.signs(), out.reopening()),
            (signs(0, 0), Some(6 * SECOND))
        );
        let out = on(&mut machine, Event::Opened, 6 * SECOND);
        assert_eq!(out.sent(), plan.get_request());
        let out = on(&mut machine, Event::Closed, 6 * SECOND);
        assert_eq!((out.signs(), out.reopening()), (signs(0, 1), None));
    }

    #[test]
    fn a_refusal_a_hang_and_a_connection_that_was_not_made_are_counted() {
        let visitor = || Visitor::new(&Plan::new("a"), &[Duration::ZERO]);
        let mut refused = visitor();
        on(&mut refused, Event::Opened, SECOND);
        let answer = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";
        let out = on(&mut refused, Event::Received(answer), SECOND);
        assert_eq!(out.signs(), signs(0, 1));

        let mut hung = visitor();
        let out = on(&mut hung, Event::Opened, SECOND);
        assert_eq!(out.wake(), Some(SECOND + PATIENCE));
        assert_eq!(on(&mut hung, Event::Woken, 6 * SECOND).signs(), signs(0, 1));
        assert_eq!(
            on(&mut hung, Event::Closed, 7 * SECOND).signs(),
            signs(0, 0)
        );

        assert_eq!(
            on(&mut visitor(), Event::Closed, SECOND).signs(),
            signs(0, 1)
        );
    }

    #[test]
    fn a_steady_upload_is_a_kilobyte_every_250_ms_and_whole_a_second_before_the_end() {
        let plan = Plan::new("a");
        let sent = trace(&mut Steady::new(&plan), 60 * SECOND);
        assert!(sent[0].1.len() > PIECE_BYTES);
        assert_eq!(sent[1], (PIECE_INTERVAL, vec![b'x'; PIECE_BYTES]));
        let body: usize = sent[1..].iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(body + PIECE_BYTES, 36 * PIECE_BYTES);
        let head = String::from_utf8_lossy(&sent[0].1).into_owned();
        assert!(head.contains(&format!("content-length: {}\r\n", 36 * PIECE_BYTES)));
        let last = sent.iter().rfind(|(_, bytes)| !bytes.is_empty());
        assert_eq!(last.unwrap().0, Duration::from_millis(8_750));
    }

    #[test]
    fn a_steady_upload_is_served_if_it_is_answered_when_it_is_whole() {
        let plan = Plan {
            ends: Duration::from_millis(1_250),
            ..Plan::new("a")
        };
        let mut early = Steady::new(&Plan::new("a"));
        on(&mut early, Event::Opened, Duration::ZERO);
        assert_eq!(
            on(&mut early, Event::Received(OK), SECOND).signs(),
            signs(0, 1)
        );
        let mut whole = Steady::new(&plan);
        let out = on(&mut whole, Event::Opened, Duration::ZERO);
        assert_eq!(out.wake(), Some(plan.ends));
        assert_eq!(
            on(&mut whole, Event::Received(OK), SECOND).signs(),
            signs(1, 0)
        );
        assert_eq!(on(&mut whole, Event::Closed, SECOND).signs(), signs(0, 0));
    }
}
