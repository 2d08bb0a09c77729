//! Windows that stay closed, so that the server keeps its responses.

use super::{
    frames::{END_STREAM, INITIAL_WINDOW_SIZE, RST_STREAM, headers},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Needs, Protocol, Remedy, Times, remedy},
        pause::reopen,
    },
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use std::time::Duration;

/// The number of responses that each connection holds, below the 100 streams that servers allow.
const STREAMS: usize = 99;

const REMEDIES: &[Remedy] = &[
    remedy(
        "palisade",
        "palisade::serve: its timeout of responses that are not taken",
    ),
    remedy("hyper", "none: bound the time of a response in its body"),
    remedy("nginx", "send_timeout 10s"),
    remedy("HAProxy", "timeout client 10s"),
];

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T07",
        protocol: Protocol::Http2,
        // A server that makes its responses whole keeps 2,000 of them: a few gigabytes at most.
        connections: 20,
        addresses: Addresses::Many(20),
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "zero-window",
            title: "99 HTTP/2 responses on each connection into windows of zero bytes",
            withholds: "the window of the streams",
            stopped_by: "a deadline for responses that make no progress",
            in_quick: InQuick::Skipped("one-byte-window holds the same streams"),
            make: |plan, _| Box::new(Windows::new(plan, 0)),
            ..base.clone()
        },
        Attack {
            name: "one-byte-window",
            title: "99 HTTP/2 responses into windows of a byte, beside a tiny request a minute",
            withholds: "all but a byte of the window of the streams",
            stopped_by: "a deadline for each response, which other streams do not extend",
            needs: Needs::Large,
            times: Times {
                full: Some(Duration::from_secs(130)),
                ..Attack::BASE.times
            },
            in_quick: InQuick::Less("it watches for 3 s, in which a patient server ends nothing"),
            make: |plan, _| Box::new(Windows::new(plan, 1)),
            ..base
        },
    ]
}

/// The time between two signs of life of an attacker with a window of a byte: less than most idle
/// timeouts.
const INTERVAL: Duration = Duration::from_secs(60);

struct Windows {
    plan: Plan,
    window: u32,
    /// The responses that the server still owes.
    held: usize,
    session: Session,
}

impl Windows {
    fn new(plan: &Plan, window: u32) -> Self {
        Self {
            plan: plan.clone(),
            window,
            held: 0,
            session: Session::default(),
        }
    }

    /// Requests responses that do not fit into their windows.
    fn open(&mut self, out: &mut Actions) {
        let setting = (INITIAL_WINDOW_SIZE, self.window);
        self.session.open(&[setting], out);
        let path = self.plan.large.as_ref().unwrap_or(&self.plan.get);
        let fields = self.plan.fields("GET", path);
        for _ in 0..STREAMS {
            out.send(headers(self.session.next_stream(), END_STREAM, &fields));
        }
        self.held = STREAMS;
    }
}

impl Machine for Windows {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => self.open(out),
            Event::Received(bytes) => {
                let held = &mut self.held;
                self.session.read(bytes, out, |frame| {
                    let is_held = frame.stream > 0 && frame.stream < 2 * STREAMS as u32;
                    if is_held && frame.kind == RST_STREAM {
                        *held = held.saturating_sub(1);
                    }
                });
                // A connection without any of its streams holds nothing: it is not kept.
                if self.held == 0 {
                    out.close();
                }
                return;
            }
            // One that shows signs of life is to stay to the end, which a new one would feign.
            Event::Closed if self.window > 0 => return,
            Event::Closed => return reopen(now, out),
            Event::Woken => {
                // A request with a response that needs no window.
                let fields = self.plan.fields("HEAD", &self.plan.get);
                out.send(headers(self.session.next_stream(), END_STREAM, &fields));
            }
        }
        if self.window > 0 {
            out.wake_at(now + INTERVAL);
        }
    }

    /// A connection of which the server has ended nine streams of ten is one as any other.
    fn holds(&self) -> bool {
        self.session.open_streams() as usize > STREAMS / 10
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{CANCEL, HEADERS, PREFACE, Reader, reset};
    use super::*;
    use crate::machine::trace;

    fn kinds(bytes: &[u8]) -> Vec<u8> {
        let (mut reader, mut seen) = (Reader::default(), Vec::new());
        reader.read(bytes, |frame| seen.push(frame.kind));
        seen
    }

    #[test]
    fn a_zero_window_asks_for_99_responses_and_is_silent() {
        let sent = trace(
            &mut Windows::new(&Plan::new("a"), 0),
            Duration::from_secs(60),
        );
        assert_eq!(sent.len(), 1);
        let frames = kinds(sent[0].1.strip_prefix(PREFACE).unwrap());
        assert_eq!(
            frames.iter().filter(|kind| **kind == HEADERS).count(),
            STREAMS
        );
    }

    #[test]
    fn a_connection_whose_streams_the_server_ends_holds_nothing() {
        let mut machine = Windows::new(&Plan::new("a"), 0);
        let mut out = Actions::default();
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        assert!(machine.holds());
        let resets: Vec<_> = (0..90).flat_map(|at| reset(2 * at + 1, CANCEL)).collect();
        machine.on(Event::Received(&resets), Duration::ZERO, &mut out);
        assert!(!machine.holds());
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        assert!(machine.holds());
    }

    #[test]
    fn a_window_of_a_byte_is_beside_a_tiny_request_a_minute() {
        let plan = Plan {
            large: Some("/large".to_owned()),
            ..Plan::new("a")
        };
        let sent = trace(&mut Windows::new(&plan, 1), Duration::from_secs(130));
        let text = String::from_utf8_lossy(&sent[0].1).into_owned();
        assert_eq!(text.matches("/large").count(), STREAMS);
        assert_eq!(sent.len(), 3);
        assert_eq!(
            (sent[2].0, kinds(&sent[2].1)),
            (2 * INTERVAL, vec![HEADERS])
        );
    }

    #[test]
    fn an_attacker_whose_streams_are_all_reset_keeps_nothing_and_does_not_come_back() {
        let mut machine = Windows::new(&Plan::new("a"), 1);
        let mut out = Actions::default();
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        for number in 0..STREAMS as u32 {
            assert!(!out.is_closing());
            let bytes = reset(2 * number + 1, CANCEL);
            machine.on(Event::Received(&bytes), INTERVAL, &mut out);
        }
        assert!(out.is_closing());
        machine.on(Event::Closed, INTERVAL, &mut out);
        assert_eq!(out.reopening(), None);
    }
}
