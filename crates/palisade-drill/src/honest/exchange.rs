//! HTTP/1 requests of honest clients, by hyper.

use crate::{
    sample::{Kind, Outcome},
    target::Stream,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

/// The largest response body that an honest client reads.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;
/// The largest response head that an honest client reads.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// What one kind of client requests, and the answer that it expects.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) kind: Kind,
    pub(crate) request: Request<Full<Bytes>>,
    /// The status of the expected answer.
    pub(crate) status: u16,
    /// Its body; `None` if it differs from answer to answer.
    pub(crate) body: Option<Bytes>,
}

/// An HTTP/1 connection.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Begins HTTP/1 on `stream`; `None` if it is at its end.
    pub(super) async fn new(stream: Stream) -> Option<Self> {
        let io = TokioIo::new(stream);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(io)
            .await
            .ok()?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Some(Self { sender, driver })
    }

    /// Returns whether another request may be sent, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends `request` and reads the whole answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<hyper::body::Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The socket closes now, also if an answer is outstanding.
        self.driver.abort();
    }
}

/// Sends the request of `route` and compares the answer with the expected one.
pub(super) async fn exchange(connection: &mut Connection, route: &Route) -> Outcome {
    let Ok(response) = connection.send(route.request.clone()).await else {
        return Outcome::Cut;
    };
    let status = response.status().as_u16();
    if status != route.status {
        return Outcome::Status(status);
    }
    match Limited::new(response.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
    {
        Ok(body) => match &route.body {
            Some(expected) if *expected != body.to_bytes() => Outcome::WrongBody,
            _ => Outcome::Served,
        },
        Err(_) => Outcome::Cut,
    }
}
