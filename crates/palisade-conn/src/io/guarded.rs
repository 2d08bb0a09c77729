//! The guarded socket: counts bytes, and ends when its guard has decided to close it.

use super::{frames::FrameReader, transport::Transport};
use crate::{
    connection::{
        ConnHandle,
        decision::{CloseDecision, CloseMode, CloseRequest},
        permit::Permit,
        state::ConnState,
    },
    guard::{close::close, limits::MAX_LINGER_BYTES, shared::Shared},
};
use palisade_core::{Mode, Reason};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The number of bytes that are discarded at a time.
const DISCARD_CHUNK_BYTES: usize = 8 * 1024;
/// The response to an HTTP/1 head that took too long.
const TIMEOUT_RESPONSE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A connection that its guard watches.
///
/// It counts bytes, and ends when its guard has decided to close it. The guard wakes the reader and
/// the writer. Then a read returns the end of the stream or an error, and a write returns an error.
/// The error holds a [`Violation`](palisade_core::Violation). If an HTTP/1 head in plain text took
/// too long, the client first receives a 408, if the socket takes that at once, and the connection
/// ends gracefully.
///
/// The connection holds its place under the cap until this is dropped. An upgraded connection keeps
/// it. To get it back from `hyper::upgrade::Upgraded` in an accept loop over hyper, downcast to
/// `TokioIo<GuardedIo<T>>`. Under `axum::serve`, call `auto::upgrade::downcast` of hyper-util.
///
/// # Shutdown
///
/// A shutdown sends the FIN. Then it reads and discards what the client still sends, until nothing
/// arrives for 1 s, for at most 30 s or 64 MiB. Otherwise the kernel would reset the connection,
/// and the client of a refused upload would not see the response. Near the cap, a lingering
/// connection is the first to be evicted. Only HTTP connections with
/// [request tracking](crate#request-tracking) linger, and upgraded ones never do.
///
/// # Cancel safety
///
/// No bytes are lost if a future that reads or writes is dropped.
#[derive(Debug)]
pub struct GuardedIo<T> {
    inner: T,
    permit: Permit,
    is_watched: bool,
    /// Whether a waker has been stored.
    has_waker: bool,
    /// Whether the latest write was pending.
    is_write_pending: bool,
    opening: Opening,
    frames: FrameReader,
    timeout_response: TimeoutResponse,
    shutdown: Shutdown,
}

/// The protocol that the first bytes of the client show, as far as the guard has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Opening {
    /// No bytes have arrived.
    Nothing,
    /// The one byte `P`.
    P,
    /// The bytes `PR`.
    Pr,
    /// The bytes `PRO`.
    Pro,
    /// The preface of HTTP/2 in plain text.
    Http2,
    /// The method of an HTTP/1 request in plain text.
    Http1,
    /// TLS, the PROXY protocol, or anything else.
    Other,
}

/// Whether a 408 was sent before the close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimeoutResponse {
    NotTried,
    Sent,
    NotSent,
}

/// The progress of a shutdown.
#[derive(Clone, Copy, Debug)]
enum Shutdown {
    NotBegun,
    /// The FIN is sent. What the client still sends is discarded.
    Lingering,
    Done,
}

impl<T> GuardedIo<T> {
    /// Returns the connection's handle.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    ///
    /// let mut listener = ConnGuard::default().bind("127.0.0.1:0").await?;
    /// let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// let (mut io, peer) = listener.accept().await?;
    /// let conn = io.conn().clone();
    /// assert_eq!((conn.peer(), conn.local()), (peer, Some(listener.local_addr()?)));
    /// assert!(!conn.has_read());
    /// client.write_u8(b'G').await?;
    /// io.read_u8().await?;
    /// assert!(conn.has_read() && !conn.is_closed());
    /// drop(io);
    /// assert!(conn.is_closed()); // The handle keeps neither the socket nor its place.
    /// # Ok(())
    /// # }
    /// ```
    pub fn conn(&self) -> &ConnHandle {
        self.permit.conn()
    }

    /// Returns a reference to the underlying byte stream.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    fn state(&self) -> &ConnState {
        self.permit.conn().state()
    }
}

impl<T: Transport> GuardedIo<T> {
    /// `has_buffer` is whether the socket has the receive buffer of the guard from its listener.
    pub(crate) fn new(inner: T, permit: Permit, has_buffer: bool) -> Self {
        let shared = permit.shared();
        inner.prepare();
        if shared.limits.mode == Mode::Enforce {
            inner.give_up_after(shared.limits.kernel_timeout());
        }
        if let Some(bytes) = shared.receive_buffer(has_buffer) {
            inner.limit_receive_buffer(bytes);
        }
        Self::resume(inner, permit)
    }

