//! Every order in which a socket and its guard can meet at the end of a connection, tried by loom.
//!
//! `RUSTFLAGS="--cfg palisade_loom" CARGO_TARGET_DIR=target/loom cargo test -p palisade-core
//! --test conn_loom` (one line).
#![cfg(palisade_loom)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

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
use palisade_core::{CloseDecision, CloseMode, ConnState, Reason};
use std::task::{Wake, Waker};

const IDLE: CloseDecision = CloseDecision {
    reason: Reason::Idle,
    ending: CloseMode::Graceful,
};
const STALL: CloseDecision = CloseDecision {
    reason: Reason::WriteStall,
    ending: CloseMode::Reset,
};

/// A task that is woken, and how often it was.
#[derive(Clone)]
struct Task(std::sync::Arc<Woken>);

struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Release);
    }
}

impl Task {
    fn new() -> Self {
        Self(std::sync::Arc::new(Woken(AtomicUsize::new(0))))
    }

    fn waker(&self) -> Waker {
        self.0.clone().into()
    }

    fn woken(&self) -> usize {
        self.0.0.load(Acquire)
    }
}

#[test]
fn whoever_parks_while_it_is_decided_sees_the_verdict_or_is_woken() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let (reader, writer) = (Task::new(), Task::new());
        let guard = thread::spawn({
            let state = state.clone();
            move || assert!(state.end(STALL))
        });
        let other_half = thread::spawn({
            let (state, writer) = (state.clone(), writer.clone());
            move || {
                state.park_writer(&writer.waker());
                state.verdict()
            }
        });
        state.park_reader(&reader.waker());
        let reader_saw = state.verdict();
        // Whoever runs because he was woken finds out why.
        if reader.woken() > 0 {
            assert_eq!(state.verdict(), Some(STALL));
        }
        let writer_saw = other_half.join().unwrap();
        guard.join().unwrap();
        for (saw, task) in [(reader_saw, reader), (writer_saw, writer)] {
            assert!(saw == Some(STALL) || task.woken() == 1);
        }
    });
}

#[test]
fn of_two_verdicts_the_first_stands_and_wakes_once() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        state.park_reader(&reader.waker());
        let other = thread::spawn({
            let state = state.clone();
            move || state.end(IDLE)
        });
        let stalled = state.end(STALL);
        let idle = other.join().unwrap();
        assert!(stalled != idle);
        assert_eq!(state.verdict(), Some(if stalled { STALL } else { IDLE }));
        assert_eq!(reader.woken(), 1);
    });
}

#[test]
fn a_verdict_comes_before_the_end_of_the_connection_or_not_at_all() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        state.park_reader(&reader.waker());
        let guard = thread::spawn({
            let state = state.clone();
            move || state.end(IDLE)
        });
        let ended_by = state.retire();
        assert_eq!(state.verdict(), None);
        let was_passed = guard.join().unwrap();
        // Whoever counts those who are to go counts each of them off again.
        assert_eq!(ended_by, was_passed.then_some(IDLE));
    });
}

#[test]
fn whoever_is_gone_is_neither_judged_nor_woken_any_more() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let (reader, writer) = (Task::new(), Task::new());
        state.park_reader(&reader.waker());
        state.park_writer(&writer.waker());
        let gone = Arc::new(AtomicUsize::new(0));
        let guard = thread::spawn({
            let (state, gone) = (state.clone(), gone.clone());
            move || {
                let is_gone = gone.load(Acquire) == 1;
                state.probe();
                is_gone
            }
        });
        state.retire();
        gone.store(1, Release);
        if guard.join().unwrap() {
            assert_eq!((reader.woken(), writer.woken()), (0, 0));
        }
        // Only what was under way when it ended may still arrive.
        let woken = (reader.woken(), writer.woken());
        state.probe();
        state.end_lingering();
        assert!(!state.end(IDLE) && state.verdict().is_none());
        assert_eq!((reader.woken(), writer.woken()), woken);
    });
}

#[test]
fn whoever_parks_while_lingering_ends_sees_it_or_is_woken() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        let guard = thread::spawn({
            let state = state.clone();
            move || state.end_lingering()
        });
        state.park_reader(&reader.waker());
        let saw = state.is_linger_over();
        if reader.woken() > 0 {
            assert!(state.is_linger_over());
        }
        guard.join().unwrap();
        assert!(saw || reader.woken() == 1);
    });
}

#[test]
fn whoever_is_asked_to_look_is_woken_and_looks_once() {
    loom::model(|| {
        let state = Arc::new(ConnState::default());
        let reader = Task::new();
        state.park_reader(&reader.waker());
        let guard = thread::spawn({
            let state = state.clone();
            move || state.probe()
        });
        let was_woken = reader.woken() > 0;
        let looked = state.take_probe();
        // Woken for it means that it can be seen.
        assert!(looked || !was_woken);
        guard.join().unwrap();
        assert_eq!(reader.woken(), 1);
        assert!(looked != state.take_probe());
        assert!(!state.take_probe());
    });
}
