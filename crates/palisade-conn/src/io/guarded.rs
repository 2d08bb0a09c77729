//! The socket under watch.

use super::{frames::FrameReader, transport::Transport};
use crate::{
    connection::{
        ConnHandle,
        decision::{CloseDecision, CloseMode, CloseRequest},
        permit::Permit,
        state::ConnState,
    },
    guard::{close::close, limits::MAX_LINGER_BYTES},
};
use palisade_core::{Mode, Reason};
use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So many bytes are thrown away at a time.
const DISCARD_CHUNK_BYTES: usize = 8 * 1024;
/// What a client of HTTP/1 is told whose head took too long.
const TIMEOUT_RESPONSE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A connection that its guard watches over.
///
/// It counts bytes, and ends when its guard says so: after a decision a reader sees the end of the
/// stream or an error, a writer an error, whichever of them asks next, and both are woken. The
/// error holds a [`Violation`](palisade_core::Violation). A client of plain HTTP/1 whose head took too long is answered 408
/// first, if his socket takes that at once, and then it ends in good order. Its place is free when it is dropped, and not before: an upgraded
/// connection keeps it. `Upgraded::downcast` has to name `TokioIo<GuardedIo<T>>` under a loop over
/// hyper; under `axum::serve` hyper-util's `auto::upgrade::downcast` is the one to call.
///
/// Shut down, it sends its FIN and then reads what the client is still sending, and throws it
/// away, until nothing comes for 1 s, and for at most 30 s or 64 MiB: else the kernel would reset
/// the connection, and a client whose upload was refused would not see why. Where places are short
/// such a connection is the first to go. It does so only for HTTP that is
/// [tracked for](crate#accounting), never for what was upgraded.
///
/// Dropping a future that reads or writes loses nothing.
#[derive(Debug)]
pub struct GuardedIo<T> {
    inner: T,
    permit: Permit,
    is_watched: bool,
    /// Whether somebody can be woken at all.
    is_parked: bool,
    /// Whether the latest write could not be done.
    is_writing: bool,
    opening: Opening,
    frames: FrameReader,
    farewell: Farewell,
    shutdown: Shutdown,
}

/// What the first bytes of the client say, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Opening {
    Nothing,
    P,
    Pr,
    Pro,
    /// HTTP/2, in clear text.
    Http2,
    /// The method of a request of HTTP/1, in plain text.
    Http1,
    /// TLS, a proxy's word, or something else.
    Other,
}

/// Whether a decision came with a word to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    Undecided,
    Sent,
    None,
}

#[derive(Clone, Copy, Debug)]
enum Shutdown {
    NotBegun,
    Lingering,
    Done,
}

impl<T> GuardedIo<T> {
    /// What is known of the connection.
    pub fn conn(&self) -> &ConnHandle {
        self.permit.conn()
    }

    /// What it runs over.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    fn state(&self) -> &ConnState {
        self.permit.conn().state()
    }
}

impl<T: Transport> GuardedIo<T> {
    pub(crate) fn new(inner: T, permit: Permit) -> Self {
        inner.prepare();
        if permit.shared().limits.mode == Mode::Enforce {
            inner.give_up_after(permit.shared().limits.give_up_after());
        }
        let is_watched = permit.shared().limits.mode != Mode::Off;
        Self {
            inner,
            permit,
            is_watched,
            is_parked: false,
            is_writing: false,
            opening: Opening::Nothing,
            frames: FrameReader::new(),
            farewell: Farewell::Undecided,
            shutdown: Shutdown::NotBegun,
        }
    }

    #[inline]
    fn decision(&self) -> Option<CloseDecision> {
        self.state().decision()
    }

    /// What whoever cannot be told of an end in good order is told.
    #[cold]
    fn closed_error(&mut self, decision: CloseDecision) -> io::Error {
        let kind = match self.close_mode(decision) {
            CloseMode::Graceful => io::ErrorKind::BrokenPipe,
            CloseMode::Reset => {
                self.farewell = Farewell::None;
                self.inner.reset_on_close();
                io::ErrorKind::ConnectionAborted
            }
        };
        let phase = self.state().stats().phase();
        let request = CloseRequest::without_numbers(decision.reason, decision.mode, phase);
        io::Error::new(kind, request.violation())
    }

    /// Whoever was told why is not reset.
    fn close_mode(&self, decision: CloseDecision) -> CloseMode {
        if self.farewell == Farewell::Sent {
            CloseMode::Graceful
        } else {
            decision.mode
        }
    }

