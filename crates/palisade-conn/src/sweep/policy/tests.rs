//! The policy on made-up counters over time, without sockets.

use super::{quiet::is_quiet, *};
use crate::{
    ConnGuard,
    connection::{
        decision::CloseMode,
        stats::{ConnStats, IdleStats},
    },
    eviction::rank::EvictionRank,
    guard::limits::GOAWAY_GRACE_MILLIS,
};
use palisade_core::{Mode, Phase};
use std::time::Duration;

fn limits() -> Limits {
    let guard = ConnGuard::builder().max_age(Duration::from_secs(1000));
    let guard = guard
        .write_timeout(Duration::from_secs(30))
        .build()
        .unwrap();
    guard.shared().limits.clone()
}

fn tracked() -> ConnStats {
    ConnStats {
        tracked: true,
        ..ConnStats::default()
    }
}

/// A sweep at `now`, 250 ms after the previous one, without a maximum age.
fn time_at(now: u64) -> SweepTime {
    SweepTime {
        now,
        passed: 250,
        opened: 0,
        due_age: None,
        max_kept_idle: None,
    }
}

/// Evaluates the counters that `stats_at` returns every 250 ms, from 0 to `until`. Returns the
/// first action beside [`Action::Keep`] and what the socket is asked, and its time.
fn first_action(until: u64, stats_at: impl Fn(u64) -> ConnStats) -> Option<(u64, Action)> {
    let limits = limits();
    let mut state = SweepState::default();
    let mut looked = false;
    (0..=until / 250).map(|tick| tick * 250).find_map(|now| {
        let time = time_at(now);
        let stats = ConnStats {
            looked,
            ..stats_at(now)
        };
        let (kept, action) = evaluate(&limits, time, &stats, None, state);
        state = kept;
        looked &= state.since != now as u32;
        match action {
            // A writer that is asked still writes.
            Action::Keep | Action::AskWriter => None,
            Action::AskReader => {
                looked = true;
                None
            }
            action => Some((now, action)),
        }
    })
}

/// Returns the time, reason and mode of a close.
///
/// # Panics
///
/// If the action is not a close.
fn closed_at(action: Option<(u64, Action)>) -> Option<(u64, Reason, CloseMode)> {
    match action {
        Some((now, Action::Close(CloseRequest { reason, mode, .. }))) => Some((now, reason, mode)),
        None => None,
        other => panic!("{other:?}"),
    }
}

/// Every combination of counters and flags, possible or not.
fn all_stats() -> impl Iterator<Item = ConnStats> {
    (0..1u32 << 18).map(|bits| {
        let bit = |at: u32| bits >> at & 1 == 1;
        ConnStats {
            tracked: true,
            lingering: bit(0),
            upgraded: bit(1),
            http2: bit(2),
            framed: bit(3),
            goaway: bit(4),
            requests: bit(5).into(),
            in_flight: bit(6).into(),
            waiting: bit(7).into(),
            uploading: bit(8),
            answered: bit(9).into(),
            early: u16::from(bit(10)) * 300,
            more_was_read: bit(11),
            body_left: bit(12),
            unmeasured: bit(13),
            awaits_read: bit(14),
            write_blocked: bit(15),
            read: u64::from(bit(16)) * 5000,
            data: u32::from(bit(17)) * 3000,
            ..ConnStats::default()
        }
    })
}

#[test]
fn every_state_without_a_request_in_flight_has_a_deadline() {
    // The longest: the upgraded idle timeout, the grace after GOAWAY, and four sweep intervals.
    let max_millis = 300_000 + GOAWAY_GRACE_MILLIS + 4 * 20_000;
    let limits = limits();
    for stats in all_stats().filter(|stats| stats.in_flight == 0) {
        let (mut state, mut closing) = (SweepState::default(), None);
        let closed_at = (0..=max_millis / 20_000)
            .map(|sweep| sweep * 20_000)
            .find(|now| {
                let time = SweepTime {
                    now: *now,
                    passed: 20_000,
                    opened: 0,
                    due_age: None,
                    max_kept_idle: None,
                };
                let (kept, action) = evaluate(&limits, time, &stats, closing, state);
                state = kept;
                if let Action::Announce(CloseRequest { reason, .. }) = action {
                    closing = Some(reason);
                }
                matches!(action, Action::Close(_) | Action::EndLingering)
            });
        assert!(closed_at.is_some(), "{stats:?}");
    }
}

