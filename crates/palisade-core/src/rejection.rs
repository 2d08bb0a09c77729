//! A guard's verdict, and the answer that suits the client.

use crate::{BoxError, Guard, GuardBody, Phase, Reason};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, TE},
};
use http_body::{Body, Frame};
use std::{fmt, time::Duration};

/// Which rule was broken, and by how much. Also the error that a cut body fails with.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Who noticed.
    pub guard: Guard,
    /// What it was.
    pub reason: Reason,
    /// When it was.
    pub phase: Phase,
    /// What is allowed, in [`Reason::unit`].
    pub limit: u64,
    /// What was seen, in [`Reason::unit`].
    pub observed: u64,
}

impl Violation {
    /// `observed` where `limit` is allowed.
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

    /// The last frame of a response body that is cut for this, in a response of this form. The
    /// head is sent already: gRPC still learns its status from trailers, in good order, and in
    /// every other form the body can only fail.
    pub fn ending(self, form: ResponseFormat) -> Result<Frame<Bytes>, BoxError> {
        if !matches!(
            form,
            ResponseFormat::Grpc | ResponseFormat::GrpcTranslated { .. }
        ) {
            return Err(self.into());
        }
        // The status of plain HTTP goes nowhere.
        let rejection = Rejection::new(self, StatusCode::OK, form);
        Ok(Frame::trailers(rejection.grpc_trailers()))
    }

    /// The violation in the chain of sources of `error`, if a palisade guard caused it.
    ///
    /// ```
    /// # use palisade_core::{Guard, Phase, Reason, Violation};
    /// let cut = Violation::new(Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody, 10, 11);
    /// let error = std::io::Error::other(cut);
    /// assert_eq!(Violation::behind(&error), Some(&cut));
    /// ```
    pub fn behind<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
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

/// In which form the client expects its answer. Worked out while the request is still here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFormat {
    /// A status and a few bytes. `close` if the request may have bytes on the way that nobody
    /// will read: on HTTP/1 the connection then ends after the answer.
    Http {
        /// Whether to say `Connection: close`.
        close: bool,
    },
    /// 200, trailers-only, `grpc-status`.
    Grpc,
    /// The same over HTTP/1, for a layer outside this one that translates gRPC-Web, as
    /// `GrpcWebLayer` of tonic-web does. The request may be a client's own that claims to be one.
    GrpcTranslated {
        /// Whether to say `Connection: close`.
        close: bool,
    },
    /// 200, and the trailers as a frame of the body.
    GrpcWeb {
        /// Whether to say `Connection: close`.
        close: bool,
    },
    /// The same frame in base64.
    GrpcWebText {
        /// Whether to say `Connection: close`.
        close: bool,
    },
}

impl ResponseFormat {
    /// The form that suits `request`, going by its method and content type, both of which are the
    /// client's own words, and by the protocol: there is no gRPC over HTTP/1, except between a
    /// layer that translates gRPC-Web and the service inside it. Such a layer sets `TE: trailers`.
    #[inline]
    pub fn detect<B: Body>(request: &Request<B>) -> Self {
        let close = request.version() <= Version::HTTP_11 && !request.body().is_end_stream();
        // gRPC is always a POST, so that nobody else pays for the look at the headers.
        if request.method() == Method::POST {
            return Self::of_post(request, close);
        }
        Self::Http { close }
    }

    fn of_post<B>(request: &Request<B>, close: bool) -> Self {
        if let Some(kind) = request.headers().get(CONTENT_TYPE)
            && let Some(rest) = kind.as_bytes().strip_prefix(b"application/grpc")
        {
            let (form, rest) = if let Some(rest) = rest.strip_prefix(b"-web-text") {
                (Self::GrpcWebText { close }, rest)
            } else if let Some(rest) = rest.strip_prefix(b"-web") {
                (Self::GrpcWeb { close }, rest)
            } else if request.version() > Version::HTTP_11 {
                (Self::Grpc, rest)
            } else {
                (Self::GrpcTranslated { close }, rest)
            };
            // What merely begins like it is something else, and so is what comes by a protocol
            // that cannot carry it.
            let is_carried = form != Self::GrpcTranslated { close }
                || request.headers().get(TE).is_some_and(|te| te == "trailers");
            if is_carried && matches!(rest, [] | [b'+' | b';', ..]) {
                return form;
            }
        }
        Self::Http { close }
    }

    /// Whether gRPC speaks, in one of its forms.
    pub fn is_grpc(self) -> bool {
        !matches!(self, Self::Http { .. })
    }
}

