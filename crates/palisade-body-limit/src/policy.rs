//! The decisions of the body limit.

use crate::{
    BodyLimitHandle, TinyFrames,
    account::{bytes_full, of_decompressed},
    handle::OverridableLimit,
    length::DeclaredLength,
    request::{BodyCounter, CoalescingState, Rules, SharedState},
    response::Limited,
    violation::{status, too_large},
};
use http::{Request, Response, StatusCode};
use http_body::{Body, SizeHint};
use palisade_core::{
    BodyAccount, BudgetFull, HasBodyAccount, Phase, Reason, Rejection, ResponseFormat, Violation,
};
use palisade_guard::{
    Facts, Flow, KeepAny, Keys, NeverQueued, PerRequest, Policy, Polled, Refusal, RequestView,
    Settings, SharedView, Upstream,
};
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;

/// The policy of [`BodyLimitLayer`](crate::BodyLimitLayer).
#[derive(Clone, Debug)]
pub struct BodyLimitPolicy {
    pub(crate) settings: Settings,
    pub(crate) request_limit: u64,
    pub(crate) limit_for: PerRequest<u64>,
    pub(crate) response_limit: Option<u64>,
    pub(crate) tiny_frames: Option<TinyFrames>,
    pub(crate) is_overridable: bool,
    /// Whether the limit applies to each message of a gRPC request.
    pub(crate) limits_messages: bool,
    /// Whether an outer layer decompresses request bodies.
    pub(crate) is_decompressed: bool,
}

/// The state of a request on the side of its response.
#[derive(Debug, Default)]
pub enum ResponseState {
    /// Nothing.
    #[default]
    Nothing,
    /// The request body cannot break a rule, but its small frames are coalesced.
    Joins,
    /// The request body is limited to this many bytes.
    Counts(u64),
    /// The response body is limited.
    Response(Box<Limited>),
}

/// The state of a request body.
#[derive(Debug)]
pub struct UploadState {
    /// `None` if the body cannot break a rule and its frames are not coalesced.
    counter: Option<BodyCounter>,
    /// `None` if nothing is charged. In a box, because few bodies have it and all are moved.
    charge: Option<Box<DecompressedCharge>>,
}

/// How a decompressed body is charged to the account of its request.
#[derive(Debug)]
struct DecompressedCharge {
    account: Arc<dyn HasBodyAccount>,
    /// Bytes that may arrive before the account is charged again.
    paid: u64,
    /// The budget had no room for the decoder.
    full: Option<BudgetFull>,
}

// === BodyLimitPolicy ===