#[test]
fn every_state_without_progress_for_some_seconds_can_be_evicted() {
    let limits = limits();
    for stats in all_stats() {
        let mut state = SweepState::default();
        for now in (0..=5000).step_by(1000) {
            let time = SweepTime {
                now,
                passed: 1000,
                opened: 0,
                due_age: None,
                max_kept_idle: None,
            };
            state = evaluate(&limits, time, &stats, None, state).0;
        }
        // Exempt are connections on which a handler works, or may, and quiet upgraded ones: their
        // number is limited.
        let waits_for_client =
            stats.write_blocked || stats.awaits_body() || stats.http2 && stats.waiting > 0;
        let is_at_work = stats.in_flight > 0 && !waits_for_client;
        let is_quiet = stats.upgraded && !stats.write_blocked;
        let stats = ConnStats {
            stalled: state.stalled,
            ..stats
        };
        let is_exempt = (is_at_work || is_quiet) && !stats.lingering;
        assert!(
            is_exempt || EvictionRank::of(&stats, 5000, false).is_some(),
            "{stats:?}"
        );
    }
}

#[test]
fn a_dripped_body_of_unknown_end_has_the_header_timeout() {
    let dripping = |now: u64| ConnStats {
        requests: 1,
        answered: 1,
        unmeasured: true,
        read: 1000 + now.saturating_sub(1000) / 1000,
        more_was_read: now >= 2000,
        ..tracked()
    };
    let action = first_action(100_000, dripping);
    assert_eq!(
        closed_at(action),
        Some((12_000, Reason::SlowHead, CloseMode::Reset))
    );
    // A task of the handler reads the rest of the chunks.
    let uploading = |now: u64| ConnStats {
        read: 1000 + now / 2,
        ..dripping(now)
    };
    assert_eq!(first_action(100_000, |now| uploading(now * 2)), None);
}

#[test]
fn a_body_that_is_still_to_come_after_its_response_has_the_idle_timeout() {
    let waiting = |read| ConnStats {
        requests: 1,
        answered: 1,
        body_left: true,
        awaits_read: true,
        read,
        ..tracked()
    };
    let idle = Some((65_000, Reason::Idle, CloseMode::Graceful));
    assert_eq!(closed_at(first_action(100_000, |_| waiting(7))), idle);
    assert_eq!(
        closed_at(first_action(100_000, |now| waiting(now / 1000))),
        idle
    );
    assert_eq!(first_action(300_000, waiting), None);
}

#[test]
fn bytes_that_make_no_head_do_not_move_the_first_deadline() {
    let action = first_action(20_000, |now| ConnStats {
        read: now,
        ..tracked()
    });
    assert_eq!(
        closed_at(action),
        Some((10_000, Reason::FirstRequest, CloseMode::Reset))
    );
    // A full socket does not move it either.
    let blocked = |now| ConnStats {
        write_blocked: now % 500 == 0,
        written: now,
        ..tracked()
    };
    let action = first_action(20_000, blocked);
    assert_eq!(
        closed_at(action),
        Some((10_000, Reason::FirstRequest, CloseMode::Reset))
    );
}

#[test]
fn a_later_head_has_its_time_from_its_first_byte() {
    let dripping = |now| ConnStats {
        requests: 1,
        answered: 1,
        read: now,
        more_was_read: now >= 30_000,
        ..tracked()
    };
    let action = first_action(50_000, dripping);
    assert_eq!(
        closed_at(action),
        Some((40_000, Reason::SlowHead, CloseMode::Reset))
    );
}

#[test]
fn the_rest_of_a_body_is_not_a_head() {
    // 7 bytes of the body are read after the response, before the next sweep.
    let done = ConnStats {
        requests: 1,
        answered: 1,
        read: 7,
        more_was_read: true,
        ..tracked()
    };
    let action = first_action(100_000, |_| done);
    assert_eq!(
        closed_at(action),
        Some((65_000, Reason::Idle, CloseMode::Graceful))
    );
    // An attacker that sends a byte of a head as early as that gains nothing: it has the idle
    // timeout, and the shorter header timeout from its second byte on.
    let action = first_action(100_000, |now| ConnStats {
        read: 7 + now / 20_000,
        ..done
    });
    assert_eq!(
        closed_at(action),
        Some((30_000, Reason::SlowHead, CloseMode::Reset))
    );
}

#[test]
fn a_body_that_is_read_after_its_response_is_work_until_its_end() {
    let uploading = |now| ConnStats {
        requests: 1,
        answered: 1,
        read: now,
        body_left: now < 100_000,
        more_was_read: now > 100_000,
        ..tracked()
    };
    assert_eq!(EvictionRank::of(&uploading(90_000), 0, false), None);
    // The client has its response and may leave, so the connection is not probed.
    let action = first_action(200_000, uploading);
    assert_eq!(
        closed_at(action),
        Some((110_250, Reason::SlowHead, CloseMode::Reset))
    );
}

