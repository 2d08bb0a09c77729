//! The program, as it is used.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use axum::{Router, routing::get};
use palisade_drill::Report;
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
};
use tokio::net::TcpListener;

/// Runs the program. Returns its exit code and what it has written.
async fn run(arguments: &[&str]) -> (i32, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_palisade-drill"));
    program.args(arguments);
    let ended = tokio::task::spawn_blocking(move || program.output());
    let Output {
        status,
        stdout,
        stderr,
    } = ended.await.unwrap().unwrap();
    let text = [stdout, stderr].concat();
    (status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Starts a server that answers `/` with 200 and the rest with 404.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let app = Router::new().route("/", get("hello"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

fn temporary(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("palisade-drill-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

#[tokio::test]
async fn it_drills_a_server_and_writes_every_report() {
    let addr = server().await.to_string();
    let files = ["json", "html", "junit", "markdown"].map(|form| {
        let path = temporary(&format!("report.{form}")).display().to_string();
        (form, path)
    });
    let mut arguments = vec![
        addr.as_str(),
        "--quick",
        "--only",
        "churn",
        "--at-least",
        "C",
    ];
    let options = files.each_ref().map(|(form, _)| format!("--{form}"));
    for (option, (_, path)) in options.iter().zip(&files) {
        arguments.extend([option.as_str(), path]);
    }
    let (code, text) = run(&arguments).await;
    // On a machine that is busy nothing may be said.
    assert!(code == 0 || code == 3, "{text}");
    assert!(text.contains("churn (T01)"), "{text}");
    let json = fs::read_to_string(&files[0].1).unwrap();
    assert_eq!(Report::from_json(&json).unwrap().attacks.len(), 1);
    for (form, path) in &files {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("churn"), "{form}: {text}");
    }
    // And compares with the first one.
    let arguments = ["--before", &files[0].1, "--quick", "--only", "churn", &addr];
    let (_, text) = run(&arguments).await;
    assert!(
        text.contains(", before ") && text.contains("grade "),
        "{text}"
    );
    fs::remove_dir_all(temporary("")).unwrap();
}

#[tokio::test]
async fn it_says_what_is_wrong_and_attacks_nothing() {
    let addr = server().await.to_string();
    for (arguments, expected) in [
        (&[][..], "required"),
        (&["--at-least", "D", &addr], "allowed are A, B, C and F"),
        (&["--header", "name", &addr], "allowed is 'name: value'"),
        (&["192.0.2.1:80"], "only loopback addresses are attacked"),
        (&["--only", "nothing", &addr], "only is nothing"),
        (&["--places", "0", &addr], "places is 0"),
        (&["--file-limit", "128", &addr], "file_limit is 128"),
        (&["--memory-limit", "64", &addr], "memory_limit is 67108864"),
        (&[&addr, "--", "true"], "cannot be used with"),
        (&["--before", "/nowhere.json", &addr], "/nowhere.json: "),
    ] {
        let (code, text) = run(arguments).await;
        assert!(
            code == 2 && text.contains(expected),
            "{arguments:?}: {code} {text}"
        );
    }
    for command in ["true", "/nonexistent/server"] {
        let (code, text) = run(&["--", command]).await;
        assert!(
            code == 3 && text.contains("serves nothing"),
            "{code} {text}"
        );
    }
    let (code, text) = run(&["--get", "/other", &addr]).await;
    assert!(code == 3 && text.contains("404"), "{code} {text}");
}

#[tokio::test]
async fn it_lists_the_attacks() {
    let (code, text) = run(&["--list"]).await;
    assert_eq!(code, 0);
    assert_eq!(text.lines().count(), palisade_drill::attacks::all().len());
    assert!(text.contains("T15, CVE-2023-44487"), "{text}");
}
