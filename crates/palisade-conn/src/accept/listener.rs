//! The guarded listener: accepts connections and passes on those that the guard admits.

use super::{
    admission::{self, AdmitError, Newcomer},
    proxied,
};
use crate::{
    connection::ConnHandle,
    eviction::evict_for_file,
    guard::{
        ConnGuard,
        shared::{Listening, Shared},
    },
    io::{guarded::GuardedIo, transport::Transport},
};
use socket2::SockRef;
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
    task::JoinSet,
    time::{Sleep, sleep},
};

/// A new connection yields to other tasks this many times while connections are about to close.
const MAX_YIELDS: u32 = 32;
/// The number of refused connections and errors after which one poll yields to other tasks.
const MAX_ATTEMPTS_PER_POLL: u32 = 64;
/// From this number of errors in a row, they are no longer assumed to be those of single
/// connections.
const MAX_ERRORS_IN_A_ROW: u32 = 16;
/// The first pause after an error.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause after an error.
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// A listener that a [`GuardedListener`] can accept from. Implemented for the listeners of tokio.
pub trait Listener: Send + 'static {
    /// The type of an accepted connection.
    type Io: Transport + Send + 'static;

    /// Accepts one connection. Returns the address of its peer, if addresses tell clients apart.
    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Self::Io, Option<SocketAddr>)>>;

    /// Returns the address on which it listens, or 0.0.0.0:0 if that is not an internet address.
    ///
    /// # Errors
    ///
    /// The error of the system.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Returns the local address of an accepted connection.
    fn local_of(io: &Self::Io) -> Option<SocketAddr>;

    /// Limits the bytes that the kernel keeps for the server to read, for each connection that
    /// begins from now on. Called once. Returns whether accepted connections have this limit. If
    /// not, which is the default, [`Transport::limit_receive_buffer`] sets it for each of them.
    fn limit_receive_buffer(&self, bytes: u32) -> bool {
        let _ = bytes;
        false
    }
}

/// A listener that yields only connections that its guard admits and watches.
///
/// It never fails permanently and never spins. It skips errors that belong to one connection. If
/// files or memory are short, it evicts a connection that is at least 1 s old, if one can be
/// evicted, and pauses. The first pause is 10 ms. Each further one is twice as long, up to 100 ms.
pub struct GuardedListener<L: Listener> {
    inner: L,
    guard: ConnGuard,
    pause: Option<Pin<Box<Sleep>>>,
    next_pause: Duration,
    /// Errors since a connection was last accepted.
    errors_in_a_row: u32,
    pending: Option<PendingConn<L::Io>>,
    /// The connections of proxies whose headers are being read. No more than are open.
    headers: JoinSet<Option<GuardedIo<L::Io>>>,
    listening: Option<Listening>,
    /// Whether accepted connections have the receive buffer of the guard.
    has_buffer: bool,
}

/// A connection that has been accepted and is not admitted yet.
struct PendingConn<T> {
    io: T,
    conn: ConnHandle,
    newcomer: Newcomer,
    /// How often it has yielded to other tasks.
    yields: u32,
}

/// The cause of an accept error, as far as it decides what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorCause {
    /// One connection ended before it was accepted.
    OneConnection,
    /// No files or memory are left.
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

    /// Linux copies the option to accepted connections. The window that a client may use is scaled
    /// by it when the connection begins.
    fn limit_receive_buffer(&self, bytes: u32) -> bool {
        let is_set = SockRef::from(self).set_recv_buffer_size(bytes as usize);
        is_set.is_ok() && cfg!(any(target_os = "linux", target_os = "android"))
    }
}