#[test]
fn ping_acknowledgements_are_no_progress_and_a_response_is() {
    let idle = |read, written| ConnStats {
        requests: 1,
        answered: 1,
        http2: true,
        read,
        written,
        ..tracked()
    };
    // A PING and its acknowledgement in each sweep interval.
    let action = first_action(100_000, |now| idle(now / 250 * 34, now / 250 * 34));
    assert_eq!(
        closed_at(action),
        Some((65_000, Reason::Idle, CloseMode::Graceful))
    );
    // 4 KiB/s of a response body that hyper has taken completely, and its window updates.
    let action = first_action(300_000, |now| idle(now / 250 * 13, now / 250 * 1024));
    assert_eq!(action, None);
    // 2,000 bytes every 10 s of a response with an almost closed window.
    let action = first_action(100_000, |now| idle(now / 10_000 * 13, now / 10_000 * 2000));
    assert_eq!(
        closed_at(action),
        Some((65_000, Reason::Idle, CloseMode::Graceful))
    );
    // A response that ends after 20 s.
    let action = first_action(100_000, |now| idle(0, now.min(20_000) / 250 * 1024));
    assert_eq!(
        closed_at(action),
        Some((85_000, Reason::Idle, CloseMode::Graceful))
    );
}

#[test]
fn a_response_stalls_unless_500_bytes_a_second_are_taken() {
    let writing = |written| ConnStats {
        requests: 1,
        in_flight: 1,
        write_blocked: true,
        http2: true,
        written,
        ..tracked()
    };
    // The bytes are taken in steps, as a receive window opens.
    assert_eq!(
        first_action(200_000, |now| writing(now / 29_000 * 14_500)),
        None
    );
    let stalled = Some((30_000, Reason::WriteStall, CloseMode::Reset));
    assert_eq!(
        closed_at(first_action(100_000, |now| writing(now / 1000))),
        stalled
    );
    let action = first_action(100_000, |_| writing(7));
    assert_eq!(
        closed_at(action),
        Some((30_000, Reason::WriteStall, CloseMode::Reset))
    );
}

#[test]
fn the_duration_of_a_stall_is_kept_in_whole_seconds() {
    let limits = Limits {
        write_stall: 3_600_000,
        ..limits()
    };
    let mut state = SweepState::default();
    let mut stalled = |now, written| {
        let stats = ConnStats {
            requests: 1,
            in_flight: 1,
            write_blocked: true,
            ..tracked()
        };
        let stats = ConnStats { written, ..stats };
        let time = time_at(now);
        state = evaluate(&limits, time, &stats, None, state).0;
        state.stalled
    };
    assert_eq!(
        [stalled(1000, 7), stalled(1999, 7), stalled(2000, 7)],
        [0, 0, 1]
    );
    assert_eq!(
        [
            stalled(9000, 8),
            stalled(9001, 5000),
            stalled(1_000_000, 5000)
        ],
        [8, 0, 255]
    );
}

#[test]
fn an_abandoned_write_is_no_stall_and_a_continued_one_is() {
    let limits = limits();
    let blocked = ConnStats {
        upgraded: true,
        write_blocked: true,
        ..tracked()
    };
    let asked = ConnStats {
        write_blocked: false,
        asked: true,
        ..blocked
    };
    // Returns when the writer was asked and when the connection was closed, if the writer reports
    // `reports_after` milliseconds after it was asked.
    let outcome = |reports_after: u64| {
        let mut state = SweepState::default();
        let mut asked_at = None;
        for now in (0..40_000).step_by(250) {
            let waits = asked_at.is_some_and(|at| now < reports_after.saturating_add(at));
            let stats = if waits { asked } else { blocked };
            let time = time_at(now);
            let (kept, action) = evaluate(&limits, time, &stats, None, state);
            state = kept;
            match action {
                Action::AskWriter => asked_at = Some(now),
                Action::Keep => {}
                action => return (asked_at, closed_at(Some((now, action)))),
            }
        }
        (asked_at, None)
    };
    let stalled = Some((30_000, Reason::WriteStall, CloseMode::Reset));
    assert_eq!(outcome(0), (Some(29_750), stalled));
    // The writer never reports: the write was abandoned.
    assert_eq!(outcome(u64::MAX), (Some(29_750), None));
    // A writer that reports later has the full timeout again.
    assert_eq!(outcome(5000), (Some(29_750), None));
}

#[test]
fn a_client_is_reset_only_if_it_cancels_most_of_its_requests_early() {
    let cancelling = |early, answered| ConnStats {
        requests: 1000,
        early,
        answered,
        cancelled: early.into(),
        http2: true,
        ..tracked()
    };
    let action = |early, answered| first_action(0, |_| cancelling(early, answered));
    let reset = Some((0, Reason::CancelledRequests, CloseMode::Reset));
    assert_eq!(closed_at(action(200, 199)), reset);
    assert_eq!(action(200, 200), None);
    assert_eq!(action(199, 0), None); // A client leaves a page.
    let late = ConnStats {
        early: 100,
        cancelled: 900,
        ..cancelling(0, 0)
    };
    assert_eq!(first_action(0, |_| late), None); // The timeouts of the client expire.
}

