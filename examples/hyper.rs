//! A bare hyper service behind all guards, with an accept loop by hand, for whoever needs one:
//! `palisade::serve(listener, service)` does the same, and more. `cargo run --example hyper`, then `curl -i http://127.0.0.1:3000/`.

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

/// Answers the length of the body. Guards wrap bodies, so the handler takes any.
async fn length<B: Body>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match request.into_body().collect().await {
        Ok(body) => format!("{} bytes\n", body.to_bytes().len()),
        Err(_) => "the body did not come\n".to_owned(),
    };
    Ok(Response::new(Full::new(text.into())))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One stack for all connections: state is shared by all services that it makes.
    let service = Stack::edge().build()?.layer(service_fn(length));
    let mut server = Builder::new(TokioExecutor::new());
    // Without a timer hyper has no limit on how long a PING may go unanswered.
    server.http2().timer(TokioTimer::new());

    let mut listener = ConnGuard::default().bind("127.0.0.1:3000").await?;
    loop {
        let (io, _) = listener.accept().await?;
        // Tells the guard of the requests, and the guards of the requests who is asking.
        let service = RequestTracking::for_connection(io.conn().clone(), service.clone());
        let server = server.clone();
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            // An error here is a client that went away, or was ended.
            let _ = server.serve_connection(TokioIo::new(io), service).await;
        });
    }
}
