use super::*;
use crate::connection::{
    ConnHandle,
    decision::{CloseDecision, CloseMode},
    stats::{ConnStats, IdleStats},
};
use palisade_core::{ClientKey, Prefix};
use std::net::Ipv4Addr;

fn conn() -> ConnHandle {
    ConnHandle::new(([127, 0, 0, 1], 1).into(), None, Prefix::default(), None)
}

fn conn_with(totals: &Arc<ConnTotals>, ip: impl Into<Ipv4Addr>) -> ConnHandle {
    let peer = (ip.into(), 1).into();
    ConnHandle::new(peer, None, Prefix::default(), Some(totals.clone()))
}

#[test]
fn a_request_counts_from_its_head_to_its_drop() {
    let conn = conn();
    let mut first = conn.begin_request(false);
    let second = conn.begin_request(false);
    conn.state().add_read(7);
    assert!(conn.state().stats().more_was_read);
    first.set_answered();
    drop(first);
    drop(second);
    let stats = conn.state().stats();
    assert_eq!((stats.requests, stats.in_flight), (2, 0));
    assert_eq!((stats.answered, stats.cancelled), (1, 1));
    assert!(!stats.more_was_read);
}

#[test]
fn bytes_before_the_declared_end_of_a_body_belong_to_it() {
    let conn = conn();
    let state = conn.state();
    state.add_read(100); // A head, and possibly some of the body.
    let request = conn.begin_request(false);
    request.expect_body(Some(1000));
    drop(request);
    assert!(state.stats().body_left && !state.stats().more_was_read);
    state.add_read(899);
    assert!(state.stats().body_left);
    state.add_read(1);
    assert!(!state.stats().body_left && !state.stats().more_was_read);
    state.add_read(100);
    assert!(!state.stats().body_left && state.stats().more_was_read);
    // The next request arrives with its complete body.
    let request = conn.begin_request(false);
    request.expect_body(Some(100));
    drop(request);
    assert!(!state.stats().body_left && !state.stats().more_was_read);
    // The end of a body without a declared length is unknown.
    let request = conn.begin_request(false);
    request.expect_body(None);
    drop(request);
    state.add_read(5000);
    assert!(!state.stats().body_left && state.stats().unmeasured);
    drop(conn.begin_request(false));
    state.add_read(1);
    assert!(state.stats().more_was_read && !state.stats().unmeasured);
    conn.begin_request(false).expect_body(Some(u64::MAX));
    assert!(state.stats().body_left);
}

#[test]
fn the_end_of_a_pipelined_body_is_unknown() {
    let conn = conn();
    let state = conn.state();
    state.add_read(200); // Two heads, and the body of the second.
    drop(conn.begin_request(false));
    let second = conn.begin_request(false);
    second.expect_body(Some(5));
    assert!(state.stats().unmeasured && !state.stats().body_left);
    drop(second);
    assert!(!state.stats().body_left && !state.stats().more_was_read);
}

#[test]
fn http2_data_is_counted_separately_and_sets_no_position() {
    let conn = conn();
    let state = conn.state();
    state.add_read(500);
    state.store_frame(7, 100);
    state.store_frame(7, u32::MAX);
    state.set_framed();
    drop(conn.begin_request(true));
    let stats = state.stats();
    assert_eq!((state.frame(), stats.data, stats.framed), (7, 99, true));
    assert!(!stats.body_left && !stats.more_was_read);
}

#[test]
fn a_connection_is_idle_as_long_as_nothing_is_going_on() {
    type Change = fn(&ConnHandle) -> Option<InFlight>;
    let decision = CloseDecision {
        reason: Reason::Idle,
        mode: CloseMode::Graceful,
    };
    let changes: [(Change, bool); 14] = [
        (|_| None, true),
        (|conn| (conn.state().add_read(5), None).1, true),
        (|conn| (conn.state().add_written(5), None).1, true),
        (|conn| (conn.state().set_tracked(), None).1, true),
        (
            |conn| (conn.begin_request(true).set_waiting(true), None).1,
            true,
        ),
        (|conn| Some(conn.begin_request(false)), false),
        (|conn| (conn.begin_request(true).set_upload(), None).1, true),
        (|conn| (conn.state().early.store(1, Relaxed), None).1, false),
        (|conn| (conn.state().set_write_blocked(), None).1, false),
        (|conn| (conn.state().set_upgraded(), None).1, false),
        (|conn| (conn.state().set_lingering(), None).1, false),
        (
            |conn| (_ = conn.state().begin_closing(Reason::MaxAge), None).1,
            false,
        ),
        (|conn| (conn.state().mark_closed(), None).1, false),
        (
            |conn| {
                conn.state().set_write_blocked();
                conn.state().ask_writer();
                None
            },
            false,
        ),
    ];
    for (at, (change, is_idle)) in changes.iter().enumerate() {
        let conn = conn();
        conn.state().add_read(100);
        drop(conn.begin_request(false));
        let _in_flight = change(&conn);
        let ConnStats {
            read,
            written,
            requests,
            ..
        } = conn.state().stats();
        let expected = is_idle.then_some(IdleStats {
            read,
            written,
            requests,
        });
        assert_eq!(conn.state().idle_stats(), expected, "change {at}");
        conn.state().request_close(decision);
        assert_eq!(conn.state().idle_stats(), None, "change {at}, decided");
    }
}

