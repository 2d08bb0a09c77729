//! The stack among the layers of others: outside and inside of tower-http's and axum's own, in
//! every place where a router takes a layer, and on tonic's server. All of it compiles, and guards.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn, map_request},
    response::Response,
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use palisade::{Quota, Stack, StackLayer};
use palisade_testkit::{
    demo::{Piece, echo_client::EchoClient, echo_server::EchoServer},
    echo::Lengths,
    servers,
};
use std::{convert::Infallible, net::SocketAddr, time::Duration};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, service_fn,
    util::{BoxCloneSyncService, option_layer},
};
use tower_http::{
    auth::AddAuthorizationLayer,
    cors::CorsLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
    trace::TraceLayer,
    validate_request::ValidateRequestHeaderLayer,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Lets one request of an hour through, and refuses the next.
fn stack() -> StackLayer {
    Stack::edge()
        .rate_limit(Quota::per_hour(1).burst(1))
        .build()
        .unwrap()
}

fn routes() -> Router {
    Router::new().route("/", get("hello").post(async |body: String| body))
}

fn request() -> Request {
    let mut request = Request::post("/").body(Body::from("hello")).unwrap();
    request
        .headers_mut()
        .insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    request
        .extensions_mut()
        .insert(SocketAddr::from(([192, 0, 2, 1], 1)));
    request
}

/// The first request is served and the second one refused.
async fn guards<S, B>(service: S)
where
    S: Service<Request, Response = http::Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let first = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(
        first.into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );
    let second = service.oneshot(request()).await.unwrap();
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(second.headers().contains_key(header::RETRY_AFTER));
}

async fn pass(request: Request, next: Next) -> Response {
    next.run(request).await
}

async fn same(request: Request) -> Request {
    request
}

#[tokio::test]
async fn in_every_place_of_a_router() {
    guards(routes().layer(stack())).await;
    guards(routes().route_layer(stack())).await;
    guards(Router::new().fallback_service(routes().layer(stack()))).await;
    guards(Router::new().merge(routes().layer(stack()))).await;
    let under = |path: &'static str| {
        let to = move |mut request: Request| {
            *request.uri_mut() = path.parse().unwrap();
            request
        };
        ServiceBuilder::new().map_request(to)
    };
    let nested = Router::new().nest("/api", routes().layer(stack()));
    guards(under("/api").service(nested)).await;
    let nested = Router::new().nest_service("/api", stack().layer(routes()));
    guards(under("/api").service(nested)).await;
    let nested = Router::new().route("/", get("hello").post("hello").layer(stack()));
    guards(nested).await;
    guards(stack().layer(routes())).await;
    guards(ServiceBuilder::new().layer(stack()).service(routes())).await;
}

#[tokio::test]
async fn inside_of_what_wants_a_default_body() {
    #[allow(
        deprecated,
        reason = "it is there, and asks for a body that can be made of nothing"
    )]
    let outside = || {
        ServiceBuilder::new()
            .layer(TraceLayer::new_for_http())
            .layer(CorsLayer::permissive())
            .layer(TimeoutLayer::with_status_code(
                StatusCode::REQUEST_TIMEOUT,
                MINUTE,
            ))
            .layer(AddAuthorizationLayer::bearer("token"))
            .layer(ValidateRequestHeaderLayer::bearer("token"))
            .layer(ValidateRequestHeaderLayer::accept("text/plain"))
            .layer(stack())
    };
    guards(routes().layer(outside())).await;
    guards(outside().service(routes())).await;
}

#[tokio::test]
async fn outside_of_what_wants_axum_s_own_body() {
    let inside = || {
        let boxed = ServiceBuilder::new().layer(stack().boxed());
        boxed
            .layer(from_fn(pass))
            .layer(map_request(same))
            .map_request(|request: Request| request)
    };
    guards(routes().layer(inside())).await;
    guards(routes().route_layer(inside())).await;
    guards(Router::new().fallback_service(routes().layer(inside()))).await;
    guards(inside().service(routes())).await;
    // Without a box, a layer of the router's own does it.
    guards(stack().layer(routes().layer(from_fn(pass)))).await;
    guards(routes().layer(from_fn(pass)).layer(stack())).await;
}

#[tokio::test]
async fn where_it_may_be_missing() {
    guards(routes().layer(option_layer(Some(stack().boxed())))).await;
    let none = routes().layer(option_layer(None::<palisade::BoxedLayer>));
    for _ in 0..2 {
        let response = none.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn inside_of_a_body_that_must_not_move() {
    let guarded = ServiceBuilder::new()
        .layer(RequestBodyTimeoutLayer::new(MINUTE))
        .layer(stack().boxed())
        .service(routes());
    guards(guarded).await;
}

#[tokio::test]
async fn around_a_service_that_is_not_a_clone_of_its_own() {
    struct Alone(tokio::sync::Mutex<()>);
    let alone = Alone(tokio::sync::Mutex::new(()));
    let service = service_fn(move |request: Request<_>| {
        let _ = &alone.0;
        let body = request.map(Body::new).into_body();
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    // Whatever is not `Clone` is so behind a buffer, as everywhere with tower.
    let buffered = tower::buffer::Buffer::new(service, 16);
    let guarded = stack()
        .layer(buffered)
        .map_err(|error| -> Infallible { panic!("{error}") });
    guards(BoxCloneSyncService::new(guarded)).await;
}

#[tokio::test]
async fn on_the_server_of_tonic() {
    let listener = servers::listener().await;
    let addr = listener.local_addr().unwrap();
    let mut server = tonic::transport::Server::builder()
        .layer(CorsLayer::permissive())
        .layer(stack().boxed());
    let router = server.add_service(EchoServer::new(Lengths));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tokio::spawn(router.serve_with_incoming(incoming));
    let mut client = EchoClient::connect(format!("http://{addr}")).await.unwrap();
    let piece = || Piece {
        data: b"four".as_slice().into(),
    };
    assert_eq!(client.unary(piece()).await.unwrap().get_ref().bytes, 4);
    let refused = client.unary(piece()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    server.abort();
}
