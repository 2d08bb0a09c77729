//! What a target speaks that does not answer as expected: one sentence that says what to do.

use super::client::PATIENCE;
use crate::{
    attacks::{
        Protocol,
        h2::frames::SETTINGS,
        tls::hello::{ALERT, HANDSHAKE, Random, VERSION, client_hello},
    },
    target::{Source, Target},
    text::{printable, printable_bytes},
    tls,
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// The longest wait for the first bytes of an answer.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// The bytes of an answer that are looked at.
const MAX_START_BYTES: usize = 64;

#[cfg(feature = "rustls")]
pub(super) const IS_TLS: &str = "it looks like TLS: set `tls`";
#[cfg(not(feature = "rustls"))]
pub(super) const IS_TLS: &str = "it looks like TLS: set `tls`, which the feature `rustls` adds";
const IS_CLEAR: &str = "it looks like clear text: leave out `tls`";

/// Returns what the target speaks instead of HTTP/1, or why a request that began is not answered.
pub(super) async fn explain(target: &Target, error: &io::Error) -> String {
    if let Some(hint) = tls::hint(error) {
        let error = innermost(error);
        return format!("it ends the TLS connection ({}): {hint}", printable(&error));
    }
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let connect = target.connect_as(Protocol::Http1, Source::Honest(0), None);
    let start = async { start(connect.await.ok()?, request).await };
    let start = timeout(MAX_WAIT, start).await.ok().flatten();
    match start.as_deref().unwrap_or_default() {
        _ if target.tls().is_none() && looks_like_tls(target).await => IS_TLS.to_owned(),
        [] => format!("it closes the connection without an answer ({error})"),
        [_, _, _, SETTINGS, _, 0, 0, 0, 0, ..] => {
            "it speaks HTTP/2 alone, and the honest requests are HTTP/1".to_owned()
        }
        bytes if bytes.starts_with(b"HTTP/1.") => format!("its answer breaks off ({error})"),
        bytes => format!("it does not speak HTTP: {}", printable_bytes(bytes)),
    }
}

/// Returns why the target makes no TLS handshake: with the error of one, or after a long wait.
pub(super) async fn explain_handshake(target: &Target, error: Option<&io::Error>) -> String {
    if looks_like_tls(target).await {
        return match error {
            Some(error) => {
                let hint = tls::hint(error).unwrap_or("its log tells why");
                let error = innermost(error);
                format!("it ends the TLS handshake ({}): {hint}", printable(&error))
            }
            None => format!(
                "its TLS handshake does not end within {} s: mend it first",
                PATIENCE.as_secs()
            ),
        };
    }
    if looks_like_clear_text(target).await {
        return IS_CLEAR.to_owned();
    }
    let text = "it does not answer a TLS handshake: is that the port?";
    match error {
        Some(error) => format!("{text} ({})", printable(&innermost(error))),
        None => text.to_owned(),
    }
}

/// Returns whether the target answers a `ClientHello` with a record of TLS.
pub(super) async fn looks_like_tls(target: &Target) -> bool {
    let hello = client_hello(&host(target), &mut Random::new(0, 0));
    let start = first(target, &hello).await;
    matches!(&*start, [ALERT | HANDSHAKE, VERSION, ..])
}

/// Returns whether the target answers a request in clear text.
async fn looks_like_clear_text(target: &Target) -> bool {
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let start = first(target, request).await;
    start.starts_with(b"HTTP/1.") || matches!(&*start, [_, _, _, SETTINGS, ..])
}

/// Returns the first bytes that the target answers to `bytes` on a bare connection.
async fn first(target: &Target, bytes: &[u8]) -> Vec<u8> {
    let connect = target.connect(Source::Honest(0), None);
    let start = async { start(connect.await.ok()?, bytes).await };
    let start = timeout(MAX_WAIT, start).await.ok().flatten();
    start.unwrap_or_default()
}

async fn start(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Option<Vec<u8>> {
    stream.write_all(bytes).await.ok()?;
    let mut start = vec![0; MAX_START_BYTES];
    let count = stream.read(&mut start).await.ok()?;
    start.truncate(count);
    Some(start)
}

/// Returns the host that a handshake asks for, and the port.
fn host(target: &Target) -> String {
    let addr = target.addr();
    let tls = target.tls();
    tls.map_or_else(|| addr.to_string(), |tls| tls.host(addr))
}

/// Returns the text of the error within others, which tells most.
fn innermost(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.get_ref().and_then(std::error::Error::source);
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    text
}
