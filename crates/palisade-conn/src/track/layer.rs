//! The layer for servers whose service does not know its connection, such as tonic's.

use super::service::RequestTracking;
use crate::guard::shared::Shared;
use std::sync::{Arc, Weak};
use tower_layer::Layer;

/// Applies [`RequestTracking`]. From
/// [`ConnGuard::track_requests`](crate::ConnGuard::track_requests); for axum see
#[cfg_attr(feature = "axum", doc = "[`connected`](crate::connected).")]
#[cfg_attr(not(feature = "axum"), doc = "`connected`, with the feature `axum`.")]
#[derive(Clone, Debug)]
pub struct RequestTrackingLayer {
    guard: Weak<Shared>,
}

impl RequestTrackingLayer {
    pub(crate) fn new(guard: &Arc<Shared>) -> Self {
        let guard = Arc::downgrade(guard);
        Self { guard }
    }
}

impl<S> Layer<S> for RequestTrackingLayer {
    type Service = RequestTracking<S>;

    fn layer(&self, inner: S) -> RequestTracking<S> {
        RequestTracking::by_extension(inner, self.guard.clone())
    }
}
