//! Model-checks concurrent updates of the table by two threads, with loom.
//!
//! Run with `RUSTFLAGS="--cfg palisade_loom" CARGO_TARGET_DIR=target/loom cargo test -p
//! palisade-guard --test table_loom --release`.
#![cfg(palisade_loom)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use loom::{sync::Arc, thread};
use palisade_core::ClientKey;
use palisade_guard::{Gcra, Table};

/// Two lines of two words. A larger table has too many interleavings to check.
const CAPACITY: usize = 4;

fn admits(table: &Table, number: u64, quota: Gcra) -> bool {
    let address = std::net::Ipv6Addr::from_bits(u128::from(number) << 64);
    let key = ClientKey::address(address.into(), palisade_core::Prefix::default());
    let decide = |debt| quota.decide(debt, 1).map(|debt| ((), debt));
    table.update(key, 1, quota.max_debt(), decide) == Some(Ok(()))
}

/// Lets each of two threads request all of its keys. Returns how many requests were admitted.
fn race(burst: u32, keys_of_threads: [&'static [u64]; 2]) -> (u32, Arc<Table>, Gcra) {
    let quota = Gcra::new(1000, burst).unwrap();
    let table = Arc::new(Table::new(CAPACITY));
    let threads = keys_of_threads.map(|keys| {
        let table = table.clone();
        thread::spawn(move || {
            keys.iter()
                .filter(|key| admits(&table, **key, quota))
                .count()
        })
    });
    let admitted: usize = threads.map(|thread| thread.join().unwrap()).iter().sum();
    (admitted as u32, table, quota)
}

#[test]
fn a_burst_of_one_admits_one_of_two_requests() {
    loom::model(|| {
        let (admitted, table, quota) = race(1, [&[7], &[7]]);
        assert_eq!(admitted, 1);
        assert_eq!(table.occupancy(1, quota.max_debt()).keys, 1);
    });
}

#[test]
fn exactly_the_burst_is_admitted() {
    loom::model(|| {
        let (admitted, table, quota) = race(3, [&[7, 7], &[7, 7]]);
        assert_eq!(admitted, 3);
        assert_eq!(table.occupancy(1, quota.max_debt()).keys, 1);
    });
}

#[test]
fn two_new_keys_never_overwrite_each_other_while_there_is_room() {
    loom::model(|| {
        let (admitted, table, quota) = race(1, [&[7], &[8]]);
        assert_eq!(admitted, 2);
        let occupancy = table.occupancy(1, quota.max_debt());
        assert_eq!((occupancy.keys, occupancy.evicted), (2, 0));
    });
}

#[test]
fn two_keys_requested_by_two_threads_are_each_admitted_once() {
    loom::model(|| assert_eq!(race(1, [&[7, 8], &[7, 8]]).0, 2));
    loom::model(|| assert_eq!(race(1, [&[7, 8], &[8, 7]]).0, 2));
}