#[test]
fn overhead_bytes_are_paid_for_by_time_requests_and_responses() {
    let http2 = |read| ConnStats {
        requests: 1,
        http2: true,
        read,
        ..tracked()
    };
    // 32 KiB for the request, 4,000 bytes for the sweep interval, and 256 KiB.
    let max = 256 * 1024 + 32 * 1024 + 4000;
    assert_eq!(first_action(0, |_| http2(max)), None);
    let reset = |now| Some((now, Reason::NoProgress, CloseMode::Reset));
    // In one sweep they may be heads of requests that are not reported yet, in the next no more.
    assert_eq!(
        closed_at(first_action(250, |_| http2(max + 4001))),
        reset(250)
    );
    let ahead = |now: u64| ConnStats {
        requests: 1 + now as u32,
        ..http2(4 << 20)
    };
    assert_eq!(first_action(1000, ahead), None);
    assert_eq!(
        closed_at(first_action(0, |_| http2(max + (4 << 20) + 1))),
        reset(0)
    );
    // 16 bytes per millisecond are always free, and 17 are not.
    let steady = |rate: u64| {
        move |now| ConnStats {
            in_flight: 1,
            ..http2(now * rate)
        }
    };
    assert_eq!(first_action(1_000_000, steady(16)), None);
    assert_eq!(
        closed_at(first_action(1_000_000, steady(17))),
        reset(264_500)
    );
    // The acknowledgements of a download, and one request in each sweep interval.
    let acknowledges = |now| ConnStats {
        in_flight: 1,
        written: now * 8000,
        ..http2(now * 1000)
    };
    assert_eq!(first_action(1_000_000, acknowledges), None);
    let asks = |now| ConnStats {
        requests: now as u32 / 250 + 1,
        in_flight: 1,
        ..http2(now * 140)
    };
    assert_eq!(first_action(1_000_000, asks), None);
    // An upload, and any bytes beside it.
    let uploads = |now| ConnStats {
        uploading: true,
        in_flight: 1,
        ..http2(now * 100_000)
    };
    assert_eq!(first_action(100_000, uploads), None);
    // The rest of a refused upload, where frames cannot be told apart, up to the credit and beyond.
    let tail = |max: u64| {
        move |now: u64| ConnStats {
            uploading: now == 0,
            ..http2(1_000_000 + now.saturating_mul(100_000).min(max))
        }
    };
    assert_eq!(first_action(10_000, tail(64 << 20)), None);
    assert_eq!(closed_at(first_action(10_000, tail(65 << 20))), reset(1000));
    // Where frames are told apart, DATA is no overhead, and everything beside it is.
    let framed = |now: u64, beside: u64| ConnStats {
        framed: true,
        uploading: true,
        in_flight: 1,
        data: (now * 1_000_000) as u32,
        ..http2(now * (1_000_000 + beside))
    };
    assert_eq!(first_action(10_000, |now| framed(now, 16)), None);
    assert_eq!(
        closed_at(first_action(10_000, |now| framed(now, 1000))),
        reset(750)
    );
    let refused = |now| ConnStats {
        uploading: false,
        in_flight: 0,
        ..framed(now, 16)
    };
    assert_eq!(first_action(10_000, refused), None);
    let tunnel = |now| ConnStats {
        upgraded: true,
        ..framed(now, 1000)
    };
    assert_eq!(closed_at(first_action(10_000, tunnel)), reset(750));
    // If frames are not told apart, any bytes may arrive beside a tunnel.
    let tunnel = |now| ConnStats {
        upgraded: true,
        in_flight: 1,
        ..http2(now * 100_000)
    };
    assert_eq!(first_action(4000, tunnel), None);
    // Bytes on HTTP/1 are no overhead.
    let http1 = |now| ConnStats {
        http2: false,
        in_flight: 1,
        ..http2(now * 100_000)
    };
    assert_eq!(first_action(4000, http1), None);
    // Before the first request, all bytes are overhead.
    let no_request = |now| ConnStats {
        read: now * 1000,
        ..tracked()
    };
    assert_eq!(closed_at(first_action(5000, no_request)), reset(750));
}

