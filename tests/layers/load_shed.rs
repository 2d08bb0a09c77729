//! Load shedding by a layer: on servers without a connection guard, and behind one that asks first.

use axum::Router;
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use palisade::{
    Guard, Memory, Mode, Reason, RuntimeLoad, Stack, StackLayer,
    conn::{ConnGuard, ConnGuardBuilder},
    load_shed::LoadShedLayer,
};
use palisade_testkit::{
    Journal,
    clients::{http1, http2, whole},
    guarded::{all_gone, app},
    servers::{self, Server},
};
use std::{net::Ipv4Addr, time::Duration};

const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
const LIMIT: u64 = 1_000_000;

fn memory() -> Memory {
    Memory::reported(LIMIT).unwrap()
}

/// Reports growth to 96 and 99 % of the limit. A quarter of the requests is admitted then.
fn grow(memory: &Memory) {
    memory.report(LIMIT / 100 * 96);
    memory.report(LIMIT / 100 * 99);
    assert_eq!(memory.share(), 0.25);
}

/// Reports that it grows no more, until all requests are admitted.
fn stand_still(memory: &Memory) {
    (0..12).for_each(|_| memory.report(LIMIT / 100 * 99));
    assert_eq!(memory.share(), 1.0);
}

/// Reports a delay of two seconds for as long as it takes. One request in 64 is admitted then.
fn overload(load: &RuntimeLoad) {
    (0..12).for_each(|_| load.report(Duration::from_secs(2)));
    assert!(load.share() < 0.02);
}

/// Returns a stack that asks these, and its journal.
fn stack(memory: &Memory, load: &RuntimeLoad) -> (StackLayer, Journal) {
    let journal = Journal::default();
    let stack = Stack::edge()
        .memory(memory.clone())
        .runtime_load(load.clone())
        .critical(|head| head.uri.path() == "/health")
        .metrics(journal.clone());
    (stack.build().unwrap(), journal)
}

type Client = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(server: &Server) -> Client {
    http1(CLIENT, server.addr).await.unwrap()
}

/// Returns how many of 64 requests are not refused.
async fn served(client: &mut Client, path: &str) -> usize {
    let mut served = 0;
    for _ in 0..64 {
        client.ready().await.unwrap();
        let request = Request::get(path).header("host", "x");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = whole(client.send_request(request).await.unwrap())
            .await
            .unwrap();
        if response.status() == 503 {
            let seconds = response.headers()["retry-after"].to_str().unwrap();
            assert!((1..=5).contains(&seconds.parse::<u64>().unwrap()));
        } else {
            served += 1;
        }
    }
    served
}

#[tokio::test]
async fn on_plain_axum_a_stack_refuses_while_memory_grows_and_not_while_it_stands_still() {
    let (memory, load) = (memory(), RuntimeLoad::reported());
    let (stack, journal) = stack(&memory, &load);
    let server = servers::axum_bare(app().layer(stack)).await;
    let mut client = connect(&server).await;
    memory.report(LIMIT / 100 * 97);
    assert_eq!(served(&mut client, "/").await, 64);
    grow(&memory);
    assert_eq!(served(&mut client, "/").await, 16);
    assert_eq!(served(&mut client, "/health").await, 64);
    let refused = [(Guard::LoadShed, Reason::MemoryPressure); 48];
    assert_eq!(journal.refused(), refused);
    stand_still(&memory);
    assert_eq!(served(&mut client, "/").await, 64);
    assert_eq!(load.in_flight(), 0);
}

#[tokio::test]
async fn on_plain_axum_a_layer_refuses_while_the_runtime_is_overloaded() {
    let load = RuntimeLoad::reported();
    let layer = LoadShedLayer::new().memory(None).runtime_load(load.clone());
    let server = servers::axum_bare(app().layer(layer)).await;
    let mut client = connect(&server).await;
    assert_eq!(served(&mut client, "/").await, 64);
    overload(&load);
    assert_eq!(served(&mut client, "/").await, 1);
    (0..10).for_each(|_| load.report(Duration::ZERO));
    assert_eq!(served(&mut client, "/").await, 64);
}

