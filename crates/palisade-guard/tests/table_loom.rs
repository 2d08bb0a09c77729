//! Every order in which two threads can change the table, tried by loom.
//!
//! `RUSTFLAGS="--cfg palisade_loom" CARGO_TARGET_DIR=target/loom cargo test -p palisade-guard
//! --test table_loom --release` (one line).
#![cfg(palisade_loom)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use loom::{sync::Arc, thread};
use palisade_core::ClientKey;
use palisade_guard::{Gcra, Table};

/// Two lines of two words, which is what the model checker can get through.
const KEYS: usize = 4;

fn admits(table: &Table, number: u64, quota: Gcra) -> bool {
    let address = std::net::Ipv6Addr::from_bits(u128::from(number) << 64);
    let key = ClientKey::address(address.into(), palisade_core::Prefix::default());
    let decide = |debt| quota.decide(debt, 1).map(|debt| ((), debt));
    table.update(key, 1, quota.max_debt(), decide) == Some(Ok(()))
}

fn race(burst: u32, tries: [&'static [u64]; 2]) -> (u32, Arc<Table>, Gcra) {
    let quota = Gcra::new(1000, burst).unwrap();
    let table = Arc::new(Table::new(KEYS));
    let threads = tries.map(|keys| {
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
fn a_burst_of_one_goes_to_one_of_two() {
    loom::model(|| {
        let (admitted, table, quota) = race(1, [&[7], &[7]]);
        assert_eq!(admitted, 1);
        assert_eq!(table.occupancy(1, quota.max_debt()).keys, 1);
    });
}

#[test]
fn a_burst_is_given_out_exactly() {
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
fn two_keys_brought_by_two_threads_are_each_admitted_once() {
    loom::model(|| assert_eq!(race(1, [&[7, 8], &[7, 8]]).0, 2));
    loom::model(|| assert_eq!(race(1, [&[7, 8], &[8, 7]]).0, 2));
}
