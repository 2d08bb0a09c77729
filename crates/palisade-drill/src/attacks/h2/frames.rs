//! HTTP/2 frames and header blocks as an attacker writes them: any frame, in any order, with fields
//! as literals (RFC 9113, RFC 7541). The h2 crate refuses to write most of what attacks need.

/// The connection preface of a client.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The type of a DATA frame.
pub const DATA: u8 = 0;
/// The type of a HEADERS frame.
pub const HEADERS: u8 = 1;
/// The type of a PRIORITY frame.
pub const PRIORITY: u8 = 2;
/// The type of a `RST_STREAM` frame.
pub const RST_STREAM: u8 = 3;
/// The type of a SETTINGS frame.
pub const SETTINGS: u8 = 4;
/// The type of a PING frame.
pub const PING: u8 = 6;
/// The type of a GOAWAY frame.
pub const GOAWAY: u8 = 7;
/// The type of a `WINDOW_UPDATE` frame.
pub const WINDOW_UPDATE: u8 = 8;
/// The type of a CONTINUATION frame.
pub const CONTINUATION: u8 = 9;
/// The flag of SETTINGS and PING that acknowledges the other side's.
pub const ACK: u8 = 1;
/// The flag of the last frame of a stream.
pub const END_STREAM: u8 = 1;
/// The flag of the last frame of a header block.
pub const END_HEADERS: u8 = 4;
/// The error code of a request that is no longer wanted.
pub const CANCEL: u32 = 8;
/// The setting by which a server offers extended CONNECT (RFC 8441).
pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
/// The setting of the table in which the other side may put fields.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// The setting of the window with which each stream begins.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// The largest payload of a frame in bytes, unless the other side allows more.
pub const MAX_FRAME_BYTES: usize = 16_384;

/// The length of the head of a frame.
const HEAD_BYTES: usize = 9;
/// The bytes of a payload that [`Reader`] keeps: all of a PING, the first of any other.
const KEPT_BYTES: usize = 8;

