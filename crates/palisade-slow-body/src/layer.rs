//! The layer and its service.

use crate::{
    Pace, RequestBody, ResponseBody, ResponseFuture,
    watch::{Plain, Watch},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{AnswerForm, Answerer, BoxError, GuardBody, Pressure, RequestHead, Settings};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`SlowBody`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct SlowBodyLayer {
    shared: Arc<Shared>,
}

/// Ends bodies that are slower than their pace. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct SlowBody<S> {
    inner: S,
    shared: Arc<Shared>,
}

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    request: Pace,
    grpc: Pace,
    response: Pace,
    pressure: Pressure,
    choose: Option<Choose>,
}

type Choose = Arc<dyn Fn(&RequestHead<'_>) -> Option<Pace> + Send + Sync>;

// === SlowBodyLayer ===

impl SlowBodyLayer {
    /// Every number at its default.
    pub fn new() -> Self {
        let response = Pace { gap: Some(Duration::from_secs(120)), rate: None, ..Pace::default() };
        Self {
            shared: Arc::new(Shared {
                settings: Settings::default(),
                request: Pace::default(),
                grpc: Pace::conversation(),
                response,
                pressure: Pressure::default(),
                choose: None,
            }),
        }
    }

    /// How fast request bodies must come. Defaults to [`Pace::default`].
    pub fn request(mut self, pace: Pace) -> Self {
        Arc::make_mut(&mut self.shared).request = pace;
        self
    }

    /// How fast the request bodies of gRPC over HTTP/2 must come, whose clients speak when they
    /// have something to say. A stream on which the client is silent for longer by design wants a
    /// pace of its own by [`Self::pace_for`].
    ///
    /// That a request is gRPC is [the client's own word](crate#whoever-says-grpc). Where that is
    /// too much trust, give [`Pace::default`] here, and a pace for conversations to their methods
    /// alone by [`Self::pace_for`]. Defaults to [`Pace::conversation`].
    pub fn grpc(mut self, pace: Pace) -> Self {
        Arc::make_mut(&mut self.shared).grpc = pace;
        self
    }

    /// How fast response bodies must be taken; see [what can be seen of
    /// that](crate#what-it-cannot-see). A kernel that buffers megabytes makes a reader of 64 KiB a
    /// second come back for more only every 20 s. Defaults to [`Pace::gap_only`] of 120 s.
    pub fn response(mut self, pace: Pace) -> Self {
        Arc::make_mut(&mut self.shared).response = pace;
        self
    }

    /// Gives the requests for which `choose` returns a pace that one for both their bodies, also
    /// if they are gRPC. It is called once for each request, before the inner service: be quick,
    /// never panic.
    ///
    /// ```
    /// # use palisade_slow_body::{Pace, SlowBodyLayer};
    /// let layer = SlowBodyLayer::new().pace_for(|head| {
    ///     let chat = head.uri.path().starts_with("/chat/");
    ///     chat.then(Pace::conversation)
    /// });
    /// ```
    ///
    /// Defaults to no such requests.
    pub fn pace_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Pace> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.shared).choose = Some(Arc::new(choose));
        self
    }

    /// Multiplies the rate that is asked for by 1 at no pressure to 8 at full pressure, for bytes
    /// that come from then on. Defaults to no pressure for ever.
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        Arc::make_mut(&mut self.shared).pressure = pressure;
        self
    }
}

impl Default for SlowBodyLayer {
    fn default() -> Self {
        Self::new()
    }
}

palisade_core::settings_methods!(SlowBodyLayer);

impl<S> Layer<S> for SlowBodyLayer {
    type Service = SlowBody<S>;

    fn layer(&self, inner: S) -> SlowBody<S> {
        SlowBody { inner, shared: self.shared.clone() }
    }
}

// === SlowBody ===

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SlowBody<S>
where
    S: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body<Data = Bytes>,
    ReqBody::Error: Into<BoxError>,
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
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let plain = shared.choose.is_none() && request.body().is_end_stream();
        let watched = if plain { None } else { shared.watch(&request) };
        let (form, conn) = match &watched {
            Some(_) => (AnswerForm::Http { close: false }, None),
            None => (AnswerForm::of(&request), shared.settings.conn(request.extensions())),
        };
        let reading = watched.as_ref().and_then(Watch::reading);
        // Here and nowhere else the request is moved: a move is a copy of 200 bytes and more.
        let request = request.map(|body| RequestBody::new(body, reading));
        let inner = self.inner.call(request);
        match watched {
            Some(watch) => ResponseFuture::watched(inner, watch),
            None => ResponseFuture::plain(inner, Plain { shared: shared.clone(), form, conn }),
        }
    }
}

// === Shared ===

impl Shared {
    /// What a request that has a body, or may have a pace of its own, shares with its bodies and
    /// the response future.
    #[inline(never)]
    fn watch<B: Body>(self: &Arc<Self>, request: &Request<B>) -> Option<Arc<Watch>> {
        if !self.settings.is_on() {
            return None;
        }
        let chosen = self.choose.as_ref().and_then(|choose| choose(&request.into()));
        let has_body = !request.body().is_end_stream();
        if !has_body && chosen.is_none() {
            return None;
        }
        let form = AnswerForm::of(request);
        let conn = self.settings.conn(request.extensions());
        // gRPC-Web has no client streams.
        let grpc = form == AnswerForm::Grpc;
        let answerer = Answerer::new(form, conn);
        Some(Arc::new(Watch::new(self.clone(), answerer, grpc, chosen, has_body)))
    }

    /// The bytes a second that are asked for at the present pressure.
    pub(crate) fn required(&self, pace: &Pace) -> u64 {
        let Some(rate) = pace.rate else { return 1 };
        let pressure = self.pressure.get();
        if pressure <= 0.0 {
            return rate;
        }
        // At most 2^33: a float has room for that, and the cast saturates.
        (rate as f64 * (1.0 + 7.0 * f64::from(pressure))) as u64
    }

    /// How fast a request must come that has no pace of its own.
    pub(crate) fn request_pace(&self, grpc: bool) -> &Pace {
        if grpc { &self.grpc } else { &self.request }
    }

    /// How fast a response must be taken whose request has no pace of its own.
    pub(crate) fn response_pace(&self) -> &Pace {
        &self.response
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .field("request", &self.request)
            .field("grpc", &self.grpc)
            .field("response", &self.response)
            .field("pressure", &self.pressure)
            .finish_non_exhaustive()
    }
}