/// All clients of a Unix socket have the same address, so no limit per client applies.
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
        let buffer = guard.shared().limits.receive_buffer;
        Self {
            has_buffer: buffer.is_some_and(|bytes| inner.limit_receive_buffer(bytes)),
            inner,
            guard: guard.clone(),
            pause: None,
            next_pause: MIN_PAUSE,
            errors_in_a_row: 0,
            pending: None,
            headers: JoinSet::new(),
            listening,
        }
    }

    /// Accepts the next connection that the guard admits. Returns it with the address of its peer.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{ConnGuard, Reason};
    ///
    /// let guard = ConnGuard::builder().accept_rate((1, 1)).accept_rate_per_network(None).build()?;
    /// let mut listener = guard.bind("127.0.0.1:0").await?;
    /// let first = TcpStream::connect(listener.local_addr()?).await?;
    /// let mut second = TcpStream::connect(listener.local_addr()?).await?;
    /// let (io, peer) = listener.accept().await?;
    /// assert_eq!(peer, first.local_addr()?);
    /// let error = tokio::select! {
    ///     _ = listener.accept() => unreachable!("the guard refuses the second connection"),
    ///     result = second.read_u8() => result.unwrap_err(),
    /// };
    /// assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::AcceptRate);
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Only errors that belong neither to one connection nor to a shortage of files or memory. Call
    /// this again after an error: it pauses by itself.
    ///
    /// # Panics
    ///
    /// If the runtime has no timer.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe. A connection that was accepted but not returned is kept for the
    /// next call.
    pub async fn accept(&mut self) -> io::Result<(GuardedIo<L::Io>, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Returns the address on which it listens.
    ///
    /// # Errors
    ///
    /// The error of the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Returns its guard.
    pub fn guard(&self) -> &ConnGuard {
        &self.guard
    }

    /// Polls for the next connection, as [`Self::accept`] does.
    ///
    /// # Errors
    ///
    /// The same as those of [`Self::accept`].
    ///
    /// # Panics
    ///
    /// If the runtime has no timer.
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(GuardedIo<L::Io>, SocketAddr)>> {
        for _ in 0..MAX_ATTEMPTS_PER_POLL {
            match self.headers.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(io)))) => return accepted(io),
                Poll::Ready(Some(_)) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let pending = match self.pending.take() {
                Some(pending) => pending,
                None => match ready!(self.inner.poll_accept(cx)) {
                    Ok((io, peer)) => {
                        (self.next_pause, self.errors_in_a_row) = (MIN_PAUSE, 0);
                        match self.check_rate(io, peer) {
                            Some(pending) => pending,
                            None => continue,
                        }
                    }
                    Err(error) => match self.handle_error(error) {
                        Some(error) => return Poll::Ready(Err(error)),
                        None => continue,
                    },
                },
            };
            match self.try_admit(pending) {
                Some((io, false)) => return accepted(io),
                Some((io, true)) => _ = self.headers.spawn(proxied::identify(io)),
                None if self.pending.is_some() => break,
                None => {}
            }
        }
        // Yield: the tasks of connections that have been asked to close run meanwhile.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn shared(&self) -> &Arc<Shared> {
        self.guard.shared()
    }

    /// Returns an accepted connection, or resets it and returns `None` if its client connects too
    /// often.
    fn check_rate(&self, io: L::Io, peer: Option<SocketAddr>) -> Option<PendingConn<L::Io>> {
        let mut conn = self.shared().connection(peer, L::local_of(&io));
        let mut newcomer = Newcomer::of(peer);
        if self.shared().begins_with_header(peer) {
            conn = conn.of_proxy();
            newcomer = Newcomer::BeforeHeader;
        }
        if admission::check_rate(self.shared(), &conn).is_err() {
            io.reset_on_close();
            return None;
        }
        Some(PendingConn {
            io,
            conn,
            newcomer,
            yields: 0,
        })
    }

    /// Admits a connection. Also returns whether it begins with a header. Returns `None` if it was
    /// reset, or if it has to wait.
    fn try_admit(&mut self, mut pending: PendingConn<L::Io>) -> Option<(GuardedIo<L::Io>, bool)> {
        let is_first = pending.yields == 0;
        match admission::admit(self.shared(), &pending.conn, pending.newcomer, is_first) {
            Ok(permit) => {
                let io = GuardedIo::new(pending.io, permit, self.has_buffer);
                return Some((io, pending.newcomer == Newcomer::BeforeHeader));
            }
            Err(AdmitError::NotYet) if pending.yields < MAX_YIELDS => {
                pending.yields += 1;
                self.pending = Some(pending);
            }
            Err(error) => {
                admission::report_refusal(self.shared(), error, &pending.conn);
                pending.io.reset_on_close();
            }
        }
        None
    }

    /// Handles an accept error. Returns it if the caller has to know of it.
    fn handle_error(&mut self, error: io::Error) -> Option<io::Error> {
        let shared = self.guard.shared();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Relaxed);
        let cause = ErrorCause::of_error(&error);
        self.errors_in_a_row = self.errors_in_a_row.saturating_add(1);
        match cause {
            ErrorCause::OneConnection => {
                count(&shared.accept_errors.of_one_connection);
                if self.errors_in_a_row < MAX_ERRORS_IN_A_ROW {
                    return None;
                }
            }
            ErrorCause::Exhausted => {
                count(&shared.accept_errors.exhausted);
                evict_for_file(shared);
            }
            ErrorCause::Other => {
                count(&shared.accept_errors.other);
            }
        }
        self.pause = Some(Box::pin(sleep(self.next_pause)));
        self.next_pause = (2 * self.next_pause).min(MAX_PAUSE);
        if cause == ErrorCause::Other {
            Some(error)
        } else {
            None
        }
    }
}

fn accepted<T>(io: GuardedIo<T>) -> Poll<io::Result<(GuardedIo<T>, SocketAddr)>> {
    let peer = io.conn().peer();
    Poll::Ready(Ok((io, peer)))
}

impl<L: Listener> Drop for GuardedListener<L> {
    fn drop(&mut self) {
        let mut all = self.guard.shared().listening.lock();
        if let Some(index) = all.iter().position(|one| Some(*one) == self.listening) {
            all.swap_remove(index);
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

// === ErrorCause ===

impl ErrorCause {
    fn of_error(error: &io::Error) -> Self {
        use io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted,
            NetworkDown, NetworkUnreachable, OutOfMemory, TimedOut, WouldBlock,
        };
        match error.kind() {
            OutOfMemory => Self::Exhausted,
            // accept(2) also returns errors that are pending on the new socket.
            ConnectionAborted | ConnectionRefused | ConnectionReset | HostUnreachable
            | Interrupted | NetworkDown | NetworkUnreachable | TimedOut | WouldBlock => {
                Self::OneConnection
            }
            _ => Self::of_code(error.raw_os_error()),
        }
    }

    #[cfg(unix)]
    fn of_code(code: Option<i32>) -> Self {
        use rustix::io::Errno;
        let one_connection = [
            Errno::PROTO,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::OPNOTSUPP,
        ];
        let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        let is_in = |list: &[Errno]| list.iter().any(|errno| Some(errno.raw_os_error()) == code);
        if is_in(&exhausted) {
            Self::Exhausted
        } else if is_in(&one_connection) {
            Self::OneConnection
        } else {
            Self::Other
        }
    }

    #[cfg(not(unix))]
    fn of_code(_: Option<i32>) -> Self {
        Self::Other
    }
}
