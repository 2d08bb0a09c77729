//! The elements of a field that is a list, from the right.

use crate::address::{Address, ipv4_at_the_end};

/// The largest number of elements that are looked at, empty ones included.
pub(crate) const MAX_ELEMENTS: usize = 32;
/// The largest number of bytes of field lines that are looked at.
pub(crate) const MAX_BYTES: usize = 4096;

/// The elements of all lines of a field, the last element of the last line first, without the
/// spaces around them. Ends with an error where a list goes on beyond a limit.
///
/// From the right, because the elements there were written by proxies, and those on the left by the
/// client. What is on the left of an element cannot change how it is read.
#[derive(Debug)]
pub(crate) struct Elements<'a, I> {
    /// The lines before the present one, to be taken from the back.
    lines: I,
    /// What remains of the present line.
    rest: Option<&'a [u8]>,
    /// Whether bytes of the present line are beyond the limit.
    is_cut: bool,
    has_quotes: bool,
    bytes_left: usize,
    elements_left: usize,
}

/// One element, without the spaces around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element<'a> {
    Text(&'a [u8]),
    /// An IPv4 address without a port, the most frequent text.
    Ipv4(Address),
}

/// The list has more than [`MAX_ELEMENTS`] elements or [`MAX_BYTES`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

// === Elements ===

impl<'a, I> Elements<'a, I>
where
    I: DoubleEndedIterator<Item = &'a [u8]>,
{
    /// Returns the elements of `lines`, separated by commas.
    pub(crate) fn plain(lines: I) -> Self {
        Self {
            lines,
            rest: None,
            is_cut: false,
            has_quotes: false,
            bytes_left: MAX_BYTES,
            elements_left: MAX_ELEMENTS,
        }
    }

    /// Returns the elements of `lines`, separated by commas that are in no quoted string.
    pub(crate) fn quoted(lines: I) -> Self {
        Self {
            has_quotes: true,
            ..Self::plain(lines)
        }
    }
}

impl<'a, I> Iterator for Elements<'a, I>
where
    I: DoubleEndedIterator<Item = &'a [u8]>,
{
    type Item = Result<Element<'a>, TooLong>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = match self.rest.take() {
            Some(rest) => rest,
            None => {
                let line = self.lines.next_back()?;
                let beyond = line.len().saturating_sub(self.bytes_left);
                self.is_cut = beyond > 0;
                let within = line.get(beyond..).unwrap_or_default();
                self.bytes_left -= within.len();
                within
            }
        };
        if self.elements_left == 0 {
            return Some(Err(TooLong));
        }
        self.elements_left -= 1;
        if !self.has_quotes
            && let Some((v4, before)) = ipv4_at_the_end(trimmed_end(rest))
            && let before = trimmed_end(before)
            && (!before.is_empty() || !self.is_cut)
            && (before.is_empty() || before.ends_with(b","))
        {
            self.rest = before.strip_suffix(b",");
            return Some(Ok(Element::Ipv4(Address::from_ipv4(v4))));
        }
        let comma = if self.has_quotes {
            last_comma_outside_quotes(rest)
        } else {
            rest.iter().rposition(|byte| *byte == b',')
        };
        match comma {
            Some(comma) => {
                let (before, element) = rest.split_at(comma);
                self.rest = Some(before);
                Some(Ok(Element::Text(trimmed(
                    element.get(1..).unwrap_or_default(),
                ))))
            }
            // The beginning of the element is beyond the limit.
            None if self.is_cut => Some(Err(TooLong)),
            None => Some(Ok(Element::Text(trimmed(rest)))),
        }
    }
}

/// Returns `text` without spaces and tabs around it.
#[inline]
pub(crate) fn trimmed(text: &[u8]) -> &[u8] {
    let mut text = trimmed_end(text);
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    text
}

