//! The first requests of a drill: whether the target serves them, and what it answers.

use super::{
    client::PATIENCE,
    dialect::{IS_TLS, explain, explain_handshake, looks_like_tls},
    exchange::{Connection, MAX_BODY_BYTES, Route},
};
use crate::{
    attacks::{
        Protocol,
        h2::frames::{ENABLE_CONNECT_PROTOCOL, PREFACE, SETTINGS, settings},
    },
    error::DrillError,
    sample::Kind,
    target::{Source, Stream, Target},
    text::{printable, printable_bytes},
};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use std::{cell::Cell, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

/// The longest wait for the first frame of an HTTP/2 server.
const MAX_H2_WAIT: Duration = Duration::from_secs(1);
/// The refusals of a request after which the drill gives up, and the pause after each.
const MAX_REFUSALS: usize = 3;
const REFUSAL_PAUSE: Duration = Duration::from_millis(1_100);
/// The longest SETTINGS that are read.
const MAX_SETTINGS_BYTES: usize = 1 << 10;

/// Sends `request` twice and returns the route with the answer to expect, and its headers.
///
/// # Errors
///
/// If the target does not answer with a status of success.
pub(crate) async fn learn(
    target: &Target,
    kind: Kind,
    request: Request<Full<Bytes>>,
) -> Result<(Route, HeaderMap), DrillError> {
    let (status, headers, first) = answer(target, &request).await?;
    let Some(first) = first else {
        let mib = MAX_BODY_BYTES >> 20;
        let reason = format!(
            "the answer to {} is more than {mib} MiB or breaks off: set a cheaper path",
            printable(&request.uri().to_string())
        );
        let target = target.addr();
        return Err(DrillError::NotServed { target, reason });
    };
    // A limit of a request a second is no fault of the first request.
    let second = match answer(target, &request).await {
        Ok((_, _, second)) => second,
        Err(_) => Some(first.clone()),
    };
    let route = Route {
        kind,
        request,
        status,
        body: second.filter(|second| *second == first),
    };
    Ok((route, headers))
}

/// Returns status, headers and body of the answer; no body if it is too long. A refusal for too
/// many requests is followed by another request, because the drill wants a few at once.
async fn answer(
    target: &Target,
    request: &Request<Full<Bytes>>,
) -> Result<(u16, HeaderMap, Option<Bytes>), DrillError> {
    for _ in 0..MAX_REFUSALS {
        match answer_once(target, request).await? {
            (429 | 503, ..) => sleep(REFUSAL_PAUSE).await,
            answer => return Ok(answer),
        }
    }
    let (method, path) = (request.method(), printable(&request.uri().to_string()));
    Err(DrillError::NotServed {
        target: target.addr(),
        reason: format!("{method} {path} is refused again and again, without any attack"),
    })
}

/// Sends `request` once.
async fn answer_once(
    target: &Target,
    request: &Request<Full<Bytes>>,
) -> Result<(u16, HeaderMap, Option<Bytes>), DrillError> {
    let refused = |reason: String| DrillError::NotServed {
        target: target.addr(),
        reason,
    };
    let is_connected = Cell::new(false);
    let exchange = async {
        let connect = target.connect_as(Protocol::Http1, Source::Honest(0), None);
        let stream = connect.await?;
        is_connected.set(true);
        let mut connection = Connection::new(stream)
            .await
            .ok_or(std::io::ErrorKind::ConnectionReset)?;
        let response = connection
            .send(request.clone())
            .await
            .map_err(std::io::Error::other)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        Ok::<_, std::io::Error>((parts, body.ok().map(http_body_util::Collected::to_bytes)))
    };
    let (method, path) = (request.method(), printable(&request.uri().to_string()));
    let exchanged = timeout(PATIENCE, exchange).await;
    let is_handshaking = target.tls().is_some() && !is_connected.get();
    let (parts, body) = match exchanged {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if is_handshaking => {
            return Err(refused(explain_handshake(target, Some(&error)).await));
        }
        Err(_) if is_handshaking => {
            return Err(refused(explain_handshake(target, None).await));
        }
        Ok(Err(error)) => return Err(refused(explain(target, &error).await)),
        Err(_) if target.tls().is_none() && looks_like_tls(target).await => {
            return Err(refused(IS_TLS.to_owned()));
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(refused(format!(
                "no answer to {method} {path} within {seconds} s"
            )));
        }
    };
    let status = parts.status;
    if !status.is_success() && !matches!(status.as_u16(), 429 | 503) {
        let hint = match status.as_u16() {
            300..=399 => {
                let location = parts.headers.get("location");
                let location =
                    location.map_or("nowhere".into(), |to| printable_bytes(to.as_bytes()));
                format!("it redirects to {location}, which the drill does not follow")
            }
            401 | 403 => "set credentials with `header`".to_owned(),
            // What servers of TLS tell a client that does not speak it.
            400 if target.tls().is_none() && looks_like_tls(target).await => IS_TLS.to_owned(),
            404 | 405 => "set a path that exists with `get` or `post`".to_owned(),
            _ => "mend it first".to_owned(),
        };
        return Err(refused(format!(
            "{method} {path} is answered {}: {hint}",
            status.as_u16()
        )));
    }
    Ok((status.as_u16(), parts.headers, body))
}

/// What a target says of its HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Http2 {
    /// Whether it offers extended CONNECT (RFC 8441).
    pub(crate) offers_tunnels: bool,
}

/// Returns what the target says of HTTP/2, with prior knowledge or by ALPN; `None` if it does not
/// speak it.
pub(crate) async fn http2(target: &Target) -> Option<Http2> {
    let first = async {
        let connect = target.connect_as(Protocol::Http2, Source::Honest(0), None);
        let mut stream: Stream = connect.await.ok()?;
        let hello = [PREFACE, &settings(&[])].concat();
        stream.write_all(&hello).await.ok()?;
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        if head[3] != SETTINGS || head[5..] != [0; 4] {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let mut payload = vec![0; length.min(MAX_SETTINGS_BYTES)];
        stream.read_exact(&mut payload).await.ok()?;
        let enable = [ENABLE_CONNECT_PROTOCOL.to_be_bytes(), [0, 0], [0, 1]].concat();
        let offers_tunnels = payload.chunks(6).any(|setting| setting == enable);
        Some(Http2 { offers_tunnels })
    };
    timeout(MAX_H2_WAIT, first).await.ok().flatten()
}
