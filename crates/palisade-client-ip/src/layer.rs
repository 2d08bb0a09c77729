//! The layer that finds the client of a request.

use crate::{Client, Trust};
use http::Request;
use palisade_core::ConfigError;
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// Finds the client of each request and inserts it as a [`Client`], for servers without a
/// connection guard. It belongs outside of all guards, and outside of the layers that log.
///
/// A `Client` that is there already is left as it is. A request of which neither peer nor client is
/// known gets none, and [`ClientIp`](crate::ClientIp) then treats it as
/// [`Missing`](crate::Missing) says. The field is left in the request.
///
/// ```
/// use palisade_client_ip::{ClientIpLayer, Trust};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let layer = ClientIpLayer::new(Trust::private())?;
/// let service = layer.layer(service_fn(echo)); // Or a router, with the guards in it.
/// # service.oneshot(Request::new(Full::<Bytes>::default())).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct ClientIpLayer {
    trust: Arc<Trust>,
}

/// Finds the client of each request. See [`ClientIpLayer`].
#[derive(Clone, Debug)]
pub struct FindClient<S> {
    inner: S,
    trust: Arc<Trust>,
}

// === ClientIpLayer ===

impl ClientIpLayer {
    /// Creates a layer that finds clients as `trust` says.
    ///
    /// # Errors
    ///
    /// The faults of [`Trust::check`].
    pub fn new(trust: Trust) -> Result<Self, ConfigError> {
        trust.check()?;
        let trust = Arc::new(trust);
        Ok(Self { trust })
    }
}

impl<S> Layer<S> for ClientIpLayer {
    type Service = FindClient<S>;

    fn layer(&self, inner: S) -> FindClient<S> {
        let trust = Arc::clone(&self.trust);
        FindClient { inner, trust }
    }
}

// === FindClient ===

impl<S, B> Service<Request<B>> for FindClient<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if Client::from_extensions(request.extensions()).is_none() {
            let client = self.trust.identify(request.extensions(), request.headers());
            if client.address().is_some() {
                request.extensions_mut().insert(client);
            }
        }
        self.inner.call(request)
    }
}
