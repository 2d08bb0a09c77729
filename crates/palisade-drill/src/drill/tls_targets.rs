//! Targets that speak TLS, and those that are said to.

use super::bad_targets::{answer, refusal, server};
use crate::{Drill, DrillError, Grade, Kind, Report, tls::tests as tls};
use axum::{Router, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier},
};

const HTTP: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const IS_TLS: &str = "it looks like TLS: set `tls`";
const IS_CLEAR: &str = "it looks like clear text: leave out `tls`";

/// Serves an app of one route over TLS, in the versions of HTTP that are named.
async fn serve(listener: TcpListener, protocols: &'static [&'static str]) {
    let app = Router::new().route("/", get(async || "hello"));
    tls::serve(listener, protocols, move |stream| {
        let service = TowerToHyperService::new(app.clone());
        async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
}

async fn app(listener: TcpListener) {
    serve(listener, &["h2", "http/1.1"]).await;
}

/// Answers a request in clear text with `clear`, and a handshake with `hello`. Closes the
/// connection after it, or leaves it open if `stays`.
async fn by_first_byte(
    mut stream: TcpStream,
    clear: &'static [u8],
    hello: &'static [u8],
    stays: bool,
) -> io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    let bytes = if first == *b"G" { clear } else { hello };
    if !stays || first == *b"G" {
        return answer(stream, bytes).await;
    }
    stream.write_all(bytes).await?;
    while stream.read(&mut [0; 4_096]).await? > 0 {}
    Ok(())
}

#[tokio::test]
async fn tls_where_clear_text_was_said_is_named() {
    let text = refusal(Drill::serving(app)).await;
    assert!(text.ends_with(IS_TLS), "{text}");
    // Servers that close the connection, or that answer in clear text, as nginx and Go do.
    const HELLO: &[u8] = &[22, 3, 3, 0, 4, 2, 0, 0, 0];
    let answers: [&[u8]; 2] = [
        b"",
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
    ];
    for clear in answers {
        let server = server(move |stream| by_first_byte(stream, clear, HELLO, false));
        let text = refusal(server).await;
        assert!(text.ends_with(IS_TLS), "{text}");
    }
}

#[tokio::test]
async fn clear_text_where_tls_was_said_is_named() {
    let hyper = Drill::serving(async |listener: TcpListener| {
        axum::serve(listener, Router::new().route("/", get("hello"))).await
    });
    let text = refusal(hyper.tls("localhost")).await;
    assert!(text.ends_with(IS_CLEAR), "{text}");
    let closes = server(|stream| by_first_byte(stream, HTTP, b"", false));
    let text = refusal(closes.tls("localhost")).await;
    assert!(text.ends_with(IS_CLEAR), "{text}");
}

#[tokio::test]
async fn a_server_that_ends_the_handshake_is_named_with_the_alert_and_what_to_do() {
    let unknown = server(|stream| answer(stream, &[21, 3, 3, 0, 2, 2, 112]));
    let text = refusal(unknown.tls("localhost")).await;
    let expected = "it ends the TLS handshake (received fatal alert: UnrecognisedName)";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.ends_with("set the name of a host that it serves with `tls`"),
        "{text}"
    );

    let closes = server(|_| async { Ok(()) });
    let text = refusal(closes.tls("localhost")).await;
    assert!(
        text.contains("it does not answer a TLS handshake: is that the port?"),
        "{text}"
    );
}

/// Returns a server that asks clients for a certificate.
fn strict() -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![made.cert.der().clone()], key);
    Arc::new(config.unwrap())
}

#[tokio::test]
async fn a_server_that_asks_clients_for_a_certificate_is_named_so() {
    let drill = Drill::serving(async |listener: TcpListener| {
        let acceptor = TlsAcceptor::from(strict());
        while let Ok((stream, _)) = listener.accept().await {
            let accept = acceptor.accept(stream);
            tokio::spawn(async move { accept.await.is_ok() });
        }
    });
    let text = refusal(drill.tls("localhost")).await;
    assert!(
        text.ends_with("let it serve clients without a certificate"),
        "{text}"
    );
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up_and_told_from_clear_text_that_waits() {
    // The head of a long record.
    const BEGINNING: &[u8] = &[22, 3, 3, 0, 200, 2, 0];
    let endless = server(|stream| by_first_byte(stream, b"", BEGINNING, true));
    let waits = server(|stream| by_first_byte(stream, HTTP, b"", true));
    let (endless, waits) = tokio::join!(
        refusal(endless.tls("localhost")),
        refusal(waits.tls("localhost"))
    );
    let expected = "its TLS handshake does not end within 5 s: mend it first";
    assert!(endless.ends_with(expected), "{endless}");
    assert!(waits.ends_with(IS_CLEAR), "{waits}");
}

#[tokio::test]
async fn a_name_that_no_handshake_can_ask_for_is_a_wrong_option() {
    let error = Drill::serving(app).tls("no name").run().await.unwrap_err();
    assert!(matches!(error, DrillError::Config(_)), "{error:?}");
    let expected = "tls is no name, allowed is the name of a host, or an IP address";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[tokio::test]
async fn a_server_in_tls_is_drilled_by_all_sides() {
    let _turn = super::tests::TURNS.acquire().await;
    let drill = Drill::serving(app).tls("localhost").quick();
    let report: Report = drill.only("handshake-flood").run().await.unwrap();
    let attack = report.attack("handshake-flood").unwrap();
    // Each of 64 makes a handshake at least, and gets an answer.
    assert!(attack.attackers.opened > 64, "{report}");
    assert!(attack.attackers.received_per_second > 6_400.0, "{report}");
    let kinds: Vec<_> = attack.honest.iter().map(|honest| honest.kind).collect();
    let expected = [
        Kind::NewConnection,
        Kind::KeepAlive,
        Kind::Http2,
        Kind::SlowHandshake,
    ];
    assert_eq!(kinds, expected);
    for honest in &attack.honest {
        assert!(honest.before.served > 0, "{report}");
    }
    assert_eq!(report.cautions.len(), 0, "{report}");
    assert!(report.to_string().contains(" over TLS: "), "{report}");
    assert!(report.grade() != Some(Grade::F), "{report}");
}

#[tokio::test]
async fn http2_that_the_server_does_not_choose_is_skipped_by_name() {
    let _turn = super::tests::TURNS.acquire().await;
    let drill = Drill::serving(|listener| serve(listener, &["http/1.1"])).tls("127.0.0.1");
    let report = drill.quick().only("rapid-reset").run().await.unwrap();
    assert!(
        report.attacks.is_empty() && report.cautions.is_empty(),
        "{report}"
    );
    let reason = "rapid-reset: the target does not choose HTTP/2 by ALPN";
    assert!(report.to_string().contains(reason), "{report}");
}
