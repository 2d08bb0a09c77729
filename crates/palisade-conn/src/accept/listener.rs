//! The listener.

use super::admission::{self, AdmitError};
use crate::{
    connection::ConnHandle,
    eviction::evict_for_file,
    guard::{
        ConnGuard,
        shared::{Listening, Shared},
    },
    io::{guarded::GuardedIo, transport::Transport},
};
use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};

/// So often a newcomer lets others run first who are about to go.
const TURNS: u32 = 32;
/// So many refusals in a row, and others may run first.
const AT_A_STRETCH: u32 = 64;
/// After so many failures in a row they are no longer taken for the connections' own.
const IN_A_ROW: u32 = 16;
/// Accepting pauses for so long when there is nothing to accept with, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What a [`GuardedListener`] listener accepts from: tokio's listeners, and whatever tests put in their
/// place.
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Io: Transport + Send + 'static;

    /// Accepts one connection, with the address of its other end if that tells clients apart.
    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Self::Io, Option<SocketAddr>)>>;

    /// Where it listens; where that is no address of the internet, 0.0.0.0:0.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Where the connection came in.
    fn local_of(io: &Self::Io) -> Option<SocketAddr>;
}

/// A listener whose connections are watched over, and that lets in no more than its guard allows.
///
/// It never fails for good and never spins. A failure that is one connection's own is passed
/// over. Where files or memory are short, a connection that can be spared goes, unless it has only
/// just come, and accepting pauses for 10 ms, and twice as long each time after that, up to 100 ms.
pub struct GuardedListener<L: Listener> {
    inner: L,
    guard: ConnGuard,
    pause: Option<Pin<Box<Sleep>>>,
    next_pause: Duration,
    /// Failures since something was accepted.
    failures: u32,
    waiting: Option<Waiting<L::Io>>,
    listening: Option<Listening>,
}

/// Accepted, and not let in yet.
struct Waiting<T> {
    io: T,
    conn: ConnHandle,
    has_peer: bool,
    turns: u32,
}

/// What is to be done about a failure to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    OfConnection,
    Exhausted,
    Other,
}

// === Listener ===

impl Listener for TcpListener {
    type Io = TcpStream;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, Option<SocketAddr>)>> {
        TcpListener::poll_accept(self, cx).map_ok(|(io, peer)| (io, Some(peer)))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }

    fn local_of(io: &TcpStream) -> Option<SocketAddr> {
        io.local_addr().ok()
    }
}

/// Everybody on a Unix socket has the same address: no limit per client applies.
#[cfg(unix)]
impl Listener for tokio::net::UnixListener {
    type Io = tokio::net::UnixStream;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Self::Io, Option<SocketAddr>)>> {
        tokio::net::UnixListener::poll_accept(self, cx).map_ok(|(io, _)| (io, None))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([0, 0, 0, 0], 0).into())
    }

    fn local_of(_: &Self::Io) -> Option<SocketAddr> {
        None
    }
}

// === GuardedListener ===

impl<L: Listener> GuardedListener<L> {
    pub(crate) fn new(inner: L, guard: &ConnGuard, backlog: Option<u32>) -> Self {
        // An address without a port is not an internet address.
        let address = inner.local_addr().ok();
        let address = address.filter(|address| address.port() != 0);
        let listening = address.map(|address| Listening { address, backlog });
        guard.shared().listening.lock().extend(listening);
        Self {
            inner,
            guard: guard.clone(),
            pause: None,
            next_pause: FIRST_PAUSE,
            failures: 0,
            waiting: None,
            listening,
        }
    }

    /// The next connection that is let in, and its other end.
    ///
    /// Cancel safe: what was accepted and not handed out is kept for the next call.
    ///
    /// # Errors
    ///
    /// Only those that are neither one connection's own nor a shortage. Call it again: it pauses
    /// by itself.
    ///
    /// # Panics
    ///
    /// If the runtime has no timer.
    pub async fn accept(&mut self) -> io::Result<(GuardedIo<L::Io>, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// Whatever the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Its guard.
    pub fn guard(&self) -> &ConnGuard {
        &self.guard
    }

    /// [`Self::accept`], by hand.
    ///
    /// # Errors
    ///
    /// As [`Self::accept`].
    ///
    /// # Panics
    ///
    /// As [`Self::accept`].
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(GuardedIo<L::Io>, SocketAddr)>> {
        for _ in 0..AT_A_STRETCH {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let waiting = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match ready!(self.inner.poll_accept(cx)) {
                    Ok((io, peer)) => {
                        (self.next_pause, self.failures) = (FIRST_PAUSE, 0);
                        match self.first_look(io, peer) {
                            Some(waiting) => waiting,
                            None => continue,
                        }
                    }
                    Err(error) => match self.failed(error) {
                        Some(error) => return Poll::Ready(Err(error)),
                        None => continue,
                    },
                },
            };
            match self.let_in(waiting) {
                Some(io) => {
                    let peer = io.conn().peer();
                    return Poll::Ready(Ok((io, peer)));
                }
                None if self.waiting.is_some() => break,
                None => {}
            }
        }
        // Others may run first; those among them who are told to go will have gone.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn shared(&self) -> &Arc<Shared> {
        self.guard.shared()
    }

