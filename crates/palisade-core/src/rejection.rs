//! A guard's decision against a request, and the response to the client.

mod retry_info;

use crate::{BoxError, Guard, GuardBody, Phase, Reason};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, TE},
};
use http_body::{Body, Frame};
use std::{fmt, time::Duration};

/// The rule that was broken, in numbers. Also the error of a body that a guard cuts.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The guard that has the rule.
    pub guard: Guard,
    /// The rule.
    pub reason: Reason,
    /// What the request or the connection was doing.
    pub phase: Phase,
    /// The value that the rule allows, in [`Reason::unit`].
    pub limit: u64,
    /// The value that was observed, in [`Reason::unit`].
    pub observed: u64,
}

impl Violation {
    /// Creates a violation: the rule allows `limit`, and `observed` was observed.
    ///
    /// ```
    /// use palisade_core::{Guard, Phase, Reason, Violation};
    /// let broken = Violation::new(Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody, 10, 11);
    /// let text = "body_limit: too_large in request_body: 11 where 10 is allowed, in bytes";
    /// assert_eq!(broken.to_string(), text);
    /// ```
    pub const fn new(
        guard: Guard,
        reason: Reason,
        phase: Phase,
        limit: u64,
        observed: u64,
    ) -> Self {
        Self {
            guard,
            reason,
            phase,
            limit,
            observed,
        }
    }

    /// Returns the last frame of a response body that is cut for this violation.
    ///
    /// The response head has been sent. A gRPC response still ends properly, with trailers that
    /// have the status. In every other format the body can only fail.
    ///
    /// ```
    /// # use palisade_core::{Guard, Phase, Reason, ResponseFormat, Violation};
    /// let phase = Phase::ResponseBody;
    /// let slow = Violation::new(Guard::SlowBody, Reason::Gap, phase, 120_000, 120_001);
    /// let last = slow.final_frame(ResponseFormat::Grpc)?;
    /// let trailers = last.into_trailers().expect("a frame of trailers");
    /// assert_eq!(trailers["grpc-status"], "4"); // DEADLINE_EXCEEDED
    /// assert_eq!(trailers["grpc-message"], "body too slow");
    ///
    /// let error = slow.final_frame(ResponseFormat::Http { close: false }).unwrap_err();
    /// assert_eq!(Violation::from_error(&*error), Some(&slow));
    /// # Ok::<(), palisade_core::BoxError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The violation itself, if `format` is neither `Grpc` nor `GrpcTranslated`.
    pub fn final_frame(self, format: ResponseFormat) -> Result<Frame<Bytes>, BoxError> {
        if !matches!(
            format,
            ResponseFormat::Grpc | ResponseFormat::GrpcTranslated { .. }
        ) {
            return Err(self.into());
        }
        // Trailers do not contain the status of plain HTTP.
        let rejection = Rejection::new(self, StatusCode::OK, format);
        Ok(Frame::trailers(rejection.grpc_trailers()))
    }

    /// Returns the violation in the source chain of `error`, if a palisade guard caused the error.
    ///
    /// ```
    /// # use palisade_core::{Guard, Phase, Reason, Violation};
    /// let cut = Violation::new(Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody, 10, 11);
    /// let error = std::io::Error::other(cut);
    /// assert_eq!(Violation::from_error(&error), Some(&cut));
    /// ```
    pub fn from_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(violation) = error.downcast_ref() {
                return Some(violation);
            }
            next = match error.downcast_ref::<std::io::Error>() {
                Some(io) => io
                    .get_ref()
                    .map(|inner| inner as &(dyn std::error::Error + 'static)),
                None => error.source(),
            };
        }
        None
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            guard,
            reason,
            phase,
            limit,
            observed,
        } = self;
        write!(f, "{guard}: {reason} in {phase}: ")?;
        write!(
            f,
            "{observed} where {limit} is allowed, in {}",
            reason.unit()
        )
    }
}

impl std::error::Error for Violation {}

