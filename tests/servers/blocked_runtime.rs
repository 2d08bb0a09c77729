//! Deadlines when several runtimes share one guard and one of them is blocked or has ended: they
//! hold in the other runtimes.

use palisade::conn::{ConnGuard, connected};
use palisade_testkit::{
    clients::RawClient,
    guarded::{Neighbour, SECOND, SLACK, all_gone, app, assert_served, read_until_closed},
    servers,
};
use std::{
    future::IntoFuture,
    net::SocketAddr,
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{runtime::Builder, sync::mpsc, time::Instant};

/// The longest time until a standby sweeper notices that the leading one is blocked. The first
/// sweep after a takeover closes nothing.
const MAX_TAKEOVER: Duration = Duration::from_secs(4);

/// An `axum::serve` server in a current-thread runtime on its own thread.
struct Runtime {
    addr: SocketAddr,
    /// Blocks the thread for each pair sent, until the other end of the pair's receiver is dropped.
    /// The pair's sender reports that the thread is blocked.
    block: mpsc::UnboundedSender<(Sender<()>, Receiver<()>)>,
    thread: JoinHandle<()>,
}

impl Runtime {
    fn start(guard: &ConnGuard) -> Self {
        let (block, mut blocks) = mpsc::unbounded_channel::<(Sender<()>, Receiver<()>)>();
        let (addr_sender, addr) = channel();
        let guard = guard.clone();
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = guard.listen(servers::listener().await);
                addr_sender.send(listener.local_addr().unwrap()).unwrap();
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

    /// Blocks the thread until the returned sender is dropped.
    async fn block(&self) -> Sender<()> {
        let (release, released) = channel();
        let (blocked_sender, is_blocked) = channel();
        self.block.send((blocked_sender, released)).unwrap();
        tokio::task::spawn_blocking(move || is_blocked.recv().unwrap())
            .await
            .unwrap();
        release
    }

    async fn shut_down(self) {
        drop(self.block);
        tokio::task::spawn_blocking(|| self.thread.join().unwrap())
            .await
            .unwrap();
    }
}

fn guard() -> ConnGuard {
    ConnGuard::builder()
        .first_request_timeout(SECOND)
        .idle_timeout(SECOND)
        .build()
        .unwrap()
}

#[tokio::test]
async fn deadlines_hold_in_a_second_runtime_while_the_leading_one_is_blocked() {
    let guard = guard();
    let runtimes = [Runtime::start(&guard), Runtime::start(&guard)];
    // Both runtimes accept a connection, the first one before the second.
    for runtime in &runtimes {
        assert_served(&mut RawClient::connect(runtime.addr).await.unwrap()).await;
    }
    // Block the leading runtime, and then the one that has taken over.
    for (blocked, other) in [(0, 1), (1, 0)] {
        let addr = runtimes[other].addr;
        let mut in_the_blocked = RawClient::connect(runtimes[blocked].addr).await.unwrap();
        assert_served(&mut in_the_blocked).await;
        let release = runtimes[blocked].block().await;
        let neighbour = Neighbour::start(addr);
        let mut idle = RawClient::connect(addr).await.unwrap();
        assert_served(&mut idle).await;
        let mut silent = RawClient::connect(addr).await.unwrap();
        let started = Instant::now();
        let (silent, idle) =
            tokio::join!(read_until_closed(&mut silent), read_until_closed(&mut idle));
        for (_, _, after) in [&silent, &idle] {
            assert!(
                (SECOND / 2..SECOND + MAX_TAKEOVER).contains(after),
                "{after:?}"
            );
        }
        // The silent connection is reset, the idle one is closed gracefully.
        assert_eq!((silent.1, idle.1), (true, false));
        assert!(neighbour.was_served().await > 5);
        assert!(started.elapsed() < SECOND + MAX_TAKEOVER);
        drop(release);
        // After the release, the leader in the other runtime sweeps its connections.
        read_until_closed(&mut in_the_blocked).await;
        let mut silent = RawClient::connect(runtimes[blocked].addr).await.unwrap();
        let (_, is_reset, after) = read_until_closed(&mut silent).await;
        assert!(is_reset && after < SECOND + SLACK, "{after:?}");
        all_gone(&guard).await;
    }
    for runtime in runtimes {
        runtime.shut_down().await;
    }
}

#[tokio::test]
async fn deadlines_hold_in_a_second_runtime_after_the_leading_one_has_ended() {
    let guard = guard();
    let [first, second] = [Runtime::start(&guard), Runtime::start(&guard)];
    let _in_the_first = RawClient::connect(first.addr).await.unwrap();
    assert_served(&mut RawClient::connect(first.addr).await.unwrap()).await;
    let mut silent = RawClient::connect(second.addr).await.unwrap();
    first.shut_down().await;
    let (_, is_reset, after) = read_until_closed(&mut silent).await;
    // The standby takes over at once when the leader's runtime ends.
    assert!(is_reset && after < SECOND + SLACK, "{after:?}");
    all_gone(&guard).await;
    second.shut_down().await;
}
