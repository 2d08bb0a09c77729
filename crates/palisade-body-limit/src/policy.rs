//! What the body limit decides.

use crate::{
    BodyLimitHandle, MaxRequestBody, TinyFrames,
    handle::HandlersLimit,
    length::Length,
    request::{Common, Counted, Joined, Watch},
    response::Limited,
    violation::{status, too_large},
};
use http::{Request, Response};
use http_body::{Body, SizeHint};
use palisade_core::{Phase, Rejection, ResponseFormat, Violation};
use palisade_guard::{
    Facts, Flow, Keeps, Keys, Never, Of, Policy, Polled, Refusal, Settings, Shared, Upstream,
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
    pub(crate) request: u64,
    pub(crate) response: Option<u64>,
    pub(crate) tiny_frames: Option<TinyFrames>,
    pub(crate) is_overridable: bool,
    /// The limit holds for each message of a gRPC request.
    pub(crate) is_grpc: bool,
}

/// What a request holds on the side of its response.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing.
    #[default]
    Nothing,
    /// Its body can break no rule, but its small frames are joined.
    Joins,
    /// Its body is limited to so many bytes.
    Counts(u64),
    /// Its response is limited.
    Response(Box<Limited>),
}

/// What goes with the request body.
#[derive(Debug)]
pub struct Upload {
    /// `None` where nothing can be wrong with the body, and nothing is joined.
    counted: Option<Counted>,
}

// === BodyLimitPolicy ===

impl BodyLimitPolicy {
    /// Looks at a request that has a body.
    #[inline(never)]
    fn look<B: Body>(&self, request: &Request<B>, facts: &Facts) -> Result<Held, Refusal> {
        let own = request.extensions().get::<MaxRequestBody>();
        let limit = own.map_or(self.request, |own| own.0);
        let length = Length::of(request);
        // Where the handler may still raise the limit, the first read decides.
        if length.declared > limit && !self.is_overridable && !self.is_per_message(facts) {
            self.refuse(too_large(Phase::RequestHead, limit, length.declared), facts)?;
            // Shadow mode: one event is enough.
            return Ok(Held::Nothing);
        }
        // Of messages, and where the handler decides, it may be longer than the limit so far.
        Ok(if length.declared > limit || !self.is_harmless(&length) {
            Held::Counts(limit)
        } else if self.tiny_frames.is_some() {
            Held::Joins
        } else {
            Held::Nothing
        })
    }

    /// Whether the limit holds for each message, not for the whole body.
    #[inline]
    pub(crate) fn is_per_message(&self, facts: &Facts) -> bool {
        self.is_grpc
            && matches!(
                facts.form,
                ResponseFormat::Grpc | ResponseFormat::GrpcTranslated { .. }
            )
    }

    /// Whether a body of this length, below the limit, can break no rule however it comes.
    fn is_harmless(&self, length: &Length) -> bool {
        let frames = self
            .tiny_frames
            .map_or(u64::MAX, |tiny| u64::from(tiny.burst));
        length.is_exact && length.declared <= frames && !self.is_overridable
    }

    /// Records that a response is cut, and ends it if that is enforced.
    #[cold]
    fn cut(&self, violation: Violation, held: &mut Held, facts: &Facts, slot: &mut Polled) -> Flow {
        // Shadow mode: one event is enough.
        *held = Held::Nothing;
        if !self.settings.cut(&violation, facts.conn()) {
            return Flow::Go;
        }
        *slot = Poll::Ready(Some(violation.ending(facts.form)));
        Flow::Cut
    }

    /// Records a refusal. An error if it is enforced.
    pub(crate) fn refuse(&self, violation: Violation, facts: &Facts) -> Result<(), Refusal> {
        let rejection = Rejection::new(violation, status(&violation), facts.form);
        self.settings.turn_away(rejection, facts)
    }
}

impl Policy for BodyLimitPolicy {
    type Held = Held;
    type Shared = Common;
    type Upload = Upload;
    type Later = Never;
    type Unread = Keeps;

