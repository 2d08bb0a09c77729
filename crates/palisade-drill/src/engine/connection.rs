//! One attack connection: a machine over a socket, opened again when the machine asks.

use super::Shared;
use crate::{
    machine::{Actions, Event, Machine, Signs},
    target::{Source, Stream},
};
use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    future::poll_fn,
    io, mem,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    sync::watch,
    time::{sleep_until, timeout_at},
};

/// The largest piece of a read. It lives on the stack of one poll, so that 2,000 connections share
/// it.
const READ_BYTES: usize = 4 * 1024;
/// The queued bytes from which a connection reads nothing more, so that a machine that answers
/// what it reads has a bounded queue.
const MAX_QUEUED_BYTES: usize = 256 * 1024;
/// The shortest pause before a connection is opened again.
const MIN_REOPEN_PAUSE: Duration = Duration::from_millis(5);

/// A machine, and what its connection has still to do.
pub(super) struct Connection {
    shared: Arc<Shared>,
    source: Source,
    machine: Box<dyn Machine>,
    has_passed: bool,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Whether bytes were written that TLS has not yet sent.
    is_flushing: bool,
    reads: bool,
    wakes_at: Option<Duration>,
    /// When the connection is opened again, after it was closed.
    reopens_at: Option<Duration>,
}

