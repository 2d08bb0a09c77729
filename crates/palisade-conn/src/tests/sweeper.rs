//! The sweeper task, and the runtimes that it moves between.

use super::*;
use crate::connection::ConnHandle;
use std::{sync::mpsc, thread};
use tokio::{
    runtime,
    task::yield_now,
    time::{sleep, timeout},
};

/// A current-thread runtime on a thread of its own that runs jobs.
struct RuntimeThread {
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
    thread: thread::JoinHandle<()>,
}

type Job = Box<dyn FnOnce() + Send>;

impl RuntimeThread {
    fn new() -> Self {
        let (jobs, mut queue) = tokio::sync::mpsc::unbounded_channel::<Job>();
        let thread = thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_time().build();
            runtime.unwrap().block_on(async {
                while let Some(job) = queue.recv().await {
                    job();
                }
            });
        });
        Self { jobs, thread }
    }

    /// Runs `job` on the thread, and returns a receiver of its result.
    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let (sender, result) = mpsc::channel();
        let job = move || sender.send(job()).unwrap_or_default();
        self.jobs
            .send(Box::new(job))
            .unwrap_or_else(|_| panic!("the runtime has ended"));
        result
    }
}

/// Connects a silent client in `runtime`, which awaits its request in a task.
fn connect_silent(runtime: &RuntimeThread, guard: &ConnGuard) -> ConnHandle {
    let guard = guard.clone();
    let connect = move || {
        let mut pair = connect_from(&guard, 2).unwrap();
        let conn = pair.server.conn().clone();
        tokio::spawn(async move { read_until_closed(&mut pair.server).await });
        conn
    };
    runtime.run(connect).recv().unwrap()
}

/// Connects a silent client in `runtime`. Returns whether its connection is closed within 10 s of
/// real time.
fn closes_silent_connection(runtime: &RuntimeThread, guard: &ConnGuard) -> bool {
    let conn = connect_silent(runtime, guard);
    let started = Instant::now();
    while !conn.is_closed() && started.elapsed() < 10 * SECOND {
        thread::park_timeout(TICK / 10);
    }
    started.elapsed() < 10 * SECOND
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_ends_with_the_guard_and_its_last_connection() {
    let tasks = || runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 0);
    let guard = ConnGuard::default();
    let pair = connect(&guard);
    assert_eq!(tasks(), 2); // The sweeper, and the probe of the runtime's load.
    drop(guard);
    sleep(SECOND).await;
    assert_eq!(tasks(), 2); // The connection still has timeouts.
    drop(pair);
    // The thread that looks at the load may need a moment, of real time.
    let mut turns = 0;
    while tasks() > 0 && turns < 10_000 {
        thread::park_timeout(Duration::from_millis(1));
        yield_now().await;
        turns += 1;
    }
    assert_eq!(tasks(), 0);
}

#[test]
fn a_guard_outlives_its_runtime_and_sweeps_in_the_next_one() {
    let guard = ConnGuard::builder()
        .first_request_timeout(SECOND)
        .build()
        .unwrap();
    for _ in 0..2 {
        let runtime = runtime::Builder::new_current_thread();
        let runtime = { runtime }
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (after, result) = read_until_closed(&mut connect(&guard).server).await;
            assert!(after <= SECOND + 2 * TICK && result.is_err(), "{after:?}");
        });
    }
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_there_is_no_timer() {
    let guard = ConnGuard::default();
    drop(connect(&guard));
    sleep(SECOND).await;
    // Paused time advances to the next timer. No timer but this one is left.
    let started = Instant::now();
    timeout(1000 * SECOND, std::future::pending::<()>())
        .await
        .unwrap_err();
    assert_eq!(started.elapsed(), 1000 * SECOND);
    let mut pair = connect(&guard);
    assert_eq!(read_until_closed(&mut pair.server).await.0, 10 * SECOND);
}

#[test]
fn another_runtime_takes_over_when_the_sweeping_one_is_blocked_or_ends() {
    let builder = ConnGuard::builder()
        .first_request_timeout(SECOND / 2)
        .sweep_interval(SECOND / 20);
    let (guard, _) = tracking_guard(builder);
    let (first, second) = (RuntimeThread::new(), RuntimeThread::new());
    let before = connect_silent(&first, &guard);
    assert!(closes_silent_connection(&second, &guard));
    // Up to now the first runtime sweeps. From here on a handler blocks it.
    let (release, blocked) = mpsc::channel::<()>();
    let is_blocked = first.run(move || blocked.recv());
    assert!(closes_silent_connection(&second, &guard));
    assert!(before.is_closed());
    // When the first runtime continues, it is on standby.
    release.send(()).unwrap();
    is_blocked.recv().unwrap().unwrap();
    assert!(closes_silent_connection(&first, &guard));
    let shared = guard.clone();
    let last = first
        .run(move || connect_from(&shared, 3).unwrap())
        .recv()
        .unwrap();
    // Whichever runtime sweeps now, the first one does after the second one has ended.
    drop(second.jobs);
    second.thread.join().unwrap();
    assert!(closes_silent_connection(&first, &guard));
    first.run(move || drop(last)).recv().unwrap();
    assert_nothing_left(&guard);
    drop(first.jobs);
    first.thread.join().unwrap();
    assert!(guard.shared().sweeper.is_stopped());
}
