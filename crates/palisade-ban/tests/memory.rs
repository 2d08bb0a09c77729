//! The memory of a ban: 8 bytes for each account, and no more, whatever comes.
//!
//! One test, because the counters belong to the process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_ban::{Ban, Client, Prefix};
use palisade_testkit::alloc::CountingAllocator;
use std::{net::Ipv4Addr, time::Duration};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn an_account_takes_8_bytes_and_no_flood_of_clients_makes_the_table_grow() {
    const ACCOUNTS: usize = 1 << 14;
    let client = |n: u32| {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
        Client::from_peer(Some(address.into()), Prefix::default())
    };
    let without = ALLOCATOR.live();
    drop(Ban::builder().capacity(16).build().unwrap()); // The first key of the process.
    assert_eq!(ALLOCATOR.live(), without);

    let before = ALLOCATOR.live();
    let ban = Ban::builder().capacity(ACCOUNTS).build().unwrap();
    let taken = ALLOCATOR.live() - before;
    assert!(
        (8 * ACCOUNTS..8 * ACCOUNTS + 2_048).contains(&taken),
        "{taken}"
    );

    let allocations = ALLOCATOR.allocations();
    for n in 0..20 * ACCOUNTS as u32 {
        ban.strike(&client(n), 1 + n % 12);
        ban.ban(&client(n / 2), Duration::from_secs(u64::from(n % 100)));
        ban.banned_for(&client(n / 3));
    }
    assert_eq!(ALLOCATOR.allocations(), allocations);
    assert_eq!(ALLOCATOR.live() - before, taken);
}