/// A request that a guard answers itself.
#[derive(Clone, Debug)]
pub struct Rejection {
    violation: Violation,
    status: StatusCode,
    retry_after: Option<Duration>,
    form: ResponseFormat,
}

impl Rejection {
    /// Refused for `violation`, with `status` for clients that speak plain HTTP.
    pub fn new(violation: Violation, status: StatusCode, form: ResponseFormat) -> Self {
        Self {
            violation,
            status,
            retry_after: None,
            form,
        }
    }

    /// Tells the client when to try again. Defaults to not saying.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// What was violated.
    pub fn violation(&self) -> &Violation {
        &self.violation
    }

    /// The HTTP status; what a gRPC client gets stands in [`Self::grpc_status`].
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// After how long another try makes sense, if that is known.
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The form of the answer.
    pub fn form(&self) -> ResponseFormat {
        self.form
    }

    /// The gRPC status code: 4 `DEADLINE_EXCEEDED` where time ran out, 13 `INTERNAL` where the
    /// server is not set up or failed, else 8 `RESOURCE_EXHAUSTED`.
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
            Reason::PeerMissing | Reason::AppFailed => 13,
            _ => 8,
        }
    }

    /// A short text for people. Plain ASCII without `%`, so that it may stand in a header.
    pub fn message(&self) -> &'static str {
        match self.violation.reason {
            Reason::Full | Reason::QueueFull | Reason::QueueTimeout | Reason::InFlightFull => {
                "server is busy"
            }
            Reason::Evicted => "server is busy, request body too slow",
            Reason::ClientFull => "too many requests at once",
            Reason::RateExceeded => "too many requests",
            Reason::CostOverBurst => "request costs more than the quota",
            Reason::PeerMissing => "server cannot tell who is asking",
            Reason::TooLarge => "body too large",
            Reason::TinyFrames => "body in too many small pieces",
            Reason::Deadline | Reason::TotalDeadline => "request took too long",
            Reason::Gap | Reason::Rate | Reason::BodyTotal => "body too slow",
            // For what comes here no request is refused, except for an upgrade too many: its
            // connection is gone, or was never there.
            Reason::ConnectionsFull | Reason::ConnectionEvicted | Reason::UpgradedFull => {
                "server has no place left"
            }
            Reason::ClientConnectionsFull | Reason::NetworkConnectionsFull | Reason::AcceptRate => {
                "too many connections"
            }
            Reason::FirstRequest | Reason::SlowHead => "request head too slow",
            Reason::Idle => "connection idle for too long",
            Reason::WriteStall | Reason::WindowStall => "answer taken too slowly",
            Reason::MaxAge | Reason::MaxRequests | Reason::KeepAlivePerClient => {
                "connection is due to close"
            }
            Reason::HungUp => "client hung up",
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

    /// The default answer.
    ///
    /// Plain HTTP: the status, [`Self::message`], `Retry-After` in whole seconds, rounded up and
    /// at least 1 (RFC 9110 section 10.2.3), and `Connection: close` where bytes of the request
    /// may be on the way. gRPC: 200, `grpc-status`, `grpc-message`, `grpc-retry-pushback-ms`
    /// (gRFC A6), trailers-only.
    pub fn into_response<B>(self) -> Response<GuardBody<B>> {
        self.into_bytes().map(GuardBody::answer)
    }

    /// [`Self::into_response`], with its body as bytes.
    #[doc(hidden)]
    pub fn into_bytes(self) -> Response<Bytes> {
        match self.form {
            ResponseFormat::Http { .. } => {
                let answer = Bytes::from_static(self.message().as_bytes());
                self.complete(Response::new(answer))
            }
            ResponseFormat::Grpc | ResponseFormat::GrpcTranslated { .. } => {
                let mut response = Response::new(Bytes::new());
                *response.headers_mut() = self.grpc_trailers();
                response.headers_mut().insert(CONTENT_TYPE, GRPC);
                if self.form == (ResponseFormat::GrpcTranslated { close: true }) {
                    response.headers_mut().insert(CONNECTION, CLOSE);
                }
                response
            }
            ResponseFormat::GrpcWeb { close } | ResponseFormat::GrpcWebText { close } => {
                let frame = trailer_frame(&self.grpc_trailers());
                let (kind, frame) = match self.form {
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

    /// Nothing of the request is unread: its connection may carry the next one.
    #[doc(hidden)]
    pub fn keep_open(&mut self) {
        match &mut self.form {
            ResponseFormat::Http { close }
            | ResponseFormat::GrpcTranslated { close }
            | ResponseFormat::GrpcWeb { close }
            | ResponseFormat::GrpcWebText { close } => *close = false,
            ResponseFormat::Grpc => {}
        }
    }

    /// `response` in place of the default one for plain HTTP: it gets the status if it is still
    /// 200, `Retry-After` if it has none, and `Connection: close` where that is needed.
    #[doc(hidden)]
    pub fn complete(&self, mut response: Response<Bytes>) -> Response<Bytes> {
        if response.status() == StatusCode::OK {
            *response.status_mut() = self.status;
        }
        if let Some(wait) = self.retry_after
            && !response.headers().contains_key(RETRY_AFTER)
        {
            response.headers_mut().reserve(2);
            response.headers_mut().insert(RETRY_AFTER, seconds(wait));
        }
        if self.form == (ResponseFormat::Http { close: true }) {
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
            // Rounded up: a retry within the wait is refused again. A signed 32-bit number to the
            // client; a longer wait than that means "do not".
            let millis = wait.as_nanos().div_ceil(1_000_000);
            let millis = i32::try_from(millis).unwrap_or(-1);
            trailers.insert(GRPC_PUSHBACK, HeaderValue::from(millis));
        } else if matches!(
            self.violation.reason,
            Reason::CostOverBurst | Reason::TooLarge | Reason::TinyFrames
        ) {
            // Less than nothing means "never": clients retry RESOURCE_EXHAUSTED otherwise.
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

/// `wait` as `Retry-After` has it. A value made from a number costs 4 allocations; the waits that
/// clients usually get cost none.
fn seconds(wait: Duration) -> HeaderValue {
    const SMALL: [&str; 10] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    let seconds = wait
        .as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
        .max(1);
    let small = usize::try_from(seconds)
        .ok()
        .and_then(|n| SMALL.get(n.saturating_sub(1)));
    small.map_or_else(
        || HeaderValue::from(seconds),
        |text| HeaderValue::from_static(text),
    )
}

/// The trailers as gRPC-Web has them: a frame of the body with the top bit of its flags set
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

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> Bytes {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = BytesMut::new();
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let group = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for place in 0..4 {
            let sextet = (group >> (18 - 6 * place)) & 63;
            text.put_u8(if place > chunk.len() {
                b'='
            } else {
                ALPHABET[sextet as usize]
            });
        }
    }
    text.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty, Full};

    fn rejection(form: ResponseFormat) -> Rejection {
        let violation = Violation::new(
            Guard::RateLimit,
            Reason::RateExceeded,
            Phase::RequestHead,
            0,
            1500,
        );
        Rejection::new(violation, StatusCode::TOO_MANY_REQUESTS, form)
    }

    fn request(content_type: &'static str) -> Request<Full<Bytes>> {
        over(Version::HTTP_11, content_type)
    }

    fn over(version: Version, content_type: &'static str) -> Request<Full<Bytes>> {
        let request = Request::post("/").version(version);
        let mut request = request.body(Full::new(Bytes::from("unread"))).unwrap();
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        request
    }

    #[test]
    fn the_form_follows_the_content_type_of_a_post() {
        for kind in ["application/grpc", "application/grpc+proto"] {
            assert_eq!(
                ResponseFormat::detect(&over(Version::HTTP_2, kind)),
                ResponseFormat::Grpc
            );
        }
        let web = ResponseFormat::GrpcWeb { close: true };
        assert_eq!(
            ResponseFormat::detect(&request("application/grpc-web+proto")),
            web
        );
        let text = ResponseFormat::GrpcWebText { close: true };
        assert_eq!(
            ResponseFormat::detect(&request("application/grpc-web-text")),
            text
        );
        assert_eq!(
            ResponseFormat::detect(&request("text/html")),
            ResponseFormat::Http { close: true }
        );
        let get = Request::new(Empty::<Bytes>::new());
        assert_eq!(
            ResponseFormat::detect(&get),
            ResponseFormat::Http { close: false }
        );
    }

    #[test]
    fn what_merely_begins_like_grpc_is_plain_http() {
        for kind in [
            "application/grpcx",
            "application/grpc/x",
            "application/grpc-",
            "application/grpc-webx",
            "application/grpc-web-textual",
        ] {
            let form = ResponseFormat::detect(&over(Version::HTTP_2, kind));
            assert_eq!(form, ResponseFormat::Http { close: false }, "{kind}");
        }
        let grpc = over(Version::HTTP_2, "application/grpc;charset=utf-8");
        assert_eq!(ResponseFormat::detect(&grpc), ResponseFormat::Grpc);
    }

    #[test]
    fn what_says_grpc_over_http1_is_plain_http_and_closes_its_connection() {
        let form = ResponseFormat::detect(&request("application/grpc"));
        assert_eq!(form, ResponseFormat::Http { close: true });
    }

    #[test]
    fn grpc_over_http1_that_takes_trailers_comes_from_a_layer_that_translates_grpc_web() {
        let mut request = request("application/grpc");
        request
            .headers_mut()
            .insert(TE, HeaderValue::from_static("trailers"));
        let form = ResponseFormat::detect(&request);
        assert_eq!(form, ResponseFormat::GrpcTranslated { close: true });
        let response = rejection(form).into_response::<Full<Bytes>>();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()[CONNECTION], "close");
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpcx"));
        assert_eq!(
            ResponseFormat::detect(&request),
            ResponseFormat::Http { close: true }
        );
    }

    #[test]
    fn only_an_unread_http1_body_closes_the_connection() {
        let h2 = over(Version::HTTP_2, "text/html");
        assert_eq!(
            ResponseFormat::detect(&h2),
            ResponseFormat::Http { close: false }
        );
        let close = ResponseFormat::detect(&request("text/html"));
        let response = rejection(close).into_response::<Full<Bytes>>();
        assert_eq!(response.headers()[CONNECTION], "close");
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up_and_never_zero() {
        let answer = |millis| {
            let form = ResponseFormat::Http { close: false };
            let wait = Duration::from_millis(millis);
            let response = rejection(form)
                .retry_after(wait)
                .into_response::<Full<Bytes>>();
            response.headers()[RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!(answer(0), "1");
        assert_eq!(answer(999), "1");
        assert_eq!(answer(1001), "2");
        assert_eq!(answer(10_000), "10");
        assert_eq!(answer(10_001), "11");
        assert_eq!(answer(u64::MAX), "18446744073709552");
    }

    #[test]
    fn grpc_gets_trailers_only_with_pushback() {
        let wait = Duration::from_millis(1500);
        let response = rejection(ResponseFormat::Grpc).retry_after(wait);
        let response = response.into_response::<Full<Bytes>>();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-message"], "too many requests");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1500");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
        assert!(response.body().is_end_stream());
    }

    #[test]
    fn pushback_is_rounded_up_to_whole_milliseconds() {
        for (micros, millis) in [(0, "0"), (1, "1"), (999, "1"), (1000, "1"), (1001, "2")] {
            let wait = Duration::from_micros(micros);
            let response = rejection(ResponseFormat::Grpc).retry_after(wait);
            let response = response.into_response::<Full<Bytes>>();
            assert_eq!(response.headers()["grpc-retry-pushback-ms"], millis);
        }
    }

    #[tokio::test]
    async fn grpc_web_gets_its_trailers_as_a_frame_of_the_body() {
        let response =
            rejection(ResponseFormat::GrpcWeb { close: true }).into_response::<Full<Bytes>>();
        assert_eq!(response.headers()[CONNECTION], "close");
        let frame = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(frame[..5], [0x80, 0, 0, 0, 49]);
        assert_eq!(
            frame[5..],
            b"grpc-status: 8\r\ngrpc-message: too many requests\r\n"[..]
        );
        let response =
            rejection(ResponseFormat::GrpcWebText { close: false }).into_response::<Full<Bytes>>();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, base64(&frame));
    }

    #[test]
    fn a_cut_body_ends_with_trailers_in_grpc_and_fails_in_every_other_form() {
        let violation = Violation::new(Guard::SlowBody, Reason::Gap, Phase::ResponseBody, 1, 2);
        for form in [
            ResponseFormat::Grpc,
            ResponseFormat::GrpcTranslated { close: true },
        ] {
            let trailers = violation.ending(form).unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "4");
            assert_eq!(trailers["grpc-message"], "body too slow");
        }
        for form in [
            ResponseFormat::Http { close: false },
            ResponseFormat::GrpcWeb { close: false },
            ResponseFormat::GrpcWebText { close: false },
        ] {
            let error = violation.ending(form).unwrap_err();
            assert_eq!(Violation::behind(&*error), Some(&violation));
        }
    }

    #[test]
    fn base64_agrees_with_the_vectors_of_rfc_4648() {
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    }

    #[test]
    fn every_message_may_stand_in_a_header() {
        for reason in Reason::ALL {
            let violation = Violation {
                reason: *reason,
                ..*rejection(ResponseFormat::Grpc).violation()
            };
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let message = Rejection::new(violation, status, ResponseFormat::Grpc).message();
            assert!(
                message
                    .bytes()
                    .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'%')
            );
        }
    }
}