/// How a response is encoded, as the client of a request expects it. Determined before the request
/// is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Plain HTTP: a status and a short text.
    Http {
        /// Whether the response has `Connection: close`, because the unread rest of the request
        /// body would otherwise precede the next request on HTTP/1.
        close: bool,
    },
    /// gRPC: status 200 with `grpc-status` in the head (trailers-only).
    Grpc,
    /// gRPC over HTTP/1, for an outer layer that translates gRPC-Web, such as `GrpcWebLayer` of
    /// tonic-web. A client may also send such a request directly.
    GrpcTranslated {
        /// Whether the response has `Connection: close`, as in [`Self::Http`].
        close: bool,
    },
    /// gRPC-Web: status 200 with the trailers as a frame of the body.
    GrpcWeb {
        /// Whether the response has `Connection: close`, as in [`Self::Http`].
        close: bool,
    },
    /// gRPC-Web text: as [`Self::GrpcWeb`], with the frame in base64.
    GrpcWebText {
        /// Whether the response has `Connection: close`, as in [`Self::Http`].
        close: bool,
    },
}

impl ResponseFormat {
    /// Returns the format of the response to `request`, from its method, its content type and its
    /// protocol version.
    ///
    /// Method and content type are the client's claim. gRPC needs HTTP/2, except between a layer
    /// that translates gRPC-Web and its inner service: such a layer sets `TE: trailers`.
    ///
    /// ```
    /// use http::{Request, Version, header::CONTENT_TYPE};
    /// use palisade_core::ResponseFormat;
    /// let mut call = Request::post("/echo.Echo/Unary")
    ///     .version(Version::HTTP_2)
    ///     .header(CONTENT_TYPE, "application/grpc")
    ///     .body(http_body_util::Full::<bytes::Bytes>::from("message"))?;
    /// assert_eq!(ResponseFormat::detect(&call), ResponseFormat::Grpc);
    /// // The same claim over HTTP/1.1, where the unread body would precede the next request.
    /// *call.version_mut() = Version::HTTP_11;
    /// assert_eq!(ResponseFormat::detect(&call), ResponseFormat::Http { close: true });
    /// # Ok::<(), http::Error>(())
    /// ```
    #[inline]
    pub fn detect<B: Body>(request: &Request<B>) -> Self {
        let close = request.version() <= Version::HTTP_11 && !request.body().is_end_stream();
        // gRPC is always a POST, so other requests need no header lookup.
        if request.method() == Method::POST {
            return Self::detect_post(request, close);
        }
        Self::Http { close }
    }

    fn detect_post<B>(request: &Request<B>, close: bool) -> Self {
        if let Some(kind) = request.headers().get(CONTENT_TYPE)
            && let Some(rest) = kind.as_bytes().strip_prefix(b"application/grpc")
        {
            let (format, rest) = if let Some(rest) = rest.strip_prefix(b"-web-text") {
                (Self::GrpcWebText { close }, rest)
            } else if let Some(rest) = rest.strip_prefix(b"-web") {
                (Self::GrpcWeb { close }, rest)
            } else if request.version() > Version::HTTP_11 {
                (Self::Grpc, rest)
            } else {
                (Self::GrpcTranslated { close }, rest)
            };
            // A content type may only begin like gRPC, and HTTP/1 cannot carry gRPC.
            let is_possible = format != Self::GrpcTranslated { close }
                || request.headers().get(TE).is_some_and(|te| te == "trailers");
            if is_possible && matches!(rest, [] | [b'+' | b';', ..]) {
                return format;
            }
        }
        Self::Http { close }
    }

    /// Returns whether the format is gRPC or gRPC-Web.
    pub fn is_grpc(self) -> bool {
        !matches!(self, Self::Http { .. })
    }
}

/// A request that a guard refuses, and the response to it.
#[derive(Clone, Debug)]
pub struct Rejection {
    violation: Violation,
    status: StatusCode,
    retry_after: Option<Duration>,
    format: ResponseFormat,
}

impl Rejection {
    /// Creates the refusal of a request for `violation`. `status` is the status of a response in
    /// plain HTTP.
    pub fn new(violation: Violation, status: StatusCode, format: ResponseFormat) -> Self {
        Self {
            violation,
            status,
            retry_after: None,
            format,
        }
    }

