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
        Waiting { #[pin] inner: F, watch: Option<Watch> },
        Late { shared: Arc<Shared>, reason: Reason, form: AnswerForm },
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

pin_project! {
    #[derive(Debug)]
    struct Alarm {
        started: Instant,
        // The clock stood still when it was last looked at: look at it again in each poll.
        stood: bool,
        #[pin]
        sleep: Sleep,
    }
}

// === ResponseFuture ===

impl<F> ResponseFuture<F> {
    pub(crate) fn untimed(inner: F) -> Self {
        Self { state: State::Waiting { inner, watch: None } }
    }

    pub(crate) fn late(shared: Arc<Shared>, reason: Reason, form: AnswerForm) -> Self {
        Self { state: State::Late { shared, reason, form } }
    }

    pub(crate) fn timed(
        inner: F,
        shared: Arc<Shared>,
        conn: Option<Arc<ConnInfo>>,
        record: Option<Arc<Record>>,
    ) -> Self {
        let watch = Some(Watch { shared, conn, record, alarm: None });
        Self { state: State::Waiting { inner, watch } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<GuardBody<ResponseBody<B>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let (shared, violation, record) = match state.as_mut().project() {
            StateProj::Waiting { inner, watch } => {
                if let Poll::Ready(result) = inner.poll(cx) {
                    let watch = watch.take();
                    return Poll::Ready(result.map(|response| {
                        let total = watch.and_then(|watch| watch.for_body(&response));
                        response.map(|body| GuardBody::passing(ResponseBody::new(body, total)))
                    }));
                }
                let Some(violation) = watch.as_mut().and_then(|watch| watch.over(cx)) else {
                    return Poll::Pending;
                };
                let Some(watch) = watch.take() else { return Poll::Pending };
                let rejection = watch.shared.rejection(violation, watch.form());
                if !watch.shared.settings.refuse(&rejection, watch.conn.as_deref()) {
                    return Poll::Pending;
                }
                (watch.shared, violation, watch.record)
            }
            StateProj::Late { shared, reason, form } => {
                let phase = Phase::RequestHead;
                let violation = Violation::new(Guard::Timeout, *reason, phase, 0, 0);
                let rejection = shared.rejection(violation, *form);
                let answer = shared.settings.answer(rejection);
                state.set(State::Answered);
                return Poll::Ready(Ok(answer));
            }
            StateProj::Answered => panic!("polled after completion"),
        };
        // The handler is gone before anybody hears of it, and the request body with it, which
        // tells whether it was read to its end.
        state.set(State::Answered);
        let form = record.map_or(PLAIN, |record| record.answer_form());
        Poll::Ready(Ok(shared.settings.answer(shared.rejection(violation, form))))
    }
}

/// The form of the answer to a request without a [`Record`].
const PLAIN: AnswerForm = AnswerForm::Http { close: false };

// === Watch ===

impl Watch {
    fn limits(&self) -> Limits {
        self.record.as_ref().map_or(self.shared.limits, |record| record.limits)
    }

    fn form(&self) -> AnswerForm {
        self.record.as_ref().map_or(PLAIN, |record| record.answer_form())
    }

    /// The inner future waits: whether its time is up. If not, the task of `cx` is woken when
    /// that is so, or when it may be.
    fn over(&mut self, cx: &mut Context<'_>) -> Option<Violation> {
        let limits = self.limits();
        let Self { record, alarm, .. } = self;
        let alarm = alarm.get_or_insert_with(|| {
            let started = record.as_ref().and_then(|record| record.started);
            Alarm::new(started.unwrap_or_else(Instant::now), limits)
        });
        let mut alarm = alarm.as_mut().project();
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
                Due::Over(violation) => return Some(violation),
                Due::At(at) => Some(at),
                Due::Standing(at) => at,
            };
            *alarm.stood = matches!(due, Due::Standing(_));
            let at = at?;
            // Only here, and not whenever the clock stood still for a while.
            if alarm.sleep.deadline() != at {
                alarm.sleep.as_mut().reset(at);
            }
            if alarm.sleep.as_mut().poll(cx).is_pending() {
                return None;
            }
        }
    }

    /// What is left to watch once the head is ready.
    fn for_body<B: Body>(self, response: &Response<B>) -> Option<Pin<Box<Total>>> {
        let total = self.limits().total?;
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded || response.body().is_end_stream() {
            return None;
        }
        let started = match (&self.alarm, &self.record) {
            (Some(alarm), _) => Some(alarm.started),
            (None, Some(record)) => record.started,
            (None, None) => None,
        };
        let started = started.unwrap_or_else(Instant::now);
        Some(Total::new(started, total, self.shared, self.conn))
    }
}

// === Alarm ===

impl Alarm {
    fn new(started: Instant, limits: Limits) -> Pin<Box<Self>> {
        let first = limits.total.map_or(limits.head, |total| total.min(limits.head));
        let sleep = sleep_until(after(started, first));
        Box::pin(Self { started, stood: false, sleep })
    }
}
