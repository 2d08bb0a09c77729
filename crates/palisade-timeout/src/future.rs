//! The response future.

use crate::{
    Limits, ResponseBody,
    body::Total,
    clock::{Due, Record, after, due},
    layer::Shared,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use palisade_core::{AnswerForm, BoxError, ConnInfo, Guard, GuardBody, Phase, Reason, Violation};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// Response future of [`Timeout`](crate::Timeout). To drop it is to drop the inner one.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Waiting { #[pin] inner: F, watch: Watch },
        Late { shared: Arc<Shared>, late: Late },
        Answered,
    }
}

/// What it takes to time one request.
#[derive(Debug)]
struct Watch {
    shared: Arc<Shared>,
    conn: Option<Arc<ConnInfo>>,
    /// None for a request without a body, under the layer's own limits, in plain HTTP.
    record: Option<Arc<Record>>,
    /// Set at the inner future's first wait.
    alarm: Option<Pin<Box<Alarm>>>,
}

/// A request whose time is up.
struct Refusal {
    shared: Arc<Shared>,
    violation: Violation,
    record: Option<Arc<Record>>,
}

/// How a request is answered that had no time at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late {
    pub(crate) reason: Reason,
    pub(crate) form: AnswerForm,
}

pin_project! {
    #[derive(Debug)]
    struct Alarm {
        started: Instant,
        // The time was up, and the request passed all the same.
        told: bool,
        // The clock stood still when it was last looked at: look at it again in each poll.
        stood: bool,
        #[pin]
        sleep: Sleep,
    }
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) fn timed(
        inner: F,
        shared: Arc<Shared>,
        conn: Option<Arc<ConnInfo>>,
        record: Option<Arc<Record>>,
    ) -> Self {
        let watch = Watch { shared, conn, record, alarm: None };
        Self { state: State::Waiting { inner, watch } }
    }

    pub(crate) fn late(shared: Arc<Shared>, late: Late) -> Self {
        Self { state: State::Late { shared, late } }
    }

    /// The same for a request that is not [plain](Watch::is_plain).
    #[inline(never)]
    fn poll_watched<B, E>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<GuardBody<ResponseBody<B>>>, E>>
    where
        F: Future<Output = Result<Response<B>, E>>,
        B: Body,
    {
        let StateProj::Waiting { inner, watch } = self.as_mut().project().state.project() else {
            return Poll::Ready(Ok(self.answer_late()));
        };
        if let Some(record) = &watch.record {
            record.handler_begins();
        }
        if let Poll::Ready(result) = inner.poll(cx) {
            return Poll::Ready(result.map(|response| {
                let total = watch.for_body(&response);
                response.map(|body| GuardBody::passing(ResponseBody::new(body, total)))
            }));
        }
        match watch.refusal(cx) {
            None => Poll::Pending,
            Some(refusal) => Poll::Ready(Ok(self.refuse(refusal))),
        }
    }

    #[cold]
    #[inline(never)]
    fn answer_late<B>(self: Pin<&mut Self>) -> Response<GuardBody<B>> {
        let mut state = self.project().state;
        let StateProj::Late { shared, late } = state.as_mut().project() else {
            panic!("polled after completion");
        };
        let phase = Phase::RequestHead;
        let violation = Violation::new(Guard::Timeout, late.reason, phase, 0, 0);
        let answer = shared.settings.answer(shared.rejection(violation, late.form));
        state.set(State::Answered);
        answer
    }

    /// The answer in place of the handler's.
    #[cold]
    #[inline(never)]
    fn refuse<B>(self: Pin<&mut Self>, refusal: Refusal) -> Response<GuardBody<B>> {
        // The handler is gone before anybody hears of it, and the request body with it, which
        // tells whether it was read to its end.
        self.project().state.set(State::Answered);
        let Refusal { shared, violation, record } = refusal;
        let form = record.map_or(PLAIN, |record| record.answer_form());
        shared.settings.answer(shared.rejection(violation, form))
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<GuardBody<ResponseBody<B>>>, E>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project().state.project() {
            StateProj::Waiting { inner, watch } if watch.is_plain() => match inner.poll(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(response)) => Poll::Ready(Ok(
                    response.map(|body| GuardBody::passing(ResponseBody::new(body, None)))
                )),
                Poll::Pending => match watch.refusal(cx) {
                    None => Poll::Pending,
                    Some(refusal) => Poll::Ready(Ok(self.refuse(refusal))),
                },
            },
            _ => self.poll_watched(cx),
        }
    }
}

