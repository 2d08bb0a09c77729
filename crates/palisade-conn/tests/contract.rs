//! tower's contract for this crate's layer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_conn::ConnGuard;
use palisade_testkit::{Journal, contract::assert_contract};

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    assert_contract(
        ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap()
            .track_requests(),
    )
    .await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
}
