use super::*;
use crate::Budget;
use std::sync::mpsc;

fn wait_until(is_true: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(tokio::time::Instant::now() < end, "it never became true");
        thread::yield_now();
    }
}

#[test]
fn the_application_reports_what_is_used() {
    let memory = Memory::reported(1000).unwrap();
    assert_eq!((memory.used(), memory.share()), (None, 1.0));
    memory.report(500);
    assert_eq!((memory.used(), memory.pressure().get()), (Some(500), 0.5));
    memory.report(2000);
    assert_eq!(memory.pressure().get(), 1.0);
    assert_eq!(memory.share(), 0.25);
    for _ in 0..12 {
        memory.report(2000);
    }
    assert_eq!(memory.share(), 1.0);
    let error = Memory::reported(0).unwrap_err().to_string();
    assert!(
        error.ends_with("memory limit is 0, allowed is at least one byte"),
        "{error}"
    );
}

#[test]
fn a_source_is_asked_again_and_again_until_the_memory_is_dropped() {
    let (asked, is_asked) = mpsc::channel();
    let used = Arc::new(AtomicU64::new(1));
    let source = used.clone();
    let memory = Memory::with_source(1000, move || {
        asked.send(()).ok()?;
        Some(source.load(Relaxed))
    });
    let memory = memory.unwrap();
    assert_eq!(memory.used(), Some(1)); // From the beginning.
    used.store(930, Relaxed);
    wait_until(|| memory.used() == Some(930));
    drop(memory);
    // The closure is dropped with its thread, and its sender with it.
    while is_asked.recv_timeout(Duration::from_secs(20)).is_ok() {}
    assert_eq!(is_asked.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn a_source_that_panics_or_fails_counts_as_unknown() {
    let memory = Memory::with_source(1000, || None).unwrap();
    assert_eq!((memory.used(), memory.pressure().get()), (None, 0.0));
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    let memory = Memory::with_source(1000, move || {
        assert!(
            counter.fetch_add(1, Relaxed) == 0,
            "the source is broken, as it should be here"
        );
        Some(990)
    });
    let memory = memory.unwrap();
    assert_eq!(memory.used(), Some(990));
    wait_until(|| memory.pressure().get() == 0.0);
    assert_eq!((memory.used(), memory.share()), (None, 1.0));
    assert_eq!(calls.load(Relaxed), 2);
}

#[test]
fn while_a_source_does_not_return_nothing_is_refused_and_later_it_is_asked_again() {
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    let (end, may_end) = mpsc::channel::<()>();
    let memory = Memory::with_source(1000, move || match counter.fetch_add(1, Relaxed) {
        0 => Some(930),
        1 => Some(990), // Short, and growing.
        2 => {
            let _ = may_end.recv();
            Some(995) // When the answer comes, it is out of date.
        }
        _ => Some(500),
    });
    let memory = memory.unwrap();
    wait_until(|| calls.load(Relaxed) == 3);
    wait_until(|| (memory.used(), memory.share()) == (None, 1.0));
    assert_eq!(memory.pressure().get(), 0.0);
    drop(end);
    wait_until(|| memory.used().is_some());
    assert_eq!((memory.used(), memory.share()), (Some(500), 1.0));
}

#[test]
fn looks_are_taken_every_25_ms_while_more_than_80_percent_are_used() {
    let memory = Memory::reported(1000).unwrap();
    let pause = |used| memory.0.look(Some(Sample { used, limit: 1000 }));
    assert_eq!(
        [0, 800, 801, 1000, 2000, 799].map(pause),
        [250, 250, 25, 25, 25, 250].map(Duration::from_millis)
    );
    assert_eq!(memory.0.look(None), Duration::from_millis(250));
}

#[test]
fn all_guards_share_the_memory_of_the_process() {
    let (one, other) = (Memory::of_process(), Memory::of_process());
    assert!(Arc::ptr_eq(&one.0, &other.0));
    assert_eq!(one.limit().is_some(), cfg!(target_os = "linux"));
    assert!(format!("{one:?}").starts_with("Memory { used: "));
}

#[cfg(unix)]
#[test]
fn what_the_groups_say_is_read_again_and_again() {
    use super::group::tests::Root;

    let files = [
        ("proc/self/cgroup", "0::/a\n"),
        ("sys/fs/cgroup/a/memory.max", "1000000\n"),
        ("sys/fs/cgroup/a/memory.current", "500000\n"),
        ("sys/fs/cgroup/a/memory.events", "max 1\noom_kill 0\n"),
    ];
    let root = Root::new("looks", &files);
    let memory = Memory::new(Some(1_000_000));
    memory.start(Source::Groups(root.open()));
    let seen = || {
        let events = memory.events();
        (memory.used(), events.limit_hits, events.oom_kills)
    };
    assert_eq!(seen(), (Some(500_000), Some(1), Some(0)));
    root.write("sys/fs/cgroup/a/memory.current", "900000\n");
    root.write("sys/fs/cgroup/a/memory.events", "max 9\noom_kill 2\n");
    wait_until(|| seen() == (Some(900_000), Some(9), Some(2)));
    assert_eq!(memory.pressure().get(), 0.9);
}

/// Reports memory of which much is held, and then nothing for a while, as after an attack.
async fn attack(memory: &Memory, budget: &Budget) {
    let charge = budget.charge(None);
    charge.take(budget.limit()).unwrap();
    memory.report(900_000);
    drop(charge);
    memory.report(900_000);
    tokio::time::advance(Duration::from_millis(250)).await;
    memory.report(900_000);
}

#[tokio::test(start_paused = true)]
async fn while_memory_is_released_looks_continue_and_no_other_call_is_made() {
    let memory = Memory::reported(1_000_000).unwrap();
    let budget = Budget::new(250_000).unwrap();
    budget.report_to(&memory);
    let (began, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();
    memory.release(move || {
        began.send(()).unwrap();
        let _ = may_end.recv();
    });
    attack(&memory, &budget).await;
    has_begun.recv_timeout(Duration::from_secs(20)).unwrap();
    // It works for a minute. The memory grows, and stands, and falls.
    memory.report(960_000);
    assert_eq!((memory.pressure().get(), memory.share()), (0.96, 0.5));
    for _ in 0..60 {
        tokio::time::advance(Duration::from_secs(1)).await;
        attack(&memory, &budget).await;
    }
    assert_eq!((memory.pressure().get(), memory.share()), (0.9, 1.0));
    memory.report(100_000);
    assert_eq!(memory.pressure().get(), 0.1);
    assert!(has_begun.try_recv().is_err());
    end.send(()).unwrap();
    let is_running = || {
        let releaser = memory.0.releaser.lock();
        releaser.as_ref().unwrap().is_running()
    };
    wait_until(|| !is_running());
    memory.report(900_000);
    assert!(!is_running());
    tokio::time::advance(Duration::from_secs(10)).await;
    attack(&memory, &budget).await;
    has_begun.recv_timeout(Duration::from_secs(20)).unwrap();
    // With the memory, the closure is dropped.
    drop((memory, end));
    let ended = has_begun.recv_timeout(Duration::from_secs(20));
    assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_panics_is_not_called_again_unless_it_is_replaced() {
    let memory = Memory::reported(1_000_000).unwrap();
    let budget = Budget::new(250_000).unwrap();
    budget.report_to(&memory);
    let (called, is_called) = mpsc::channel();
    let other = called.clone();
    memory.release(move || {
        called.send("broken").unwrap();
        panic!("the release is broken, as it should be here");
    });
    for _ in 0..100 {
        attack(&memory, &budget).await;
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    let next = || is_called.recv_timeout(Duration::from_secs(20));
    assert_eq!(next(), Ok("broken"));
    assert!(is_called.try_recv().is_err());
    assert_eq!((memory.pressure().get(), memory.share()), (0.9, 1.0));
    memory.release(move || other.send("whole").unwrap());
    attack(&memory, &budget).await;
    assert_eq!(next(), Ok("whole"));
}

#[test]
fn what_is_held_is_the_sum_of_the_budgets_that_are_alive() {
    let memory = Memory::reported(1_000_000).unwrap();
    let (one, other) = (Budget::new(100_000).unwrap(), Budget::new(100_000).unwrap());
    for budget in [&one, &other, &one, &other] {
        budget.report_to(&memory);
    }
    one.take(None, 10).unwrap();
    other.take(None, 5).unwrap();
    assert_eq!(memory.0.held(), 15);
    drop(other);
    assert_eq!(memory.0.held(), 10);
    for _ in 0..100 {
        Budget::new(100_000).unwrap().report_to(&memory);
    }
    assert!(memory.0.budgets.lock().len() <= 2);
    // The budget of the process is held in the memory of the process.
    let budget = Budget::of_process();
    budget.take(None, 7).unwrap();
    assert!(Memory::of_process().0.held() >= 7);
    budget.give_back(None, 7);
}
