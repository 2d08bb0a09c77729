//! The look at a connection's first bytes, however they come. `tests/fuzz_bodies.rs` runs the same
//! as a property test.

#[allow(dead_code, unreachable_pub, reason = "not all of it is looked at here")]
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

/// What comes, a piece at a time with a pause before each, and then the end.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    pauses: bool,
    given: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.pauses = !self.pauses;
        if self.pauses {
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            self.given += piece.len();
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// HTTP/2 is what begins with the preface and nothing else is; no more is taken for that than the
/// preface is long; and every byte is read afterwards, once and in order.
pub(crate) fn sniff(data: &[u8]) {
    let [kind, length, data @ ..] = data else {
        return;
    };
    // Most of what is random would differ in its first byte.
    let shared = usize::from(*kind) % (PREFACE.len() + 1);
    let whole = [&PREFACE[..shared], data].concat();
    let length = 1 + usize::from(*length) % 30;
    let pieces = whole.chunks(length).map(<[u8]>::to_vec).collect();
    let mut io = Rewind::new(Pieces {
        pieces,
        pauses: kind & 32 == 0,
        given: 0,
    });

    let cx = &mut Context::from_waker(Waker::noop());
    let begins = loop {
        if let Poll::Ready(begins) = io.poll_begins(cx) {
            break begins.expect("nothing fails here");
        }
    };
    let expected = match () {
        () if whole.is_empty() => Begins::Nothing,
        () if whole.starts_with(PREFACE) => Begins::Http2,
        () => Begins::Http1,
    };
    assert_eq!(begins, expected, "{whole:?}");
    assert!(io.get_ref().given <= PREFACE.len());

    let mut read = Vec::new();
    let mut room = [0; 7];
    loop {
        let mut buf = ReadBuf::new(&mut room);
        match Pin::new(&mut io).poll_read(cx, &mut buf) {
            Poll::Ready(result) => result.expect("nothing fails here"),
            Poll::Pending => continue,
        }
        if buf.filled().is_empty() {
            break;
        }
        read.extend_from_slice(buf.filled());
    }
    assert_eq!(read, whole);
}
