//! T25 and T27: heads of many short fields, and many bodies, that together are more than the memory
//! of the container. The server is a process in a control group of 256 MiB.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may panic, and its server tells its address"
)]

use axum::{
    Router,
    routing::{get, post},
};
use bytes::Bytes;
use palisade::{Budget, Memory, Stack, conn::ConnGuard};
use palisade_testkit::{
    alloc,
    clients::{self, PATIENCE, RawClient},
    guarded::ServerKind,
    h2,
    memory_group::MemoryGroup,
};
use std::{
    env,
    future::{IntoFuture, pending},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const LIMIT: u64 = 256 << 20;
/// Tells the test [`server_process`] to serve, in place of doing nothing: [`WITH_STACK`] or
/// [`ALONE`].
const SERVES: &str = "PALISADE_TEST_SERVES";
/// `palisade::serve` with a stack around the app.
const WITH_STACK: &str = "stack";
/// `palisade::serve` and an app without layers.
const ALONE: &str = "alone";
/// [`WITH_STACK`], a budget that is never full, and 64 MiB that the application keeps.
const WITH_LARGE_BUDGET: &str = "budget";
/// The same, and freed memory is returned to the system.
const WITH_RELEASE: &str = "release";
/// Uploads that are sent and held open at once.
const UPLOADS: usize = 200;
const UPLOAD_BYTES: usize = 1_900_000;
/// One attack at a time: each of them needs the processors.
static TURN: Mutex<()> = Mutex::const_new(());
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 1);

/// The server in a process of its own.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(group: &MemoryGroup, kind: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "server_process", "--nocapture"])
            .env(SERVES, kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        group.add(child.id()).unwrap();
        // It serves when it is told to, so that it finds itself in the group.
        drop(child.stdin.take());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = lines.map_while(Result::ok).find_map(|line| {
            let (_, addr) = line.split_once("listening on ")?;
            addr.parse().ok()
        });
        let addr = addr.expect("the server listens");
        Self { child, addr }
    }

    /// Returns the resident memory in MiB.
    #[cfg(target_env = "gnu")]
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.unwrap().trim().trim_end_matches(" kB");
        kibibytes.parse::<u64>().unwrap() >> 10
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test, but the server of the others: does nothing unless one of them has started it.
#[test]
fn server_process() {
    let Ok(kind) = env::var(SERVES) else { return };
    // Waits until the parent has moved this process into its group.
    let _ = std::io::stdin().lines().count();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let app = Router::new()
            .route("/", post(async |body: Bytes| body.len().to_string()))
            .route("/health", get("ok"))
            .route("/hang", get(pending::<()>));
        if kind == WITH_RELEASE {
            Memory::of_process().release(alloc::trim);
        }
        let (budget, cached_bytes) = match &*kind {
            WITH_LARGE_BUDGET | WITH_RELEASE => (Budget::new(2 * LIMIT).unwrap(), 64 << 20),
            _ => (Budget::of_process(), 0),
        };
        let _cache = vec![1u8; cached_bytes];
        let app = if kind == ALONE {
            app
        } else {
            let stack = Stack::edge().byte_budget(budget.clone());
            app.layer(stack.build().unwrap())
        };
        let guard = ConnGuard::builder().byte_budget(budget).build().unwrap();
        let listener = guard.bind("127.0.0.1:0").await.unwrap();
        println!("listening on {}", listener.local_addr().unwrap());
        palisade::serve(listener, app).into_future().await.unwrap();
    });
}

/// Sends an upload but for its last byte, and holds it open. Returns whether the server has refused
/// it by then.
async fn hold_upload(from: Ipv4Addr, to: SocketAddr) -> Option<RawClient> {
    let mut client = RawClient::connect_from(from, to).await.ok()?;
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n");
    client.send(head).await.ok()?;
    let piece = vec![b'x'; 19_000];
    for _ in 0..UPLOAD_BYTES / piece.len() - 1 {
        client.send(&piece).await.ok()?;
    }
    Some(client)
}

/// Uploads so many bytes at once, and returns whether they were served.
async fn is_served(from: Ipv4Addr, to: SocketAddr, bytes: usize) -> bool {
    let upload = async {
        let mut stream = clients::connect(from, to).await.ok()?;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(&vec![b'x'; bytes]).await.ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await.ok()?;
        Some(response.starts_with("HTTP/1.1 200") && response.ends_with(&bytes.to_string()))
    };
    timeout(PATIENCE, upload)
        .await
        .ok()
        .flatten()
        .unwrap_or(false)
}

