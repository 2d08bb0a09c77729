//! Refuses what declares too much, and watches the rest.

use crate::{
    BodyLimitHandle, MaxRequestBody, RequestBody, ResponseBody, ResponseFuture,
    layer::Shared,
    watch::{Watch, rejection, too_large},
};
use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH};
use http_body::Body;
use palisade_core::{AnswerForm, BoxError, ConnInfo, GuardBody, Phase, linger};
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

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let looks = shared.settings.is_on();
        let has_body = looks && !request.body().is_end_stream();
        let limits_response = looks && shared.response.is_some();
        if !has_body && !limits_response && !shared.overridable {
            return ResponseFuture::new(self.inner.call(request.map(RequestBody::unwatched)), None);
        }
        let limit = match request.extensions().get::<MaxRequestBody>() {
            Some(own) if has_body => own.0,
            _ => shared.request,
        };
        let length = if has_body { Length::of(&request) } else { Length::NONE };
        // Where the handler may still raise the limit, the first read decides.
        let too_long = length.declared > limit && !shared.overridable;
        if too_long {
            let violation = too_large(Phase::RequestHead, limit, length.declared);
            let rejection = rejection(violation, AnswerForm::of(&request));
            let conn = ConnInfo::of(request.extensions()).map(Arc::as_ref);
            if shared.settings.refuse(&rejection, conn) {
                let version = request.version();
                linger(request.into_body(), version);
                return ResponseFuture::refused(rejection, shared.clone());
            }
        }
        let is_harmless = shared.is_harmless(&length);
        let counts = has_body && !too_long && !is_harmless;
        // Neither a shadowed refusal nor an empty body is looked at again.
        let joins = has_body && !too_long && is_harmless && shared.tiny_frames.is_some();
        let watch = (counts || limits_response)
            .then(|| Arc::new(Watch::new(shared.clone(), &request, limit)));
        let counting = watch.clone().filter(|_| counts);
        if shared.overridable {
            request.extensions_mut().insert(BodyLimitHandle::new(counting.clone()));
        }
        let request = request.map(|body| match counting {
            Some(watch) => RequestBody::watched(body, watch, limit),
            None if joins => RequestBody::harmless(body),
            None => RequestBody::unwatched(body),
        });
        ResponseFuture::new(self.inner.call(request), watch)
    }
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

impl Shared {
    /// Whether a body of this length, below the limit, can break no rule however it comes.
    fn is_harmless(&self, length: &Length) -> bool {
        let frames = self.tiny_frames.map_or(u64::MAX, |tiny| u64::from(tiny.burst));
        length.exact && length.declared <= frames && !self.overridable
    }
}
