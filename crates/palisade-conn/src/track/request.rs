//! One tracked request, from its head to its response head.

use super::{body::TrackedBody, head, proxy_hint};
use crate::connection::{
    in_flight::{InFlight, OverLimit},
    state::ConnState,
    totals::ConnTotals,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body;
use palisade_client_ip::Trust;
use palisade_core::{
    Client, ConnInfo, Found, Guard, GuardBody, Mode, Phase, Reason, Rejection, ResponseFormat,
    Violation,
    shed::{Shed, Verdict},
};
use palisade_guard::Settings;
use std::{sync::Arc, time::Duration};

const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// What `Retry-After` says: what is full now may have room then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request whose response head has not come.
#[derive(Debug)]
pub(super) struct TrackedRequest {
    in_flight: InFlight,
    is_http1: bool,
    reports_windows: bool,
    is_connect: bool,
    is_head: bool,
    /// The client that a proxy has named, if the request may become something other than HTTP.
    upgrading: Option<Box<Client>>,
}

impl TrackedRequest {
    /// Begins to track `request` on `conn`, if that is a guarded connection.
    #[inline(always)]
    pub(super) fn begin<B: Body>(
        conn: Arc<ConnInfo>,
        request: &mut Request<B>,
        reports_windows: bool,
    ) -> Option<Self> {
        let is_http2 = request.version() == Version::HTTP_2;
        let is_http1 = request.version() <= Version::HTTP_11;
        let client = trusted_client(&conn, request);
        let upgrading = client.filter(|_| may_upgrade(request)).map(Box::new);
        let mut in_flight = InFlight::begin(conn, is_http2, client.map(|client| client.key()))?;
        let state = in_flight.state();
        // Whatever was expected when the connection was accepted.
        state.set_tracked();
        proxy_hint::examine(&in_flight, state.requests(), request.headers());
        if !request.body().is_end_stream() {
            if is_http1 {
                expect_body(&in_flight, request.headers());
                if request.method() != Method::CONNECT {
                    in_flight.charge_by_socket();
                }
            } else {
                in_flight.set_upload();
            }
        }
        Some(Self {
            in_flight,
            is_http1,
            reports_windows: reports_windows && !is_http1,
            is_connect: request.method() == Method::CONNECT,
            is_head: request.method() == Method::HEAD,
            upgrading,
        })
    }

    /// Notes that the handler failed: there will be no response head, and the client did not
    /// cancel the request.
    pub(super) fn set_failed(&mut self) {
        self.in_flight.set_responded();
    }

    /// Stops counting the request among those of all connections: see
    /// [`InFlight::leave_totals`].
    pub(super) fn leave_totals(&mut self) {
        self.in_flight.leave_totals();
    }

    /// Returns the refusal of `request` if there are too many requests on all connections, or of
    /// this client beside the others, or if there is too little memory or time of the processors.
    #[inline]
    pub(super) fn refuse<B: Body>(&mut self, request: &Request<B>) -> Option<Rejection> {
        match self.in_flight.over_limit() {
            None => {}
            Some(OverLimit::InFlight(exceeded)) => {
                return self.refuse_for(Reason::InFlightFull, exceeded, RETRY_AFTER, request);
            }
            Some(OverLimit::Share(shed)) => {
                if let Some(rejection) = self.shed(shed, request) {
                    return Some(rejection);
                }
            }
        }
        if self.is_http1 {
            None // Its head has a limit of its own, which is small.
        } else {
            self.refuse_head(request)
        }
    }

    /// Returns the refusal of an HTTP/2 request if its head has too many fields, or finds no room
    /// in the budget.
    fn refuse_head<B: Body>(&mut self, request: &Request<B>) -> Option<Rejection> {
        if let Some(numbers) = head::exceeded_fields(request.headers()) {
            let violation = violation(Reason::HeadTooLarge, Phase::RequestHead, numbers);
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            let rejection = Rejection::new(violation, status, self.format_for(request));
            return self.enforce(rejection, self.client_of(request));
        }
        let bytes = head::memory(request);
        if bytes <= head::FREE_BYTES {
            return None;
        }
        match self.in_flight.charge_head(bytes) {
            Ok(()) => None,
            Err(numbers) => self.refuse_for(Reason::BytesFull, numbers, RETRY_AFTER, request),
        }
    }

    /// Returns the refusal of `request`, which is outside of the share, if it is one that can be
    /// refused and the shortage is that great. Otherwise its connection ends with the response.
    #[cold]
    fn shed<B: Body>(&self, shed: Shed, request: &Request<B>) -> Option<Rejection> {
        let totals = self.in_flight.totals()?;
        match totals.memory.shedding.verdict(shed, &request.into()) {
            Verdict::Admit => None,
            Verdict::Close => {
                self.close_for_memory(totals);
                None
            }
            Verdict::Refuse(refused) => self.refuse_for(
                refused.reason,
                refused.numbers,
                refused.retry_after,
                request,
            ),
        }
    }

    /// Lets the connection end with the response.
    fn close_for_memory(&self, totals: &ConnTotals) {
        if totals.mode == Mode::Enforce {
            self.in_flight.state().begin_closing(Reason::MemoryPressure);
        }
    }

    /// Reports the refusal of `request`, and returns it unless the guard is in shadow mode.
    #[cold]
    fn refuse_for<B: Body>(
        &self,
        reason: Reason,
        numbers: (u64, u64),
        retry_after: Duration,
        request: &Request<B>,
    ) -> Option<Rejection> {
        let violation = violation(reason, Phase::RequestHead, numbers);
        let rejection = busy(violation, self.format_for(request)).retry_after(retry_after);
        self.enforce(rejection, self.client_of(request))
    }

    /// Returns the format of a refusal of `request`.
    fn format_for<B: Body>(&self, request: &Request<B>) -> ResponseFormat {
        match ResponseFormat::detect(request) {
            // See `refused`.
            ResponseFormat::GrpcWeb { .. } | ResponseFormat::GrpcWebText { .. }
                if !self.is_http1 =>
            {
                ResponseFormat::Grpc
            }
            format => format,
        }
    }

    /// Returns the client of `request`, if a proxy has named it.
    fn client_of<'a, B>(&self, request: &'a Request<B>) -> Option<&'a Client> {
        Client::beside(Some(self.in_flight.conn()), request.extensions())
    }

    /// Reports a refusal, and returns it unless the guard is in shadow mode.
    #[cold]
    fn enforce(&self, rejection: Rejection, client: Option<&Client>) -> Option<Rejection> {
        let totals = self.in_flight.totals()?;
        let mut settings = Settings::default();
        settings.mode = totals.mode;
        settings.recorder = totals.recorder.clone();
        let is_refused = settings.refuse(&rejection, Some(self.in_flight.conn()), client);
        is_refused.then_some(rejection)
    }

    /// Returns whether the response turns the connection into something other than HTTP.
    ///
    /// # Errors
    ///
    /// If there are too many such connections: the refusal that replaces the response. The handler
    /// learns that nothing came of the upgrade.
    fn begin_upgrade<B>(&self, response: &Response<B>) -> Result<bool, Rejection> {
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || self.is_connect && response.status().is_success();
        if !is_upgrade {
            return Ok(false);
        }
        let (conn, client) = (self.in_flight.conn(), self.upgrading.as_deref());
        let upgraded = self
            .in_flight
            .state()
            .upgrade(conn, client.map(Client::key));
        let Err(exceeded) = upgraded else {
            return Ok(true);
        };
        // A request for an upgrade has no body and is not gRPC.
        let format = ResponseFormat::Http { close: false };
        let violation = violation(Reason::UpgradedFull, Phase::Handler, exceeded);
        match self.enforce(busy(violation, format).retry_after(RETRY_AFTER), client) {
            Some(rejection) => Err(rejection),
            None => Ok(true),
        }
    }

    /// Passes the handler's response on. The request is in flight until the response body ends, if
    /// there is one.
    pub(super) fn respond<B: Body<Data = Bytes>>(
        self,
        response: Response<B>,
    ) -> Response<TrackedBody<B>> {
        match self.begin_upgrade(&response) {
            Ok(is_upgrade) => self.track(response, GuardBody::passing, is_upgrade),
            Err(rejection) => self.refused(rejection),
        }
    }

    /// Returns the response of the guard. On HTTP/2 it is a head and nothing else, which waits for
    /// no window.
    #[cold]
    pub(super) fn refused<B: Body<Data = Bytes>>(
        self,
        rejection: Rejection,
    ) -> Response<TrackedBody<B>> {
        let mut response = rejection.into_response();
        if !self.is_http1 {
            response = response.map(|_| GuardBody::answer(Bytes::new()));
        }
        self.track(response, |body| body, false)
    }

    #[inline(always)]
    fn track<B, T>(
        self,
        mut response: Response<T>,
        into_guarded: impl FnOnce(T) -> GuardBody<B>,
        is_upgrade: bool,
    ) -> Response<TrackedBody<B>>
    where
        T: Body<Data = Bytes>,
    {
        let Self {
            mut in_flight,
            is_http1,
            reports_windows,
            is_head,
            ..
        } = self;
        in_flight.set_responded();
        if !is_upgrade && is_http1 && in_flight.state().closing().is_some() {
            response.headers_mut().insert(CONNECTION, CLOSE);
        }
        // A response that has no body, whatever its head says (RFC 9110 section 6.4.1), is not
        // polled for one.
        let is_bodiless = is_head
            || matches!(
                response.status(),
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        if is_upgrade || is_bodiless || response.body().is_end_stream() {
            in_flight.set_answered();
            return response.map(|body| TrackedBody::untracked(into_guarded(body)));
        }
        let declared = declared_length(&response);
        if is_http1 && declared == Some(0) {
            // hyper does not poll this body.
            in_flight.set_answered();
        }
        if reports_windows {
            // Until the body is polled.
            in_flight.set_waiting(true);
        }
        response.map(|body| {
            TrackedBody::new(
                into_guarded(body),
                in_flight,
                reports_windows,
                !is_http1,
                declared,
            )
        })
    }
}

