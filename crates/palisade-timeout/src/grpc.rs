//! The `grpc-timeout` header: the deadline of the client.

use http::HeaderMap;
use std::time::Duration;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Returns the value of `grpc-timeout`. A header that is malformed or occurs twice is ignored: the
/// layer's own deadline then applies, which the header could only have lowered.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all(GRPC_TIMEOUT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse(value.as_bytes()),
        _ => None,
    }
}

/// Parses one to eight ASCII digits and a unit ("gRPC over HTTP2", Requests, `TimeoutValue`), at
/// most 11,415 years. Zero is valid and means that the deadline has passed.
pub(crate) fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Eight digits fit into 64 bits, and so does that number of hours in seconds.
    let number = digits.iter().fold(0u64, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(u64::from(digit.saturating_sub(b'0')))
    });
    match unit {
        b'H' => Some(Duration::from_secs(number.saturating_mul(3600))),
        b'M' => Some(Duration::from_secs(number.saturating_mul(60))),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn every_unit_is_parsed() {
        assert_eq!(parse(b"1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse(b"2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse(b"3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse(b"4m"), Some(Duration::from_millis(4)));
        assert_eq!(parse(b"5u"), Some(Duration::from_micros(5)));
        assert_eq!(parse(b"6n"), Some(Duration::from_nanos(6)));
        assert_eq!(parse(b"00000000n"), Some(Duration::ZERO));
        assert_eq!(
            parse(b"99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
    }

    #[test]
    fn malformed_values_are_ignored() {
        for value in [
            &b""[..],
            b"S",
            b"1",
            b"12",
            b"123456789S",
            b"-1S",
            b"+1S",
            b" 1S",
            b"1S ",
            b"1 S",
            b"1s",
            b"1h",
            b"1.5S",
            b"0x1S",
            b"1e3m",
            "\u{661}S".as_bytes(), // A digit outside ASCII.
            b"1ms",
            b"1S,2S",
        ] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn a_header_that_occurs_twice_is_ignored() {
        let mut headers = HeaderMap::new();
        headers.append(GRPC_TIMEOUT, HeaderValue::from_static("1S"));
        assert_eq!(timeout(&headers), Some(Duration::from_secs(1)));
        headers.append(GRPC_TIMEOUT, HeaderValue::from_static("1S"));
        assert_eq!(timeout(&headers), None);
    }

    /// A simple second implementation of the grammar.
    fn oracle(value: &[u8]) -> Option<Duration> {
        let text = std::str::from_utf8(value).ok()?;
        let nanos: u128 = match text.chars().last()? {
            'H' => 3_600_000_000_000,
            'M' => 60_000_000_000,
            'S' => 1_000_000_000,
            'm' => 1_000_000,
            'u' => 1_000,
            'n' => 1,
            _ => return None,
        };
        let digits = &text[..text.len() - 1];
        if !(1..=8).contains(&digits.len()) || digits.contains(|c: char| !c.is_ascii_digit()) {
            return None;
        }
        let nanos = digits.parse::<u128>().ok()? * nanos;
        Some(Duration::new(
            (nanos / 1_000_000_000) as u64,
            (nanos % 1_000_000_000) as u32,
        ))
    }

    proptest! {
        #[test]
        fn the_parser_matches_the_oracle(value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..12),
            "[0-9]{0,10}[HMSmunhs]?".prop_map(String::into_bytes),
        ]) {
            prop_assert_eq!(parse(&value), oracle(&value));
        }
    }
}
