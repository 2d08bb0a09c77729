//! Tells a connection what HTTP is doing on it.

use crate::{ConnGuard, guard::Shared, say};
use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};
use palisade_core::{
    ConnInfo, ConnTotals, Guard, GuardBody, InFlight, Mode, Phase, Reason, Rejection,
    ResponseFormat, Violation,
};
use palisade_guard::{Settings, linger};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::{Arc, LazyLock, Weak, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`RequestTracking`]. From [`ConnGuard::track_requests`]; for axum see
#[cfg_attr(feature = "axum", doc = "[`connected`](crate::connected).")]
#[cfg_attr(not(feature = "axum"), doc = "`connected`, with the feature `axum`.")]
#[derive(Clone, Debug)]
pub struct RequestTrackingLayer {
    guard: Weak<Shared>,
}

/// Tells the connection of each request, which it finds as `Arc<ConnInfo>` among the request's
/// extensions, when its head is here and when its answer has ended. Requests without one pass
/// untouched.
///
/// It stands outside of everything else, so that the guard knows of requests that other layers
/// refuse. The last request of an HTTP/1 connection that is to close gets `Connection: close`.
#[derive(Clone, Debug)]
pub struct RequestTracking<S> {
    inner: S,
    accountant: Tracker,
    guard: Weak<Shared>,
    /// There is nothing more to find out about where it stands.
    is_placed: bool,
}

/// How requests are tracked for.
#[derive(Clone, Debug)]
struct Tracker {
    /// Of every request, where the service is made for one connection.
    conn: Option<Arc<ConnInfo>>,
    /// Whether axum is to find the peer as well.
    tells_axum: bool,
    /// Whether the connection is to know what waits for a window.
    tells_of_windows: bool,
}

pin_project! {
    /// Response future of [`RequestTracking`].
    #[derive(Debug)]
    pub struct TrackingFuture<F> {
        #[pin]
        state: State<F>,
        account: Option<TrackedRequest>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Handler { #[pin] inner: F },
        // Boxed, because nearly every future would carry its bytes for nothing.
        Refused { rejection: Option<Box<Rejection>> },
    }
}

pin_project! {
    /// A response body; its request is in flight until it has ended, on HTTP/2 until it is dropped
    /// after that, or until it has failed.
    #[derive(Debug)]
    pub struct TrackedBody<B> {
        #[pin]
        inner: GuardBody<B>,
        in_flight: Option<InFlight>,
        tells_of_windows: bool,
        // Whether what has ended may still wait for its client, on HTTP/2: hyper takes the last
        // frame before there is a window for it, and lets go of the body when it is sent.
        lasts_to_its_drop: bool,
        // On HTTP/2, the last byte of a long frame, which is a frame of its own: hyper hands a
        // whole frame to h2 for one byte of window, and would let go of the body while h2 keeps
        // the frame. It asks for this byte when h2 has sent the rest.
        last_byte: Option<u8>,
        // What is left of the length that the head declares, if it does.
        left: Option<u64>,
    }
}

/// One request until its response head is here.
#[derive(Debug)]
pub(crate) struct TrackedRequest {
    in_flight: InFlight,
    is_http1: bool,
    tells_of_windows: bool,
    is_connect: bool,
    is_head: bool,
}

/// Of so many requests one is looked at for a proxy's word.
const LOOKED_AT_ONE_IN: u32 = 16;
/// A frame that h2 may keep for its client unseen: about what it takes for the stream itself.
const MAX_UNTRACKED_BYTES: usize = 256;
const CLOSE: HeaderValue = HeaderValue::from_static("close");
/// What is full now may have a place then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

// === ConnGuard ===

impl ConnGuard {
    /// The layer that tells this guard's connections of their requests. It is to be around
    /// everything that the server answers: from now on a connection without a request counts as
    /// one without a complete request head.
    pub fn track_requests(&self) -> RequestTrackingLayer {
        let shared = self.shared();
        if shared.limits.mode != Mode::Off {
            shared.tracked.store(true, Relaxed);
        }
        RequestTrackingLayer {
            guard: Arc::downgrade(shared),
        }
    }
}

// === RequestTrackingLayer ===

impl<S> Layer<S> for RequestTrackingLayer {
    type Service = RequestTracking<S>;

    fn layer(&self, inner: S) -> RequestTracking<S> {
        let accountant = Tracker {
            conn: None,
            tells_axum: false,
            tells_of_windows: true,
        };
        RequestTracking {
            inner,
            accountant,
            guard: self.guard.clone(),
            is_placed: false,
        }
    }
}

// === RequestTracking ===

impl<S> RequestTracking<S> {
    /// Around a service that is made for one connection, for a server of your own. The connection
    /// is told of requests from now on, and `inner` finds the `Arc<ConnInfo>` among the extensions
    /// of each.
    pub fn of(conn: Arc<ConnInfo>, inner: S) -> Self {
        conn.state().set_tracked_by_own_service();
        let accountant = Tracker {
            conn: Some(conn),
            tells_axum: false,
            tells_of_windows: true,
        };
        Self {
            inner,
            accountant,
            guard: Weak::new(),
            is_placed: true,
        }
    }

    /// Each request brings axum's `ConnectInfo<SocketAddr>` as well, if the service is
    /// [of](Self::of) one connection. Defaults to not.
    #[cfg(feature = "axum")]
    pub fn connect_info(mut self) -> Self {
        self.accountant.tells_axum = true;
        self
    }

    /// The server itself sees to it that no HTTP/2 stream waits too long for its window: the
    /// connection is not ended for that. Defaults to ending it.
    pub fn cuts_streams(mut self) -> Self {
        self.accountant.tells_of_windows = false;
        self
    }

    /// What [`Service::call`] does for a service that is [of](Self::of) one connection, by a shared
    /// reference, as hyper calls its services: `call` hands a request on to what this is around.
    ///
    /// One that a layer made does not find out here whether it stands where it must.
    pub fn call_with<F, B>(
        &self,
        request: Request<B>,
        call: impl FnOnce(&S, Request<B>) -> F,
    ) -> TrackingFuture<F>
    where
        B: Body + Send + 'static,
    {
        self.accountant
            .call(request, |request| call(&self.inner, request))
    }

    /// What it is around.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RequestTracking<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: Body + Send + 'static,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<TrackedBody<ResBody>>;
    type Error = S::Error;
    type Future = TrackingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        if !self.is_placed {
            self.look_at_place(ConnInfo::from_extensions(request.extensions()).is_some());
        }
        self.accountant
            .call(request, |request| self.inner.call(request))
    }
}

