//! The memory that a guarded connection takes, and that all of it is released.
//!
//! There is one test, because the allocator counts for the whole process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_conn::{ConnGuard, GuardedIo, Transport};
use palisade_testkit::alloc::CountingAllocator;
use std::{
    io,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

const CONNECTIONS: u32 = 10_000;

/// A transport without memory of its own. It returns no bytes and accepts all that are written.
#[derive(Debug)]
struct NullTransport;

impl Transport for NullTransport {}

impl AsyncRead for NullTransport {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for NullTransport {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How ten thousand connections are spread over clients.
#[derive(Clone, Copy, Debug)]
enum Spread {
    TwoHundredClients,
    OneClientEach,
    OneNetworkEach,
}

fn connect(guard: &ConnGuard, spread: Spread) -> Vec<GuardedIo<NullTransport>> {
    let mut connections = Vec::with_capacity(CONNECTIONS as usize);
    for n in 0..CONNECTIONS {
        let client = Ipv4Addr::from_bits(match spread {
            Spread::TwoHundredClients => n % 200 * 64,
            Spread::OneClientEach => n * 8,
            Spread::OneNetworkEach => n * 256,
        });
        connections.push(
            guard
                .admit(NullTransport, Some((client, 1).into()), None)
                .unwrap(),
        );
    }
    connections
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_idle_connections_are_cheap_and_leave_nothing_behind() {
    let build = || {
        let guard = ConnGuard::builder().max_connections(2 * CONNECTIONS as usize);
        let guard = guard.max_per_client(64).accept_rate(None).build().unwrap();
        guard.track_requests();
        guard
    };
    drop(build()); // What all guards of a process share is created with the first one.
    let before = ALLOCATOR.live();
    let guard = ConnGuard::default();
    let tables = guard.memory_bound().tables as usize;
    let built = ALLOCATOR.live() - before;
    assert!(
        (tables / 2..=tables).contains(&built),
        "{built} of {tables}"
    );
    drop(guard);

    for (spread, max_bytes) in [
        (Spread::TwoHundredClients, 256),
        (Spread::OneClientEach, 256),
        (Spread::OneNetworkEach, 272),
    ] {
        let guard = build();
        let before = ALLOCATOR.live();
        let allocations = ALLOCATOR.allocations();
        let connections = connect(&guard, spread);
        let bytes_each = (ALLOCATOR.live() - before) / CONNECTIONS as usize;
        let allocations = ALLOCATOR.allocations() - allocations;
        println!(
            "{bytes_each} bytes each, {:.2} allocations, {spread:?}",
            allocations as f64 / f64::from(CONNECTIONS)
        );
        assert!(bytes_each <= max_bytes, "{bytes_each}");
        drop(connections);
        let left = ALLOCATOR.live().saturating_sub(before);
        assert!(left < 1 << 20, "{left}");
        assert_eq!(guard.snapshot().open, 0);
    }

    // Sweeping them allocates nothing once the sweeper has its buffers.
    let guard = build();
    let connections = connect(&guard, Spread::OneNetworkEach);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let allocations = ALLOCATOR.allocations();
    let started = std::time::SystemTime::now();
    let paused = Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(paused.elapsed(), Duration::from_secs(5));
    let more = ALLOCATOR.allocations() - allocations; // Read before the print allocates.
    let sweeps = 20;
    let took = started.elapsed().unwrap_or_default() / sweeps;
    println!("a sweep of {CONNECTIONS} takes {took:?}");
    assert_eq!(more, 0);
    drop(connections);
}
