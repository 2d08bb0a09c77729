//! The end of an HTTP/1 answer, found in its bytes as they arrive. Pure. It keeps a head of 64 KiB
//! at most, whatever the server sends.

/// The largest head that is read.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// The end of a chunked body without trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// An answer that is no HTTP, or too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Where the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// After this many more bytes.
    Length(u64),
    /// After the last chunk. The last bytes so far, zero before the first.
    Chunked([u8; LAST_CHUNK.len()]),
    /// With the connection.
    Close,
}

/// Reads one answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    head: Vec<u8>,
    status: Option<u16>,
    end: Option<End>,
}

impl Answer {
    /// Returns the status, when the head is complete. Informational heads are skipped, but 101.
    pub(crate) fn status(&self) -> Option<u16> {
        self.status
    }

    /// Returns whether the whole body has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        match self.end {
            Some(End::Length(left)) => left == 0,
            Some(End::Chunked(tail)) => tail == LAST_CHUNK,
            Some(End::Close) | None => false,
        }
    }

    /// Returns whether the answer is whole if the connection ends now.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.is_complete() || self.end == Some(End::Close)
    }

    /// Reads `bytes`. Returns how many of them belong to the head.
    ///
    /// # Errors
    ///
    /// If they are no answer, or a head that is too long.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while self.end.is_none() {
            let Some(byte) = bytes.get(at) else {
                return Ok(at);
            };
            if self.head.len() >= MAX_HEAD_BYTES {
                return Err(Malformed);
            }
            at += 1;
            self.head.push(*byte);
            if self.head.ends_with(b"\r\n\r\n") || self.head.ends_with(b"\n\n") {
                self.parse()?;
            }
        }
        let body = bytes.get(at..).unwrap_or_default();
        match &mut self.end {
            Some(End::Length(left)) => *left = left.saturating_sub(body.len() as u64),
            Some(End::Chunked(tail)) => {
                for byte in body
                    .get(body.len().saturating_sub(tail.len())..)
                    .unwrap_or_default()
                {
                    tail.rotate_left(1);
                    tail[LAST_CHUNK.len() - 1] = *byte;
                }
            }
            Some(End::Close) | None => {}
        }
        Ok(at)
    }

    /// Parses the head, which is complete.
    fn parse(&mut self) -> Result<(), Malformed> {
        let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| {
            let rest = line.strip_prefix("http/1.")?;
            rest.split_whitespace().nth(1)?.parse().ok()
        });
        let status: u16 = status.ok_or(Malformed)?;
        if matches!(status, 100..=199) && status != 101 {
            self.head.clear();
            return Ok(());
        }
        let field = |wanted: &str| {
            let mut fields = lines.clone().filter_map(|line| line.split_once(':'));
            fields.find_map(|(name, value)| (name.trim() == wanted).then(|| value.trim()))
        };
        let end = if field("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
            End::Chunked([0; LAST_CHUNK.len()])
        } else if let Some(length) = field("content-length") {
            End::Length(length.parse().map_err(|_| Malformed)?)
        } else if matches!(status, 204 | 304) {
            End::Length(0)
        } else {
            End::Close
        };
        (self.status, self.end) = (Some(status), Some(end));
        self.head = Vec::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the answer of `text`, read in pieces of every size.
    fn read(text: &str, check: impl Fn(&Answer)) {
        for size in 1..=text.len() {
            let mut answer = Answer::default();
            for piece in text.as_bytes().chunks(size) {
                answer.read(piece).unwrap();
            }
            check(&answer);
        }
    }

    #[test]
    fn a_body_ends_by_its_length_its_last_chunk_or_with_the_connection() {
        read(
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
            |answer| {
                assert!(answer.is_complete() && answer.status() == Some(200));
            },
        );
        read(
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
            |answer| {
                assert!(!answer.is_complete() && !answer.ends_with_connection());
            },
        );
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n";
        read(chunked, |answer| assert!(!answer.ends_with_connection()));
        read(&format!("{chunked}0\r\n\r\n"), |answer| {
            assert!(answer.is_complete());
        });
        read("HTTP/1.0 200 OK\r\n\r\nabc", |answer| {
            assert!(!answer.is_complete() && answer.ends_with_connection());
        });
    }

    #[test]
    fn informational_heads_are_skipped_but_a_switch_of_protocols() {
        read(
            "HTTP/1.1 103 Hints\r\na: b\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
            |answer| {
                assert!(answer.is_complete() && answer.status() == Some(204));
            },
        );
        read(
            "HTTP/1.1 101 Switching\r\nupgrade: websocket\r\n\r\n",
            |answer| {
                assert!(!answer.is_complete() && answer.status() == Some(101));
            },
        );
        let mut answer = Answer::default();
        let bytes = b"HTTP/1.1 101 S\r\n\r\n\x81\x00";
        assert_eq!(answer.read(bytes), Ok(bytes.len() - 2));
    }

    #[test]
    fn garbage_and_endless_heads_are_no_answer() {
        for text in ["ssh\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "\r\n\r\n"] {
            assert_eq!(
                Answer::default().read(text.as_bytes()),
                Err(Malformed),
                "{text}"
            );
        }
        let length = b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n";
        assert_eq!(Answer::default().read(length), Err(Malformed));
        let mut answer = Answer::default();
        let results = (0..20)
            .map(|_| answer.read(&[b'a'; 4_096]))
            .collect::<Vec<_>>();
        assert_eq!(results.iter().position(Result::is_err), Some(16));
        assert!(answer.head.len() <= MAX_HEAD_BYTES);
    }
}
