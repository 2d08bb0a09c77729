//! Several runtimes share one guard, and one of them is blocked or gone: deadlines hold in the others.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod guarded;

use guarded::{Neighbour, SECOND, all_gone, app, cut, served};
use palisade::conn::{ConnGuard, connected};
use palisade_testkit::{clients::RawClient, servers};
use std::{
    future::IntoFuture,
    net::SocketAddr,
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{runtime::Builder, sync::mpsc, time::Instant};

/// A task that stands by notices within this time that the leader is blocked, and its first look
/// forgives.
const TAKE_OVER: Duration = Duration::from_secs(4);

/// `axum::serve` in a current-thread runtime on a thread of its own.
struct Runtime {
    addr: SocketAddr,
    /// What is sent here blocks the thread until its other end is dropped.
    block: mpsc::UnboundedSender<(Sender<()>, Receiver<()>)>,
    thread: JoinHandle<()>,
}

impl Runtime {
    fn start(guard: &ConnGuard) -> Self {
        let (block, mut blocks) = mpsc::unbounded_channel::<(Sender<()>, Receiver<()>)>();
        let (say_addr, addr) = channel();
        let guard = guard.clone();
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = guard.listen(servers::listener().await);
                say_addr.send(listener.local_addr().unwrap()).unwrap();
                tokio::spawn(axum::serve(listener, connected(app())).into_future());
                while let Some((is_blocked, released)) = blocks.recv().await {
                    is_blocked.send(()).unwrap();
                    let _ = released.recv();
                }
            });
        });
        Self {
            addr: addr.recv().unwrap(),
            block,
            thread,
        }
    }

    /// Blocks the thread until what is returned is dropped.
    async fn block(&self) -> Sender<()> {
        let (release, released) = channel();
        let (say_blocked, is_blocked) = channel();
        self.block.send((say_blocked, released)).unwrap();
        tokio::task::spawn_blocking(move || is_blocked.recv().unwrap())
            .await
            .unwrap();
        release
    }

    async fn end(self) {
        drop(self.block);
        tokio::task::spawn_blocking(|| self.thread.join().unwrap())
            .await
            .unwrap();
    }
}

fn guard() -> ConnGuard {
    ConnGuard::builder()
        .first_request(SECOND)
        .idle(SECOND)
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_blocked_runtime_leaves_the_deadlines_to_another_one() {
    let guard = guard();
    let runtimes = [Runtime::start(&guard), Runtime::start(&guard)];
    // Both have accepted a connection, the first one before the other.
    for runtime in &runtimes {
        served(&mut RawClient::connect(runtime.addr).await.unwrap()).await;
    }
    // The one that leads is blocked, and then the one that took over.
    for (blocked, other) in [(0, 1), (1, 0)] {
        let addr = runtimes[other].addr;
        let mut in_the_blocked = RawClient::connect(runtimes[blocked].addr).await.unwrap();
        served(&mut in_the_blocked).await;
        let release = runtimes[blocked].block().await;
        let neighbour = Neighbour::of(addr);
        let mut idle = RawClient::connect(addr).await.unwrap();
        served(&mut idle).await;
        let mut silent = RawClient::connect(addr).await.unwrap();
        let started = Instant::now();
        let (silent, idle) = tokio::join!(cut(&mut silent), cut(&mut idle));
        for (_, _, after) in [&silent, &idle] {
            assert!(
                (SECOND / 2..SECOND + TAKE_OVER).contains(after),
                "{after:?}"
            );
        }
        // A reset for silence, a FIN for idleness.
        assert_eq!((silent.1, idle.1), (true, false));
        assert!(neighbour.was_served().await > 5);
        assert!(started.elapsed() < SECOND + TAKE_OVER);
        drop(release);
        // Driven again, it is looked after by the leader in the other runtime.
        cut(&mut in_the_blocked).await;
        let mut silent = RawClient::connect(runtimes[blocked].addr).await.unwrap();
        let (_, is_reset, after) = cut(&mut silent).await;
        assert!(is_reset && after < 2 * SECOND, "{after:?}");
        all_gone(&guard).await;
    }
    for runtime in runtimes {
        runtime.end().await;
    }
}

#[tokio::test]
async fn the_end_of_the_leading_runtime_leaves_the_deadlines_to_another_one() {
    let guard = guard();
    let [first, second] = [Runtime::start(&guard), Runtime::start(&guard)];
    let _in_the_first = RawClient::connect(first.addr).await.unwrap();
    served(&mut RawClient::connect(first.addr).await.unwrap()).await;
    let mut silent = RawClient::connect(second.addr).await.unwrap();
    first.end().await;
    let (_, is_reset, after) = cut(&mut silent).await;
    // At once: nothing was to be noticed.
    assert!(is_reset && after < 2 * SECOND, "{after:?}");
    all_gone(&guard).await;
    second.end().await;
}
