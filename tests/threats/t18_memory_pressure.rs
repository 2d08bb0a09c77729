//! T18: memory pressure from any source. While memory is short and grows, a share of the requests
//! is refused at the head. Memory that stands still refuses nothing, however much is in use.

use palisade::conn::{ConnGuard, Memory, Mode};
use palisade_core::{Guard, Phase, Reason, Violation};
use palisade_testkit::{
    Journal,
    clients::{RawClient, wait_until},
    guarded::{ServerKind, all_gone, app, assert_served},
    on_servers,
};
use std::net::Ipv4Addr;
use tokio::io::AsyncReadExt;

const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A network that the guard reserves places for.
const MONITORING: Ipv4Addr = Ipv4Addr::new(127, 0, 9, 1);
const LIMIT: u64 = 1_000_000;

/// Returns a guard over memory of [`LIMIT`] bytes that the test reports, and its journal.
fn guarded_by(memory: &Memory, mode: Mode) -> (ConnGuard, Journal) {
    let journal = Journal::default();
    let builder = ConnGuard::builder()
        .mode(mode)
        .memory(memory.clone())
        .reserve(1, ["127.0.9.0/24".parse().unwrap()])
        .critical(|head| head.headers.contains_key("x-probe"));
    let guard = builder.metrics(journal.clone()).build().unwrap();
    (guard, journal)
}

/// Reports growth to 96 and 99 % of the limit. A quarter of the requests is admitted then.
fn grow(memory: &Memory) {
    memory.report(LIMIT / 100 * 96);
    memory.report(LIMIT / 100 * 99);
    assert_eq!(memory.share(), 0.25);
}

async fn while_memory_grows_a_share_of_requests_is_refused_and_none_when_it_stands_still(
    kind: ServerKind,
) {
    let memory = Memory::reported(LIMIT).unwrap();
    let (guard, journal) = guarded_by(&memory, Mode::Enforce);
    let server = kind.serve(&guard, app()).await;
    // Much memory is in use, but not more than before.
    memory.report(LIMIT / 100 * 97);
    let mut client = kind.connect(CLIENT, server.addr).await.unwrap();
    for _ in 0..32 {
        assert_eq!(client.get("/").await.unwrap().status(), 200);
    }
    let mut monitoring = kind.connect(MONITORING, server.addr).await.unwrap();
    assert_eq!(monitoring.get("/").await.unwrap().status(), 200);

    grow(&memory);
    let mut served = 0;
    for _ in 0..32 {
        let response = client.get("/").await.unwrap();
        if response.status() == 200 {
            served += 1;
            continue;
        }
        assert_eq!(response.status(), 503);
        // On HTTP/2 the refusal is a head and nothing else.
        let body = match kind {
            ServerKind::Tonic => "",
            _ => "server is short of memory",
        };
        assert_eq!(response.body(), body);
        let seconds: u64 = response.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1..=5).contains(&seconds), "{seconds}");
    }
    assert_eq!(served, 8);
    assert_eq!(
        journal.refused(),
        [(Guard::Connection, Reason::MemoryPressure); 24]
    );
    for _ in 0..32 {
        assert_eq!(monitoring.get("/").await.unwrap().status(), 200);
    }

    // An allocator may keep all of it. Nothing is refused for that.
    for _ in 0..12 {
        memory.report(LIMIT / 100 * 99);
    }
    for _ in 0..32 {
        assert_eq!(client.get("/").await.unwrap().status(), 200);
    }
    assert_eq!(journal.refused().len(), 24);
    drop((client, monitoring));
    all_gone(&guard).await;
}

