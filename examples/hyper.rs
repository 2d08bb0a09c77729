//! A plain hyper service behind all guards, with its own accept loop. `palisade::serve(listener,
//! service)` does the same and more, so use this only if you need your own loop.
//!
//! ```text
//! cargo run --example hyper
//! curl -i http://127.0.0.1:3000/
//! ```

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use palisade::{
    Stack,
    conn::{ConnGuard, RequestTracking},
};
use std::{convert::Infallible, error::Error};
use tower::{Layer, service_fn};

/// Responds with the length of the body. Guards wrap bodies, so the handler is generic over them.
async fn body_length<B: Body>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match request.into_body().collect().await {
        Ok(body) => format!("{} bytes\n", body.to_bytes().len()),
        Err(_) => "the body could not be read\n".to_owned(),
    };
    Ok(Response::new(Full::new(text.into())))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One stack for all connections: the services that it makes share their state.
    let service = Stack::edge().build()?.layer(service_fn(body_length));
    let mut server = Builder::new(TokioExecutor::new());
    // Without a timer, hyper does not limit how long a PING may go unanswered.
    server.http2().timer(TokioTimer::new());

    let mut listener = ConnGuard::default().bind("127.0.0.1:3000").await?;
    loop {
        let (io, _) = listener.accept().await?;
        // Reports requests to the connection guard, and their peer to the request guards.
        let service = RequestTracking::for_connection(io.conn().clone(), service.clone());
        let server = server.clone();
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            // An error means that the client has left or that the guard closed the connection.
            let _ = server.serve_connection(TokioIo::new(io), service).await;
        });
    }
}
