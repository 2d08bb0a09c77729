//! Bodies and heads that are larger than a server should take.

use super::{
    attack::{Attack, InQuick, Needs, remedy},
    pause::reopen,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The declared length: a terabyte.
const DECLARED_BYTES: u64 = 1 << 40;
/// The piece of a huge body that is sent each second, more than the lowest rate of most servers.
const BODY_PIECE_BYTES: usize = 1_024;
/// The field that a head grows by, and the time between two: 20 KiB a second.
const FIELD_BYTES: usize = 2_048;
const FIELD_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "declared-huge-body",
            threat: "T08",
            title: "uploads that declare a terabyte and send a kilobyte a second",
            withholds: "nearly all of the body, at a pace that no lowest rate cuts",
            stopped_by: "a limit on the body that the declared length is compared with",
            needs: Needs::Post,
            in_quick: InQuick::Skipped("slow-body holds the same places"),
            remedies: const {
                &[
                    remedy("palisade", "Stack: body_limit"),
                    remedy(
                        "axum",
                        "DefaultBodyLimit, or tower-http's RequestBodyLimitLayer",
                    ),
                    remedy(
                        "nginx",
                        "client_max_body_size 1m, lingering_time 2s, and worker_connections to spare",
                    ),
                    remedy(
                        "HAProxy",
                        "http-request deny deny_status 413 if { req.body_size gt 1048576 }",
                    ),
                ]
            },
            make: |plan, _| {
                let path = plan.post.as_deref().unwrap_or(&plan.get);
                let head = plan.head("POST", path);
                Box::new(Growing {
                    start: format!("{head}content-length: {DECLARED_BYTES}\r\n\r\n").into(),
                    piece: "x".repeat(BODY_PIECE_BYTES).into(),
                    interval: Duration::from_secs(1),
                })
            },
            ..Attack::BASE
        },
        Attack {
            name: "endless-head",
            threat: "T09",
            title: "request heads that grow by 20 KiB a second and never end",
            withholds: "the end of the request head",
            stopped_by: "a limit on the bytes of a head, answered 431",
            connections: 200,
            in_quick: InQuick::Skipped("dripped-head withholds the same"),
            remedies: const {
                &[
                    remedy("palisade", "palisade::serve: its limit of 32 KiB"),
                    remedy("hyper", "http1::Builder::max_buf_size 32 KiB"),
                    remedy("nginx", "large_client_header_buffers 4 8k"),
                    remedy("HAProxy", "tune.bufsize 16384, its default"),
                ]
            },
            make: |plan, _| Box::new(Growing::head(plan)),
            ..Attack::BASE
        },
    ]
}

/// Sends `start`, then `piece` at each interval, and never an end.
struct Growing {
    start: Bytes,
    piece: Bytes,
    interval: Duration,
}

impl Growing {
    fn head(plan: &Plan) -> Self {
        let value = "h".repeat(FIELD_BYTES);
        Self {
            start: plan.head("GET", &plan.get).into(),
            piece: format!("x-more: {value}\r\n").into(),
            interval: FIELD_INTERVAL,
        }
    }
}

impl Machine for Growing {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.start.clone()),
            Event::Woken => out.send(self.piece.clone()),
            // A refusal. A server that refuses and goes on reading has stopped nothing.
            Event::Received(_) => return,
            Event::Closed => return reopen(now, out),
        }
        out.wake_at(now + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    #[test]
    fn a_huge_body_is_declared_and_sent_by_the_kilobyte() {
        let mut machine = (attacks()[0].make)(&Plan::new("a"), 0);
        let sent = trace(&mut *machine, Duration::from_secs(30));
        assert!(
            sent[0]
                .1
                .ends_with(b"content-length: 1099511627776\r\n\r\n")
        );
        assert_eq!(sent.len(), 31);
        assert_eq!(sent[1], (Duration::from_secs(1), vec![b'x'; 1_024]));
    }

    #[test]
    fn an_endless_head_grows_by_20_kib_a_second_and_has_no_end() {
        let sent = trace(&mut Growing::head(&Plan::new("a")), Duration::from_secs(10));
        let all: Vec<_> = sent.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!((200_000..215_000).contains(&all.len()), "{}", all.len());
        assert!(!all.windows(4).any(|end| end == b"\r\n\r\n"));
    }
}
