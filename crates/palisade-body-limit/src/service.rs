//! Refuses what declares too much, and watches the rest.

use crate::{
    BodyLimitHandle, MaxRequestBody, RequestBody, ResponseBody, ResponseFuture,
    counted::Counted,
    layer::Shared,
    watch::{Watch, rejection, too_large},
};
use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH};
use http_body::Body;
use palisade_core::{AnswerForm, BoxError, ConnInfo, GuardBody, Phase, Rejection, linger};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// Limits the length of request and response bodies. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct BodyLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

// === BodyLimit ===

impl<S> BodyLimit<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for BodyLimit<S>
where
    S: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    ResBody: Body<Data = Bytes, Error: Into<BoxError>>,
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
        let has_body = !request.body().is_end_stream();
        let (counted, watch) = if has_body || shared.looks_anyway {
            match shared.look(&mut request, has_body) {
                Ok(looked) => looked,
                Err(rejection) => return turn_away(rejection, shared.clone(), request),
            }
        } else {
            (None, None)
        };
        // Here and nowhere else the request is moved: a move is a copy of 200 bytes and more.
        let request = request.map(|body| RequestBody::new(body, counted));
        ResponseFuture::new(self.inner.call(request), watch)
    }
}

#[cold]
#[inline(never)]
fn turn_away<F, B>(
    rejection: Rejection,
    shared: Arc<Shared>,
    request: Request<B>,
) -> ResponseFuture<F>
where
    B: Body + Send + 'static,
{
    let version = request.version();
    linger(request.into_body(), version);
    ResponseFuture::refused(rejection, shared)
}

/// What a request says about the length of its body.
struct Length {
    declared: u64,
    exact: bool,
}

// === Length ===

impl Length {
    const NONE: Self = Self { declared: 0, exact: true };

    /// The body itself knows best: servers make sure that it keeps to what it says. The header is
    /// read where another layer's body has lost its length; where it comes more than once the
    /// largest counts, and what is no number is the server's to refuse.
    fn of<B: Body>(request: &Request<B>) -> Self {
        let hint = request.body().size_hint();
        if let Some(declared) = hint.exact() {
            return Self { declared, exact: true };
        }
        let headers = request.headers().get_all(CONTENT_LENGTH).into_iter();
        let lengths = headers.filter_map(|value| value.to_str().ok()?.parse().ok());
        Self { declared: lengths.fold(hint.lower(), u64::max), exact: false }
    }
}

// === Shared ===

/// How a request body is counted, and what it shares with the response future.
type Looked = (Option<Counted>, Option<Arc<Watch>>);

impl Shared {
    /// Looks at a request that has a body, or whose response is limited.
    #[inline(never)]
    fn look<B: Body>(
        self: &Arc<Self>,
        request: &mut Request<B>,
        has_body: bool,
    ) -> Result<Looked, Rejection> {
        let looks = self.settings.is_on();
        let has_body = looks && has_body;
        let limits_response = looks && self.response.is_some();
        if !has_body && !limits_response && !self.overridable {
            return Ok((None, None));
        }
        let limit = match request.extensions().get::<MaxRequestBody>() {
            Some(own) if has_body => own.0,
            _ => self.request,
        };
        let length = if has_body { Length::of(request) } else { Length::NONE };
        // Where the handler may still raise the limit, the first read decides.
        let too_long = length.declared > limit && !self.overridable;
        if too_long {
            let violation = too_large(Phase::RequestHead, limit, length.declared);
            let rejection = rejection(violation, AnswerForm::of(request));
            let conn = ConnInfo::of(request.extensions()).map(Arc::as_ref);
            if self.settings.refuse(&rejection, conn) {
                return Err(rejection);
            }
        }
        let is_harmless = self.is_harmless(&length);
        let counts = has_body && !too_long && !is_harmless;
        // Neither a shadowed refusal nor an empty body is looked at again.
        let joins = has_body && !too_long && is_harmless && self.tiny_frames.is_some();
        let watch =
            (counts || limits_response).then(|| Arc::new(Watch::new(self.clone(), request, limit)));
        let counting = watch.clone().filter(|_| counts);
        if self.overridable {
            request.extensions_mut().insert(BodyLimitHandle::new(counting.clone()));
        }
        let counted = match counting {
            Some(watch) => Some(Counted::watched(watch, limit)),
            None if joins => Some(Counted::harmless()),
            None => None,
        };
        Ok((counted, watch))
    }

    /// Whether a body of this length, below the limit, can break no rule however it comes.
    fn is_harmless(&self, length: &Length) -> bool {
        let frames = self.tiny_frames.map_or(u64::MAX, |tiny| u64::from(tiny.burst));
        length.exact && length.declared <= frames && !self.overridable
    }
}
