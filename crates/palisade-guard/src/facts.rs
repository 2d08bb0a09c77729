//! What is known of a request once its head has been passed on.

use http::{Method, Request, Version};
use http_body::Body;
use palisade_core::{AnswerForm, ConnInfo};
use std::sync::Arc;

/// Properties of a request's head, looked up once for all policies.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The connection, if a sink listens and the server told of one.
    pub conn: Option<Arc<ConnInfo>>,
    /// The form in which the client expects a refusal.
    pub form: AnswerForm,
    /// The protocol version.
    pub version: Version,
    /// Whether the request has a body.
    pub has_body: bool,
    /// Whether the method is `HEAD`.
    pub is_head: bool,
    /// Whether the method is `CONNECT`.
    pub is_connect: bool,
}

impl Facts {
    /// The facts of `request`. Its connection is looked up if a sink `listens`.
    #[inline(always)]
    pub fn of<B: Body>(request: &Request<B>, listens: bool) -> Self {
        Self {
            conn: if listens { ConnInfo::of(request.extensions()).cloned() } else { None },
            form: AnswerForm::of(request),
            version: request.version(),
            has_body: !request.body().is_end_stream(),
            is_head: request.method() == Method::HEAD,
            is_connect: request.method() == Method::CONNECT,
        }
    }

    /// The connection, in the form that events take.
    #[inline]
    pub fn conn(&self) -> Option<&ConnInfo> {
        self.conn.as_deref()
    }
}
