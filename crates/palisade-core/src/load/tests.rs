use super::*;
use crate::Metrics;
use probe::STALL_DELAY;
use std::{
    future::poll_fn,
    sync::mpsc::{Receiver, Sender, channel},
    task::Poll,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::{Instant, sleep},
};

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits until `is_true`, on the thread of the test.
fn wait_until(is_true: impl Fn() -> bool) {
    let start = probe::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE);
        thread::park_timeout(Duration::from_millis(5));
    }
}

fn watched(load: &RuntimeLoad) -> usize {
    load.0.control.lock().runtimes.len()
}

/// Metrics that pass the delay of each stall on.
struct Stalls(Mutex<Sender<Duration>>);

impl Metrics for Stalls {
    fn record(&self, event: &Event<'_>) {
        if let Event::RuntimeStalled { delay } = event {
            let _ = self.0.lock().send(*delay);
        }
    }
}

fn recorded(load: &RuntimeLoad) -> Receiver<Duration> {
    let (sender, stalls) = channel();
    load.record_to(&Recorder::from(Stalls(Mutex::new(sender))));
    stalls
}

#[test]
fn a_runtime_that_waits_is_not_woken() {
    let runtime = current_thread();
    let load = RuntimeLoad::default();
    load.watch(runtime.handle());
    runtime.block_on(async {
        yield_now().await;
        let parked = || runtime.handle().metrics().worker_park_count(0);
        let before = parked();
        // A second without timers, which wake the runtime by themselves. The thread looks ten times
        // while requests ask.
        let (sender, second) = tokio::sync::oneshot::channel();
        let asking = load.clone();
        thread::spawn(move || {
            let start = probe::now();
            while start.elapsed() < Duration::from_secs(1) {
                asking.ask();
                thread::park_timeout(Duration::from_millis(20));
            }
            let _ = sender.send(());
        });
        second.await.unwrap();
        // Once, and again if a look met the moment before it.
        let parked = parked() - before;
        assert!(parked <= 3, "{parked}");
    });
    assert_eq!((load.delay(), load.share()), (Duration::ZERO, 1.0));
}

#[test]
fn a_blocked_runtime_is_reported_while_it_lasts_and_refuses_nothing() {
    let runtime = current_thread();
    let load = RuntimeLoad::default();
    let stalls = recorded(&load);
    load.watch(runtime.handle());
    let (release, released) = channel::<()>();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let blocked = thread::spawn(move || {
        runtime.block_on(async move {
            let _ = released.recv();
            let _ = finished.await;
        });
    });
    let first = stalls.recv_timeout(PATIENCE).unwrap();
    let second = stalls.recv_timeout(PATIENCE).unwrap();
    assert!(
        first >= STALL_DELAY && second >= 2 * first,
        "{first:?} {second:?}"
    );
    assert_eq!(load.share(), 1.0);
    wait_until(|| load.delay() >= STALL_DELAY);
    drop(release);
    wait_until(|| load.delay() == Duration::ZERO);
    drop(finish);
    blocked.join().unwrap();
}

#[test]
fn a_runtime_is_watched_once_and_until_it_ends() {
    let load = RuntimeLoad::default();
    let (first, second) = (current_thread(), current_thread());
    for runtime in [&first, &second, &first, &second] {
        load.watch(runtime.handle());
    }
    assert_eq!(watched(&load), 2);
    drop(first);
    wait_until(|| watched(&load) == 1);
    drop(second);
    wait_until(|| watched(&load) == 0);
    // One that has ended already is forgotten as well.
    let ended = current_thread();
    let handle = ended.handle().clone();
    drop(ended);
    load.watch(&handle);
    wait_until(|| watched(&load) == 0);
}

#[test]
fn the_task_ends_with_the_last_clone() {
    let runtime = current_thread();
    let load = RuntimeLoad::default();
    load.watch(runtime.handle());
    let tasks = || runtime.handle().metrics().num_alive_tasks();
    drop(load.clone());
    runtime.block_on(yield_now());
    assert_eq!(tasks(), 1);
    drop(load);
    wait_until(|| {
        runtime.block_on(yield_now());
        tasks() == 0
    });
}