    #[inline(always)]
    fn listens(&self) -> bool {
        self.settings.recorder.is_on()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<Held, Refusal> {
        if facts.has_body && self.settings.is_on() {
            self.look(request, facts)
        } else {
            Ok(Held::Nothing)
        }
    }

    #[inline(always)]
    fn needs_sharing(&self, _: &Held) -> bool {
        self.is_overridable
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        held: &mut Held,
        request: &mut Request<B>,
        _: &Facts,
        _: &mut Keys,
    ) -> Common {
        if !self.is_overridable {
            return Common {
                handlers_limit: None,
            };
        }
        let handlers_limit = match held {
            Held::Counts(limit) => Some(Arc::new(HandlersLimit::new(*limit))),
            _ => None,
        };
        request
            .extensions_mut()
            .insert(BodyLimitHandle::new(handlers_limit.clone()));
        Common { handlers_limit }
    }

    #[inline(always)]
    fn upload(&self, held: &mut Held, common: &Common, facts: &Facts) -> Upload {
        let counted = match std::mem::take(held) {
            Held::Joins => Some(Counted::harmless()),
            Held::Counts(limit) => {
                let holds = facts.form != ResponseFormat::Grpc;
                let is_overridable = common.handlers_limit.is_some();
                let counted = Counted::new(holds, limit, is_overridable);
                Some(if self.is_per_message(facts) {
                    counted.per_message()
                } else {
                    counted
                })
            }
            Held::Nothing | Held::Response(_) => None,
        };
        Upload { counted }
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        response: &Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let Some(limit) = self.response else {
            return Ok(false);
        };
        if !self.settings.is_on() || response.body().is_end_stream() {
            return Ok(false);
        }
        match Limited::new(response, of.facts.is_head, limit) {
            Ok(limited) => {
                *held = Held::Response(Box::new(limited));
                Ok(true)
            }
            Err(violation) => {
                self.refuse(violation, of.facts)?;
                // Shadow mode: one event is enough.
                Ok(false)
            }
        }
    }

    #[inline(always)]
    fn is_plain(&self, upload: &Upload, _: &Common) -> bool {
        upload.counted.as_ref().is_none_or(Counted::is_plain)
    }

    #[inline(always)]
    fn fits(&self, upload: &Upload, bytes: usize) -> bool {
        upload
            .counted
            .as_ref()
            .is_none_or(|counted| counted.fits(bytes))
    }

    #[inline(always)]
    fn passed(&self, upload: &mut Upload, bytes: usize) {
        if let Some(counted) = &mut upload.counted {
            counted.passed(bytes);
        }
    }

    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        upload: &mut Upload,
        of: Shared<'_, Common>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        let Some(counted) = &mut upload.counted else {
            up.poll(slot, cx);
            return Flow::Go;
        };
        let watch = Watch {
            settings: &self.settings,
            tiny_frames: self.tiny_frames,
            of,
        };
        if counted.is_plain() {
            up.poll(slot, cx);
            counted.look(watch, slot)
        } else {
            counted.poll(watch, up, slot, cx)
        }
    }

    fn request_ended<U: Upstream>(&self, upload: &Upload, up: &U) -> bool {
        match upload.counted.as_ref().and_then(Counted::joined) {
            Some(joined) => !joined.holds() && (joined.has_ended() || up.is_end_stream()),
            None => up.is_end_stream(),
        }
    }

    /// The inner body's, and no more than what is left of the limit.
    fn request_hint<U: Upstream>(
        &self,
        upload: &Upload,
        _: Shared<'_, Common>,
        up: &U,
    ) -> SizeHint {
        let hint = up.size_hint();
        let Some(counted) = &upload.counted else {
            return hint;
        };
        let held = counted.joined().map_or(0, Joined::held);
        let (lower, mut upper) = (hint.lower(), hint.upper());
        if let Some(remaining) = counted.remaining_for_sure(self.settings.mode) {
            upper = Some(upper.map_or(remaining, |upper| upper.min(remaining)));
        }
        // A body that declares more than it may have fails where it is read. It must not fail
        // here, so its lower bound wins.
        let mut tightened = SizeHint::new();
        tightened.set_lower(lower.saturating_add(held));
        if let Some(upper) = upper {
            tightened.set_upper(upper.max(lower).saturating_add(held));
        }
        tightened
    }

    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        held: &mut Held,
        of: Of<'_, Common>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        up.poll(slot, cx);
        if let (Held::Response(limited), Poll::Ready(Some(Ok(frame)))) = (&mut *held, &*slot)
            && let Some(data) = frame.data_ref()
            && let Err(violation) = limited.send(data.len())
        {
            return self.cut(violation, held, of.facts, slot);
        }
        Flow::Go
    }

    #[inline(always)]
    fn release(&self, held: &mut Held, _: Of<'_, Common>) {
        if let Held::Response(_) = held {
            *held = Held::Nothing;
        }
    }
}
