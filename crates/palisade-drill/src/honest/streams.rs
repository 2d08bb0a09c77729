//! An HTTP/2 client with three requests at once, of which the second is refused. Pure.
//!
//! The second has more cookies than most servers take, as a browser has after years: the
//! server answers 431, or resets that stream. Whatever becomes of it, the others are to be served.

use super::pace::H2_STREAMS;
use crate::{
    attacks::h2::frames::{
        ACK, DATA, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PING, PREFACE, RST_STREAM,
        Reader, Received, SETTINGS, frame, headers, settings, window_update,
    },
    plan::Plan,
    sample::Outcome,
};

/// The settings of the client: no table for header fields, so that each answer is written alike,
/// and no pushes.
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
/// The window of each stream: more than a body may have.
const WINDOW_BYTES: u32 = 4 << 20;
/// The cookies of the stream that is refused: 27 KiB, as HTTP/2 counts them.
const COOKIES: usize = 200;
const COOKIE_BYTES: usize = 100;
/// The flag of a frame with padding.
const PADDED: u8 = 8;
/// The number of the stream that is refused, among all.
const REFUSED: usize = 1;

/// The answer that a stream is to have: a status, and a length if it is always the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(super) status: u16,
    pub(super) length: Option<usize>,
}

/// One stream as the client sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    status: Option<u16>,
    length: usize,
    ended: bool,
    was_reset: bool,
}

/// The client side of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    reader: Reader,
    streams: [Stream; H2_STREAMS],
    /// The last stream that the server answers.
    last: Option<u32>,
}

/// Returns all that the client sends first.
pub(super) fn opening(plan: &Plan) -> Vec<u8> {
    let values = [
        (HEADER_TABLE_SIZE, 0),
        (ENABLE_PUSH, 0),
        (INITIAL_WINDOW_SIZE, WINDOW_BYTES),
    ];
    let mut bytes = [PREFACE, &settings(&values)].concat();
    bytes.extend(window_update(0, WINDOW_BYTES * H2_STREAMS as u32));
    let cookie = format!("c={}", "x".repeat(COOKIE_BYTES - 2));
    for at in 0..H2_STREAMS {
        let mut fields = plan.fields("GET", &plan.get);
        if at == REFUSED {
            fields.extend(std::iter::repeat_n(("cookie", &*cookie), COOKIES));
        }
        bytes.extend(headers(number(at), END_STREAM, &fields));
    }
    bytes
}

fn number(at: usize) -> u32 {
    2 * at as u32 + 1
}

impl Streams {
    /// Reads `bytes`. Returns what is to be sent in answer.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Self {
            reader,
            streams,
            last,
        } = self;
        let mut replies = Vec::new();
        reader.read(bytes, |received| match received.kind {
            SETTINGS if received.flags & ACK == 0 => {
                replies.extend(frame(SETTINGS, ACK, 0, &[]));
            }
            PING if received.flags & ACK == 0 => {
                replies.extend(frame(PING, ACK, 0, &received.start));
            }
            GOAWAY => {
                let [a, b, c, d, ..] = received.start;
                *last = Some(u32::from_be_bytes([a & 127, b, c, d]));
            }
            _ => {
                let stream = (0..H2_STREAMS).find(|at| number(*at) == received.stream);
                if let Some(stream) = stream.and_then(|at| streams.get_mut(at)) {
                    stream.read(&received);
                }
            }
        });
        replies
    }

    /// Returns what became of the requests, when that is certain: the refused one has ended
    /// somehow, and the others are answered as `expected`.
    pub(super) fn outcome(&self, expected: Option<Expected>) -> Option<Outcome> {
        for (at, stream) in self.streams.iter().enumerate() {
            if at == REFUSED {
                continue;
            }
            let is_given_up = self.last.is_some_and(|last| number(at) > last);
            if stream.was_reset || is_given_up {
                return Some(Outcome::Cut);
            }
            if let (Some(status), Some(expected)) = (stream.status, expected)
                && status != expected.status
            {
                return Some(Outcome::Status(status));
            }
            if stream.ended
                && let Some(length) = expected.and_then(|expected| expected.length)
                && length != stream.length
            {
                return Some(Outcome::WrongBody);
            }
        }
        // A server that has given the refused stream up answers nothing more on it.
        let given_up = self.last.is_some_and(|last| number(REFUSED) > last);
        let all = self.streams.iter().enumerate();
        let mut all = all.map(|(at, stream)| stream.ended || at == REFUSED && given_up);
        all.all(|is_over| is_over).then_some(Outcome::Served)
    }

    /// Returns the answer of the streams that are to be served, to expect it again.
    pub(super) fn learn(&self) -> Option<Expected> {
        let [first, _, other] = self.streams;
        let status = first.status.filter(|status| (200..300).contains(status))?;
        let length = (first.length == other.length).then_some(first.length);
        Some(Expected { status, length })
    }
}

