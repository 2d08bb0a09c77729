use super::*;

const MIB: u64 = 1 << 20;
const BYTES: u64 = 256 * MIB;
const LOOK: Duration = Duration::from_millis(25);
const SECOND: Duration = Duration::from_secs(1);

/// A decision whose calls take no time, on a clock of its own.
#[derive(Default)]
struct Script {
    decision: Decision,
    now: Duration,
    /// The whole seconds at which calls were made.
    calls: Vec<u64>,
}

impl Script {
    /// Takes looks for a while, in which these bytes are used and held. Returns how many calls it
    /// has made. A call has `returned` by the next look.
    fn run(&mut self, time: Duration, used: u64, held: u64, returned: u64) -> usize {
        let (before, end) = (self.calls.len(), self.now + time);
        let mut used = used;
        while self.now < end {
            if self.look(used, held, false) {
                self.calls.push(self.now.as_secs());
                used -= returned;
            }
            self.now += LOOK;
        }
        self.calls.len() - before
    }

    fn look(&mut self, used: u64, held: u64, is_running: bool) -> bool {
        let sample = Sample { used, limit: BYTES };
        self.decision.look(self.now, sample, held, is_running)
    }
}

#[test]
fn an_attack_that_leaves_is_followed_by_one_call() {
    let mut script = Script::default();
    assert_eq!(script.run(60 * SECOND, 200 * MIB, 64 * MIB, 0), 0);
    // A quarter is still held.
    assert_eq!(script.run(SECOND, 200 * MIB, 16 * MIB, 0), 0);
    assert_eq!(script.run(SECOND, 200 * MIB, 0, 190 * MIB), 1);
    assert_eq!(script.run(3600 * SECOND, 10 * MIB, 0, 0), 0);
}

#[test]
fn at_rest_there_is_no_call() {
    // Requests come and go, in a server that uses much of its memory.
    let mut script = Script::default();
    for _ in 0..600 {
        script.run(SECOND, 190 * MIB, 2 * MIB, 0);
        script.run(SECOND, 190 * MIB, 0, 0);
    }
    assert!(script.calls.is_empty());
    // Half of the memory is not short, whatever leaves; and 80 % may stand.
    let mut script = Script::default();
    script.run(SECOND, 128 * MIB, 64 * MIB, 0);
    assert_eq!(script.run(3600 * SECOND, 128 * MIB, 0, 0), 0);
    assert_eq!(
        Script::default().run(3600 * SECOND, 204 * MIB, 60 * MIB, 0),
        0
    );
}

#[test]
fn where_the_level_stands_useless_calls_become_rare() {
    for used in [BYTES / 100 * 97, BYTES / 1000 * 985, BYTES, 2 * BYTES] {
        let mut script = Script::default();
        script.run(3600 * SECOND, used, 0, 0);
        let expected = [1, 21, 61, 141, 301, 621, 1221, 1821, 2421, 3021];
        assert_eq!(script.calls, expected);
    }
}

#[test]
fn after_a_useful_call_the_next_one_may_be_soon() {
    let mut script = Script::default();
    script.run(100 * SECOND, 250 * MIB, 0, 0);
    assert_eq!(script.calls, [1, 21, 61]);
    script.calls.clear();
    script.run(75 * SECOND, 250 * MIB, 0, BYTES / 64);
    assert_eq!(script.calls, [141, 151, 161, 171]);
    script.calls.clear();
    // One byte less is useless.
    script.run(60 * SECOND, 250 * MIB, 0, BYTES / 64 - BYTES / LIMIT);
    assert_eq!(script.calls, [181, 201]);
}

#[test]
fn a_level_that_rises_or_falls_does_not_stand() {
    let mut script = Script::default();
    let rising = 210..250;
    let falling = (205..249).rev();
    for mib in rising.chain(falling) {
        script.run(SECOND - LOOK, mib * (MIB + 4096), 0, 0);
    }
    assert!(script.calls.is_empty());
    // Less than 1/256 of the limit is no change.
    for step in 0..8 {
        script.run(SECOND / 4, 220 * MIB + step % 2 * (MIB / 2), 0, 0);
    }
    assert_eq!(script.calls.len(), 1);
}

#[test]
fn useless_calls_while_clients_stand_do_not_delay_the_call_after_they_leave() {
    let mut script = Script::default();
    // The held bytes are live: nothing can be returned.
    assert_eq!(script.run(1800 * SECOND, 230 * MIB, 60 * MIB, 0), 7);
    // A new call is possible 10 s after the last one at the latest.
    assert_eq!(script.run(10 * SECOND, 230 * MIB, 0, 200 * MIB), 1);
    // And the other way round.
    let mut script = Script::default();
    for _ in 0..100 {
        script.run(SECOND, 140 * MIB, 60 * MIB, 0);
        script.run(SECOND, 140 * MIB, 0, 0);
    }
    assert_eq!(script.calls.len(), 4);
    assert_eq!(script.run(11 * SECOND, 230 * MIB, 0, 0), 1);
}

#[test]
fn clients_that_come_and_leave_cause_at_most_a_call_in_ten_seconds() {
    let mut script = Script::default();
    for _ in 0..1800 {
        script.run(SECOND, 200 * MIB, 60 * MIB, 0);
        script.run(SECOND, 200 * MIB, 0, 100 * MIB);
    }
    assert!((300..=360).contains(&script.calls.len()));
    let are_apart = |calls: &[u64]| calls[1] - calls[0] >= 10;
    assert!(script.calls.windows(2).all(are_apart));
}

#[test]
fn while_a_call_runs_there_is_no_other_and_it_is_judged_when_it_has_returned() {
    let mut script = Script::default();
    script.look(200 * MIB, 64 * MIB, false);
    assert!(!script.look(200 * MIB, 0, false)); // The bodies may not be dropped yet.
    script.now += FREED_TIME;
    assert!(script.look(200 * MIB, 0, false));
    for held in [64 * MIB, 0].into_iter().cycle().take(400) {
        script.now += LOOK;
        assert!(!script.look(200 * MIB, held, true)); // For 10 s.
    }
    // The next pause begins here, and the peak is that of the meantime.
    assert!(!script.look(100 * MIB, 0, false));
    assert_eq!(script.run(MIN_PAUSE, 200 * MIB, 0, 0), 0);
    assert_eq!(script.run(LOOK, 200 * MIB, 0, 0), 1);
}

#[test]
fn a_limit_of_zero_and_tiny_limits_do_no_harm() {
    let mut decision = Decision::default();
    for limit in [0, 1, 100, u64::MAX] {
        for bytes in [0, 1, u64::MAX] {
            let sample = Sample { used: bytes, limit };
            decision.look(Duration::MAX, sample, bytes, false);
        }
    }
}
