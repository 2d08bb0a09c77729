//! Reads the frame headers of HTTP/2 (RFC 9113 section 4.1) in the bytes of a client, to count the
//! payload of DATA frames.

use crate::connection::{ConnHandle, state::ConnState};

/// The length of the client preface, before the first frame.
const PREFACE_BYTES: u32 = 24;
/// The length of a frame header.
const HEADER_BYTES: u8 = 9;
/// The value of [`FrameReader::header_bytes`] before the first byte.
const AT_START: u8 = u8::MAX;
/// The bit of the stored word that says that the frame is DATA. The low 24 bits are the length that
/// is left.
const IS_DATA: u32 = 1 << 31;

/// A connection's place in its stream of frames. The other part of it is a word in the connection's
/// state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameReader {
    /// The number of bytes of the current frame's header that have arrived; all of them while its
    /// payload arrives.
    header_bytes: u8,
}

impl FrameReader {
    /// Returns a reader for a new connection, before the preface.
    pub(crate) fn new() -> Self {
        Self {
            header_bytes: AT_START,
        }
    }

    /// Returns a reader for a connection that is encrypted below the server. The guarded socket
    /// does not see its frames.
    pub fn decrypted(conn: &ConnHandle) -> Self {
        conn.state().set_framed();
        Self::new()
    }

    /// Counts the payload of DATA frames in decrypted `bytes`.
    pub fn read_decrypted(&mut self, conn: &ConnHandle, bytes: &[u8]) {
        self.read(conn.state(), bytes);
    }

    /// Counts the payload of DATA frames in `bytes`.
    pub(crate) fn read(&mut self, state: &ConnState, mut bytes: &[u8]) {
        // While the header arrives, the word collects the length of the frame, then its type.
        let mut word = state.frame();
        let mut data = 0u32;
        if self.header_bytes == AT_START {
            (self.header_bytes, word) = (HEADER_BYTES, PREFACE_BYTES);
        }
        while let [first, rest @ ..] = bytes {
            let left = word & !IS_DATA;
            if self.header_bytes == HEADER_BYTES && left > 0 {
                let taken = bytes.len().min(left as usize);
                if word & IS_DATA != 0 {
                    data = data.wrapping_add(taken as u32);
                }
                word -= taken as u32;
                bytes = &bytes[taken..];
                continue;
            }
            if self.header_bytes == HEADER_BYTES {
                (self.header_bytes, word) = (0, 0);
            }
            // A header has three bytes of length, then type, flags and stream.
            match self.header_bytes {
                0..3 => word = word << 8 | u32::from(*first),
                3 if *first == 0 => word |= IS_DATA,
                _ => {}
            }
            self.header_bytes += 1;
            bytes = rest;
        }
        state.store_frame(word, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.extend(vec![0xff; length]);
        frame
    }

    /// Returns the DATA bytes in `bytes` after the preface, read in pieces of this size.
    fn data_bytes(bytes: &[u8], size: usize) -> u32 {
        let state = ConnState::default();
        let mut frames = FrameReader::new();
        let all = [&[b'P'; PREFACE_BYTES as usize][..], bytes].concat();
        all.chunks(size)
            .for_each(|piece| frames.read(&state, piece));
        state.data_read()
    }

    #[test]
    fn data_is_counted_in_pieces_of_any_size() {
        let bytes = [
            frame(4, 18),
            frame(0, 5),
            frame(1, 300),
            frame(0, 0),
            frame(0, 70_000),
        ];
        let bytes = [bytes.concat(), frame(6, 8), frame(0, 3)[..10].to_vec()].concat();
        for size in [1, 2, 3, 7, 9, 10, 16_384, bytes.len() + 24] {
            assert_eq!(data_bytes(&bytes, size), 5 + 70_000 + 1, "{size}");
        }
    }

    #[test]
    fn the_longest_frame_and_garbage_are_counted_without_overflow() {
        let mut longest = vec![0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff];
        longest.extend(vec![0; 0x00ff_ffff]);
        assert_eq!(data_bytes(&longest, 65_536), 0x00ff_ffff);
        let mut random = 1u64;
        let garbage: Vec<u8> = (0..100_000)
            .map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (random >> 56) as u8
            })
            .collect();
        assert!(data_bytes(&garbage, 113) <= 100_000);
    }
}
