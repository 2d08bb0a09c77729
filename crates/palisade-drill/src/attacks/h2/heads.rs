//! Large HTTP/2 heads: refused one by one, or held by streams with windows that stay closed.

use super::{
    beat::{Beat, Frames},
    frames::{END_STREAM, INITIAL_WINDOW_SIZE, headers},
};
use crate::attacks::attack::{Addresses, Attack, InQuick, Protocol, Takes, remedy};
use std::time::Duration;

/// The bytes of a head beyond any limit, and the time between two: 640 KiB a second.
const HUGE_BYTES: usize = 64 << 10;
const INTERVAL: Duration = Duration::from_millis(100);
/// The streams and the bytes of each head that a connection holds, within usual limits.
const STREAMS: usize = 99;
const LARGE_BYTES: usize = 8_000;

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    let base = Attack {
        protocol: Protocol::Http2,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "h2-huge-heads",
            threat: "T09",
            title: "HTTP/2 requests with heads of 64 KiB, one after the other",
            withholds: "nothing: it takes the decoding of what is refused",
            stopped_by: "a limit on the bytes of a head, and one on refused requests",
            connections: 20,
            addresses: Addresses::Many(20),
            takes: Takes::Work,
            in_quick: InQuick::Skipped("rapid-reset takes more work"),
            remedies: const {
                &[
                    remedy("palisade", "palisade::serve: its limit of 16 KiB"),
                    remedy("hyper", "http2::Builder::max_header_list_size 16 KiB"),
                    remedy("nginx", "large_client_header_buffers 4 8k"),
                    remedy("HAProxy", "tune.bufsize 16384, its default"),
                ]
            },
            make: |plan, _| {
                let huge: Frames = |plan, session| {
                    let value = "h".repeat(HUGE_BYTES);
                    let mut fields = plan.fields("GET", &plan.get);
                    fields.push(("x-huge", &value));
                    headers(session.next_stream(), END_STREAM, &fields)
                };
                Box::new(Beat::new(plan, huge).every(INTERVAL, huge).until_the_end())
            },
            ..base.clone()
        },
        Attack {
            name: "h2-large-heads-stalled",
            threat: "T16",
            title: "99 HTTP/2 requests with heads of 8 KiB on each connection, into closed windows",
            withholds: "the windows of the responses, so that 16 MiB of heads stay in memory",
            stopped_by: "a deadline for responses that make no progress, and a limit on streams",
            connections: 20,
            addresses: Addresses::Many(20),
            in_quick: InQuick::Skipped("one-byte-window holds the same streams"),
            remedies: const {
                &[
                    remedy(
                        "palisade",
                        "palisade::serve: its timeout of untaken responses",
                    ),
                    remedy(
                        "hyper",
                        "http2::Builder::max_concurrent_streams, and a body in time",
                    ),
                    remedy("nginx", "send_timeout 10s, http2_max_concurrent_streams 32"),
                    remedy(
                        "HAProxy",
                        "timeout client 10s, tune.h2.max-concurrent-streams 32",
                    ),
                ]
            },
            make: |plan, _| {
                let large: Frames = |plan, session| {
                    let value = "h".repeat(LARGE_BYTES / 4);
                    let path = plan.large.as_ref().unwrap_or(&plan.get);
                    let mut fields = plan.fields("GET", path);
                    let names = ["x-large-1", "x-large-2", "x-large-3", "x-large-4"];
                    fields.extend(names.map(|name| (name, value.as_str())));
                    let stream = |_| headers(session.next_stream(), END_STREAM, &fields);
                    (0..STREAMS).flat_map(stream).collect()
                };
                Box::new(Beat {
                    settings: &[(INITIAL_WINDOW_SIZE, 0)],
                    ..Beat::new(plan, large)
                })
            },
            ..base
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::beat::tests::{brief, frames_of};
    use super::super::frames::{CONTINUATION, END_HEADERS, HEADERS, SETTINGS};
    use super::*;

    #[test]
    fn a_huge_head_of_64_kib_ends_and_another_follows_on_the_next_stream() {
        let sent = frames_of(&attacks(), "h2-huge-heads", 1);
        assert_eq!(sent.len(), 11);
        let frames = &sent[10].1;
        let bytes: usize = frames.iter().map(|frame| frame.length).sum();
        assert!(bytes > HUGE_BYTES && bytes < HUGE_BYTES + 1_000);
        assert_eq!(brief(frames)[0], (HEADERS, END_STREAM, 21));
        assert_eq!(brief(frames).last(), Some(&(CONTINUATION, END_HEADERS, 21)));
    }

    #[test]
    fn large_heads_are_whole_on_99_streams_with_a_window_of_nothing() {
        let sent = frames_of(&attacks(), "h2-large-heads-stalled", 60);
        assert_eq!(sent.len(), 1);
        let frames = &sent[0].1;
        assert_eq!(frames.len(), 1 + STREAMS);
        assert_eq!(
            (frames[0].kind, frames[0].start[..6].to_vec()),
            (SETTINGS, vec![0, 4, 0, 0, 0, 0])
        );
        let large = |frame: &super::super::frames::Received| frame.length > LARGE_BYTES;
        assert!(frames[1..].iter().all(large));
    }
}
