//! The request body that two sides share, against a slow model: random schedules of polls in two
//! tasks, of frames, ends and errors, and of drops of either side.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use palisade_core::{ConnInfo, Prefix, Violation};
use palisade_guard::{
    Drops, Facts, GuardLayer, Keys, Never, Of, Policy, Refusal, RequestBody, Shared, Stamp,
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

// === What the server gives ===

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Data(u8),
    Error,
    End,
}

/// What has come, and who waits for more.
#[derive(Default)]
struct Line {
    queue: VecDeque<Given>,
    waker: Option<Waker>,
    is_over: bool,
}

struct Wire(Arc<Mutex<Line>>);

impl Body for Wire {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut line = self.0.lock();
        if line.is_over {
            return Poll::Ready(None);
        }
        match line.queue.pop_front() {
            None => {
                line.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Given::Data(byte)) => Poll::Ready(Some(Ok(Frame::data(vec![byte].into())))),
            Some(Given::Error) => {
                line.is_over = true;
                Poll::Ready(Some(Err(io::Error::other("broken"))))
            }
            Some(Given::End) => {
                line.is_over = true;
                Poll::Ready(None)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

// === What the policy is told ===

/// What a policy was told of one request.
#[derive(Debug, Default)]
struct Told {
    admitted: usize,
    has_waited: bool,
    waits: bool,
    passed: usize,
    awaited: Vec<bool>,
    uploads_released: usize,
    released: usize,
}

/// Counts, and refuses nothing. `plain` takes the short way for frames that are ready.
#[derive(Clone, Debug)]
struct Counts {
    told: Arc<Mutex<Told>>,
    plain: bool,
}

impl Policy for Counts {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type Later = Never;
    type Unread = Drops;

    fn listens(&self) -> bool {
        false
    }

    fn admit<B: Body>(&self, _: &Request<B>, _: &Facts, _: &mut Keys) -> Result<(), Refusal> {
        self.told.lock().admitted += 1;
        Ok(())
    }

    fn share<B: Body>(&self, (): &mut (), _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    fn upload(&self, (): &mut (), (): &(), _: &Facts) {}

    fn is_plain(&self, (): &(), (): &()) -> bool {
        self.plain
    }

    fn passed(&self, (): &mut (), bytes: usize) {
        self.told.lock().passed += bytes;
    }

    fn first_wait(
        &self,
        (): &mut (),
        _: Shared<'_, ()>,
        _: Option<u64>,
        _: Stamp,
    ) -> Option<Stamp> {
        let mut told = self.told.lock();
        assert!(!told.has_waited, "two first waits");
        told.has_waited = true;
        None
    }

    fn client_awaited(
        &self,
        (): &mut (),
        _: Shared<'_, ()>,
        by_handler: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        let mut told = self.told.lock();
        assert!(told.has_waited, "awaited before the first wait");
        told.waits = true;
        told.awaited.push(by_handler);
        Ok(())
    }

    fn wait_ends(&self, (): &mut (), _: Shared<'_, ()>, since: Stamp, now: Stamp) {
        assert!(since <= now, "a wait ends before it begins");
        let mut told = self.told.lock();
        assert!(told.waits, "a wait ends that did not begin");
        told.waits = false;
    }

    fn release_upload(&self, (): &mut (), _: Shared<'_, ()>) {
        self.told.lock().uploads_released += 1;
    }

    fn release(&self, (): &mut (), _: Of<'_, ()>) {
        self.told.lock().released += 1;
    }
}

// === Tasks ===

/// A task that counts its wakes.
#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

type Watched = RequestBody<Wire, Counts>;

/// The body, wherever it is, and what came out of it.
#[derive(Default)]
struct Reader {
    body: Option<Watched>,
    /// Read it when the handler is polled.
    reads: bool,
    answers: bool,
    out: Vec<Given>,
    is_pending: bool,
}

impl Reader {
    fn read(&mut self, cx: &mut Context<'_>) {
        let Some(body) = &mut self.body else { return };
        self.is_pending = false;
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => self.is_pending = true,
            Poll::Ready(None) => self.out.push(Given::End),
            Poll::Ready(Some(Err(_))) => self.out.push(Given::Error),
            Poll::Ready(Some(Ok(frame))) => {
                self.out.push(Given::Data(frame.into_data().unwrap()[0]));
            }
        }
    }
}

// === Schedules ===

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The handler is polled, and reads or does not.
    Handler {
        reads: bool,
    },
    /// Another task reads.
    Elsewhere,
    Comes(Given),
    DropBody,
    DropFuture,
    Answer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let given = prop_oneof![
        8 => any::<u8>().prop_map(Given::Data),
        1 => Just(Given::Error),
        1 => Just(Given::End),
    ];
    let step = prop_oneof![
        6 => any::<bool>().prop_map(|reads| Step::Handler { reads }),
        4 => Just(Step::Elsewhere),
        6 => given.prop_map(Step::Comes),
        1 => Just(Step::DropBody),
        1 => Just(Step::DropFuture),
        1 => Just(Step::Answer),
    ];
    proptest::collection::vec(step, 0..40)
}

/// What is right, worked out the slow way.
#[derive(Default)]
struct Model {
    queue: VecDeque<Given>,
    out: Vec<Given>,
    /// The body gave its end, or an error.
    is_over: bool,
    has_body: bool,
    /// The last read found nothing, and in which task: the handler's, or the other.
    awaits: Option<bool>,
    /// The handler was polled and did not ask for what it awaited before.
    is_left: bool,
}

impl Model {
    fn read(&mut self, by_handler: bool) {
        if !self.has_body {
            return;
        }
        self.is_left = false;
        match self.queue.pop_front() {
            _ if self.is_over => {
                self.out.push(Given::End);
                self.awaits = None;
            }
            None => self.awaits = Some(by_handler),
            Some(given) => {
                self.out.push(given);
                self.awaits = None;
                self.is_over = matches!(given, Given::End | Given::Error);
            }
        }
    }
}

fn http2() -> Arc<ConnInfo> {
    ConnInfo::new(([192, 0, 2, 1], 1).into(), None, Prefix::default())
}

fn follows(steps: &[Step], plain: bool) {
    let told = Arc::new(Mutex::new(Told::default()));
    let line = Arc::new(Mutex::new(Line::default()));
    let reader = Arc::new(Mutex::new(Reader::default()));
    let conn = http2();
    let handler = {
        let reader = reader.clone();
        service_fn(move |request: Request<Watched>| {
            reader.lock().body = Some(request.into_body());
            let reader = reader.clone();
            std::future::poll_fn(move |cx| {
                let mut reader = reader.lock();
                if reader.reads {
                    reader.read(cx);
                }
                if reader.answers {
                    return Poll::Ready(Ok::<_, Infallible>(Response::new(
                        Full::new(Bytes::new()),
                    )));
                }
                Poll::Pending
            })
        })
    };
    let mut service = GuardLayer::new(Counts {
        told: told.clone(),
        plain,
    })
    .layer(handler);
    let mut request = Request::post("/")
        .version(Version::HTTP_2)
        .body(Wire(line.clone()))
        .unwrap();
    request.extensions_mut().insert(conn.clone());
    let mut future = Some(Box::pin(service.call(request)));

    let (mine, other) = (Arc::new(Task::default()), Arc::new(Task::default()));
    let wakers = [Waker::from(mine.clone()), Waker::from(other.clone())];
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
                model.is_left |= !reads && model.awaits == Some(true) && !reader.lock().answers;
                let polled = handler.as_mut().poll(&mut Context::from_waker(&wakers[0]));
                if polled.is_ready() {
                    future = None;
                }
            }
            Step::Elsewhere => {
                model.read(false);
                reader.lock().read(&mut Context::from_waker(&wakers[1]));
            }
            Step::Comes(given) => {
                model.queue.push_back(given);
                let waiting = {
                    let mut line = line.lock();
                    line.queue.push_back(given);
                    line.waker.take()
                };
                let before = [mine.0.load(SeqCst), other.0.load(SeqCst)];
                if let Some(waker) = waiting {
                    waker.wake();
                }
                // Whoever awaits it is woken.
                if let (Some(by_handler), true) = (model.awaits, model.has_body) {
                    let after = [mine.0.load(SeqCst), other.0.load(SeqCst)];
                    let task = usize::from(!by_handler);
                    // Only the first thing that comes wakes.
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
            Step::Answer => reader.lock().answers = true,
        }
        let (reader, told) = (reader.lock(), told.lock());
        assert_eq!(reader.out, model.out);
        if model.has_body {
            assert_eq!(told.waits, model.awaits.is_some());
            assert_eq!(told.uploads_released, 0);
            // What nobody asks for may fill the window of the connection.
            let is_unread = !model.is_over && (model.awaits.is_none() || model.is_left);
            assert_eq!(conn.has_unread_body(), is_unread);
        } else {
            assert_eq!(told.uploads_released, 1);
            assert!(!conn.has_unread_body());
        }
        if let Some(by_handler) = model.awaits {
            assert_eq!(told.awaited.last(), Some(&by_handler));
        }
        assert_eq!(told.released, usize::from(future.is_none()));
        let data = reader
            .out
            .iter()
            .filter(|given| matches!(given, Given::Data(_)))
            .count();
        assert_eq!(told.passed, if plain { data } else { 0 });
    }
    drop(future);
    let body = reader.lock().body.take();
    drop(body);
    let told = told.lock();
    assert_eq!(
        (told.admitted, told.uploads_released, told.released),
        (1, 1, 1)
    );
    assert!(!conn.has_unread_body());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn two_sides_of_a_request_agree_whatever_the_order(steps in steps(), plain: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        follows(&steps, plain);
    }
}