    /// Says 408 to a client who began a head of HTTP/1, where no answer can be on its way.
    fn send_timeout(&mut self, decision: CloseDecision, cx: &mut Context<'_>) {
        let stats = self.state().stats();
        let nothing_is_sent = match decision.reason {
            Reason::FirstRequest => stats.written == 0,
            Reason::SlowHead => stats.in_flight == 0 && !stats.http2,
            _ => false,
        };
        self.farewell = Farewell::None;
        if !nothing_is_sent || self.opening != Opening::Http1 || self.is_writing {
            return;
        }
        if let Poll::Ready(Ok(count)) = Pin::new(&mut self.inner).poll_write(cx, TIMEOUT_RESPONSE) {
            self.state().add_written(count);
            if count == TIMEOUT_RESPONSE.len() {
                self.farewell = Farewell::Sent;
            }
        }
    }

    #[cold]
    fn read_after(
        &mut self,
        decision: CloseDecision,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.farewell == Farewell::Undecided {
            self.send_timeout(decision, cx);
        }
        match self.close_mode(decision) {
            CloseMode::Graceful => Poll::Ready(Ok(())),
            CloseMode::Reset => Poll::Ready(Err(self.closed_error(decision))),
        }
    }

    /// Looks after the client if it was asked to, and ends the connection if he is gone.
    #[inline]
    fn answer_probe(&self) {
        if self.state().take_probe() {
            self.check_client();
        }
    }

    #[cold]
    #[inline(never)]
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

    /// Nothing to read. `None` if a decision came meanwhile.
    fn park_reader(&mut self, cx: &Context<'_>) -> Option<CloseDecision> {
        self.is_parked = true;
        self.state().park_reader(cx.waker());
        self.decision()
    }

    fn park_writer(&mut self, cx: &Context<'_>) -> Option<CloseDecision> {
        self.is_parked = true;
        self.state().park_writer(cx.waker());
        self.decision()
    }

    /// What writing came to.
    fn note_write(
        &mut self,
        result: Poll<io::Result<usize>>,
        wanted: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.is_writing = result.is_pending();
        match &result {
            Poll::Ready(Ok(count)) => self.state().add_written(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if wanted > 0 {
                    self.state().set_write_blocked();
                }
                if let Some(decision) = self.park_writer(cx) {
                    return Poll::Ready(Err(self.closed_error(decision)));
                }
            }
        }
        result
    }

    fn may_linger(&self) -> bool {
        let state = self.state();
        let is_http = state.is_tracked() && !state.is_upgraded();
        is_http && self.permit.shared().limits.mode == Mode::Enforce
    }

    /// Throws away what comes, until nothing does or it was enough.
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
    /// What it is, and which letters it takes to know that it is none of HTTP/2's `PRI` and a
    /// proxy's `PROXY`.
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

/// What the connection began with, after these bytes of it as well. Those of HTTP/2, and of what may
/// be, go through its frames.
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
        this.answer_probe();
        if let Some(decision) = this.decision() {
            return this.read_after(decision, cx);
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) => {
                let new = buf.filled().get(before..).unwrap_or_default();
                let state = this.permit.conn().state();
                if this.opening <= Opening::Http2 {
                    this.opening = read_opening(this.opening, &mut this.frames, state, new);
                }
                state.add_read(new.len());
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if let Some(decision) = this.park_reader(cx) {
                    return this.read_after(decision, cx);
                }
            }
        }
        result
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

    /// hyper calls nothing but this while a handler works and unread bytes of the client are
    /// left: a decision has to be seen here, too.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_watched {
            return Pin::new(&mut this.inner).poll_flush(cx);
        }
        this.answer_probe();
        if let Some(decision) = this.decision() {
            return Poll::Ready(Err(this.closed_error(decision)));
        }
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        // A request that was here when it was first looked for may be the only one that is ever
        // read; then this is the one place where there is anybody to wake.
        if (result.is_pending() || !this.is_parked)
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
    fn only_the_method_of_a_request_in_plain_text_is_taken_for_one() {
        let opening = |text: &str| {
            let at_once = Opening::Nothing.followed_by(text.as_bytes());
            let one_by_one = text.bytes().fold(Opening::Nothing, |opening, byte| {
                opening.followed_by(&[byte])
            });
            assert_eq!(at_once, one_by_one);
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