impl<S> RequestTracking<S> {
    /// If the very first requests do not say on which connection they came, the layer stands where
    /// nothing can be told to the guard, which then must not take silence for idleness.
    #[cold]
    fn look_at_place(&mut self, has_conn: bool) {
        let Some(guard) = self.guard.upgrade() else {
            return;
        };
        if has_conn && !guard.is_placed.swap(true, Relaxed) {
            guard.tracked.store(guard.limits.mode != Mode::Off, Relaxed);
        }
        self.is_placed = guard.is_placed.load(Relaxed);
        if !self.is_placed {
            guard.tracked.store(false, Relaxed);
        }
    }
}

// === Tracker ===

impl Tracker {
    #[inline]
    fn call<F, B: Body + Send + 'static>(
        &self,
        mut request: Request<B>,
        call: impl FnOnce(Request<B>) -> F,
    ) -> TrackingFuture<F> {
        let mut account = self.begin(&mut request);
        if let Some(mut rejection) = account
            .as_ref()
            .and_then(|account| account.refuse(&request))
        {
            if let Some(account) = &mut account {
                account.in_flight.refused();
            }
            if linger(request) {
                rejection.keep_open();
            }
            let rejection = Some(Box::new(rejection));
            return TrackingFuture {
                state: State::Refused { rejection },
                account,
            };
        }
        TrackingFuture {
            state: State::Handler {
                inner: call(request),
            },
            account,
        }
    }

    /// Of the connection that the service is made for, or that `request` says it is on.
    fn begin<B: Body>(&self, request: &mut Request<B>) -> Option<TrackedRequest> {
        if let Some(conn) = &self.conn {
            identify(conn, request.extensions_mut(), self.tells_axum);
            return Some(TrackedRequest::begin(conn, request, self.tells_of_windows));
        }
        let conn = ConnInfo::from_extensions(request.extensions()).cloned()?;
        restore(&conn, request.extensions_mut());
        // If it was told of the request already, it is not told again.
        let is_told = conn.state().is_tracked_by_own_service();
        (!is_told).then(|| TrackedRequest::begin(&conn, request, self.tells_of_windows))
    }
}

// === TrackingFuture ===

impl<F, B, E> Future for TrackingFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<TrackedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match this.state.project() {
            StateProj::Handler { inner } => match ready!(inner.poll(cx)) {
                Ok(response) => Ok(match this.account.take() {
                    Some(account) => account.answer(response),
                    None => response.map(|body| TrackedBody::untold(GuardBody::passing(body))),
                }),
                Err(error) => {
                    if let Some(account) = this.account {
                        account.in_flight.responded();
                    }
                    Err(error)
                }
            },
            StateProj::Refused { rejection } => {
                let rejection = rejection.take().expect("polled after completion");
                let account = this.account.take().expect("who was refused was told of");
                Ok(account.answer_for(*rejection))
            }
        })
    }
}