#[tokio::test]
async fn over_http2_a_refusal_leaves_the_other_streams_alone() {
    let memory = memory();
    let layer = LoadShedLayer::new().memory(memory.clone());
    let server = servers::hyper(tower::Layer::layer(&layer, app())).await;
    grow(&memory);
    let mut client = http2(CLIENT, server.addr).await.unwrap();
    let mut served = 0;
    for _ in 0..64 {
        let request = Request::get(server.url())
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        served += i32::from(response.status() == 200);
    }
    assert_eq!(served, 16);
}

/// Serves `app` inside of `stack` with `palisade::serve` behind this guard.
async fn serve(guard: ConnGuardBuilder, stack: StackLayer) -> (Server, ConnGuard, Journal) {
    let journal = Journal::default();
    let guard = guard.metrics(journal.clone()).build().unwrap();
    let listener = guard.listen(servers::listener().await);
    let app: Router = app().layer(stack);
    let serve = palisade::serve(listener, app);
    let addr = serve.local_addr().unwrap();
    let task = tokio::spawn(async move {
        serve.await.unwrap();
    });
    (Server::new(addr, task), guard, journal)
}

#[tokio::test]
async fn behind_a_guard_that_has_asked_a_request_is_not_asked_again() {
    let (memory, load) = (memory(), RuntimeLoad::reported());
    let (stack, of_stack) = stack(&memory, &load);
    let builder = ConnGuard::builder().memory(memory.clone());
    let (server, guard, of_guard) = serve(builder.runtime_load(load.clone()), stack).await;
    let mut client = connect(&server).await;
    assert_eq!(served(&mut client, "/").await, 64);
    grow(&memory);
    // A quarter, and not a quarter of it.
    assert_eq!(served(&mut client, "/").await, 16);
    // The guard has no critical requests.
    assert_eq!(served(&mut client, "/health").await, 16);
    let refused = [(Guard::Connection, Reason::MemoryPressure); 96];
    assert_eq!(of_guard.refused(), refused);
    stand_still(&memory);
    overload(&load);
    assert_eq!(served(&mut client, "/").await, 1);
    assert_eq!(of_guard.refused().len(), 96 + 63);
    assert_eq!(of_stack.refused(), []);
    drop(client);
    all_gone(&guard).await;
    assert_eq!(load.in_flight(), 0);
}

#[tokio::test]
async fn a_guard_in_shadow_mode_has_asked_too_and_one_that_is_off_has_not() {
    for (mode, of_guard_served, refused_by_guard) in [(Mode::Shadow, 64, 48), (Mode::Off, 16, 0)] {
        let (memory, load) = (memory(), RuntimeLoad::reported());
        let (stack, of_stack) = stack(&memory, &load);
        let builder = ConnGuard::builder().mode(mode).memory(memory.clone());
        let (server, _guard, of_guard) = serve(builder.runtime_load(load), stack).await;
        let mut client = connect(&server).await;
        grow(&memory);
        assert_eq!(served(&mut client, "/").await, of_guard_served, "{mode}");
        assert_eq!(of_guard.refused().len(), refused_by_guard);
        assert_eq!(of_stack.refused().len(), 64 - of_guard_served);
    }
}

#[tokio::test]
async fn what_the_guard_does_not_ask_the_stack_does() {
    // Memory of its own.
    let (of_stack, load) = (memory(), RuntimeLoad::reported());
    let (stack, journal) = stack(&of_stack, &load);
    let builder = ConnGuard::builder().memory(memory()).runtime_load(None);
    let (server, guard, of_guard) = serve(builder, stack).await;
    let mut client = connect(&server).await;
    grow(&of_stack);
    assert_eq!(served(&mut client, "/").await, 16);
    stand_still(&of_stack);
    overload(&load);
    assert_eq!(served(&mut client, "/").await, 1);
    assert_eq!(journal.refused().len(), 48 + 63);
    assert_eq!(of_guard.refused(), []);
    drop(client);
    all_gone(&guard).await;
    assert_eq!(load.in_flight(), 0);
}
