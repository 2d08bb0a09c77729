//! tower's contract for this crate's layer.

use palisade_body_limit::{BodyLimitLayer, BufferLayer};
use palisade_testkit::{Journal, contract::assert_contract};

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    assert_contract(BodyLimitLayer::default().metrics(journal.clone())).await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn the_buffer_keeps_the_contract_of_tower() {
    assert_contract(BufferLayer::default()).await;
    assert_contract(BufferLayer::new(0)).await;
}
