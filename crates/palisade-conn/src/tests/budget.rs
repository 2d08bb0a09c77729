//! Request bodies of HTTP/1 that no layer charges are charged by the socket.

use super::*;
use crate::Budget;
use futures_util::FutureExt;

const KIB: usize = 1 << 10;

/// A guard with a budget of so many KiB.
fn guarded(kib: u64) -> (Budget, ConnGuard, Journal) {
    let budget = Budget::new(kib << 10).unwrap();
    let builder = ConnGuard::builder().byte_budget(budget.clone());
    let (guard, journal) = tracking_guard(builder);
    (budget, guard, journal)
}

/// Begins a request with a body that the socket charges.
fn begin_upload(pair: &Pair) -> InFlight {
    let mut request = pair.server.conn().begin_request(false);
    request.charge_by_socket();
    request
}

/// Sends so many KiB to the server, which reads them. Returns what the last read returned.
async fn upload(pair: &mut Pair, kib: usize) -> io::Result<usize> {
    let mut piece = [0; KIB];
    for _ in 0..kib {
        pair.client.write_all(&[b'x'; KIB]).await?;
        pair.server.read_exact(&mut piece).await?;
    }
    Ok(kib)
}

#[tokio::test(start_paused = true)]
async fn what_is_read_is_charged_while_a_body_is_in_flight() {
    let (budget, guard, _) = guarded(64);
    let mut pair = connect(&guard);
    upload(&mut pair, 5).await.unwrap();
    assert_eq!(budget.held(), 0); // Heads, or a body that a layer charges.
    let request = begin_upload(&pair);
    upload(&mut pair, 20).await.unwrap();
    assert_eq!(budget.held(), 40 << 10);
    drop(request);
    // hyper reads on after each response.
    let mut piece = [0; KIB];
    assert!(pair.server.read(&mut piece).now_or_never().is_none());
    assert_eq!(budget.held(), 0);
    let _request = begin_upload(&pair);
    upload(&mut pair, 20).await.unwrap();
    drop(pair);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_body_finds_no_room_is_reset() {
    let (budget, guard, journal) = guarded(64);
    let (mut pair, mut neighbour) = (connect(&guard), connect(&guard));
    let request = begin_upload(&pair);
    let error = upload(&mut pair, 40).await.unwrap_err();
    assert_eq!(violation(&error).reason, Reason::BytesFull);
    let (reported, _) = journal.disconnected()[0];
    assert_eq!((reported.limit, reported.observed), (64 << 10, 66 << 10));
    drop((request, pair));
    assert_eq!(budget.held(), 0);
    let _request = begin_upload(&neighbour);
    upload(&mut neighbour, 20).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_charged_twice_or_without_a_budget() {
    let budget = Budget::new(64 << 10).unwrap();
    for (given, is_charged_by_layer) in [(Some(budget.clone()), true), (None, false)] {
        let (guard, _) = tracking_guard(ConnGuard::builder().byte_budget(given));
        let mut pair = connect(&guard);
        let mut request = pair.server.conn().begin_request(false);
        request.charge_by_socket();
        pair.server.conn().set_charged_body(is_charged_by_layer);
        upload(&mut pair, 100).await.unwrap();
        assert_eq!(budget.held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_speaks_for_one_request_and_not_for_the_next_one_of_the_connection() {
    let (_, guard, _) = guarded(64);
    let mut pair = connect(&guard);
    let request = begin_upload(&pair);
    pair.server.conn().set_charged_body(true);
    upload(&mut pair, 100).await.unwrap();
    drop(request);
    // A route outside of the layer.
    let _request = begin_upload(&pair);
    assert!(upload(&mut pair, 100).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_charged_the_most_goes_on_while_others_fill_the_budget() {
    let (budget, guard, _) = guarded(16 << 10);
    let mut pair = connect(&guard);
    let request = begin_upload(&pair);
    upload(&mut pair, 3 << 10).await.unwrap();
    assert_eq!(budget.held(), 4 << 20);
    let others = budget.charge(None);
    others.take(budget.limit() - budget.held()).unwrap();
    upload(&mut pair, 100).await.unwrap();
    drop((request, pair, others));
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_lingers_is_charged_nothing() {
    let (budget, guard, _) = guarded(64);
    let mut pair = connect(&guard);
    let request = begin_upload(&pair);
    upload(&mut pair, 20).await.unwrap();
    assert_eq!(budget.held(), 40 << 10);
    drop(request); // Answered before the end of the upload.
    assert!(pair.server.shutdown().now_or_never().is_none());
    assert!(pair.server.conn().state().stats().lingering);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_connection_is_charged_nothing() {
    let (budget, guard, _) = guarded(64);
    let mut pair = connect(&guard);
    let request = begin_upload(&pair);
    upload(&mut pair, 20).await.unwrap();
    assert_eq!(budget.held(), 40 << 10);
    pair.server.conn().upgrade().unwrap();
    drop(request);
    // What is a protocol of its own from now on, in any amount.
    upload(&mut pair, 200).await.unwrap();
    assert_eq!(budget.held(), 0);
}
