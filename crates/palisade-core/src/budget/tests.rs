use super::*;
use std::{
    sync::{Barrier, atomic::AtomicBool},
    thread,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn client(name: u32) -> Option<ClientKey> {
    Some(ClientKey::of(&name))
}

fn all_counters_are_zero(budget: &Budget) -> bool {
    let mut counters = budget.0.by_client.iter().flatten();
    counters.all(|own| own.load(Relaxed) == 0)
}

#[test]
fn what_is_taken_never_exceeds_the_limit_and_is_given_back_at_the_end() {
    let budget = Budget::new(MIB).unwrap();
    let charge = budget.charge(None);
    charge.take(MIB - 1).unwrap();
    charge.take(1).unwrap();
    let full = BudgetFull {
        limit: MIB,
        observed: MIB + 1,
    };
    assert_eq!(budget.charge(None).take(1), Err(full));
    assert!(budget.charge(None).take(u64::MAX).is_err());
    assert_eq!((budget.held(), charge.bytes()), (MIB, MIB));
    charge.give_back();
    assert_eq!((budget.held(), charge.bytes()), (0, 0));
    charge.take(5).unwrap();
    drop(charge);
    assert_eq!(budget.held(), 0);
    let error = Budget::new(1).unwrap_err().to_string();
    assert!(
        error.ends_with("bytes is 1, allowed is at least 65536"),
        "{error}"
    );
}

#[test]
fn a_client_holds_no_more_than_it_leaves_and_the_last_quarter_is_for_small_ones() {
    let budget = Budget::new(MIB).unwrap();
    let take = |charge: &Charge| (0..).take_while(|_| charge.take(KIB).is_ok()).count() as u64;
    let first = budget.charge(client(1));
    assert_eq!(take(&first), 384); // Half of three quarters.
    assert_eq!(
        budget.charge(client(1)).take(KIB).unwrap_err().observed,
        385 * KIB
    );
    let second = budget.charge(client(2));
    assert_eq!(take(&second), 192); // Half of what is left.
    let many: Vec<_> = (3..)
        .map(|name| budget.charge(client(name)))
        .take(100)
        .collect();
    let taken: Vec<_> = many.iter().map(take).collect();
    assert_eq!(taken.iter().max(), Some(&96));
    // At last each takes 64 KiB, until nothing is left.
    assert_eq!(budget.held(), MIB);
    drop((first, second, many));
    assert_eq!(budget.held(), 0);
    assert!(all_counters_are_zero(&budget));
}

#[test]
fn an_attacker_with_fifty_addresses_leaves_room_for_the_small_requests_of_others() {
    let budget = Budget::new(64 * MIB).unwrap(); // A quarter of 256 MiB.
    let fill = |charge: &Charge| while charge.take(16 * KIB).is_ok() {};
    let attackers: Vec<_> = (0..50).map(|name| budget.charge(client(name))).collect();
    // In turn, and each again and again.
    for _ in 0..10 {
        attackers.iter().for_each(fill);
    }
    // Three quarters, and 64 KiB for each at most.
    assert!((48 * MIB..=48 * MIB + 50 * 64 * KIB).contains(&budget.held()));
    // Others may upload 32 KiB each, for which 64 KiB are taken.
    let others: Vec<_> = (1000..1190)
        .map(|name| budget.charge(client(name)))
        .collect();
    let served = others.iter().filter(|other| other.take(64 * KIB).is_ok());
    let served = served.count();
    assert!(served >= 160, "{served}"); // A few share their counter with another client.
    // When the attackers leave, one client may hold more.
    drop((attackers, others));
    budget.charge(client(1)).take(4 * MIB).unwrap();
    assert_eq!(budget.held(), 0);
}

#[test]
fn on_eight_threads_any_take_and_give_back_is_the_plain_sum_and_never_above_the_limit() {
    const ROUNDS: usize = 200;
    let budget = Budget::new(MIB).unwrap();
    let (round, is_above) = (Barrier::new(8), AtomicBool::new(false));
    // What each thread holds at the end of a round.
    let sums = [const { AtomicU64::new(0) }; 8];
    thread::scope(|scope| {
        for number in 0..8 {
            let (budget, round, is_above, sums) = (&budget, &round, &is_above, &sums);
            scope.spawn(move || {
                let mut random = 0x9e37_79b9 + number as u64;
                let mut next = |below: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % below
                };
                let mut charges: Vec<(Charge, u64)> = Vec::new();
                for _ in 0..ROUNDS {
                    for _ in 0..100 {
                        let bytes = [next(100), next(64 * KIB), next(400 * KIB)][next(3) as usize];
                        let place = next(8) as usize;
                        match (next(4), charges.get_mut(place)) {
                            (0, Some((charge, sum))) => {
                                charge.give_back();
                                *sum = 0;
                            }
                            (1, Some(_)) => drop(charges.swap_remove(place)),
                            (_, Some((charge, sum))) => {
                                *sum += charge.take(bytes).map_or(0, |()| bytes);
                            }
                            (_, None) => {
                                let client = client(next(4) as u32).filter(|_| next(5) > 0);
                                charges.push((budget.charge(client), 0));
                            }
                        }
                        is_above.fetch_or(budget.held() > MIB, Relaxed);
                    }
                    assert!(charges.iter().all(|(charge, sum)| charge.bytes() == *sum));
                    let held = charges.iter().map(|(_, sum)| sum).sum();
                    sums[number].store(held, Relaxed);
                    round.wait();
                    let held: u64 = sums.iter().map(|sum| sum.load(Relaxed)).sum();
                    assert_eq!(budget.held(), held);
                    round.wait();
                }
            });
        }
    });
    assert!(!is_above.load(Relaxed));
    assert_eq!(budget.held(), 0);
    assert!(all_counters_are_zero(&budget));
}

#[test]
fn the_budget_of_the_process_is_a_quarter_of_its_memory() {
    let budget = Budget::of_process();
    let memory = Memory::of_process().least_limit();
    assert_eq!(budget.limit(), memory.map_or(256 * MIB, |bytes| bytes / 4));
    assert!(Arc::ptr_eq(&budget.0, &Budget::of_process().0));
}

#[test]
fn a_charge_that_needs_nothing_finds_room_whatever_others_hold() {
    let budget = Budget::new(MIB).unwrap();
    let own = budget.charge(client(1));
    own.take(300 * KIB).unwrap();
    let others: Vec<_> = (2..)
        .map(|name| budget.charge(client(name)))
        .take(200)
        .collect();
    for other in &others {
        while other.take(KIB).is_ok() {}
    }
    assert_eq!(budget.held(), MIB);
    assert!(own.take(1).is_err());
    own.take(0).unwrap();
    drop((own, others));
    assert_eq!(budget.held(), 0);
}

#[test]
fn small_clients_are_hardly_ever_mistaken_for_one_of_two_hundred_large_ones() {
    const SMALL_CLIENTS: u32 = 2000;
    let budget = Budget::new(64 * MIB).unwrap();
    let large: Vec<_> = (0..200)
        .map(|name| budget.charge(client(name)))
        .inspect(|charge| while charge.take(16 * KIB).is_ok() {})
        .collect();
    assert!(budget.held() >= 48 * MIB);
    let is_refused = |name: &u32| budget.charge(client(*name)).take(20 * KIB).is_err();
    let refused = (1000..1000 + SMALL_CLIENTS).filter(is_refused).count();
    assert!(refused <= 20, "{refused}"); // About 5. With one row of counters it is about 100.
    drop(large);
    assert!(all_counters_are_zero(&budget));
}
