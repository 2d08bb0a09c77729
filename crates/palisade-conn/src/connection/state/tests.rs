use super::*;
use crate::connection::{ConnHandle, decision::CloseMode};
use palisade_core::Prefix;
use std::{net::Ipv4Addr, sync::atomic::AtomicUsize, task::Wake};

/// A waker that counts its wakes.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Uncounts the connection, as when its socket is dropped.
fn drop_socket(conn: &ConnHandle) {
    conn.state().release_upgrade(conn);
}

fn conn(ip: impl Into<Ipv4Addr>, totals: &Arc<ConnTotals>) -> ConnHandle {
    let peer = (ip.into(), 1).into();
    ConnHandle::new(peer, None, Prefix::default(), Some(totals.clone()))
}

#[test]
fn the_first_decision_holds_and_wakes_the_task_once() {
    let state = ConnState::default();
    let counter = Arc::new(CountingWaker::default());
    let waker = counter.clone().into();
    state.park_reader(&waker);
    state.park_writer(&waker);
    let decision = CloseDecision {
        reason: Reason::WriteStall,
        mode: CloseMode::Reset,
    };
    assert!(state.request_close(decision));
    assert!(!state.request_close(CloseDecision {
        reason: Reason::Idle,
        mode: CloseMode::Graceful
    }));
    assert_eq!(state.decision(), Some(decision));
    assert_eq!(counter.0.load(Relaxed), 1);
}

#[test]
fn each_side_is_woken_in_the_task_that_polled_it_last() {
    let counters: [Arc<CountingWaker>; 4] = Default::default();
    let wakers = counters.clone().map(Waker::from);
    let woken = |parked: &[(Side, usize)]| {
        let state = ConnState::default();
        for (side, at) in parked {
            match side {
                Side::Reader => state.park_reader(&wakers[*at]),
                Side::Writer => state.park_writer(&wakers[*at]),
            }
        }
        state.probe();
        counters
            .each_ref()
            .map(|counter| counter.0.swap(0, Relaxed) > 0)
    };
    use Side::{Reader, Writer};
    assert_eq!(
        woken(&[(Reader, 0), (Writer, 1)]),
        [true, true, false, false]
    );
    assert_eq!(
        woken(&[(Reader, 0), (Writer, 0), (Writer, 1)]),
        [true, true, false, false]
    );
    assert_eq!(
        woken(&[(Writer, 0), (Reader, 1), (Writer, 2)]),
        [false, true, true, false]
    );
    let moved = [
        (Reader, 0),
        (Writer, 0),
        (Reader, 1),
        (Writer, 2),
        (Reader, 3),
    ];
    assert_eq!(woken(&moved), [false, false, true, true]);
}

#[test]
fn a_task_that_parks_during_the_decision_sees_it_or_is_woken() {
    for round in 0..5000 {
        let state = ConnState::default();
        let counter = Arc::new(CountingWaker::default());
        let waker = counter.clone().into();
        let decision = CloseDecision {
            reason: Reason::Idle,
            mode: CloseMode::Reset,
        };
        let saw = std::thread::scope(|scope| {
            let socket = scope.spawn(|| {
                (0..round % 50).for_each(|_| std::hint::spin_loop());
                state.park_reader(&waker);
                state.decision().is_some()
            });
            state.request_close(decision);
            socket.join().unwrap()
        });
        assert!(saw || counter.0.load(Relaxed) == 1, "round {round}");
    }
}

#[test]
fn a_closed_connection_accepts_no_decision() {
    let state = ConnState::default();
    assert_eq!(state.mark_closed(), None);
    assert!(!state.request_close(CloseDecision {
        reason: Reason::Idle,
        mode: CloseMode::Graceful
    }));
    assert_eq!(state.decision(), None);
}

#[test]
fn every_decision_is_decoded_from_its_code() {
    for reason in Reason::ALL {
        for mode in [CloseMode::Graceful, CloseMode::Reset] {
            let state = ConnState::default();
            state.request_close(CloseDecision {
                reason: *reason,
                mode,
            });
            assert_eq!(
                state.decision(),
                Some(CloseDecision {
                    reason: *reason,
                    mode
                })
            );
        }
    }
}

#[test]
fn a_socket_has_looked_when_it_has_answered_a_question_about_silence_and_no_other() {
    let state = ConnState::default();
    let looked = || state.stats().looked;
    state.ask_unread(); // Because memory is short.
    assert!(state.take_unread_asked() && !looked());
    state.ask_reader();
    assert!(!looked());
    assert!(state.take_unread_asked() && looked());
    state.clear_looked();
    assert!(!looked());
    // An answer to a question of an earlier silence.
    state.ask_reader();
    state.clear_looked();
    assert!(state.take_unread_asked() && !looked());
}

