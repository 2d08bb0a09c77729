//! Request heads that never end.

use super::{
    attack::{Attack, InQuick, Remedy, remedy},
    pause::reopen,
};
use crate::{
    machine::{Actions, Event, Machine},
    variation::Variation,
};
use bytes::Bytes;
use std::time::Duration;

const REMEDIES: &[Remedy] = &[
    remedy("palisade", "ConnGuard: header_timeout and max_connections"),
    remedy("hyper", "http1::Builder::timer and header_read_timeout"),
    remedy(
        "nginx",
        "client_header_timeout 5s, and worker_connections to spare",
    ),
    remedy("HAProxy", "timeout http-request 5s, and maxconn to spare"),
];

pub(super) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T03",
        withholds: "the end of the request head",
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "dripped-head",
            title: "request heads that grow by a line a second and never end",
            stopped_by: "a deadline for the whole head, not for the gap between reads",
            make: |plan, index| {
                Box::new(Dripped {
                    head: plan.head("GET", &plan.get).into(),
                    drip: "x-drip: 1\r\n",
                    interval: Duration::from_secs(1),
                    variation: Variation::new(plan.seed, index),
                })
            },
            ..base.clone()
        },
        Attack {
            name: "head-burst-then-silence",
            in_quick: InQuick::Skipped("dripped-head holds the same places"),
            title: "request heads that are sent at once but for the last line",
            stopped_by: "a deadline for the whole head, not a lowest rate of bytes",
            make: |plan, index| {
                let mut variation = Variation::new(plan.seed, index);
                let padding = variation.letters(&"x".repeat(BURST_BYTES));
                let head = plan.head("GET", &plan.get);
                Box::new(Dripped {
                    head: format!("{head}x-burst: {padding}\r\n").into(),
                    drip: "",
                    interval: Duration::MAX,
                    variation,
                })
            },
            ..base.clone()
        },
        Attack {
            name: "one-byte-per-window",
            in_quick: InQuick::Skipped("it differs from dripped-head after 3 s only"),
            title: "request heads of which one byte arrives every 2.9 seconds",
            stopped_by: "a deadline for the whole head that no byte extends",
            make: |plan, index| {
                Box::new(Dripped {
                    head: Bytes::from_static(b"G"),
                    drip: "E",
                    interval: Duration::from_millis(2_900),
                    variation: Variation::new(plan.seed, index),
                })
            },
            ..base
        },
    ]
}

/// The size of the burst, well within the limits that servers have for a head.
const BURST_BYTES: usize = 2_000;

/// Sends `head` at once, then `drip` at each interval, or a little earlier.
struct Dripped {
    head: Bytes,
    drip: &'static str,
    interval: Duration,
    variation: Variation,
}

impl Machine for Dripped {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.head.clone()),
            Event::Woken => out.send(self.variation.letters(self.drip)),
            Event::Closed => return reopen(now, out),
            // An answer, a 408 perhaps. The server closes the connection, or the drip goes on.
            Event::Received(_) => return,
        }
        if !self.drip.is_empty() {
            out.wake_at(now + self.variation.pause(self.interval));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{machine::trace, plan::Plan};

    fn sent(name: &str, seconds: u64) -> Vec<(Duration, Vec<u8>)> {
        let attacks = attacks();
        let attack = attacks.iter().find(|attack| attack.name == name).unwrap();
        let mut machine = (attack.make)(&Plan::new("a"), 0);
        trace(&mut *machine, Duration::from_secs(seconds))
    }

    #[test]
    fn a_dripped_head_grows_by_a_line_a_second_and_never_ends() {
        let sent = sent("dripped-head", 60);
        assert_eq!(sent.len(), 61);
        assert_eq!(
            sent[60],
            (Duration::from_secs(60), b"x-drip: 1\r\n".to_vec())
        );
        let all: Vec<_> = sent.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!(!all.windows(4).any(|end| end == b"\r\n\r\n"));
    }

    #[test]
    fn a_burst_is_all_but_the_last_line() {
        let sent = sent("head-burst-then-silence", 60);
        assert_eq!(sent.len(), 1);
        assert!(sent[0].1.len() > BURST_BYTES && sent[0].1.ends_with(b"x\r\n"));
        assert!(!sent[0].1.ends_with(b"\r\n\r\n"));
    }

    #[test]
    fn one_byte_arrives_in_each_window() {
        let sent = sent("one-byte-per-window", 29);
        assert_eq!(sent.len(), 11);
        assert!(sent.iter().all(|(_, bytes)| bytes.len() == 1));
        assert_eq!(sent[1].0, Duration::from_millis(2_900));
    }
}
