//! The lengths that requests and responses declare for their bodies.

use http::{HeaderMap, Request, Response, header::CONTENT_LENGTH};
use http_body::Body;

/// The length that a request declares for its body.
pub(crate) struct DeclaredLength {
    pub(crate) bytes: u64,
    /// The body yields exactly this many bytes; otherwise it may yield more.
    pub(crate) is_exact: bool,
}

impl DeclaredLength {
    /// Determines the declared length of `request`.
    ///
    /// The exact size hint of the body has precedence, because servers enforce it. `Content-Length`
    /// matters if the body of another layer has lost the size hint. If the header is repeated, the
    /// largest value counts; refusing values that are not numbers is left to the server.
    pub(crate) fn from_request<B: Body>(request: &Request<B>) -> Self {
        let hint = request.body().size_hint();
        match hint.exact() {
            Some(bytes) => Self {
                bytes,
                is_exact: true,
            },
            None => Self {
                bytes: largest_content_length(request.headers()).max(hint.lower()),
                is_exact: false,
            },
        }
    }
}

/// Returns the length that `response` declares for its body, or 0. Refusing a `Content-Length` that
/// contradicts the body's exact size hint is left to the server.
pub(crate) fn declared_by_response<B: Body>(response: &Response<B>) -> u64 {
    let hint = response.body().size_hint();
    hint.exact()
        .unwrap_or_else(|| largest_content_length(response.headers()).max(hint.lower()))
}

fn largest_content_length(headers: &HeaderMap) -> u64 {
    let lengths = headers.get_all(CONTENT_LENGTH).into_iter();
    lengths
        .filter_map(|value| value.to_str().ok()?.parse().ok())
        .max()
        .unwrap_or(0)
}
