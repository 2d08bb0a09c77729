//! HTTP/2 connections that stay: silent, idle, with rare requests, or in the middle of a head.

use super::{
    beat::Beat,
    frames::{CONTINUATION, END_STREAM, HEADERS, PREFACE, block, frame, headers},
    session::Session,
};
use crate::{
    attacks::{
        attack::{Addresses, Attack, InQuick, Protocol, Remedy, remedy},
        pause::reopen,
    },
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

const IDLE: &[Remedy] = &[
    remedy("palisade", "ConnGuard: idle_timeout and max_connections"),
    remedy(
        "hyper",
        "none: its keep_alive_interval ends only clients that do not answer PING",
    ),
    remedy("nginx", "keepalive_timeout 10s"),
    remedy("HAProxy", "timeout http-keep-alive 10s, timeout client 10s"),
];
const FIRST: &[Remedy] = &[
    remedy(
        "palisade",
        "ConnGuard: first_request_timeout and max_connections",
    ),
    remedy(
        "hyper",
        "none: bound the time to the first request in the service",
    ),
    remedy("nginx", "client_header_timeout 5s"),
    remedy("HAProxy", "timeout http-request 5s, timeout client 10s"),
];

pub(in crate::attacks) fn attacks() -> Vec<Attack> {
    let base = Attack {
        protocol: Protocol::Http2,
        in_quick: InQuick::Skipped("the same is tried in HTTP/1"),
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "h2-half-preface",
            threat: "T03",
            title: "HTTP/2 connections that stop in the middle of the preface",
            withholds: "the second half of the preface",
            stopped_by: "a deadline for the first request that begins at accept",
            remedies: FIRST,
            make: |_, _| {
                let half = PREFACE.split_at(PREFACE.len() / 2).0;
                Box::new(Half(Bytes::from_static(half)))
            },
            ..base.clone()
        },
        Attack {
            name: "h2-silent",
            threat: "T01",
            title: "HTTP/2 connections that answer PING and send no request",
            withholds: "the first request",
            stopped_by: "a deadline for the first request, which no frame but HEADERS meets",
            remedies: FIRST,
            make: |plan, _| Box::new(Beat::new(plan, |_, _| Vec::new())),
            ..base.clone()
        },
        Attack {
            name: "h2-idle",
            threat: "T04",
            title: "HTTP/2 connections that answer PING after one answered request",
            withholds: "the second request",
            stopped_by: "an idle timeout that answers to PING do not extend",
            remedies: IDLE,
            make: |plan, _| Box::new(Beat::new(plan, get)),
            ..base.clone()
        },
        Attack {
            name: "h2-rare-requests",
            threat: "T05",
            title: "a small HTTP/2 request every 2.9 seconds, from 250 addresses",
            withholds: "its place, by work that is next to none",
            stopped_by: "a cap that gives the place of the connection with the least work to a \
                         newcomer",
            connections: 500,
            addresses: Addresses::Many(250),
            remedies: IDLE,
            make: |plan, _| {
                let rarely = Duration::from_millis(2_900);
                Box::new(Beat::new(plan, get).every(rarely, get))
            },
            ..base.clone()
        },
        Attack {
            name: "h2-dripped-headers",
            threat: "T03",
            title: "HTTP/2 header blocks that grow by a field a second and never end",
            withholds: "the end of the header block",
            stopped_by: "a deadline for the whole head, not for the gap between frames",
            remedies: const {
                &[
                    remedy("palisade", "ConnGuard: first_request_timeout, idle_timeout"),
                    remedy(
                        "hyper",
                        "none: h2 limits the CONTINUATION frames and not their time",
                    ),
                    remedy("nginx", "client_header_timeout 5s"),
                    remedy("HAProxy", "timeout http-request 5s"),
                ]
            },
            make: |plan, _| {
                let begin: super::beat::Frames = |plan, _| {
                    let block = block(&plan.fields("GET", &plan.get));
                    frame(HEADERS, END_STREAM, 1, &block)
                };
                let drip: super::beat::Frames =
                    |_, _| frame(CONTINUATION, 0, 1, &block(&[("x-drip", "1")]));
                let beat = Beat::new(plan, begin).every(Duration::from_secs(1), drip);
                Box::new(Beat {
                    answers: false,
                    ..beat
                })
            },
            ..base
        },
    ]
}

/// Returns the cheap GET on the next stream.
pub(super) fn get(plan: &Plan, session: &mut Session) -> Vec<u8> {
    let stream = session.next_stream();
    headers(stream, END_STREAM, &plan.fields("GET", &plan.get))
}

/// Sends these bytes and nothing more.
struct Half(Bytes);

impl Machine for Half {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.0.clone()),
            Event::Closed => reopen(now, out),
            Event::Received(_) | Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::beat::tests::{brief, frames_of};
    use super::super::frames::{END_HEADERS, SETTINGS};
    use super::*;
    use crate::machine::trace;

    const WHOLE: u8 = END_STREAM | END_HEADERS;

    #[test]
    fn half_a_preface_is_twelve_bytes_and_silence() {
        let mut machine = (attacks()[0].make)(&Plan::new("a"), 0);
        let sent = trace(&mut *machine, Duration::from_secs(60));
        assert_eq!(sent, [(Duration::ZERO, b"PRI * HTTP/2".to_vec())]);
    }

    #[test]
    fn silent_and_idle_connections_send_settings_and_at_most_one_request() {
        let silent = frames_of(&attacks(), "h2-silent", 60);
        assert_eq!(silent.len(), 1);
        assert_eq!(brief(&silent[0].1), [(SETTINGS, 0, 0)]);
        let idle = frames_of(&attacks(), "h2-idle", 60);
        assert_eq!(idle.len(), 1);
        assert_eq!(brief(&idle[0].1), [(SETTINGS, 0, 0), (HEADERS, WHOLE, 1)]);
    }

    #[test]
    fn rare_requests_are_2_9_seconds_apart_on_streams_of_their_own() {
        let sent = frames_of(&attacks(), "h2-rare-requests", 6);
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[2].0, Duration::from_millis(5_800));
        assert_eq!(brief(&sent[2].1), [(HEADERS, WHOLE, 5)]);
    }

    #[test]
    fn a_dripped_header_block_is_continued_each_second_and_never_ended() {
        let sent = frames_of(&attacks(), "h2-dripped-headers", 60);
        assert_eq!(sent.len(), 61);
        assert_eq!(
            brief(&sent[0].1),
            [(SETTINGS, 0, 0), (HEADERS, END_STREAM, 1)]
        );
        assert_eq!(brief(&sent[60].1), [(CONTINUATION, 0, 1)]);
        assert_eq!(sent[60].0, Duration::from_secs(60));
    }
}
