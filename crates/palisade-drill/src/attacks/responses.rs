//! Tells HTTP/1 responses apart in received bytes, for clients that must know what was answered.

/// The longest line of a response head, or of a chunk's size, in bytes.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Reads the responses of one connection. It keeps a line, whatever the server sends.
#[derive(Debug, Default)]
pub(super) struct Responses {
    line: Vec<u8>,
    state: State,
    status: Option<u16>,
    length: Option<u64>,
    is_chunked: bool,
}

/// The part of a response that comes next.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// The body ends with the connection, or the bytes are no HTTP.
    UntilClosed,
}

impl Responses {
    /// Reads `bytes`, which may begin and end anywhere, and calls `on` with the status of each
    /// response that is complete. Interim responses are passed over.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut on: impl FnMut(u16)) {
        while !bytes.is_empty() {
            match self.state {
                State::Body(left) | State::Chunk(left) => {
                    let taken = usize::try_from(left).map_or(bytes.len(), |n| n.min(bytes.len()));
                    bytes = &bytes[taken..];
                    let left = left - taken as u64;
                    match self.state {
                        State::Body(_) if left == 0 => self.end(&mut on),
                        State::Body(_) => self.state = State::Body(left),
                        _ if left == 0 => self.state = State::ChunkEnd,
                        _ => self.state = State::Chunk(left),
                    }
                }
                State::UntilClosed => return,
                _ => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
                    bytes = rest;
                    if self.line.len() + piece.len() > MAX_LINE_BYTES {
                        (self.state, self.status) = (State::UntilClosed, None);
                        return;
                    }
                    self.line.extend_from_slice(piece);
                    if end.is_some() {
                        let line = std::mem::take(&mut self.line);
                        self.on_line(line.trim_ascii_end(), &mut on);
                    }
                }
            }
        }
    }

    /// Returns the status of a response that ends with the connection, and begins anew.
    pub(super) fn close(&mut self) -> Option<u16> {
        let ended = std::mem::take(self);
        ended
            .status
            .filter(|_| matches!(ended.state, State::UntilClosed))
    }

    fn on_line(&mut self, line: &[u8], on: &mut impl FnMut(u16)) {
        let text = String::from_utf8_lossy(line);
        match self.state {
            State::Head if self.status.is_none() => {
                let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
                self.status = status.and_then(|status| status.parse().ok());
                if self.status.is_none() {
                    self.state = State::UntilClosed;
                }
            }
            State::Head if line.is_empty() => self.on_head(on),
            State::Head => {
                let (name, value) = text.split_once(':').unwrap_or_default();
                if name.eq_ignore_ascii_case("content-length") {
                    self.length = value.trim().parse().ok();
                } else if name.eq_ignore_ascii_case("transfer-encoding") {
                    self.is_chunked = value.trim().eq_ignore_ascii_case("chunked");
                }
            }
            State::ChunkEnd => self.state = State::ChunkSize,
            State::ChunkSize => {
                let size = text.split(';').next().unwrap_or_default().trim();
                match u64::from_str_radix(size, 16) {
                    Ok(0) => self.state = State::Trailers,
                    Ok(size) => self.state = State::Chunk(size),
                    Err(_) => (self.state, self.status) = (State::UntilClosed, None),
                }
            }
            State::Trailers if line.is_empty() => self.end(on),
            _ => {}
        }
    }

    fn on_head(&mut self, on: &mut impl FnMut(u16)) {
        match (self.status, self.is_chunked, self.length) {
            (Some(100..=199), ..) => *self = Self::default(),
            (Some(204 | 304), ..) | (_, false, Some(0)) => self.end(on),
            (_, true, _) => self.state = State::ChunkSize,
            (_, false, Some(length)) => self.state = State::Body(length),
            (_, false, None) => self.state = State::UntilClosed,
        }
    }

    fn end(&mut self, on: &mut impl FnMut(u16)) {
        let status = std::mem::take(self).status;
        on(status.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(bytes: &str, piece: usize) -> (Vec<u16>, Option<u16>) {
        let (mut responses, mut seen) = (Responses::default(), Vec::new());
        for piece in bytes.as_bytes().chunks(piece) {
            responses.read(piece, |status| seen.push(status));
        }
        (seen, responses.close())
    }

    #[test]
    fn responses_are_told_apart_wherever_the_reads_end() {
        let bytes = "HTTP/1.1 100 Continue\r\n\r\n\
                     HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
                     HTTP/1.1 429 Slow Down\r\ncontent-length: 0\r\n\r\n\
                     HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                     3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        for piece in [1, 2, 7, 1_000] {
            assert_eq!(statuses(bytes, piece), (vec![200, 429, 200, 204], None));
        }
    }

    #[test]
    fn a_response_without_a_length_ends_with_the_connection() {
        let bytes = "HTTP/1.0 200 OK\r\n\r\nall of it";
        assert_eq!(statuses(bytes, 4), (vec![], Some(200)));
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nall";
        assert_eq!(statuses(cut, 4), (vec![], None));
    }

    #[test]
    fn bytes_that_are_no_http_are_no_response() {
        assert_eq!(statuses(&"\0".repeat(100_000), 4_096), (vec![], None));
        assert_eq!(statuses("SSH-2.0\r\n", 4), (vec![], None));
    }
}
