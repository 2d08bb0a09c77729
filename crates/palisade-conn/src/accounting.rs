//! Tells a connection what HTTP is doing on it.

use crate::{ConnGuard, guard::Shared};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};
use palisade_core::{ConnInfo, InFlight, Mode};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Accounting`]. From [`ConnGuard::accounting`]; for axum see
#[cfg_attr(feature = "axum", doc = "[`connected`](crate::connected).")]
#[cfg_attr(not(feature = "axum"), doc = "`connected`, with the feature `axum`.")]
#[derive(Clone, Debug)]
pub struct AccountingLayer {
    guard: Weak<Shared>,
}

/// Tells the connection of each request, which it finds as `Arc<ConnInfo>` among the request's
/// extensions, when its head is here and when its answer has ended. Requests without one pass
/// untouched.
///
/// It stands outside of everything else, so that the guard knows of requests that other layers
/// refuse. The last request of an HTTP/1 connection that is to close gets `Connection: close`.
#[derive(Clone, Debug)]
pub struct Accounting<S> {
    inner: S,
    /// Of every request, where the service is made for one connection.
    conn: Option<Arc<ConnInfo>>,
    guard: Weak<Shared>,
    /// There is nothing more to find out about where it stands.
    is_placed: bool,
}

pin_project! {
    /// Response future of [`Accounting`].
    #[derive(Debug)]
    pub struct AccountingFuture<F> {
        #[pin]
        inner: F,
        account: Option<Account>,
    }
}

pin_project! {
    /// A response body; its request is in flight until it has ended, failed, or is dropped.
    #[derive(Debug)]
    pub struct AccountedBody<B> {
        #[pin]
        inner: B,
        in_flight: Option<InFlight>,
        // What is left of the length that the head declares, if it does.
        left: Option<u64>,
    }
}

/// One request until its response head is here.
#[derive(Debug)]
pub(crate) struct Account {
    in_flight: InFlight,
    is_http1: bool,
    is_connect: bool,
    is_head: bool,
}

const CLOSE: HeaderValue = HeaderValue::from_static("close");

// === ConnGuard ===

impl ConnGuard {
    /// The layer that tells this guard's connections of their requests. It is to be around
    /// everything that the server answers: from now on a connection without a request counts as
    /// one without a complete request head.
    pub fn accounting(&self) -> AccountingLayer {
        let shared = self.shared();
        if shared.limits.mode != Mode::Off {
            shared.accounted.store(true, Relaxed);
        }
        AccountingLayer { guard: Arc::downgrade(shared) }
    }
}

// === AccountingLayer ===

impl<S> Layer<S> for AccountingLayer {
    type Service = Accounting<S>;

    fn layer(&self, inner: S) -> Accounting<S> {
        Accounting { inner, conn: None, guard: self.guard.clone(), is_placed: false }
    }
}

// === Accounting ===

impl<S> Accounting<S> {
    /// Around a service that is made for one connection, for a server of your own. The connection
    /// is told of requests from now on, and `inner` finds the `Arc<ConnInfo>` among the extensions
    /// of each.
    pub fn of(conn: Arc<ConnInfo>, inner: S) -> Self {
        conn.state().set_accounted();
        Self { inner, conn: Some(conn), guard: Weak::new(), is_placed: true }
    }

    /// What it is around.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Accounting<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<AccountedBody<ResBody>>;
    type Error = S::Error;
    type Future = AccountingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let conn = match &self.conn {
            Some(conn) => {
                request.extensions_mut().insert(conn.clone());
                Some(conn.clone())
            }
            None => ConnInfo::of(request.extensions()).cloned(),
        };
        if !self.is_placed {
            self.look_at_place(conn.is_some());
        }
        let account = conn.map(|conn| {
            restore(&conn, request.extensions_mut());
            Account::begin(&conn, &request)
        });
        AccountingFuture { inner: self.inner.call(request), account }
    }
}

impl<S> Accounting<S> {
    /// If the very first requests do not say on which connection they came, the layer stands where
    /// nothing can be told to the guard, which then must not take silence for idleness.
    #[cold]
    fn look_at_place(&mut self, has_conn: bool) {
        let Some(guard) = self.guard.upgrade() else { return };
        if has_conn && !guard.is_placed.swap(true, Relaxed) {
            guard.accounted.store(guard.limits.mode != Mode::Off, Relaxed);
        }
        self.is_placed = guard.is_placed.load(Relaxed);
        if !self.is_placed {
            guard.accounted.store(false, Relaxed);
        }
    }
}

impl<F, B, E> Future for AccountingFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
{
    type Output = Result<Response<AccountedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        let in_flight = this.account.take().and_then(|account| account.answer(&mut response));
        let left = in_flight.as_ref().and_then(|_| declared(&response));
        Poll::Ready(Ok(response.map(|inner| AccountedBody { inner, in_flight, left })))
    }
}

#[cfg(feature = "tonic")]
use crate::tonic::restore;

#[cfg(not(feature = "tonic"))]
fn restore(_: &ConnInfo, _: &mut http::Extensions) {}

// === Account ===

impl Account {
    pub(crate) fn begin<B>(conn: &Arc<ConnInfo>, request: &Request<B>) -> Self {
        // Whatever was expected when it was accepted.
        conn.state().set_accounted();
        let is_http2 = request.version() == Version::HTTP_2;
        let is_http1 = request.version() <= Version::HTTP_11;
        let in_flight = conn.begin_request(is_http2);
        if is_http1 {
            expect_body(&in_flight, request.headers());
        }
        Self {
            in_flight,
            is_http1,
            is_connect: request.method() == Method::CONNECT,
            is_head: request.method() == Method::HEAD,
        }
    }

    /// The head is here. Returns what is held until the body ends, if there is one.
    fn answer<B: Body>(self, response: &mut Response<B>) -> Option<InFlight> {
        let Self { mut in_flight, is_http1, is_connect, is_head } = self;
        let state = in_flight.conn().state();
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || is_connect && response.status().is_success();
        if is_upgrade {
            state.set_upgraded();
        } else if is_http1 && state.closing().is_some() {
            response.headers_mut().insert(CONNECTION, CLOSE);
        }
        // What has no body whatever its head says (RFC 9110 section 6.4.1) is not asked for one.
        let is_bodiless = is_head
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if is_upgrade || is_bodiless || response.body().is_end_stream() {
            in_flight.answered();
            return None;
        }
        Some(in_flight)
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

/// The length that the head of a response says, where its body does not know.
fn declared<B: Body>(response: &Response<B>) -> Option<u64> {
    if response.body().size_hint().exact().is_some() {
        return None;
    }
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

// === AccountedBody ===

impl<B: Body<Data = Bytes>> Body for AccountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        let is_last = match &frame {
            None => true,
            // Whoever knows the length does not ask again.
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                *this.left = this.left.map(|left| left.saturating_sub(length));
                frame.is_trailers()
                    || *this.left == Some(0)
                    || this.inner.is_end_stream()
                    || this.inner.size_hint().exact() == Some(0)
            }
            Some(Err(_)) => {
                *this.in_flight = None;
                false
            }
        };
        if is_last && let Some(mut in_flight) = this.in_flight.take() {
            in_flight.answered();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use http_body_util::{BodyExt, Channel, Full};
    use palisade_core::{ConnSample, Prefix, Reason};
    use std::convert::Infallible;
    use tower::{ServiceExt, service_fn};

    type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

    fn conn() -> Arc<ConnInfo> {
        Arc::new(ConnInfo::new(([127, 0, 0, 1], 1).into(), None, Prefix::default()))
    }

    fn request(conn: &Arc<ConnInfo>) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(conn.clone());
        request
    }

    fn layer() -> AccountingLayer {
        ConnGuard::default().accounting()
    }

    fn counts(conn: &ConnInfo) -> (u32, u32, u32, u32) {
        let ConnSample { requests, in_flight, answered, cancelled, .. } = conn.state().sample();
        (requests, in_flight, answered, cancelled)
    }

    async fn serve(
        conn: &Arc<ConnInfo>,
        mut request: Request<()>,
        answer: Response<Answer>,
    ) -> Response<AccountedBody<Answer>> {
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
            response.headers_mut().insert(CONTENT_LENGTH, header.parse().unwrap());
            response
        };
        // hyper drops a body once it has written as much as the head declares.
        let conn = conn();
        let mut body = serve(&conn, request(&conn), streamed("6")).await.into_body();
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
        let layer = guard.accounting();
        let answers = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(full(1)) });
        assert!(guard.shared().accounted.load(Relaxed));
        layer.layer(answers).oneshot(Request::new(())).await.unwrap();
        assert!(!guard.shared().accounted.load(Relaxed));
        // A request that does say so shows that the first was an exception, a probe from within.
        let conn = conn();
        assert!(!conn.state().is_accounted());
        layer.layer(answers).oneshot(request(&conn)).await.unwrap();
        assert!(guard.shared().accounted.load(Relaxed) && conn.state().is_accounted());

        // Once it is known to stand right, a request from elsewhere changes nothing.
        let guard = ConnGuard::default();
        let layer = guard.accounting();
        layer.layer(answers).oneshot(request(&conn)).await.unwrap();
        layer.layer(answers).oneshot(Request::new(())).await.unwrap();
        assert!(guard.shared().accounted.load(Relaxed));
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
        let mut body = serve(&conn, request(&conn), Response::new(declared)).await.into_body();
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
            let mut request = request(&conn);
            *request.version_mut() = version;
            request.headers_mut().insert(name, HeaderValue::from_static(value));
            (conn, request)
        };
        let seen = [
            (CONTENT_LENGTH, "10", Version::HTTP_11, (true, false)),
            (CONTENT_LENGTH, "0", Version::HTTP_10, (false, true)),
            (CONTENT_LENGTH, "5, 5", Version::HTTP_11, (false, false)),
            (TRANSFER_ENCODING, "chunked", Version::HTTP_11, (false, false)),
            (CONTENT_LENGTH, "10", Version::HTTP_2, (false, true)),
        ];
        for (name, value, version, expected) in seen {
            let (conn, request) = uploaded(name, value, version);
            drop(serve(&conn, request, full(0)).await);
            let before = conn.state().sample().body_left;
            conn.state().add_read(10);
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
        let mut body = layer().layer(handler).oneshot(request(&conn)).await.unwrap().into_body();
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
        let conn = conn();
        conn.state().limit_requests(2);
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
