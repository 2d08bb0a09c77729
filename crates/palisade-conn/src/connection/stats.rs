//! Snapshots of a connection's counters, and the phase that they show.

use palisade_core::Phase;

/// The counters of a connection at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnStats {
    /// Bytes read from the client.
    pub(crate) read: u64,
    /// Bytes that the kernel took for the client.
    pub(crate) written: u64,
    /// Whether bytes wait that the kernel does not take.
    pub(crate) write_blocked: bool,
    /// For how many seconds it took none, as of the last sweep; at most 255.
    pub(crate) stalled: u8,
    /// Whether bytes waited when the writer was asked whether it still writes, and the writer has
    /// not reported since.
    pub(crate) asked: bool,
    /// Whether all responses are sent and what the client still sends is discarded.
    pub(crate) lingering: bool,
    /// Whether requests are reported. If not, there seem to be none.
    pub(crate) tracked: bool,
    /// Whether the connection has become, or carries, something other than HTTP.
    pub(crate) upgraded: bool,
    /// Whether the latest request was HTTP/2.
    pub(crate) http2: bool,
    /// Request heads so far.
    pub(crate) requests: u32,
    /// Requests whose response body has not ended.
    pub(crate) in_flight: u32,
    /// On HTTP/2, those of them of whose response more is ready than the client takes.
    pub(crate) waiting: u32,
    /// Whether a request with a body is in flight, or was since the last sweep. HTTP/2 only.
    pub(crate) uploading: bool,
    /// Requests whose response was sent completely.
    pub(crate) answered: u32,
    /// Requests that ended before their response did.
    pub(crate) cancelled: u32,
    /// Those of them that the client cancelled within a second, less those that were forgiven
    /// since; at most 65,535.
    pub(crate) early: u16,
    /// Whether bytes came that do not belong to the latest request, as far as its end is known.
    /// HTTP/1 only.
    pub(crate) more_was_read: bool,
    /// Whether more of the latest request's body is to come. Whether it is answered or not, no
    /// other head can come first. HTTP/1 only.
    pub(crate) body_left: bool,
    /// Whether the end of the latest request's body is unknown. HTTP/1 only.
    pub(crate) unmeasured: bool,
    /// Whether the server sends GOAWAY to a client that is to begin no more requests.
    pub(crate) goaway: bool,
    /// Whether the socket found nothing when it was last read.
    pub(crate) awaits_read: bool,
    /// Whether the task of the socket has run since the guard asked it to look for bytes, and the
    /// client has made no progress since.
    pub(crate) looked: bool,
    /// Whether [`data`](Self::data) is exact.
    pub(crate) framed: bool,
    /// The low half of the bytes read that are payload of HTTP/2 DATA frames.
    pub(crate) data: u32,
}

/// The counters of a connection on which nothing is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdleStats {
    /// As [`ConnStats::read`].
    pub(crate) read: u64,
    /// As [`ConnStats::written`].
    pub(crate) written: u64,
    /// As [`ConnStats::requests`].
    pub(crate) requests: u32,
}

impl ConnStats {
    /// Returns the phase that users see.
    pub(crate) fn phase(&self) -> Phase {
        match self.timed_phase() {
            timed @ (Phase::Lingering | Phase::FirstHead) => timed,
            _ if self.write_blocked => Phase::Writing,
            timed => timed,
        }
    }

    /// Returns the phase whose deadline runs.
    ///
    /// It ignores whether the socket is full, which has a deadline of its own beside the others:
    /// otherwise a client could stop any deadline by not reading for a moment.
    pub(crate) fn timed_phase(&self) -> Phase {
        if self.lingering {
            Phase::Lingering
        } else if self.upgraded && !(self.http2 && self.in_flight > 0) {
            Phase::Upgraded
        } else if !self.tracked {
            // Requests are not reported: only silence can be recognised.
            if self.read == 0 {
                Phase::FirstHead
            } else {
                Phase::Working
            }
        } else if self.in_flight > 0 {
            // On HTTP/2 the socket does not show that a client has shut its window.
            let all_wait = self.http2 && !self.upgraded && self.waiting >= self.in_flight;
            if all_wait {
                Phase::Writing
            } else {
                Phase::Working
            }
        } else if self.requests == 0 {
            Phase::FirstHead
        } else if self.body_left {
            // The handler may be reading it in a task of its own. If not, hyper closes the
            // connection.
            Phase::RequestBody
        } else if self.more_was_read {
            Phase::NextHead
        } else {
            Phase::Idle
        }
    }

    /// Returns whether bytes of a request body are to come, as far as is known, from a client that
    /// the socket waits for.
    pub(crate) fn awaits_body(&self) -> bool {
        if self.http2 {
            self.uploading
        } else {
            (self.body_left || self.unmeasured) && self.awaits_read
        }
    }

    /// Returns whether a response waits for an HTTP/2 window, which the socket does not show.
    /// Other streams may be working beside it.
    pub(crate) fn has_shut_windows(&self) -> bool {
        self.http2 && !self.upgraded && self.waiting > 0
    }

    /// Returns the low half of the number of bytes sent. On HTTP/2 it counts only those beyond
    /// the answers to what the client sends beside DATA.
    pub(crate) fn sent_bytes(&self) -> u32 {
        let written = self.written as u32;
        if self.http2 {
            written.wrapping_sub((self.read as u32).wrapping_sub(self.data))
        } else {
            written
        }
    }
}
