//! The messages of a gRPC body.

/// Where one message ends and the next one begins: each has a prefix of five bytes, of which the
/// last four are its length (gRPC over HTTP/2, "Length-Prefixed-Message").
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Messages {
    /// Bytes that have come, and those that are left of the message that has begun.
    pub(crate) granted: u64,
    /// Bytes of the next prefix that have come.
    seen: u8,
    length: u32,
}

/// A message is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong(pub(crate) u64);

const PREFIX_BYTES: u8 = 5;

impl Messages {
    /// Takes the next `data`, of which `left` belong to the message that has begun. Returns the
    /// bytes that are left of the last message after that.
    pub(crate) fn take(
        &mut self,
        mut data: &[u8],
        mut left: u64,
        limit: u64,
    ) -> Result<u64, TooLong> {
        self.granted = self
            .granted
            .saturating_add((data.len() as u64).saturating_sub(left));
        loop {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            left -= here as u64;
            data = data.get(here..).unwrap_or_default();
            let Some((byte, rest)) = data.split_first() else {
                return Ok(left);
            };
            data = rest;
            // The first byte says whether the message is compressed.
            if self.seen > 0 {
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.seen += 1;
            if self.seen == PREFIX_BYTES {
                left = u64::from(self.length);
                (self.seen, self.length) = (0, 0);
                let rest = left.saturating_sub(data.len() as u64);
                // What of it is in `data` was granted above.
                self.granted = self.granted.saturating_add(rest);
                if left > limit {
                    return Err(TooLong(left));
                }
            }
        }
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
        fn messages_are_found_however_they_are_cut(
            lengths in proptest::collection::vec(0usize..40, 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let bytes: Vec<_> = lengths.iter().flat_map(|length| message(*length)).collect();
            let (mut messages, mut left, mut rest) = (Messages::default(), 0, &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                left = messages.take(piece, left, 40).unwrap();
                rest = after;
            }
            prop_assert_eq!((left, messages.seen), (0, 0));
            prop_assert_eq!(messages.granted, bytes.len() as u64);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(data: Vec<u8>, left: u64, limit: u64) {
            let mut messages = Messages::default();
            match messages.take(&data, left, limit) {
                Ok(rest) => prop_assert!(rest <= limit.max(left)),
                Err(TooLong(length)) => prop_assert!(length > limit),
            }
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_found_by_its_prefix() {
        let mut messages = Messages::default();
        let bytes = message(20);
        assert_eq!(messages.take(&bytes[..4], 0, 10), Ok(0));
        assert_eq!(messages.take(&bytes[4..5], 0, 10), Err(TooLong(20)));
    }
}
