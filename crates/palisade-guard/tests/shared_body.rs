//! Compares a shared request with a simple model, under random schedules of polls in two tasks, of
//! frames, ends and errors, and of drops of either side.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use palisade_core::{ConnInfo, Prefix, Violation};
use palisade_guard::{
    DropUnread, Facts, GuardLayer, Keys, NeverQueued, Policy, Refusal, RequestBody, RequestView,
    SharedView, Stamp,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};
use tower::{Layer, Service, service_fn};

// === The request body of the server ===

/// What a poll of a body can return.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Data(u8),
    Error,
    End,
}

/// The items that have been received, and the waker of the task that waits for more.
#[derive(Default)]
struct WireState {
    queue: VecDeque<Item>,
    waker: Option<Waker>,
    is_over: bool,
}

struct WireBody(Arc<Mutex<WireState>>);

impl Body for WireBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut wire = self.0.lock();
        if wire.is_over {
            return Poll::Ready(None);
        }
        match wire.queue.pop_front() {
            None => {
                wire.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Item::Data(byte)) => Poll::Ready(Some(Ok(Frame::data(vec![byte].into())))),
            Some(Item::Error) => {
                wire.is_over = true;
                Poll::Ready(Some(Err(io::Error::other("broken"))))
            }
            Some(Item::End) => {
                wire.is_over = true;
                Poll::Ready(None)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

// === The policy ===

/// The calls of a policy's hooks for one request.
#[derive(Debug, Default)]
struct PolicyCalls {
    admitted: usize,
    has_waited: bool,
    is_waiting: bool,
    passed: usize,
    waits_by_handler: Vec<bool>,
    uploads_released: usize,
    released: usize,
}

/// A policy that records its calls and refuses nothing. `plain` is the result of
/// [`Policy::is_plain`].
#[derive(Clone, Debug)]
struct CountingPolicy {
    calls: Arc<Mutex<PolicyCalls>>,
    plain: bool,
}

impl Policy for CountingPolicy {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type QueuedService = NeverQueued;
    type Unread = DropUnread;

    fn has_recorder(&self) -> bool {
        false
    }

    fn admit<B: Body>(&self, _: &Request<B>, _: &Facts, _: &mut Keys) -> Result<(), Refusal> {
        self.calls.lock().admitted += 1;
        Ok(())
    }

    fn share<B: Body>(&self, (): &mut (), _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    fn upload(&self, (): &mut (), (): &(), _: &Facts) {}

    fn is_plain(&self, (): &(), (): &()) -> bool {
        self.plain
    }

    fn passed(&self, (): &mut (), (): &(), bytes: usize) {
        self.calls.lock().passed += bytes;
    }

    fn first_wait(
        &self,
        (): &mut (),
        _: SharedView<'_, ()>,
        _: Option<u64>,
        _: Stamp,
    ) -> Option<Stamp> {
        let mut calls = self.calls.lock();
        assert!(!calls.has_waited, "two first waits");
        calls.has_waited = true;
        None
    }

    fn waits_for_client(
        &self,
        (): &mut (),
        _: SharedView<'_, ()>,
        by_handler: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        let mut calls = self.calls.lock();
        assert!(calls.has_waited, "a wait without a first wait");
        calls.is_waiting = true;
        calls.waits_by_handler.push(by_handler);
        Ok(())
    }

    fn wait_ended(&self, (): &mut (), _: SharedView<'_, ()>, since: Stamp, now: Stamp) {
        assert!(since <= now, "the wait ends before it begins");
        let mut calls = self.calls.lock();
        assert!(calls.is_waiting, "the wait that ends has not begun");
        calls.is_waiting = false;
    }

    fn release_upload(&self, (): &mut (), _: SharedView<'_, ()>) {
        self.calls.lock().uploads_released += 1;
    }

    fn release(&self, (): &mut (), _: RequestView<'_, ()>) {
        self.calls.lock().released += 1;
    }
}

// === Tasks ===

/// A task that counts its wakes.
#[derive(Default)]
struct CountingTask(AtomicUsize);

impl Wake for CountingTask {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

type GuardedBody = RequestBody<WireBody, CountingPolicy>;

/// The request body after the handler was called, and the items that were read from it.
#[derive(Default)]
struct Reader {
    body: Option<GuardedBody>,
    /// Whether the handler reads the body when it is polled.
    reads: bool,
    /// Whether the handler responds when it is polled.
    responds: bool,
    output: Vec<Item>,
    is_pending: bool,
}

impl Reader {
    fn read(&mut self, cx: &mut Context<'_>) {
        let Some(body) = &mut self.body else { return };
        self.is_pending = false;
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => self.is_pending = true,
            Poll::Ready(None) => self.output.push(Item::End),
            Poll::Ready(Some(Err(_))) => self.output.push(Item::Error),
            Poll::Ready(Some(Ok(frame))) => {
                self.output.push(Item::Data(frame.into_data().unwrap()[0]));
            }
        }
    }
}

// === Schedules ===

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The handler is polled, and reads the body if `reads`.
    Handler { reads: bool },
    /// Another task reads the body.
    OtherTask,
    /// The server receives an item.
    Receive(Item),
    /// The request body is dropped.
    DropBody,
    /// The response future is dropped.
    DropFuture,
    /// From now on the handler responds when it is polled.
    Respond,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let item = prop_oneof![
        8 => any::<u8>().prop_map(Item::Data),
        1 => Just(Item::Error),
        1 => Just(Item::End),
    ];
    let step = prop_oneof![
        6 => any::<bool>().prop_map(|reads| Step::Handler { reads }),
        4 => Just(Step::OtherTask),
        6 => item.prop_map(Step::Receive),
        1 => Just(Step::DropBody),
        1 => Just(Step::DropFuture),
        1 => Just(Step::Respond),
    ];
    proptest::collection::vec(step, 0..40)
}

/// A simple model of a shared request.
#[derive(Default)]
struct Model {
    queue: VecDeque<Item>,
    output: Vec<Item>,
    /// Whether the body has returned its end or an error.
    is_over: bool,
    has_body: bool,
    /// Whether the handler or the other task waits, if the last read was pending.
    waits_by_handler: Option<bool>,
    /// Whether the handler was polled after its pending read and did not read again.
    is_abandoned: bool,
}

impl Model {
    fn read(&mut self, by_handler: bool) {
        if !self.has_body {
            return;
        }
        self.is_abandoned = false;
        match self.queue.pop_front() {
            _ if self.is_over => {
                self.output.push(Item::End);
                self.waits_by_handler = None;
            }
            None => self.waits_by_handler = Some(by_handler),
            Some(item) => {
                self.output.push(item);
                self.waits_by_handler = None;
                self.is_over = matches!(item, Item::End | Item::Error);
            }
        }
    }
}

fn http2_connection() -> Arc<ConnInfo> {
    ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default())
}

/// Runs the schedule against the guard and the model, and compares them after each step.
fn run_schedule(steps: &[Step], plain: bool) {
    let calls = Arc::new(Mutex::new(PolicyCalls::default()));
    let wire = Arc::new(Mutex::new(WireState::default()));
    let reader = Arc::new(Mutex::new(Reader::default()));
    let conn = http2_connection();
    let handler = {
        let reader = reader.clone();
        service_fn(move |request: Request<GuardedBody>| {
            reader.lock().body = Some(request.into_body());
            let reader = reader.clone();
            std::future::poll_fn(move |cx| {
                let mut reader = reader.lock();
                if reader.reads {
                    reader.read(cx);
                }
                if reader.responds {
                    return Poll::Ready(Ok::<_, Infallible>(Response::new(
                        Full::new(Bytes::new()),
                    )));
                }
                Poll::Pending
            })
        })
    };
    let mut service = GuardLayer::new(CountingPolicy {
        calls: calls.clone(),
        plain,
    })
    .layer(handler);
    let mut request = Request::post("/")
        .version(Version::HTTP_2)
        .body(WireBody(wire.clone()))
        .unwrap();
    request.extensions_mut().insert(conn.clone());
    let mut future = Some(Box::pin(service.call(request)));

    let (handler_task, other_task) = (
        Arc::new(CountingTask::default()),
        Arc::new(CountingTask::default()),
    );
    let wakers = [
        Waker::from(handler_task.clone()),
        Waker::from(other_task.clone()),
    ];
    let mut model = Model {
        has_body: true,
        ..Model::default()
    };
    for step in steps {
        match *step {
            Step::Handler { reads } => {
                let Some(handler) = &mut future else { continue };
                reader.lock().reads = reads;
                if reads {
                    model.read(true);
                }
                model.is_abandoned |=
                    !reads && model.waits_by_handler == Some(true) && !reader.lock().responds;
                let polled = handler.as_mut().poll(&mut Context::from_waker(&wakers[0]));
                if polled.is_ready() {
                    future = None;
                }
            }
            Step::OtherTask => {
                model.read(false);
                reader.lock().read(&mut Context::from_waker(&wakers[1]));
            }
            Step::Receive(item) => {
                model.queue.push_back(item);
                let waker = {
                    let mut wire = wire.lock();
                    wire.queue.push_back(item);
                    wire.waker.take()
                };
                let before = [handler_task.0.load(SeqCst), other_task.0.load(SeqCst)];
                if let Some(waker) = waker {
                    waker.wake();
                }
                // The task that waits for the item is woken.
                if let (Some(by_handler), true) = (model.waits_by_handler, model.has_body) {
                    let after = [handler_task.0.load(SeqCst), other_task.0.load(SeqCst)];
                    let task = usize::from(!by_handler);
                    // Only the first of several items wakes it.
                    if model.queue.len() == 1 {
                        assert_eq!(after[task], before[task] + 1);
                    }
                }
            }
            Step::DropBody => {
                model.has_body = false;
                let body = reader.lock().body.take();
                drop(body);
            }
            Step::DropFuture => future = None,
            Step::Respond => reader.lock().responds = true,
        }
        let (reader, calls) = (reader.lock(), calls.lock());
        assert_eq!(reader.output, model.output);
        if model.has_body {
            assert_eq!(calls.is_waiting, model.waits_by_handler.is_some());
            assert_eq!(calls.uploads_released, 0);
            // A body that no task reads may fill the window of the connection.
            let is_unread =
                !model.is_over && (model.waits_by_handler.is_none() || model.is_abandoned);
            assert_eq!(conn.has_unread_body(), is_unread);
        } else {
            assert_eq!(calls.uploads_released, 1);
            assert!(!conn.has_unread_body());
        }
        if let Some(by_handler) = model.waits_by_handler {
            assert_eq!(calls.waits_by_handler.last(), Some(&by_handler));
        }
        assert_eq!(calls.released, usize::from(future.is_none()));
        let data = reader
            .output
            .iter()
            .filter(|item| matches!(item, Item::Data(_)))
            .count();
        assert_eq!(calls.passed, if plain { data } else { 0 });
    }
    drop(future);
    let body = reader.lock().body.take();
    drop(body);
    let calls = calls.lock();
    assert_eq!(
        (calls.admitted, calls.uploads_released, calls.released),
        (1, 1, 1)
    );
    assert!(!conn.has_unread_body());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_shared_request_matches_the_model_in_any_order(steps in steps(), plain: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        run_schedule(&steps, plain);
    }
}