/// What became of an event.
#[derive(PartialEq, Eq)]
enum Fate {
    Open,
    Closed,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, source: Source, machine: Box<dyn Machine>) -> Self {
        Self {
            shared,
            source,
            machine,
            has_passed: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            is_flushing: false,
            reads: true,
            wakes_at: None,
            reopens_at: None,
        }
    }

    /// Opens the connection at `starts`, and again whenever the machine asks, until the attack
    /// ends.
    pub(super) async fn run(mut self, starts: Duration, mut census: watch::Receiver<()>) {
        let mut opens_at = starts;
        loop {
            sleep_until(self.shared.began + opens_at).await;
            if !self.shared.may_open() {
                return;
            }
            let deadline = self.shared.began + self.shared.longest;
            match timeout_at(deadline, connect(&self.shared, self.source)).await {
                Ok(Ok(mut stream)) => {
                    self.shared.opened.fetch_add(1, Relaxed);
                    let alive = Alive::new(&self.shared);
                    self.exchange(&mut stream, &mut census).await;
                    drop((stream, alive));
                }
                Ok(Err(_)) => {
                    self.shared.failed.fetch_add(1, Relaxed);
                }
                Err(_) => return,
            }
            (self.reads, self.is_flushing) = (true, false);
            (self.queued_bytes, self.wakes_at) = (0, None);
            self.queue.clear();
            self.reopens_at = None;
            self.tell(Event::Closed);
            let Some(at) = self.reopens_at else { return };
            opens_at = at.max(self.shared.now() + MIN_REOPEN_PAUSE);
        }
    }

    /// Runs the machine until the connection is closed by either side, or the attack may do
    /// nothing more.
    async fn exchange(&mut self, stream: &mut Stream, census: &mut watch::Receiver<()>) {
        if self.tell(Event::Opened) == Fate::Closed {
            return;
        }
        let mut timer = pin!(sleep_until(self.shared.began));
        loop {
            // A machine is woken when its earlier bytes are written: it never gets ahead of the
            // server.
            let is_writing = !self.queue.is_empty() || self.is_flushing;
            let wakes_at = self.wakes_at.filter(|_| !is_writing);
            let wakes_at = wakes_at.map_or(self.shared.longest, |at| at.min(self.shared.longest));
            let wakes_at = self.shared.began + wakes_at;
            if timer.deadline() != wakes_at {
                timer.as_mut().reset(wakes_at);
            }
            let reads = self.reads && self.queued_bytes < MAX_QUEUED_BYTES;
            let io = poll_fn(|cx| self.poll_io(cx, stream, reads));
            let fate = tokio::select! {
                fate = io, if is_writing || reads => fate,
                () = &mut timer => {
                    if self.shared.now() >= self.shared.longest {
                        return;
                    }
                    self.wakes_at = None;
                    self.tell(Event::Woken)
                }
                Ok(()) = census.changed() => {
                    if is_closed(stream).await {
                        Fate::Closed
                    } else {
                        let holds = usize::from(self.machine.holds());
                        self.shared.counted.fetch_add(1, Relaxed);
                        self.shared.holding.fetch_add(holds, Relaxed);
                        Fate::Open
                    }
                }
            };
            if fate == Fate::Closed || !self.shared.may_send() {
                return;
            }
        }
    }

    /// Writes what the connection takes, and reads a piece.
    fn poll_io(&mut self, cx: &mut Context<'_>, stream: &mut Stream, reads: bool) -> Poll<Fate> {
        let mut stream = Pin::new(stream);
        match self.poll_write(cx, stream.as_mut()) {
            Poll::Ready(Err(_)) => return Poll::Ready(Fate::Closed),
            // The machine may be woken now.
            Poll::Ready(Ok(true)) => return Poll::Ready(Fate::Open),
            Poll::Ready(Ok(false)) | Poll::Pending => {}
        }
        if reads {
            self.poll_read(cx, stream)
        } else {
            Poll::Pending
        }
    }

    /// Writes all that is queued. Returns whether there was anything.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut stream: Pin<&mut Stream>,
    ) -> Poll<io::Result<bool>> {
        while let Some(bytes) = self.queue.front_mut() {
            let count = ready!(stream.as_mut().poll_write(cx, bytes))?;
            bytes.advance(count);
            if bytes.is_empty() {
                self.queue.pop_front();
            }
            self.queued_bytes = self.queued_bytes.saturating_sub(count);
            self.is_flushing = true;
            self.shared.sent.fetch_add(count as u64, Relaxed);
        }
        if self.is_flushing {
            ready!(stream.poll_flush(cx))?;
        }
        Poll::Ready(Ok(mem::take(&mut self.is_flushing)))
    }

    /// Reads a piece and hands it to the machine.
    fn poll_read(&mut self, cx: &mut Context<'_>, stream: Pin<&mut Stream>) -> Poll<Fate> {
        let mut piece = [0; READ_BYTES];
        let mut piece = ReadBuf::new(&mut piece);
        let read = ready!(stream.poll_read(cx, &mut piece));
        let bytes = piece.filled();
        if read.is_err() || bytes.is_empty() {
            return Poll::Ready(Fate::Closed);
        }
        self.shared.received.fetch_add(bytes.len() as u64, Relaxed);
        Poll::Ready(self.tell(Event::Received(bytes)))
    }

    /// Hands an event to the machine and takes its actions.
    fn tell(&mut self, event: Event<'_>) -> Fate {
        let mut out = Actions::default();
        self.machine.on(event, self.shared.now(), &mut out);
        self.count(out.signs);
        self.reads = out.reads.unwrap_or(self.reads);
        self.wakes_at = out.wakes_at.or(self.wakes_at);
        self.reopens_at = out.reopens_at;
        if event == Event::Closed {
            return Fate::Closed;
        }
        for bytes in out.sends {
            self.queued_bytes += bytes.len();
            self.queue.push_back(bytes);
        }
        if out.closes { Fate::Closed } else { Fate::Open }
    }
}

impl Connection {
    /// Counts what the machine tells of answers.
    fn count(&mut self, signs: Signs) {
        self.shared.served.fetch_add(signs.served, Relaxed);
        self.shared.refused.fetch_add(signs.refused, Relaxed);
        if signs.has_passed && !self.has_passed {
            self.has_passed = true;
            self.shared.passed.fetch_add(1, Relaxed);
        }
    }
}

/// Opens the connection that the machines of this attack have.
async fn connect(shared: &Shared, source: Source) -> io::Result<Stream> {
    let (target, buffer) = (&shared.target, shared.receive_buffer);
    match shared.protocol {
        Some(protocol) => target.connect_as(protocol, source, buffer).await,
        None => target.connect(source, buffer).await,
    }
}

/// Returns whether the server has closed a connection that may have unread bytes.
async fn is_closed(stream: &Stream) -> bool {
    tokio::select! {
        biased;
        ready = stream.get_ref().ready(Interest::READABLE) => {
            ready.map_or(true, tokio::io::Ready::is_read_closed)
        }
        () = std::future::ready(()) => false,
    }
}

/// Counts an open connection until it is dropped.
struct Alive(Arc<Shared>);

impl Alive {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.alive.fetch_add(1, Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Relaxed);
    }
}
