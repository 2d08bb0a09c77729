//! Responses that are not read.

use super::{
    attack::{Attack, Needs, remedy},
    pause::reopen,
};
use crate::machine::{Actions, Event, Machine};
use bytes::Bytes;
use std::time::Duration;

/// The number of large responses that each connection asks for. Together they fill the buffers of
/// both kernels.
const RESPONSES: usize = 32;

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "slow-reader",
        threat: "T07",
        title: "large responses that are not read",
        withholds: "reads of the response",
        stopped_by: "a deadline for writes without progress",
        needs: Needs::Large,
        connections: 300,
        receive_buffer: Some(4_096),
        remedies: const {
            &[
                remedy("palisade", "ConnGuard: write_timeout and max_connections"),
                remedy("hyper", "none: wrap the socket with a write timeout"),
                remedy("nginx", "send_timeout 10s, reset_timedout_connection on"),
                remedy("HAProxy", "timeout client 10s"),
            ]
        },
        make: |plan, _| {
            let path = plan.large.as_deref().unwrap_or(&plan.get);
            let request = format!("{}\r\n", plan.head("GET", path));
            Box::new(StalledReader {
                requests: request.repeat(RESPONSES).into(),
            })
        },
        ..Attack::BASE
    }]
}

/// Sends its requests and reads nothing.
struct StalledReader {
    requests: Bytes,
}

impl Machine for StalledReader {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                out.pause_reading();
                out.send(self.requests.clone());
            }
            Event::Closed => reopen(now, out),
            Event::Received(_) | Event::Woken => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

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
}
