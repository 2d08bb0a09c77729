//! Request tracking: reports to a connection which requests are in flight on it.

pub(crate) mod body;
pub(crate) mod future;
pub(crate) mod head;
mod identify;
pub(crate) mod layer;
mod proxy_hint;
mod request;
pub(crate) mod service;
#[cfg(test)]
mod tests;