impl BodyLimitPolicy {
    /// Checks the declared length of a request that has a body.
    #[inline(never)]
    fn check_head<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
    ) -> Result<ResponseState, Refusal> {
        let limit = self.limit_for.choose(request).unwrap_or(self.request_limit);
        let declared = DeclaredLength::from_request(request);
        // If the handler can still raise the limit, the first read decides.
        if declared.bytes > limit && !self.is_overridable && !self.is_per_message(facts) {
            let (reason, phase) = (self.too_large_reason(), Phase::RequestHead);
            self.refuse(too_large(reason, phase, limit, declared.bytes), facts)?;
            // Shadow mode: one event per request is enough.
            return Ok(ResponseState::Nothing);
        }
        // A body may declare more than the limit here if the limit is per message or overridable.
        Ok(
            if declared.bytes > limit || !self.cannot_violate(&declared) {
                ResponseState::Counts(limit)
            } else if self.tiny_frames.is_some() {
                ResponseState::Joins
            } else {
                ResponseState::Nothing
            },
        )
    }

    /// Returns the reason for which a request body that is too long is refused.
    fn too_large_reason(&self) -> Reason {
        if self.is_decompressed {
            Reason::DecompressedTooLarge
        } else {
            Reason::TooLarge
        }
    }

    /// Whether the limit applies to each message of this request, instead of the whole body.
    #[inline]
    pub(crate) fn is_per_message(&self, facts: &Facts) -> bool {
        self.limits_messages
            && matches!(
                facts.form,
                ResponseFormat::Grpc | ResponseFormat::GrpcTranslated { .. }
            )
    }

    /// Whether a body of this length, which is within the limit, cannot break a rule however it is
    /// split into frames.
    fn cannot_violate(&self, length: &DeclaredLength) -> bool {
        let frames = self
            .tiny_frames
            .map_or(u64::MAX, |tiny| u64::from(tiny.burst));
        length.is_exact && length.bytes <= frames && !self.is_overridable
    }

    /// Records that a response body exceeds its limit. Ends the body if that is enforced.
    #[cold]
    fn cut_response(
        &self,
        violation: Violation,
        held: &mut ResponseState,
        facts: &Facts,
        slot: &mut Polled,
    ) -> Flow {
        // Shadow mode: one event per request is enough.
        *held = ResponseState::Nothing;
        if !self.settings.cut(&violation, facts) {
            return Flow::Continue;
        }
        *slot = Poll::Ready(Some(violation.final_frame(facts.form)));
        Flow::Cut
    }

    /// Polls the request body and counts what is passed on.
    #[inline(always)]
    fn poll_counted<U: Upstream>(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let Some(counter) = &mut upload.counter else {
            up.poll(slot, cx);
            return Flow::Continue;
        };
        let rules = Rules {
            settings: &self.settings,
            too_large: self.too_large_reason(),
            tiny_frames: self.tiny_frames,
            exchange,
        };
        if counter.is_plain() {
            up.poll(slot, cx);
            counter.check_polled(rules, slot)
        } else {
            counter.poll(rules, up, slot, cx)
        }
    }

    /// Polls a body that an outer layer decompresses.
    #[inline(never)]
    fn poll_decompressed<U: Upstream>(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let mut flow = self.poll_charged(upload, exchange, up, slot, cx);
        if flow == Flow::Linger {
            // To read the rest of a bomb is to decompress it.
            flow = Flow::LingerUnread;
            if let Some(account) = &exchange.shared.account
                && exchange.is_refused()
            {
                // The handler and what it has read are dropped. The decoder lingers.
                account.account().give_back();
                let _ = account.account().charge_decoder();
            }
        }
        flow
    }

    /// Polls the request body and charges what is passed on.
    fn poll_charged<U: Upstream>(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        // Found before the poll if there was no room for the decoder.
        let mut full = upload.charge.as_ref().and_then(|charge| charge.full);
        let mut flow = Flow::Continue;
        if full.is_none() {
            flow = self.poll_counted(upload, exchange, up, slot, cx);
            if let (Some(charge), Poll::Ready(Some(Ok(frame)))) = (&mut upload.charge, &*slot) {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                full = charge.pay(bytes).err();
            }
        }
        let Some(full) = full else {
            return flow;
        };
        // Shadow mode: one event per request is enough.
        upload.charge = None;
        let describe = |phase: Phase| (bytes_full(phase, full), StatusCode::SERVICE_UNAVAILABLE);
        if let Some(violation) = exchange.violated(&self.settings, describe) {
            upload.counter = None;
            *slot = Poll::Ready(Some(Err(violation.into())));
            return Flow::Linger;
        }
        if slot.is_pending() {
            flow = self.poll_counted(upload, exchange, up, slot, cx);
        }
        flow
    }

    /// Records a refusal. Fails with it if it is enforced.
    pub(crate) fn refuse(&self, violation: Violation, facts: &Facts) -> Result<(), Refusal> {
        let rejection = Rejection::new(violation, status(&violation), facts.form);
        self.settings.refuse_request(rejection, facts)
    }
}

impl DecompressedCharge {
    #[cold]
    fn boxed(account: &Arc<dyn HasBodyAccount>) -> Box<Self> {
        Box::new(Self {
            full: account.account().charge_decoder().err(),
            account: account.clone(),
            paid: BodyAccount::FREE_BYTES,
        })
    }

    /// Pays for a frame.
    fn pay(&mut self, bytes: u64) -> Result<(), BudgetFull> {
        if let Some(full) = self.full {
            return Err(full);
        }
        self.paid = match self.paid.checked_sub(bytes) {
            Some(paid) => paid,
            None => self.account.account().charge_frame(bytes, self.paid)?,
        };
        Ok(())
    }
}

impl Policy for BodyLimitPolicy {
    type Held = ResponseState;
    type Shared = SharedState;
    type Upload = UploadState;
    type QueuedService = NeverQueued;
    type Unread = KeepAny;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<ResponseState, Refusal> {
        if facts.has_body && self.settings.is_enabled() {
            self.check_head(request, facts)
        } else {
            Ok(ResponseState::Nothing)
        }
    }

