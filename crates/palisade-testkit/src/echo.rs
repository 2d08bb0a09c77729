//! Implementations of the gRPC services `demo.Echo` and `demo.Feed`.

use crate::demo::{Piece, Total, echo_server::Echo, feed_server::Feed};
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tonic::{Request, Response, Status, Streaming};

/// Implements `demo.Echo`: returns the number of bytes received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths;

#[tonic::async_trait]
impl Echo for Lengths {
    async fn unary(&self, request: Request<Piece>) -> Result<Response<Total>, Status> {
        Ok(Response::new(Total {
            bytes: request.get_ref().data.len() as u64,
        }))
    }

    async fn collect(&self, request: Request<Streaming<Piece>>) -> Result<Response<Total>, Status> {
        let mut pieces = request.into_inner();
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await? {
            bytes += piece.data.len() as u64;
        }
        Ok(Response::new(Total { bytes }))
    }
}

/// Implements `demo.Feed`: sends every piece of the channel to each watcher, and returns every
/// piece of a chat to its sender.
#[derive(Clone, Debug)]
pub struct BroadcastFeed(pub broadcast::Sender<Piece>);

type Pieces = std::pin::Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

impl Default for BroadcastFeed {
    fn default() -> Self {
        Self(broadcast::channel(16).0)
    }
}

#[tonic::async_trait]
impl Feed for BroadcastFeed {
    type WatchStream = Pieces;
    type ChatStream = Pieces;

    async fn watch(&self, _: Request<Piece>) -> Result<Response<Pieces>, Status> {
        let pieces = BroadcastStream::new(self.0.subscribe());
        let pieces = pieces.map(|piece| piece.map_err(|_| Status::data_loss("receiver lagged")));
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn chat(&self, request: Request<Streaming<Piece>>) -> Result<Response<Pieces>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}