    /// Adds to the response the time after which the client may retry. Defaults to no such time.
    ///
    /// ```
    /// # use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
    /// # use {bytes::Bytes, http::StatusCode, http_body_util::Full, std::time::Duration};
    /// # let (guard, reason, phase) = (Guard::RateLimit, Reason::RateExceeded, Phase::RequestHead);
    /// # let violation = Violation::new(guard, reason, phase, 0, 1_200);
    /// let refusal = |format| {
    ///     Rejection::new(violation, StatusCode::TOO_MANY_REQUESTS, format)
    ///         .retry_after(Duration::from_millis(1_200))
    ///         .into_response::<Full<Bytes>>()
    /// };
    /// let response = refusal(ResponseFormat::Http { close: false });
    /// assert_eq!(response.headers()["retry-after"], "2"); // Whole seconds.
    /// let response = refusal(ResponseFormat::Grpc);
    /// assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1200");
    /// ```
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Returns the rule that was broken.
    pub fn violation(&self) -> &Violation {
        &self.violation
    }

    /// Returns the status of a response in plain HTTP. A gRPC client gets [`Self::grpc_status`].
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the time after which the client may retry, if it is known.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Returns the format of the response.
    pub fn format(&self) -> ResponseFormat {
        self.format
    }

    /// Returns the gRPC status code: 4 `DEADLINE_EXCEEDED` if a time limit was exceeded, 7
    /// `PERMISSION_DENIED` if the client is banned or denied, 13 `INTERNAL` if the server is not
    /// set up or failed, otherwise 8 `RESOURCE_EXHAUSTED`.
    ///
    /// ```
    /// # use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
    /// # use http::StatusCode;
    /// let code = |reason| {
    ///     let violation = Violation::new(Guard::Timeout, reason, Phase::Handler, 0, 0);
    ///     Rejection::new(violation, StatusCode::OK, ResponseFormat::Grpc).grpc_status()
    /// };
    /// assert_eq!(code(Reason::Deadline), 4); // DEADLINE_EXCEEDED
    /// assert_eq!(code(Reason::TooLarge), 8); // RESOURCE_EXHAUSTED
    /// assert_eq!(code(Reason::PeerMissing), 13); // INTERNAL
    /// ```
    pub fn grpc_status(&self) -> u8 {
        match self.violation.reason {
            Reason::Deadline
            | Reason::TotalDeadline
            | Reason::Gap
            | Reason::Rate
            | Reason::BodyTotal
            | Reason::FirstRequest
            | Reason::SlowHead
            | Reason::Idle
            | Reason::WriteStall => 4,
            Reason::Banned | Reason::Denied => 7,
            Reason::PeerMissing | Reason::AppFailed => 13,
            _ => 8,
        }
    }