#[test]
fn the_last_allowed_request_begins_the_closing() {
    let mut totals = ConnTotals::default();
    totals.max_requests = Some(2);
    let conn = conn_with(&Arc::new(totals), [127, 0, 0, 1]);
    drop(conn.begin_request(false));
    assert_eq!(conn.state().closing(), None);
    drop(conn.begin_request(false));
    assert_eq!(conn.state().closing(), Some(Reason::MaxRequests));
    conn.state().begin_closing(Reason::MaxAge);
    assert_eq!(conn.state().closing(), Some(Reason::MaxRequests));
}

#[test]
fn the_request_counter_does_not_wrap() {
    let conn = conn();
    conn.state().requests.store(u32::MAX - 1, Relaxed);
    (0..3).for_each(|_| drop(conn.begin_request(true)));
    assert_eq!(conn.state().stats().requests, u32::MAX);
}

#[test]
fn uploads_and_waiting_responses_are_counted_while_in_flight() {
    let conn = conn();
    let state = conn.state();
    let counts = || {
        let stats = state.stats();
        (stats.in_flight, stats.waiting, stats.uploading)
    };
    let (mut first, mut second) = (conn.begin_request(true), conn.begin_request(true));
    first.set_upload();
    first.set_upload();
    assert_eq!(counts(), (2, 0, true));
    second.set_waiting(true);
    second.set_waiting(true);
    assert_eq!(counts(), (2, 1, true));
    drop(first);
    assert_eq!(counts(), (1, 1, true)); // The upload counts until the next sweep.
    assert!(state.take_stats().uploading);
    assert_eq!(counts(), (1, 1, false));
    second.set_waiting(false);
    assert_eq!(counts(), (1, 0, false));
    second.set_waiting(true);
    drop(second);
    assert_eq!(counts(), (0, 0, false));
    assert_eq!(state.in_flight.load(Relaxed), 0);
}

#[test]
fn only_a_cancellation_within_a_second_before_the_response_head_is_early() {
    let conn = conn_with(&Arc::default(), [127, 0, 0, 1]);
    let totals = conn.state().totals().unwrap();
    totals.set_time(u32::MAX - 500);
    let (early, late) = (conn.begin_request(true), conn.begin_request(true));
    let (mut responded, mut answered) = (conn.begin_request(true), conn.begin_request(true));
    responded.set_responded();
    answered.set_answered();
    assert_eq!(totals.in_flight(), 4);
    totals.set_time(498);
    drop((early, responded, answered));
    totals.set_time(499);
    drop(late);
    let stats = conn.state().stats();
    assert_eq!((stats.early, stats.cancelled, stats.answered), (1, 3, 1));
    assert_eq!(totals.in_flight(), 0);
    conn.state().early.store(u16::MAX, Relaxed);
    drop(conn.begin_request(true));
    assert_eq!(conn.state().stats().early, u16::MAX);
    let conn = conn_with(&Arc::default(), [127, 0, 0, 1]);
    let panics = std::thread::spawn({
        let conn = conn.clone();
        move || {
            let _request = conn.begin_request(true);
            panic!("on purpose");
        }
    });
    assert!(panics.join().is_err());
    assert_eq!(
        (
            conn.state().stats().early,
            conn.state().totals().unwrap().in_flight()
        ),
        (0, 0)
    );
}

#[test]
fn a_client_may_have_no_more_in_flight_than_it_leaves_and_one_per_connection() {
    let mut totals = ConnTotals::default();
    totals.max_in_flight = Some(100);
    totals.peers_are_clients = true;
    totals.reserved = Arc::from(["198.51.100.0/24".parse().unwrap()]);
    let totals = Arc::new(totals);
    let conn = |ip: Ipv4Addr| conn_with(&totals, ip);
    let conn_of_client = |last| conn(Ipv4Addr::new(192, 0, 2, last));
    let admitted = |conn: &ConnHandle| {
        let all = (0..100).map(|_| conn.begin_request(true));
        all.filter(|request| request.exceeded_limit().is_none())
            .collect::<Vec<_>>()
    };
    // A single client gets half of three quarters, then one request per connection.
    let (first, second) = (admitted(&conn_of_client(1)), admitted(&conn_of_client(1)));
    assert_eq!((first.len(), second.len()), (37, 1));
    // A second client gets half of what is left.
    let other = admitted(&conn_of_client(2));
    assert_eq!(other.len(), 18);
    // The last quarter is for the first request of each connection, also of a client at its limit.
    let single: Vec<_> = (0..44)
        .map(|_| conn_of_client(1).begin_request(false))
        .collect();
    assert!(
        single
            .iter()
            .all(|request| request.exceeded_limit().is_none())
    );
    assert_eq!(
        conn_of_client(3).begin_request(false).exceeded_limit(),
        Some((100, 101))
    );
    assert_eq!(
        conn(Ipv4Addr::new(198, 51, 100, 1))
            .begin_request(false)
            .exceeded_limit(),
        None
    );
    let mut refused = conn_of_client(3).begin_request(false);
    assert_eq!(totals.in_flight(), 101);
    refused.leave_totals();
    assert_eq!(totals.in_flight(), 100);
    drop((first, second, other, single, refused));
    assert_eq!(totals.in_flight(), 0);
    assert_eq!(admitted(&conn_of_client(1)).len(), 37);
    // For an unknown client only the total is limited.
    assert_eq!(admitted(&conn(Ipv4Addr::UNSPECIFIED)).len(), 100);
}