/// Uploads 10 kB, and sends an HTTP/2 request on a kept connection, again and again for five
/// seconds. Returns how many requests were served, and how many there were.
async fn honest_requests(to: SocketAddr) -> (usize, usize) {
    let (mut served, mut all) = (0, 0);
    let mut client = ServerKind::Tonic.connect(HONEST, to).await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let response = client.get("/health").await;
        served += usize::from(response.is_ok_and(|response| response.status() == 200));
        served += usize::from(is_served(HONEST, to, 10_000).await);
        all += 2;
        sleep(Duration::from_millis(10)).await;
    }
    (served, all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_held_open_do_not_fill_the_memory_of_the_container() {
    hold_uploads(WITH_STACK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_held_open_do_not_fill_it_without_a_stack_either() {
    hold_uploads(ALONE).await;
}

async fn hold_uploads(kind: &str) {
    withstand(kind, |to| start_uploads(UPLOADS, to)).await;
}

/// Starts so many uploads that are held open, each of its own client.
fn start_uploads(count: usize, to: SocketAddr) -> Vec<JoinHandle<Option<RawClient>>> {
    let attackers = (0..count).map(|number| {
        let [high, low] = (number as u16).to_be_bytes();
        let from = Ipv4Addr::new(127, 1, high, low.max(1));
        tokio::spawn(hold_upload(from, to))
    });
    attackers.collect()
}

/// Returns the resident memory of a server in MiB while 70 uploads are held, and the least of so
/// many seconds after they have left.
#[cfg(target_env = "gnu")]
async fn resident_after_uploads(group: &MemoryGroup, kind: &str, seconds: u64) -> (u64, u64) {
    let server = Server::start(group, kind);
    let mut held = Vec::new();
    for attacker in start_uploads(70, server.addr) {
        held.push(attacker.await.unwrap().expect("the upload is not refused"));
    }
    // The server takes what the kernel has received.
    let end = Instant::now() + Duration::from_secs(20);
    while server.resident() < 190 {
        let resident = server.resident();
        assert!(Instant::now() < end, "{resident} MiB are resident");
        sleep(Duration::from_millis(20)).await;
    }
    let before = server.resident();
    drop(held);
    let mut least = before;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && least > before / 2 {
        sleep(Duration::from_millis(20)).await;
        least = least.min(server.resident());
    }
    (before, least)
}

#[cfg(target_env = "gnu")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_the_allocator_keeps_after_uploads_is_returned_by_the_release() {
    let _turn = TURN.lock().await;
    let Some(group) = MemoryGroup::create(LIMIT) else {
        eprintln!("skipped: this process may not create control groups of version 1");
        return;
    };
    let (before, least) = resident_after_uploads(&group, WITH_LARGE_BUDGET, 3).await;
    println!("without a release: {before} MiB while uploads are held, {least} MiB afterwards");
    assert!(least > before * 2 / 3, "there is nothing to return");
    let (before, least) = resident_after_uploads(&group, WITH_RELEASE, 20).await;
    println!("with a release: {before} MiB while uploads are held, {least} MiB afterwards");
    assert!(least < before / 2, "{least} MiB of {before} are kept");
}

/// Attacks a server in a group of its own. Asserts that honest clients are served meanwhile, that
/// the group keeps below its limit, and that large uploads are served afterwards.
async fn withstand(
    kind: &str,
    attack: impl FnOnce(SocketAddr) -> Vec<JoinHandle<Option<RawClient>>>,
) {
    let _turn = TURN.lock().await;
    let Some(group) = MemoryGroup::create(LIMIT) else {
        eprintln!("skipped: this process may not create control groups of version 1");
        return;
    };
    let mut server = Server::start(&group, kind);
    let addr = server.addr;
    assert!(is_served(HONEST, addr, 1 << 20).await);
    let attackers = attack(addr);
    let (served, all) = honest_requests(addr).await;
    assert!(server.is_running(), "the server was killed");
    let peak = group.peak().unwrap() >> 20;
    println!("{kind}: {served} of {all} honest requests served, peak {peak} MiB");
    assert!(served * 100 >= all * 99, "{served} of {all}");
    assert!(peak <= (LIMIT >> 20) * 98 / 100, "{peak}");
    for attacker in attackers {
        drop(attacker.await.unwrap());
    }
    let end = Instant::now() + Duration::from_secs(5);
    while !is_served(HONEST, addr, 1 << 20).await {
        assert!(Instant::now() < end, "large uploads are still refused");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(server.is_running());
}

/// Returns heads of so many short fields on 100 streams of one HTTP/2 connection.
fn heads(fields: usize) -> Vec<u8> {
    let names: Vec<_> = (0..fields).map(|number| format!("x-{number}")).collect();
    let mut head = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/hang"),
        (":authority", "x"),
    ];
    head.extend(names.iter().map(|name| (name.as_str(), "v")));
    let heads = (0..100).flat_map(|stream| h2::headers(2 * stream + 1, 0x1, &head));
    [h2::hello(65_535), heads.collect()].concat()
}

/// Sends `bytes`, and holds the connection open.
async fn hold(from: Ipv4Addr, to: SocketAddr, bytes: Arc<Vec<u8>>) -> Option<RawClient> {
    let mut client = RawClient::connect_from(from, to).await.ok()?;
    client.send(&*bytes).await.ok()?;
    Some(client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_of_many_fields_held_open_do_not_fill_the_memory_of_the_container() {
    // A head of 486 fields is refused by itself. Heads of 100 fields are refused when there are too
    // many of them.
    let (accepted, too_many) = (Arc::new(heads(100)), Arc::new(heads(486)));
    let attack = |to| -> Vec<_> {
        let attackers = (0..40).map(|number: u8| {
            let from = Ipv4Addr::new(127, 2, number, 1);
            let bytes = if number < 32 { &accepted } else { &too_many };
            tokio::spawn(hold(from, to, bytes.clone()))
        });
        attackers.collect()
    };
    withstand(WITH_STACK, attack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_clients_that_upload_a_mebibyte_each_at_once_are_served() {
    let _turn = TURN.lock().await;
    let Some(group) = MemoryGroup::create(LIMIT) else {
        eprintln!("skipped: this process may not create control groups of version 1");
        return;
    };
    let server = Server::start(&group, WITH_STACK);
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
