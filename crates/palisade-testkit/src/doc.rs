//! Helpers of the examples in doc comments, where the line that imports them is hidden. An example
//! imports all of this module.

pub use crate::{Journal, h2};
pub use axum::{Router, routing::get};
pub use http::{Request, Response, Version};
pub use std::{convert::Infallible, future::pending, io::ErrorKind, time::Duration};
pub use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
pub use tower::{Layer, Service, ServiceExt, service_fn};

use axum::routing::MethodRouter;
use palisade::{
    conn::{ConnGuard, GuardedIo, RequestTracking, connected},
    serve::{App, Serve},
};
use std::{
    future::IntoFuture,
    io,
    net::{IpAddr, SocketAddr},
};
use tower::util::ServiceFn;

/// Returns two connected sockets: that of the client, and that of the server.
pub async fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    Ok((client, listener.accept().await?.0))
}

/// Admits a connection of the client `from`, which counts as at work from its first byte on.
pub async fn connect(guard: &ConnGuard, from: &str) -> io::Result<GuardedIo<TcpStream>> {
    let from: IpAddr = from.parse().map_err(io::Error::other)?;
    let (mut client, socket) = pair().await?;
    client.write_u8(0).await?;
    let mut io = guard.admit(socket, Some(SocketAddr::new(from, 4711)), None)?;
    io.read_u8().await?;
    Ok(io)
}

/// Admits a connection of the client 192.0.2.1. Returns the client's socket, the guarded socket,
/// and the service that tracks its requests and passes them to `respond`.
pub async fn tracked<F>(
    guard: &ConnGuard,
    respond: F,
) -> io::Result<(
    TcpStream,
    GuardedIo<TcpStream>,
    RequestTracking<ServiceFn<F>>,
)> {
    let (client, socket) = pair().await?;
    let io = guard.admit(socket, Some(([192, 0, 2, 1], 4711).into()), None)?;
    let service = RequestTracking::for_connection(io.conn().clone(), service_fn(respond));
    Ok((client, io, service))
}

/// Returns a request of `version`.
pub fn request(version: Version) -> Request<String> {
    let mut request = Request::default();
    *request.version_mut() = version;
    request
}

/// Responds at once.
pub async fn hello<B>(_: Request<B>) -> Result<Response<String>, Infallible> {
    Ok(Response::new("hello".into()))
}

/// Never responds.
pub async fn never(_: Request<String>) -> Result<Response<String>, Infallible> {
    pending().await
}

/// Responds with 101.
pub async fn upgrade(_: Request<String>) -> Result<Response<String>, Infallible> {
    let mut response = Response::default();
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    Ok(response)
}

/// Serves `handler` at `/` with `axum::serve` behind `guard`. Returns the server's address.
pub async fn serve(guard: &ConnGuard, handler: MethodRouter) -> io::Result<SocketAddr> {
    let listener = guard.bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().route("/", handler);
    tokio::spawn(axum::serve(listener, connected(app)).into_future());
    Ok(address)
}

/// Runs `server` in a task. Returns its address.
pub fn spawn<L, A, Kind>(server: Serve<L, A, Kind>) -> io::Result<SocketAddr>
where
    L: palisade::conn::Listener,
    A: App<Kind>,
    Kind: 'static,
{
    let address = server.local_addr()?;
    tokio::spawn(server.into_future());
    Ok(address)
}

/// Sends `bytes` on a new connection. Returns all that the server sends until it closes the
/// connection.
pub async fn ask(address: SocketAddr, bytes: impl AsRef<[u8]>) -> io::Result<String> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(bytes.as_ref()).await?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Opens an HTTP/2 connection with stream windows of `window`.
pub async fn http2(address: SocketAddr, window: u32) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(&h2::hello(window)).await?;
    client
        .write_all(&h2::frame(h2::SETTINGS, h2::ACK, 0, &[]))
        .await?;
    Ok(client)
}
