//! HTTP/2 frames (RFC 9113): encoded, parsed and read one by one.

use crate::clients::PATIENCE;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

pub use palisade_drill::attacks::h2::frames::{
    ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE,
    MAX_FRAME_BYTES as FRAME, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, block,
    frame, headers, settings, window_update as open,
};
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns the error code of `RST_STREAM` or GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let code = match self.kind {
            RST_STREAM => self.payload.get(..4)?,
            GOAWAY => self.payload.get(4..8)?,
            _ => return None,
        };
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }

    /// Returns the status of a response as the `h2` crate encodes it: the first field of
    /// HEADERS, from the static table or as a Huffman-coded literal.
    pub fn status(&self) -> Option<u16> {
        match (self.kind, &self.payload[..]) {
            (HEADERS, [0x88, ..]) => Some(200),
            (HEADERS, [0x8c, ..]) => Some(400),
            (HEADERS, [0x8d, ..]) => Some(404),
            (HEADERS, [0x8e, ..]) => Some(500),
            (HEADERS, [0x48, 0x83, 0x69, 0x90, 0xff, ..]) => Some(431),
            (HEADERS, [0x48, 0x82, 0x6c, 0x01, ..]) => Some(501),
            _ => None,
        }
    }
}

/// Parses the frames in `bytes`. An incomplete last frame is left out.
pub fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((&[a, b, c, kind, flags, d, e, f, g], rest)) = bytes.split_first_chunk() {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        let stream = u32::from_be_bytes([d, e, f, g]);
        frames.push(Frame {
            kind,
            flags,
            stream,
            payload: payload.to_vec(),
        });
        bytes = rest;
    }
    frames
}

/// Reads the next frame.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Frame {
    let read = async {
        let mut head = [0; 9];
        from.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, d, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        from.read_exact(&mut payload).await.unwrap();
        Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([d, e, f, g]),
            payload,
        }
    };
    timeout(PATIENCE, read).await.unwrap()
}

/// Reads up to the next frame of `kind` on `stream` and returns its payload. Other frames are
/// skipped.
pub async fn next(from: &mut (impl AsyncRead + Unpin), kind: u8, stream: u32) -> Vec<u8> {
    let next = async {
        loop {
            let frame = read(from).await;
            if (frame.kind, frame.stream) == (kind, stream) {
                return frame.payload;
            }
        }
    };
    timeout(PATIENCE, next).await.unwrap()
}

/// Encodes the preface, SETTINGS with an initial stream window of `window`, and a
/// `WINDOW_UPDATE` that opens the connection's window fully.
pub fn hello(window: u32) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(settings(&[(INITIAL_WINDOW_SIZE, window)]));
    bytes.extend(open(0, 0x7fff_0000));
    bytes
}

/// Encodes a request for a WebSocket at `path` on `stream` (RFC 8441).
pub fn websocket(stream: u32, path: &str) -> Vec<u8> {
    // :method as a literal, :scheme indexed, :path and :authority as literals, then two fields
    // with literal names.
    let literal = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
    let block = [
        vec![0x02],
        literal("CONNECT"),
        vec![0x86, 0x04],
        literal(path),
        vec![0x01],
        literal("a"),
        vec![0x00],
        literal(":protocol"),
        literal("websocket"),
        vec![0x00],
        literal("sec-websocket-version"),
        literal("13"),
    ];
    frame(HEADERS, END_HEADERS, stream, &block.concat())
}

/// Encodes a request `GET path` without a body on `stream`.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    // :method GET and :scheme http indexed, then :path and :authority as literals.
    let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'a']);
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}
