//! One attack connection: a machine over a socket, opened again when the machine asks.

use super::Shared;
use crate::{
    machine::{Actions, Event, Machine, Signs},
    target::{Source, Stream},
};
use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::Interest,
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
    census: watch::Receiver<()>,
    has_passed: bool,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
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
    pub(super) fn new(
        shared: Arc<Shared>,
        source: Source,
        machine: Box<dyn Machine>,
        census: watch::Receiver<()>,
    ) -> Self {
        Self {
            shared,
            source,
            machine,
            census,
            has_passed: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            reads: true,
            wakes_at: None,
            reopens_at: None,
        }
    }

    /// Opens the connection at `starts`, and again whenever the machine asks, until the attack
    /// ends.
    pub(super) async fn run(mut self, starts: Duration) {
        let mut opens_at = starts;
        loop {
            sleep_until(self.shared.began + opens_at).await;
            if !self.shared.may_open() {
                return;
            }
            let deadline = self.shared.began + self.shared.longest;
            let connect = self
                .shared
                .target
                .connect(self.source, self.shared.receive_buffer);
            match timeout_at(deadline, connect).await {
                Ok(Ok(stream)) => {
                    self.shared.opened.fetch_add(1, Relaxed);
                    let alive = Alive::new(&self.shared);
                    self.exchange(&stream).await;
                    drop((stream, alive));
                }
                Ok(Err(_)) => {
                    self.shared.failed.fetch_add(1, Relaxed);
                }
                Err(_) => return,
            }
            (self.reads, self.queued_bytes, self.wakes_at) = (true, 0, None);
            self.queue.clear();
            self.reopens_at = None;
            self.tell(Event::Closed);
            let Some(at) = self.reopens_at else { return };
            opens_at = at.max(self.shared.now() + MIN_REOPEN_PAUSE);
        }
    }

    /// Runs the machine until the connection is closed by either side, or the attack may do
    /// nothing more.
    async fn exchange(&mut self, stream: &Stream) {
        if self.tell(Event::Opened) == Fate::Closed {
            return;
        }
        let mut timer = pin!(sleep_until(self.shared.began));
        loop {
            // A machine is woken when its earlier bytes are written: it never gets ahead of the
            // server.
            let wakes_at = self.wakes_at.filter(|_| self.queue.is_empty());
            let wakes_at = wakes_at.map_or(self.shared.longest, |at| at.min(self.shared.longest));
            let wakes_at = self.shared.began + wakes_at;
            if timer.deadline() != wakes_at {
                timer.as_mut().reset(wakes_at);
            }
            let reads = self.reads && self.queued_bytes < MAX_QUEUED_BYTES;
            let interest = match (reads, self.queue.is_empty()) {
                (true, true) => Some(Interest::READABLE),
                (true, false) => Some(Interest::READABLE | Interest::WRITABLE),
                (false, false) => Some(Interest::WRITABLE),
                (false, true) => None,
            };
            let socket = stream.get_ref();
            let fate = tokio::select! {
                ready = socket.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                    match ready {
                        Ok(ready) => {
                            let mut fate = Fate::Open;
                            if !self.queue.is_empty() && ready.is_writable() {
                                fate = self.write(stream);
                            }
                            if fate == Fate::Open && reads && ready.is_readable() {
                                fate = self.read(stream);
                            }
                            fate
                        }
                        Err(_) => Fate::Closed,
                    }
                }
                () = &mut timer => {
                    if self.shared.now() >= self.shared.longest {
                        return;
                    }
                    self.wakes_at = None;
                    self.tell(Event::Woken)
                }
                Ok(()) = self.census.changed() => {
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

    /// Writes what the socket takes.
    fn write(&mut self, stream: &Stream) -> Fate {
        while let Some(bytes) = self.queue.front_mut() {
            match stream.get_ref().try_write(bytes) {
                Ok(count) => {
                    bytes.advance(count);
                    if bytes.is_empty() {
                        self.queue.pop_front();
                    }
                    self.queued_bytes = self.queued_bytes.saturating_sub(count);
                    self.shared.sent.fetch_add(count as u64, Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Fate::Closed,
            }
        }
        Fate::Open
    }

    /// Reads a piece and hands it to the machine.
    fn read(&mut self, stream: &Stream) -> Fate {
        let mut piece = [0; READ_BYTES];
        match stream.get_ref().try_read(&mut piece) {
            Ok(0) => Fate::Closed,
            Ok(count) => {
                self.shared.received.fetch_add(count as u64, Relaxed);
                self.tell(Event::Received(piece.get(..count).unwrap_or_default()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fate::Open,
            Err(_) => Fate::Closed,
        }
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
