//! What a request that two policies guard tells each of them.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Empty, Full};
use palisade_core::{Guard, Phase, Reason, Rejection, Violation};
use palisade_guard::{
    And, Drops, Facts, GuardLayer, Handler, Keys, Never, Of, Policy, Refusal, ResponseFuture,
    Settings,
};
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};
use tower::{Layer, Service, service_fn};

type Journal = Arc<Mutex<Vec<String>>>;

/// Writes down what it is told, and refuses where it is to.
#[derive(Clone, Debug)]
struct Probe {
    name: &'static str,
    journal: Journal,
    refuses: Option<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Admit,
    AfterHandler,
}

/// Present from admission to release.
#[derive(Debug, Default)]
struct Admitted(bool);

impl Probe {
    fn writes(&self, what: &str) {
        self.journal.lock().push(format!("{}: {what}", self.name));
    }

    fn refusal(&self, step: Step, facts: &Facts) -> Option<Refusal> {
        if self.refuses != Some(step) {
            return None;
        }
        let violation = Violation::new(
            Guard::ConcurrencyLimit,
            Reason::Full,
            Phase::RequestHead,
            1,
            2,
        );
        let rejection = Rejection::new(violation, StatusCode::SERVICE_UNAVAILABLE, facts.form);
        Some(Refusal::new(rejection, &Settings::default()))
    }
}

impl Policy for Probe {
    type Held = Admitted;
    type Shared = ();
    type Upload = ();
    type Later = Never;
    type Unread = Drops;

    fn listens(&self) -> bool {
        false
    }

    fn admit<B: Body>(
        &self,
        _: &Request<B>,
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<Admitted, Refusal> {
        self.writes("admit");
        self.refusal(Step::Admit, facts)
            .map_or(Ok(Admitted(true)), Err)
    }

    fn share<B: Body>(&self, _: &mut Admitted, _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    fn upload(&self, _: &mut Admitted, (): &(), _: &Facts) {}

    fn after_handler(
        &self,
        _: &mut Admitted,
        of: Of<'_, ()>,
        handler: Handler,
        _: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        self.writes(&format!("{handler:?}"));
        self.refusal(Step::AfterHandler, of.facts).map(Box::new)
    }

    fn release(&self, held: &mut Admitted, _: Of<'_, ()>) {
        assert!(
            std::mem::take(held).0,
            "what was not admitted, or is released twice"
        );
        self.writes("release");
    }
}

/// Calls a handler that is pending for ever behind two policies, of which these refuse.
fn call(outer: Option<Step>, inner: Option<Step>) -> (Option<StatusCode>, Vec<String>) {
    let journal = Journal::default();
    let probe = |name, refuses| Probe {
        name,
        journal: journal.clone(),
        refuses,
    };
    let guards = GuardLayer::new(And(probe("outer", outer), probe("inner", inner)));
    let pending =
        service_fn(|_| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let mut service = guards.layer(pending);
    let response: ResponseFuture<_, _, _> = service.call(Request::new(Empty::<Bytes>::new()));
    let mut response = Box::pin(response);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let status = match response.as_mut().poll(&mut cx) {
        Poll::Ready(Ok(response)) => Some(response.status()),
        Poll::Ready(Err(never)) => match never {},
        Poll::Pending => None,
    };
    drop(response);
    let lines = std::mem::take(&mut *journal.lock());
    (status, lines)
}

const REFUSED: Option<StatusCode> = Some(StatusCode::SERVICE_UNAVAILABLE);
const PENDING: &str = "Pending { awaits_client: false }";

#[test]
fn what_the_outer_policy_took_is_released_when_the_inner_one_refuses() {
    let (status, lines) = call(None, Some(Step::Admit));
    assert_eq!(status, REFUSED);
    assert_eq!(lines, ["outer: admit", "inner: admit", "outer: release"]);
}

#[test]
fn the_inner_policy_does_not_hear_of_a_request_that_the_outer_one_refuses() {
    let (status, lines) = call(Some(Step::Admit), None);
    assert_eq!(status, REFUSED);
    assert_eq!(lines, ["outer: admit"]);
}

#[test]
fn a_pending_request_that_is_dropped_is_released_from_the_inside_out() {
    let (status, lines) = call(None, None);
    assert_eq!(status, None);
    let pending = [format!("inner: {PENDING}"), format!("outer: {PENDING}")];
    assert_eq!(lines[..2], ["outer: admit", "inner: admit"]);
    assert_eq!(lines[2..4], pending);
    assert_eq!(lines[4..], ["inner: release", "outer: release"]);
}

#[test]
fn to_the_outer_policy_a_refusal_of_the_inner_one_is_a_response() {
    let (status, lines) = call(None, Some(Step::AfterHandler));
    assert_eq!(status, REFUSED);
    assert_eq!(
        lines[2..4],
        [format!("inner: {PENDING}"), "outer: Ready".to_owned()]
    );
    assert_eq!(lines[4..], ["inner: release", "outer: release"]);
}

#[test]
fn of_two_refusals_each_policy_is_released_once() {
    let (status, lines) = call(Some(Step::AfterHandler), Some(Step::AfterHandler));
    assert_eq!(status, REFUSED);
    assert_eq!(lines[4..], ["inner: release", "outer: release"]);
}
