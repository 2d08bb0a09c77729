//! Requests at the pace of the answers, and at a pace of their own.

use crate::{
    attacks::Protocol,
    bounds::{MAX_ATTACK_BYTES, MAX_CONNECTIONS},
    honest::answer::Answer,
    sample::Outcome,
    target::{Source, Stream, Target},
};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::LocalSet,
    time::{Instant, sleep, sleep_until, timeout},
};

/// The time within which an answer or a refusal is in time.
const IN_TIME: Duration = Duration::from_secs(1);
/// The time after which a client gives up.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause of a client that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// The addresses of the clients, so that a limit for each client is not what is measured.
const ADDRESSES: usize = 200;

/// What became of requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answers {
    pub(super) served: u64,
    /// Those of them that came within a second.
    pub(super) in_time: u64,
    pub(super) refused: u64,
    pub(super) refused_late: u64,
    /// The largest lateness of a request.
    pub(super) lateness: Duration,
}

/// The clients, all in one thread.
#[derive(Clone)]
pub(super) struct Load {
    target: Target,
    attack: u8,
    request: Bytes,
    idle: Rc<RefCell<Vec<Stream>>>,
    under_way: Rc<Cell<usize>>,
    next_address: Rc<Cell<usize>>,
    answers: Rc<Cell<Answers>>,
    /// The most connections.
    most: usize,
    /// The bytes that may still be received, by all of them.
    bytes_left: Rc<Cell<u64>>,
}

impl Load {
    /// Creates clients with `most` connections.
    pub(super) fn new(target: Target, attack: u8, request: Bytes, most: usize) -> Self {
        Self {
            target,
            attack,
            request,
            most: most.min(MAX_CONNECTIONS),
            bytes_left: Rc::new(Cell::new(MAX_ATTACK_BYTES)),
            idle: Rc::default(),
            under_way: Rc::default(),
            next_address: Rc::default(),
            answers: Rc::default(),
        }
    }

    /// Lets `clients` ask for `time`, each again as soon as it is answered.
    pub(super) async fn closed(&self, clients: usize, time: Duration) -> Answers {
        self.answers.take();
        let tasks = LocalSet::new();
        for _ in 0..clients {
            let load = self.clone();
            tasks.spawn_local(async move {
                loop {
                    if load.ask(true).await != Outcome::Served {
                        sleep(REFUSED_PAUSE).await;
                    }
                }
            });
        }
        let _ = timeout(time, tasks).await;
        self.under_way.set(0);
        self.answers.take()
    }

    /// Sends `rate` requests a second for `time`. Those of the first part, `settling`, do not
    /// count.
    pub(super) async fn open(&self, rate: f64, settling: Duration, time: Duration) -> Answers {
        self.answers.take();
        let tasks = LocalSet::new();
        tasks
            .run_until(async {
                let began = Instant::now();
                let mut requests = Vec::new();
                for number in 0_u32.. {
                    let after = Duration::from_secs_f64(f64::from(number) / rate);
                    if after >= time {
                        break;
                    }
                    let due = began + after;
                    sleep_until(due).await;
                    let load = self.clone();
                    let counts = after >= settling;
                    if counts {
                        self.note(|answers| answers.lateness = answers.lateness.max(due.elapsed()));
                    }
                    requests.push(tokio::task::spawn_local(async move {
                        load.ask(counts).await;
                    }));
                }
                for request in requests {
                    let _ = request.await;
                }
            })
            .await;
        self.answers.take()
    }

    /// Sends one request and notes what becomes of it.
    async fn ask(&self, counts: bool) -> Outcome {
        let began = Instant::now();
        let outcome = if self.under_way.get() < self.most {
            self.under_way.set(self.under_way.get() + 1);
            let outcome = timeout(PATIENCE, self.request()).await;
            self.under_way.set(self.under_way.get().saturating_sub(1));
            outcome.unwrap_or(Outcome::TimedOut)
        } else {
            // So many clients wait already that this one would find no answer either.
            Outcome::TimedOut
        };
        let is_late = began.elapsed() > IN_TIME || outcome == Outcome::TimedOut;
        if counts {
            self.note(|answers| {
                if outcome == Outcome::Served {
                    answers.served += 1;
                    answers.in_time += u64::from(!is_late);
                } else {
                    answers.refused += 1;
                    answers.refused_late += u64::from(is_late);
                }
            });
        }
        outcome
    }

    fn note(&self, change: impl FnOnce(&mut Answers)) {
        let mut answers = self.answers.get();
        change(&mut answers);
        self.answers.set(answers);
    }

    /// Sends one request, on a connection that is idle if there is one.
    async fn request(&self) -> Outcome {
        let idle = self.idle.borrow_mut().pop();
        if let Some(stream) = idle {
            let outcome = self.exchange(stream).await;
            if outcome != Outcome::Cut {
                return outcome;
            }
        }
        let address = self.next_address.get();
        self.next_address.set((address + 1) % ADDRESSES);
        let source = Source::Attacker {
            attack: self.attack,
            address,
        };
        let connect = self.target.connect_as(Protocol::Http1, source, None);
        match connect.await {
            Ok(stream) => self.exchange(stream).await,
            Err(_) => Outcome::NotConnected,
        }
    }

    async fn exchange(&self, mut stream: Stream) -> Outcome {
        let mut answer = Answer::default();
        let mut piece = [0; 4 << 10];
        let read = async {
            stream.write_all(&self.request).await.ok()?;
            while !answer.is_complete() {
                let count = stream.read(&mut piece).await.ok()?;
                let bytes = piece.get(..count).unwrap_or_default();
                let left = self.bytes_left.get().checked_sub(count as u64)?;
                self.bytes_left.set(left);
                if bytes.is_empty() {
                    return answer.ends_with_connection().then_some(false);
                }
                answer.read(bytes).ok()?;
            }
            Some(true)
        };
        let Some(is_kept) = read.await else {
            return Outcome::Cut;
        };
        match answer.status() {
            Some(200..=299) => {
                if is_kept {
                    self.idle.borrow_mut().push(stream);
                }
                Outcome::Served
            }
            status => Outcome::Status(status.unwrap_or_default()),
        }
    }
}
