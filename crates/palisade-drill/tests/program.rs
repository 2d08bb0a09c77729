//! The program, as it is used.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use axum::{Router, routing::get};
use palisade_drill::{
    Report,
    consent::{self, ConsentLine, Secret},
};
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
    time::SystemTime,
};
use tokio::net::TcpListener;

/// Runs the program. Returns its exit code and what it has written.
async fn run(arguments: &[&str]) -> (i32, String) {
    run_with(None, arguments).await
}

/// Runs it with a secret in its environment.
async fn run_with(secret: Option<&str>, arguments: &[&str]) -> (i32, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_palisade-drill"));
    program.args(arguments);
    program.envs(secret.map(|secret| ("PALISADE_DRILL_SECRET", secret)));
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
    serve(Router::new().route("/", get("hello"))).await
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
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
        (&["--tls=no name", &addr], "tls is no name"),
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
    let (code, text) = run(&["--tls", &addr]).await;
    assert!(
        code == 3 && text.contains("leave out `tls`"),
        "{code} {text}"
    );
}

#[tokio::test]
async fn it_makes_a_secret_and_a_line_and_drills_a_server_that_consents() {
    let (code, text) = run(&["consent"]).await;
    let lines: Vec<_> = text.lines().collect();
    let secret: Secret = lines[0].parse().unwrap();
    let line: ConsentLine = lines[1].parse().unwrap();
    assert!(code == 0 && line.is_for(&secret), "{text}");
    let lasts = line.until().duration_since(SystemTime::now()).unwrap();
    assert_eq!(lasts.as_secs().div_ceil(3_600), 4, "{text}");

    // And in a file, which is never replaced.
    let folder = std::env::temp_dir().join(format!("palisade-consent-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("secret").display().to_string();
    let arguments = ["consent", "--hours", "24", "--secret-file", &path];
    let (code, text) = run(&arguments).await;
    let line: ConsentLine = text.lines().next().unwrap().parse().unwrap();
    let kept: Secret = fs::read_to_string(&path).unwrap().parse().unwrap();
    assert!(code == 0 && line.is_for(&kept) && kept != secret, "{text}");
    assert!(!text.contains(&kept.to_string()), "{text}");
    #[cfg(unix)]
    {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
    let (code, text) = run(&arguments).await;
    assert!(code == 2 && text.contains(&path), "{code} {text}");

    // A server that consents to that one is drilled by its holder alone.
    let app = Router::new()
        .route("/", get("hello"))
        .route(consent::PATH, get(line.to_string()));
    let addr = serve(app).await.to_string();
    let drill = [&addr, "--quick", "--only", "churn", "--at-least", "F"];
    let (code, text) = run(&[&drill[..], &["--secret-file", &path]].concat()).await;
    assert!(
        (code == 0 || code == 3) && text.contains("churn (T01)"),
        "{text}"
    );
    let (code, text) = run_with(Some(&secret.to_string()), &drill).await;
    assert!(
        code == 2 && text.contains("holder of another secret"),
        "{code} {text}"
    );
    let (code, text) = run_with(Some("secret"), &drill).await;
    assert!(
        code == 2 && text.contains("no secret of a drill"),
        "{code} {text}"
    );
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn it_says_what_is_wrong_with_a_consent() {
    for (arguments, expected) in [
        (&["consent", "--hours", "25"][..], "25 is not in 1..=24"),
        (&["consent", "--hours", "0"], "0 is not in 1..=24"),
        (&["consent", "--quick"], "unexpected argument"),
        (&["127.0.0.1:1", "--secret-file", "/nowhere"], "/nowhere: "),
        (
            &["127.0.0.1:1", "--secret-file", "/dev/zero"],
            "no secret of a drill",
        ),
        (&["--secret-file", "a", "--", "true"], "cannot be used with"),
    ] {
        let (code, text) = run(arguments).await;
        assert!(
            code == 2 && text.contains(expected),
            "{arguments:?}: {code} {text}"
        );
    }
}

#[tokio::test]
async fn it_lists_the_attacks() {
    let (code, text) = run(&["--list"]).await;
    assert_eq!(code, 0);
    assert_eq!(text.lines().count(), palisade_drill::attacks::all().len());
    assert!(text.contains("T15, CVE-2023-44487"), "{text}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_command_does_not_get_the_secret() {
    let script = "test -z \"$PALISADE_DRILL_SECRET\" || exit 9; exit 8";
    let (_, text) = run_with(Some("a secret"), &["--", "sh", "-c", script]).await;
    assert!(text.contains("exit status: 8"), "{text}");
}
