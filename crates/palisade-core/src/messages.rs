//! The message boundaries of a gRPC body.

/// Finds the message boundaries of a gRPC body, for the guards that count by message. Each message
/// has a prefix of five bytes, of which the last four are its length (gRPC over HTTP/2,
/// "Length-Prefixed-Message").
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageScanner {
    /// Bytes that have arrived, plus those of the current message that have not.
    pub admitted_bytes: u64,
    /// Bytes of the next prefix that have arrived.
    prefix_bytes: u8,
    /// The length in the next prefix, as far as it has arrived.
    next_length: u32,
}

/// The length of a message that exceeds the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageTooLong(pub u64);

const PREFIX_BYTES: u8 = 5;

impl MessageScanner {
    /// Scans the next `data`, which begins with up to `remaining` bytes of the current message.
    /// Returns the bytes that are then missing of the last message.
    ///
    /// # Errors
    ///
    /// If a message is longer than `limit`.
    pub fn scan(
        &mut self,
        mut data: &[u8],
        mut remaining: u64,
        limit: u64,
    ) -> Result<u64, MessageTooLong> {
        self.admitted_bytes = self
            .admitted_bytes
            .saturating_add((data.len() as u64).saturating_sub(remaining));
        loop {
            let here = usize::try_from(remaining)
                .unwrap_or(usize::MAX)
                .min(data.len());
            remaining -= here as u64;
            data = data.get(here..).unwrap_or_default();
            let Some((byte, rest)) = data.split_first() else {
                return Ok(remaining);
            };
            data = rest;
            // The first byte of the prefix is the compression flag.
            if self.prefix_bytes > 0 {
                self.next_length = self.next_length << 8 | u32::from(*byte);
            }
            self.prefix_bytes += 1;
            if self.prefix_bytes == PREFIX_BYTES {
                remaining = u64::from(self.next_length);
                (self.prefix_bytes, self.next_length) = (0, 0);
                // The part of the message that is in `data` was added above.
                let missing = remaining.saturating_sub(data.len() as u64);
                self.admitted_bytes = self.admitted_bytes.saturating_add(missing);
                if remaining > limit {
                    return Err(MessageTooLong(remaining));
                }
            }
        }
    }
}

/// Follows the messages of a gRPC body, whatever their length.
#[derive(Debug, Default)]
pub struct MessageBoundaries {
    scanner: MessageScanner,
    /// Bytes of the current message that have not arrived.
    missing: u64,
}

impl MessageBoundaries {
    /// Follows the next bytes. Returns whether a message begins with them or in them.
    pub fn begin_one(&mut self, data: &[u8]) -> bool {
        if let Some(missing) = self.missing.checked_sub(data.len() as u64) {
            self.missing = missing;
            return false;
        }
        let scanned = self.scanner.scan(data, self.missing, u64::MAX);
        self.missing = scanned.unwrap_or(0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        bytes.resize(bytes.len() + length, 7);
        bytes
    }

    proptest! {
        #[test]
        fn message_boundaries_are_found_in_arbitrary_pieces(
            lengths in proptest::collection::vec(0usize..40, 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let bytes: Vec<_> = lengths.iter().flat_map(|length| message(*length)).collect();
            let (mut scanner, mut remaining, mut rest) = (MessageScanner::default(), 0, &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                remaining = scanner.scan(piece, remaining, 40).unwrap();
                rest = after;
            }
            prop_assert_eq!((remaining, scanner.prefix_bytes), (0, 0));
            prop_assert_eq!(scanner.admitted_bytes, bytes.len() as u64);
        }

        #[test]
        fn arbitrary_bytes_are_scanned_or_refused(data: Vec<u8>, remaining: u64, limit: u64) {
            let mut scanner = MessageScanner::default();
            match scanner.scan(&data, remaining, limit) {
                Ok(rest) => prop_assert!(rest <= limit.max(remaining)),
                Err(MessageTooLong(length)) => prop_assert!(length > limit),
            }
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_prefix() {
        let mut scanner = MessageScanner::default();
        let bytes = message(20);
        assert_eq!(scanner.scan(&bytes[..4], 0, 10), Ok(0));
        assert_eq!(scanner.scan(&bytes[4..5], 0, 10), Err(MessageTooLong(20)));
    }
}