#[test]
fn a_shut_window_closes_the_connection_if_all_its_responses_wait() {
    let waiting = |read, written| ConnStats {
        requests: 3,
        in_flight: 2,
        waiting: 2,
        http2: true,
        read,
        written,
        ..tracked()
    };
    let reset = Some((30_000, Reason::WindowStall, CloseMode::Reset));
    assert_eq!(closed_at(first_action(60_000, |_| waiting(0, 0))), reset);
    // PING, window updates of one byte and more waiting streams do not help.
    let pings = |now| ConnStats {
        requests: 3 + now as u32,
        ..waiting(now * 2, now * 2)
    };
    assert_eq!(closed_at(first_action(60_000, pings)), reset);
    // 4,000 bytes per second of the waiting responses are progress.
    assert_eq!(
        first_action(600_000, |now| waiting(now / 20, now * 4)),
        None
    );
    // A small request that is answered every second, or that works for a moment, is no progress.
    let small = |now| ConnStats {
        requests: 3 + now as u32 / 1000,
        in_flight: if now % 2000 == 0 { 3 } else { 2 },
        ..waiting(now / 10, now / 10 + now / 5)
    };
    assert_eq!(
        closed_at(first_action(60_000, small)).map(|(_, why, _)| why),
        reset.map(|r| r.1)
    );
    // A request at work must not be closed because of another one that waits.
    let one_works = |_| ConnStats {
        waiting: 1,
        ..waiting(0, 0)
    };
    assert_eq!(first_action(600_000, one_works), None);
    let beside_a_tunnel = |_| ConnStats {
        upgraded: true,
        ..waiting(0, 0)
    };
    assert_eq!(first_action(600_000, beside_a_tunnel), None);
}

#[test]
fn requests_beside_an_http2_tunnel_count_as_requests() {
    let beside = |in_flight| ConnStats {
        requests: 2,
        upgraded: true,
        http2: true,
        in_flight,
        ..tracked()
    };
    assert_eq!(
        [beside(1).phase(), beside(0).phase()],
        [Phase::Working, Phase::Upgraded]
    );
    assert_eq!(
        ConnStats {
            http2: false,
            ..beside(1)
        }
        .phase(),
        Phase::Upgraded
    );
}

#[test]
fn an_occasionally_full_socket_does_not_stop_the_idle_timeout() {
    let action = first_action(100_000, |now| ConnStats {
        requests: 1,
        answered: 1,
        http2: true,
        read: now,
        written: now,
        write_blocked: now % 1000 == 0,
        ..tracked()
    });
    assert_eq!(
        closed_at(action),
        Some((65_000, Reason::Idle, CloseMode::Graceful))
    );
}

#[test]
fn a_closing_connection_is_not_closed_while_its_last_response_is_sent() {
    // A window of 16 KiB that a WINDOW_UPDATE of 13 bytes opens five times a second.
    let limits = limits();
    let mut state = SweepState::default();
    for now in (0..60_000).step_by(250) {
        let (read, written) = (now / 200 * 13, now / 200 * 16_384);
        let stats = ConnStats {
            requests: 1,
            answered: 1,
            http2: true,
            ..tracked()
        };
        let stats = ConnStats {
            read,
            written,
            ..stats
        };
        let time = time_at(now);
        let (kept, action) = evaluate(&limits, time, &stats, Some(Reason::MaxRequests), state);
        state = kept;
        assert_eq!(action, Action::Keep, "{now}");
    }
}

#[test]
fn an_untracked_connection_is_closed_only_if_it_never_sends() {
    let untracked = |read| ConnStats {
        read,
        ..ConnStats::default()
    };
    let action = first_action(20_000, |_| untracked(0));
    assert_eq!(
        closed_at(action),
        Some((10_000, Reason::FirstRequest, CloseMode::Reset))
    );
    assert_eq!(first_action(500_000, |_| untracked(1)), None);
}

#[test]
fn an_upgraded_connection_has_its_own_idle_timeout_and_no_maximum_age() {
    let upgraded = |read| ConnStats {
        requests: 1,
        upgraded: true,
        read,
        ..tracked()
    };
    let action = first_action(400_000, |now| upgraded(now.min(50_000)));
    assert_eq!(
        closed_at(action),
        Some((350_000, Reason::Idle, CloseMode::Graceful))
    );
    let limits = limits();
    let time = SweepTime {
        now: 10_000_000,
        passed: 250,
        opened: 0,
        due_age: Some(1_000_000),
        max_kept_idle: None,
    };
    let (_, action) = evaluate(&limits, time, &upgraded(7), None, SweepState::default());
    assert_eq!(action, Action::Keep);
}

