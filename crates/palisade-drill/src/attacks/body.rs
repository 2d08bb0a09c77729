//! Request bodies that arrive slowly or never.

use super::{
    attack::{Addresses, Attack, InQuick, Needs, Remedy, remedy},
    pause::reopen,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
    variation::Variation,
};
use bytes::Bytes;
use std::time::Duration;

const REMEDIES: &[Remedy] = &[
    remedy(
        "palisade",
        "Stack: slow_body with a Pace of a gap and a rate",
    ),
    remedy(
        "axum",
        "tower-http: RequestBodyTimeoutLayer and RequestBodyDeadlineLayer",
    ),
    remedy(
        "nginx",
        "client_body_timeout 10s, which is a gap, and worker_connections to spare",
    ),
    remedy(
        "HAProxy",
        "option http-buffer-request, timeout http-request 10s, and maxconn to spare",
    ),
];

/// The declared length of an upload: one that any server admits.
const DECLARED_BYTES: usize = 100_000;

pub(super) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T06",
        needs: Needs::Post,
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "slow-body",
            in_quick: InQuick::Skipped("half-sent-upload holds the same places"),
            title: "uploads of one byte a second",
            withholds: "the rest of the request body",
            stopped_by: "a lowest rate of the body over a window",
            make: |plan, index| Box::new(Upload::new(plan, index, 1)),
            ..base.clone()
        },
        Attack {
            name: "half-sent-upload",
            title: "uploads from 200 addresses of which one half arrives and the other never",
            addresses: Addresses::Many(200),
            withholds: "the second half of the request body",
            stopped_by: "a longest gap between pieces of the body",
            make: |plan, index| Box::new(Upload::new(plan, index, DECLARED_BYTES / 2)),
            ..base
        },
    ]
}

/// Sends a head and the first `at_once` bytes of the body; one byte a second if that is one.
struct Upload {
    start: Bytes,
    drips: bool,
    left: usize,
    variation: Variation,
}

impl Upload {
    fn new(plan: &Plan, index: usize, at_once: usize) -> Self {
        let mut variation = Variation::new(plan.seed, index);
        let path = plan.post.as_deref().unwrap_or(&plan.get);
        let head = plan.head("POST", path);
        let body = variation.letters(&"x".repeat(at_once));
        Self {
            start: format!("{head}content-length: {DECLARED_BYTES}\r\n\r\n{body}").into(),
            drips: at_once == 1,
            left: DECLARED_BYTES - at_once,
            variation,
        }
    }
}

impl Machine for Upload {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.start.clone()),
            // The last byte is never sent.
            Event::Woken if self.left > 1 => {
                self.left -= 1;
                out.send(self.variation.letters("x"));
            }
            Event::Closed => return reopen(now, out),
            Event::Received(_) | Event::Woken => return,
        }
        if self.drips {
            out.wake_at(now + self.variation.pause(Duration::from_secs(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    #[test]
    fn a_slow_body_is_one_byte_a_second_and_a_half_sent_one_is_silent() {
        let (plan, minute) = (Plan::new("a"), Duration::from_secs(60));
        let slow = trace(&mut Upload::new(&plan, 0, 1), minute);
        assert_eq!(slow.len(), 61);
        assert!(slow[0].1.ends_with(b"content-length: 100000\r\n\r\nx"));
        assert_eq!(slow[1], (Duration::from_secs(1), b"x".to_vec()));

        let half = trace(&mut Upload::new(&plan, 0, 50_000), minute);
        assert_eq!(half.len(), 1);
        assert!(half[0].1.len() > 50_000 && half[0].1.len() < 51_000);
    }

    #[test]
    fn the_last_byte_of_an_upload_is_never_sent() {
        let mut upload = Upload::new(&Plan::new("a"), 0, 1);
        let sent = trace(&mut upload, Duration::from_secs(200_000));
        let bytes: usize = sent.iter().skip(1).map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(1 + bytes, DECLARED_BYTES - 1);
    }
}
