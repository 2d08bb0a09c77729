//! nginx and `HAProxy` as their manuals harden them, in child processes, with the app of the other
//! servers behind them (T01, T03, T04, T06, T07, T11).
//!
//! Where one of them is not installed, its tests are skipped with a message, unless
//! `PALISADE_REQUIRES_PROXIES` is set.

use crate::{
    HARMED, HELD, KEPT, Row, check_drill, row,
    servers::{self, PROXY_PLACES},
};
use palisade_drill::Drill;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tokio::net::TcpListener;

#[tokio::test]
async fn nginx_hardened() {
    let Some(folder) = folder("nginx", "-v") else {
        return;
    };
    fs::write(folder.join("large"), vec![b'x'; 1 << 20]).unwrap();
    fs::write(folder.join("hello"), "hello\n").unwrap();
    let config = nginx_config(&folder, app().await);
    fs::write(folder.join("nginx.conf"), config).unwrap();
    let make = || {
        // Its configuration has no variables of the environment.
        let script = "echo \"listen 127.0.0.1:$PORT;\" >\"$0/listen.conf\" && \
                      exec nginx -p \"$0\" -e \"$0/error.log\" -c \"$0/nginx.conf\"";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&folder);
        command
    };
    let table = [
        row("silent", HELD, "it closes silent connections for newcomers"),
        row("keep-alive-silence", HELD, "so it does idle ones"),
        row(
            "dripped-head",
            HARMED,
            "none that has begun a head, before its timeout: palisade evicts",
        ),
        row(
            "slow-body",
            HARMED,
            "its timeout is for the gap between two reads: palisade asks for a rate",
        ),
        row(
            "slow-reader",
            HARMED,
            "none before its timeout: palisade evicts",
        ),
        row(
            "declared-huge-body",
            HARMED,
            "after 413 it reads on, for a time that no option ends: palisade evicts",
        ),
        row("flood-from-one-address", HELD, "limit_req"),
        row(
            "invented-identities",
            HELD,
            "the key is the address of the peer",
        ),
        row("forty-assets", HELD, "limit_conn and the burst allow it"),
        row("hundred-behind-one-address", HELD, "so do they this"),
        row(
            "slow-steady-upload",
            HELD,
            "no gap is as long as its timeout",
        ),
    ];
    check_proxy(make, &table).await;
}

#[tokio::test]
async fn haproxy_hardened() {
    let Some(folder) = folder("haproxy", "-v") else {
        return;
    };
    let config = folder.join("haproxy.cfg");
    fs::write(&config, haproxy_config(app().await)).unwrap();
    let make = || {
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        command
    };
    let table = [
        row(
            "silent",
            HARMED,
            "newcomers wait until a timeout ends: palisade evicts",
        ),
        row("keep-alive-silence", HARMED, "so they do"),
        row("dripped-head", HARMED, "so they do"),
        row("slow-reader", HARMED, "so they do"),
        row("flood-from-one-address", HELD, "a stick table of requests"),
        row(
            "invented-identities",
            HELD,
            "the key is the address of the peer",
        ),
        row("forty-assets", HELD, "both rates allow it"),
        row("hundred-behind-one-address", HELD, "so do they this"),
        row(
            "slow-steady-upload",
            HELD,
            "no gap is as long as its timeout",
        ),
        row("rapid-reset", HELD, "a stream that is reset has no thread"),
        row("ping-flood", HELD, "it answers them in little time"),
        row(
            "h2-idle",
            HARMED,
            "newcomers wait until a timeout ends: palisade evicts",
        ),
        row(
            "h2-malformed",
            KEPT,
            "it passes one of the four kinds on: palisade refuses all",
        ),
    ];
    check_proxy(make, &table).await;
}

#[tokio::test]
async fn palisade_holds_what_proxies_hold_and_what_they_do_not() {
    let held = |attack| row(attack, HELD, "as nginx or HAProxy do, or as they do not");
    let young = "as with them: an upload or a response that has just begun gives no place up";
    let table = [
        row("slow-body", HARMED, young),
        row("slow-reader", HARMED, young),
        held("silent"),
        held("keep-alive-silence"),
        held("dripped-head"),
        held("declared-huge-body"),
        held("flood-from-one-address"),
        held("invented-identities"),
        held("forty-assets"),
        held("hundred-behind-one-address"),
        held("slow-steady-upload"),
        held("rapid-reset"),
        held("ping-flood"),
        held("h2-idle"),
        held("h2-malformed"),
    ];
    let serve = || Drill::serving(servers::palisade_as_a_proxy);
    check_drill(|| serve().places(PROXY_PLACES).get("/cheap"), &table).await;
}

async fn check_proxy(make: impl Fn() -> Command, table: &[Row]) {
    let make = || Drill::child(make()).places(PROXY_PLACES);
    check_drill(make, table).await;
}

/// Returns an empty folder for `program`, or `None` where that is not installed.
fn folder(program: &str, version: &str) -> Option<PathBuf> {
    let run = Command::new(program)
        .arg(version)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = run {
        assert!(
            std::env::var_os("PALISADE_REQUIRES_PROXIES").is_none(),
            "{program}: {error}"
        );
        println!("skipped: {program} is not installed");
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("drill-{program}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    Some(folder)
}

/// Serves the app behind a proxy. Ends with the test.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, servers::app()).await });
    addr
}

/// nginx answers `/` and the file `/large` itself, and reads an upload before the app sees it.
fn nginx_config(folder: &Path, app: SocketAddr) -> String {
    // A listener, a channel to the master, and uploads under way to the app.
    let connections = PROXY_PLACES + 12;
    let folder = folder.display();
    format!(
        r#"
daemon off;
user root;
pid {folder}/nginx.pid;
worker_processes 1;
worker_rlimit_nofile 4096;
events {{
  worker_connections {connections};
}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;

  client_header_timeout 2s;
  client_body_timeout 2s;
  send_timeout 2s;
  keepalive_timeout 10s;
  reset_timedout_connection on;
  client_max_body_size 1m;
  lingering_time 2s;
  lingering_timeout 2s;
  limit_conn_zone $binary_remote_addr zone=connections:1m;
  limit_conn connections 150;
  limit_conn_status 429;
  limit_req_zone $binary_remote_addr zone=requests:1m rate=100r/s;
  limit_req zone=requests burst=200 nodelay;
  limit_req_status 429;

  server {{
    include {folder}/listen.conf;
    root {folder};
    location = / {{
      # Without a phase of its own, `return` would come before the limits.
      try_files /hello =404;
    }}
    location = /large {{
    }}
    location = /upload {{
      proxy_pass http://{app};
    }}
  }}
}}
"#
    )
}

/// `HAProxy` answers `/` itself, and reads the beginning of an upload before the app sees it.
fn haproxy_config(app: SocketAddr) -> String {
    format!(
        r#"
global
  maxconn {PROXY_PLACES}
  nbthread 1
defaults
  mode http
  timeout connect 1s
  timeout server 10s
  timeout client 3s
  timeout http-request 2s
  timeout http-keep-alive 10s
  timeout queue 1s
  option http-buffer-request
frontend all
  bind "127.0.0.1:${{PORT}}"
  maxconn {PROXY_PLACES}
  stick-table type ip size 100k expire 30s store http_req_rate(1s),conn_cur
  tcp-request connection track-sc0 src
  tcp-request connection reject if {{ sc_conn_cur(0) gt 150 }}
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 200 }}
  http-request return status 200 content-type text/plain string "hello" if {{ path / }}
  default_backend app
backend app
  server app {app} maxconn 32
"#
    )
}