#[test]
fn an_old_connection_takes_no_more_requests_then_closes_when_idle_or_after_the_grace() {
    let limits = Limits {
        age_grace: Some(30_000),
        ..limits()
    };
    let working = ConnStats {
        requests: 1,
        in_flight: 1,
        http2: true,
        ..tracked()
    };
    let idle = ConnStats {
        requests: 1,
        answered: 1,
        http2: true,
        ..tracked()
    };
    let at = |now, stats, closing| {
        let time = SweepTime {
            now,
            passed: 250,
            opened: 0,
            due_age: Some(1_000_000),
            max_kept_idle: None,
        };
        evaluate(&limits, time, stats, closing, SweepState::default()).1
    };
    assert_eq!(at(999_999, &working, None), Action::Keep);
    assert_eq!(
        at(1_000_000, &working, None),
        Action::BeginClosing(Reason::MaxAge)
    );
    let closing = Some(Reason::MaxAge);
    assert_eq!(at(1_000_250, &working, closing), Action::Keep);
    let mode = |action| match action {
        Action::Close(CloseRequest { reason, mode, .. }) => (reason, mode),
        other => panic!("{other:?}"),
    };
    let time = SweepTime {
        now: 1_000_250,
        passed: 250,
        opened: 0,
        due_age: Some(1_000_000),
        max_kept_idle: None,
    };
    let (state, action) = evaluate(&limits, time, &idle, closing, SweepState::default());
    assert_eq!(action, Action::Keep);
    let time = SweepTime {
        now: 1_029_999,
        ..time
    };
    assert_eq!(
        evaluate(&limits, time, &idle, closing, state).1,
        Action::Keep
    );
    let time = SweepTime {
        now: 1_030_250,
        ..time
    };
    let finish = (Reason::MaxAge, CloseMode::Graceful);
    assert_eq!(
        mode(evaluate(&limits, time, &idle, closing, state).1),
        finish
    );
    let reset = (Reason::MaxAge, CloseMode::Reset);
    assert_eq!(mode(at(1_030_000, &working, closing)), reset);
    let limits = Limits {
        age_grace: None,
        ..limits
    };
    let time = SweepTime {
        now: 90_000_000,
        passed: 250,
        opened: 0,
        due_age: Some(1_000_000),
        max_kept_idle: None,
    };
    let (_, action) = evaluate(&limits, time, &working, closing, SweepState::default());
    assert_eq!(action, Action::Keep);
}

#[test]
fn a_connection_that_waits_for_its_client_is_not_closed_by_age_and_has_the_longer_timeout() {
    let limits = Limits {
        idle: 1000,
        ..limits()
    };
    let waiting = ConnStats {
        requests: 1,
        answered: 1,
        write_blocked: true,
        looked: true,
        ..tracked()
    };
    let at = |now, stats, closing| {
        let time = time_at(now);
        let (state, _) = evaluate(
            &limits,
            SweepTime { now: 0, ..time },
            stats,
            None,
            SweepState::default(),
        );
        evaluate(&limits, time, stats, closing, state).1
    };
    assert_eq!(
        at(29_999, &waiting, Some(Reason::MaxRequests)),
        Action::AskWriter
    );
    let idle = ConnStats {
        write_blocked: false,
        ..waiting
    };
    assert!(matches!(
        at(1000, &idle, None),
        Action::Close(CloseRequest {
            reason: Reason::Idle,
            ..
        })
    ));
    let limits = Limits {
        idle: 10_000,
        ..limits
    };
    let at = |now, stats, closing| {
        let time = SweepTime {
            max_kept_idle: Some(20),
            ..time_at(now)
        };
        let (state, _) = evaluate(
            &limits,
            SweepTime { now: 0, ..time },
            stats,
            None,
            SweepState::default(),
        );
        evaluate(&limits, time, stats, closing, state).1
    };
    // Kept until the idle timeout: the client may be about to send its last request.
    assert_eq!(at(9999, &idle, Some(Reason::MaxRequests)), Action::Keep);
    let with_goaway = ConnStats {
        goaway: true,
        ..idle
    };
    let kept_alive = Some(Reason::KeepAlivePerClient);
    assert_eq!(at(4999, &with_goaway, kept_alive), Action::Keep);
    for (stats, reason) in [
        (&with_goaway, Reason::MaxRequests),
        (&idle, Reason::KeepAlivePerClient),
        (&idle, Reason::Shutdown),
    ] {
        let Action::Close(request) = at(5000, stats, Some(reason)) else {
            panic!("{reason}")
        };
        assert_eq!(
            (request.reason, request.mode),
            (reason, CloseMode::Graceful)
        );
        if reason == Reason::KeepAlivePerClient {
            // The limit at this time, not the smallest one.
            assert_eq!((request.limit, request.observed), (20, 21));
        }
    }
}

