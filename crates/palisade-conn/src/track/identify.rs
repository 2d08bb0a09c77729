//! Puts a request's connection where layers, handlers and frameworks look for it.

use http::Extensions;
use palisade_core::ConnInfo;
use std::sync::{Arc, LazyLock};

/// An empty table with room for seven extensions: a router adds three, and to copy an empty table
/// costs less than to let one grow twice.
static WITH_ROOM: LazyLock<Extensions> = LazyLock::new(|| {
    let mut extensions = Extensions::new();
    extensions.insert(());
    extensions.insert(0u8);
    extensions.insert(0u16);
    extensions.insert(0u32);
    extensions.clear();
    extensions
});

/// Inserts the connection, and what frameworks look for.
pub(super) fn identify(conn: &Arc<ConnInfo>, extensions: &mut Extensions, adds_connect_info: bool) {
    if extensions.is_empty() {
        extensions.clone_from(&WITH_ROOM);
    }
    extensions.insert(conn.clone());
    if adds_connect_info {
        add_connect_info(conn, extensions);
    }
    restore(conn, extensions);
}

/// Inserts what axum's extractor `ConnectInfo<SocketAddr>` looks for.
#[cfg(feature = "axum")]
fn add_connect_info(conn: &ConnInfo, extensions: &mut Extensions) {
    extensions.insert(axum::extract::ConnectInfo(conn.peer()));
}

#[cfg(not(feature = "axum"))]
fn add_connect_info(_: &ConnInfo, _: &mut Extensions) {}

/// Inserts what `remote_addr()` and `local_addr()` of a tonic request look for, which tonic does
/// not know of a connection that it did not accept itself.
#[cfg(feature = "tonic")]
pub(super) fn restore(conn: &ConnInfo, extensions: &mut Extensions) {
    use tonic::transport::server::TcpConnectInfo;
    // Not where only axum's own extension tells the peer.
    if extensions.get::<Arc<ConnInfo>>().is_some() && extensions.get::<TcpConnectInfo>().is_none() {
        let (local_addr, remote_addr) = (conn.local(), Some(conn.peer()));
        extensions.insert(TcpConnectInfo {
            local_addr,
            remote_addr,
        });
    }
}

#[cfg(not(feature = "tonic"))]
pub(super) fn restore(_: &ConnInfo, _: &mut Extensions) {}
