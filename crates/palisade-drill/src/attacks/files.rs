//! More connections than the server may open files.

use super::attack::{Attack, Needs, remedy};
use crate::machine::{Actions, Event, Machine};
use std::time::Duration;

/// The pause before a connection that was closed is opened again: a server that closes connections
/// to accept others is asked at once.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "file-limit",
        threat: "T02",
        title: "more connections than the server may open files, opened again at once",
        withholds: "the first byte, and files for anything else",
        stopped_by: "a cap on connections below the limit on open files, and an accept loop that \
                     outlives its errors without spinning",
        remedies: const {
            &[
                remedy("palisade", "ConnGuard: max_connections below `ulimit -n`"),
                remedy("hyper", "a semaphore of fewer permits than `ulimit -n`"),
                remedy("nginx", "worker_connections below worker_rlimit_nofile"),
                remedy("HAProxy", "maxconn, with ulimit-n above twice that"),
            ]
        },
        needs: Needs::FileLimit,
        make: |_, _| Box::new(Occupier),
        ..Attack::BASE
    }]
}

/// Sends nothing, and comes back at once.
struct Occupier;

impl Machine for Occupier {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        if event == Event::Closed {
            out.reopen_at(now + REOPEN_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{machine::trace, plan::Plan};

    #[test]
    fn a_connection_sends_nothing_and_comes_back_at_once() {
        let attack = attacks().remove(0);
        let mut machine = (attack.make)(&Plan::new("a"), 0);
        let minute = Duration::from_secs(60);
        assert_eq!(trace(&mut *machine, minute), [(Duration::ZERO, vec![])]);
        let mut out = Actions::default();
        machine.on(Event::Closed, minute, &mut out);
        assert_eq!(out.reopening(), Some(minute + Duration::from_millis(100)));
    }
}