#[test]
fn a_quiet_connection_would_be_kept_with_the_same_state() {
    let limits = limits();
    let idle = ConnStats {
        requests: 3,
        answered: 3,
        read: 300,
        written: 3000,
        ..tracked()
    };
    let time = |now| SweepTime {
        now,
        passed: 250,
        opened: 0,
        due_age: limits.due(1),
        max_kept_idle: None,
    };
    // As `ConnState::idle_stats` does.
    let idle_stats = |stats: &ConnStats| {
        let is_idle = stats.in_flight == 0
            && stats.early == 0
            && !(stats.write_blocked || stats.asked)
            && !(stats.upgraded || stats.lingering);
        let ConnStats {
            read,
            written,
            requests,
            ..
        } = *stats;
        is_idle.then_some(IdleStats {
            read,
            written,
            requests,
        })
    };
    let is_quiet_at = |now, stats: ConnStats, closing: Option<Reason>, state| {
        let idle = idle_stats(&stats).filter(|_| closing.is_none());
        let is_quiet = idle.is_some_and(|idle| is_quiet(&limits, now, now, &idle, &state));
        if is_quiet {
            let result = evaluate(&limits, time(now), &stats, closing, state);
            assert_eq!(result, (state, Action::Keep), "{now} {stats:?} {state:?}");
        }
        is_quiet
    };
    let changes: [fn(&mut ConnStats); 14] = [
        |_| {},
        |stats| stats.http2 = true,
        |stats| stats.read += 1,
        |stats| stats.written += 5000,
        |stats| stats.requests += 1,
        |stats| (stats.requests, stats.in_flight) = (4, 1),
        |stats| (stats.answered, stats.cancelled, stats.early) = (0, 3000, 3000),
        |stats| stats.write_blocked = true,
        |stats| stats.asked = true,
        |stats| stats.lingering = true,
        |stats| stats.upgraded = true,
        |stats| (stats.uploading, stats.requests) = (true, 5),
        |stats| (stats.more_was_read, stats.read) = (true, 301),
        |stats| (stats.body_left, stats.requests) = (true, 6),
    ];
    for began in [1000, 880_000] {
        let (fresh, _) = evaluate(&limits, time(began), &idle, None, SweepState::default());
        for now in (began + 250..began + 70_000).step_by(250) {
            let is_quiet = is_quiet_at(now, idle, None, fresh);
            // Quiet until a GOAWAY would be due, whether the server sends one or not.
            assert_eq!(is_quiet, now < 900_000 && now < began + 64_000);
            assert!(!is_quiet_at(now, idle, Some(Reason::Shutdown), fresh));
        }
        for (one, other) in changes
            .iter()
            .flat_map(|one| changes.map(|other| (one, other)))
        {
            let (mut before, mut after) = (idle, idle);
            one(&mut before);
            other(&mut after);
            let (kept, _) = evaluate(&limits, time(began), &before, None, fresh);
            let mark = kept.mark.wrapping_sub(1 << 20);
            let in_debt = SweepState {
                mark,
                in_debt: true,
                ..kept
            };
            for state in [fresh, kept, in_debt] {
                is_quiet_at(began + 250, after, None, state);
                is_quiet_at(began + 63_000, after, None, state);
            }
        }
    }
}

#[test]
fn a_request_at_work_is_probed_once_per_interval() {
    let limits = limits();
    let working = ConnStats {
        requests: 1,
        in_flight: 1,
        ..tracked()
    };
    let mut state = SweepState::default();
    let mut probes = Vec::new();
    for now in (0..=16_000).step_by(250) {
        let time = time_at(now);
        let (kept, action) = evaluate(&limits, time, &working, None, state);
        state = kept;
        if action == Action::Probe {
            probes.push(now);
        }
    }
    assert_eq!(probes, [5000, 10_000, 15_000]);
    // It is probed also while the handler does not read the body.
    let unread = ConnStats {
        body_left: true,
        ..working
    };
    let mut state = SweepState::default();
    let probes = (0..=16_000).step_by(250).filter(|now| {
        let time = time_at(*now);
        let (kept, action) = evaluate(&limits, time, &unread, None, state);
        state = kept;
        action == Action::Probe
    });
    assert_eq!(probes.collect::<Vec<_>>(), [5000, 10_000, 15_000]);
}

#[test]
fn hostile_numbers_do_not_overflow() {
    let all = ConnStats {
        read: u64::MAX,
        written: u64::MAX,
        requests: u32::MAX,
        http2: true,
        ..tracked()
    };
    let limits = limits();
    let time = SweepTime {
        now: u64::MAX,
        passed: u64::MAX,
        opened: 0,
        due_age: Some(u64::MAX),
        max_kept_idle: None,
    };
    let (state, _) = evaluate(&limits, time, &all, None, SweepState::default());
    let (_, _) = evaluate(
        &limits,
        SweepTime { now: 0, ..time },
        &tracked(),
        None,
        state,
    );
    let idle = ConnStats {
        answered: u32::MAX,
        ..all
    };
    assert!(EvictionRank::of(&idle, 0, false) > EvictionRank::of(&idle, u64::MAX, false));
}

