//! HTTP/2 request bodies: slow, never finished, or in frames of next to nothing.

use super::{
    beat::{Beat, Frames},
    frames::{DATA, frame, headers},
    session::Session,
};
use crate::{
    attacks::attack::{Addresses, Attack, InQuick, Needs, Protocol, Takes, remedy},
    plan::Plan,
};
use std::time::Duration;

/// The uploads on each connection, below the 100 streams that servers allow.
const UPLOADS: u32 = 50;
/// The bytes of each that come at once, so that all fit into the first window of a connection.
const HALF_BYTES: usize = 1_000;
/// The frames in a batch and the time between batches: 10,000 frames a second on each connection.
const BATCH_FRAMES: usize = 100;
const BATCH_INTERVAL: Duration = Duration::from_millis(10);

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    let slow = Attack {
        threat: "T06",
        protocol: Protocol::Http2,
        connections: 40,
        addresses: Addresses::Many(40),
        needs: Needs::Post,
        in_quick: InQuick::Skipped("half-sent-upload holds the same in HTTP/1"),
        remedies: const {
            &[
                remedy(
                    "palisade",
                    "Stack: slow_body with a Pace of a gap and a rate",
                ),
                remedy(
                    "axum",
                    "tower-http: RequestBodyTimeoutLayer, RequestBodyDeadlineLayer",
                ),
                remedy(
                    "nginx",
                    "client_body_timeout 10s, http2_max_concurrent_streams 32",
                ),
                remedy(
                    "HAProxy",
                    "option http-buffer-request, timeout http-request 10s",
                ),
            ]
        },
        ..Attack::BASE
    };
    let flood = Attack {
        connections: 10,
        addresses: Addresses::Many(10),
        takes: Takes::Work,
        in_quick: InQuick::Skipped("ping-flood takes the same work"),
        remedies: const {
            &[
                remedy(
                    "palisade",
                    "palisade::serve: its limit on frames that carry nothing",
                ),
                remedy(
                    "hyper",
                    "h2 0.4.20 or later, which limits small and empty DATA frames",
                ),
                remedy("nginx", "none needed: it closes the connection by itself"),
                remedy(
                    "HAProxy",
                    "3.0 or later, tune.h2.fe.glitches-threshold 1000",
                ),
            ]
        },
        ..slow.clone()
    };
    vec![
        Attack {
            name: "h2-slow-body",
            title: "50 HTTP/2 uploads on each connection, of one byte a second",
            withholds: "the rest of the request bodies",
            stopped_by: "a lowest rate of each body over a window, which other streams do not meet",
            make: |plan, _| {
                let drip: Frames = |_, _| data(1);
                Box::new(Beat::new(plan, begin).every(Duration::from_secs(1), drip))
            },
            ..slow.clone()
        },
        Attack {
            name: "h2-half-sent-upload",
            title: "50 HTTP/2 uploads on each connection, of which the rest never comes",
            withholds: "the rest of the request bodies",
            stopped_by: "a longest gap between pieces of each body",
            make: |plan, _| {
                let half: Frames =
                    |plan, session| [begin(plan, session), data(HALF_BYTES)].concat();
                Box::new(Beat::new(plan, half))
            },
            ..slow
        },
        Attack {
            name: "h2-tiny-data",
            threat: "T08",
            title: "an HTTP/2 upload in DATA frames of a byte, without pause",
            withholds: "nothing: each byte takes ten on the wire, and the work of a frame",
            stopped_by: "a limit on the frames of a body beside that on its bytes",
            make: |plan, _| {
                let batch: Frames = |_, _| frame(DATA, 0, 1, b"x").repeat(BATCH_FRAMES);
                let beat = Beat::new(plan, one).every(BATCH_INTERVAL, batch);
                Box::new(beat.until_the_end())
            },
            ..flood.clone()
        },
        Attack {
            name: "empty-data-flood",
            threat: "T15",
            cve: Some("CVE-2019-9518"),
            title: "empty HTTP/2 DATA frames without pause and without an end",
            withholds: "nothing: no window limits frames without bytes",
            stopped_by: "a limit on empty frames, after which the connection ends",
            make: |plan, _| {
                let batch: Frames = |_, _| frame(DATA, 0, 1, &[]).repeat(BATCH_FRAMES);
                let beat = Beat::new(plan, one).every(BATCH_INTERVAL, batch);
                Box::new(beat.until_the_end())
            },
            ..flood
        },
    ]
}

/// Returns the head of an upload on the next stream.
fn one(plan: &Plan, session: &mut Session) -> Vec<u8> {
    let path = plan.post.as_ref().unwrap_or(&plan.get);
    headers(session.next_stream(), 0, &plan.fields("POST", path))
}

/// Returns the heads of all uploads of a connection.
fn begin(plan: &Plan, session: &mut Session) -> Vec<u8> {
    (0..UPLOADS).flat_map(|_| one(plan, session)).collect()
}

/// Returns a piece of each upload.
fn data(bytes: usize) -> Vec<u8> {
    let piece = vec![b'x'; bytes];
    (0..UPLOADS)
        .flat_map(|number| frame(DATA, 0, 2 * number + 1, &piece))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::beat::tests::{brief, frames_of};
    use super::super::frames::{END_HEADERS, HEADERS};
    use super::*;

    #[test]
    fn slow_bodies_are_fifty_streams_of_one_byte_a_second() {
        let sent = frames_of(&attacks(), "h2-slow-body", 60);
        assert_eq!(sent.len(), 61);
        assert_eq!(sent[0].1.len(), 1 + 50);
        assert_eq!(brief(&sent[0].1)[50], (HEADERS, END_HEADERS, 99));
        let drips = &sent[60].1;
        assert_eq!((drips.len(), brief(drips)[49]), (50, (DATA, 0, 99)));
        assert!(drips.iter().all(|frame| frame.length == 1));
    }

    #[test]
    fn half_sent_uploads_fit_into_the_first_window_and_are_silent() {
        let sent = frames_of(&attacks(), "h2-half-sent-upload", 60);
        assert_eq!(sent.len(), 1);
        let bytes: usize = sent[0].1[51..].iter().map(|frame| frame.length).sum();
        assert_eq!(bytes, 50_000);
        assert!(bytes < 65_535);
    }

    #[test]
    fn floods_of_data_are_ten_thousand_frames_a_second_until_the_end() {
        for (name, length) in [("h2-tiny-data", 1), ("empty-data-flood", 0)] {
            let sent = frames_of(&attacks(), name, 60);
            assert_eq!(brief(&sent[0].1)[1], (HEADERS, END_HEADERS, 1));
            assert_eq!((sent[1].0, sent[1].1.len()), (BATCH_INTERVAL, BATCH_FRAMES));
            assert!(
                sent[1]
                    .1
                    .iter()
                    .all(|frame| (frame.kind, frame.length) == (DATA, length))
            );
            assert_eq!(sent.len(), 1_001);
            assert_eq!(sent[1_000], (Duration::from_secs(10), vec![]));
        }
    }
}
