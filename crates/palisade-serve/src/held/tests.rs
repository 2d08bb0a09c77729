//! Tests of what a connection holds, and of responses that wait for room.

use super::*;
use crate::{
    streams::ServedBody,
    stub::{self, Stub},
};
use futures_util::FutureExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use palisade_conn::{Budget, ConnGuard, GuardedIo};
use palisade_core::{Charge, Mode};
use std::{convert::Infallible, future::poll_fn};
use tokio::task::JoinHandle;

const KIB: usize = 1 << 10;

/// A connection of a guard with a budget of 256 KiB, of which responses have half.
struct Conn {
    budget: Budget,
    held: HeldBytes,
    _io: GuardedIo<Stub>,
}

impl Conn {
    fn new(mode: Mode) -> Self {
        let budget = Budget::new(256 << 10).unwrap();
        let guard = ConnGuard::builder().mode(mode).byte_budget(budget.clone());
        Self::of(&guard.build().unwrap(), budget)
    }

    fn of(guard: &ConnGuard, budget: Budget) -> Self {
        let io = stub::connect(guard, [127, 0, 0, 1]);
        let held = HeldBytes::new(io.conn());
        Self {
            budget,
            held,
            _io: io,
        }
    }

    fn room(&self) -> Room {
        Room::new(self.held.clone())
    }

    /// Returns a frame that the connection holds.
    fn hold(&self, kib: usize) -> Bytes {
        self.room().count(Bytes::from(vec![b'x'; kib * KIB]))
    }

    fn held_bytes(&self) -> usize {
        self.held.0.bytes.load(SeqCst)
    }

    /// Returns a task that waits for room, and then holds a frame of so many KiB.
    fn spawn(&self, kib: usize) -> JoinHandle<Bytes> {
        let mut room = self.room();
        tokio::spawn(async move {
            let was_waiting = poll_fn(|cx| {
                let was_waiting = room.is_waiting();
                room.poll_room(cx).map(|()| was_waiting)
            });
            let was_waiting = was_waiting.await;
            let frame = room.count(Bytes::from(vec![b'x'; kib * KIB]));
            if was_waiting {
                room.pass_on();
            }
            frame
        })
    }

    /// Charges the budget for all that is left.
    fn fill(&self) -> Charge {
        let charge = self.budget.charge(None);
        charge
            .take(self.budget.limit() - self.budget.held())
            .unwrap();
        charge
    }
}

/// Lets all other tasks run.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Returns what `task` has held, or ends it if it waits.
async fn finished(task: JoinHandle<Bytes>) -> Option<Bytes> {
    settle().await;
    task.abort();
    task.await.ok()
}

