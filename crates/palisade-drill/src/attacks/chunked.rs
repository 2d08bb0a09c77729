//! Chunked bodies: a slow head after one, and one in pieces of a byte.

use super::{
    attack::{Addresses, Attack, InQuick, Needs, Takes, remedy},
    pause::reopen,
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The chunks in a batch and the time between batches: 20,000 chunks a second on each connection.
const BATCH_CHUNKS: usize = 400;
const BATCH_INTERVAL: Duration = Duration::from_millis(20);
/// The body of an upload in one-byte chunks, less than any server's limit.
const BODY_BYTES: usize = 90_000;

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack {
            name: "head-after-chunked-post",
            threat: "T03",
            title: "a head that grows by a line a second, after a chunked POST that was answered",
            withholds: "the end of the second head",
            stopped_by: "a deadline for each head, which the end of a chunked body begins anew",
            needs: Needs::Post,
            in_quick: InQuick::Skipped("it differs from dripped-head by what came before"),
            remedies: const {
                &[
                    remedy("palisade", "ConnGuard: header_timeout and max_connections"),
                    remedy("hyper", "http1::Builder::timer and header_read_timeout"),
                    remedy(
                        "nginx",
                        "client_header_timeout 5s, and worker_connections to spare",
                    ),
                    remedy("HAProxy", "timeout http-request 5s, and maxconn to spare"),
                ]
            },
            make: |plan, _| Box::new(Later::new(plan)),
            ..Attack::BASE
        },
        Attack {
            name: "one-byte-chunks",
            threat: "T08",
            title: "uploads in chunks of a byte, 20,000 a second on each of 16 connections",
            withholds: "nothing: each byte takes six on the wire, and the work of a chunk",
            stopped_by: "a limit on the pieces of a body beside that on its bytes",
            needs: Needs::Post,
            connections: 16,
            addresses: Addresses::Many(16),
            takes: Takes::Work,
            in_quick: InQuick::Skipped("its harm is memory, which only a longer attack shows"),
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "Stack: body_limit, which joins and counts small frames",
                    ),
                    remedy("axum", "none: DefaultBodyLimit counts bytes and not chunks"),
                    remedy(
                        "nginx",
                        "proxy_request_buffering on, which joins the chunks",
                    ),
                    remedy("HAProxy", "option http-buffer-request"),
                ]
            },
            make: |plan, _| Box::new(Chunks::new(plan)),
            ..Attack::BASE
        },
    ]
}

fn chunked_head(plan: &Plan) -> String {
    let path = plan.post.as_deref().unwrap_or(&plan.get);
    let head = plan.head("POST", path);
    format!("{head}transfer-encoding: chunked\r\n\r\n")
}

/// Sends a whole chunked POST. After its answer, or half a second, begins a head that never ends.
struct Later {
    post: Bytes,
    head: Bytes,
    has_begun: bool,
}

impl Later {
    fn new(plan: &Plan) -> Self {
        let post = chunked_head(plan) + "4\r\nbody\r\n0\r\n\r\n";
        Self {
            post: post.into(),
            head: plan.head("GET", &plan.get).into(),
            has_begun: false,
        }
    }
}

impl Machine for Later {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.has_begun = false;
                out.send(self.post.clone());
                out.wake_at(now + Duration::from_millis(500));
            }
            Event::Woken => {
                let drip = Bytes::from_static(b"x-drip: 1\r\n");
                out.send(if self.has_begun {
                    drip
                } else {
                    self.head.clone()
                });
                self.has_begun = true;
                out.wake_at(now + Duration::from_secs(1));
            }
            // The rest of the answer may follow: the head waits a little.
            Event::Received(_) if !self.has_begun => out.wake_at(now + Duration::from_millis(20)),
            Event::Received(_) => {}
            Event::Closed => reopen(now, out),
        }
    }
}

/// Uploads in chunks of a byte, one upload after the other. The last chunk of each comes with the
/// next.
struct Chunks {
    head: Bytes,
    batch: Bytes,
    left: usize,
    ends: Duration,
}

impl Chunks {
    fn new(plan: &Plan) -> Self {
        Self {
            head: chunked_head(plan).into(),
            batch: b"1\r\nx\r\n".repeat(BATCH_CHUNKS).into(),
            left: 0,
            ends: plan.ends,
        }
    }
}

impl Machine for Chunks {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                self.left = BODY_BYTES;
                out.send(self.head.clone());
            }
            Event::Woken => {}
            Event::Received(_) => return,
            Event::Closed => return reopen(now, out),
        }
        if now >= self.ends {
            return;
        }
        if self.left < BATCH_CHUNKS {
            self.left = BODY_BYTES;
            out.send(Bytes::from_static(b"0\r\n\r\n"));
            out.send(self.head.clone());
        }
        self.left -= BATCH_CHUNKS;
        out.send(self.batch.clone());
        out.wake_at(now + BATCH_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    fn plan() -> Plan {
        Plan {
            post: Some("/up".to_owned()),
            ..Plan::new("a")
        }
    }

    #[test]
    fn a_second_head_drips_after_the_answer_to_a_chunked_post() {
        let (mut machine, mut out) = (Later::new(&plan()), Actions::default());
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        let post = String::from_utf8(out.sent()).unwrap();
        assert!(post.starts_with("POST /up HTTP/1.1\r\nhost: a\r\n"));
        assert!(post.ends_with("transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"));

        let answered = Duration::from_millis(3);
        let mut out = Actions::default();
        machine.on(Event::Received(b"HTTP/1.1 200 OK\r\n"), answered, &mut out);
        let begins = answered + Duration::from_millis(20);
        assert_eq!((out.wake(), out.sent()), (Some(begins), vec![]));
        let mut out = Actions::default();
        machine.on(Event::Woken, begins, &mut out);
        assert_eq!(out.sent(), plan().head("GET", "/").as_bytes());
        let next = begins + Duration::from_secs(1);
        assert_eq!(out.wake(), Some(next));
        let mut out = Actions::default();
        machine.on(Event::Woken, next, &mut out);
        assert_eq!(out.sent(), b"x-drip: 1\r\n");
        // The next connection begins with the POST again.
        let mut out = Actions::default();
        machine.on(Event::Opened, next, &mut out);
        assert!(out.sent().starts_with(b"POST"));
    }

    #[test]
    fn an_upload_in_one_byte_chunks_is_whole_and_stays_within_the_limit() {
        let sent = trace(&mut Chunks::new(&plan()), Duration::from_secs(60));
        assert_eq!(sent[1], (BATCH_INTERVAL, b"1\r\nx\r\n".repeat(400)));
        let all: Vec<u8> = sent.into_iter().flat_map(|(_, bytes)| bytes).collect();
        let text = String::from_utf8(all).unwrap();
        let mut uploads: Vec<_> = text.split("POST /up ").skip(1).collect();
        uploads.pop();
        assert!(!uploads.is_empty());
        for upload in uploads {
            assert_eq!(upload.matches("1\r\nx\r\n").count(), BODY_BYTES);
            assert!(upload.ends_with("0\r\n\r\n"));
        }
    }
}