#[test]
fn the_low_half_of_the_clock_is_enough() {
    let limits = limits();
    let idle = ConnStats {
        requests: 1,
        answered: 1,
        ..tracked()
    };
    let blocked = ConnStats {
        in_flight: 1,
        write_blocked: true,
        ..idle
    };
    // Start just before the guard's milliseconds pass 2^32.
    let cases = [
        (idle, Reason::Idle, 65_000),
        (blocked, Reason::WriteStall, 30_000),
    ];
    for ((stats, reason, after), before) in cases
        .into_iter()
        .flat_map(|case| [(case, 1000), (case, 1), (case, 0)])
    {
        let start = (1 << 32) - before;
        let mut state = SweepState::default();
        let action = (start..).find_map(|now| {
            let time = SweepTime {
                now,
                passed: 1,
                opened: 0,
                due_age: None,
                max_kept_idle: None,
            };
            let stats = ConnStats {
                looked: true,
                ..stats
            };
            let (kept, action) = evaluate(&limits, time, &stats, None, state);
            state = kept;
            matches!(action, Action::Close(_)).then_some((now, action))
        });
        let (now, closed_for, _) = closed_at(action).unwrap();
        // A stall may be found a millisecond late: a start of 0 is stored as 1, because 0 means
        // that nothing waits.
        assert!(
            closed_for == reason && (after..=after + 1).contains(&(now - start)),
            "{now}"
        );
    }
}

#[test]
fn in_shadow_mode_an_old_connection_is_still_reported_as_idle_and_as_stalled() {
    let limits = Limits {
        mode: Mode::Shadow,
        ..limits()
    };
    let first_close = |stats: ConnStats| {
        let mut state = SweepState::default();
        (0..=400).map(|tick| tick * 250).find_map(|now| {
            // Its age was reached before the first sweep.
            let time = SweepTime {
                due_age: Some(0),
                ..time_at(now)
            };
            let (kept, action) = evaluate(&limits, time, &stats, None, state);
            state = kept;
            match action {
                Action::Close(CloseRequest { reason, .. })
                | Action::Announce(CloseRequest { reason, .. }) => Some((now, reason)),
                _ => None,
            }
        })
    };
    let idle = ConnStats {
        requests: 1,
        answered: 1,
        http2: true,
        goaway: true,
        ..tracked()
    };
    assert_eq!(first_close(idle), Some((64_000, Reason::Idle)));
    let blocked = ConnStats {
        requests: 1,
        in_flight: 1,
        write_blocked: true,
        ..tracked()
    };
    assert_eq!(first_close(blocked), Some((30_000, Reason::WriteStall)));
}

#[test]
fn a_silent_connection_is_closed_once_its_socket_has_looked_for_bytes_or_10_s_later() {
    let limits = limits();
    let kept_alive = ConnStats {
        requests: 1,
        answered: 1,
        ..tracked()
    };
    let in_a_head = ConnStats {
        more_was_read: true,
        read: 5,
        ..kept_alive
    };
    for (stats, reason, max) in [
        (tracked(), Reason::FirstRequest, 10_000),
        (kept_alive, Reason::Idle, 65_000),
        (in_a_head, Reason::SlowHead, 10_000),
    ] {
        for answers_at in [Some(max), Some(max + 5000), None] {
            let (mut state, mut asked_at) = (SweepState::default(), None);
            let closed_at = (0..=max / 250 + 60).map(|tick| tick * 250).find_map(|now| {
                let stats = ConnStats {
                    looked: answers_at.is_some_and(|at| now >= at),
                    // Its head begins after a sweep of the idle connection.
                    more_was_read: stats.more_was_read && now > 0,
                    read: if now > 0 { stats.read } else { 0 },
                    ..stats
                };
                let (kept, action) = evaluate(&limits, time_at(now), &stats, None, state);
                state = kept;
                match action {
                    Action::AskReader => _ = asked_at.get_or_insert(now),
                    Action::Close(request) => return Some((now, request.reason)),
                    Action::Keep => {}
                    other => panic!("{other:?}"),
                }
                None
            });
            let begun = u64::from(stats.more_was_read) * 250;
            let last = answers_at.unwrap_or(max + 10_000);
            let (closed_at, closed_for) = closed_at.unwrap();
            assert_eq!(closed_for, reason);
            assert!(
                (last..=last + begun).contains(&closed_at),
                "{reason} {closed_at}"
            );
            assert_eq!(asked_at, Some(max - 500 + begun), "{reason}");
        }
    }
}
