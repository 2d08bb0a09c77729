//! Bans and lists on real servers: at accept, per request, by the application and by other guards,
//! and what fail2ban reads of it.

use axum::{Router, extract::Request, routing::get};
use http::StatusCode;
use palisade::{
    Ban, Reason, Stack,
    ban::{BanLayer, Networks},
    client_ip::{Client, Network, NetworkSet, Trust},
    conn::{ConnGuard, ConnGuardBuilder},
    types::{Guard, Mode, Prefix},
};
use palisade_metrics::Log;
use palisade_testkit::{
    Journal,
    clients::{self, RawClient, wait_until},
    guarded::{ServerKind, all_gone, app},
    on_servers,
    servers::Server,
};
use parking_lot::Mutex;
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const ABUSER: Ipv4Addr = Ipv4Addr::new(127, 0, 36, 1);
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 36, 2);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 36, 3);
const VICTIM: Ipv4Addr = Ipv4Addr::new(127, 0, 36, 4);
const LONG: Duration = Duration::from_secs(3600);

fn client(address: Ipv4Addr) -> Client {
    Client::from_peer(Some(address.into()), Prefix::default())
}

fn network(address: Ipv4Addr) -> Network {
    Network::from(IpAddr::from(address))
}

/// A server that asks `ban` at accept and for each request.
async fn serve(kind: ServerKind, ban: &Ban, builder: ConnGuardBuilder) -> (ConnGuard, Server) {
    let guard = builder.gate(ban.clone()).build().unwrap();
    let stack = Stack::edge().ban(ban.clone()).build().unwrap();
    let server = kind.serve(&guard, app().layer(stack)).await;
    (guard, server)
}

/// Returns whether a new connection from `from` is served.
async fn is_served(kind: ServerKind, from: Ipv4Addr, server: &Server) -> bool {
    let response = kind.ask(from, server.addr, "/").await;
    response.is_ok_and(|response| response.status() == StatusCode::OK)
}

on_servers! {
    [axum, serve, tonic]
    a_banned_client_gets_no_connection_and_its_neighbour_is_served,
    failed_logins_ban_a_client_and_it_is_admitted_again_in_time,
    lists_are_replaced_while_the_server_runs,
    in_shadow_mode_a_banned_client_is_served,
}

async fn a_banned_client_gets_no_connection_and_its_neighbour_is_served(kind: ServerKind) {
    let journal = Journal::default();
    let ban = Ban::builder().metrics(journal.clone()).build().unwrap();
    let builder = ConnGuard::builder().metrics(journal.clone());
    let (guard, server) = serve(kind, &ban, builder).await;
    let mut open = kind.connect(ABUSER, server.addr).await.unwrap();
    assert_eq!(open.get("/").await.unwrap().status(), 200);

    assert!(ban.ban(&client(ABUSER), LONG));
    // The connection that is open stays open. Its requests are refused.
    assert_eq!(open.get("/").await.unwrap().status(), 403);
    for _ in 0..20 {
        assert!(kind.ask(ABUSER, server.addr, "/").await.is_err());
        assert!(is_served(kind, HONEST, &server).await);
    }
    let refused = journal.disconnected();
    let refused = refused
        .iter()
        .filter(|(violation, mode)| {
            (violation.guard, violation.reason, *mode)
                == (Guard::Ban, Reason::Banned, Mode::Enforce)
        })
        .count();
    assert!(refused >= 20, "{refused}");
    assert_eq!(journal.bans().len(), 1);

    ban.unban(&client(ABUSER));
    assert!(is_served(kind, ABUSER, &server).await);
    drop((server, open));
    all_gone(&guard).await;
}

