//! The hooks that each of two policies gets for one request.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Empty, Full};
use palisade_core::{Guard, Phase, Reason, Rejection, Violation};
use palisade_guard::{
    And, DropUnread, Facts, GuardLayer, Handler, Keys, NeverQueued, Policy, Refusal, RequestView,
    ResponseFuture,
};
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};
use tower::{Layer, Service, service_fn};

type Journal = Arc<Mutex<Vec<String>>>;

/// A policy that records its hooks in a journal and refuses at one step.
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

/// `true` from admission to release.
#[derive(Debug, Default)]
struct Admitted(bool);

impl Probe {
    fn record(&self, hook: &str) {
        self.journal.lock().push(format!("{}: {hook}", self.name));
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
        Some(Refusal::new(rejection, None))
    }
}

impl Policy for Probe {
    type Held = Admitted;
    type Shared = ();
    type Upload = ();
    type QueuedService = NeverQueued;
    type Unread = DropUnread;

    fn has_recorder(&self) -> bool {
        false
    }

    fn admit<B: Body>(
        &self,
        _: &Request<B>,
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<Admitted, Refusal> {
        self.record("admit");
        self.refusal(Step::Admit, facts)
            .map_or(Ok(Admitted(true)), Err)
    }

    fn share<B: Body>(&self, _: &mut Admitted, _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    fn upload(&self, _: &mut Admitted, (): &(), _: &Facts) {}

    fn after_handler(
        &self,
        _: &mut Admitted,
        view: RequestView<'_, ()>,
        handler: Handler,
        _: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        self.record(&format!("{handler:?}"));
        self.refusal(Step::AfterHandler, view.facts).map(Box::new)
    }

    fn release(&self, held: &mut Admitted, _: RequestView<'_, ()>) {
        assert!(
            std::mem::take(held).0,
            "released twice, or without admission"
        );
        self.record("release");
    }
}

/// Calls a handler that never becomes ready, guarded by two policies that refuse at the given
/// steps. Returns the status of the response, if any, and the journal.
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
fn a_refusal_of_the_inner_policy_releases_the_outer_one() {
    let (status, lines) = call(None, Some(Step::Admit));
    assert_eq!(status, REFUSED);
    assert_eq!(lines, ["outer: admit", "inner: admit", "outer: release"]);
}

#[test]
fn the_inner_policy_gets_no_hook_if_the_outer_one_refuses() {
    let (status, lines) = call(Some(Step::Admit), None);
    assert_eq!(status, REFUSED);
    assert_eq!(lines, ["outer: admit"]);
}

#[test]
fn a_dropped_pending_request_is_released_from_inner_to_outer() {
    let (status, lines) = call(None, None);
    assert_eq!(status, None);
    let pending = [format!("inner: {PENDING}"), format!("outer: {PENDING}")];
    assert_eq!(lines[..2], ["outer: admit", "inner: admit"]);
    assert_eq!(lines[2..4], pending);
    assert_eq!(lines[4..], ["inner: release", "outer: release"]);
}

#[test]
fn the_outer_policy_sees_a_refusal_of_the_inner_one_as_a_response() {
    let (status, lines) = call(None, Some(Step::AfterHandler));
    assert_eq!(status, REFUSED);
    assert_eq!(
        lines[2..4],
        [format!("inner: {PENDING}"), "outer: Ready".to_owned()]
    );
    assert_eq!(lines[4..], ["inner: release", "outer: release"]);
}

#[test]
fn each_policy_is_released_once_if_both_refuse() {
    let (status, lines) = call(Some(Step::AfterHandler), Some(Step::AfterHandler));
    assert_eq!(status, REFUSED);
    assert_eq!(lines[4..], ["inner: release", "outer: release"]);
}
