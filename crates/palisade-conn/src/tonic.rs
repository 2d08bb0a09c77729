//! Under tonic's `serve_with_incoming`.

use crate::{Accept, Guarded, GuardedIo, Transport};
use futures_core::Stream;
use http::Extensions;
use palisade_core::ConnInfo;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What tonic leaves in each request's extensions is the connection itself. tonic's own
/// `remote_addr()` knows nothing of that: [`AccountingLayer`](crate::AccountingLayer) tells it.
impl<T: Transport> Connected for GuardedIo<T> {
    type ConnectInfo = Arc<ConnInfo>;

    fn connect_info(&self) -> Arc<ConnInfo> {
        self.conn().clone()
    }
}

/// Never ends. Fails as [`Guarded::accept`] does, after which tonic asks again.
impl<L: Accept + Unpin> Stream for Guarded<L>
where
    L::Io: Unpin,
{
    type Item = io::Result<GuardedIo<L::Io>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_accept(cx).map_ok(|(io, _)| io).map(Some)
    }
}

/// Puts back what `remote_addr()` and `local_addr()` of a tonic request look for.
pub(crate) fn restore(conn: &ConnInfo, extensions: &mut Extensions) {
    // Not where axum's own word of the peer is all that anybody looks for.
    if extensions.get::<Arc<ConnInfo>>().is_some() && extensions.get::<TcpConnectInfo>().is_none() {
        let (local_addr, remote_addr) = (conn.local(), Some(conn.peer()));
        extensions.insert(TcpConnectInfo { local_addr, remote_addr });
    }
}