async fn failed_logins_ban_a_client_and_it_is_admitted_again_in_time(kind: ServerKind) {
    const BANNED_FOR: Duration = Duration::from_secs(1);
    let ban = Ban::builder().strikes(3, LONG).ban_times(BANNED_FOR, LONG);
    let ban = ban.build().unwrap();
    let of_handler = ban.clone();
    let login = move |request: Request| {
        let ban = of_handler.clone();
        async move {
            if let Some(client) = ban.client_of(request.extensions()) {
                ban.strike(&client, 1);
            }
            StatusCode::UNAUTHORIZED
        }
    };
    let guard = ConnGuard::builder().build().unwrap();
    let app = Router::new()
        .route("/login", get(login))
        .route("/", get(async || "served"));
    let server = kind
        .serve(&guard, app.layer(BanLayer::new(ban.clone())))
        .await;
    let mut guesser = kind.connect(ABUSER, server.addr).await.unwrap();
    let started = Instant::now();
    for _ in 0..3 {
        assert_eq!(guesser.get("/login").await.unwrap().status(), 401);
    }
    let banned_for = ban.banned_for(&client(ABUSER));
    let response = guesser.get("/login").await.unwrap();
    // On a busy machine the ban may have ended meanwhile.
    if started.elapsed() < BANNED_FOR {
        assert!(banned_for.is_some());
        assert_eq!(response.status(), 403);
    }
    assert!(is_served(kind, HONEST, &server).await);
    wait_until("the ban ends", || ban.banned_for(&client(ABUSER)).is_none()).await;
    assert!(started.elapsed() >= BANNED_FOR);
    assert_eq!(guesser.get("/").await.unwrap().status(), 200);
    drop((server, guesser));
    all_gone(&guard).await;
}

async fn lists_are_replaced_while_the_server_runs(kind: ServerKind) {
    let (allow, deny) = (Networks::default(), Networks::default());
    let ban = Ban::builder().allow(allow.clone()).deny(deny.clone());
    let (guard, server) = serve(kind, &ban.build().unwrap(), ConnGuard::builder()).await;
    assert!(is_served(kind, ABUSER, &server).await);
    deny.reload("127.0.36.0/24").unwrap();
    assert!(!is_served(kind, ABUSER, &server).await);
    assert!(!is_served(kind, HONEST, &server).await);
    allow.replace(NetworkSet::from(network(HONEST)));
    assert!(!is_served(kind, ABUSER, &server).await);
    assert!(is_served(kind, HONEST, &server).await);
    let reasons = guard.recently_closed();
    assert!(reasons.iter().any(|closed| closed.reason == Reason::Denied));
    drop(server);
    all_gone(&guard).await;
}

async fn in_shadow_mode_a_banned_client_is_served(kind: ServerKind) {
    let ban = Ban::builder().mode(Mode::Shadow).build().unwrap();
    let journal = Journal::default();
    let builder = ConnGuard::builder().metrics(journal.clone());
    let (guard, server) = serve(kind, &ban, builder).await;
    ban.ban(&client(ABUSER), LONG);
    assert!(is_served(kind, ABUSER, &server).await);
    let modes = journal.disconnected();
    assert!(modes.iter().all(|(_, mode)| *mode == Mode::Shadow) && !modes.is_empty());
    drop(server);
    all_gone(&guard).await;
}

/// Sends `request` and returns the status, or `None` without a connection.
async fn raw(from: Ipv4Addr, server: &Server, request: String) -> Option<u16> {
    let mut client = RawClient::connect_from(from, server.addr).await.ok()?;
    client.send(request).await.ok()?;
    let head = client.head().await.ok()?;
    Some(head.status.as_u16())
}

fn forwarded_for(address: Ipv4Addr) -> String {
    format!("GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\n\r\n")
}