/// Lets the task run again after all that waits in the run queue. `yield_now` would wait for the
/// driver.
async fn requeue() {
    let mut is_queued = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_queued, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Keeps the runtime busy with tasks that ask for the share, until `load` is overloaded.
async fn work_until_overloaded(load: &RuntimeLoad) {
    let start = probe::now();
    let tasks = (0..400).map(|_| {
        let load = load.clone();
        tokio::spawn(async move {
            while load.share() == 1.0 && start.elapsed() < PATIENCE {
                load.ask();
                let turn = probe::now();
                while turn.elapsed() < Duration::from_millis(3) {}
                requeue().await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert!(load.share() < 1.0, "{load:?}");
}

fn assert_that_overload_comes_and_goes(runtime: &Runtime) {
    let load = RuntimeLoad::default();
    load.watch(runtime.handle());
    runtime.block_on(async {
        work_until_overloaded(&load).await;
        let start = probe::now();
        while load.share() < 1.0 {
            assert!(start.elapsed() < PATIENCE, "{load:?}");
            load.ask();
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(load.delay() < OVERLOAD_DELAY);
}

#[test]
fn tasks_that_wait_too_long_for_a_second_lower_the_share() {
    assert_that_overload_comes_and_goes(&current_thread());
}

#[test]
fn a_runtime_that_ends_while_it_is_overloaded_leaves_a_whole_share() {
    let load = RuntimeLoad::default();
    let overloaded = current_thread();
    load.watch(overloaded.handle());
    overloaded.block_on(work_until_overloaded(&load));
    overloaded.shutdown_background();
    wait_until(|| load.share() == 1.0 && load.delay() == Duration::ZERO);
    assert_eq!(watched(&load), 0);
    // The next one is measured anew.
    let next = current_thread();
    load.watch(next.handle());
    next.block_on(async {
        for _ in 0..50 {
            load.ask();
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(load.share(), 1.0);
}

#[test]
fn tasks_that_wait_too_long_for_two_workers_lower_the_share() {
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    assert_that_overload_comes_and_goes(&runtime);
}

#[test]
fn of_two_runtimes_the_one_that_waits_decides() {
    let (waiting, blocked) = (current_thread(), current_thread());
    let load = RuntimeLoad::default();
    load.watch(waiting.handle());
    load.watch(blocked.handle()); // Nothing drives it.
    waiting.block_on(async {
        for _ in 0..40 {
            load.ask();
            sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(load.share(), 1.0);
    wait_until(|| load.delay() < OVERLOAD_DELAY);
}

#[test]
fn a_worker_that_blocks_in_place_leaves_its_work_to_another_and_refuses_nothing() {
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let load = RuntimeLoad::default();
    load.watch(runtime.handle());
    let blocks = runtime.spawn(async {
        tokio::task::block_in_place(|| thread::park_timeout(Duration::from_secs(2)));
    });
    let asks = load.clone();
    runtime
        .block_on(runtime.spawn(async move {
            while !blocks.is_finished() {
                assert_eq!(asks.share(), 1.0);
                asks.ask();
                sleep(Duration::from_millis(10)).await;
            }
        }))
        .unwrap();
    wait_until(|| load.delay() < OVERLOAD_DELAY);
    assert_eq!(load.share(), 1.0);
}

#[test]
fn handlers_that_wait_event_streams_and_a_full_blocking_pool_refuse_nothing() {
    let mut runtime = Builder::new_multi_thread();
    let runtime = { runtime.worker_threads(2) }
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let load = RuntimeLoad::default();
    load.watch(runtime.handle());
    let _entered = runtime.enter();
    let time = Duration::from_secs(3);
    for _ in 0..1000 {
        tokio::spawn(sleep(time));
    }
    for number in 0..500 {
        tokio::spawn(async move {
            let mut events = tokio::time::interval(Duration::from_millis(500 + number));
            loop {
                events.tick().await;
            }
        });
    }
    // Two work, and eight wait for their turn.
    let blocked: Vec<_> = (0..10)
        .map(|_| tokio::task::spawn_blocking(move || thread::park_timeout(time / 5)))
        .collect();
    let start = probe::now();
    while start.elapsed() < time {
        load.ask();
        assert_eq!(load.share(), 1.0, "{load:?}");
        thread::park_timeout(Duration::from_millis(10));
    }
    assert!(blocked.iter().any(tokio::task::JoinHandle::is_finished));
    wait_until(|| load.delay() < OVERLOAD_DELAY);
    assert_eq!(load.share(), 1.0);
}

#[test]
fn a_paused_clock_advances_by_no_look() {
    let mut paused = Builder::new_current_thread();
    let runtime = paused.enable_all().start_paused(true).build().unwrap();
    let load = RuntimeLoad::default();
    load.watch(runtime.handle());
    runtime.block_on(async {
        let start = Instant::now();
        let looks = probe::now();
        while looks.elapsed() < Duration::from_millis(600) {
            load.ask();
            yield_now().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3600));
    });
    assert_eq!(load.share(), 1.0);
}

#[test]
fn a_reported_load_watches_nothing() {
    let runtime = current_thread();
    let load = RuntimeLoad::reported();
    load.watch(runtime.handle());
    assert_eq!(
        (watched(&load), runtime.handle().metrics().num_alive_tasks()),
        (0, 0)
    );
}

#[test]
fn a_runtime_is_watched_once_for_all_that_do_not_bring_a_load_of_their_own() {
    let (runtime, other) = (current_thread(), current_thread());
    let of = |runtime: &Runtime| runtime.block_on(async { RuntimeLoad::of_current_runtime() });
    let (first, second) = (of(&runtime).unwrap(), of(&runtime).unwrap());
    assert!(Arc::ptr_eq(&first.0, &second.0));
    assert_eq!(
        (watched(&first), runtime.metrics().num_alive_tasks()),
        (1, 1)
    );
    assert!(!Arc::ptr_eq(&first.0, &of(&other).unwrap().0));
    drop((first, second));
    runtime.block_on(yield_now());
    assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    assert_eq!(watched(&of(&runtime).unwrap()), 1);
}

#[test]
fn requests_in_flight_are_counted_by_layers_or_by_the_guard() {
    let load = RuntimeLoad::reported();
    let in_flight = || load.in_flight();
    (0..3).for_each(|_| load.begin_request());
    assert_eq!(in_flight(), 3);
    load.set_in_flight(5); // The same three, and two that no layer has seen.
    assert_eq!(in_flight(), 5);
    load.set_in_flight(0);
    (0..3).for_each(|_| load.end_request());
    assert_eq!(in_flight(), 0);
}

#[test]
fn a_request_that_asks_is_noted_until_the_next_step() {
    let load = RuntimeLoad::reported();
    assert!(!load.is_asked_and_whole());
    assert_eq!(load.ask(), RuntimeLoad::WHOLE);
    assert!(load.is_asked_and_whole());
    assert_eq!(load.share(), 1.0);
    assert!(load.0.take_requests().have_asked);
    assert!(!load.0.take_requests().have_asked);
    for _ in 0..10 {
        load.report(Duration::from_secs(2));
    }
    assert!(load.ask() < RuntimeLoad::WHOLE && !load.is_asked_and_whole());
}
