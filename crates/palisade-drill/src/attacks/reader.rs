//! Responses that are not read.

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

/// The number of large responses that each connection asks for. Together they fill the buffers of
/// both kernels.
const RESPONSES: usize = 32;

pub(super) fn attacks() -> Vec<Attack> {
    let base = Attack {
        threat: "T07",
        withholds: "reads of the response",
        needs: Needs::Large,
        connections: 300,
        receive_buffer: Some(4_096),
        remedies: const {
            &[
                remedy("palisade", "ConnGuard: write_timeout and max_connections"),
                remedy("hyper", "none: wrap the socket with a write timeout"),
                remedy(
                    "nginx",
                    "send_timeout 10s, reset_timedout_connection on, and worker_connections to spare",
                ),
                remedy("HAProxy", "timeout client 10s, and maxconn to spare"),
            ]
        },
        ..Attack::BASE
    };
    vec![
        Attack {
            name: "slow-reader",
            title: "large responses that are not read",
            stopped_by: "a deadline for writes without progress",
            make: |plan, _| Box::new(Reader::new(plan, None)),
            ..base.clone()
        },
        Attack {
            name: "sipping-reader",
            title: "large responses that are read by 4 KiB every 1.5 seconds",
            stopped_by: "a cap that gives the place of such a reader to a newcomer: a deadline for \
                         writes sees progress",
            in_quick: InQuick::Skipped("slow-reader holds the same places"),
            make: |plan, _| Box::new(Reader::new(plan, Some(SIP_INTERVAL))),
            ..base
        },
    ]
}

/// The time between two reads of a reader that sips, less than the deadlines for writes.
const SIP_INTERVAL: Duration = Duration::from_millis(1_500);

/// Sends its requests, and reads nothing or a piece at each interval.
struct Reader {
    requests: Bytes,
    sips: Option<Duration>,
}

impl Reader {
    fn new(plan: &Plan, sips: Option<Duration>) -> Self {
        let path = plan.large.as_deref().unwrap_or(&plan.get);
        let request = format!("{}\r\n", plan.head("GET", path));
        Self {
            requests: request.repeat(RESPONSES).into(),
            sips,
        }
    }
}

impl Machine for Reader {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.requests.clone()),
            Event::Woken => return out.resume_reading(),
            Event::Received(_) => {}
            Event::Closed => return reopen(now, out),
        }
        out.pause_reading();
        if let Some(interval) = self.sips {
            out.wake_at(now + interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_reader_asks_for_all_responses_at_once_and_does_not_read() {
        let mut plan = Plan::new("a");
        plan.large = Some("/large".to_owned());
        let mut machine = (attacks()[0].make)(&plan, 0);
        let mut out = Actions::default();
        machine.on(Event::Opened, Duration::ZERO, &mut out);
        assert_eq!(out.reading(), Some(false));
        let text = String::from_utf8(out.sent()).unwrap();
        assert_eq!(text.matches("GET /large HTTP/1.1\r\n").count(), RESPONSES);
    }

    #[test]
    fn a_sip_is_one_piece_every_one_and_a_half_seconds() {
        let (mut reader, second) = (
            Reader::new(&Plan::new("a"), Some(SIP_INTERVAL)),
            Duration::from_secs(1),
        );
        let mut on = |event, now| {
            let mut out = Actions::default();
            reader.on(event, now, &mut out);
            (out.reading(), out.wake())
        };
        assert_eq!(
            on(Event::Opened, Duration::ZERO),
            (Some(false), Some(SIP_INTERVAL))
        );
        assert_eq!(on(Event::Woken, SIP_INTERVAL), (Some(true), None));
        let next = Some(second + SIP_INTERVAL);
        assert_eq!(on(Event::Received(b"HTTP"), second), (Some(false), next));
    }
}
