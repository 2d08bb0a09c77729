use super::*;
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
fn all_guards_share_the_memory_of_the_process() {
    let (one, other) = (Memory::of_process(), Memory::of_process());
    assert!(Arc::ptr_eq(&one.0, &other.0));
    assert_eq!(one.limit().is_some(), cfg!(target_os = "linux"));
    assert!(format!("{one:?}").starts_with("Memory { used: "));
}
