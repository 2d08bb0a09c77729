//! Many uploads at once, each within the limit of one, to a server with little memory.

use super::{
    attack::{Addresses, Attack, Needs, Takes, Times, remedy},
    pause::reopen,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The declared length: within the 2 MiB that axum, tonic and palisade take by default.
const DECLARED_BYTES: usize = 1_945 << 10;
/// What is sent at once, and the pause between two pieces. All of it takes 4.6 s: the attack is on
/// memory, and no flood of bytes.
const PIECE: &[u8] = &[b'x'; 64 << 10];
const PIECE_INTERVAL: Duration = Duration::from_millis(150);
/// The time in which all uploads arrive but for their ends, and a server shows whether it has the
/// memory for them.
const TIME: Duration = Duration::from_secs(6);

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "held-open-uploads",
        threat: "T27",
        title: "200 uploads of 1.9 MiB, each without its last byte, to a server with little memory",
        withholds: "the last byte of each body, so that 380 MiB wait for it",
        stopped_by: "a budget for the bodies of all requests together, and a longest gap between \
                     pieces",
        connections: 200,
        addresses: Addresses::Many(200),
        needs: Needs::MemoryLimit,
        takes: Takes::Work,
        remedies: const {
            &[
                remedy(
                    "palisade",
                    "Stack: its byte budget, a quarter of the memory limit",
                ),
                remedy("axum", "read bodies as streams, or DefaultBodyLimit 64 KiB"),
                remedy(
                    "nginx",
                    "client_body_buffer_size 16k: the rest waits in files",
                ),
                remedy("HAProxy", "tune.bufsize 16384, its default"),
            ]
        },
        times: Times {
            full: Some(2 * TIME),
            least: Some(TIME),
            returns: None,
        },
        make: |plan, _| Box::new(Held::new(plan)),
        ..Attack::BASE
    }]
}

/// Sends a body up to its last byte, a piece at a time.
struct Held {
    head: Bytes,
    left: usize,
}

impl Held {
    fn new(plan: &Plan) -> Self {
        let path = plan.post.as_deref().unwrap_or(&plan.get);
        let head = plan.head("POST", path);
        Self {
            head: format!("{head}content-length: {DECLARED_BYTES}\r\n\r\n").into(),
            left: 0,
        }
    }
}

impl Machine for Held {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.left = DECLARED_BYTES - 1;
                out.send(self.head.clone());
            }
            Event::Woken => {
                let piece = &PIECE[..self.left.min(PIECE.len())];
                self.left -= piece.len();
                out.send(Bytes::from_static(piece));
            }
            // A refusal. A server that refuses and goes on reading has stopped nothing.
            Event::Received(_) => return,
            Event::Closed => return reopen(now, out),
        }
        if self.left > 0 {
            out.wake_at(now + PIECE_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    #[test]
    fn an_upload_arrives_within_five_seconds_but_for_its_last_byte() {
        let sent = trace(&mut Held::new(&Plan::new("a")), Duration::from_secs(60));
        let (head, body) = sent.split_first().unwrap();
        assert!(head.1.ends_with(b"content-length: 1991680\r\n\r\n"));
        let bytes: usize = body.iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(bytes, DECLARED_BYTES - 1);
        assert!(body.last().unwrap().0 < Duration::from_secs(5));
    }

    #[test]
    fn a_connection_that_is_closed_begins_again() {
        let mut held = Held::new(&Plan::new("a"));
        let first = trace(&mut held, Duration::from_secs(5)).len();
        let mut out = Actions::default();
        held.on(Event::Closed, Duration::from_secs(5), &mut out);
        assert!(out.reopening().is_some());
        assert_eq!(trace(&mut held, Duration::from_secs(5)).len(), first);
    }
}