/// Puts the connection there, and what frameworks look for.
fn identify(conn: &Arc<ConnInfo>, extensions: &mut Extensions, tells_axum: bool) {
    if extensions.is_empty() {
        extensions.clone_from(&ROOM);
    }
    extensions.insert(conn.clone());
    if tells_axum {
        tell_peer(conn, extensions);
    }
    restore(conn, extensions);
}

/// Room for seven: a router adds three to ours, and to copy an empty table costs less than to let
/// one grow twice.
static ROOM: LazyLock<Extensions> = LazyLock::new(|| {
    let mut extensions = Extensions::new();
    extensions.insert(());
    extensions.insert(0u8);
    extensions.insert(0u16);
    extensions.insert(0u32);
    extensions.clear();
    extensions
});

#[cfg(feature = "axum")]
use crate::axum::tell_peer;

#[cfg(not(feature = "axum"))]
fn tell_peer(_: &ConnInfo, _: &mut Extensions) {}

#[cfg(feature = "tonic")]
use crate::tonic::restore;

#[cfg(not(feature = "tonic"))]
fn restore(_: &ConnInfo, _: &mut Extensions) {}

// === TrackedRequest ===

impl TrackedRequest {
    fn begin<B: Body>(conn: &Arc<ConnInfo>, request: &Request<B>, tells_of_windows: bool) -> Self {
        // Whatever was expected when it was accepted.
        conn.state().set_tracked();
        let is_http2 = request.version() == Version::HTTP_2;
        let is_http1 = request.version() <= Version::HTTP_11;
        let mut in_flight = conn.begin_request(is_http2);
        // Whatever connection it is on: else a probe that connects anew each time counts for more.
        let turn = (conn.id() as u32).wrapping_add(conn.state().requests());
        if turn.is_multiple_of(LOOKED_AT_ONE_IN) {
            look_for_proxy(conn, request.headers());
        }
        if !request.body().is_end_stream() {
            if is_http1 {
                expect_body(&in_flight, request.headers());
            } else {
                in_flight.uploads();
            }
        }
        Self {
            in_flight,
            is_http1,
            tells_of_windows: tells_of_windows && !is_http1,
            is_connect: request.method() == Method::CONNECT,
            is_head: request.method() == Method::HEAD,
        }
    }

    /// Whether there are too many requests on all connections, or of this client beside the others.
    fn refuse<B: Body>(&self, request: &Request<B>) -> Option<Rejection> {
        let over = self.in_flight.over()?;
        let form = match ResponseFormat::detect(request) {
            // See `answer_for`.
            ResponseFormat::GrpcWeb { .. } | ResponseFormat::GrpcWebText { .. }
                if !self.is_http1 =>
            {
                ResponseFormat::Grpc
            }
            form => form,
        };
        self.reject(Reason::InFlightFull, Phase::RequestHead, over, form)
    }

    /// `None` in shadow mode.
    #[cold]
    fn reject(
        &self,
        reason: Reason,
        phase: Phase,
        over: (u64, u64),
        form: ResponseFormat,
    ) -> Option<Rejection> {
        let conn = self.in_flight.conn();
        let violation = Violation::new(Guard::Connection, reason, phase, over.0, over.1);
        let rejection = Rejection::new(violation, StatusCode::SERVICE_UNAVAILABLE, form);
        let rejection = rejection.retry_after(RETRY_AFTER);
        let (mode, recorder) = (conn.totals()?.mode, conn.totals()?.recorder.clone());
        let settings = Settings {
            mode,
            recorder,
            on_reject: None,
        };
        settings.refuse(&rejection, Some(conn)).then_some(rejection)
    }

    /// Whether the response makes the connection something else than HTTP.
    ///
    /// # Errors
    ///
    /// If there are too many such connections: what is to be answered in the handler's place, who
    /// learns that nothing came of it.
    fn upgrades<B>(&self, response: &Response<B>) -> Result<bool, Rejection> {
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || self.is_connect && response.status().is_success();
        if !is_upgrade {
            return Ok(false);
        }
        let over = self.in_flight.conn().upgrade().err();
        // Who asks for an upgrade sends no body before it, and speaks no gRPC.
        let form = ResponseFormat::Http { close: false };
        let refuse = |over| self.reject(Reason::UpgradedFull, Phase::Handler, over, form);
        over.and_then(refuse).map_or(Ok(true), Err)
    }

