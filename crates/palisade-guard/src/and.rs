//! A policy that combines two policies.

use crate::{
    Elapsed, Facts, Flow, Handler, Keys, Policy, Polled, Refusal, RequestView, SharedView, Stamp,
    Upstream,
};
use http::{Request, Response};
use http_body::{Body, SizeHint};
use palisade_core::Violation;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// Two policies. The first one is outside the second.
#[derive(Clone, Copy, Debug)]
pub struct And<A, B>(pub A, pub B);

impl<A: Policy, B: Policy> Policy for And<A, B> {
    type Held = (A::Held, B::Held);
    type Shared = (A::Shared, B::Shared);
    type Upload = (A::Upload, B::Upload);
    type QueuedService = B::QueuedService;
    type Unread = (A::Unread, B::Unread);

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.0.has_recorder() || self.1.has_recorder()
    }

    #[inline(always)]
    fn admit<R: Body>(
        &self,
        request: &Request<R>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<Self::Held, Refusal> {
        let mut outer = self.0.admit(request, facts, keys)?;
        match self.1.admit(request, facts, keys) {
            Ok(inner) => Ok((outer, inner)),
            Err(refusal) => {
                self.0.release(
                    &mut outer,
                    RequestView {
                        facts,
                        shared: None,
                    },
                );
                Err(refusal)
            }
        }
    }

    #[inline(always)]
    fn share<R: Body>(
        &self,
        held: &mut Self::Held,
        request: &mut Request<R>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Self::Shared {
        let outer = self.0.share(&mut held.0, request, facts, keys);
        (outer, self.1.share(&mut held.1, request, facts, keys))
    }

    #[inline(always)]
    fn upload(&self, held: &mut Self::Held, shared: &Self::Shared, facts: &Facts) -> Self::Upload {
        let outer = self.0.upload(&mut held.0, &shared.0, facts);
        (outer, self.1.upload(&mut held.1, &shared.1, facts))
    }

    #[inline(always)]
    fn needs_sharing(&self, held: &Self::Held, keys: &Keys) -> bool {
        self.0.needs_sharing(&held.0, keys) || self.1.needs_sharing(&held.1, keys)
    }

    #[inline(always)]
    fn is_queued(&self, held: &Self::Held) -> bool {
        self.1.is_queued(&held.1)
    }

    fn poll_admission(
        &self,
        held: &mut Self::Held,
        view: RequestView<'_, Self::Shared>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        self.1
            .poll_admission(&mut held.1, view.map(|shared| &shared.1), cx)
    }

    #[inline(always)]
    fn before_handler(
        &self,
        held: &mut Self::Held,
        view: SharedView<'_, Self::Shared>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        ready!(
            self.0
                .before_handler(&mut held.0, view.map(|shared| &shared.0), cx)
        );
        self.1
            .before_handler(&mut held.1, view.map(|shared| &shared.1), cx)
    }

    #[inline(always)]
    fn after_handler(
        &self,
        held: &mut Self::Held,
        view: RequestView<'_, Self::Shared>,
        handler: Handler,
        cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        let inner = self
            .1
            .after_handler(&mut held.1, view.map(|shared| &shared.1), handler, cx);
        let handler = if inner.is_some() {
            Handler::Ready
        } else {
            handler
        };
        self.0
            .after_handler(&mut held.0, view.map(|shared| &shared.0), handler, cx)
            .or(inner)
    }

    #[inline(always)]
    fn has_deadline(&self, held: &Self::Held, view: RequestView<'_, Self::Shared>) -> bool {
        self.0.has_deadline(&held.0, view.map(|shared| &shared.0))
            || self.1.has_deadline(&held.1, view.map(|shared| &shared.1))
    }

    #[inline(always)]
    fn deadline(
        &self,
        held: &Self::Held,
        view: RequestView<'_, Self::Shared>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Instant> {
        let outer = self
            .0
            .deadline(&held.0, view.map(|shared| &shared.0), elapsed);
        earlier(
            outer,
            self.1
                .deadline(&held.1, view.map(|shared| &shared.1), elapsed),
        )
    }

    #[inline(always)]
    fn expired(
        &self,
        held: &mut Self::Held,
        view: RequestView<'_, Self::Shared>,
        elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        let outer = self
            .0
            .expired(&mut held.0, view.map(|shared| &shared.0), elapsed);
        outer.or_else(|| {
            self.1
                .expired(&mut held.1, view.map(|shared| &shared.1), elapsed)
        })
    }

    #[inline(always)]
    fn response_head<R: Body>(
        &self,
        held: &mut Self::Held,
        view: RequestView<'_, Self::Shared>,
        response: &mut Response<R>,
        started: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let (outer, inner) = (view.map(|shared| &shared.0), view.map(|shared| &shared.1));
        let inner = self
            .1
            .response_head(&mut held.1, inner, response, started)?;
        let outer = self
            .0
            .response_head(&mut held.0, outer, response, started)?;
        Ok(inner || outer)
    }

    #[inline(always)]
    fn is_plain(&self, upload: &Self::Upload, shared: &Self::Shared) -> bool {
        self.0.is_plain(&upload.0, &shared.0) && self.1.is_plain(&upload.1, &shared.1)
    }

    #[inline(always)]
    fn fits(&self, upload: &Self::Upload, bytes: usize) -> bool {
        self.0.fits(&upload.0, bytes) && self.1.fits(&upload.1, bytes)
    }

    #[inline(always)]
    fn passed(&self, upload: &mut Self::Upload, shared: &Self::Shared, bytes: usize) {
        self.0.passed(&mut upload.0, &shared.0, bytes);
        self.1.passed(&mut upload.1, &shared.1, bytes);
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut Self::Upload,
        view: SharedView<'_, Self::Shared>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let mut filtered = FilteredRequest {
            policy: &self.0,
            upload: &mut upload.0,
            view: view.map(|shared| &shared.0),
            upstream,
            flow: Flow::Continue,
        };
        let view = view.map(|shared| &shared.1);
        let flow = self
            .1
            .poll_request(&mut upload.1, view, &mut filtered, slot, cx);
        filtered.flow.max(flow)
    }

    #[inline(always)]
    fn first_wait(
        &self,
        upload: &mut Self::Upload,
        view: SharedView<'_, Self::Shared>,
        left: Option<u64>,
        now: Stamp,
    ) -> Option<Stamp> {
        let outer = self
            .0
            .first_wait(&mut upload.0, view.map(|shared| &shared.0), left, now);
        earlier(
            outer,
            self.1
                .first_wait(&mut upload.1, view.map(|shared| &shared.1), left, now),
        )
    }

    #[inline(always)]
    fn waits_for_client(
        &self,
        upload: &mut Self::Upload,
        view: SharedView<'_, Self::Shared>,
        by_handler: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        self.0
            .waits_for_client(&mut upload.0, view.map(|shared| &shared.0), by_handler, cx)?;
        self.1
            .waits_for_client(&mut upload.1, view.map(|shared| &shared.1), by_handler, cx)
    }

    #[inline(always)]
    fn wait_expired(
        &self,
        upload: &mut Self::Upload,
        view: SharedView<'_, Self::Shared>,
        since: Stamp,
        now: Stamp,
    ) -> Result<Option<Stamp>, Violation> {
        let (outer, inner) = (view.map(|shared| &shared.0), view.map(|shared| &shared.1));
        let outer = self.0.wait_expired(&mut upload.0, outer, since, now)?;
        Ok(earlier(
            outer,
            self.1.wait_expired(&mut upload.1, inner, since, now)?,
        ))
    }

    #[inline(always)]
    fn wait_ended(
        &self,
        upload: &mut Self::Upload,
        view: SharedView<'_, Self::Shared>,
        since: Stamp,
        now: Stamp,
    ) {
        self.0
            .wait_ended(&mut upload.0, view.map(|shared| &shared.0), since, now);
        self.1
            .wait_ended(&mut upload.1, view.map(|shared| &shared.1), since, now);
    }

    fn request_hint<U: Upstream>(
        &self,
        upload: &Self::Upload,
        view: SharedView<'_, Self::Shared>,
        upstream: &U,
    ) -> SizeHint {
        let outer = view.map(|shared| &shared.0);
        let filtered = UnpolledRequest {
            policy: &self.0,
            upload: &upload.0,
            view: Some(outer),
            upstream,
        };
        self.1
            .request_hint(&upload.1, view.map(|shared| &shared.1), &filtered)
    }

    fn request_ended<U: Upstream>(&self, upload: &Self::Upload, upstream: &U) -> bool {
        let filtered = UnpolledRequest {
            policy: &self.0,
            upload: &upload.0,
            view: None,
            upstream,
        };
        self.1.request_ended(&upload.1, &filtered)
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut Self::Held,
        view: RequestView<'_, Self::Shared>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let mut filtered = FilteredResponse {
            policy: &self.1,
            held: &mut held.1,
            view: view.map(|shared| &shared.1),
            upstream,
            flow: Flow::Continue,
        };
        let view = view.map(|shared| &shared.0);
        let flow = self
            .0
            .poll_response(&mut held.0, view, &mut filtered, slot, cx);
        filtered.flow.max(flow)
    }

    #[inline(always)]
    fn release_upload(&self, upload: &mut Self::Upload, view: SharedView<'_, Self::Shared>) {
        self.1
            .release_upload(&mut upload.1, view.map(|shared| &shared.1));
        self.0
            .release_upload(&mut upload.0, view.map(|shared| &shared.0));
    }

    #[inline(always)]
    fn release(&self, held: &mut Self::Held, view: RequestView<'_, Self::Shared>) {
        self.1.release(&mut held.1, view.map(|shared| &shared.1));
        self.0.release(&mut held.0, view.map(|shared| &shared.0));
    }
}

