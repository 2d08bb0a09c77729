//! Machines over TLS.

use super::{tests::until, *};
use crate::{
    attacks,
    machine::{Actions, Event, Machine},
    tls::{Tls, tests::serve},
};
use std::sync::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const PATIENCE: Duration = Duration::from_secs(20);

async fn target() -> (TcpListener, Target) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let target = Target::open(&[addr]).await.unwrap();
    let tls = Tls::new("localhost").unwrap();
    (listener, target.with_tls(Some(tls)))
}

/// Runs the attack `name` with one machine. Returns the engine, and what the server sees: the
/// protocol that it chose, and the bytes.
async fn attack(name: &str) -> (Engine, Arc<Mutex<(Option<Vec<u8>>, Vec<u8>)>>, Plan) {
    let (listener, target) = target().await;
    let seen = Arc::new(Mutex::new((None, Vec::new())));
    let each = {
        let seen = seen.clone();
        move |mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>| {
            let seen = seen.clone();
            async move {
                seen.lock().unwrap().0 = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                stream.write_all(b"answer").await.unwrap();
                stream.flush().await.unwrap();
                let mut piece = [0; 4_096];
                while let Ok(count @ 1..) = stream.read(&mut piece).await {
                    seen.lock().unwrap().1.extend(&piece[..count]);
                }
            }
        }
    };
    tokio::spawn(serve(listener, &["h2", "http/1.1"], each));
    let attacks = attacks::all();
    let attack = attacks.iter().find(|attack| attack.name == name).unwrap();
    let plan = Plan::new("localhost");
    let engine = Engine::start(&target, attack, &plan, 0, 1, Duration::ZERO);
    (engine, seen, plan)
}

#[tokio::test]
async fn a_machine_of_http1_sends_and_receives_what_tls_carries() {
    let (engine, seen, plan) = attack("keep-alive-silence").await;
    let request = plan.get_request();
    until("the request", async || seen.lock().unwrap().1 == request).await;
    until("the answer", async || engine.counts().received == 6).await;
    let counts = engine.census().await;
    assert_eq!((counts.sent, counts.opened), (request.len() as u64, 1));
    assert_eq!((counts.alive, counts.holding), (1, 1));
    assert_eq!(seen.lock().unwrap().0.as_deref(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn a_machine_of_http2_is_chosen_by_alpn() {
    let (engine, seen, _) = attack("rapid-reset").await;
    let preface = attacks::h2::frames::PREFACE;
    until("the preface", async || {
        seen.lock().unwrap().1.starts_with(preface)
    })
    .await;
    assert_eq!(seen.lock().unwrap().0.as_deref(), Some(&b"h2"[..]));
    drop(engine);
}

#[tokio::test]
async fn a_machine_of_tls_has_the_bare_connection() {
    let (listener, target) = target().await;
    let attacks = attacks::all();
    let of_name = |attack: &&Attack| attack.name == "unfinished-handshakes";
    let attack = attacks.iter().find(of_name).unwrap();
    let plan = Plan::new("localhost");
    let engine = Engine::start(&target, attack, &plan, 0, 1, Duration::ZERO);
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = [0; 6];
    stream.read_exact(&mut head).await.unwrap();
    // A record with a handshake message, a ClientHello.
    assert_eq!((head[..2] == [22, 3], head[5]), (true, 1));
    let length = u64::from(u16::from_be_bytes([head[3], head[4]]));
    until("the count", async || engine.counts().sent == length + 5).await;
}

#[tokio::test]
async fn a_server_that_closes_in_the_handshake_has_no_attacker() {
    let (listener, target) = target().await;
    let attacks = attacks::all();
    let attack = attacks
        .iter()
        .find(|attack| attack.name == "churn")
        .unwrap();
    let plan = Plan::new("localhost");
    let engine = Engine::start(&target, attack, &plan, 0, 1, Duration::ZERO);
    drop(listener.accept().await.unwrap());
    until("the failure", async || engine.counts().failed == 1).await;
    assert_eq!((engine.counts().opened, engine.counts().alive), (0, 0));
}

/// More than the kernel's buffers of both sides hold.
const MANY_BYTES: usize = 24 << 20;

/// Sends many bytes, and one more when it is woken.
struct Many(Arc<AtomicUsize>);

impl Machine for Many {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => {
                out.send(vec![b'm'; MANY_BYTES]);
                out.wake_at(now);
            }
            Event::Woken => {
                self.0.fetch_add(1, Relaxed);
                out.send("!");
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_machine_is_woken_when_all_that_it_sent_is_in_the_socket() {
    let (listener, target) = target().await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let received = Arc::new(AtomicU64::new(0));
    let each = {
        let received = received.clone();
        move |mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>| {
            let (mut wait, received) = (wait.clone(), received.clone());
            async move {
                let _ = wait.wait_for(|goes| *goes).await;
                let mut piece = vec![0; 1 << 16];
                while let Ok(count @ 1..) = stream.read(&mut piece).await {
                    received.fetch_add(count as u64, Relaxed);
                }
            }
        }
    };
    tokio::spawn(serve(listener, &[], each));
    let woken = Arc::new(AtomicUsize::new(0));
    let machine: Box<dyn Machine> = Box::new(Many(woken.clone()));
    let source = Source::Attacker {
        attack: 9,
        address: 0,
    };
    let machines = [(source, Duration::ZERO, machine)].into_iter();
    let engine = Engine::run(&target, PATIENCE, None, machines);
    let mut last = 0;
    until("full buffers", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let sent = engine.counts().sent;
        sent > 0 && std::mem::replace(&mut last, sent) == sent
    })
    .await;
    let all = MANY_BYTES as u64 + 1;
    assert!(last < all - 1 && woken.load(Relaxed) == 0, "{last}");
    go.send_replace(true);
    until("all", async || received.load(Relaxed) == all).await;
    assert_eq!((engine.counts().sent, woken.load(Relaxed)), (all, 1));
}