    /// The head is here. The request is in flight until the body ends, if there is one.
    fn answer<B: Body<Data = Bytes>>(self, response: Response<B>) -> Response<TrackedBody<B>> {
        match self.upgrades(&response) {
            Ok(is_upgrade) => self.pass_on(response, GuardBody::passing, is_upgrade),
            Err(rejection) => self.answer_for(rejection),
        }
    }

    /// What a guard answers in the handler's place: on HTTP/2 a head and nothing else, which waits
    /// for no window.
    #[cold]
    fn answer_for<B: Body<Data = Bytes>>(self, rejection: Rejection) -> Response<TrackedBody<B>> {
        let mut response = rejection.into_response();
        if !self.is_http1 {
            response = response.map(|_| GuardBody::answer(Bytes::new()));
        }
        self.pass_on(response, |body| body, false)
    }

    fn pass_on<B, T>(
        self,
        mut response: Response<T>,
        guarded: impl FnOnce(T) -> GuardBody<B>,
        is_upgrade: bool,
    ) -> Response<TrackedBody<B>>
    where
        T: Body<Data = Bytes>,
    {
        let Self {
            mut in_flight,
            is_http1,
            tells_of_windows,
            is_head,
            ..
        } = self;
        in_flight.responded();
        if !is_upgrade && is_http1 && in_flight.conn().state().closing().is_some() {
            response.headers_mut().insert(CONNECTION, CLOSE);
        }
        // What has no body whatever its head says (RFC 9110 section 6.4.1) is not asked for one.
        let is_bodiless = is_head
            || matches!(
                response.status(),
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        if is_upgrade || is_bodiless || response.body().is_end_stream() {
            in_flight.answered();
            return response.map(|body| TrackedBody::untold(guarded(body)));
        }
        let left = declared(&response);
        // Until somebody asks for it.
        if tells_of_windows {
            in_flight.set_waiting(true);
        }
        let in_flight = Some(in_flight);
        response.map(|body| TrackedBody {
            inner: guarded(body),
            in_flight,
            tells_of_windows,
            lasts_to_its_drop: !is_http1,
            last_byte: None,
            left,
        })
    }
}

/// A handler may answer and read on, and what is left of a body is no head.
fn expect_body(in_flight: &InFlight, headers: &HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        in_flight.with_body(None);
    } else if let Some(length) = headers.get(CONTENT_LENGTH) {
        in_flight.with_body(length.to_str().ok().and_then(|length| length.parse().ok()));
    }
}

/// Counts whether a proxy has forwarded the request, and says so if one seems to be before the
/// server. It is the client's own word, which is why nothing but words follow from it.
#[cold]
fn look_for_proxy(conn: &ConnInfo, headers: &HeaderMap) {
    let is_client = |totals: &&Arc<ConnTotals>| totals.peers_are_clients;
    let Some(totals) = conn.known_client().and(conn.totals()).filter(is_client) else {
        return;
    };
    let names = ["forwarded", "x-forwarded-for", "x-real-ip"];
    if let Some(percent) = totals.look(names.iter().any(|name| headers.contains_key(*name))) {
        say::forwarded(&totals.recorder, percent);
    }
}

/// The length that the head of a response says, where its body does not know.
fn declared<B: Body>(response: &Response<B>) -> Option<u64> {
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

// === TrackedBody ===

/// `byte`, without an allocation.
fn one_byte(byte: u8) -> Bytes {
    static BYTES: [u8; 256] = {
        let mut bytes = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            bytes[byte] = byte as u8;
            byte += 1;
        }
        bytes
    };
    Bytes::from_static(&BYTES[usize::from(byte)..][..1])
}

/// The next frame of `body`. Of a long last one the last byte is kept, and is a frame of its own.
#[inline(never)]
fn poll_all_but_the_last_byte<B: Body<Data = Bytes>>(
    mut body: Pin<&mut GuardBody<B>>,
    last_byte: &mut Option<u8>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    if let Some(byte) = last_byte.take() {
        return Poll::Ready(Some(Ok(Frame::data(one_byte(byte)))));
    }
    let mut frame = body.as_mut().poll_frame(cx);
    if let Poll::Ready(Some(Ok(last))) = &mut frame
        && let Some(data) = last.data_mut()
        && data.len() > MAX_UNTRACKED_BYTES
        && body.is_end_stream()
    {
        *last_byte = data.last().copied();
        data.truncate(data.len() - 1);
    }
    frame
}

impl<B> TrackedBody<B> {
    /// Of this one the connection is told nothing.
    fn untold(inner: GuardBody<B>) -> Self {
        let (in_flight, tells_of_windows, lasts_to_its_drop) = (None, false, false);
        Self {
            inner,
            in_flight,
            tells_of_windows,
            lasts_to_its_drop,
            last_byte: None,
            left: None,
        }
    }
}

