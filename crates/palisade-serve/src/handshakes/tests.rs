//! Tests of the eviction of TLS handshakes.

use super::*;
use crate::stub::{self, Stub};
use palisade_conn::{ConnGuard, GuardedIo, Mode};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    rc::Rc,
    sync::LazyLock,
};

/// Returns a guard that admits every connection and counts its bytes.
fn guard() -> ConnGuard {
    let guard = ConnGuard::builder().mode(Mode::Shadow).accept_rate(None);
    guard.max_connections(100_000).build().unwrap()
}

/// Returns a connection from `ip`, which has sent a byte unless `is_silent`.
fn conn(ip: impl Into<Ipv4Addr>, is_silent: bool) -> ConnHandle {
    static GUARD: LazyLock<ConnGuard> = LazyLock::new(guard);
    let mut io = stub::connect(&GUARD, ip);
    if !is_silent {
        stub::read(&mut io);
    }
    io.conn().clone()
}

/// Returns the address of the `nth` client, which is in a network of its own.
fn single(nth: usize) -> [u8; 4] {
    let [.., a, b] = (nth as u32).to_be_bytes();
    [20, a, b, 1]
}

fn is_empty(handshakes: &Handshakes) -> bool {
    handshakes.in_progress.is_empty()
        && handshakes.indices.is_empty()
        && handshakes.clients.0.is_empty()
        && handshakes.networks.0.is_empty()
}

/// Simulates a flood of 3,500 handshakes a second for 10 s, which never complete, beside 40 honest
/// handshakes a second. The honest ones are silent for 500 ms and complete after 1 s. Returns the
/// percentage of the honest ones that complete.
fn completed_percent(flood: impl Fn(usize) -> ConnHandle) -> f64 {
    let mut handshakes = Handshakes::new(1024);
    // The next step of each honest handshake by its time in milliseconds: its first byte, or its
    // end.
    let mut due = BTreeMap::<usize, Vec<(Rc<RefCell<GuardedIo<Stub>>>, bool)>>::new();
    let guard = guard();
    let (mut evicted, mut honest, mut completed) = (BTreeSet::new(), 0, 0);
    for now in 0..10_000 {
        let mut new: Vec<_> = (now * 7 / 2..(now + 1) * 7 / 2).map(&flood).collect();
        if now % 25 == 0 && now < 9000 {
            let io = stub::connect(&guard, single(now));
            new.push(io.conn().clone());
            honest += 1;
            let io = Rc::new(RefCell::new(io));
            due.entry(now + 500).or_default().push((io.clone(), false));
            due.entry(now + 1000).or_default().push((io, true));
        }
        for conn in new {
            evicted.extend(handshakes.add(&conn).map(|conn| conn.id()));
            assert!(handshakes.in_progress.len() <= 1024);
        }
        for (io, is_end) in due.remove(&now).unwrap_or_default() {
            stub::read(&mut io.borrow_mut());
            if is_end {
                let id = io.borrow().conn().id();
                completed += usize::from(!evicted.contains(&id));
                handshakes.remove(id);
            }
        }
    }
    let left: Vec<_> = handshakes.indices.keys().copied().collect();
    left.into_iter().for_each(|id| _ = handshakes.remove(id));
    assert!(is_empty(&handshakes));
    100.0 * f64::from(completed as u32) / f64::from(honest)
}

#[test]
fn honest_handshakes_complete_beside_a_flood_from_40_addresses_silent_or_not() {
    for is_silent in [true, false] {
        let flood = |nth| conn([10, 0, (nth % 10) as u8, (nth / 10 % 4) as u8], is_silent);
        let completed = completed_percent(flood);
        assert!(completed >= 99.0, "{completed} %, silent: {is_silent}");
    }
}

#[test]
fn honest_handshakes_complete_beside_a_flood_from_one_network() {
    let completed =
        completed_percent(|nth| conn([10, 0, (nth / 250 % 4) as u8, (nth % 250) as u8], true));
    assert!(completed >= 99.0, "{completed} %");
}

