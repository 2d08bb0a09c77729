//! Properties of a request that remain available after its head has been passed on.

use http::{Method, Request, Version};
use http_body::Body;
use palisade_core::{ConnInfo, ResponseFormat};
use std::sync::Arc;

/// Properties of a request's head, determined once for all policies.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Facts {
    /// The connection, if the server provides it, and either a metrics sink is configured or the
    /// request [shares its window](Self::shared_window).
    pub conn: Option<Arc<ConnInfo>>,
    /// The response format in which the client expects a refusal.
    pub form: ResponseFormat,
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
    /// Returns the facts of `request`. `has_recorder` says whether a metrics sink is configured, so
    /// that events need the connection.
    #[inline(always)]
    pub fn from_request<B: Body>(request: &Request<B>, has_recorder: bool) -> Self {
        let has_body = !request.body().is_end_stream();
        let needs_conn = has_recorder || (has_body && request.version() == Version::HTTP_2);
        Self {
            conn: if needs_conn {
                ConnInfo::from_extensions(request.extensions()).cloned()
            } else {
                None
            },
            form: ResponseFormat::detect(request),
            version: request.version(),
            has_body,
            is_head: request.method() == Method::HEAD,
            is_connect: request.method() == Method::CONNECT,
        }
    }

    /// Returns the connection if the request has a body and arrived over HTTP/2. All request bodies
    /// of an HTTP/2 connection share one flow-control window, so a body that is not read can block
    /// the others.
    #[inline]
    pub fn shared_window(&self) -> Option<&ConnInfo> {
        self.conn()
            .filter(|_| self.has_body && self.version == Version::HTTP_2)
    }

    /// Returns the connection in the form that events take.
    #[inline]
    pub fn conn(&self) -> Option<&ConnInfo> {
        self.conn.as_deref()
    }

    /// Moves the facts out. What is left has no connection.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            conn: self.conn.take(),
            form: self.form,
            version: self.version,
            has_body: self.has_body,
            is_head: self.is_head,
            is_connect: self.is_connect,
        }
    }
}