impl Stream {
    fn read(&mut self, received: &Received) {
        match received.kind {
            HEADERS => {
                // Trailers have no status.
                self.status = self.status.or_else(|| status(received));
                // An informational answer is followed by another.
                self.status = self.status.filter(|status| *status >= 200);
            }
            DATA => {
                let padding = match received.flags & PADDED {
                    0 => 0,
                    _ => 1 + usize::from(received.start[0]),
                };
                self.length += received.length.saturating_sub(padding);
            }
            RST_STREAM => {
                // A reset after the whole answer says that the request's rest is not wanted.
                self.was_reset = !self.ended;
                self.ended = true;
            }
            _ => {}
        }
        if matches!(received.kind, HEADERS | DATA) && received.flags & END_STREAM != 0 {
            self.ended = true;
        }
    }
}

/// Returns the status of a header block, which begins with it (RFC 9113 section 8.3.2), if the
/// block needs no table but the static one.
fn status(received: &Received) -> Option<u16> {
    let mut block = &received.start[..received.start.len().min(received.length)];
    if received.flags & PADDED != 0 {
        block = block.get(1..)?;
    }
    // An update of the table's size: a number with a prefix of 5 bits, 0 for this client.
    while let [0x20..=0x3e, rest @ ..] = block {
        block = rest;
    }
    match block {
        [field @ 0x88..=0x8e, ..] => {
            let known = [200, 204, 206, 304, 400, 404, 500];
            known.get(usize::from(field - 0x88)).copied()
        }
        // A literal with the name of the static table, indexed, not indexed or never indexed.
        [name, 3, a, b, c, ..] if (8..15).contains(&(name & 15)) => {
            std::str::from_utf8(&[*a, *b, *c]).ok()?.parse().ok()
        }
        [name, length @ 0x82..=0x83, code @ ..] if (8..15).contains(&(name & 15)) => {
            digits(code.get(..usize::from(length & 127))?)
        }
        _ => None,
    }
}

