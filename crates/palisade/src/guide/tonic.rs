//! gRPC: the connection guard and the stack on a tonic server, and what a gRPC client sees.
//!
//! `EchoServer` and `EchoClient` in the examples are generated from a proto file. The call `unary`
//! answers the length of one message, `collect` the total length of a stream of messages.
//!
//! # The server
//!
//! Four lines differ from a plain tonic server:
//!
//! - The listener is bound by the guard. It is a stream of connections, for `serve_with_incoming`.
//! - [`harden`] sets the limits of HTTP/2 that tonic leaves open: 100 streams for each connection,
//!   1,024 streams that the server resets because of the client, smaller windows, and an age.
//! - [`track_requests`] reports requests to the guard, and lets `remote_addr()` work. It comes
//!   first, because tonic's first layer is the outermost one. Without it the guard enforces its
//!   caps, but cannot tell an idle connection from one at work: `docs/servers.md` has the table.
//! - [`Stack::grpc`] says that all handlers are gRPC services.
//!
//! [`harden`]: crate::conn::harden
//! [`track_requests`]: crate::conn::ConnGuard::track_requests
//! [`Stack::grpc`]: crate::Stack::grpc
//!
//! ```
//! use palisade::{Quota, Snapshot, Stack, conn::{ConnGuard, harden}};
//! use tonic::{Code, transport::Server};
//! # use palisade_testkit::demo::{Piece, echo_client::EchoClient, echo_server::EchoServer};
//! # use palisade_testkit::echo::Lengths;
//! # fn piece(bytes: usize) -> Piece { Piece { data: vec![0; bytes].into() } }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Snapshot::new();
//! let guard = ConnGuard::builder().metrics(metrics.clone()).build()?;
//! let stack = Stack::edge()
//!     .grpc()
//!     .rate_limit(Quota::per_minute(1).burst(2))
//!     .metrics(metrics.clone())
//!     .build()?;
//!
//! let listener = guard.bind("127.0.0.1:0").await?;
//! let url = format!("http://{}", listener.local_addr()?);
//! let server = harden(Server::builder())
//!     .layer(guard.track_requests())
//!     .layer(stack)
//!     .add_service(EchoServer::new(Lengths))
//!     .serve_with_incoming(listener);
//! tokio::spawn(server);
//!
//! let mut client = EchoClient::connect(url).await?;
//! assert_eq!(client.unary(piece(4)).await?.get_ref().bytes, 4);
//! assert_eq!(client.unary(piece(5)).await?.get_ref().bytes, 5);
//! // The third request is over the quota. The status says so, and when to try again.
//! let refused = client.unary(piece(6)).await.unwrap_err();
//! assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "too many requests"));
//! let pushback = refused.metadata().get("grpc-retry-pushback-ms").expect("it is sent");
//! assert!(pushback.to_str()?.parse::<u32>()? <= 60_000);
//! assert_eq!(guard.snapshot().untracked, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # What the client sees
//!
//! A refusal is a gRPC status in a response of its own (trailers only, HTTP status 200), never an
//! HTTP status, which clients would map to `UNAVAILABLE` or `UNKNOWN`. After the response head the
//! status comes in the trailers. A request is gRPC if it is a POST over HTTP/2 with a content type
//! of `application/grpc`; gRPC-Web is recognized as well.
//!
//! | refused for | code | `grpc-retry-pushback-ms` |
//! |---|---|---|
//! | the quota of the client | `RESOURCE_EXHAUSTED` | the time until the next request is granted |
//! | requests at work, of all or of one client | `RESOURCE_EXHAUSTED` | 1000 |
//! | requests in flight on all connections | `RESOURCE_EXHAUSTED` | 1000 |
//! | a body that is too large, or in tiny pieces | `RESOURCE_EXHAUSTED` | -1: do not retry |
//! | the timeout, or the client's own `grpc-timeout` | `DEADLINE_EXCEEDED` | not sent |
//! | a body that is too slow | `DEADLINE_EXCEEDED` | not sent |
//! | too many requests present, of which this one waited longest for its client | `RESOURCE_EXHAUSTED` | not sent |
//! | no known peer, with `Missing::Refuse` | `INTERNAL` | not sent |
//!
//! A refusal with a time also has it as `google.rpc.RetryInfo` in the details of the status,
//! without which OpenTelemetry's exporters do not retry.
//!
//! [`Stack::on_reject`](crate::Stack::on_reject) changes responses of plain HTTP only.
//!
//! # Messages and streams
//!
//! With [`Stack::grpc`] the body limit holds for each message, and a stream may have any number of
//! them. Without it the limit is for the whole request body. It is not the default, because the
//! client writes the content type: a handler that is not a gRPC service and collects its body would
//! have no limit.
//!
//! ```
//! use palisade::Stack;
//! # use palisade::conn::{ConnGuard, harden};
//! # use palisade_testkit::demo::{Piece, echo_client::EchoClient, echo_server::EchoServer};
//! # use palisade_testkit::echo::Lengths;
//! # use tonic::{Code, transport::Server};
//! # fn piece(bytes: usize) -> Piece { Piece { data: vec![0; bytes].into() } }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let serve = async |stack: palisade::StackLayer| {
//! #     let guard = ConnGuard::default();
//! #     let listener = guard.bind("127.0.0.1:0").await.unwrap();
//! #     let url = format!("http://{}", listener.local_addr().unwrap());
//! #     let mut server = harden(Server::builder())
//! #         .layer(guard.track_requests())
//! #         .layer(stack);
//! #     tokio::spawn(server.add_service(EchoServer::new(Lengths)).serve_with_incoming(listener));
//! #     EchoClient::connect(url).await.unwrap()
//! # };
//! // Ten messages of 40 KB each.
//! let messages = || tokio_stream::iter((0..10).map(|_| piece(40_000)));
//!
//! let mut client = serve(Stack::edge().grpc().max_body(64 * 1024).build()?).await;
//! assert_eq!(client.collect(messages()).await?.get_ref().bytes, 400_000);
//! // One message of 100 KB is refused by its prefix, before the bytes are here.
//! let refused = client.unary(piece(100_000)).await.unwrap_err();
//! assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "body too large"));
//! assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
//!
//! let mut client = serve(Stack::edge().max_body(64 * 1024).build()?).await;
//! let refused = client.collect(messages()).await.unwrap_err();
//! assert_eq!(refused.code(), Code::ResourceExhausted);
//! # Ok(())
//! # }
//! ```
//!
//! tonic's own limit for a decoded message, 4 MiB by default, holds besides: for larger messages
//! raise `max_decoding_message_size` of the service as well.
//!
//! - *Silence of the client.* A gRPC request body may pause for 60 s, and has no minimum rate.
//!   Give a stream that is silent for longer its own pace: `SlowBodyLayer::pace_for`.
//! - *Silence of the server.* A response stream whose request was read, and that has had no message
//!   for 5 s, holds no permit of the concurrency limit.
//! - *Timeouts.* [`Stack::timeout`](crate::Stack::timeout) is the time to the response head, so a
//!   stream may last. The client's `grpc-timeout` limits the whole response.
//! - *Age.* After 44 to 52 min a hardened server sends GOAWAY. Streams in flight go on, new calls
//!   use a new connection.
//!
//! ```
//! use palisade::Stack;
//! use std::time::Duration;
//! # use palisade::conn::{ConnGuard, harden};
//! # use palisade_testkit::demo::{Piece, Total, echo_client::EchoClient};
//! # use palisade_testkit::demo::echo_server::{Echo, EchoServer};
//! # use tonic::{Code, Request, Response, Status, Streaming, transport::Server};
//! # struct Slow;
//! # #[tonic::async_trait]
//! # impl Echo for Slow {
//! #     async fn unary(&self, _: Request<Piece>) -> Result<Response<Total>, Status> {
//! #         tokio::time::sleep(Duration::from_secs(60)).await;
//! #         Err(Status::internal("never"))
//! #     }
//! #     async fn collect(&self, _: Request<Streaming<Piece>>) -> Result<Response<Total>, Status> {
//! #         Err(Status::internal("never"))
//! #     }
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let guard = ConnGuard::default();
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let url = format!("http://{}", listener.local_addr()?);
//! let stack = Stack::edge().grpc().timeout(Duration::from_millis(100)).build()?;
//! # let mut server = harden(Server::builder()).layer(guard.track_requests()).layer(stack);
//! # tokio::spawn(server.add_service(EchoServer::new(Slow)).serve_with_incoming(listener));
//! # let mut client = EchoClient::connect(url).await?;
//! // The handler takes a minute.
//! let refused = client.unary(Piece::default()).await.unwrap_err();
//! assert_eq!(refused.code(), Code::DeadlineExceeded); // tonic's own timeout says `CANCELLED`.
//! # Ok(())
//! # }
//! ```
//!
//! # On `palisade::serve`
//!
//! A tonic service is also an axum router. [`palisade::serve`](crate::serve()) then resets single
//! streams, sends GOAWAY, keeps 64 KiB of a response in place of 400 KiB, and ends a shutdown:
//!
//! ```
//! use palisade::{Stack, conn::ConnGuard};
//! use std::future::IntoFuture;
//! use tonic::service::Routes;
//! # use palisade_testkit::demo::{Piece, echo_client::EchoClient, echo_server::EchoServer};
//! # use palisade_testkit::echo::Lengths;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let routes = Routes::new(EchoServer::new(Lengths)).into_axum_router();
//! let app = routes.layer(Stack::edge().grpc().build()?);
//! let listener = ConnGuard::default().bind("127.0.0.1:0").await?;
//! # let url = format!("http://{}", listener.local_addr()?);
//! tokio::spawn(palisade::serve(listener, app).into_future());
//! # assert_eq!(EchoClient::connect(url).await?.unary(Piece::default()).await?.get_ref().bytes, 0);
//! # Ok(())
//! # }
//! ```
