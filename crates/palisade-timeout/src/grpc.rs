//! The client's own deadline.

use http::HeaderMap;
use std::time::Duration;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What `grpc-timeout` says. A header that is malformed or comes twice says nothing: the layer's
/// own deadline holds, which such a header could only have lowered.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all(GRPC_TIMEOUT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse(value.as_bytes()),
        _ => None,
    }
}

/// One to eight ASCII digits and a unit ("gRPC over HTTP2", Requests, `TimeoutValue`), at most
/// 11,415 years. Zero is taken as it is meant: the time is over.
pub(crate) fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Eight digits stay far below what 64 bits hold, and so do as many hours in seconds.
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
    fn every_unit_is_read() {
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
    fn anything_else_says_nothing() {
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
            "\u{661}S".as_bytes(), // A digit, but not an ASCII one.
            b"1ms",
            b"1S,2S",
        ] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn a_header_that_comes_twice_says_nothing() {
        let mut headers = HeaderMap::new();
        headers.append(GRPC_TIMEOUT, HeaderValue::from_static("1S"));
        assert_eq!(timeout(&headers), Some(Duration::from_secs(1)));
        headers.append(GRPC_TIMEOUT, HeaderValue::from_static("1S"));
        assert_eq!(timeout(&headers), None);
    }

    /// The grammar once more, written the slow way.
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
        fn it_agrees_with_the_grammar(value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..12),
            "[0-9]{0,10}[HMSmunhs]?".prop_map(String::into_bytes),
        ]) {
            prop_assert_eq!(parse(&value), oracle(&value));
        }
    }
}
