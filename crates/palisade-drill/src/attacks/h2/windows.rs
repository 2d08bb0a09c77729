//! Windows that stay closed, so that the server keeps its responses.

use super::{
    frames::{END_STREAM, INITIAL_WINDOW_SIZE, headers, window_update},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, Protocol, Remedy, remedy},
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
        connections: 100,
        addresses: Addresses::Many(50),
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "zero-window",
            is_quick: false,
            title: "99 HTTP/2 responses on each connection into windows of zero bytes",
            withholds: "the window of the streams",
            stopped_by: "a deadline for responses that make no progress",
            make: |plan, _| Box::new(Windows::new(plan, 0)),
            ..base.clone()
        },
        Attack {
            name: "one-byte-window",
            title: "99 HTTP/2 responses into windows of a byte, beside a tiny request now and then",
            withholds: "all but a byte of the window of the streams",
            stopped_by: "a deadline for each response, which other streams do not extend",
            make: |plan, _| Box::new(Windows::new(plan, 1)),
            ..base
        },
    ]
}

/// The time between two signs of life of an attacker with a window of a byte.
const INTERVAL: Duration = Duration::from_secs(1);

struct Windows {
    plan: Plan,
    window: u32,
    session: Session,
}

impl Windows {
    fn new(plan: &Plan, window: u32) -> Self {
        Self {
            plan: plan.clone(),
            window,
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
    }
}

impl Machine for Windows {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => self.open(out),
            Event::Received(bytes) => return self.session.answer(bytes, out),
            Event::Closed => return reopen(now, out),
            Event::Woken => {
                // A request whose response needs no window, and a byte for the first response.
                let fields = self.plan.fields("HEAD", &self.plan.get);
                out.send(headers(self.session.next_stream(), END_STREAM, &fields));
                out.send(window_update(1, 1));
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
    use super::super::frames::{CANCEL, HEADERS, PREFACE, Reader, WINDOW_UPDATE, reset};
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
    fn a_window_of_a_byte_shows_signs_of_life() {
        let sent = trace(
            &mut Windows::new(&Plan::new("a"), 1),
            Duration::from_secs(5),
        );
        assert_eq!(sent.len(), 6);
        assert_eq!(kinds(&sent[5].1), [HEADERS, WINDOW_UPDATE]);
    }
}
