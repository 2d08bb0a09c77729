//! Checks with loom every interleaving of requests that take and give back.
//!
//! `RUSTFLAGS="--cfg palisade_loom" cargo test -p palisade-core --lib --target-dir target/loom --
//! loom` (one line).
//!
//! All clients share two counters here, and the budget is that of one small client.

use super::*;
use ::loom::thread;

/// Takes these bytes in a request of the client with this hash. Returns whether they were taken.
fn request(budget: &Budget, client: Option<u64>, bytes: u64) -> bool {
    let is_taken = budget.take(client, bytes).is_ok();
    assert!(budget.held() <= budget.limit());
    if is_taken {
        budget.give_back(client, bytes);
    }
    is_taken
}

fn assert_nothing_is_held(budget: &Budget) {
    assert_eq!(budget.held(), 0);
    let counters = budget.0.by_client.iter().flatten();
    counters.for_each(|own| assert_eq!(own.load(Relaxed), 0));
}

#[test]
fn requests_of_one_client_never_hold_more_than_the_limit_and_nothing_at_the_end() {
    ::loom::model(|| {
        let budget = Budget::with_limit(SMALL_SHARE);
        let other = budget.clone();
        let other = thread::spawn(move || request(&other, Some(0), SMALL_SHARE));
        let is_taken = request(&budget, Some(0), SMALL_SHARE - 1);
        // One of them finds room.
        assert!(other.join().unwrap() || is_taken);
        assert_nothing_is_held(&budget);
    });
}

#[test]
fn a_take_that_is_undone_for_the_share_of_its_client_leaves_nothing() {
    ::loom::model(|| {
        let budget = Budget::with_limit(4 * SMALL_SHARE);
        let other = budget.clone();
        // It would leave less than it holds.
        let other = thread::spawn(move || request(&other, Some(0), 3 * SMALL_SHARE));
        let is_taken = request(&budget, None, SMALL_SHARE);
        assert!(is_taken);
        assert!(!other.join().unwrap());
        assert_nothing_is_held(&budget);
    });
}