#[test]
fn an_active_crowd_keeps_its_handshakes_beside_a_silent_flood_of_single_addresses() {
    let mut handshakes = Handshakes::new(1024);
    for _ in 0..100 {
        assert!(handshakes.add(&conn([30, 0, 0, 1], false)).is_none());
    }
    for nth in 0..35_000 {
        handshakes.add(&conn(single(nth), true));
    }
    let key = ClientKey::address([30, 0, 0, 1].into(), Prefix::default());
    assert_eq!(handshakes.clients.get(key), 100);
    assert_eq!(handshakes.in_progress.len(), 1024);
}

#[test]
fn silent_crowds_are_evicted_first_then_active_crowds_then_silent_singles() {
    // All of up to 64 are examined. More than four of one client are a crowd.
    let mut handshakes = Handshakes::new(16);
    let mut add = |ip: [u8; 4], is_silent| {
        handshakes
            .add(&conn(ip, is_silent))
            .map(|conn| conn.peer().ip().to_string())
    };
    let (silent_crowd, active_crowd) = ([1, 0, 0, 1], [2, 0, 0, 1]);
    let crowds = [[(silent_crowd, true); 5], [(active_crowd, false); 5]]
        .into_iter()
        .flatten();
    let silent_singles = [
        ([3, 0, 0, 1], true),
        ([3, 0, 0, 2], true),
        ([4, 0, 0, 1], true),
    ];
    let active_singles = [
        ([5, 0, 0, 1], false),
        ([5, 0, 0, 2], false),
        ([5, 0, 0, 3], false),
    ];
    for (ip, is_silent) in crowds.chain(silent_singles).chain(active_singles) {
        assert_eq!(add(ip, is_silent), None);
    }
    let evicted: Vec<_> = (0..8).filter_map(|nth| add(single(nth), false)).collect();
    // With four left, neither client is a crowd. Then the silent client with the most handshakes is
    // evicted, and then one of the network with the most.
    let [first, second] = ["1.0.0.1", "2.0.0.1"];
    assert_eq!(
        evicted[..6],
        [first, second, first, first, first, &*evicted[5]]
    );
    assert!(evicted[5].starts_with("3.0.0."), "{evicted:?}");
    let rest: BTreeSet<_> = evicted[6..].iter().map(|ip| &ip[..2]).collect();
    assert!(
        rest.is_subset(&BTreeSet::from(["1.", "3.", "4."])),
        "{evicted:?}"
    );
}

#[test]
fn a_new_handshake_stays_and_a_removed_or_evicted_one_leaves_no_entry() {
    let mut handshakes = Handshakes::new(1);
    let (first, second) = (conn([1; 4], false), conn([2; 4], true));
    assert!(handshakes.add(&first).is_none());
    assert_eq!(handshakes.add(&second).unwrap().id(), first.id());
    assert!(handshakes.remove(first.id()).is_none());
    assert_eq!(handshakes.remove(second.id()).unwrap().id(), second.id());
    assert!(is_empty(&handshakes));
}

#[test]
fn peers_without_an_address_are_not_a_crowd() {
    let mut handshakes = Handshakes::new(64);
    for _ in 0..63 {
        handshakes.add(&conn([0; 4], false));
    }
    handshakes.add(&conn(single(0), true));
    let evicted = handshakes.add(&conn([0; 4], false)).unwrap();
    assert_eq!(evicted.peer().ip(), Ipv4Addr::from(single(0)));
    assert!(handshakes.clients.0.is_empty() && handshakes.networks.0.is_empty());
}

#[test]
fn an_eviction_examines_64_handshakes_however_many_are_in_progress() {
    let mut handshakes = Handshakes::new(100_000);
    for nth in 0..100_000 {
        handshakes.add(&conn(single(nth), true));
    }
    let random_before = handshakes.random;
    handshakes.add(&conn([1; 4], true));
    // One random number for each handshake that is examined, and one more.
    let mut expected = Handshakes {
        random: random_before,
        ..Handshakes::new(1)
    };
    for _ in 0..=MAX_EXAMINED {
        expected.next_random();
    }
    assert_eq!(handshakes.random, expected.random);
}