#[tokio::test(start_paused = true)]
async fn a_frame_is_held_until_its_last_piece_is_dropped() {
    let conn = Conn::new(Mode::Enforce);
    let mut frame = conn.hold(48);
    let first = frame.split_to(KIB);
    drop(frame);
    assert_eq!(conn.held_bytes(), 48 * KIB + FRAME_OVERHEAD_BYTES);
    assert_eq!(conn.budget.held(), 0); // The first 64 KiB are free.
    drop(first);
    assert_eq!(conn.held_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_beyond_the_free_bytes_is_charged() {
    let conn = Conn::new(Mode::Enforce);
    let frames = [conn.hold(48), conn.hold(48)];
    assert_eq!(conn.budget.held(), (48 * KIB + FRAME_OVERHEAD_BYTES) as u64);
    let connection = conn.held.0.conn.clone();
    assert_eq!(u64::from(connection.charged_bytes()), conn.budget.held());
    drop(frames);
    assert_eq!((conn.held_bytes(), conn.budget.held()), (0, 0));
    assert_eq!(connection.charged_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn short_responses_are_not_counted_and_endless_tiny_frames_are() {
    let conn = Conn::new(Mode::Enforce);
    let mut room = conn.room();
    let short = room.count(Bytes::from_static(&[b'x'; 700]));
    assert_eq!(conn.held_bytes(), 0);
    let tiny: Vec<_> = (0..300)
        .map(|_| room.count(Bytes::from_static(b"x")))
        .collect();
    assert!(conn.held_bytes() > 300 * FRAME_OVERHEAD_BYTES);
    drop((short, tiny));
    assert_eq!((conn.held_bytes(), conn.budget.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn responses_leave_half_of_the_budget_to_request_bodies() {
    let conn = Conn::new(Mode::Enforce);
    let mut frames = Vec::new();
    while let Some(frame) = finished(conn.spawn(16)).await {
        frames.push(frame);
    }
    let held = conn.budget.held();
    // One client may not have all of the half.
    assert!((64 << 10..=128 << 10).contains(&held), "{held}");
}

#[tokio::test(start_paused = true)]
async fn frames_that_are_larger_than_the_room_that_is_left_use_it_up() {
    let conn = Conn::new(Mode::Enforce);
    let mut frames = Vec::new();
    while let Some(frame) = finished(conn.spawn(100)).await {
        frames.push(frame);
        assert!(frames.len() < 10, "{}", conn.budget.held());
    }
    assert!(conn.budget.held() <= 128 << 10);
    drop(frames);
    assert_eq!((conn.held_bytes(), conn.budget.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn responses_without_room_go_on_one_by_one_in_the_order_of_their_waits() {
    let conn = Conn::new(Mode::Enforce);
    let _uploads = conn.fill();
    let mut held = conn.hold(64);
    let mut tasks: Vec<_> = (0..5).map(|_| conn.spawn(64)).collect();
    while !tasks.is_empty() {
        settle().await;
        assert!(tasks.iter().all(|task| !task.is_finished()));
        drop(held);
        held = finished(tasks.remove(0)).await.expect("it goes on");
    }
    drop(held);
    assert_eq!(conn.held_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn room_for_several_responses_is_passed_on_from_one_to_the_next() {
    let conn = Conn::new(Mode::Enforce);
    let _uploads = conn.fill();
    let held = conn.hold(64);
    let tasks: Vec<_> = (0..5).map(|_| conn.spawn(2)).collect();
    settle().await;
    let started = Instant::now();
    drop(held); // One notification for five.
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_dropped_while_it_waits_does_not_keep_the_room_from_the_next() {
    let conn = Conn::new(Mode::Enforce);
    let _uploads = conn.fill();
    let held = conn.hold(64);
    let (dropped, next) = (conn.spawn(2), conn.spawn(2));
    settle().await;
    let started = Instant::now();
    drop(held);
    dropped.abort(); // Notified, and not polled since.
    next.await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(dropped.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_response_goes_on_when_others_have_made_room_in_the_budget() {
    let conn = Conn::new(Mode::Enforce);
    let uploads = conn.fill();
    // This may wait for a closed window, as long as that is allowed.
    let _held = conn.hold(64);
    let task = conn.spawn(16);
    sleep(10 * CHECK_INTERVAL).await;
    assert!(!task.is_finished());
    let started = Instant::now();
    drop(uploads);
    task.await.unwrap();
    assert!(started.elapsed() <= CHECK_INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_holds_little_never_waits() {
    let conn = Conn::new(Mode::Enforce);
    let _uploads = conn.fill();
    for _ in 0..100 {
        let held = conn.hold(32);
        assert!(finished(conn.spawn(1000)).await.is_some());
        drop(held);
    }
    assert_eq!(conn.held_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_if_the_guard_enforces_no_limits_or_has_no_budget() {
    let budget = Budget::new(256 << 10).unwrap();
    let unlimited = ConnGuard::builder().byte_budget(None).build().unwrap();
    for conn in [
        Conn::new(Mode::Shadow),
        Conn::new(Mode::Off),
        Conn::of(&unlimited, budget),
    ] {
        let uploads = conn.fill();
        let held = conn.hold(1000);
        assert!(finished(conn.spawn(1000)).await.is_some());
        drop((held, uploads));
        assert_eq!((conn.held_bytes(), conn.budget.held()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_is_not_polled_while_it_waits_for_room() {
    let conn = Conn::new(Mode::Enforce);
    let _uploads = conn.fill();
    let made = AtomicUsize::new(0);
    let frames = futures_util::stream::repeat_with(|| {
        made.fetch_add(1, SeqCst);
        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 16 * KIB])))
    });
    let mut body = ServedBody::new(StreamBody::new(frames), Some(conn.room()));
    let mut held = Vec::new();
    while let Some(frame) = body.frame().now_or_never() {
        held.push(frame.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!((made.load(SeqCst), held.len()), (4, 4));
    sleep(10 * CHECK_INTERVAL).await;
    assert!(body.frame().now_or_never().is_none());
    assert_eq!(made.load(SeqCst), 4);
    held.pop();
    assert!(body.frame().now_or_never().is_some());
    assert_eq!(made.load(SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn frames_that_make_no_room_change_nothing_in_the_order_of_the_waits() {
    let conn = Conn::new(Mode::Enforce);
    // The first three are free, and the others charged.
    let mut frames: Vec<_> = (0..5).map(|_| conn.hold(20)).collect();
    let fill = conn.fill();
    let first = conn.spawn(64);
    settle().await;
    let second = conn.spawn(2);
    settle().await;
    drop(frames.remove(0)); // More than 64 KiB are left.
    settle().await;
    assert!(!first.is_finished() && !second.is_finished());
    drop(frames.pop());
    settle().await;
    assert!(first.is_finished() && !second.is_finished());
    drop((fill, first.await));
    settle().await;
    assert!(second.is_finished());
}
