//! tower's contract for this crate's layer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::{Journal, contract::assert_contract};

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    assert_contract(
        RateLimitLayer::new(Quota::per_second(9))
            .unwrap()
            .metrics(journal.clone()),
    )
    .await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
}
