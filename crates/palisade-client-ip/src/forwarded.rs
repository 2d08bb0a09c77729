//! One element of the field `Forwarded` (RFC 7239 section 4).

use crate::{
    address::{Address, Syntax},
    elements::trimmed,
};

/// Longer than any node with an address.
const MAX_NODE_BYTES: usize = 128;

/// The value of a parameter.
enum Value<'a> {
    Token(&'a [u8]),
    /// What is between the quotes, with its backslashes.
    Quoted(&'a [u8]),
}

/// Returns the address of the parameter `for` in `element`. `None` if the element is malformed, has
/// the parameter twice or not at all, or if its value is not an address.
pub(crate) fn for_address(element: &[u8]) -> Option<Address> {
    let mut found = None;
    let mut rest = trimmed(element);
    while !rest.is_empty() {
        // The grammar allows empty parameters.
        if let Some(after) = rest.strip_prefix(b";") {
            rest = trimmed(after);
            continue;
        }
        let end_of_name = rest.iter().position(|byte| !is_of_token(*byte))?;
        let (name, after) = rest.split_at(end_of_name);
        let (value, after) = value(after.strip_prefix(b"=")?)?;
        if name.is_empty() {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") {
            if found.is_some() {
                return None;
            }
            found = Some(value.address()?);
        }
        rest = trimmed(after);
        if !rest.is_empty() && !rest.starts_with(b";") {
            return None;
        }
    }
    found
}

/// Splits a value from what follows it.
fn value(text: &[u8]) -> Option<(Value<'_>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let is_of_value = |byte: &u8| {
            is_of_token(*byte) || matches!(byte, b':' | b'[' | b']' | b'/' | b'@' | b'?' | b'=')
        };
        let end = text.iter().position(|byte| !is_of_value(byte));
        let (token, after) = text.split_at(end.unwrap_or(text.len()));
        return (!token.is_empty()).then_some((Value::Token(token), after));
    };
    let mut is_escaped = false;
    for (at, byte) in quoted.iter().enumerate() {
        match byte {
            b'"' if !is_escaped => {
                let (inner, after) = quoted.split_at(at);
                return Some((Value::Quoted(inner), after.get(1..)?));
            }
            b'\\' => is_escaped = !is_escaped,
            b'\t' | b' '..=b'~' => is_escaped = false,
            _ => return None,
        }
    }
    None
}

/// A `tchar` of RFC 9110 section 5.6.2.
fn is_of_token(byte: u8) -> bool {
    matches!(
        byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*'
            | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
    )
}

// === Value ===

impl Value<'_> {
    fn address(&self) -> Option<Address> {
        match self {
            Self::Token(text) => Syntax::Node.parse(text),
            Self::Quoted(text) if !text.contains(&b'\\') => Syntax::Node.parse(text),
            Self::Quoted(text) => {
                let mut unescaped = [0; MAX_NODE_BYTES];
                let mut length = 0;
                let mut bytes = text.iter();
                while let Some(byte) = bytes.next() {
                    let byte = if *byte == b'\\' { bytes.next()? } else { byte };
                    *unescaped.get_mut(length)? = *byte;
                    length += 1;
                }
                Syntax::Node.parse(unescaped.get(..length)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::net::IpAddr;

    fn address(element: &str) -> Option<String> {
        for_address(element.as_bytes()).map(|address| IpAddr::from(address).to_string())
    }

    #[test]
    fn the_address_of_for_is_read_beside_other_parameters() {
        for element in [
            "for=192.0.2.43",
            "For=192.0.2.43",
            "FOR=\"192.0.2.43\"",
            "for=192.0.2.43:47011",
            "for=\"192.0.2.43:47011\"",
            "for=\"192.0.2.43:_gazonk\"",
            "for=192.0.2.43;proto=http;by=203.0.113.43",
            "by=203.0.113.43;for=192.0.2.43",
            "for=192.0.2.43;host=example.com:8080",
            "for=192.0.2.43;ext=\"a,b;c=\\\"d\\\"\"",
            "for=192.0.2.43;",
            ";;for=192.0.2.43; proto=https ;by=_x",
            "for=\"192.0.2\\.43\"",
            "proto=\"\";for=192.0.2.43",
        ] {
            assert_eq!(address(element).as_deref(), Some("192.0.2.43"), "{element}");
        }
        for element in [
            "for=\"[2001:db8:cafe::17]\"",
            "for=\"[2001:db8:cafe::17]:4711\"",
            "for=[2001:db8:cafe::17]:4711", // Not allowed, but clear.
            "for=\"\\[2001:db8:cafe::17\\]\"",
        ] {
            let expected = Some("2001:db8:cafe::17");
            assert_eq!(address(element).as_deref(), expected, "{element}");
        }
    }

    #[test]
    fn any_other_element_has_no_address() {
        for element in [
            "",
            ";",
            "proto=https",
            "for",
            "for=",
            "for=\"\"",
            "for=unknown",
            "for=_hidden",
            "for=\"_SEVKISEK\"",
            "for=0.0.0.0",
            "for=\"2001:db8:cafe::17\"",
            "for=2001:db8:cafe::17",
            "for=192.0.2.43;for=192.0.2.43",
            "for=192.0.2.43;For=_x",
            "for =192.0.2.43",
            "for= 192.0.2.43",
            "for=192.0.2.43 192.0.2.44",
            "for=192.0.2.43;proto",
            "for=192.0.2.43;=x",
            "for=192.0.2.43;proto=\"https",
            "for=\"192.0.2.43",
            "for=192.0.2.43\"",
            "for=\"192.0.2.43\"x",
            "for=\"192.0.2.43\\",
            "for=\"192.0.2.43\\\"",
            "192.0.2.43",
            "for=192.0.2.43;a=\u{e4}",
            "for=192.0.2.43;a=\"\u{e4}\"",
            "for=\"192.0.2.43,for=192.0.2.44\"",
        ] {
            assert_eq!(address(element), None, "{element}");
        }
        let long = format!("for=\"\\1{}\"", "1".repeat(4000));
        assert_eq!(address(&long), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..100)) {
            let _ = for_address(&bytes);
        }

        #[test]
        fn an_address_beside_any_text_is_found_or_the_element_is_malformed(
            before in r#"[a-c=;"\\ ]{0,12}"#,
            after in r#"[a-c=;"\\ ]{0,12}"#,
        ) {
            let element = format!("{before};for=192.0.2.1;{after}");
            let found = address(&element);
            prop_assert!(found.is_none_or(|found| found == "192.0.2.1"));
        }
    }
}
