//! One question for the consent of a target, and what is made of the answer. The connection is that
//! of the caller.

use super::{
    MAX_TIME, PATH,
    line::{ConsentLine, MAX_BYTES},
    secret::Secret,
    time::Clock,
};
use crate::{
    plan::USER_AGENT,
    text::{printable, printable_bytes},
};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{net::SocketAddr, pin::pin, str, time::Duration};
use tokio::{
    io::{self, AsyncRead, AsyncReadExt, AsyncWrite},
    time::timeout,
};

/// The longest wait for the answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of an answer.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The bytes of an answer that are read at most, whatever hyper makes of them: informational heads
/// and the zeros before the size of a chunk may go on for ever.
const MAX_ANSWER_BYTES: u64 = 32 << 10;

/// The fields of an answer that passed a proxy, a cache or a network of such.
const PROXY_FIELDS: [&str; 20] = [
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "age",
    "cache-status",
    "proxy-status",
    "cdn-cache-control",
    "cf-ray",
    "cf-cache-status",
    "fly-request-id",
    "x-amz-cf-id",
    "x-cache",
    "x-envoy-upstream-service-time",
    "x-fastly-request-id",
    "x-proxy-cache",
    "x-served-by",
    "x-varnish",
    "x-vercel-id",
];
/// How `Server` begins where a network of proxies answers for all of its customers.
const PROXY_SERVERS: [&str; 6] = [
    "akamai",
    "awselb",
    "cloudflare",
    "cloudfront",
    "fly/",
    "google frontend",
];

/// Why a target does not consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Whether the target has said so. Otherwise it has said nothing, and may be busy.
    pub(super) is_final: bool,
    /// The sentence, with what to do.
    pub(super) reason: String,
}

/// An answer that was read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// `None` if it is longer than any line.
    body: Option<Bytes>,
}

/// Asks `addr` over the connection that `connect` opens, once. No redirect is followed, and nothing
/// but this request is sent: no credential of the drill's own.
///
/// # Errors
///
/// If `addr` does not consent now to the holder of `secret`.
///
/// # Cancel safety
///
/// When the future is dropped, the connection is.
pub(super) async fn ask<S>(
    connect: impl Future<Output = io::Result<S>>,
    addr: SocketAddr,
    secret: &Secret,
    clock: &Clock,
) -> Result<ConsentLine, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let silent = |what: String| Refusal {
        is_final: false,
        reason: format!(
            "{what}: start the server first, and publish the line of `palisade-drill consent` there"
        ),
    };
    let exchange = async { exchange(connect.await?, addr).await };
    let answer = match timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let error = printable(&error.to_string());
            return Err(silent(format!("GET {PATH} has no HTTP answer ({error})")));
        }
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            return Err(silent(format!(
                "GET {PATH} has no answer within {seconds} s"
            )));
        }
    };
    let is_busy = matches!(answer.status.as_u16(), 429 | 503);
    judge(&answer, secret, clock).map_err(|reason| Refusal {
        is_final: !is_busy,
        reason,
    })
}

/// Sends the request and reads the whole answer.
async fn exchange<S>(stream: S, addr: SocketAddr) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(PATH)
        .header(header::HOST, addr.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let (reader, writer) = io::split(stream);
    let stream = io::join(reader.take(MAX_ANSWER_BYTES), writer);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let answer = async move {
        let response = sender.send_request(request).await;
        let (parts, body) = response.map_err(io::Error::other)?.into_parts();
        let body = match Limited::new(body, MAX_BYTES).collect().await {
            Ok(body) => Some(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => None,
            Err(error) => return Err(io::Error::other(error)),
        };
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    };
    let (mut answer, mut connection) = (pin!(answer), pin!(connection));
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What it has read before its end is still to be taken.
        _ = &mut connection => answer.await,
    }
}

/// Returns the line of `answer`, if it consents now to the holder of `secret`.
fn judge(answer: &Answer, secret: &Secret, clock: &Clock) -> Result<ConsentLine, String> {
    if let Some(proxy) = proxy(&answer.headers) {
        return Err(format!(
            "a proxy answers for it ({proxy}), which has not consented: drill the server itself, \
             at its own address"
        ));
    }
    let status = answer.status.as_u16();
    if answer.status.is_redirection() {
        let location = answer.headers.get(header::LOCATION);
        let location = location.map_or("nowhere".into(), |to| printable_bytes(to.as_bytes()));
        return Err(format!(
            "GET {PATH} is redirected to {location}, which the drill does not follow: publish the \
             line at the address itself"
        ));
    }
    if status != 200 {
        return Err(format!(
            "GET {PATH} is answered {status}: publish the line of `palisade-drill consent` there"
        ));
    }
    let Some(body) = &answer.body else {
        return Err(format!(
            "the answer to GET {PATH} is longer than a line of consent: publish the line alone"
        ));
    };
    let line = str::from_utf8(body).ok().and_then(|text| text.parse().ok());
    let Some(line): Option<ConsentLine> = line else {
        return Err(format!(
            "the answer to GET {PATH} is no line of consent but \"{}\": publish the line as \
             `palisade-drill consent` prints it",
            printable_bytes(body)
        ));
    };
    if !line.is_for(secret) {
        return Err(
            "it consents to the holder of another secret: use the secret that was printed with \
             its line"
                .to_owned(),
        );
    }
    let (now, end) = (clock.now(), line.end());
    if now >= line.ends() {
        return Err(format!(
            "its consent ended at {end}: publish a new line of `palisade-drill consent`"
        ));
    }
    if line.ends() - now > MAX_TIME {
        return Err(format!(
            "its consent ends at {end}, more than 24 hours ahead: publish a new line of \
             `palisade-drill consent`, and set the clock of this machine"
        ));
    }
    Ok(line)
}

/// Returns the field that shows a proxy.
fn proxy(headers: &HeaderMap) -> Option<String> {
    let shown = |name: &str, value: &http::HeaderValue| {
        let value = printable_bytes(value.as_bytes());
        format!("{name}: {value}")
    };
    let field = PROXY_FIELDS.iter().find_map(|name| {
        let value = headers.get(*name)?;
        Some(shown(name, value))
    });
    field.or_else(|| {
        let values = headers.get_all(header::SERVER).iter();
        let mut proxies = values.filter(|value| {
            let value = value.as_bytes().to_ascii_lowercase();
            PROXY_SERVERS
                .iter()
                .any(|name| value.starts_with(name.as_bytes()))
        });
        proxies.next().map(|value| shown("server", value))
    })
}
