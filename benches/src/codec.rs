//! A sequence of requests and responses on one connection, as bytes, for clients of little
//! overhead.

use crate::Protocol;

/// The client preface (RFC 9113 section 3.4), empty SETTINGS, and a `WINDOW_UPDATE` to the maximum
/// window of the connection.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
                       \0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// Encodes the requests of one connection and parses its responses.
#[derive(Clone, Copy, Debug)]
pub struct ClientCodec {
    protocol: Protocol,
    requests: u32,
    status: u16,
    is_last: bool,
}

/// A complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The status. On HTTP/2, 0 stands for any status other than 200.
    pub status: u16,
    /// The server accepts no more requests on this connection.
    pub is_last: bool,
}

impl ClientCodec {
    /// Returns the state of a new connection.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            requests: 0,
            status: 0,
            is_last: false,
        }
    }

    /// Encodes the next request, a `GET` of `path`, which must be shorter than 100 bytes.
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
        // :method GET and :scheme http indexed, then :path and :authority as literals (RFC 7541
        // section 6.2.2).
        let mut block = b"\x82\x86\x04".to_vec();
        block.push(path.len() as u8);
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(b"\x01\x09localhost");
        bytes.extend_from_slice(&[0, 0, block.len() as u8, HEADERS, 5]);
        bytes.extend_from_slice(&(self.requests * 2 - 1).to_be_bytes());
        bytes.extend_from_slice(&block);
        bytes
    }

    /// Removes complete frames or a complete HTTP/1 response from `received`. Returns the response
    /// to the last request once it is complete.
    pub fn response(&mut self, received: &mut Vec<u8>) -> Option<Completed> {
        match self.protocol {
            Protocol::Http1 => {
                let response = parse_http1(received)?;
                received.clear();
                Some(response)
            }
            Protocol::Http2 => self.parse_http2(received),
        }
    }

    fn parse_http2(&mut self, received: &mut Vec<u8>) -> Option<Completed> {
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
        if !has_ended {
            return None;
        }
        Some(Completed {
            status: self.status,
            is_last: self.is_last,
        })
    }
}

/// Parses a complete HTTP/1 response. All responses in the benches have a `content-length`.
fn parse_http1(bytes: &[u8]) -> Option<Completed> {
    let (head, body) = str::from_utf8(bytes).ok()?.split_once("\r\n\r\n")?;
    let header = |name| head.lines().find_map(|line| line.strip_prefix(name));
    let length: usize = header("content-length: ")?.parse().ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let is_last = header("connection: ") == Some("close");
    if body.len() < length {
        return None;
    }
    Some(Completed { status, is_last })
}