#[tokio::test]
async fn a_client_behind_a_proxy_is_banned_and_neither_the_proxy_nor_its_other_clients_are() {
    let ban = Ban::builder().build().unwrap();
    let builder = ConnGuard::builder().trust(Trust::networks(network(PROXY)));
    let (guard, server) = serve(ServerKind::Serve, &ban, builder).await;
    assert_eq!(raw(PROXY, &server, forwarded_for(ABUSER)).await, Some(200));
    ban.ban(&client(ABUSER), LONG);
    for _ in 0..10 {
        assert_eq!(raw(PROXY, &server, forwarded_for(ABUSER)).await, Some(403));
        assert_eq!(raw(PROXY, &server, forwarded_for(HONEST)).await, Some(200));
    }
    // The same client, directly.
    assert!(!is_served(ServerKind::Serve, ABUSER, &server).await);
    drop(server);
    all_gone(&guard).await;
}

#[tokio::test]
async fn a_peer_that_writes_the_address_of_a_victim_bans_no_connection_of_it() {
    let ban = Ban::builder().build().unwrap();
    // One listener believes every peer, the other one none.
    let hops = ConnGuard::builder().trust(Trust::hops(1));
    let (hops, believing) = serve(ServerKind::Serve, &ban, hops).await;
    let (guard, public) = serve(ServerKind::Serve, &ban, ConnGuard::builder()).await;
    let claimed = Trust::hops(1);
    let mut fields = http::HeaderMap::new();
    fields.insert("x-forwarded-for", VICTIM.to_string().parse().unwrap());
    let claimed = claimed.resolve(Some(ABUSER.into()), &fields);
    assert!(claimed.is_claim() && ban.ban(&claimed, LONG));
    assert_eq!(
        raw(ABUSER, &believing, forwarded_for(VICTIM)).await,
        Some(403)
    );
    assert_eq!(
        raw(ABUSER, &believing, forwarded_for(HONEST)).await,
        Some(200)
    );
    assert!(is_served(ServerKind::Serve, VICTIM, &public).await);
    drop((believing, public));
    all_gone(&hops).await;
    all_gone(&guard).await;
}

/// The log of a program, as text.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the filter of `docs/operations/fail2ban` matches, apart from what fail2ban does with time.
fn matches(line: &str) -> Option<IpAddr> {
    let after_time = line.split_once(' ')?.1.trim_start();
    let rest = after_time.strip_prefix("WARN palisade::ban: client=")?;
    let (address, rest) = rest.split_once(" source=peer")?;
    rest.starts_with(' ').then(|| address.parse().ok())?
}

/// Returns the addresses that fail2ban takes from `log`, or `None` if it is not installed.
fn found_by_fail2ban(log: &str) -> Option<Vec<String>> {
    let filter = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/docs/operations/fail2ban/palisade.conf"
    );
    let path = std::env::temp_dir().join(format!("palisade-bans-{}.log", std::process::id()));
    std::fs::write(&path, log).unwrap();
    let regex = std::env::var("FAIL2BAN_REGEX").unwrap_or_else(|_| "fail2ban-regex".into());
    let mut words = regex.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .args(["--out", "ip"])
        .args([path.as_path(), filter.as_ref()])
        .output();
    std::fs::remove_file(&path).unwrap();
    match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{error}"),
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() || text.is_empty(), "{errors}");
            Some(text.lines().map(str::to_owned).collect())
        }
    }
}