    /// Guards a socket whose options are set.
    fn resume(inner: T, permit: Permit) -> Self {
        let is_watched = permit.shared().limits.mode != Mode::Off;
        Self {
            inner,
            permit,
            is_watched,
            has_waker: false,
            is_write_pending: false,
            opening: Opening::Nothing,
            frames: FrameReader::new(),
            timeout_response: TimeoutResponse::NotTried,
            shutdown: Shutdown::NotBegun,
        }
    }

    /// Returns the connection for the reader of a PROXY header, which shows no protocol and is
    /// answered with nothing.
    pub(crate) fn before_header(mut self) -> Self {
        self.opening = Opening::Other;
        self.state().set_tracked(); // No request can come before the end of the header.
        self
    }

    /// Returns the connection as it begins after its PROXY header, with what `readmit` makes of its
    /// permit. Resets the connection if that is an error.
    pub(crate) fn after_header(
        self,
        readmit: impl FnOnce(Permit) -> Result<Permit, Permit>,
    ) -> Option<Self> {
        let Self { inner, permit, .. } = self;
        match readmit(permit) {
            Ok(permit) => Some(Self::resume(inner, permit)),
            Err(_permit) => {
                inner.reset_on_close();
                drop(inner); // Before its place is free.
                None
            }
        }
    }

    /// Resets the connection, for a reason that has been reported.
    pub(crate) fn refuse(self, reason: Reason) {
        self.state().request_close(CloseDecision::reset(reason));
        self.inner.reset_on_close();
    }

    pub(crate) fn shared(&self) -> &Shared {
        self.permit.shared()
    }

    /// Charges the bytes of a read. Closes the connection if the budget has no room.
    #[cold]
    #[inline(never)]
    fn charge_read(&mut self, bytes: usize) {
        if let Err(full) = self.permit.charge(bytes) {
            let conn = self.permit.conn();
            let request = CloseRequest {
                reason: Reason::BytesFull,
                mode: CloseMode::Reset,
                phase: conn.state().stats().phase(),
                limit: full.limit,
                observed: full.observed,
            };
            close(self.permit.shared(), conn, request);
        }
    }

    #[inline]
    fn decision(&self) -> Option<CloseDecision> {
        self.state().decision()
    }

    /// Returns the I/O error that a reader or writer gets after the guard has closed the
    /// connection. Prepares the reset, if it is one.
    #[cold]
    fn closed_error(&mut self, decision: CloseDecision) -> io::Error {
        let kind = match self.close_mode(decision) {
            CloseMode::Graceful => io::ErrorKind::BrokenPipe,
            CloseMode::Reset => {
                self.timeout_response = TimeoutResponse::NotSent;
                self.inner.reset_on_close();
                io::ErrorKind::ConnectionAborted
            }
        };
        let phase = self.state().stats().phase();
        let request = CloseRequest::without_numbers(decision.reason, decision.mode, phase);
        io::Error::new(kind, request.violation())
    }

    /// Returns how the connection is closed. A client that received a 408 is not reset.
    fn close_mode(&self, decision: CloseDecision) -> CloseMode {
        if self.timeout_response == TimeoutResponse::Sent {
            CloseMode::Graceful
        } else {
            decision.mode
        }
    }

    /// Sends a 408 to a client that has begun an HTTP/1 head, if no response can be on its way.
    fn send_timeout(&mut self, decision: CloseDecision, cx: &mut Context<'_>) {
        let stats = self.state().stats();
        let nothing_is_sent = match decision.reason {
            Reason::FirstRequest => stats.written == 0,
            Reason::SlowHead => stats.in_flight == 0 && !stats.http2,
            _ => false,
        };
        self.timeout_response = TimeoutResponse::NotSent;
        if !nothing_is_sent || self.opening != Opening::Http1 || self.is_write_pending {
            return;
        }
        if let Poll::Ready(Ok(count)) = Pin::new(&mut self.inner).poll_write(cx, TIMEOUT_RESPONSE) {
            self.state().add_written(count);
            if count == TIMEOUT_RESPONSE.len() {
                self.timeout_response = TimeoutResponse::Sent;
            }
        }
    }

    /// Reads, and notes what that shows.
    #[inline(always)]
    fn read_watched(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(decision) = self.decision() {
            return self.read_after_decision(decision, cx);
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) => {
                let new = buf.filled().get(before..).unwrap_or_default();
                let state = self.permit.conn().state();
                if self.opening <= Opening::Http2 {
                    self.opening = read_opening(self.opening, &mut self.frames, state, new);
                }
                state.add_read(new.len());
                if state.charges_reads() {
                    let bytes = new.len();
                    self.charge_read(bytes);
                    if let Some(decision) = self.decision() {
                        return self.read_after_decision(decision, cx);
                    }
                } else if self.permit.is_charged() {
                    self.permit.end_charge();
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if self.permit.is_charged() {
                    self.permit.end_charge();
                }
                if let Some(decision) = self.park_reader(cx) {
                    return self.read_after_decision(decision, cx);
                }
            }
        }
        result
    }

