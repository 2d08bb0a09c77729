//! The response that a policy sends in place of the handler's.

use crate::Unread;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_LENGTH};
use palisade_core::{Rejection, ResponseFormat};
use std::{fmt, sync::Arc};

/// Writes the response to a refused request in place of the default one.
pub type OnReject = Arc<dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync>;

/// A rejection, and how the policy that issued it writes the response.
#[derive(Clone)]
pub struct Refusal {
    rejection: Rejection,
    on_reject: Option<OnReject>,
}

/// A refusal for which it is known whether the request body is read to its end.
#[derive(Clone, Debug)]
pub struct Refused {
    refusal: Refusal,
    is_head: bool,
}

// === Refusal ===

impl Refusal {
    /// Creates a refusal. `on_reject` writes its response, if given. The caller has recorded the
    /// rejection.
    pub fn new(rejection: Rejection, on_reject: Option<OnReject>) -> Self {
        Self {
            rejection,
            on_reject,
        }
    }

    /// Refuses `request`, which has not reached the handler. `U` decides whether its body lingers.
    pub fn into_refused<U: Unread<B>, B>(self, request: Request<B>) -> Refused {
        let is_head = request.method() == Method::HEAD;
        let is_read = U::keep_whole(request).unwrap_or(false);
        self.refused(is_head, is_read)
    }

    /// Completes the refusal of a request. `is_head` says whether its method is `HEAD`, `is_read`
    /// whether its body is read to its end, so that the connection may stay open.
    pub fn refused(mut self, is_head: bool, is_read: bool) -> Refused {
        if is_read {
            self.rejection.keep_open();
        }
        Refused {
            refusal: self,
            is_head,
        }
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refusal").field(&self.rejection).finish()
    }
}

// === Refused ===

impl Refused {
    /// Returns the response. It has no body if the request is a `HEAD` or the status is 1xx, 204
    /// or 304.
    #[cold]
    #[inline(never)]
    pub fn into_response(self) -> Response<Bytes> {
        let Self {
            refusal: Refusal {
                rejection,
                on_reject,
            },
            is_head,
        } = self;
        let mut response = match (on_reject, rejection.format()) {
            (Some(on_reject), ResponseFormat::Http { .. }) => {
                let response = on_reject(&rejection);
                rejection.complete(response)
            }
            _ => rejection.into_bytes(),
        };
        let status = response.status();
        if is_head && !response.body().is_empty() {
            // The length of the response to a GET (RFC 9110 section 8.6).
            let length = HeaderValue::from(response.body().len());
            response
                .headers_mut()
                .entry(CONTENT_LENGTH)
                .or_insert(length);
        }
        let has_no_body = is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if has_no_body {
            // On HTTP/2 a body would be a protocol error.
            *response.body_mut() = Bytes::new();
        }
        response
    }
}
