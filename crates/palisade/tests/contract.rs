//! tower's contract for this crate's layer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade::{Quota, Stack, body_limit::BufferLayer};
use palisade_testkit::{Journal, contract::assert_contract};

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    assert_contract(
        Stack::edge()
            .rate_limit(Quota::per_second(99))
            .metrics(journal.clone())
            .build()
            .unwrap(),
    )
    .await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_layer_with_a_buffer_keeps_the_contract_of_tower() {
    let stack = Stack::edge().build().unwrap();
    assert_contract(stack.buffered(BufferLayer::default())).await;
}