#[test]
fn a_socket_awaits_bytes_from_an_empty_read_to_the_next_full_one() {
    let state = ConnState::default();
    assert!(!state.stats().awaits_read);
    state.park_reader(Waker::noop());
    assert!(state.stats().awaits_read);
    state.add_read(1);
    assert!(!state.stats().awaits_read);
}

#[test]
fn any_byte_taken_ends_a_blocked_write() {
    let state = ConnState::default();
    state.set_write_blocked();
    state.add_written(0);
    assert!(state.stats().write_blocked);
    state.add_written(1);
    assert!(!state.stats().write_blocked);
}

#[test]
fn a_writer_that_is_asked_reports_again() {
    let state = ConnState::default();
    let counter = Arc::new(CountingWaker::default());
    state.ask_writer(); // No bytes wait, so this has no effect.
    state.set_write_blocked();
    state.park_writer(&counter.clone().into());
    state.ask_writer();
    assert!(!state.stats().write_blocked);
    assert_eq!(counter.0.load(Relaxed), 1);
    state.set_write_blocked();
    assert!(state.stats().write_blocked);
}

#[test]
fn upgraded_connections_are_limited_and_counted_until_they_close() {
    let mut totals = ConnTotals::default();
    totals.max_upgraded = Some(1);
    let totals = Arc::new(totals);
    let conn = || conn([127, 0, 0, 1], &totals);
    let (first, second) = (conn(), conn());
    first.upgrade().unwrap();
    first.upgrade().unwrap();
    assert_eq!(totals.upgraded(), 1);
    assert_eq!(second.upgrade(), Err((1, 2)));
    assert!(!second.state().is_upgraded());
    drop_socket(&first);
    drop_socket(&first);
    assert_eq!(totals.upgraded(), 0);
    second.upgrade().unwrap();
    second.end_upgrade();
    second.end_upgrade();
    assert!(totals.upgraded() == 0 && !second.state().is_upgraded());
    second.upgrade().unwrap();
    drop_socket(&second);
    second.end_upgrade();
    // A tunnel of a connection that is closed already is not counted.
    second.upgrade().unwrap();
    let closed = conn();
    drop_socket(&closed);
    closed.upgrade().unwrap();
    assert_eq!(totals.upgraded(), 0);
}

#[test]
fn a_client_may_upgrade_no_more_connections_than_it_leaves_and_at_least_one() {
    let mut totals = ConnTotals::default();
    totals.max_upgraded = Some(20);
    totals.peers_are_clients = true;
    let totals = Arc::new(totals);
    let conn = |last| conn([192, 0, 2, last], &totals);
    let first: Vec<_> = (0..20).map(|_| conn(1)).collect();
    assert_eq!(
        first.iter().filter(|conn| conn.upgrade().is_ok()).count(),
        7
    );
    let others: Vec<_> = (2..=14).map(conn).collect();
    assert!(others.iter().all(|conn| conn.upgrade().is_ok()));
    assert_eq!(totals.upgraded(), 20);
    assert_eq!(conn(99).upgrade(), Err((20, 21)));
    first.iter().chain(&others).for_each(drop_socket);
    assert_eq!(totals.upgraded(), 0);
    let again: Vec<_> = (0..7).map(|_| conn(1)).collect();
    assert!(again.iter().all(|conn| conn.upgrade().is_ok()));
    again.iter().for_each(drop_socket);
    // The client of a Unix socket is unknown: only the total is limited.
    let unknown = || self::conn(Ipv4Addr::UNSPECIFIED, &totals);
    let all: Vec<_> = (0..20).map(|_| unknown()).collect();
    assert!(all.iter().all(|conn| conn.upgrade().is_ok()));
    assert_eq!(unknown().upgrade(), Err((20, 21)));
    all.iter().for_each(drop_socket);
    assert_eq!((totals.upgraded(), totals.upgraded_clients()), (0, (0, 0)));
}

#[test]
fn a_connection_of_a_proxy_counts_for_the_client_of_its_first_tunnel() {
    let mut totals = ConnTotals::default();
    totals.max_upgraded = Some(20);
    let totals = Arc::new(totals);
    let conns: Vec<_> = (0..20)
        .map(|_| conn([10, 0, 0, 7], &totals).of_proxy())
        .collect();
    let (client, other) = (ClientKey::of("client"), ClientKey::of("other"));
    let mut upgraded = 0;
    for conn in &conns {
        let state = conn.state();
        if state.upgrade(conn, Some(client)).is_err() {
            continue;
        }
        upgraded += 1;
        // The last tunnel ends as the next one begins.
        state.end_upgrade(conn);
        assert!(conn.upgrade().is_ok());
        state.end_upgrade(conn);
        assert!(state.upgrade(conn, Some(other)).is_ok());
    }
    assert_eq!(upgraded, 7);
    conns.iter().for_each(drop_socket);
    assert_eq!((totals.upgraded(), totals.upgraded_clients()), (0, (0, 0)));
}
