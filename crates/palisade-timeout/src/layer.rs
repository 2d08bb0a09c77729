//! The layer and its service.

use crate::{
    RequestBody, ResponseBody, ResponseFuture,
    clock::{Hand, Record},
    future::Late,
    grpc,
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{
    AnswerForm, BoxError, Guard, GuardBody, Phase, Reason, Rejection, RequestHead, Settings,
    Violation,
};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Timeout`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct TimeoutLayer {
    shared: Arc<Shared>,
}

/// Ends requests whose time is up. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct Timeout<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// How long a request may take.
///
/// A zero refuses the request before anybody sees it. There is no "too long": what lies beyond
/// the end of time is never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(crate) head: Duration,
    pub(crate) total: Option<Duration>,
}

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) status: StatusCode,
    pub(crate) limits: Limits,
    choose: Option<Choose>,
    expose: bool,
    /// Nothing but the request itself makes one request differ from another.
    plain: bool,
}

/// What is kept of a request that may be out of the ordinary, and the hand of its body on it.
type Recorded = (Option<Arc<Record>>, Option<Hand>);

type Choose = Arc<dyn Fn(&RequestHead<'_>) -> Option<Limits> + Send + Sync>;

// === TimeoutLayer ===

impl TimeoutLayer {
    /// At most `head` until the response head is ready, not counting the time in which the
    /// request body is waited for. 30 seconds are a good start.
    pub fn new(head: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings: Settings::default(),
                status: StatusCode::SERVICE_UNAVAILABLE,
                limits: Limits::head(head),
                choose: None,
                expose: false,
                plain: !head.is_zero(),
            }),
        }
    }

    /// At most `total` on the wall clock until the last frame of the response is handed out,
    /// whoever is waited for. A response that is under way then fails: HTTP/1 closes the
    /// connection, HTTP/2 resets the stream. It ends downloads, event streams and gRPC streams
    /// as well; give those limits of their own by [`Self::limits_for`]. What was upgraded is no
    /// longer a response and goes on.
    ///
    /// The end comes when the server next asks the body for a frame; it is woken for that. While
    /// its client takes nothing hyper asks on HTTP/1, unless it holds 400 KiB already, and does
    /// not ask on HTTP/2: to end every stalled reader is the work of a connection guard.
    /// Defaults to no such limit.
    pub fn total(mut self, total: Duration) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.limits = shared.limits.total(total);
        shared.plain &= !total.is_zero();
        self
    }

    /// Gives the requests for which `choose` returns limits those in place of the layer's own.
    /// It is called once for each request, before the inner service: be quick, never panic.
    /// The client's `grpc-timeout` still holds where it is lower.
    ///
    /// ```
    /// # use palisade_timeout::{Limits, TimeoutLayer};
    /// # use std::time::Duration;
    /// let layer = TimeoutLayer::new(Duration::from_secs(30)).limits_for(|head| {
    ///     let report = head.uri.path() == "/report";
    ///     report.then(|| Limits::head(Duration::from_secs(300)))
    /// });
    /// ```
    ///
    /// Defaults to the same limits for all.
    pub fn limits_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Limits> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.choose = Some(Arc::new(choose));
        shared.plain = false;
        self
    }

    /// The status of the answer to plain HTTP; gRPC gets `DEADLINE_EXCEEDED`. A gateway may
    /// prefer 504. Defaults to 503.
    pub fn status(mut self, status: StatusCode) -> Self {
        Arc::make_mut(&mut self.shared).status = status;
        self
    }

    /// Puts a [`Deadline`](crate::Deadline) into the extensions of every request, so that handlers can give what
    /// they call no more time than they have. It costs a few allocations and a look at the clock
    /// for each request. Defaults to not doing so.
    pub fn expose_deadline(mut self) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.expose = true;
        shared.plain = false;
        self
    }
}

palisade_core::settings_methods!(TimeoutLayer);

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { inner, shared: self.shared.clone() }
    }
}

// === Timeout ===

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Timeout<S>
where
    S: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<GuardBody<ResponseBody<ResBody>>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        // gRPC is always a POST.
        let plain =
            shared.plain && request.body().is_end_stream() && request.method() != Method::POST;
        let (record, hand) = if plain {
            (None, None)
        } else {
            match shared.record(&mut request) {
                Ok(recorded) => recorded,
                Err(late) => return ResponseFuture::late(shared.clone(), late),
            }
        };
        let conn = shared.settings.conn(request.extensions());
        // Here and nowhere else the request is moved: a move is a copy of 200 bytes and more.
        let request = request.map(|body| RequestBody::new(body, hand));
        ResponseFuture::timed(self.inner.call(request), shared.clone(), conn, record)
    }
}

// === Limits ===

impl Limits {
    /// For a request that is let pass whatever it does.
    const NONE: Self = Self { head: Duration::MAX, total: None };

    /// At most `head` until the response head is ready; see [`TimeoutLayer::new`]. No limit on
    /// the whole response.
    pub const fn head(head: Duration) -> Self {
        Self { head, total: None }
    }

    /// At most `total` until the response is at its end; see [`TimeoutLayer::total`].
    /// Defaults to no such limit.
    pub const fn total(mut self, total: Duration) -> Self {
        self.total = Some(total);
        self
    }

    /// The violation of a request that has no time at all.
    fn spent(self) -> Option<Violation> {
        let reason = if self.head.is_zero() {
            Reason::Deadline
        } else if self.total.is_some_and(|total| total.is_zero()) {
            Reason::TotalDeadline
        } else {
            return None;
        };
        Some(Violation::new(Guard::Timeout, reason, Phase::RequestHead, 0, 0))
    }
}

// === Shared ===

impl Shared {
    /// What is to be kept of a request that may be out of the ordinary.
    #[inline(never)]
    fn record<B: Body>(&self, request: &mut Request<B>) -> Result<Recorded, Late> {
        if !self.settings.is_on() {
            return Ok((None, None));
        }
        let form = AnswerForm::of(request);
        let mut limits = self.limits_of(request, form);
        let mut is_spared = false;
        if let Some(violation) = limits.spent() {
            let conn = self.settings.conn(request.extensions());
            let rejection = self.rejection(violation, form);
            if self.settings.refuse(&rejection, conn.as_deref()) {
                return Err(Late { reason: violation.reason, form });
            }
            (limits, is_spared) = (Limits::NONE, true);
        }
        let has_body = !request.body().is_end_stream();
        if self.plain && !has_body && !form.is_grpc() {
            return Ok((None, None));
        }
        let started = (self.expose && !is_spared).then(Instant::now);
        let record = Arc::new(Record::new(limits, form, started));
        if let Some(deadline) = record.deadline() {
            request.extensions_mut().insert(deadline);
        }
        let hand = has_body.then(|| Hand::new(record.clone()));
        Ok((Some(record), hand))
    }

    fn limits_of<B>(&self, request: &Request<B>, form: AnswerForm) -> Limits {
        let chosen = self.choose.as_ref().and_then(|choose| choose(&request.into()));
        let limits = chosen.unwrap_or(self.limits);
        match form.is_grpc().then(|| grpc::timeout(request.headers())).flatten() {
            // The client reckons from when it began to send to when it has the whole answer.
            Some(own) => limits.total(limits.total.map_or(own, |total| total.min(own))),
            None => limits,
        }
    }

    pub(crate) fn rejection(&self, violation: Violation, form: AnswerForm) -> Rejection {
        Rejection::new(violation, self.status, form)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .field("status", &self.status)
            .field("limits", &self.limits)
            .field("expose", &self.expose)
            .finish_non_exhaustive()
    }
}
