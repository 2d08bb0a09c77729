//! What requests and responses say about the length of their bodies.

use http::{HeaderMap, Request, Response, header::CONTENT_LENGTH};
use http_body::Body;

/// The length that a request declares.
pub(crate) struct Length {
    pub(crate) declared: u64,
    pub(crate) is_exact: bool,
}

impl Length {
    /// The body itself knows best: servers make sure that it keeps to what it says. The header is
    /// read where another layer's body has lost its length; where it comes more than once the
    /// largest counts, and what is no number is the server's to refuse.
    pub(crate) fn of<B: Body>(request: &Request<B>) -> Self {
        let hint = request.body().size_hint();
        match hint.exact() {
            Some(declared) => Self {
                declared,
                is_exact: true,
            },
            None => {
                let declared = largest(request.headers()).max(hint.lower());
                Self {
                    declared,
                    is_exact: false,
                }
            }
        }
    }
}

/// The length of a response body as far as it is known. A `Content-Length` that contradicts what
/// the body itself knows is the server's to refuse.
pub(crate) fn declared<B: Body>(response: &Response<B>) -> u64 {
    let hint = response.body().size_hint();
    hint.exact()
        .unwrap_or_else(|| largest(response.headers()).max(hint.lower()))
}

fn largest(headers: &HeaderMap) -> u64 {
    let lengths = headers.get_all(CONTENT_LENGTH).into_iter();
    lengths
        .filter_map(|value| value.to_str().ok()?.parse().ok())
        .max()
        .unwrap_or(0)
}
