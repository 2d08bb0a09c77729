//! Protocol detection from the first bytes of a connection, in pieces of any length.
//! `tests/fuzz_bodies.rs` runs the same as a property test.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "not all of the module is tested here"
)]
#[path = "../crates/palisade-serve/src/sniff.rs"]
mod source;

use source::{Begins, PREFACE, Rewind};
use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, ReadBuf};

/// A reader that returns the pieces one by one, with a pause before each, and then the end.
struct PiecewiseReader {
    pieces: VecDeque<Vec<u8>>,
    /// The last poll has paused.
    paused: bool,
    /// The number of bytes read so far.
    read_bytes: usize,
}

impl AsyncRead for PiecewiseReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.paused = !self.paused;
        if self.paused {
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            self.read_bytes += piece.len();
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Checks that a connection is detected as HTTP/2 if and only if it begins with the preface, that
/// the detection reads at most the length of the preface, and that every byte is read afterwards,
/// once and in order.
pub(crate) fn sniff(data: &[u8]) {
    let [kind, length, data @ ..] = data else {
        return;
    };
    // Begin with a part of the preface, because random bytes mostly differ in the first byte.
    let shared = usize::from(*kind) % (PREFACE.len() + 1);
    let whole = [&PREFACE[..shared], data].concat();
    let length = 1 + usize::from(*length) % 30;
    let pieces = whole.chunks(length).map(<[u8]>::to_vec).collect();
    let mut io = Rewind::new(PiecewiseReader {
        pieces,
        paused: kind & 32 == 0,
        read_bytes: 0,
    });

    let cx = &mut Context::from_waker(Waker::noop());
    let begins = loop {
        if let Poll::Ready(begins) = io.poll_begins(cx) {
            break begins.expect("reads do not fail");
        }
    };
    let expected = match () {
        () if whole.is_empty() => Begins::Nothing,
        () if whole.starts_with(PREFACE) => Begins::Http2,
        () => Begins::Http1,
    };
    assert_eq!(begins, expected, "{whole:?}");
    assert!(io.get_ref().read_bytes <= PREFACE.len());

    let mut read = Vec::new();
    let mut room = [0; 7];
    loop {
        let mut buf = ReadBuf::new(&mut room);
        match Pin::new(&mut io).poll_read(cx, &mut buf) {
            Poll::Ready(result) => result.expect("reads do not fail"),
            Poll::Pending => continue,
        }
        if buf.filled().is_empty() {
            break;
        }
        read.extend_from_slice(buf.filled());
    }
    assert_eq!(read, whole);
}