    /// Reads, and answers what the guard asks of the socket.
    #[cold]
    #[inline(never)]
    fn read_and_answer(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.answer_probe();
        let result = self.read_watched(cx, buf);
        self.tell_unread(); // What is left.
        result
    }

    /// Returns what a read gets after a close decision.
    #[cold]
    fn read_after_decision(
        &mut self,
        decision: CloseDecision,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.timeout_response == TimeoutResponse::NotTried {
            self.send_timeout(decision, cx);
        }
        match self.close_mode(decision) {
            CloseMode::Graceful => Poll::Ready(Ok(())),
            CloseMode::Reset => Poll::Ready(Err(self.closed_error(decision))),
        }
    }

    /// Answers what the guard asks of the socket, if it does.
    #[inline]
    fn handle_probe(&self) {
        if self.state().is_asked() {
            self.answer();
        }
    }

    #[cold]
    #[inline(never)]
    fn answer(&self) {
        self.tell_unread();
        self.answer_probe();
    }

    fn answer_probe(&self) {
        if self.state().take_probe() {
            self.check_client();
        }
    }

    /// Tells how many bytes the kernel has for the server to read, if the guard asks for that.
    /// While memory is short, many of them are not to become more: the server does not take them.
    fn tell_unread(&self) {
        if self.state().is_asked() && self.state().take_unread_asked() {
            let unread = u32::try_from(self.inner.unread_bytes()).unwrap_or(u32::MAX);
            self.conn().set_unread_bytes(unread);
            let buffer = self.permit.shared().receive_buffer(true);
            if let Some(bytes) = buffer.filter(|bytes| unread >= *bytes) {
                self.inner.limit_receive_buffer(bytes);
            }
        }
    }

    /// Closes the connection if the client has hung up.
    fn check_client(&self) {
        let state = self.state();
        if state.is_upgraded() {
            return;
        }
        let is_gone = if state.allows_half_close() {
            self.inner.is_gone()
        } else {
            self.inner.has_hung_up()
        };
        if is_gone {
            let (reason, mode) = (Reason::HungUp, CloseMode::Reset);
            let request = CloseRequest::without_numbers(reason, mode, self.state().stats().phase());
            close(self.permit.shared(), self.conn(), request);
        }
    }

    /// Stores the waker of a reader that found no bytes. Returns a close decision that was made
    /// meanwhile.
    fn park_reader(&mut self, cx: &Context<'_>) -> Option<CloseDecision> {
        self.has_waker = true;
        self.state().park_reader(cx.waker());
        self.decision()
    }

    /// Stores the waker of a writer, as [`Self::park_reader`] does.
    fn park_writer(&mut self, cx: &Context<'_>) -> Option<CloseDecision> {
        self.has_waker = true;
        self.state().park_writer(cx.waker());
        self.decision()
    }

    /// Notes the result of a write of `wanted` bytes, and returns it. Returns an error if it is
    /// pending and a close has been decided meanwhile.
    fn note_write(
        &mut self,
        result: Poll<io::Result<usize>>,
        wanted: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.is_write_pending = result.is_pending();
        match &result {
            Poll::Ready(Ok(count)) => self.state().add_written(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if wanted > 0 {
                    self.state().set_write_blocked();
                }
                // hyper calls nothing else while its output does not leave.
                self.tell_unread();
                if let Some(decision) = self.park_writer(cx) {
                    return Poll::Ready(Err(self.closed_error(decision)));
                }
            }
        }
        result
    }

    /// Returns whether a shutdown is followed by lingering.
    fn may_linger(&self) -> bool {
        let state = self.state();
        let is_http = state.is_tracked() && !state.is_upgraded();
        is_http && self.permit.shared().limits.mode == Mode::Enforce
    }