/// Encodes a frame. A payload beyond 16 MiB is cut, because no frame can hold it.
///
/// ```
/// use palisade_drill::attacks::h2::frames::{PING, frame};
/// assert_eq!(frame(PING, 0, 0, &[7; 8])[..9], [0, 0, 8, 6, 0, 0, 0, 0, 0]);
/// ```
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(0xff_ffff)];
    let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Encodes SETTINGS.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in values {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// Encodes a `WINDOW_UPDATE` of `bytes`; stream 0 is the connection.
pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// Encodes a `RST_STREAM`.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// Encodes `fields` as literals without indexing and without Huffman coding.
///
/// ```
/// use palisade_drill::attacks::h2::frames::block;
/// assert_eq!(block(&[("a", "bc")]), [0, 1, b'a', 2, b'b', b'c']);
/// ```
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Encodes a length as an integer with a prefix of 7 bits (RFC 7541 section 5.1).
fn push_length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(length as u8);
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(128 | (rest % 128) as u8);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// Encodes `fields` as HEADERS and as many CONTINUATION frames as they need.
pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let block = block(fields);
    let mut pieces = block.chunks(MAX_FRAME_BYTES).peekable();
    let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
    while let Some(piece) = pieces.next() {
        let end = u8::from(pieces.peek().is_none()) * END_HEADERS;
        bytes.extend(frame(kind, flags | end, stream, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    bytes
}

/// A received frame without most of its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The type, [`SETTINGS`] for example.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream; 0 is the connection.
    pub stream: u32,
    /// The length of the payload in bytes.
    pub length: usize,
    /// The first bytes of the payload, zero beyond its end.
    pub start: [u8; KEPT_BYTES],
}

impl Received {
    /// Returns whether this HEADERS frame has a status of success, as every server writes the usual
    /// ones (RFC 7541 appendix A: an entry of the static table for 200, 204, 206 and 304).
    ///
    /// ```
    /// use palisade_drill::attacks::h2::frames::{HEADERS, Received};
    /// let start = [0x88, 0, 0, 0, 0, 0, 0, 0];
    /// assert!(Received { kind: HEADERS, start, ..Received::default() }.is_success());
    /// let start = [0x48, 3, b'4', b'2', b'9', 0, 0, 0];
    /// assert!(!Received { kind: HEADERS, start, ..Received::default() }.is_success());
    /// ```
    pub fn is_success(&self) -> bool {
        // A change of the size of the dynamic table may come first (RFC 7541 section 6.3).
        let mut block = self.start.iter().skip_while(|byte| **byte >> 5 == 1);
        self.kind == HEADERS && matches!(block.next(), Some(0x88..=0x8b))
    }
}

/// Tells frames apart in received bytes. It keeps 17 bytes, whatever the server sends.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    frame: Received,
    payload_bytes: usize,
}

impl Reader {
    /// Reads `bytes`, which may begin and end anywhere in a frame, and calls `on` with each frame
    /// that is complete.
    ///
    /// ```
    /// use palisade_drill::attacks::h2::frames::{PING, Reader, frame};
    /// let (mut reader, mut seen) = (Reader::default(), Vec::new());
    /// for byte in frame(PING, 0, 0, b"12345678") {
    ///     reader.read(&[byte], |frame| seen.push((frame.kind, frame.start)));
    /// }
    /// assert_eq!(seen, [(PING, *b"12345678")]);
    /// ```
    pub fn read(&mut self, mut bytes: &[u8], mut on: impl FnMut(Received)) {
        loop {
            if self.head_bytes < HEAD_BYTES {
                let taken = bytes.len().min(HEAD_BYTES - self.head_bytes);
                let (now, rest) = bytes.split_at(taken);
                self.head[self.head_bytes..][..taken].copy_from_slice(now);
                self.head_bytes += taken;
                bytes = rest;
                if self.head_bytes < HEAD_BYTES {
                    return;
                }
                let [a, b, c, kind, flags, d, e, f, g] = self.head;
                self.frame = Received {
                    kind,
                    flags,
                    stream: u32::from_be_bytes([d & 0x7f, e, f, g]),
                    length: u32::from_be_bytes([0, a, b, c]) as usize,
                    start: [0; KEPT_BYTES],
                };
            }
            let taken = bytes.len().min(self.frame.length - self.payload_bytes);
            let (now, rest) = bytes.split_at(taken);
            for (kept, byte) in self
                .frame
                .start
                .iter_mut()
                .skip(self.payload_bytes)
                .zip(now)
            {
                *kept = *byte;
            }
            self.payload_bytes += taken;
            bytes = rest;
            if self.payload_bytes < self.frame.length {
                return;
            }
            on(self.frame);
            (self.head_bytes, self.payload_bytes) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_block_is_continued_and_ends_once() {
        let value = "v".repeat(40_000);
        let bytes = headers(1, END_STREAM, &[("name", &value)]);
        let (mut reader, mut seen) = (Reader::default(), Vec::new());
        for piece in bytes.chunks(7) {
            reader.read(piece, |frame| seen.push((frame.kind, frame.flags)));
        }
        let expected = [
            (HEADERS, END_STREAM),
            (CONTINUATION, 0),
            (CONTINUATION, END_HEADERS),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_length_of_more_than_a_prefix_is_encoded_in_groups_of_seven_bits() {
        let encoded = |length| {
            let mut block = Vec::new();
            push_length(&mut block, length);
            block
        };
        assert_eq!(encoded(126), [126]);
        assert_eq!(encoded(127), [127, 0]);
        // The example of RFC 7541 appendix C.1.2 with a prefix of 7 bits.
        assert_eq!(encoded(1337), [127, 0b1011_1010, 9]);
    }

    #[test]
    fn a_frame_of_no_payload_is_complete_with_its_head() {
        let (mut reader, mut seen) = (Reader::default(), 0);
        let bytes = [settings(&[]), settings(&[(1, 2)])].concat();
        reader.read(&bytes, |frame| seen += frame.length);
        assert_eq!(seen, 6);
    }
}
