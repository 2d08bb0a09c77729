//! The frames of HTTP/2 (RFC 9113 section 4.1) in what a client sends, as far as it takes to tell
//! DATA from the rest.

use crate::connection::{ConnHandle, state::ConnState};

/// What comes before the first frame.
const PREFACE_BYTES: u32 = 24;
const HEADER_BYTES: u8 = 9;
/// In place of the bytes of a header: nothing came yet.
const AT_START: u8 = u8::MAX;
/// In the kept word beside the 24 bits of the length that is left: the frame is DATA.
const IS_DATA: u32 = 1 << 31;

/// Where in the stream of frames a connection is. The rest of it is a word in the connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameReader {
    /// How many bytes of the current frame's header are here; all of them in its payload.
    header: u8,
}

impl FrameReader {
    /// At the beginning of a connection, before the preface.
    pub(crate) fn new() -> Self {
        Self { header: AT_START }
    }

    /// Of a connection whose bytes are encrypted below the server: the guarded socket does not see
    /// its frames.
    pub fn decrypted(conn: &ConnHandle) -> Self {
        conn.state().set_framed();
        Self::new()
    }

    /// Counts those of `bytes`, which were decrypted, that are payload of DATA frames.
    pub fn read_decrypted(&mut self, conn: &ConnHandle, bytes: &[u8]) {
        self.read(conn.state(), bytes);
    }

    /// Counts those of `bytes` that are payload of DATA frames.
    pub(crate) fn read(&mut self, state: &ConnState, mut bytes: &[u8]) {
        // While the header comes: its length, and its type above that.
        let mut word = state.frame();
        let mut data = 0u32;
        if self.header == AT_START {
            (self.header, word) = (HEADER_BYTES, PREFACE_BYTES);
        }
        while let [first, rest @ ..] = bytes {
            let left = word & !IS_DATA;
            if self.header == HEADER_BYTES && left > 0 {
                let here = bytes.len().min(left as usize);
                if word & IS_DATA != 0 {
                    data = data.wrapping_add(here as u32);
                }
                word -= here as u32;
                bytes = &bytes[here..];
                continue;
            }
            if self.header == HEADER_BYTES {
                (self.header, word) = (0, 0);
            }
            // Length, type, flags, stream.
            match self.header {
                0..3 => word = word << 8 | u32::from(*first),
                3 if *first == 0 => word |= IS_DATA,
                _ => {}
            }
            self.header += 1;
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

    /// The DATA in `bytes` after the preface, read in pieces of this size.
    fn data_in(bytes: &[u8], size: usize) -> u32 {
        let state = ConnState::default();
        let mut frames = FrameReader::new();
        let all = [&[b'P'; PREFACE_BYTES as usize][..], bytes].concat();
        all.chunks(size)
            .for_each(|piece| frames.read(&state, piece));
        state.data_read()
    }

    #[test]
    fn data_is_told_from_the_rest_however_it_is_cut() {
        let bytes = [
            frame(4, 18),
            frame(0, 5),
            frame(1, 300),
            frame(0, 0),
            frame(0, 70_000),
        ];
        let bytes = [bytes.concat(), frame(6, 8), frame(0, 3)[..10].to_vec()].concat();
        for size in [1, 2, 3, 7, 9, 10, 16_384, bytes.len() + 24] {
            assert_eq!(data_in(&bytes, size), 5 + 70_000 + 1, "{size}");
        }
    }

    #[test]
    fn the_longest_frame_and_garbage_are_counted_without_overflow() {
        let mut longest = vec![0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff];
        longest.extend(vec![0; 0x00ff_ffff]);
        assert_eq!(data_in(&longest, 65_536), 0x00ff_ffff);
        let mut random = 1u64;
        let garbage: Vec<u8> = (0..100_000)
            .map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (random >> 56) as u8
            })
            .collect();
        assert!(data_in(&garbage, 113) <= 100_000);
    }
}
