//! The state that all connections of a server share.

use crate::{Http, drain::Drain};
use hyper::server::conn::http1;
use palisade_conn::ConnGuard;
use std::sync::Arc;

/// The guard, the HTTP settings and the shutdown state of one server.
pub(crate) struct Server {
    pub(crate) guard: ConnGuard,
    pub(crate) http: Http,
    /// Built from `http` once: it does not depend on the connection.
    pub(crate) http1: http1::Builder,
    pub(crate) drain: Arc<Drain>,
}
