//! The response of a policy in place of the handler's.

use crate::{OnReject, Settings, Unread};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_LENGTH};
use palisade_core::{Rejection, ResponseFormat};
use std::fmt;

/// A rejection, and how the policy that made it writes the response.
#[derive(Clone)]
pub struct Refusal {
    rejection: Rejection,
    on_reject: Option<OnReject>,
}

/// A refusal of a request whose body has been dealt with.
#[derive(Clone, Debug)]
pub struct Refused {
    refusal: Refusal,
    is_head: bool,
}

// === Refusal ===

impl Refusal {
    /// To be answered as `settings` say. The caller has recorded the rejection.
    pub fn new(rejection: Rejection, settings: &Settings) -> Self {
        Self {
            rejection,
            on_reject: settings.on_reject.clone(),
        }
    }

    /// Refuses `request`, which no handler has seen: keeps its body as `U` says.
    pub fn turn_away<U: Unread<B>, B>(self, request: Request<B>) -> Refused {
        let is_head = request.method() == Method::HEAD;
        let is_read = U::keep(request).unwrap_or(false);
        self.refused(is_head, is_read)
    }

    /// For a request of this kind. The connection may stay open if its body `is_read` to the end.
    pub(crate) fn refused(mut self, is_head: bool, is_read: bool) -> Refused {
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
    /// The response. That to a `HEAD`, and any 1xx, 204 and 304, has no body.
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
        let mut response = match (on_reject, rejection.form()) {
            (Some(on_reject), ResponseFormat::Http { .. }) => {
                let response = on_reject(&rejection);
                rejection.complete(response)
            }
            _ => rejection.into_bytes(),
        };
        let status = response.status();
        if is_head && !response.body().is_empty() {
            // What a GET would get (RFC 9110 section 8.6).
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