    /// Discards what arrives, until the client or the guard ends it or the limit is reached.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = [MaybeUninit::uninit(); DISCARD_CHUNK_BYTES];
        loop {
            if self.decision().is_some() || self.state().is_linger_over() {
                return Poll::Ready(());
            }
            let mut buf = ReadBuf::uninit(&mut chunk);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.state().add_read(buf.filled().len());
                    if self.state().discarded_bytes() >= MAX_LINGER_BYTES {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    let is_over = self.park_reader(cx).is_some() || self.state().is_linger_over();
                    return if is_over {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    }
}

// === Opening ===

impl Opening {
    /// Returns the opening after more `bytes`. The first letters tell an HTTP/1 method from the
    /// `PRI` of HTTP/2 and the `PROXY` of a proxy.
    fn followed_by(self, bytes: &[u8]) -> Self {
        bytes
            .iter()
            .fold(self, |opening, byte| match (opening, byte) {
                (Self::Http1 | Self::Http2 | Self::Other, _) => opening,
                (Self::Nothing, b'P') => Self::P,
                (Self::P, b'R') => Self::Pr,
                (Self::Pr, b'O') => Self::Pro,
                (Self::Pr, b'I') => Self::Http2,
                (Self::Pro, b'X') => Self::Other,
                (_, b'A'..=b'Z') => Self::Http1,
                _ => Self::Other,
            })
    }
}

/// Returns the opening after more `bytes`. Bytes that are or may be HTTP/2 are read as frames.
#[inline(never)]
fn read_opening(
    mut opening: Opening,
    frames: &mut FrameReader,
    state: &ConnState,
    bytes: &[u8],
) -> Opening {
    let was_http2 = opening == Opening::Http2;
    if !was_http2 {
        opening = opening.followed_by(bytes);
    }
    match opening {
        Opening::Http2 if !was_http2 => {
            frames.read(state, bytes);
            state.set_framed();
        }
        Opening::Http1 | Opening::Other => state.store_frame(0, 0),
        _ => frames.read(state, bytes),
    }
    opening
}

impl<T: Transport> AsyncRead for GuardedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_watched {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        if this.state().is_asked() {
            this.read_and_answer(cx, buf)
        } else {
            this.read_watched(cx, buf)
        }
    }
}

impl<T: Transport> AsyncWrite for GuardedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if !this.is_watched {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        }
        if let Some(decision) = this.decision() {
            return Poll::Ready(Err(this.closed_error(decision)));
        }
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.note_write(result, buf.len(), cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if !this.is_watched {
            return Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        }
        if let Some(decision) = this.decision() {
            return Poll::Ready(Err(this.closed_error(decision)));
        }
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        let wanted = usize::from(bufs.iter().any(|buf| !buf.is_empty()));
        this.note_write(result, wanted, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper calls only this while a handler works and bytes of the client are unread. So a close
    /// decision has to be noticed here, too.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_watched {
            return Pin::new(&mut this.inner).poll_flush(cx);
        }
        this.handle_probe();
        if let Some(decision) = this.decision() {
            return Poll::Ready(Err(this.closed_error(decision)));
        }
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        // If the first read returns a whole request, no read may ever be pending. Then this is the
        // only place where a waker can be stored.
        if (result.is_pending() || !this.has_waker)
            && let Some(decision) = this.park_writer(cx)
        {
            return Poll::Ready(Err(this.closed_error(decision)));
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_watched {
            return Pin::new(&mut this.inner).poll_shutdown(cx);
        }
        loop {
            match this.shutdown {
                Shutdown::NotBegun => {
                    if let Some(decision) = this.decision()
                        && this.close_mode(decision) == CloseMode::Reset
                    {
                        return Poll::Ready(Err(this.closed_error(decision)));
                    }
                    let result = Pin::new(&mut this.inner).poll_shutdown(cx);
                    if result.is_pending()
                        && let Some(decision) = this.park_writer(cx)
                    {
                        return Poll::Ready(Err(this.closed_error(decision)));
                    }
                    ready!(result)?;
                    if this.permit.is_charged() {
                        this.permit.end_charge(); // What is read from now on is not kept.
                    }
                    this.shutdown = if this.may_linger() && this.decision().is_none() {
                        this.state().set_lingering();
                        Shutdown::Lingering
                    } else {
                        Shutdown::Done
                    };
                }
                Shutdown::Lingering => {
                    ready!(this.poll_linger(cx));
                    this.shutdown = Shutdown::Done;
                }
                Shutdown::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_method_in_plain_text_is_an_http1_opening() {
        let opening = |text: &str| {
            let at_once = Opening::Nothing.followed_by(text.as_bytes());
            let byte_by_byte = text.bytes().fold(Opening::Nothing, |opening, byte| {
                opening.followed_by(&[byte])
            });
            assert_eq!(at_once, byte_by_byte);
            at_once
        };
        for text in [
            "G",
            "GET / HTTP/1.1",
            "PU",
            "POST",
            "PROPFIND",
            "PROPPATCH",
            "PATCH",
        ] {
            assert_eq!(opening(text), Opening::Http1, "{text}");
        }
        assert_eq!(opening("PRI * HTTP/2.0"), Opening::Http2);
        for text in ["\u{16}\u{3}\u{1}", "PROXY TCP4", "\r\nGET", "get", "P "] {
            assert_eq!(opening(text), Opening::Other, "{text}");
        }
        for text in ["", "P", "PR", "PRO"] {
            assert!(opening(text) < Opening::Http2, "{text}");
        }
    }
}
