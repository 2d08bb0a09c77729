//! T25, T27, and every other attack on memory, each alone and all at once. The server is a process
//! in a control group of 256 MiB, which it reads as one of version 2: the buffers of TCP sockets
//! count.
//!
//! `PALISADE_GROUP_SECONDS` sets how long each attack takes, and `PALISADE_GROUP_CLIENTS` how many
//! silent connections are offered beside all attacks.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may panic, and its server tells its address"
)]

#[path = "memory_group/attacks.rs"]
mod attacks;
#[path = "memory_group/server.rs"]
mod server;

use attacks::{Attack, UPLOAD_BYTES};
use palisade_testkit::{
    clients::{self, PATIENCE, RawClient},
    guarded::{Client, ServerKind},
    h2,
    memory_group::MemoryGroup,
    process::raise_file_limit,
};
use server::{Counts, HONEST_NETWORK, KEPT_MIB, Kind, LIMIT, Most, Server};
use std::{
    collections::BTreeMap,
    env,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    sync::Mutex,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

/// One attack at a time: each of them needs the processors.
static TURN: Mutex<()> = Mutex::const_new(());
const HONEST: Ipv4Addr = Ipv4Addr::new(127, HONEST_NETWORK, 7, 1);
const HONEST_CLIENTS: u8 = 4;
/// An honest client gives up on a response after this time.
const HONEST_PATIENCE: Duration = Duration::from_secs(5);
/// The time in which everything must be served as before after an attack.
const RECOVERY: Duration = Duration::from_secs(5);
/// What may be allocated beyond what was before an attack.
const LEFT_BYTES: u64 = 1 << 20;
/// How often the usage of the group is read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

/// Returns the number in an environment variable.
fn setting(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn group() -> Option<MemoryGroup> {
    let group = MemoryGroup::create(LIMIT);
    if group.is_none() {
        eprintln!("skipped: this process may not create control groups");
    }
    group
}

/// Not a test, but the server of the others: does nothing unless one of them has started it.
#[test]
fn server_process() {
    server::serve_if_told();
}

// === Clients ===

/// Sends an upload but for its last byte, and holds it open.
async fn hold_upload(from: Ipv4Addr, to: SocketAddr) -> Option<RawClient> {
    let mut client = RawClient::connect_from(from, to).await.ok()?;
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n");
    client.send(head).await.ok()?;
    client.send(vec![b'x'; UPLOAD_BYTES - 1]).await.ok()?;
    Some(client)
}

/// Starts so many uploads that are held open, each of its own client.
fn start_uploads(count: u8, to: SocketAddr) -> Vec<JoinHandle<Option<RawClient>>> {
    let attackers = (1..=count).map(|number| {
        let from = Ipv4Addr::new(127, 1, number, 1);
        tokio::spawn(hold_upload(from, to))
    });
    attackers.collect()
}

/// Uploads so many bytes at once on a new connection, and returns the status of the response, or
/// why there is none.
async fn upload(from: Ipv4Addr, to: SocketAddr, bytes: usize) -> String {
    let upload = async {
        let mut stream = clients::connect(from, to).await?;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let sent = stream.write_all(&vec![b'x'; bytes]).await;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        sent?;
        let status = response.get(9..12).unwrap_or("cut");
        if status == "200" {
            return Ok(status.to_owned());
        }
        let (_, text) = response.split_once("\r\n\r\n").unwrap_or_default();
        Ok::<_, std::io::Error>(format!("{status} {text}"))
    };
    match timeout(HONEST_PATIENCE, upload).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => error.kind().to_string(),
        Err(_) => "too late".to_owned(),
    }
}

async fn is_served(from: Ipv4Addr, to: SocketAddr, bytes: usize) -> bool {
    upload(from, to, bytes).await == "200"
}

/// Requests `/health` on a kept connection over HTTP/2, or on a new one where there is none, or the
/// server has closed it: a client may send such a request again that has no response.
async fn health(from: Ipv4Addr, to: SocketAddr, kept: &mut Option<Client>) -> String {
    let response = async {
        let on_kept = match kept.take() {
            Some(mut client) => client
                .get("/health")
                .await
                .map(|response| (response, client)),
            None => Err("there is none".into()),
        };
        let (response, client) = match on_kept {
            Ok(answered) => answered,
            Err(_) => {
                let mut client = ServerKind::Tonic.connect(from, to).await?;
                (client.get("/health").await?, client)
            }
        };
        *kept = Some(client);
        Ok::<_, tower::BoxError>(response.status().as_str().to_owned())
    };
    match timeout(HONEST_PATIENCE, response).await {
        Ok(Ok(status)) => status,
        Ok(Err(_)) => "cut".to_owned(),
        Err(_) => "too late".to_owned(),
    }
}

/// The outcomes of requests, and how often each occurred.
type Outcomes = BTreeMap<String, usize>;

/// Uploads 10 kB, and sends a request on a kept connection, again and again for so long.
async fn honest_requests(number: u8, to: SocketAddr, time: Duration) -> Outcomes {
    let [a, b, c, _] = HONEST.octets();
    let from = Ipv4Addr::new(a, b, c + number, 1);
    let mut outcomes = Outcomes::new();
    let mut kept = None;
    let end = Instant::now() + time;
    while Instant::now() < end {
        for outcome in [
            format!("health {}", health(from, to, &mut kept).await),
            format!("upload {}", upload(from, to, 10_000).await),
        ] {
            *outcomes.entry(outcome).or_default() += 1;
        }
        sleep(Duration::from_millis(20)).await;
    }
    outcomes
}

/// Returns what the server tells of itself, when it does: the request may be refused.
async fn told(to: SocketAddr, path: &str) -> String {
    let end = Instant::now() + RECOVERY;
    loop {
        if let Ok(response) = clients::get(HONEST, to, path).await
            && response.status() == 200
        {
            return String::from_utf8(response.into_body().into()).unwrap();
        }
        assert!(Instant::now() < end, "{path} is refused");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn counts(to: SocketAddr) -> Counts {
    Counts::parse(&told(to, "/counts").await).unwrap()
}

// === The attacks ===

/// Notes the most that the group has with the buffers of TCP sockets, and the most of these.
async fn watch(group: &MemoryGroup, peak: &mut u64, tcp: &mut u64) {
    loop {
        *peak = group.with_tcp().unwrap().max(*peak);
        *tcp = group.tcp().unwrap().max(*tcp);
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// What an attack must leave.
#[derive(Clone, Copy, Debug)]
struct Hold {
    /// The part of the honest requests that is served, at least.
    served_percent: usize,
    /// The part of the limit that is used, at most. It may be above 100 with the buffers of TCP
    /// sockets, for which no process is killed: version 2 drops what arrives.
    most_percent: u64,
}

/// Where budgets and limits hold the memory.
const WELL: Hold = Hold {
    served_percent: 99,
    most_percent: 98,
};
/// Where nothing but the refusal of requests does, which cannot tell honest clients from others.
const BY_REFUSALS: Hold = Hold {
    served_percent: 50,
    most_percent: 98,
};
/// Where all attacks together need more than the processors that they share with honest clients.
const BUSY: Hold = Hold {
    served_percent: 50,
    most_percent: 98,
};

/// Attacks a server in a group of its own, with so many attackers of each kind. Asserts that honest
/// clients are served meanwhile, that the group keeps below its limit, and that everything is as
/// before afterwards.
async fn withstand(kind: Kind, attacks: &[(Attack, u16)], hold: Hold) {
    let _turn = TURN.lock().await;
    raise_file_limit();
    let Some(group) = group() else { return };
    let mut server = Server::start(&group, kind);
    let addr = server.addr;
    assert!(is_served(HONEST, addr, 1 << 20).await);
    let before = counts(addr).await;

    let attackers = attackers();
    for (attack, count) in attacks {
        attack.start(*count, addr, &attackers);
    }
    // Where all attack at once, few requests are served in a second.
    let seconds = if attacks.len() > 1 { 4 } else { 2 };
    let time = Duration::from_secs(setting("PALISADE_GROUP_SECONDS").unwrap_or(seconds));
    let honest: JoinSet<_> = (0..HONEST_CLIENTS)
        .map(|number| honest_requests(number, addr, time))
        .collect();
    let (mut peak, mut tcp) = (0, 0);
    let outcomes = tokio::select! {
        outcomes = honest.join_all() => outcomes,
        () = watch(&group, &mut peak, &mut tcp) => unreachable!("it has no end"),
    };
    let is_running = server.is_running();
    attackers.shutdown_background();
    let mut sum = Outcomes::new();
    for (outcome, count) in outcomes.into_iter().flatten() {
        *sum.entry(outcome).or_default() += count;
    }
    let all: usize = sum.values().sum();
    let served: usize =
        sum.remove("health 200").unwrap_or(0) + sum.remove("upload 200").unwrap_or(0);
    let [group_peak, peak, tcp] = [group.peak().unwrap(), peak, tcp].map(|bytes| bytes >> 20);
    println!(
        "{kind:?} {attacks:?}: {served} of {all} honest requests served, not {sum:?}, peak \
         {group_peak} MiB, {peak} MiB with TCP, of TCP {tcp} MiB"
    );
    assert!(is_running, "the server was killed");
    let most = Most::parse(&told(addr, "/most").await).unwrap();
    println!(
        "{most:?}, to honest clients {}",
        told(addr, "/to-honest").await
    );
    let most_mib = (LIMIT >> 20) * hold.most_percent / 100;
    assert!(
        group_peak <= most_mib && peak <= most_mib,
        "{group_peak}, {peak}"
    );
    assert!(
        served * 100 >= all * hold.served_percent,
        "{served} of {all}"
    );

    let start = Instant::now();
    recover(addr, before, start + RECOVERY).await;
    println!("{kind:?}: as before after {:?}", start.elapsed());
    assert!(server.is_running());

    most.assert_within_bound();
    let allowed = most.allowed >> 20;
    assert!(group_peak <= allowed, "{group_peak} MiB of {allowed}");
}

/// Waits until large uploads are served again, and everything is given back.
async fn recover(addr: SocketAddr, before: Counts, end: Instant) -> Counts {
    while !is_served(HONEST, addr, 1 << 20).await {
        assert!(Instant::now() < end, "large uploads are still refused");
        sleep(Duration::from_millis(50)).await;
    }
    loop {
        let now = counts(addr).await;
        let is_empty = (now.connections, now.in_flight, now.held) == (1, 1, 0);
        if is_empty && now.live < before.live + LEFT_BYTES {
            return now;
        }
        assert!(Instant::now() < end, "{now:?}, before {before:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns a thread for attackers, so that honest clients do not wait for them.
fn attackers() -> Runtime {
    let attackers = tokio::runtime::Builder::new_multi_thread();
    { attackers }
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// T22, leaks over time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_allocated_does_not_grow_from_one_attack_to_the_next() {
    const CYCLES: usize = 5;
    const ATTACK_TIME: Duration = Duration::from_millis(400);
    /// Each attack has thousands of requests.
    const GROWTH_BYTES: u64 = 32 << 10;
    let _turn = TURN.lock().await;
    raise_file_limit();
    let Some(group) = group() else { return };
    let mut server = Server::start(&group, Kind::Repeated);
    let addr = server.addr;
    assert!(is_served(HONEST, addr, 1 << 20).await);
    let before = counts(addr).await;
    let mut live = Vec::new();
    for _ in 0..CYCLES {
        let attackers = attackers();
        for attack in Attack::ALL {
            let count = if attack == Attack::Silent { 200 } else { 10 };
            attack.start(count, addr, &attackers);
        }
        sleep(ATTACK_TIME).await;
        attackers.shutdown_background();
        let now = recover(addr, before, Instant::now() + RECOVERY).await;
        live.push(now.live);
    }
    println!(
        "allocated before: {}, after each attack: {live:?}",
        before.live
    );
    // The first attack creates what is kept for all.
    let [_, second, .., last] = live[..] else {
        unreachable!("there are more cycles")
    };
    assert!(last <= second + GROWTH_BYTES, "{live:?}");
    assert!(server.is_running());
}

macro_rules! withstand {
    ($($name:ident: $kind:ident, [$($attack:ident $count:expr),+], $hold:expr;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let attacks = [$((Attack::$attack, $count)),+];
                withstand(Kind::$kind, &attacks, $hold).await;
            }
        )+
    };
}

withstand! {
    uploads_held_open_do_not_fill_the_memory_of_the_container: Stack, [HeldUpload 200], WELL;
    uploads_held_open_do_not_fill_it_without_a_stack_either: Alone, [HeldUpload 200], WELL;
    heads_of_many_fields_held_open_do_not_fill_it: Stack, [Heads 40], WELL;
    bodies_without_end_do_not_fill_it: Stack, [EndlessBody 100], WELL;
    bodies_without_end_do_not_fill_it_without_a_stack_either: Alone, [EndlessBody 100], WELL;
    bombs_do_not_fill_it: Stack, [Bomb 100], WELL;
    streams_with_a_shut_window_do_not_fill_it: Stack, [ShutWindow 200], WELL;
    answers_that_are_not_read_do_not_fill_it: Stack, [UnreadAnswers 200], WELL;
    heads_of_many_fields_do_not_fill_it_without_a_stack_either: Alone, [Heads 40], WELL;
    a_shut_window_does_not_fill_it_without_a_stack_either: Alone, [ShutWindow 200], WELL;
    unread_answers_do_not_fill_it_without_a_stack_either: Alone, [UnreadAnswers 200], WELL;
    unread_downloads_do_not_fill_it_without_a_stack_either: Alone, [SlowReader 500], WELL;
    downloads_that_are_not_read_do_not_fill_it: Stack, [SlowReader 500], WELL;
    bodies_that_the_handler_does_not_read_do_not_fill_it: Stack, [UnreadUpload 900], WELL;
    handlers_that_keep_memory_do_not_fill_it: Cached, [Growth 250], BY_REFUSALS;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_attacks_at_once_do_not_fill_it() {
    let silent = setting("PALISADE_GROUP_CLIENTS").unwrap_or(2_000) as u16;
    let attacks = Attack::ALL.map(|attack| match attack {
        Attack::Silent => (attack, silent),
        // Memory that no guard knows of leaves no room for anything else.
        Attack::Growth => (attack, 0),
        Attack::ShutWindow | Attack::UnreadAnswers => (attack, 10),
        _ => (attack, 40),
    });
    withstand(Kind::Stack, &attacks, BUSY).await;
}

/// Requests a response of 64 MiB, over HTTP/1 or HTTP/2, and reads 64 KiB of it in each of so many
/// seconds. Returns whether they came.
async fn reads_steadily(from: Ipv4Addr, to: SocketAddr, is_http2: bool, seconds: u64) -> bool {
    let request = if is_http2 {
        [h2::hello(1 << 30), h2::get(1, "/large")].concat()
    } else {
        b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()
    };
    let read = async {
        let mut client = RawClient::connect_from(from, to).await.ok()?;
        client.send(&request).await.ok()?;
        let mut piece = vec![0; 64 << 10];
        for _ in 0..seconds {
            client.stream.read_exact(&mut piece).await.ok()?;
            sleep(Duration::from_secs(1)).await;
        }
        Some(())
    };
    read.await.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_that_read_downloads_steadily_are_served_beside_unread_answers() {
    let _turn = TURN.lock().await;
    raise_file_limit();
    let Some(group) = group() else { return };
    let mut server = Server::start(&group, Kind::Alone);
    let addr = server.addr;
    let readers = (0..200).map(|number: u8| {
        let from = Ipv4Addr::new(127, 6, number, 1);
        tokio::spawn(reads_steadily(from, addr, number % 2 == 1, 5))
    });
    let readers: Vec<_> = readers.collect();
    let attackers = attackers();
    Attack::UnreadAnswers.start(200, addr, &attackers);
    for reader in readers {
        assert!(reader.await.unwrap());
    }
    attackers.shutdown_background();
    assert!(server.is_running(), "the server was killed");
    let peak = group.peak().unwrap() >> 20;
    println!("200 steady readers beside 200 connections that read nothing: peak {peak} MiB");
    assert!(peak <= (LIMIT >> 20) * 98 / 100, "{peak}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_clients_that_upload_a_mebibyte_each_at_once_are_served() {
    let _turn = TURN.lock().await;
    let Some(group) = group() else { return };
    let server = Server::start(&group, Kind::Stack);
    for _ in 0..5 {
        let uploads = (1..=20).map(|number| {
            let from = Ipv4Addr::new(127, 3, 0, number);
            tokio::spawn(is_served(from, server.addr, 1 << 20))
        });
        for upload in uploads.collect::<Vec<_>>() {
            assert!(upload.await.unwrap());
        }
    }
}

// === Memory that the allocator keeps ===

/// What is resident when freed memory has been returned, at most.
#[cfg(target_env = "gnu")]
const RELEASED_MIB: u64 = KEPT_MIB as u64 + 20;

/// Returns the resident memory of a server in MiB while 30 uploads are held, and the least of so
/// many seconds after they have left.
#[cfg(target_env = "gnu")]
async fn resident_after_uploads(group: &MemoryGroup, kind: Kind, seconds: u64) -> (u64, u64) {
    let server = Server::start(group, kind);
    let mut held = Vec::new();
    for attacker in start_uploads(30, server.addr) {
        held.push(attacker.await.unwrap().expect("the upload is not refused"));
    }
    // The server takes what the kernel has received.
    let end = Instant::now() + PATIENCE;
    while server.resident() < KEPT_MIB as u64 + 50 {
        let resident = server.resident();
        assert!(Instant::now() < end, "{resident} MiB are resident");
        sleep(Duration::from_millis(20)).await;
    }
    // Four looks at the memory: what is held for less than one is not noticed.
    sleep(Duration::from_secs(1)).await;
    let before = server.resident();
    drop(held);
    let mut least = before;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && least > RELEASED_MIB {
        sleep(Duration::from_millis(20)).await;
        least = least.min(server.resident());
    }
    (before, least)
}

#[cfg(target_env = "gnu")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_the_allocator_keeps_after_uploads_is_returned_by_the_release() {
    let _turn = TURN.lock().await;
    let Some(group) = group() else { return };
    let (before, least) = resident_after_uploads(&group, Kind::LargeBudget, 3).await;
    println!("without a release: {before} MiB while uploads are held, {least} MiB afterwards");
    // How much glibc keeps differs from run to run.
    let (before, least) = resident_after_uploads(&group, Kind::Release, 45).await;
    println!("with a release: {before} MiB while uploads are held, {least} MiB afterwards");
    assert!(least <= RELEASED_MIB, "{least} MiB of {before} are kept");
}