/// Decodes three digits in Huffman's code (RFC 7541 appendix B).
fn digits(code: &[u8]) -> Option<u16> {
    let bits = code
        .iter()
        .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    let (mut left, mut number) = (8 * code.len() as u32, 0);
    for _ in 0..3 {
        let peek = |count: u32| (bits >> left.checked_sub(count)?).checked_rem(1 << count);
        let digit = match (peek(5)?, peek(6)) {
            (short @ 0..=2, _) => {
                left -= 5;
                short
            }
            (_, Some(long @ 0x19..=0x1f)) => {
                left -= 6;
                long - 0x19 + 3
            }
            _ => return None,
        };
        number = 10 * number + digit as u16;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Expected = Expected {
        status: 200,
        length: Some(5),
    };

    fn answer(stream: u32, block: &[u8]) -> Vec<u8> {
        let body = frame(DATA, END_STREAM, stream, b"hello");
        [frame(HEADERS, 4, stream, block), body].concat()
    }

    fn after(bytes: &[u8]) -> Option<Outcome> {
        let mut streams = Streams::default();
        for piece in bytes.chunks(3) {
            streams.read(piece);
        }
        streams.outcome(Some(OK))
    }

    #[test]
    fn the_second_of_three_streams_has_more_cookies_than_most_servers_take() {
        let bytes = opening(&Plan::new("a"));
        let (mut reader, mut seen) = (Reader::default(), Vec::new());
        reader.read(&bytes[PREFACE.len()..], |frame| {
            seen.push((frame.kind, frame.stream));
        });
        let (continuation, window) = (9, 8);
        let expected = [
            (SETTINGS, 0),
            (window, 0),
            (HEADERS, 1),
            (HEADERS, 3),
            (continuation, 3),
            (HEADERS, 5),
        ];
        assert_eq!(seen, expected);
        assert!((20_000..32_000).contains(&bytes.len()), "{}", bytes.len());
    }

    #[test]
    fn a_refused_stream_is_no_harm_and_its_neighbours_must_be_served() {
        let refusals = [
            frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]),
            frame(HEADERS, 4 | END_STREAM, 3, b"\x48\x03431"),
            answer(3, &[0x88]),
        ];
        for refusal in refusals {
            let neighbours = [answer(1, &[0x88]), answer(5, &[0x88])];
            assert_eq!(after(&neighbours.concat()), None);
            let all = [refusal, neighbours.concat()].concat();
            assert_eq!(after(&all), Some(Outcome::Served));
        }
    }

    #[test]
    fn a_neighbour_that_is_reset_or_refused_or_given_up_is_harm() {
        let reset = frame(RST_STREAM, 0, 5, &[0; 4]);
        assert_eq!(after(&reset), Some(Outcome::Cut));
        let given_up = frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 11]);
        assert_eq!(after(&given_up), Some(Outcome::Cut));
        let busy = answer(1, b"\x48\x03503");
        assert_eq!(after(&busy), Some(Outcome::Status(503)));
        let short = [frame(HEADERS, 4, 1, &[0x88]), frame(DATA, 1, 1, b"hell")].concat();
        assert_eq!(after(&short), Some(Outcome::WrongBody));
        // Padding is no body, and an early answer is none.
        let padded = frame(DATA, END_STREAM | PADDED, 1, b"\x02hello\0\0");
        let hints = frame(HEADERS, 4, 1, b"\x48\x03103");
        let early = [hints, frame(HEADERS, 4, 1, &[0x20, 0x88]), padded].concat();
        assert_eq!(after(&early), None);
    }

    #[test]
    fn settings_and_pings_are_acknowledged() {
        let mut streams = Streams::default();
        let bytes = [settings(&[]), frame(PING, 0, 0, b"12345678")].concat();
        let expected = [
            frame(SETTINGS, ACK, 0, &[]),
            frame(PING, ACK, 0, b"12345678"),
        ];
        assert_eq!(streams.read(&bytes), expected.concat());
        assert!(streams.read(&expected.concat()).is_empty());
    }

    #[test]
    fn a_status_is_read_however_it_is_written() {
        let read = |block: &[u8]| {
            let mut start = [0; 8];
            start[..block.len()].copy_from_slice(block);
            status(&Received {
                kind: HEADERS,
                length: block.len(),
                start,
                ..Received::default()
            })
        };
        assert_eq!(read(&[0x8d]), Some(404));
        assert_eq!(read(b"\x08\x03429"), Some(429));
        // The example of RFC 7541 appendix C.6.1: 302 in Huffman's code.
        assert_eq!(read(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        // 503 needs 17 bits: 011011 00000 011001, and ones to the end.
        assert_eq!(read(&[0x48, 0x83, 0x6c, 0x0c, 0xff]), Some(503));
        for block in [
            &[][..],
            &[0x48],
            &[0x48, 0x82, 0xff, 0xff],
            &[0x48, 3, b'a'],
            &[0xc0],
        ] {
            assert_eq!(read(block), None, "{block:?}");
        }
    }
}
