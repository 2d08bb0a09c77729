//! What a guarded connection costs in memory, and that nothing of it stays.
//!
//! One test: the allocator counts for the whole process.
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

/// Takes no memory, gives nothing, takes everything.
#[derive(Debug)]
struct Nothing;

impl Transport for Nothing {}

impl AsyncRead for Nothing {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Nothing {
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

/// Whose ten thousand connections are.
#[derive(Clone, Copy, Debug)]
enum Of {
    TwoHundredClients,
    AClientEach,
    ANetworkEach,
}

fn connect(guard: &ConnGuard, of: Of) -> Vec<GuardedIo<Nothing>> {
    let mut connections = Vec::with_capacity(CONNECTIONS as usize);
    for n in 0..CONNECTIONS {
        let client = Ipv4Addr::from_bits(match of {
            Of::TwoHundredClients => n % 200 * 64,
            Of::AClientEach => n * 8,
            Of::ANetworkEach => n * 256,
        });
        connections.push(
            guard
                .admit(Nothing, Some((client, 1).into()), None)
                .unwrap(),
        );
    }
    connections
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_idle_connections_are_cheap_and_leave_nothing_behind() {
    let build = || {
        let guard = ConnGuard::builder().max_connections(2 * CONNECTIONS as usize);
        let guard = guard.max_per_client(64).no_accept_rate().build().unwrap();
        guard.track_requests();
        guard
    };
    for (of, most) in [
        (Of::TwoHundredClients, 256),
        (Of::AClientEach, 256),
        (Of::ANetworkEach, 272),
    ] {
        let guard = build();
        let before = ALLOCATOR.live();
        let allocations = ALLOCATOR.allocations();
        let connections = connect(&guard, of);
        let each = (ALLOCATOR.live() - before) / CONNECTIONS as usize;
        let allocations = ALLOCATOR.allocations() - allocations;
        println!(
            "{each} bytes each, {:.2} allocations, {of:?}",
            allocations as f64 / f64::from(CONNECTIONS)
        );
        assert!(each <= most, "{each}");
        drop(connections);
        let left = ALLOCATOR.live().saturating_sub(before);
        assert!(left < 1 << 20, "{left}");
        assert_eq!(guard.snapshot().open, 0);
    }

    // Sweeping them allocates nothing more once the sweeper has its buffers.
    let guard = build();
    let connections = connect(&guard, Of::ANetworkEach);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let allocations = ALLOCATOR.allocations();
    let started = std::time::SystemTime::now();
    let paused = Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(paused.elapsed(), Duration::from_secs(5));
    let more = ALLOCATOR.allocations() - allocations; // Before anything is printed.
    let sweeps = 20;
    let took = started.elapsed().unwrap_or_default() / sweeps;
    println!("a sweep of {CONNECTIONS} takes {took:?}");
    assert_eq!(more, 0);
    drop(connections);
}
