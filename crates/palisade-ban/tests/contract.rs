//! tower's contract for this crate's layer.

use palisade_ban::{Ban, BanLayer, Networks};
use palisade_testkit::{Journal, contract::assert_contract};

#[tokio::test(start_paused = true)]
async fn the_layer_keeps_the_contract_of_tower() {
    let journal = Journal::default();
    let layer = BanLayer::new(Ban::denying(Networks::default()));
    assert_contract(layer.metrics(journal.clone())).await;
    assert_eq!((journal.refused(), journal.cut()), (vec![], vec![]));
}