/// Returns the earlier of two optional points in time.
#[inline]
pub(crate) fn earlier<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// The request body after the outer policy, which is the upstream of the inner one.
struct FilteredRequest<'a, P: Policy, U> {
    policy: &'a P,
    upload: &'a mut P::Upload,
    view: SharedView<'a, P::Shared>,
    upstream: &'a mut U,
    flow: Flow,
}

impl<P: Policy, U: Upstream> Upstream for FilteredRequest<'_, P, U> {
    #[inline(always)]
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>) {
        let flow = self
            .policy
            .poll_request(self.upload, self.view, self.upstream, slot, cx);
        self.flow = self.flow.max(flow);
    }

    #[inline(always)]
    fn size_hint(&self) -> SizeHint {
        self.policy
            .request_hint(self.upload, self.view, self.upstream)
    }

    #[inline(always)]
    fn is_end_stream(&self) -> bool {
        self.policy.request_ended(self.upload, self.upstream)
    }
}

/// The properties of the request body after the outer policy, without polling it.
struct UnpolledRequest<'a, P: Policy, U> {
    policy: &'a P,
    upload: &'a P::Upload,
    view: Option<SharedView<'a, P::Shared>>,
    upstream: &'a U,
}

impl<P: Policy, U: Upstream> Upstream for UnpolledRequest<'_, P, U> {
    fn poll(&mut self, _: &mut Polled, _: &mut Context<'_>) {}

    fn size_hint(&self) -> SizeHint {
        match self.view {
            Some(view) => self.policy.request_hint(self.upload, view, self.upstream),
            None => self.upstream.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.policy.request_ended(self.upload, self.upstream)
    }
}

/// The response body after the inner policy, which is the upstream of the outer one.
struct FilteredResponse<'a, P: Policy, U> {
    policy: &'a P,
    held: &'a mut P::Held,
    view: RequestView<'a, P::Shared>,
    upstream: &'a mut U,
    flow: Flow,
}

impl<P: Policy, U: Upstream> Upstream for FilteredResponse<'_, P, U> {
    #[inline(always)]
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>) {
        let flow = self
            .policy
            .poll_response(self.held, self.view, self.upstream, slot, cx);
        self.flow = self.flow.max(flow);
    }

    #[inline(always)]
    fn size_hint(&self) -> SizeHint {
        self.upstream.size_hint()
    }

    #[inline(always)]
    fn is_end_stream(&self) -> bool {
        self.flow != Flow::Continue || self.upstream.is_end_stream()
    }
}
