//! Handshakes that stop before the `ClientHello` is whole.

use super::{
    super::{
        attack::{Attack, InQuick, Needs, Remedy, remedy},
        pause::reopen,
    },
    hello::{Random, client_hello},
};
use crate::{
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use bytes::Bytes;
use std::time::Duration;

/// The interval between two bytes of a `ClientHello` that is dripped: it takes a minute or so.
const DRIP_INTERVAL: Duration = Duration::from_millis(250);
/// The length of the head of a record.
const RECORD_HEAD_BYTES: usize = 5;

const REMEDIES: &[Remedy] = &[
    remedy(
        "palisade",
        "ConnGuard: first_request_timeout and max_connections, and Serve::max_handshakes",
    ),
    remedy(
        "tokio-rustls",
        "tokio::time::timeout around TlsAcceptor::accept, and a cap on those at once",
    ),
    remedy(
        "nginx",
        "client_header_timeout 5s, which TLS handshakes have too",
    ),
    remedy(
        "HAProxy",
        "timeout client 5s: that of the request begins after the handshake",
    ),
];

pub(super) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T01",
        needs: Needs::Tls,
        withholds: "the end of the ClientHello",
        remedies: REMEDIES,
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "silent-handshake",
            title: "TLS handshakes that stop within the ClientHello, or before it",
            stopped_by: "a deadline for the first request that begins at accept, before TLS",
            make: |plan, index| {
                // One sends nothing, one the head of a record, one half of it.
                let mut hello = hello(plan, index);
                hello.truncate([0, RECORD_HEAD_BYTES, hello.len() / 2][index % 3]);
                Box::new(Dripped {
                    first: hello.len(),
                    hello,
                    sent: 0,
                    interval: None,
                })
            },
            ..base.clone()
        },
        Attack {
            name: "dripped-handshake",
            in_quick: InQuick::Skipped("silent-handshake holds the same places"),
            title: "TLS handshakes whose ClientHello arrives by a byte every 250 ms",
            stopped_by: "a deadline for the whole handshake, not for the gap between reads",
            make: |plan, index| {
                let hello = hello(plan, index);
                let interval = Some(DRIP_INTERVAL);
                Box::new(Dripped {
                    first: 1,
                    hello,
                    sent: 0,
                    interval,
                })
            },
            ..base
        },
    ]
}

fn hello(plan: &Plan, index: usize) -> Bytes {
    client_hello(&plan.host, &mut Random::new(plan.seed, index)).into()
}

/// Sends the first bytes of `hello` at once, and then one byte at each interval, until none is
/// left.
struct Dripped {
    hello: Bytes,
    first: usize,
    sent: usize,
    interval: Option<Duration>,
}

impl Machine for Dripped {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        let count = match event {
            Event::Opened => {
                self.sent = 0;
                self.first
            }
            Event::Woken => 1,
            Event::Closed => return reopen(now, out),
            // An alert. The server closes the connection, or the drip goes on.
            Event::Received(_) => return,
        };
        let end = (self.sent + count).min(self.hello.len());
        out.send(self.hello.slice(self.sent..end));
        self.sent = end;
        if let Some(interval) = self.interval
            && end < self.hello.len()
        {
            out.wake_at(now + interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::trace;

    fn sent(name: &str, index: usize) -> Vec<(Duration, Vec<u8>)> {
        let attacks = attacks();
        let attack = attacks.iter().find(|attack| attack.name == name).unwrap();
        let mut machine = (attack.make)(&Plan::new("a"), index);
        trace(&mut *machine, Duration::from_secs(600))
    }

    #[test]
    fn a_silent_handshake_sends_nothing_or_the_head_of_a_record_or_half_of_it() {
        let whole = hello(&Plan::new("a"), 2);
        let expected = [0, RECORD_HEAD_BYTES, whole.len() / 2];
        for (index, length) in expected.into_iter().enumerate() {
            let sent = sent("silent-handshake", index);
            let [(Duration::ZERO, bytes)] = &*sent else {
                panic!("{sent:?}");
            };
            assert_eq!(*bytes, hello(&Plan::new("a"), index)[..length]);
        }
    }

    #[test]
    fn a_dripped_handshake_is_a_whole_one_that_takes_a_minute() {
        let sent = sent("dripped-handshake", 7);
        assert!(sent.iter().all(|(_, bytes)| bytes.len() == 1));
        let (last, _) = sent[sent.len() - 1];
        assert_eq!(last, DRIP_INTERVAL * (sent.len() as u32 - 1));
        assert!(last > crate::bounds::MAX_ATTACK_TIME, "{last:?}");
        let all: Vec<_> = sent.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(all, hello(&Plan::new("a"), 7));
    }

    #[test]
    fn a_connection_that_was_closed_begins_its_hello_again() {
        let mut machine = (attacks()[1].make)(&Plan::new("a"), 0);
        trace(&mut *machine, Duration::from_secs(5));
        let (second, mut out) = (Duration::from_secs(6), Actions::default());
        machine.on(Event::Received(&[21, 3, 3, 0, 2, 2, 40]), second, &mut out);
        assert!(out.sent().is_empty() && !out.is_closing());
        machine.on(Event::Closed, second, &mut out);
        assert_eq!(out.reopening(), Some(second + Duration::from_millis(500)));
        let mut out = Actions::default();
        machine.on(Event::Opened, second, &mut out);
        assert_eq!(out.sent(), [22]);
        assert_eq!(out.wake(), Some(second + DRIP_INTERVAL));
    }
}
