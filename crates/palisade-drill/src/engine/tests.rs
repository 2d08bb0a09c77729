use super::*;
use crate::machine::{Actions, Event, Machine};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn listener() -> (TcpListener, Target) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, Target::open(&[addr]).await.unwrap())
}

fn run(target: &Target, machines: Vec<Box<dyn Machine>>) -> Engine {
    let source = Source::Attacker {
        attack: 9,
        address: 0,
    };
    let machines = machines.into_iter();
    let machines = machines.map(|machine| (source, Duration::ZERO, machine));
    Engine::run(target, PATIENCE, None, machines)
}

pub(super) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// Sends what it receives.
struct Echo;

impl Machine for Echo {
    fn on(&mut self, event: Event<'_>, _: Duration, out: &mut Actions) {
        if let Event::Received(bytes) = event {
            out.send(bytes.to_vec());
        }
    }
}

/// Reads nothing, and opens nothing again.
struct Paused;

impl Machine for Paused {
    fn on(&mut self, _: Event<'_>, _: Duration, out: &mut Actions) {
        out.pause_reading();
    }
}

#[test]
fn attackers_begin_in_turn_at_instants_that_the_seed_decides() {
    let second = Duration::from_secs(1);
    let all = |seed| (0..100).map(move |index| begins(seed, index, 100, second));
    assert!(all(0).eq((0..100).map(|index| Duration::from_millis(10) * index)));
    assert!(all(5).eq(all(5)) && !all(5).eq(all(6)));
    assert!(all(5).is_sorted() && all(5).all(|begins| begins < second));
}

#[tokio::test]
async fn bytes_go_both_ways_and_a_closed_connection_is_not_alive() {
    let (listener, target) = listener().await;
    let engine = run(&target, vec![Box::new(Echo)]);
    let (mut server, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip().to_string(), "127.1.0.10");
    server.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    server.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    until("it is open", async || engine.census().await.alive == 1).await;

    drop(server);
    until("it is closed", async || engine.counts().alive == 0).await;
    assert_eq!((engine.counts().sent, engine.counts().received), (4, 4));
    assert_eq!(target.sockets(), (0, 1));
}

#[tokio::test]
async fn a_connection_that_does_not_read_is_seen_to_be_closed_in_a_census() {
    let (listener, target) = listener().await;
    let engine = run(&target, vec![Box::new(Paused), Box::new(Paused)]);
    let (mut first, _) = listener.accept().await.unwrap();
    let (mut second, _) = listener.accept().await.unwrap();
    first.write_all(b"unread").await.unwrap();
    second.write_all(b"unread").await.unwrap();
    until("both are open", async || engine.census().await.alive == 2).await;
    drop(first);
    until("it is closed", async || engine.census().await.alive == 1).await;
    drop(second);
    until("it is closed", async || engine.census().await.alive == 0).await;
    assert_eq!(engine.counts().received, 0);
}

#[tokio::test]
async fn a_dropped_engine_closes_every_connection() {
    let (listener, target) = listener().await;
    let engine = run(&target, (0..50).map(|_| Box::new(Echo) as _).collect());
    let mut accepted = Vec::new();
    for _ in 0..50 {
        accepted.push(listener.accept().await.unwrap().0);
    }
    assert_eq!(target.sockets(), (50, 50));
    drop(engine);
    for mut server in accepted {
        let end = timeout(PATIENCE, server.read(&mut [0])).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)));
    }
    assert_eq!(target.sockets(), (0, 50));
}

/// Sends a megabyte whenever it may, and asks to be woken at once.
struct Greedy;

impl Machine for Greedy {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        if matches!(event, Event::Opened | Event::Woken) {
            out.send(vec![0; 1 << 20]);
            out.wake_at(now);
        }
    }
}

#[tokio::test]
async fn a_machine_gets_no_further_ahead_than_one_event() {
    let (listener, target) = listener().await;
    let engine = run(&target, vec![Box::new(Greedy)]);
    // Nothing is read: the kernel's buffers fill, and the machine waits.
    let (_server, _) = listener.accept().await.unwrap();
    let mut last = 0;
    until("it stops", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::mem::replace(&mut last, engine.counts().sent) == engine.counts().sent && last > 0
    })
    .await;
    assert!(engine.counts().sent < 32 << 20);
}

/// A machine that tells whether it has panicked.
struct Watched {
    machine: Box<dyn Machine>,
    panics: Arc<AtomicUsize>,
}

impl Machine for Watched {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        self.machine.on(event, now, out);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let panics = usize::from(std::thread::panicking());
        self.panics.fetch_add(panics, Relaxed);
    }
}

/// Sends random bytes and frames, some of them a reader's piece long, then closes or resets the
/// connection.
async fn babble(mut stream: tokio::net::TcpStream, seed: u64) -> std::io::Result<()> {
    let mut random = seed | 1;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut unread = [0; 4_096];
    for _ in 0..next() % 20 {
        let noise: Vec<u8> = (0..next() % 5_000).map(|_| (next() >> 20) as u8).collect();
        let cut = noise.len().min(200);
        let (kind, flags) = (next() as u8 % 10, next() as u8 % 6);
        let frame = crate::attacks::h2::frames::frame(kind, flags, 1, &noise[..cut]);
        let bytes = if next() % 3 == 0 { noise } else { frame };
        stream.write_all(&bytes).await?;
        let _ = stream.try_read(&mut unread);
        tokio::time::sleep(Duration::from_millis(next() % 20)).await;
    }
    if next() % 2 == 0 {
        stream.set_zero_linger()?;
    }
    Ok(())
}

#[tokio::test]
async fn every_attack_survives_a_server_of_random_bytes_and_ends_when_it_is_stopped() {
    let (listener, target) = listener().await;
    let server = tokio::spawn(async move {
        for seed in 1_u64.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(babble(stream, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
    });
    let mut plan = Plan::new("a");
    plan.post = Some("/post".to_owned());
    plan.large = Some("/large".to_owned());
    plan.ends = Duration::from_millis(700);
    let panics = Arc::new(AtomicUsize::new(0));
    let attacks = crate::attacks::all();
    let machines = attacks.iter().enumerate().map(|(number, attack)| {
        let source = Source::Attacker {
            attack: 9,
            address: number,
        };
        let machine = Watched {
            machine: (attack.make)(&plan, number),
            panics: panics.clone(),
        };
        (source, Duration::ZERO, Box::new(machine) as _)
    });
    let engine = Engine::run(&target, plan.ends, None, machines);
    tokio::time::sleep(plan.ends + Duration::from_millis(200)).await;
    let counts = engine.stop().await;
    server.abort();
    assert_eq!(panics.load(Relaxed), 0, "{counts:?}");
    assert!(counts.opened >= attacks.len() as u64, "{counts:?}");
    assert!(counts.received > 10_000, "{counts:?}");
    assert!(counts.sent < 64 << 20, "{counts:?}");
    assert_eq!(target.sockets().0, 0);
}
