//! One request after the other on a connection, as bytes: for clients that are to cost little.

use crate::Protocol;

/// The preface of RFC 9113 section 3.4, empty SETTINGS, and all the window there may be for the
/// connection.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
                       \0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// What is said on one connection, and how far it has got.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    protocol: Protocol,
    requests: u32,
    status: u16,
    is_last: bool,
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of HTTP/2 200, or 0 for any other.
    pub status: u16,
    /// The server takes no more requests on this connection.
    pub is_last: bool,
}

impl Exchange {
    /// On a fresh connection.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            requests: 0,
            status: 0,
            is_last: false,
        }
    }

    /// The next `GET` of `path`, which is shorter than 100 bytes.
    pub fn request(&mut self, path: &str) -> Vec<u8> {
        self.requests += 1;
        if self.protocol == Protocol::Http1 {
            return format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into();
        }
        let mut bytes = if self.requests == 1 {
            HELLO.to_vec()
        } else {
            Vec::new()
        };
        // GET, http, the path and the authority as literals (RFC 7541 section 6.2.2).
        let mut block = b"\x82\x86\x04".to_vec();
        block.push(path.len() as u8);
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(b"\x01\x09localhost");
        bytes.extend_from_slice(&[0, 0, block.len() as u8, HEADERS, 5]);
        bytes.extend_from_slice(&(self.requests * 2 - 1).to_be_bytes());
        bytes.extend_from_slice(&block);
        bytes
    }

    /// Takes what is whole out of `received`; the answer to the latest request, if that is here to
    /// its end.
    pub fn answer(&mut self, received: &mut Vec<u8>) -> Option<Answer> {
        match self.protocol {
            Protocol::Http1 => {
                let answer = plain(received)?;
                received.clear();
                Some(answer)
            }
            Protocol::Http2 => self.framed(received),
        }
    }

    fn framed(&mut self, received: &mut Vec<u8>) -> Option<Answer> {
        let mut has_ended = false;
        while let Some((&[a, b, c, kind, flags, ..], rest)) = received.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some(payload) = rest.get(..length) else {
                break;
            };
            match kind {
                HEADERS if payload.first() == Some(&0x88) => self.status = 200,
                HEADERS => self.status = 0,
                GOAWAY => self.is_last = true,
                _ => {}
            }
            has_ended |= matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
            received.drain(..9 + length);
        }
        has_ended.then_some(Answer {
            status: self.status,
            is_last: self.is_last,
        })
    }
}

/// It says how long it is, as all of ours do.
fn plain(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = str::from_utf8(bytes).ok()?.split_once("\r\n\r\n")?;
    let header = |name| head.lines().find_map(|line| line.strip_prefix(name));
    let length: usize = header("content-length: ")?.parse().ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_last = header("connection: ") == Some("close");
    (body.len() >= length).then_some(Answer { status, is_last })
}
