//! The frames of a WebSocket (RFC 6455 section 5) that a quiet client needs: it answers pings, and
//! sees a close. Pure. It keeps a payload of 125 bytes at most.

/// The opcodes of control frames.
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// The largest payload of a control frame.
const MAX_CONTROL_BYTES: u64 = 125;
/// A client masks what it sends. The mask hides nothing from the drill's own server.
const MASK: [u8; 4] = *b"mask";

/// What the server wants of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// These bytes are to be sent.
    Pong(Vec<u8>),
    /// The connection ends.
    Close,
}

/// Reads frames as they arrive.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The head so far: two bytes, and those of a longer length.
    head: Vec<u8>,
    /// The payload that is still to come, when the head is complete.
    left: Option<u64>,
    payload: Vec<u8>,
}

impl Frames {
    /// Reads `bytes`, which begin and end anywhere, and returns what the server wants.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for byte in bytes {
            match &mut self.left {
                None => self.head.push(*byte),
                Some(left) => {
                    *left -= 1;
                    if self.payload.len() < MAX_CONTROL_BYTES as usize {
                        self.payload.push(*byte);
                    }
                }
            }
            self.left = self.left.or_else(|| length(&self.head));
            if self.left == Some(0) {
                match self.head[0] & 15 {
                    CLOSE => wishes.push(Wish::Close),
                    PING => wishes.push(Wish::Pong(pong(&self.payload))),
                    _ => {}
                }
                *self = Self::default();
            }
        }
        wishes
    }
}

/// Returns the length of the payload, if the head is complete.
fn length(head: &[u8]) -> Option<u64> {
    let short = u64::from(head.get(1)? & 127);
    let rest = head.get(2..).unwrap_or_default();
    let number = || {
        rest.iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    match (short, rest.len()) {
        (126, 2) | (127, 8) => Some(number()),
        (126 | 127, _) => None,
        _ => Some(short),
    }
}

/// Returns the answer to a ping.
fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![128 | PONG, 128 | payload.len() as u8];
    frame.extend(MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_answered_with_its_payload_and_a_close_is_seen() {
        let messages = [
            &[0x81, 5][..],
            b"hello",
            &[0x89, 2, b'h', b'i'],
            &[0x82, 126, 1, 0],
            &[9; 256],
            &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0],
            &[8; 65_536],
            &[0x8a, 0],
            &[0x88, 2, 3, 232],
        ];
        let bytes = messages.concat();
        let mask = |at: usize, byte: u8| MASK[at] ^ byte;
        let mut pong = vec![0x8a, 0x82];
        pong.extend(MASK);
        pong.extend([mask(0, b'h'), mask(1, b'i')]);
        for size in [1, 3, 1_000, bytes.len()] {
            let mut frames = Frames::default();
            let wishes: Vec<_> = bytes
                .chunks(size)
                .flat_map(|piece| frames.read(piece))
                .collect();
            assert_eq!(wishes, [Wish::Pong(pong.clone()), Wish::Close]);
        }
    }

    #[test]
    fn a_frame_of_any_length_keeps_little() {
        let mut frames = Frames::default();
        frames.read(&[0x89, 127, 255, 255, 255, 255, 255, 255, 255, 255]);
        for _ in 0..100 {
            assert!(frames.read(&[1; 4_096]).is_empty());
        }
        assert!(frames.payload.len() <= 125 && frames.head.len() == 10);
    }
}