#[inline]
fn trimmed_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// A quote that is read from the right ends a quoted string. The string begins at the next quote
/// that no backslash escapes. In a list of well-formed elements this finds the same commas as
/// reading from the left, and an unmatched quote on the left does not hide the elements after it.
fn last_comma_outside_quotes(text: &[u8]) -> Option<usize> {
    let mut is_quoted = false;
    let mut rest = text;
    while let [before @ .., last] = rest {
        match last {
            b'"' if !is_quoted => is_quoted = true,
            b'"' => {
                let backslashes = before.iter().rev().take_while(|byte| **byte == b'\\');
                is_quoted = backslashes.count() % 2 == 1;
            }
            b',' if !is_quoted => return Some(before.len()),
            _ => {}
        }
        rest = before;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn plain(lines: &[&str]) -> Vec<Result<String, TooLong>> {
        collect(Elements::plain(lines.iter().map(|line| line.as_bytes())))
    }

    fn quoted(lines: &[&str]) -> Vec<Result<String, TooLong>> {
        collect(Elements::quoted(lines.iter().map(|line| line.as_bytes())))
    }

    /// Up to and including the first error.
    fn collect<'a>(
        elements: impl Iterator<Item = Result<Element<'a>, TooLong>>,
    ) -> Vec<Result<String, TooLong>> {
        let mut found = Vec::new();
        for element in elements {
            found.push(element.map(|element| match element {
                Element::Text(text) => String::from_utf8_lossy(text).into_owned(),
                Element::Ipv4(v4) => format!("<{}>", std::net::IpAddr::from(v4)),
            }));
            if element.is_err() {
                break;
            }
        }
        found
    }

    fn all(texts: &[&str]) -> Vec<Result<String, TooLong>> {
        texts.iter().map(|text| Ok((*text).to_owned())).collect()
    }

    #[test]
    fn all_lines_are_one_list_that_is_read_from_the_right() {
        assert_eq!(plain(&[]), []);
        assert_eq!(plain(&["a, b", "c"]), all(&["c", "b", "a"]));
        assert_eq!(plain(&["a ,\t b\t", " c,d "]), all(&["d", "c", "b", "a"]));
        assert_eq!(plain(&["a,,b,", ""]), all(&["", "", "b", "", "a"]));
        assert_eq!(plain(&[" "]), all(&[""]));
    }

    #[test]
    fn a_bare_ipv4_address_is_parsed_at_once_if_it_is_a_whole_element() {
        assert_eq!(plain(&["192.0.2.1"]), all(&["<192.0.2.1>"]));
        assert_eq!(
            plain(&["a, 192.0.2.1 ,\t192.0.2.2\t", " 192.0.2.3"]),
            all(&["<192.0.2.3>", "<192.0.2.2>", "<192.0.2.1>", "a"])
        );
        assert_eq!(plain(&[",192.0.2.1"]), all(&["<192.0.2.1>", ""]));
        for text in [
            "1192.0.2.1",
            "x 192.0.2.1",
            "1.192.0.2.1",
            "192.0.2.1:80",
            "::ffff:1.2.3.4",
        ] {
            assert_eq!(plain(&[text]), all(&[text]));
        }
        // Digits on the left may be beyond the limit.
        let cut = format!("{}192.0.2.1", " ".repeat(MAX_BYTES - 9));
        assert_eq!(plain(&[&cut]), all(&["<192.0.2.1>"]));
        assert_eq!(plain(&[&format!("1{cut}")]), [Err(TooLong)]);
    }

    #[test]
    fn a_comma_in_quotes_separates_nothing() {
        assert_eq!(quoted(&[r#"a="x,y", b"#]), all(&["b", r#"a="x,y""#]));
        assert_eq!(quoted(&[r#"a="x\",y", b"#]), all(&["b", r#"a="x\",y""#]));
        assert_eq!(quoted(&[r#"a="x\\", b"#]), all(&["b", r#"a="x\\""#]));
        assert_eq!(quoted(&[r#"a="x\\\",y""#]), all(&[r#"a="x\\\",y""#]));
        assert_eq!(quoted(&[r#"a="","",b"#]), all(&["b", r#""""#, r#"a="""#]));
    }

    #[test]
    fn an_unmatched_quote_does_not_hide_the_elements_on_its_right() {
        let mine = r#"for="[2001:db8::1]";proto=https"#;
        for theirs in ["\"", "for=\"", r#"for="\"#, r#"a="b",c=""#, r#"\"\\"#] {
            let found = quoted(&[&format!("{theirs}, {mine}")]);
            assert_eq!(found[0], Ok(mine.to_owned()), "{theirs}");
            let found = quoted(&[&format!("{theirs}, for=192.0.2.1, {mine}")]);
            assert_eq!(found[..2], all(&[mine, "for=192.0.2.1"]), "{theirs}");
        }
    }

    #[test]
    fn the_33rd_element_is_too_much() {
        let list = vec!["a"; MAX_ELEMENTS].join(",");
        assert_eq!(plain(&[&list]), all(&["a"; MAX_ELEMENTS]));
        for more in [vec!["b", &list], vec!["", &list], vec![&list, "b"]] {
            let found = plain(&more);
            assert_eq!(found.len(), MAX_ELEMENTS + 1);
            assert_eq!(found.last(), Some(&Err(TooLong)));
        }
        assert_eq!(plain(&[&",".repeat(5000)]).last(), Some(&Err(TooLong)));
        assert_eq!(plain(&vec![""; 10_000]).len(), MAX_ELEMENTS + 1);
    }

    #[test]
    fn more_than_4_kib_is_too_much() {
        let long = "a".repeat(MAX_BYTES);
        assert_eq!(plain(&[&long]), all(&[&long]));
        assert_eq!(plain(&[&format!("{long}a")]), [Err(TooLong)]);
        assert_eq!(
            plain(&[&format!("{long},b")]),
            [Ok("b".into()), Err(TooLong)]
        );
        assert_eq!(plain(&["b", &long]), [Ok(long.clone()), Err(TooLong)]);
        assert_eq!(plain(&["", &long]), all(&[&long, ""]));
        let half = "a".repeat(MAX_BYTES / 2);
        assert_eq!(plain(&[&half, &half]), all(&[&half, &half]));
        assert_eq!(
            plain(&["b", &half, &half]),
            [Ok(half.clone()), Ok(half.clone()), Err(TooLong)]
        );
        let commas = format!("for=\"{}", "\"".repeat(MAX_BYTES));
        assert_eq!(quoted(&[&commas]).last(), Some(&Err(TooLong)));
    }

    /// Splits a list from the left, as RFC 9110 has it.
    fn from_the_left(text: &str) -> Vec<String> {
        let (mut found, mut is_quoted, mut is_escaped) = (vec![String::new()], false, false);
        for letter in text.chars() {
            if letter == ',' && !is_quoted {
                found.push(String::new());
                continue;
            }
            if letter == '"' && !is_escaped {
                is_quoted = !is_quoted;
            }
            is_escaped = is_quoted && letter == '\\' && !is_escaped;
            found.last_mut().unwrap().push(letter);
        }
        found.iter().map(|text| text.trim().to_owned()).collect()
    }

    proptest! {
        #[test]
        fn well_formed_lists_are_split_as_from_the_left(
            elements in vec(r#"[a;=]{0,3}("([a,; ]|\\["\\,]){0,6}")?"#, 1..8),
        ) {
            let text = elements.join(" , ");
            let mut expected = from_the_left(&text);
            expected.reverse();
            let found: Vec<_> = quoted(&[&text]).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn what_is_on_the_left_does_not_change_what_is_found_on_the_right(
            theirs in r#"[a,;="\\ ]{0,40}"#,
            ours in vec(r#"[a;=]{1,3}("([a,; ]|\\["\\,]){0,6}")?"#, 1..4),
        ) {
            // An element begins with a name, and so does a quoted string.
            let ours: Vec<_> = ours.iter().map(|text| format!("a={text}")).collect();
            let found = quoted(&[&format!("{theirs},{}", ours.join(", "))]);
            let expected: Vec<_> = ours.iter().rev().map(|text| Ok(text.clone())).collect();
            prop_assert_eq!(&found[..ours.len()], &expected[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(lines in vec(vec(any::<u8>(), 0..100), 0..6)) {
            let lines = || lines.iter().map(Vec::as_slice);
            prop_assert!(Elements::plain(lines()).take_while(Result::is_ok).count() <= MAX_ELEMENTS);
            prop_assert!(Elements::quoted(lines()).take_while(Result::is_ok).count() <= MAX_ELEMENTS);
        }
    }
}
