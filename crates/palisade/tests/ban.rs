//! The ban in a stack: outside of all other guards, and never of a peer that is a proxy.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade::{
    Ban, Guard, Mode, Quota, Reason, Stack,
    ban::{Networks, Prefix},
    body_limit::BufferLayer,
    types::Client,
};
use palisade_testkit::{Journal, example::*};

const PEER: [u8; 4] = [203, 0, 113, 7];

fn named(client: [u8; 4]) -> Request<Empty<Bytes>> {
    let mut request = request_from(PEER);
    let client = Client::from_peer(Some(client.into()), Prefix::default());
    request.extensions_mut().insert(client);
    request
}

#[tokio::test(start_paused = true)]
async fn a_banned_client_is_refused_before_any_other_guard_counts_it() {
    let journal = Journal::default();
    let ban = Ban::denying(Networks::parse("203.0.113.7").unwrap());
    let stack = Stack::edge()
        .rate_limit(Quota::per_hour(1))
        .memory(growing_memory())
        .ban(ban)
        .metrics(journal.clone());
    let stack = stack.build().unwrap();
    for _ in 0..10 {
        assert_eq!(status(&stack, request_from(PEER)).await, 403);
    }
    assert_eq!(journal.refused(), [(Guard::Ban, Reason::Denied); 10]);
    assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 503);
}

#[tokio::test(start_paused = true)]
async fn a_stack_with_a_buffer_asks_the_ban_too() {
    let ban = Ban::denying(Networks::parse("203.0.113.7").unwrap());
    let stack = Stack::edge().ban(ban).build().unwrap();
    let stack = stack.buffered(BufferLayer::default());
    assert_eq!(status(&stack, request_from(PEER)).await, 403);
    assert_eq!(status(&stack, request_from([192, 0, 2, 1])).await, 200);
}

#[tokio::test(start_paused = true)]
async fn the_mode_of_the_stack_and_that_of_one_guard_hold_for_the_ban() {
    let denied = || Ban::denying(Networks::parse("203.0.113.7").unwrap());
    let shadow = Stack::edge().ban(denied()).mode(Mode::Shadow);
    let shadow = shadow.build().unwrap();
    assert_eq!(status(&shadow, request_from(PEER)).await, 200);
    let off = Stack::edge().ban(denied()).mode_of(Guard::Ban, Mode::Off);
    assert_eq!(status(&off.build().unwrap(), request_from(PEER)).await, 200);
    let none = Stack::edge().ban(denied()).ban(None).build().unwrap();
    assert_eq!(status(&none, request_from(PEER)).await, 200);
}

#[tokio::test(start_paused = true)]
async fn behind_a_proxy_no_peer_is_banned_and_a_named_client_is() {
    let ban = Ban::builder().build().unwrap();
    let stack = Stack::behind_proxy().ban(ban.clone()).build().unwrap();
    // Nothing says that the peer is a proxy, but the preset.
    assert_eq!(ban.client_of(request_from(PEER).extensions()), None);
    let peer = Client::from_peer(Some(PEER.into()), Prefix::default());
    ban.ban(&peer, SECOND); // By mistake.
    assert_eq!(status(&stack, request_from(PEER)).await, 200);
    assert_eq!(status(&stack, named(PEER)).await, 403);
    assert_eq!(status(&stack, named([192, 0, 2, 1])).await, 200);
}
