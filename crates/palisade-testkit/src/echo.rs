//! The gRPC service `demo.Echo`.

use crate::demo::{Piece, Total, echo_server::Echo};
use tonic::{Request, Response, Status, Streaming};

/// Answers lengths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths;

#[tonic::async_trait]
impl Echo for Lengths {
    async fn unary(&self, request: Request<Piece>) -> Result<Response<Total>, Status> {
        Ok(Response::new(Total { bytes: request.get_ref().data.len() as u64 }))
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