    #[inline(always)]
    fn needs_sharing(&self, _: &ResponseState, _: &Keys) -> bool {
        self.is_overridable
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut ResponseState,
        request: &mut Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> SharedState {
        let account = if self.is_decompressed && self.settings.is_enabled() {
            of_decompressed(request)
        } else {
            None
        };
        if !self.is_overridable {
            return SharedState {
                overridable_limit: None,
                account,
            };
        }
        let overridable_limit = match held {
            ResponseState::Counts(limit) => Some(Arc::new(OverridableLimit::new(*limit))),
            _ => None,
        };
        request
            .extensions_mut()
            .insert(BodyLimitHandle::new(overridable_limit.clone()));
        SharedState {
            overridable_limit,
            account,
        }
    }

    #[inline(always)]
    fn upload(&self, held: &mut ResponseState, common: &SharedState, facts: &Facts) -> UploadState {
        let counter = match std::mem::take(held) {
            ResponseState::Joins => Some(BodyCounter::coalescing_only()),
            ResponseState::Counts(limit) => {
                let may_hold_back = facts.form != ResponseFormat::Grpc;
                let is_overridable = common.overridable_limit.is_some();
                let counter = BodyCounter::new(may_hold_back, limit, is_overridable);
                Some(if self.is_per_message(facts) {
                    counter.per_message()
                } else {
                    counter
                })
            }
            ResponseState::Nothing | ResponseState::Response(_) => None,
        };
        let charge = common.account.as_ref().map(DecompressedCharge::boxed);
        UploadState { counter, charge }
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut ResponseState,
        exchange: RequestView<'_, SharedState>,
        response: &mut Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let Some(limit) = self.response_limit else {
            return Ok(false);
        };
        if !self.settings.is_enabled() || response.body().is_end_stream() {
            return Ok(false);
        }
        match Limited::new(response, exchange.facts.is_head, limit) {
            Ok(limited) => {
                *held = ResponseState::Response(Box::new(limited));
                Ok(true)
            }
            Err(violation) => {
                self.refuse(violation, exchange.facts)?;
                // Shadow mode: one event per request is enough.
                Ok(false)
            }
        }
    }

    #[inline(always)]
    fn is_plain(&self, upload: &UploadState, _: &SharedState) -> bool {
        upload.charge.is_none() && upload.counter.as_ref().is_none_or(BodyCounter::is_plain)
    }

    #[inline(always)]
    fn fits(&self, upload: &UploadState, bytes: usize) -> bool {
        upload
            .counter
            .as_ref()
            .is_none_or(|counter| counter.fits(bytes))
    }

    #[inline(always)]
    fn passed(&self, upload: &mut UploadState, _: &SharedState, bytes: usize) {
        if let Some(counter) = &mut upload.counter {
            counter.count_frame(bytes);
        }
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut UploadState,
        exchange: SharedView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if self.is_decompressed {
            self.poll_decompressed(upload, exchange, up, slot, cx)
        } else {
            self.poll_counted(upload, exchange, up, slot, cx)
        }
    }

    fn request_ended<U: Upstream>(&self, upload: &UploadState, up: &U) -> bool {
        match upload.counter.as_ref().and_then(BodyCounter::coalescing) {
            Some(state) => !state.has_undelivered() && (state.has_ended() || up.is_end_stream()),
            None => up.is_end_stream(),
        }
    }

    /// The size hint of the inner body, with what is left of the limit as an upper bound.
    fn request_hint<U: Upstream>(
        &self,
        upload: &UploadState,
        _: SharedView<'_, SharedState>,
        up: &U,
    ) -> SizeHint {
        let hint = up.size_hint();
        let Some(counter) = &upload.counter else {
            return hint;
        };
        let undelivered = counter
            .coalescing()
            .map_or(0, CoalescingState::undelivered_bytes);
        let (lower, mut upper) = (hint.lower(), hint.upper());
        if let Some(remaining) = counter.enforced_remaining(self.settings.mode) {
            upper = Some(upper.map_or(remaining, |upper| upper.min(remaining)));
        }
        // A body that declares more than the limit fails when it is read. An upper bound below the
        // lower bound would panic here, so the lower bound has precedence.
        let mut tightened = SizeHint::new();
        tightened.set_lower(lower.saturating_add(undelivered));
        if let Some(upper) = upper {
            tightened.set_upper(upper.max(lower).saturating_add(undelivered));
        }
        tightened
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut ResponseState,
        exchange: RequestView<'_, SharedState>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        up.poll(slot, cx);
        if let (ResponseState::Response(limited), Poll::Ready(Some(Ok(frame)))) =
            (&mut *held, &*slot)
            && let Some(data) = frame.data_ref()
            && let Err(violation) = limited.count(data.len())
        {
            return self.cut_response(violation, held, exchange.facts, slot);
        }
        Flow::Continue
    }

    #[inline(always)]
    fn release(&self, held: &mut ResponseState, _: RequestView<'_, SharedState>) {
        if let ResponseState::Response(_) = held {
            *held = ResponseState::Nothing;
        }
    }
}