    /// Returns a short text for a human reader. It is plain ASCII without `%`, so it is valid in a
    /// header.
    ///
    /// ```
    /// # use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
    /// # use http::StatusCode;
    /// # let (guard, reason, phase) = (Guard::RateLimit, Reason::RateExceeded, Phase::RequestHead);
    /// let violation = Violation::new(guard, reason, phase, 0, 1_200);
    /// let format = ResponseFormat::Http { close: false };
    /// let rejection = Rejection::new(violation, StatusCode::TOO_MANY_REQUESTS, format);
    /// assert_eq!(rejection.message(), "too many requests");
    /// ```
    pub fn message(&self) -> &'static str {
        match self.violation.reason {
            Reason::Full
            | Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::InFlightFull
            | Reason::RuntimeBusy => "server is busy",
            Reason::MemoryPressure | Reason::BytesFull => "server is short of memory",
            Reason::Evicted => "server is busy, request body too slow",
            Reason::ClientFull => "too many requests at once",
            Reason::RateExceeded => "too many requests",
            Reason::NetworkRateExceeded => "too many requests from this network",
            Reason::FleetUnavailable => "server cannot count the client",
            Reason::CostOverBurst => "request costs more than the quota",
            Reason::PeerMissing => "server cannot identify the client",
            Reason::TooLarge => "body too large",
            Reason::DecompressedTooLarge => "decompressed body too large",
            Reason::TinyFrames => "body in too many small pieces",
            Reason::Deadline | Reason::TotalDeadline => "request took too long",
            Reason::Gap | Reason::Rate | Reason::BodyTotal => "body too slow",
            // No request is refused for the reasons from here to `Shutdown`, except for
            // `UpgradedFull`, `Banned` and `Denied`: the connection is gone or was not admitted.
            Reason::ConnectionsFull | Reason::ConnectionEvicted | Reason::UpgradedFull => {
                "server has no place left"
            }
            Reason::ClientConnectionsFull | Reason::NetworkConnectionsFull | Reason::AcceptRate => {
                "too many connections"
            }
            Reason::Banned => "client is banned for a while",
            Reason::Denied => "access denied",
            Reason::FirstRequest | Reason::SlowHead => "request head too slow",
            Reason::Idle => "connection idle for too long",
            Reason::WriteStall | Reason::WindowStall => "answer taken too slowly",
            Reason::MaxAge | Reason::MaxRequests | Reason::KeepAlivePerClient => {
                "connection is due to close"
            }
            Reason::HungUp => "client hung up",
            Reason::ProxyHeader => "no valid PROXY header",
            Reason::CancelledRequests => "too many requests cancelled",
            Reason::NoProgress => "too much besides requests",
            Reason::HandshakesFull => "too many handshakes",
            Reason::Shutdown => "server shuts down",
            Reason::BadRequest => "malformed request",
            Reason::HeadTooLarge => "request head too large",
            Reason::ConnectRefused => "server is no proxy",
            Reason::AppFailed => "server failed",
        }
    }

    /// Returns the default response.
    ///
    /// - Plain HTTP: the status, [`Self::message`], `Retry-After` in whole seconds, rounded up and
    ///   at least 1 (RFC 9110 section 10.2.3), and `Connection: close` if unread bytes of the
    ///   request may still arrive.
    /// - gRPC: status 200, `grpc-status`, `grpc-message` and, if the client may retry,
    ///   `grpc-retry-pushback-ms` (gRFC A6) and the same time as `google.rpc.RetryInfo` in
    ///   `grpc-status-details-bin`. OpenTelemetry's exporters retry `RESOURCE_EXHAUSTED` only with
    ///   the latter. Trailers-only.
    ///
    /// ```
    /// use http::StatusCode;
    /// use palisade_core::{Guard, Phase, Reason, Rejection, ResponseFormat, Violation};
    /// # use {bytes::Bytes, http_body_util::Full};
    /// let full = Violation::new(Guard::ConcurrencyLimit, Reason::Full, Phase::RequestHead, 8, 9);
    /// let refusal = |format| {
    ///     let rejection = Rejection::new(full, StatusCode::SERVICE_UNAVAILABLE, format);
    ///     rejection.into_response::<Full<Bytes>>()
    /// };
    /// let plain = refusal(ResponseFormat::Http { close: true });
    /// assert_eq!(plain.status(), 503);
    /// assert_eq!(plain.headers()["connection"], "close"); // Bytes of the request are unread.
    /// let grpc = refusal(ResponseFormat::Grpc);
    /// assert_eq!(grpc.status(), 200);
    /// assert_eq!(grpc.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    /// ```
    pub fn into_response<B>(self) -> Response<GuardBody<B>> {
        self.into_bytes().map(GuardBody::answer)
    }

    /// Returns the response of [`Self::into_response`] with its body as bytes.
    #[doc(hidden)]
    pub fn into_bytes(self) -> Response<Bytes> {
        match self.format {
            ResponseFormat::Http { .. } => {
                let text = Bytes::from_static(self.message().as_bytes());
                self.complete(Response::new(text))
            }
            ResponseFormat::Grpc | ResponseFormat::GrpcTranslated { .. } => {
                let mut response = Response::new(Bytes::new());
                *response.headers_mut() = self.grpc_trailers();
                response.headers_mut().insert(CONTENT_TYPE, GRPC);
                if self.format == (ResponseFormat::GrpcTranslated { close: true }) {
                    response.headers_mut().insert(CONNECTION, CLOSE);
                }
                response
            }
            ResponseFormat::GrpcWeb { close } | ResponseFormat::GrpcWebText { close } => {
                let frame = trailer_frame(&self.grpc_trailers());
                let (kind, frame) = match self.format {
                    ResponseFormat::GrpcWebText { .. } => (GRPC_WEB_TEXT, base64(&frame)),
                    _ => (GRPC_WEB, frame),
                };
                let mut response = Response::new(frame);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                if close {
                    response.headers_mut().insert(CONNECTION, CLOSE);
                }
                response
            }
        }
    }

    /// Removes `Connection: close` from the response: no part of the request is unread, so the
    /// connection can carry the next one.
    #[doc(hidden)]
    pub fn keep_open(&mut self) {
        match &mut self.format {
            ResponseFormat::Http { close }
            | ResponseFormat::GrpcTranslated { close }
            | ResponseFormat::GrpcWeb { close }
            | ResponseFormat::GrpcWebText { close } => *close = false,
            ResponseFormat::Grpc => {}
        }
    }

    /// Completes `response`, which replaces the default response in plain HTTP. A status of 200 is
    /// replaced, and `Retry-After` and `Connection: close` are added where they apply.
    #[doc(hidden)]
    pub fn complete(&self, mut response: Response<Bytes>) -> Response<Bytes> {
        if response.status() == StatusCode::OK {
            *response.status_mut() = self.status;
        }
        if let Some(wait) = self.retry_after
            && !response.headers().contains_key(RETRY_AFTER)
        {
            response.headers_mut().reserve(2);
            response
                .headers_mut()
                .insert(RETRY_AFTER, retry_after_seconds(wait));
        }
        if self.format == (ResponseFormat::Http { close: true }) {
            response.headers_mut().insert(CONNECTION, CLOSE);
        }
        response
    }

    fn grpc_trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(6);
        trailers.insert(
            GRPC_STATUS,
            HeaderValue::from(u16::from(self.grpc_status())),
        );
        trailers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.message()));
        if let Some(wait) = self.retry_after {
            // Rounded up, because an earlier retry is refused again. Clients parse a signed 32-bit
            // number. If the wait is longer, -1 asks them not to retry.
            let millis = wait.as_nanos().div_ceil(1_000_000);
            let millis = i32::try_from(millis).unwrap_or(-1);
            trailers.insert(GRPC_PUSHBACK, HeaderValue::from(millis));
            if let Ok(millis) = u64::try_from(millis)
                && let Ok(details) = HeaderValue::from_maybe_shared(retry_info::status_details(
                    self.grpc_status(),
                    self.message(),
                    millis,
                ))
            {
                trailers.insert(GRPC_DETAILS, details);
            }
        } else if matches!(
            self.violation.reason,
            Reason::Banned
                | Reason::Denied
                | Reason::CostOverBurst
                | Reason::TooLarge
                | Reason::DecompressedTooLarge
                | Reason::TinyFrames
        ) {
            // A negative number forbids retries. Otherwise clients retry `RESOURCE_EXHAUSTED`.
            trailers.insert(GRPC_PUSHBACK, HeaderValue::from_static("-1"));
        }
        trailers
    }
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_WEB: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const GRPC_WEB_TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Returns `wait` as a value of `Retry-After`, in seconds. Formatting a number costs 4 allocations,
/// so the usual waits are prepared and cost none.
fn retry_after_seconds(wait: Duration) -> HeaderValue {
    const PREPARED: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    let seconds = wait
        .as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
        .max(1);
    let prepared = usize::try_from(seconds)
        .ok()
        .and_then(|n| PREPARED.get(n.saturating_sub(1)));
    match prepared {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(seconds),
    }
}

/// Returns `trailers` in the encoding of gRPC-Web: a body frame with the top bit of its flags set
/// (gRPC-Web protocol, "Message framing").
fn trailer_frame(trailers: &HeaderMap) -> Bytes {
    let mut text = BytesMut::new();
    for (name, value) in trailers {
        text.put(name.as_str().as_bytes());
        text.put(&b": "[..]);
        text.put(value.as_bytes());
        text.put(&b"\r\n"[..]);
    }
    let mut frame = BytesMut::with_capacity(text.len().saturating_add(5));
    frame.put_u8(0x80);
    frame.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    frame.put(text);
    frame.freeze()
}

/// Returns `bytes` in base64 with padding (RFC 4648 section 4).
fn base64(bytes: &[u8]) -> Bytes {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = BytesMut::new();
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for index in 0..4 {
            let sextet = (group >> (18 - 6 * index)) & 63;
            text.put_u8(if index > chunk.len() {
                b'='
            } else {
                ALPHABET[sextet as usize]
            });
        }
    }
    text.freeze()
}

#[cfg(test)]
mod tests;