async fn a_health_probe_is_served_while_memory_grows(kind: ServerKind) {
    let memory = Memory::reported(LIMIT).unwrap();
    let (guard, journal) = guarded_by(&memory, Mode::Enforce);
    let server = kind.serve(&guard, app()).await;
    let mut probe = RawClient::connect(server.addr).await.unwrap();
    wait_until("the probe is admitted", || journal.opened() == 1).await;
    grow(&memory);
    for _ in 0..32 {
        probe
            .send("GET / HTTP/1.1\r\nhost: x\r\nx-probe: 1\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(probe.head().await.unwrap().status, 200);
        assert_eq!(probe.body(6).await.unwrap(), b"served");
    }
    assert!(journal.refused().is_empty());
    drop(probe);
    all_gone(&guard).await;
}

async fn while_memory_grows_new_connections_outside_of_the_share_are_reset(kind: ServerKind) {
    let memory = Memory::reported(LIMIT).unwrap();
    let (guard, journal) = guarded_by(&memory, Mode::Enforce);
    let server = kind.serve(&guard, app()).await;
    grow(&memory);
    let mut clients = Vec::new();
    for _ in 0..16 {
        // It may find out that it is reset while it connects.
        clients.extend(RawClient::connect(server.addr).await);
    }
    wait_until("each connection is admitted or refused", || {
        journal.opened() + journal.disconnected().len() == 16
    })
    .await;
    assert_eq!(journal.opened(), 4);
    let refused = journal.disconnected();
    let is_for_memory = |(violation, _): &(Violation, Mode)| {
        violation.reason == Reason::MemoryPressure && violation.limit == LIMIT
    };
    assert!(refused.iter().all(is_for_memory), "{refused:?}");
    drop(clients);
    for _ in 0..16 {
        assert_eq!(
            kind.ask(MONITORING, server.addr, "/")
                .await
                .unwrap()
                .status(),
            200
        );
    }
    all_gone(&guard).await;
}

async fn where_memory_is_short_a_connection_outside_of_the_share_ends_with_its_response(
    kind: ServerKind,
) {
    let memory = Memory::reported(LIMIT).unwrap();
    let (guard, journal) = guarded_by(&memory, Mode::Enforce);
    let server = kind.serve(&guard, app()).await;
    let mut client = RawClient::connect(server.addr).await.unwrap();
    assert_served(&mut client).await;
    memory.report(LIMIT / 100 * 89);
    memory.report(LIMIT / 100 * 91);
    memory.report(LIMIT / 100 * 93);
    assert_eq!(memory.share(), 0.25);
    let mut closes = false;
    for _ in 0..16 {
        client
            .send("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(client.body(6).await.unwrap(), b"served");
        closes = head.header("connection") == Some("close");
        if closes {
            break;
        }
    }
    assert!(closes);
    assert!(journal.refused().is_empty());
    drop(client);
    all_gone(&guard).await;
}

/// The attack: uploads that no handler reads stay in the kernel. What is refused frees nothing.
async fn while_memory_grows_to_its_end_connections_with_much_unread_are_reset(kind: ServerKind) {
    let memory = Memory::reported(LIMIT).unwrap();
    let (guard, journal) = guarded_by(&memory, Mode::Enforce);
    let server = kind.serve(&guard, app()).await;
    let mut attackers = Vec::new();
    for _ in 0..3 {
        let mut attacker = RawClient::connect(server.addr).await.unwrap();
        let head = "GET /hang HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n";
        attacker.send(head).await.unwrap();
        attackers.push(tokio::spawn(async move {
            let piece = vec![b'x'; 16 << 10];
            while attacker.send(&piece).await.is_ok() {}
        }));
    }
    // As much of this one is unread, but its client takes the answer.
    let mut download = RawClient::connect(server.addr).await.unwrap();
    let head = "GET /endless HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n";
    download.send(head).await.unwrap();
    download.send(vec![b'x'; 256 << 10]).await.unwrap();
    let taken = tokio::spawn(async move {
        let mut piece = [0; 4096];
        while download
            .stream
            .read(&mut piece)
            .await
            .is_ok_and(|count| count > 0)
        {}
    });
    wait_until("all are at work", || guard.snapshot().in_flight == 4).await;

    // A quarter of a step each time.
    let mut used = LIMIT / 100 * 96;
    wait_until("the attackers are reset", || {
        used += LIMIT / 4096;
        memory.report(used);
        journal.disconnected().len() == 3
    })
    .await;
    let of_memory = |(violation, _): &(Violation, Mode)| {
        violation.reason == Reason::MemoryPressure && violation.phase == Phase::Working
    };
    assert!(journal.disconnected().iter().all(of_memory));
    for attacker in attackers {
        attacker.await.unwrap();
    }
    assert!(!taken.is_finished());
    taken.abort();
    all_gone(&guard).await;
}

async fn in_shadow_mode_nothing_is_refused_for_memory(kind: ServerKind) {
    let memory = Memory::reported(LIMIT).unwrap();
    let (guard, journal) = guarded_by(&memory, Mode::Shadow);
    let server = kind.serve(&guard, app()).await;
    grow(&memory);
    for _ in 0..32 {
        assert_eq!(
            kind.ask(CLIENT, server.addr, "/").await.unwrap().status(),
            200
        );
    }
    assert!(!journal.refused().is_empty());
    all_gone(&guard).await;
}

on_servers! {
    [axum, serve, tonic]
    while_memory_grows_a_share_of_requests_is_refused_and_none_when_it_stands_still,
    in_shadow_mode_nothing_is_refused_for_memory,
    while_memory_grows_new_connections_outside_of_the_share_are_reset,
}

on_servers! {
    [axum, serve]
    a_health_probe_is_served_while_memory_grows,
    while_memory_grows_to_its_end_connections_with_much_unread_are_reset,
    where_memory_is_short_a_connection_outside_of_the_share_ends_with_its_response,
}
