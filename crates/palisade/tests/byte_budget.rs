//! The byte budget of a stack.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use http::{Request, StatusCode};
use palisade::{Budget, Stack, StackLayer};
use palisade_testkit::{bodies::Pieces, example};
use std::{net::SocketAddr, time::Duration};
use tower::{Layer, ServiceExt, service_fn};

const KIB: usize = 1 << 10;

/// A request of this client that uploads so many KiB, and then nothing more for a while.
fn held(client: u8, kib: u64) -> Request<Pieces> {
    let body = Pieces::new(kib, KIB).every(Duration::from_millis(1));
    let mut request = Request::post("/").body(body).unwrap();
    let peer = SocketAddr::from(([192, 0, 2, client], 4711));
    request.extensions_mut().insert(peer);
    request
}

/// Returns the status of the second upload while the first one has arrived and its handler works.
async fn second_of(
    stack: &StackLayer,
    first: Request<Pieces>,
    second: Request<Pieces>,
) -> StatusCode {
    let service = stack.layer(service_fn(example::work_for_a_second));
    let first = tokio::spawn(service.clone().oneshot(first));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = service.oneshot(second).await.unwrap().status();
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
    status
}

#[tokio::test(start_paused = true)]
async fn at_the_edge_a_client_has_its_share_of_the_budget_and_behind_a_proxy_the_peer_has_not() {
    let budget = Budget::new(1 << 20).unwrap();
    let edge = Stack::edge().byte_budget(budget.clone()).build().unwrap();
    // 300 and 200 KiB are charged. A client may hold what it leaves of 768 KiB.
    let same = second_of(&edge, held(1, 150), held(1, 100)).await;
    assert_eq!(same, StatusCode::SERVICE_UNAVAILABLE);
    let other = second_of(&edge, held(1, 150), held(2, 100)).await;
    assert_eq!(other, StatusCode::OK);
    let proxied = Stack::behind_proxy().byte_budget(budget.clone());
    let proxied = proxied.build().unwrap();
    let same = second_of(&proxied, held(1, 150), held(1, 100)).await;
    assert_eq!(same, StatusCode::OK);
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_nothing_is_charged() {
    let stack = Stack::edge().byte_budget(None).build().unwrap();
    let status = second_of(&stack, held(1, 1000), held(1, 1000)).await;
    assert_eq!((status, Budget::of_process().held()), (StatusCode::OK, 0));
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_nearly_full_ends_stalled_uploads_sooner() {
    let budget = Budget::new(1 << 20).unwrap();
    let stack = Stack::edge().byte_budget(budget.clone()).memory(None);
    let stack = stack.build().unwrap();
    // A thousand bytes per second, where 500 are required.
    let slow = || example::upload(60, 1_000, example::SECOND);
    assert_eq!(example::status(&stack, slow()).await, 200);
    let held = 950 << 10;
    budget.take(None, held).unwrap();
    assert_eq!(example::status(&stack, slow()).await, 408);
    budget.give_back(None, held);
    assert_eq!(example::status(&stack, slow()).await, 200);
    let without = Stack::edge()
        .byte_budget(None)
        .memory(None)
        .build()
        .unwrap();
    budget.take(None, held).unwrap();
    assert_eq!(example::status(&without, slow()).await, 200);
}