/// The form of the answer to a request without a [`Record`].
const PLAIN: AnswerForm = AnswerForm::Http { close: false };

// === Watch ===

impl Watch {
    #[inline]
    fn limits(&self) -> &Limits {
        self.record.as_ref().map_or(&self.shared.limits, |record| &record.limits)
    }

    fn form(&self) -> AnswerForm {
        self.record.as_ref().map_or(PLAIN, |record| record.answer_form())
    }

    /// The inner future waits: whether the request is to be refused.
    #[inline(never)]
    fn refusal(&mut self, cx: &mut Context<'_>) -> Option<Refusal> {
        let violation = self.over(cx)?;
        let rejection = self.shared.rejection(violation, self.form());
        let refused = self.shared.settings.refuse(&rejection, self.conn.as_deref());
        let (shared, record) = (self.shared.clone(), self.record.clone());
        refused.then_some(Refusal { shared, violation, record })
    }

    /// The inner future waits: whether its time is up. If not, the task of `cx` is woken when
    /// that is so, or when it may be.
    fn over(&mut self, cx: &mut Context<'_>) -> Option<Violation> {
        if !self.shared.settings.is_on() {
            return None;
        }
        if let Some(record) = &self.record {
            record.handler_waits();
        }
        let limits = *self.limits();
        let Self { record, alarm, .. } = self;
        let alarm = alarm.get_or_insert_with(|| {
            let started = record.as_ref().and_then(|record| record.started);
            Alarm::new(started.unwrap_or_else(Instant::now), limits)
        });
        let mut alarm = alarm.as_mut().project();
        if *alarm.told {
            return None;
        }
        loop {
            if !*alarm.stood && alarm.sleep.as_mut().poll(cx).is_pending() {
                return None;
            }
            let now = Instant::now();
            let due = match record {
                Some(record) => record.due(*alarm.started, now, cx),
                None => due(limits, *alarm.started, now, Duration::ZERO, false),
            };
            let at = match due {
                Due::Over(violation) => {
                    *alarm.told = true;
                    return Some(violation);
                }
                Due::At(at) | Due::Standing(at) => at,
            };
            *alarm.stood = matches!(due, Due::Standing(_));
            // Only here, and not whenever the clock stood still for a while.
            if alarm.sleep.deadline() != at {
                alarm.sleep.as_mut().reset(at);
            }
            if alarm.sleep.as_mut().poll(cx).is_pending() {
                return None;
            }
        }
    }

    /// Whether there is nothing to watch but the deadline to the response head.
    #[inline]
    fn is_plain(&self) -> bool {
        self.record.is_none() && self.shared.limits.total.is_none()
    }

    /// What is left to watch once the head is ready.
    fn for_body<B: Body>(&self, response: &Response<B>) -> Option<Pin<Box<Total>>> {
        let total = self.limits().total?;
        let told = self.alarm.as_ref().is_some_and(|alarm| alarm.told);
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !self.shared.settings.is_on() || told || upgraded || response.body().is_end_stream() {
            return None;
        }
        let started = match (&self.alarm, &self.record) {
            (Some(alarm), _) => Some(alarm.started),
            (None, Some(record)) => record.started,
            (None, None) => None,
        };
        let started = started.unwrap_or_else(Instant::now);
        let (shared, conn) = (self.shared.clone(), self.conn.clone());
        Some(Total::new(started, total, shared, conn, self.form()))
    }
}

// === Alarm ===

impl Alarm {
    fn new(started: Instant, limits: Limits) -> Pin<Box<Self>> {
        let first = limits.total.map_or(limits.head, |total| total.min(limits.head));
        let sleep = sleep_until(after(started, first));
        Box::pin(Self { started, told: false, stood: false, sleep })
    }
}