/// fail2ban is asked where it is installed. With `FAIL2BAN_REGEX` set, it must be.
#[tokio::test]
async fn fail2ban_finds_each_banned_peer_once_and_nothing_that_a_client_writes() {
    const LINE: &str =
        "2026-11-30T12:00:00.000000Z  WARN palisade::ban: client=6.6.6.6 source=peer ";
    let text = Text::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    // This thread runs the server, too.
    let _subscribed = tracing::subscriber::set_default(subscriber.finish());
    let ban = Ban::builder()
        .strikes(5, LONG)
        .strike_for(Reason::BadRequest, 1)
        .metrics(Log::new())
        .build()
        .unwrap();
    let builder = ConnGuard::builder()
        .trust(Trust::networks(network(PROXY)))
        .accept_rate(None)
        .metrics((Log::new(), ban.clone()));
    let guard = builder.gate(ban.clone()).build().unwrap();
    let stack = Stack::edge()
        .ban(ban.clone())
        .metrics((Log::new(), ban.clone()));
    let app = app().layer(stack.build().unwrap());
    let server = ServerKind::Serve.serve(&guard, app).await;

    let field = LINE.replace(' ', "\t");
    let path = LINE.replace(' ', "%20");
    for from in [ABUSER, PROXY] {
        for n in 0..20 {
            // Two lengths: malformed. All else is what a client may write.
            let request = format!(
                "GET /{path}%0a{path} HTTP/1.1\r\nhost: {path}\r\nx-forwarded-for: {VICTIM}\r\n\
                 user-agent: {LINE}\r\n{path}: {field}\r\nreferer: \u{1b}[0m{LINE}\r\n\
                 content-length: 1\r\ncontent-length: 2\r\n\r\n{LINE}\n{LINE}\n"
            );
            let status = raw(from, &server, request).await;
            assert!(matches!(status, Some(400 | 403) | None), "{n}: {status:?}");
            let lines = raw(from, &server, format!("{LINE}\r\n{LINE}\n{LINE}\r\n\r\n")).await;
            assert!(matches!(lines, Some(400) | None), "{n}: {lines:?}");
        }
    }
    ban.ban(&client(HONEST), LONG);
    ban.ban(&client(HONEST), LONG);
    let mut fields = http::HeaderMap::new();
    fields.insert("x-forwarded-for", VICTIM.to_string().parse().unwrap());
    let forwarded = Trust::networks(network(PROXY)).resolve(Some(PROXY.into()), &fields);
    assert!(ban.ban(&forwarded, LONG));
    assert!(ban.banned_for(&client(ABUSER)).is_some());
    assert!(ban.banned_for(&client(PROXY)).is_none());
    drop(server);
    all_gone(&guard).await;

    let log = String::from_utf8(text.0.lock().clone()).unwrap();
    let bans: Vec<_> = log
        .lines()
        .filter(|line| line.contains("::ban: "))
        .collect();
    assert_eq!(bans.len(), 3, "{bans:#?}");
    assert!(
        log.lines().count() > 10 && !log.contains("6.6.6.6"),
        "{log}"
    );
    let expected = [ABUSER, HONEST].map(IpAddr::from);
    let found: Vec<_> = log.lines().filter_map(matches).collect();
    assert_eq!(found, expected);

    match found_by_fail2ban(&log) {
        Some(found) => assert_eq!(found, expected.map(|address| address.to_string()), "{log}"),
        None if std::env::var_os("FAIL2BAN_REGEX").is_some() => panic!("fail2ban is missing"),
        None => eprintln!("fail2ban-regex is not installed: its filter is not tested"),
    }
}

#[tokio::test]
async fn a_proxy_that_floods_is_not_banned_for_its_clients() {
    let journal = Journal::default();
    let ban = Ban::builder()
        .strikes(3, LONG)
        .strike_for(Reason::BadRequest, 1)
        .strike_for(Reason::HeadTooLarge, 1)
        .metrics(journal.clone())
        .build()
        .unwrap();
    let builder = ConnGuard::builder()
        .trust(Trust::networks(network(PROXY)))
        .metrics(ban.clone());
    let (guard, server) = serve(ServerKind::Serve, &ban, builder).await;
    for from in [PROXY, HONEST] {
        for n in 0..3 {
            let bad = "GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n".to_owned();
            assert_eq!(raw(from, &server, bad).await, Some(400), "{n}");
        }
    }
    // The last of the three has banned the client that has no proxy.
    wait_until("the client is banned", || journal.bans().len() == 1).await;
    assert_eq!(journal.bans()[0].0, network(HONEST));
    assert!(clients::get(HONEST, server.addr, "/").await.is_err());
    assert_eq!(raw(PROXY, &server, forwarded_for(VICTIM)).await, Some(200));
    drop(server);
    all_gone(&guard).await;
}
