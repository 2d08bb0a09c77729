//! The stack among other layers: which order, and why.
//!
//! [`Stack::build`](crate::Stack::build) returns a `Layer` like any other. All its clones, and all
//! services that it makes, share one state. From the outside to the inside:
//!
//! | layer | place | why |
//! |---|---|---|
//! | `TraceLayer` | outside | it records refusals with their status; inside, refused requests make no spans |
//! | `CorsLayer` | outside | refusals carry its headers, so that a page can read a 429, and its `Retry-After` if `expose_headers` names it; preflight requests cost no quota |
//! | **stack** | | |
//! | `TimeoutLayer` | none, see below | the stack has a timeout |
//! | `CompressionLayer` | inside | a request holds a permit while its response is compressed |
//! | `RequestDecompressionLayer` | inside | the stack measures bytes as they arrive |
//! | `BodyLimitLayer::decompressed` | inside of the decompression | it limits the unpacked bytes |
//! | authentication, `from_fn` | inside | what is refused costs no look-up |
//!
//! In a `ServiceBuilder` the first layer is the outermost one. With a router's own `layer` method
//! it is the last one: each call wraps what was there before.
//!
//! # With tower-http
//!
//! A kilobyte of gzip unpacks to a megabyte here. The limit of the stack is for the kilobyte, the
//! inner one for the megabyte. In the other order, a client that sends a byte in two seconds would
//! look like one that sends 500 B/s.
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode, header}, routing::get};
//! use palisade::{Quota, Stack, body_limit::BodyLimitLayer};
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_http::{
//!     compression::CompressionLayer, cors::CorsLayer, decompression::RequestDecompressionLayer,
//!     trace::TraceLayer,
//! };
//! # use http_body_util::BodyExt;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let layers = ServiceBuilder::new()
//!     .layer(TraceLayer::new_for_http())
//!     .layer(CorsLayer::permissive())
//!     .layer(Stack::edge().rate_limit(Quota::per_hour(3).burst(3)).build()?)
//!     .layer(CompressionLayer::new())
//!     .layer(RequestDecompressionLayer::new())
//!     .layer(BodyLimitLayer::decompressed(64 * 1024));
//! let app: Router = Router::new()
//!     .route("/", get(async || "0".repeat(1 << 20)).post(async |body: String| body))
//!     .layer(layers);
//!
//! let send = |request: Request<Body>| app.clone().oneshot(request);
//! let request = Request::get("/").header(header::ACCEPT_ENCODING, "gzip");
//! let response = send(request.body(Body::empty())?).await?;
//! assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
//! let packed = response.into_body().collect().await?.to_bytes();
//! assert!(packed.len() < 2_000);
//!
//! let upload = Request::post("/").header(header::CONTENT_ENCODING, "gzip");
//! let response = send(upload.body(Body::from(packed))?).await?;
//! assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
//!
//! // Preflight requests are answered by the outer layer. Refusals carry its headers.
//! for _ in 0..5 {
//!     let preflight = Request::options("/").header("access-control-request-method", "GET");
//!     assert_eq!(send(preflight.body(Body::empty())?).await?.status(), StatusCode::OK);
//! }
//! assert_eq!(send(Request::get("/").body(Body::empty())?).await?.status(), StatusCode::OK);
//! let refused = send(Request::get("/").body(Body::empty())?).await?;
//! assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
//! assert_eq!(refused.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
//! # Ok(())
//! # }
//! ```
//!
//! # Timeouts
//!
//! tower-http's `TimeoutLayer` counts the time for which a handler waits for the bytes of a body.
//! [`Stack::timeout`](crate::Stack::timeout) does not: how slow a client may be is for the pace. If
//! you keep the other layer, give it more time than the slowest honest upload takes.
//!
//! ```
//! use axum::{Router, body::Body, http::{Request, StatusCode}, routing::post};
//! use palisade::Stack;
//! use std::time::Duration;
//! use tower_http::timeout::TimeoutLayer;
//! # use {palisade_testkit::bodies::Pieces, tower::ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let second = Duration::from_secs(1);
//! let app: Router = Router::new()
//!     .route("/upload", post(async |body: String| body))
//!     .route("/slow", post(async move || tokio::time::sleep(3 * second).await));
//! let other = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, second);
//! let other = app.clone().layer(other);
//! let guarded = app.layer(Stack::edge().timeout(second).build()?);
//! # let status = async |app: &Router, path: &str| {
//! #     // 30 pieces, one every 100 ms.
//! #     let body = Body::new(Pieces::new(30, 1_000).every(second / 10));
//! #     app.clone().oneshot(Request::post(path).body(body).unwrap()).await.unwrap().status()
//! # };
//! // An upload of 30 KB in 3 s, and a handler that takes 3 s.
//! assert_eq!(status(&other, "/upload").await, StatusCode::REQUEST_TIMEOUT);
//! assert_eq!(status(&guarded, "/upload").await, StatusCode::OK);
//! assert_eq!(status(&guarded, "/slow").await, StatusCode::SERVICE_UNAVAILABLE);
//! # Ok(())
//! # }
//! ```
//!
//! # `Router::layer`, `route_layer`, `nest`
//!
//! ```
//! use axum::{Router, body::Body, http::Request, routing::get};
//! use palisade::{Quota, Stack};
//! use tower::{Layer, ServiceExt};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # async fn statuses<S>(app: S, path: &str) -> [u16; 2]
//! # where
//! #     S: tower::Service<Request<Body>, Error = std::convert::Infallible> + Clone,
//! #     S::Response: axum::response::IntoResponse,
//! # {
//! #     use axum::response::IntoResponse;
//! #     let request = || Request::get(path).body(Body::empty()).unwrap();
//! #     let first = app.clone().oneshot(request()).await.unwrap().into_response().status();
//! #     [first.as_u16(), app.oneshot(request()).await.unwrap().into_response().status().as_u16()]
//! # }
//! let routes = || Router::<()>::new().route("/", get("hello"));
//! let stack = || Stack::edge().rate_limit(Quota::per_hour(1).burst(1)).build();
//!
//! // `statuses` sends two requests. The quota of each stack grants one.
//! assert_eq!(statuses(routes().layer(stack()?), "/").await, [200, 429]);
//! // `layer` guards paths without a route as well, `route_layer` does not.
//! assert_eq!(statuses(routes().layer(stack()?), "/missing").await, [404, 429]);
//! assert_eq!(statuses(routes().route_layer(stack()?), "/missing").await, [404, 404]);
//! // Routes that are added after the layer are not guarded.
//! let late = routes().layer(stack()?).route("/late", get("hello"));
//! assert_eq!(statuses(late, "/late").await, [200, 200]);
//! // Around the whole router: all routes, and the least cost. `palisade::serve` takes it.
//! assert_eq!(statuses(stack()?.layer(routes()), "/").await, [200, 429]);
//! # let around = stack()?.layer(routes());
//! # let _ = |listener: tokio::net::TcpListener| palisade::serve(listener, around);
//!
//! // A request that passes one stack twice counts once. Two stacks are two limits.
//! let shared = stack()?;
//! let nested = Router::new().nest("/api", routes().layer(shared.clone())).layer(shared);
//! assert_eq!(statuses(nested, "/api").await, [200, 429]);
//! # Ok(())
//! # }
//! ```
//!
//! Routes with other limits need a stack of their own, or one of the options that look at the
//! request, such as `TimeoutLayer::limits_for` by [`Stack::tune_timeout`]. Prefer one concurrency
//! limit for all routes, because they share the machine.
//!
//! [`Stack::tune_timeout`]: crate::Stack::tune_timeout
//!
//! # `from_fn` and other layers of axum
//!
//! Outside of the stack they need nothing. Inside of it, in one `ServiceBuilder`, they see the
//! stack's own request body and do not compile: there use
//! [`boxed`](crate::StackLayer::boxed), at one allocation for each body, or a `layer` call of their
//! own.
//!
//! ```
//! use axum::{Router, extract::Request, response::Response, routing::get};
//! use axum::middleware::{Next, from_fn};
//! use palisade::Stack;
//! use tower::ServiceBuilder;
//!
//! async fn pass(request: Request, next: Next) -> Response {
//!     next.run(request).await
//! }
//!
//! # fn main() -> Result<(), palisade::ConfigError> {
//! let routes = || Router::<()>::new().route("/", get("hello"));
//! let stack = Stack::edge().build()?;
//! let outside = ServiceBuilder::new().layer(from_fn(pass)).layer(stack.clone());
//! let _ = routes().layer(outside);
//! let inside = ServiceBuilder::new().layer(stack.clone().boxed()).layer(from_fn(pass));
//! let _ = routes().layer(inside);
//! let _ = routes().layer(from_fn(pass)).layer(stack); // Inside too: the last call is outermost.
//! # Ok(())
//! # }
//! ```
//!
//! A service that is not `Clone` goes behind a `tower::buffer::Buffer` first.
