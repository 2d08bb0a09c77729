//! Checks with loom every interleaving of a socket and its guard when a connection is closed.
//!
//! `RUSTFLAGS="--cfg palisade_loom" cargo test -p palisade-conn --lib --target-dir target/loom --
//! loom` (one line).

use super::{
    decision::{CloseDecision, CloseMode},
    state::ConnState,
};
use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{Acquire, Release},
        },
    },
    thread,
};
use palisade_core::Reason;
use std::task::{Wake, Waker};

const IDLE: CloseDecision = CloseDecision {
    reason: Reason::Idle,
    mode: CloseMode::Graceful,
};
const STALL: CloseDecision = CloseDecision {
    reason: Reason::WriteStall,
    mode: CloseMode::Reset,
};

/// A task that counts its wakes.
#[derive(Clone)]
struct Task(std::sync::Arc<WakeCounter>);

struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Release);
    }
}

impl Task {
    fn new() -> Self {
        Self(std::sync::Arc::new(WakeCounter(AtomicUsize::new(0))))
    }

    fn waker(&self) -> Waker {
        self.0.clone().into()
    }

    fn wakes(&self) -> usize {
        self.0.0.load(Acquire)
    }
}

#[test]
fn a_task_that_parks_during_the_decision_sees_it_or_is_woken() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let (reader, writer) = (Task::new(), Task::new());
        let guard = thread::spawn({
            let state = state.clone();
            move || assert!(state.request_close(STALL))
        });
        let other_half = thread::spawn({
            let (state, writer) = (state.clone(), writer.clone());
            move || {
                state.park_writer(&writer.waker());
                state.decision()
            }
        });
        state.park_reader(&reader.waker());
        let reader_saw = state.decision();
        // A task that was woken sees the decision.
        if reader.wakes() > 0 {
            assert_eq!(state.decision(), Some(STALL));
        }
        let writer_saw = other_half.join().unwrap();
        guard.join().unwrap();
        for (saw, task) in [(reader_saw, reader), (writer_saw, writer)] {
            assert!(saw == Some(STALL) || task.wakes() == 1);
        }
    });
}

#[test]
fn the_first_of_two_decisions_holds_and_wakes_once() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        state.park_reader(&reader.waker());
        let other = thread::spawn({
            let state = state.clone();
            move || state.request_close(IDLE)
        });
        let stalled = state.request_close(STALL);
        let idle = other.join().unwrap();
        assert!(stalled != idle);
        assert_eq!(state.decision(), Some(if stalled { STALL } else { IDLE }));
        assert_eq!(reader.wakes(), 1);
    });
}

#[test]
fn a_decision_comes_before_the_socket_is_dropped_or_not_at_all() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        state.park_reader(&reader.waker());
        let guard = thread::spawn({
            let state = state.clone();
            move || state.request_close(IDLE)
        });
        let decision = state.mark_closed();
        assert_eq!(state.decision(), None);
        let was_first = guard.join().unwrap();
        // The guard counts an accepted decision. `mark_closed` returns it to be uncounted.
        assert_eq!(decision, was_first.then_some(IDLE));
    });
}

#[test]
fn a_closed_connection_accepts_no_decision_and_is_not_woken() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let (reader, writer) = (Task::new(), Task::new());
        state.park_reader(&reader.waker());
        state.park_writer(&writer.waker());
        let closed = Arc::new(AtomicUsize::new(0));
        let guard = thread::spawn({
            let (state, closed) = (state.clone(), closed.clone());
            move || {
                let is_closed = closed.load(Acquire) == 1;
                state.probe();
                is_closed
            }
        });
        state.mark_closed();
        closed.store(1, Release);
        if guard.join().unwrap() {
            assert_eq!((reader.wakes(), writer.wakes()), (0, 0));
        }
        // Only a wake that was under way may still arrive.
        let wakes = (reader.wakes(), writer.wakes());
        state.probe();
        state.end_lingering();
        assert!(!state.request_close(IDLE) && state.decision().is_none());
        assert_eq!((reader.wakes(), writer.wakes()), wakes);
    });
}

#[test]
fn a_task_that_parks_while_the_lingering_ends_sees_it_or_is_woken() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        let guard = thread::spawn({
            let state = state.clone();
            move || state.end_lingering()
        });
        state.park_reader(&reader.waker());
        let saw = state.is_linger_over();
        if reader.wakes() > 0 {
            assert!(state.is_linger_over());
        }
        guard.join().unwrap();
        assert!(saw || reader.wakes() == 1);
    });
}

#[test]
fn a_probed_socket_is_woken_and_probed_once() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        state.park_reader(&reader.waker());
        let guard = thread::spawn({
            let state = state.clone();
            move || state.probe()
        });
        let was_woken = reader.wakes() > 0;
        let probed = state.take_probe();
        // A socket that was woken sees the probe.
        assert!(probed || !was_woken);
        guard.join().unwrap();
        assert_eq!(reader.wakes(), 1);
        assert!(probed != state.take_probe());
        assert!(!state.take_probe());
    });
}
