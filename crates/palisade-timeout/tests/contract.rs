//! tower's contract for this crate's layer.

use palisade_testkit::{Journal, contract::assert_contract};
use palisade_timeout::TimeoutLayer;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    assert_contract(TimeoutLayer::new(Duration::from_secs(9)).metrics(journal.clone())).await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
}
