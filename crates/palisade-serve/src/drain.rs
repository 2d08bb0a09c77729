//! The end of a server.

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

const SERVING: u8 = 0;
/// Nobody comes in, everybody is told to go.
const DRAINING: u8 = 1;
/// Whoever is left is cut off.
const OVER: u8 = 2;
/// How long those have to be gone, or those who were upgraded to say good-bye.
const LAST: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(10);

/// What became of the connections that were there when the server was told to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Those that came to their own end.
    pub finished: usize,
    /// Those that were cut off at the deadline.
    pub cut: usize,
    /// Those that had become something else than HTTP, a WebSocket among them, and were ended when
    /// everybody else was gone and half a second more had passed.
    pub upgraded: usize,
}

/// What the connections of one server share of its end.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    stage: AtomicU8,
    /// Tells everybody of a new stage.
    changed: Arc<Notify>,
    open: AtomicUsize,
    cut: AtomicUsize,
    /// Upgraded since everybody was told to go.
    turned: AtomicUsize,
    empty: Notify,
    upgraded: Mutex<Vec<ConnHandle>>,
}

/// One connection of a server that can end.
#[derive(Debug)]
pub(crate) struct Open {
    drain: Arc<Drain>,
    /// It counts no more among those that are open.
    has_left: AtomicBool,
}

pin_project! {
    /// Polls what is in it at each new stage, too. To be polled by one task only.
    pub(crate) struct Attentive<F> {
        #[pin]
        inner: F,
        #[pin]
        changed: OwnedNotified,
        drain: Arc<Drain>,
        seen: Option<u8>,
    }
}

// === Drain ===

impl Drain {
    pub(crate) fn has_begun(&self) -> bool {
        self.stage.load(Relaxed) != SERVING
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage.load(Relaxed) == OVER
    }

    /// Everybody is told to go, and has `deadline` for it. `end` ends what was upgraded.
    pub(crate) async fn run(
        &self,
        deadline: Duration,
        end: impl Fn(&ConnHandle) -> bool,
    ) -> Drained {
        let begun_with = self.open.load(SeqCst);
        self.enter(DRAINING);
        if timeout(deadline, self.emptied()).await.is_err() {
            self.enter(OVER);
        }
        let last = async {
            self.emptied().await;
            let upgraded = self.upgraded.lock().clone();
            gone(&upgraded).await;
        };
        // Whatever does not even look up from its work is left behind.
        let _ = timeout(LAST, last).await;
        let cut = self.cut.load(SeqCst) + self.open.load(SeqCst);
        let elsewhere = self.turned.load(SeqCst);
        let finished = begun_with.saturating_sub(cut).saturating_sub(elsewhere);
        let upgraded = std::mem::take(&mut *self.upgraded.lock());
        let upgraded = upgraded.iter().filter(|conn| end(conn)).count();
        Drained {
            finished,
            cut,
            upgraded,
        }
    }

    fn enter(&self, stage: u8) {
        self.stage.store(stage, SeqCst);
        self.changed.notify_waiters();
    }

    async fn emptied(&self) {
        loop {
            let mut empty = pin!(self.empty.notified());
            empty.as_mut().enable();
            if self.open.load(SeqCst) == 0 {
                return;
            }
            empty.await;
        }
    }
}

/// Waits until nobody is left. Nobody tells, so it looks.
async fn gone(connections: &[ConnHandle]) {
    while connections.iter().any(|conn| !conn.is_closed()) {
        sleep(LOOK).await;
    }
}

// === Open ===

impl Open {
    pub(crate) fn new(drain: &Arc<Drain>) -> Self {
        drain.open.fetch_add(1, SeqCst);
        Self {
            drain: drain.clone(),
            has_left: AtomicBool::new(false),
        }
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// It was cut off. Counted in this order: whoever is neither open nor cut came to his own end.
    pub(crate) fn is_cut(&self) {
        self.drain.cut.fetch_add(1, SeqCst);
        self.leave();
    }

    fn leave(&self) {
        if !self.has_left.swap(true, SeqCst) && self.drain.open.fetch_sub(1, SeqCst) == 1 {
            self.drain.empty.notify_waiters();
        }
    }

    /// Somebody else has the socket of `conn` now.
    pub(crate) fn is_upgraded(&self, conn: &ConnHandle) {
        if self.drain.has_begun() {
            self.drain.turned.fetch_add(1, SeqCst);
        }
        let mut upgraded = self.drain.upgraded.lock();
        if upgraded.len() == upgraded.capacity() {
            upgraded.retain(|conn| !conn.is_closed());
        }
        upgraded.push(conn.clone());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.leave();
    }
}

// === Attentive ===

impl<F> Attentive<F> {
    pub(crate) fn new(inner: F, drain: &Arc<Drain>) -> Self {
        let changed = drain.changed.clone().notified_owned();
        Self {
            inner,
            changed,
            drain: drain.clone(),
            seen: None,
        }
    }
}

impl<F: Future> Future for Attentive<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        loop {
            let stage = this.drain.stage.load(SeqCst);
            if *this.seen == Some(stage) {
                break;
            }
            // In this order: a stage that is entered in between is seen in the next round.
            this.changed
                .set(this.drain.changed.clone().notified_owned());
            let is_listening = this.changed.as_mut().poll(cx).is_pending();
            *this.seen = is_listening.then_some(stage);
        }
        this.inner.poll(cx)
    }
}