#[test]
fn where_peers_are_not_clients_only_the_total_is_limited() {
    let mut totals = ConnTotals::default();
    totals.max_in_flight = Some(100);
    let conn = conn_with(&Arc::new(totals), [127, 0, 0, 1]);
    let all: Vec<_> = (0..101).map(|_| conn.begin_request(true)).collect();
    assert!(
        all[..100]
            .iter()
            .all(|request| request.exceeded_limit() == Some((100, 101)))
    );
    drop(all);
    let all = (0..100).map(|_| conn.begin_request(true));
    assert_eq!(
        all.filter(|request| request.exceeded_limit().is_none())
            .count(),
        100
    );
}

#[test]
fn a_layer_learns_what_was_asked_for_a_request_that_is_tracked_and_for_no_other() {
    let totals = Arc::<ConnTotals>::default();
    let conn = conn_with(&totals, [192, 0, 2, 1]);
    let asked = |conn: &ConnHandle| asked_for(&conn.info()).is_some();
    // It is to be tracked, and no request has been.
    conn.state().set_tracked();
    assert!(!asked(&conn));
    let _request = conn.begin_request(false);
    assert!(asked(&conn));
    let untracked = conn_with(&totals, [192, 0, 2, 1]);
    assert!(!asked(&untracked));
    // A guard that is switched off asks nothing, and other connections have no guard.
    let of_none = self::conn();
    of_none.state().set_tracked();
    let _other_request = of_none.begin_request(false);
    assert!(!asked(&of_none));
    let foreign = ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default());
    assert!(asked_for(&foreign).is_none());
}

#[test]
fn clients_behind_a_proxy_are_counted_exactly_and_only_while_they_have_requests() {
    let mut totals = ConnTotals::default();
    totals.max_in_flight = Some(100);
    let totals = Arc::new(totals);
    let conn = conn_with(&totals, [10, 0, 0, 7]);
    let begin =
        |client: u32| InFlight::begin(conn.info(), true, Some(ClientKey::of(&client))).unwrap();
    // One client has what it leaves of three quarters.
    let greedy: Vec<_> = (0..40).map(|_| begin(1)).collect();
    assert!(greedy.iter().any(|one| one.exceeded_limit().is_some()));
    // Each other client has one request.
    let others: Vec<_> = (2..50).map(begin).collect();
    assert!(others.iter().all(|one| one.exceeded_limit().is_none()));
    assert!(begin(2).exceeded_limit().is_some());
    assert_eq!(totals.proxied().len(), 49);
    drop((greedy, others));
    assert_eq!((totals.proxied().len(), totals.in_flight()), (0, 0));
    // Unknown clients have no share.
    let unknown = InFlight::begin(conn.info(), true, Some(ClientKey::SHARED)).unwrap();
    assert_eq!((totals.proxied().len(), totals.in_flight()), (0, 1));
    drop(unknown);
    assert_eq!(totals.in_flight(), 0);
}

#[test]
fn heads_behind_a_proxy_are_charged_to_the_share_of_their_client() {
    let budget = palisade_core::Budget::new(256 << 10).unwrap();
    let mut totals = ConnTotals::default();
    totals.memory.budget = Some(budget.clone());
    let totals = Arc::new(totals);
    let conn = conn_with(&totals, [10, 0, 0, 7]);
    let begin =
        |client: u32| InFlight::begin(conn.info(), true, Some(ClientKey::of(&client))).unwrap();
    // Not more than the client leaves of three quarters.
    let (mut greedy, mut other) = (begin(1), begin(2));
    assert!(greedy.charge_head(100 << 10).is_err());
    greedy.charge_head(90 << 10).unwrap();
    assert!(begin(1).charge_head(20 << 10).is_err());
    other.charge_head(20 << 10).unwrap();
    drop((greedy, other));
    assert_eq!(budget.held(), 0);
}