/// Inserts the client of `request`, if the guard knows of proxies. Returns it if the peer is one.
#[inline]
fn trusted_client<B>(conn: &ConnInfo, request: &mut Request<B>) -> Option<Client> {
    let trust = conn.state_as::<ConnState>()?.totals()?.trust.as_ref()?;
    identify_client(trust, conn, request)
}

#[inline(never)]
fn identify_client<B>(trust: &Trust, conn: &ConnInfo, request: &mut Request<B>) -> Option<Client> {
    let client = trust.identify_guarded(conn, request.headers());
    client.address()?;
    request.extensions_mut().insert(client);
    // Requests of a proxy that names no client are those of the proxy. But one that is not asked
    // for clients, and has sent a PROXY header without any, has no share.
    let has_share = client.found() != Found::Missing || trust.is_proxy(conn.peer().ip());
    (conn.is_proxy() && has_share).then_some(client)
}

/// Returns whether the response may turn the connection into something other than HTTP.
fn may_upgrade<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE)
}

fn violation(reason: Reason, phase: Phase, (limit, observed): (u64, u64)) -> Violation {
    Violation::new(Guard::Connection, reason, phase, limit, observed)
}

/// Returns the refusal of a request for which the server has no room.
fn busy(violation: Violation, format: ResponseFormat) -> Rejection {
    Rejection::new(violation, StatusCode::SERVICE_UNAVAILABLE, format)
}

/// Notes the length of a request's body: a handler may respond and read on, and what is left of
/// the body is not a head.
fn expect_body(in_flight: &InFlight, headers: &HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        in_flight.expect_body(None);
    } else if let Some(length) = headers.get(CONTENT_LENGTH) {
        let length = length.to_str().ok().and_then(|length| length.parse().ok());
        in_flight.expect_body(length);
    }
}

/// Returns the length that the head of a response declares, if its body does not know it.
fn declared_length<B: Body>(response: &Response<B>) -> Option<u64> {
    if response.body().size_hint().exact().is_some() {
        return None;
    }
    response
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
