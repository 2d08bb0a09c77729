//! What all connections of a server share.

use crate::{Http, drain::Drain};
use hyper::server::conn::http1;
use palisade_conn::ConnGuard;
use std::sync::Arc;

/// The guard, the settings and the drain of one server.
pub(crate) struct Server {
    pub(crate) guard: ConnGuard,
    pub(crate) http: Http,
    pub(crate) http1: http1::Builder,
    pub(crate) drain: Arc<Drain>,
}
