//! The task that asks the store.

use crate::{
    QuotaStore,
    machine::{Flush, Micros, Reply, State},
    shared::Shared,
    store::{Answers, Batch, StoreError},
};
use palisade_core::Event;
use std::{
    error::Error,
    future::{pending, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Poll, Waker},
    time::Duration,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, timeout},
};

/// Asks a store for all accounts of a node.
pub(crate) struct Driver<S> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Arc<S>,
    /// The name of the fleet.
    pub(crate) name: Arc<str>,
    /// The number of this node.
    pub(crate) node: u64,
}

/// A call that has ended.
struct Ended {
    call: u64,
    shard: u32,
    answer: Result<Answers, StoreError>,
    is_too_late: bool,
    took: Duration,
}

/// The longest time until an answer, two flush intervals. Beyond it the store counts as failed.
const ANSWER_WITHIN: Duration = Duration::from_millis(40);

/// The time in which what is left is reported at the end.
pub(crate) const REPORT_WITHIN: Duration = Duration::from_millis(20);

// Tells the machine that no call will be made any more, when the task ends in whatever way: also
// with its runtime, before it has run.
impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.shared.end();
        self.shared.ended.send_replace(true);
    }
}

impl<S: QuotaStore> Driver<S> {
    pub(crate) async fn run(self) {
        let mut calls = JoinSet::new();
        while !self.shared.is_stopping.load(Relaxed) {
            let wake_at = self.start_due(&mut calls);
            if let Some(ended) = self.next_event(wake_at, &mut calls).await {
                self.end_call(ended);
            }
        }
        // While requests go on there is always something left.
        let _ = timeout(REPORT_WITHIN, self.report_all(&mut calls)).await;
    }

    /// Waits for the end of a call, which it returns, for a change, or until `wake_at`.
    async fn next_event(
        &self,
        wake_at: Option<Micros>,
        calls: &mut JoinSet<Ended>,
    ) -> Option<Result<Ended, JoinError>> {
        let mut changed = pin!(self.shared.changed.notified());
        let mut sleep = pin!(self.sleep_until(wake_at));
        // Without the macro `select`, which would be another feature of tokio.
        poll_fn(|cx| match calls.poll_join_next(cx) {
            Poll::Ready(Some(ended)) => Poll::Ready(Some(ended)),
            _ if changed.as_mut().poll(cx).is_ready() => Poll::Ready(None),
            _ => sleep.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Starts the calls that are due. Returns when the next one is.
    fn start_due(&self, calls: &mut JoinSet<Ended>) -> Option<Micros> {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        while let Some(flush) = state.machine.flush(now) {
            self.start(flush, calls);
        }
        state.machine.wake_at()
    }

    fn start(&self, flush: Flush, calls: &mut JoinSet<Ended>) {
        let store = Arc::clone(&self.store);
        let batch = Batch {
            fleet: Arc::clone(&self.name),
            shard: flush.shard,
            asks: flush.asks,
            node: flush.counts_nodes.then_some(self.node),
        };
        calls.spawn(async move {
            let started = Instant::now();
            let answer = timeout(ANSWER_WITHIN, store.call(batch)).await;
            let is_too_late = answer.is_err();
            Ended {
                call: flush.call,
                shard: flush.shard,
                answer: answer.unwrap_or_else(|late| Err(StoreError::unanswered(late))),
                is_too_late,
                took: started.elapsed(),
            }
        });
    }

    /// Continues after a call. Returns whether it was answered.
    fn end_call(&self, ended: Result<Ended, JoinError>) -> bool {
        let shared = &*self.shared;
        let now = shared.now();
        let mut state = shared.state.lock();
        let before = state.machine.state();
        let (wakers, cause) = match ended {
            Ok(ended) => {
                let (reply, cause) = match ended.answer {
                    Ok(answers) => {
                        let micros = u64::try_from(ended.took.as_micros());
                        shared.round_trip.store(micros.unwrap_or(u64::MAX), Relaxed);
                        let skew = self.store.clock_skew().map(|skew| skew.as_millis() as u64);
                        shared.skew.store(skew.unwrap_or(0), Relaxed);
                        (Reply::Answers(answers), None)
                    }
                    Err(error) if ended.is_too_late => (Reply::TimedOut, Some(error)),
                    Err(error) if error.may_be_charged() => (Reply::Failed, Some(error)),
                    Err(error) => (Reply::Unsent, Some(error)),
                };
                (state.machine.reply(ended.call, reply, now), cause)
            }
            // The store has panicked. Which call it was is unknown.
            Err(panic) => {
                let cause = StoreError::unanswered(panic);
                (state.machine.fail_all(now), Some(cause))
            }
        };
        let after = state.machine.state();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        let is_alone = after != State::Closed;
        if is_alone != (before != State::Closed) {
            let cause = cause.as_ref().map(|cause| cause as &(dyn Error + 'static));
            shared
                .recorder
                .record(|| Event::fleet_changed(is_alone, cause));
        }
        cause.is_none()
    }

    async fn sleep_until(&self, at: Option<Micros>) {
        match at {
            Some(at) => {
                let left = at.saturating_sub(self.shared.now());
                tokio::time::sleep(Duration::from_micros(left)).await;
            }
            None => pending().await,
        }
    }

    /// Reports what is left, in as many calls as are needed, to each part of the store until a call
    /// of it fails.
    async fn report_all(&self, calls: &mut JoinSet<Ended>) {
        let mut failed = 0u32;
        loop {
            let now = self.shared.now();
            let is_asked = |shard: usize| failed & 1 << shard == 0;
            let batch = self.shared.state.lock().machine.take_batch(now, is_asked);
            match batch {
                Some(flush) => self.start(flush, calls),
                None => {
                    let Some(ended) = calls.join_next().await else {
                        return;
                    };
                    // All of them, if the store has panicked.
                    let shard = ended.as_ref().map_or(u32::MAX, |it| 1 << it.shard);
                    if !self.end_call(ended) {
                        failed |= shard;
                    }
                }
            }
        }
    }
}
