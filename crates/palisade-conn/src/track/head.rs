//! What the decoded head of an HTTP/2 request takes in memory.
//!
//! h2 limits the sum of names and values. That of many short fields is small, and what they take is
//! not.

use http::{HeaderMap, Request, header::COOKIE};

/// The memory of one field beyond its name and value, at most: 218 bytes were measured, for 193
/// names that differ.
const FIELD_BYTES: u64 = 224;
/// A head that takes no more is not charged, as most are not. The limit on requests in flight
/// limits their sum, and a budget that uploads have filled does not refuse them.
pub(crate) const FREE_BYTES: u64 = 8 * 1024;
/// The fields of one head, without `cookie`.
const MAX_FIELDS: usize = 100;
/// The `cookie` fields of one head: clients split a cookie into crumbs (RFC 9113 section 8.2.3).
const MAX_COOKIES: usize = 200;

/// Returns the limit and the number of fields of one kind, if there are too many.
#[inline]
pub(super) fn exceeded_fields(headers: &HeaderMap) -> Option<(u64, u64)> {
    if headers.len() <= MAX_FIELDS {
        return None;
    }
    let cookies = headers.get_all(COOKIE).iter().count();
    let others = headers.len() - cookies;
    [(MAX_FIELDS, others), (MAX_COOKIES, cookies)]
        .into_iter()
        .find(|(limit, fields)| fields > limit)
        .map(|(limit, fields)| (limit as u64, fields as u64))
}

/// Returns the bytes that the head takes in memory, or a few more.
pub(super) fn memory<B>(request: &Request<B>) -> u64 {
    let fields = request.headers();
    let text: usize = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let uri = request.uri();
    let path = uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    let authority = uri.authority().map_or(0, |host| host.as_str().len());
    let line = request.method().as_str().len() + authority + path;
    (line + text) as u64 + FIELD_BYTES * fields.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn head(fields: usize, cookies: usize) -> HeaderMap {
        let mut head = HeaderMap::new();
        for number in 0..fields {
            let name = format!("x-{number}").parse::<HeaderName>().unwrap();
            head.append(name, HeaderValue::from_static("v"));
        }
        for _ in 0..cookies {
            head.append(COOKIE, HeaderValue::from_static("a=b"));
        }
        head
    }

    #[test]
    fn a_head_has_a_hundred_fields_and_two_hundred_crumbs() {
        let exceeded = |fields, cookies| exceeded_fields(&head(fields, cookies));
        assert_eq!(exceeded(0, 0), None);
        assert_eq!(exceeded(90, 150), None);
        assert_eq!(exceeded(100, 200), None);
        assert_eq!(exceeded(101, 0), Some((100, 101)));
        assert_eq!(exceeded(0, 201), Some((200, 201)));
    }

    #[test]
    fn the_memory_of_a_head_is_its_text_and_its_fields() {
        let mut request = Request::get("/path?query").body(()).unwrap();
        assert_eq!(memory(&request), 3 + 11);
        *request.headers_mut() = head(10, 1);
        assert_eq!(memory(&request), 3 + 11 + 11 * 224 + 10 * (3 + 1) + 6 + 3);
        // HTTP/2 has the host in the target, and the method may be any token.
        let target = format!("https://{}/", "h".repeat(30_000));
        let request = Request::builder().method(&*"M".repeat(1000)).uri(target);
        assert_eq!(memory(&request.body(()).unwrap()), 1000 + 30_000 + 1);
    }
}
