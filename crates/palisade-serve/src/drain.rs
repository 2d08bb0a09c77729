//! Graceful shutdown: ends all connections of a server in a limited time.

use palisade_conn::ConnHandle;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{sleep, timeout},
};

/// The stage in which connections are accepted and served.
const STAGE_SERVING: u8 = 0;
/// The stage in which no connection and no new request is accepted, and requests in flight end.
const STAGE_DRAINING: u8 = 1;
/// The stage in which the connections that are left are cut.
const STAGE_OVER: u8 = 2;
/// The time after the drain in which the tasks of cut connections return, and in which upgraded
/// connections may end by themselves.
const CLOSE_GRACE: Duration = Duration::from_millis(500);
/// The interval at which upgraded connections are checked for their end.
const CLOSED_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How the connections that were open at the shutdown signal have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// The number of connections that ended by themselves.
    pub finished: usize,
    /// The number of connections that were cut at the end of the drain time.
    pub cut: usize,
    /// The number of upgraded connections that were closed half a second after all other
    /// connections had ended, for example those of a WebSocket.
    pub upgraded: usize,
}

/// The shutdown state that all connections of a server share.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    stage: AtomicU8,
    /// Notified when the stage changes.
    stage_changed: Arc<Notify>,
    /// The number of tokens that are not released.
    open: AtomicUsize,
    /// The number of connections that were cut.
    cut: AtomicUsize,
    /// The number of connections that were upgraded after the drain began.
    upgraded_while_draining: AtomicUsize,
    /// Notified when `open` becomes 0.
    all_ended: Notify,
    /// The upgraded connections. Some of them may be closed.
    upgraded: Mutex<Vec<ConnHandle>>,
}

/// Counts a connection as open until it is dropped, or until the connection is cut.
#[derive(Debug)]
pub(crate) struct DrainToken {
    drain: Arc<Drain>,
    is_released: AtomicBool,
}

pin_project! {
    /// Polls its inner future at each new stage too. Only one task may poll it: its waker is
    /// registered once for each stage.
    pub(crate) struct DrainAware<F> {
        #[pin]
        inner: F,
        #[pin]
        stage_changed: OwnedNotified,
        drain: Arc<Drain>,
        seen_stage: Option<u8>,
    }
}

// === Drain ===

impl Drain {
    /// Returns whether the shutdown has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.stage.load(Relaxed) != STAGE_SERVING
    }

    /// Returns whether the connections that are left have to be cut.
    pub(crate) fn is_over(&self) -> bool {
        self.stage.load(Relaxed) == STAGE_OVER
    }

    /// Ends all connections. They have `drain_time` to end by themselves, then they are cut.
    /// Upgraded connections are closed by `close`, which returns whether it closed one.
    pub(crate) async fn run(
        &self,
        drain_time: Duration,
        close: impl Fn(&ConnHandle) -> bool,
    ) -> Drained {
        let open_before = self.open.load(SeqCst);
        self.enter_stage(STAGE_DRAINING);
        if timeout(drain_time, self.wait_until_ended()).await.is_err() {
            self.enter_stage(STAGE_OVER);
        }
        let ended = async {
            self.wait_until_ended().await;
            let upgraded = self.upgraded.lock().clone();
            wait_until_closed(&upgraded).await;
        };
        // If the task of a connection is blocked, the connection does not end and counts as cut.
        let _ = timeout(CLOSE_GRACE, ended).await;
        let cut = self.cut.load(SeqCst) + self.open.load(SeqCst);
        let upgraded_while_draining = self.upgraded_while_draining.load(SeqCst);
        let finished = open_before
            .saturating_sub(cut)
            .saturating_sub(upgraded_while_draining);
        let upgraded = std::mem::take(&mut *self.upgraded.lock());
        let upgraded = upgraded.iter().filter(|conn| close(conn)).count();
        Drained {
            finished,
            cut,
            upgraded,
        }
    }

    fn enter_stage(&self, stage: u8) {
        self.stage.store(stage, SeqCst);
        self.stage_changed.notify_waiters();
    }

    /// Waits until all tokens are released.
    async fn wait_until_ended(&self) {
        loop {
            let mut all_ended = pin!(self.all_ended.notified());
            all_ended.as_mut().enable();
            if self.open.load(SeqCst) == 0 {
                return;
            }
            all_ended.await;
        }
    }
}

/// Waits until all `connections` are closed. Polls them, because nothing notifies of their end.
async fn wait_until_closed(connections: &[ConnHandle]) {
    while connections.iter().any(|conn| !conn.is_closed()) {
        sleep(CLOSED_POLL_INTERVAL).await;
    }
}

// === DrainToken ===

impl DrainToken {
    pub(crate) fn new(drain: &Arc<Drain>) -> Self {
        drain.open.fetch_add(1, SeqCst);
        Self {
            drain: drain.clone(),
            is_released: AtomicBool::new(false),
        }
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Counts the connection as cut, and releases the token. In this order: a connection that is
    /// neither open nor cut has ended by itself.
    pub(crate) fn release_as_cut(&self) {
        self.drain.cut.fetch_add(1, SeqCst);
        self.release();
    }

    fn release(&self) {
        if !self.is_released.swap(true, SeqCst) && self.drain.open.fetch_sub(1, SeqCst) == 1 {
            self.drain.all_ended.notify_waiters();
        }
    }

    /// Adds the connection to those that are upgraded: its socket has left the server's task.
    pub(crate) fn add_upgraded(&self, conn: &ConnHandle) {
        if self.drain.has_begun() {
            self.drain.upgraded_while_draining.fetch_add(1, SeqCst);
        }
        let mut upgraded = self.drain.upgraded.lock();
        if upgraded.len() == upgraded.capacity() {
            upgraded.retain(|conn| !conn.is_closed());
        }
        upgraded.push(conn.clone());
    }
}

impl Drop for DrainToken {
    fn drop(&mut self) {
        self.release();
    }
}

// === DrainAware ===

impl<F> DrainAware<F> {
    pub(crate) fn new(inner: F, drain: &Arc<Drain>) -> Self {
        let stage_changed = drain.stage_changed.clone().notified_owned();
        Self {
            inner,
            stage_changed,
            drain: drain.clone(),
            seen_stage: None,
        }
    }
}

impl<F: Future> Future for DrainAware<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        loop {
            let stage = this.drain.stage.load(SeqCst);
            if *this.seen_stage == Some(stage) {
                break;
            }
            // In this order: a stage that is entered in between is seen in the next round.
            this.stage_changed
                .set(this.drain.stage_changed.clone().notified_owned());
            let is_registered = this.stage_changed.as_mut().poll(cx).is_pending();
            *this.seen_stage = is_registered.then_some(stage);
        }
        this.inner.poll(cx)
    }
}