impl<B: Body<Data = Bytes>> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = if *this.lasts_to_its_drop {
            poll_all_but_the_last_byte(this.inner.as_mut(), this.last_byte, cx)
        } else {
            this.inner.as_mut().poll_frame(cx)
        };
        // What is asked for and not there waits for the handler, what is there for the client.
        if *this.tells_of_windows
            && let Some(in_flight) = this.in_flight
        {
            in_flight.set_waiting(frame.is_ready());
        }
        let frame = ready!(frame);
        let is_last = match &frame {
            None => true,
            // Whoever knows the length does not ask again.
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                *this.left = this.left.map(|left| left.saturating_sub(length));
                frame.is_trailers()
                    || *this.left == Some(0)
                    || this.last_byte.is_none()
                        && (this.inner.is_end_stream() || this.inner.size_hint().exact() == Some(0))
            }
            Some(Err(_)) => {
                *this.in_flight = None;
                false
            }
        };
        if is_last {
            if let Some(in_flight) = this.in_flight {
                in_flight.answered();
            }
            if !*this.lasts_to_its_drop {
                *this.in_flight = None;
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.last_byte.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // The last byte is held back from a body that has ended.
        if self.last_byte.is_some() {
            SizeHint::with_exact(1)
        } else {
            self.inner.size_hint()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};
    use http::header::{CONTENT_TYPE, RETRY_AFTER as RETRY_AFTER_NAME};
    use http_body_util::{BodyExt, Channel, Empty, Full};
    use palisade_core::{ConnStats, Prefix};
    use palisade_testkit::Journal;
    use std::convert::Infallible;
    use tower::{ServiceExt, service_fn};

    type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

    fn conn() -> Arc<ConnInfo> {
        Arc::new(ConnInfo::new(
            ([127, 0, 0, 1], 1).into(),
            None,
            Prefix::default(),
        ))
    }

    fn conn_within(totals: &Arc<ConnTotals>) -> Arc<ConnInfo> {
        let conn = ConnInfo::new(([127, 0, 0, 1], 1).into(), None, Prefix::default());
        Arc::new(conn.within(Arc::clone(totals)))
    }

    fn request(conn: &Arc<ConnInfo>) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        request.extensions_mut().insert(conn.clone());
        request
    }

    fn layer() -> RequestTrackingLayer {
        ConnGuard::default().track_requests()
    }

    fn counts(conn: &ConnInfo) -> (u32, u32, u32, u32) {
        let ConnStats {
            requests,
            in_flight,
            answered,
            cancelled,
            ..
        } = conn.state().sample();
        (requests, in_flight, answered, cancelled)
    }

    async fn serve<B: Body + Send + 'static>(
        conn: &Arc<ConnInfo>,
        mut request: Request<B>,
        answer: Response<Answer>,
    ) -> Response<TrackedBody<Answer>> {
        request.extensions_mut().insert(conn.clone());
        let mut answer = Some(answer);
        let handler = service_fn(|_| {
            let answer = answer.take().unwrap();
            async { Ok::<_, Infallible>(answer) }
        });
        layer().layer(handler).oneshot(request).await.unwrap()
    }

    fn full(bytes: usize) -> Response<Answer> {
        Response::new(Full::new(Bytes::from(vec![b'x'; bytes])).boxed_unsync())
    }

    #[tokio::test]
    async fn a_request_is_in_flight_until_its_body_has_ended() {
        let conn = conn();
        let (mut send, body) = Channel::<Bytes, Infallible>::new(1);
        let response = serve(&conn, request(&conn), Response::new(body.boxed_unsync())).await;
        assert_eq!(counts(&conn), (1, 1, 0, 0));
        send.send_data(Bytes::from_static(b"x")).await.unwrap();
        drop(send);
        response.into_body().collect().await.unwrap();
        assert_eq!(counts(&conn), (1, 0, 1, 0));
    }

    #[tokio::test]
    async fn an_answer_that_is_not_asked_to_its_end_is_answered_all_the_same() {
        let streamed = |header: &str| {
            let stream = futures_util::stream::iter(["abc", "def"])
                .map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
            let mut response =
                Response::new(http_body_util::StreamBody::new(stream).boxed_unsync());
            response
                .headers_mut()
                .insert(CONTENT_LENGTH, header.parse().unwrap());
            response
        };
        // hyper drops a body once it has written as much as the head declares.
        let conn = conn();
        let mut body = serve(&conn, request(&conn), streamed("6"))
            .await
            .into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(counts(&conn), (1, 1, 0, 0));
        body.frame().await.unwrap().unwrap();
        assert_eq!(counts(&conn), (1, 0, 1, 0));
        drop(body);
        // And that of an answer that has none, whatever its head says.
        let mut head = request(&conn);
        *head.method_mut() = Method::HEAD;
        drop(serve(&conn, head, streamed("6")).await);
        let mut unchanged = streamed("6");
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        drop(serve(&conn, request(&conn), unchanged).await);
        assert_eq!(counts(&conn), (3, 0, 3, 0));
    }

    #[tokio::test]
    async fn where_it_is_told_of_no_connection_the_guard_does_not_count_on_it() {
        let guard = ConnGuard::default();
        let layer = guard.track_requests();
        let answers = service_fn(|_: Request<Empty<Bytes>>| async { Ok::<_, Infallible>(full(1)) });
        assert!(guard.shared().tracked.load(Relaxed));
        layer
            .layer(answers)
            .oneshot(Request::new(Empty::new()))
            .await
            .unwrap();
        assert!(!guard.shared().tracked.load(Relaxed));
        // A request that does say so shows that the first was an exception, a probe from within.
        let conn = conn();
        assert!(!conn.state().is_accounted());
        layer.layer(answers).oneshot(request(&conn)).await.unwrap();
        assert!(guard.shared().tracked.load(Relaxed) && conn.state().is_accounted());

        // Once it is known to stand right, a request from elsewhere changes nothing.
        let guard = ConnGuard::default();
        let layer = guard.track_requests();
        layer.layer(answers).oneshot(request(&conn)).await.unwrap();
        layer
            .layer(answers)
            .oneshot(Request::new(Empty::new()))
            .await
            .unwrap();
        assert!(guard.shared().tracked.load(Relaxed));
    }

    /// Says how long it is, and not that it has ended.
    struct Declared(Option<Bytes>);

    impl Body for Declared {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0.as_ref().map_or(0, |data| data.len() as u64))
        }
    }

    #[tokio::test]
    async fn whoever_knows_the_length_need_not_ask_for_the_end() {
        let conn = conn();
        let declared = Declared(Some(Bytes::from_static(b"x"))).boxed_unsync();
        let mut body = serve(&conn, request(&conn), Response::new(declared))
            .await
            .into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(counts(&conn), (1, 0, 1, 0));
        let conn = self::conn();
        let mut body = serve(&conn, request(&conn), full(10)).await.into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(counts(&conn), (1, 0, 1, 0));
        let answer = serve(&conn, request(&conn), full(0)).await;
        assert_eq!(counts(&conn), (2, 0, 2, 0));
        drop(answer);
    }

    #[tokio::test]
    async fn the_connection_knows_how_much_of_a_body_is_still_to_come() {
        let uploaded = |name, value: &'static str, version| {
            let conn = conn();
            let mut request = Request::new(Full::<Bytes>::from("body"));
            *request.version_mut() = version;
            request
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
            (conn, request)
        };
        let seen = [
            (CONTENT_LENGTH, "10", Version::HTTP_11, (true, false)),
            (CONTENT_LENGTH, "0", Version::HTTP_10, (false, true)),
            (CONTENT_LENGTH, "5, 5", Version::HTTP_11, (false, true)),
            (
                TRANSFER_ENCODING,
                "chunked",
                Version::HTTP_11,
                (false, true),
            ),
            (CONTENT_LENGTH, "10", Version::HTTP_2, (false, false)),
        ];
        for (name, value, version, expected) in seen {
            let (conn, request) = uploaded(name, value, version);
            conn.state().add_read(1);
            drop(serve(&conn, request, full(0)).await);
            let before = conn.state().sample().body_left;
            conn.state().add_read(9);
            let sample = conn.state().sample();
            assert!(!sample.body_left);
            assert_eq!((before, sample.more_was_read), expected, "{value}");
        }
    }

    #[tokio::test]
    async fn a_body_that_fails_or_is_dropped_is_a_request_cancelled() {
        let conn = conn();
        drop(serve(&conn, request(&conn), full(10)).await);
        assert_eq!(counts(&conn), (1, 0, 0, 1));
        let (send, body) = Channel::<Bytes, &str>::new(1);
        send.abort("gone");
        let mut body = Some(body);
        let handler = service_fn(|_| {
            let response = Response::new(body.take().unwrap());
            async { Ok::<_, Infallible>(response) }
        });
        let mut body = layer()
            .layer(handler)
            .oneshot(request(&conn))
            .await
            .unwrap()
            .into_body();
        body.frame().await.unwrap().unwrap_err();
        assert_eq!(counts(&conn), (2, 0, 0, 2));
    }

    #[tokio::test]
    async fn a_dropped_future_and_a_panicking_handler_give_back_what_they_held() {
        let conn = conn();
        let pending =
            service_fn(|_| std::future::pending::<Result<Response<Answer>, Infallible>>());
        let mut service = layer().layer(pending);
        let waiting = service.call(request(&conn));
        let clone = service.clone().call(request(&conn));
        assert_eq!(counts(&conn), (2, 2, 0, 0));
        drop((waiting, clone));
        assert_eq!(counts(&conn), (2, 0, 0, 2));

        let panics = service_fn(|_| async {
            if true {
                panic!("on purpose");
            }
            Ok::<_, Infallible>(full(1))
        });
        let call = tokio::spawn(layer().layer(panics).oneshot(request(&conn)));
        assert!(call.await.unwrap_err().is_panic());
        assert_eq!(counts(&conn), (3, 0, 0, 3));
    }

    #[tokio::test]
    async fn the_last_request_says_close_on_http1_and_an_upgrade_is_no_request() {
        let mut totals = ConnTotals::default();
        totals.max_requests = Some(2);
        let conn = conn_within(&Arc::new(totals));
        let first = serve(&conn, request(&conn), full(1)).await;
        assert!(!first.headers().contains_key(CONNECTION));
        let last = serve(&conn, request(&conn), full(1)).await;
        assert_eq!(last.headers()[CONNECTION], "close");
        assert_eq!(conn.state().closing(), Some(Reason::MaxRequests));
        let mut second = request(&conn);
        *second.version_mut() = Version::HTTP_2;
        let response = serve(&conn, second, full(1)).await;
        assert!(!response.headers().contains_key(CONNECTION));
        drop((first, last, response));

        let mut switching = full(1);
        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let held = serve(&conn, request(&conn), switching).await;
        let sample = conn.state().sample();
        assert!(sample.upgraded && sample.in_flight == 0);
        drop(held);
    }

    #[tokio::test]
    async fn one_upgrade_too_many_is_refused_and_the_connection_goes_on() {
        let mut totals = ConnTotals::default();
        totals.max_upgraded = Some(1);
        let totals = Arc::new(totals);
        let switching = || {
            let mut response = full(0);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response
        };
        let (first, second) = (conn_within(&totals), conn_within(&totals));
        let response = serve(&first, request(&first), switching()).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let response = serve(&second, request(&second), switching()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER_NAME], "1");
        assert!(!second.state().is_upgraded() && first.state().is_upgraded());
        drop(response);
        first.leave();
        let response = serve(&second, request(&second), switching()).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        second.leave();
        assert_eq!((totals.upgraded(), totals.in_flight()), (0, 0));
    }

    #[tokio::test]
    async fn one_request_too_many_is_answered_without_the_handler_and_told_in_shadow() {
        for mode in [Mode::Enforce, Mode::Shadow] {
            let journal = Journal::default();
            let mut totals = ConnTotals::default();
            (totals.max_in_flight, totals.mode) = (Some(1), mode);
            totals.recorder = journal.clone().into();
            let totals = Arc::new(totals);
            let (first, second) = (conn_within(&totals), conn_within(&totals));
            let held = serve(&first, request(&first), full(1)).await;
            let grpc = {
                let mut request = request(&second);
                (*request.method_mut(), *request.version_mut()) = (Method::POST, Version::HTTP_2);
                let kind = HeaderValue::from_static("application/grpc");
                request.headers_mut().insert(CONTENT_TYPE, kind);
                request
            };
            let plain = serve(&second, request(&second), full(1)).await;
            drop(plain.into_body());
            let plain = serve(&second, request(&second), full(1)).await;
            let grpc = serve(&second, grpc, full(1)).await;
            if mode == Mode::Enforce {
                assert_eq!(plain.status(), StatusCode::SERVICE_UNAVAILABLE);
                assert_eq!(plain.headers()[RETRY_AFTER_NAME], "1");
                let answer = plain.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(answer, "server is busy");
                assert_eq!(
                    (grpc.status(), &grpc.headers()["grpc-status"]),
                    (StatusCode::OK, &HeaderValue::from_static("8"))
                );
            } else {
                assert_eq!(
                    (plain.status(), grpc.status()),
                    (StatusCode::OK, StatusCode::OK)
                );
                drop(plain);
            }
            drop((held, grpc));
            assert_eq!(
                (totals.in_flight(), counts(&first).1, counts(&second).1),
                (0, 0, 0)
            );
            assert_eq!(
                journal.refused(),
                [(Guard::Connection, Reason::InFlightFull); 3]
            );
            let response = serve(&second, request(&second), full(1)).await;
            assert_eq!(response.status(), StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn who_is_refused_is_in_nobodys_way_before_he_is_answered() {
        let mut totals = ConnTotals::default();
        totals.max_in_flight = Some(1);
        let totals = Arc::new(totals);
        let (first, second) = (conn_within(&totals), conn_within(&totals));
        let held = serve(&first, request(&first), full(1)).await;
        let mut refuses = layer().layer(service_fn(|_| async { Ok::<_, Infallible>(full(1)) }));
        let refused = refuses.call(request(&second));
        assert_eq!(totals.in_flight(), 1);
        drop(held);
        assert_eq!(totals.in_flight(), 0);
        assert_eq!(
            refused.await.unwrap().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!((totals.in_flight(), counts(&second).1), (0, 0));
    }

    #[tokio::test]
    async fn two_that_tell_of_the_same_request_count_it_once() {
        let conn = conn();
        let inner = layer().layer(service_fn(|_: Request<Empty<Bytes>>| async {
            Ok::<_, Infallible>(full(1))
        }));
        let response = RequestTracking::of(conn.clone(), inner)
            .oneshot(request(&conn))
            .await
            .unwrap();
        assert_eq!(counts(&conn), (1, 1, 0, 0));
        response.into_body().collect().await.unwrap();
        assert_eq!(counts(&conn), (1, 0, 1, 0));
    }

    #[tokio::test]
    async fn what_is_ready_on_http2_and_not_asked_for_waits_for_the_client() {
        let conn = conn();
        let mut second = request(&conn);
        *second.version_mut() = Version::HTTP_2;
        let (mut send, body) = Channel::<Bytes, Infallible>::new(1);
        let mut body = serve(&conn, second, Response::new(body.boxed_unsync()))
            .await
            .into_body();
        let waiting = || conn.state().sample().waiting;
        assert_eq!(waiting(), 1); // Nobody has asked.
        assert!(body.frame().now_or_never().is_none());
        assert_eq!(waiting(), 0); // The handler has nothing.
        send.send_data(Bytes::from_static(b"x")).await.unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(waiting(), 1); // There was something, and nobody asks for more.
        drop(body);
        assert_eq!(waiting(), 0);
    }

    #[tokio::test]
    async fn on_http2_the_last_byte_of_a_response_is_a_frame_of_its_own() {
        let conn = conn();
        let mut second = request(&conn);
        *second.version_mut() = Version::HTTP_2;
        let mut body = serve(&conn, second, full(1000)).await.into_body();
        assert_eq!(body.size_hint().exact(), Some(1000));
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((frame.len(), body.size_hint().exact()), (999, Some(1)));
        assert!(!body.is_end_stream());
        let sample = conn.state().sample();
        assert_eq!(
            (sample.in_flight, sample.waiting, sample.answered),
            (1, 1, 0)
        );
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(frame.len() == 1 && body.is_end_stream());
        drop(body);
        assert_eq!(counts(&conn), (1, 0, 1, 0));
        // A short body is one frame, and HTTP/1 has no windows.
        let mut second = request(&conn);
        *second.version_mut() = Version::HTTP_2;
        let mut body = serve(&conn, second, full(256)).await.into_body();
        assert_eq!(
            body.frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len(),
            256
        );
        assert!(body.is_end_stream());
        let mut body = serve(&conn, request(&conn), full(1000)).await.into_body();
        assert_eq!(
            body.frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .len(),
            1000
        );
    }

    #[tokio::test]
    async fn a_handler_that_fails_is_no_client_that_cancels() {
        let conn = conn_within(&Arc::default());
        let fails = service_fn(|_| async { Err::<Response<Answer>, _>("on purpose") });
        layer()
            .layer(fails)
            .oneshot(request(&conn))
            .await
            .unwrap_err();
        let never = service_fn(|_| std::future::pending::<Result<Response<Answer>, Infallible>>());
        drop(layer().layer(never).oneshot(request(&conn)).now_or_never());
        let sample = conn.state().sample();
        assert_eq!((sample.cancelled, sample.early), (2, 1));
    }

    #[tokio::test]
    async fn connect_is_an_upgrade_only_if_it_succeeds() {
        let conn = conn();
        let connect = || {
            let mut request = request(&conn);
            *request.method_mut() = Method::CONNECT;
            request
        };
        let mut refused = full(1);
        *refused.status_mut() = StatusCode::FORBIDDEN;
        drop(serve(&conn, connect(), refused).await);
        assert!(!conn.state().is_upgraded());
        drop(serve(&conn, connect(), full(0)).await);
        assert!(conn.state().is_upgraded());
    }
}