    /// `None` if it was reset.
    fn first_look(&self, io: L::Io, peer: Option<SocketAddr>) -> Option<Waiting<L::Io>> {
        let conn = self.shared().connection(peer, L::local_of(&io));
        let has_peer = peer.is_some();
        if admission::check_rate(self.shared(), &conn, has_peer).is_err() {
            io.reset_on_close();
            return None;
        }
        Some(Waiting {
            io,
            conn,
            has_peer,
            turns: 0,
        })
    }

    /// `None` if it was reset or waits.
    fn let_in(&mut self, mut waiting: Waiting<L::Io>) -> Option<GuardedIo<L::Io>> {
        let is_first = waiting.turns == 0;
        match admission::admit(self.shared(), &waiting.conn, waiting.has_peer, is_first) {
            Ok(permit) => return Some(GuardedIo::new(waiting.io, permit)),
            Err(AdmitError::NotYet) if waiting.turns < TURNS => {
                waiting.turns += 1;
                self.waiting = Some(waiting);
            }
            Err(error) => {
                admission::give_up(self.shared(), error, &waiting.conn);
                waiting.io.reset_on_close();
            }
        }
        None
    }

    /// What the caller is to know of a failure, if anything.
    fn failed(&mut self, error: io::Error) -> Option<io::Error> {
        let shared = self.guard.shared();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Relaxed);
        let failure = Failure::of(&error);
        self.failures = self.failures.saturating_add(1);
        match failure {
            Failure::OfConnection => {
                count(&shared.accept_errors.of_connection);
                if self.failures < IN_A_ROW {
                    return None;
                }
            }
            Failure::Exhausted => {
                count(&shared.accept_errors.exhausted);
                evict_for_file(shared);
            }
            Failure::Other => {
                count(&shared.accept_errors.other);
            }
        }
        self.pause = Some(Box::pin(sleep(self.next_pause)));
        self.next_pause = (2 * self.next_pause).min(LONGEST_PAUSE);
        (failure == Failure::Other).then_some(error)
    }
}

impl<L: Listener> Drop for GuardedListener<L> {
    fn drop(&mut self) {
        let mut all = self.guard.shared().listening.lock();
        if let Some(place) = all.iter().position(|one| Some(*one) == self.listening) {
            all.swap_remove(place);
        }
    }
}

impl<L: Listener> fmt::Debug for GuardedListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedListener")
            .field("local_addr", &self.local_addr().ok())
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

// === Failure ===

impl Failure {
    fn of(error: &io::Error) -> Self {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted,
            NetworkDown, NetworkUnreachable, OutOfMemory, TimedOut, WouldBlock,
        };
        match error.kind() {
            OutOfMemory => Self::Exhausted,
            // accept(2): errors that are pending on the new socket come back from it.
            ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable
            | Interrupted | NetworkDown | NetworkUnreachable | TimedOut | WouldBlock => {
                Self::OfConnection
            }
            _ => Self::of_code(error.raw_os_error()),
        }
    }

    #[cfg(unix)]
    fn of_code(code: Option<i32>) -> Self {
        use rustix::io::Errno;
        let of_one = [
            Errno::PROTO,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::OPNOTSUPP,
        ];
        let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        let is_in = |list: &[Errno]| list.iter().any(|errno| Some(errno.raw_os_error()) == code);
        if is_in(&exhausted) {
            Self::Exhausted
        } else if is_in(&of_one) {
            Self::OfConnection
        } else {
            Self::Other
        }
    }

    #[cfg(not(unix))]
    fn of_code(_: Option<i32>) -> Self {
        Self::Other
    }
}
