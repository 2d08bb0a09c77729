//! Properties of a request that remain available after its head has been passed on.

use http::{Extensions, Method, Request, Version};
use http_body::Body;
use palisade_core::{Client, ConnInfo, ResponseFormat};
use std::sync::Arc;

/// Properties of a request's head, determined once for all policies.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Facts {
    origin: Origin,
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

/// Where a request comes from.
#[derive(Clone, Debug)]
enum Origin {
    /// The peer of this connection is the client.
    Peer(Arc<ConnInfo>),
    /// It is not, or nothing is known.
    Other(Option<Arc<Named>>),
}

/// A client that is not the peer, as events need it. Behind a pointer, so that all other requests
/// are no larger for it.
#[derive(Debug)]
struct Named {
    conn: Option<Arc<ConnInfo>>,
    client: Client,
}

// === Facts ===

impl Facts {
    /// Returns the facts of `request`. `has_recorder` says whether a metrics sink is configured, so
    /// that events need the connection.
    #[inline(always)]
    pub fn from_request<B: Body>(request: &Request<B>, has_recorder: bool) -> Self {
        let has_body = !request.body().is_end_stream();
        let needs_conn = has_recorder || (has_body && request.version() == Version::HTTP_2);
        Self {
            origin: if needs_conn {
                Origin::of(request.extensions(), has_recorder)
            } else {
                Origin::default()
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

    /// Returns the connection, if the server provides it, and either a metrics sink is configured
    /// or the request [shares its window](Self::shared_window).
    #[inline]
    pub fn conn(&self) -> Option<&ConnInfo> {
        match &self.origin {
            Origin::Peer(conn) => Some(conn),
            Origin::Other(other) => other.as_ref()?.conn.as_deref(),
        }
    }

    /// Returns the client, if a metrics sink is configured and the client is not the peer of the
    /// [connection](Self::conn).
    pub fn client(&self) -> Option<&Client> {
        match &self.origin {
            Origin::Peer(_) => None,
            Origin::Other(other) => other.as_deref().map(|named| &named.client),
        }
    }

    /// Moves the facts out. What is left has no connection.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            origin: std::mem::take(&mut self.origin),
            form: self.form,
            version: self.version,
            has_body: self.has_body,
            is_head: self.is_head,
            is_connect: self.is_connect,
        }
    }
}

// === Origin ===

impl Origin {
    #[inline]
    fn of(extensions: &Extensions, has_recorder: bool) -> Self {
        let conn = ConnInfo::from_extensions(extensions).cloned();
        if has_recorder && let Some(client) = Client::beside(conn.as_deref(), extensions) {
            return Self::named(conn, *client);
        }
        conn.map_or(Self::Other(None), Self::Peer)
    }

    #[cold]
    fn named(conn: Option<Arc<ConnInfo>>, client: Client) -> Self {
        Self::Other(Some(Arc::new(Named { conn, client })))
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self::Other(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_client_makes_the_facts_no_larger() {
        assert_eq!(size_of::<Origin>(), size_of::<Option<Arc<ConnInfo>>>());
    }
}
