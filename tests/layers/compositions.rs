//! The stack combined with other layers: outside and inside those of tower-http and axum, in every
//! place where a router takes a layer, and on tonic's server. Each combination compiles and its
//! guards are active.

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

/// A stack that admits one request an hour.
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

/// Checks that the first request is served and the second one is refused.
async fn assert_guarded<S, B>(service: S)
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

async fn run_next(request: Request, next: Next) -> Response {
    next.run(request).await
}

async fn identity(request: Request) -> Request {
    request
}

#[tokio::test]
async fn the_stack_guards_in_every_place_of_a_router() {
    assert_guarded(routes().layer(stack())).await;
    assert_guarded(routes().route_layer(stack())).await;
    assert_guarded(Router::new().fallback_service(routes().layer(stack()))).await;
    assert_guarded(Router::new().merge(routes().layer(stack()))).await;
    let under = |path: &'static str| {
        let to = move |mut request: Request| {
            *request.uri_mut() = path.parse().unwrap();
            request
        };
        ServiceBuilder::new().map_request(to)
    };
    let nested = Router::new().nest("/api", routes().layer(stack()));
    assert_guarded(under("/api").service(nested)).await;
    let nested = Router::new().nest_service("/api", stack().layer(routes()));
    assert_guarded(under("/api").service(nested)).await;
    let nested = Router::new().route("/", get("hello").post("hello").layer(stack()));
    assert_guarded(nested).await;
    assert_guarded(stack().layer(routes())).await;
    assert_guarded(ServiceBuilder::new().layer(stack()).service(routes())).await;
}

#[tokio::test]
async fn the_stack_guards_inside_layers_that_need_a_default_body() {
    #[allow(
        deprecated,
        reason = "the deprecated layer needs a body that implements Default"
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
    assert_guarded(routes().layer(outside())).await;
    assert_guarded(outside().service(routes())).await;
}

#[tokio::test]
async fn the_boxed_stack_guards_outside_layers_that_need_axum_s_body() {
    let inside = || {
        let boxed = ServiceBuilder::new().layer(stack().boxed());
        boxed
            .layer(from_fn(run_next))
            .layer(map_request(identity))
            .map_request(|request: Request| request)
    };
    assert_guarded(routes().layer(inside())).await;
    assert_guarded(routes().route_layer(inside())).await;
    assert_guarded(Router::new().fallback_service(routes().layer(inside()))).await;
    assert_guarded(inside().service(routes())).await;
    // Each `Router::layer` converts the body, so `boxed` is not needed here.
    assert_guarded(stack().layer(routes().layer(from_fn(run_next)))).await;
    assert_guarded(routes().layer(from_fn(run_next)).layer(stack())).await;
}

#[tokio::test]
async fn an_optional_stack_guards_when_it_is_present() {
    assert_guarded(routes().layer(option_layer(Some(stack().boxed())))).await;
    let none = routes().layer(option_layer(None::<palisade::BoxedLayer>));
    for _ in 0..2 {
        let response = none.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_stack_guards_a_body_that_is_not_unpin() {
    let guarded = ServiceBuilder::new()
        .layer(RequestBodyTimeoutLayer::new(MINUTE))
        .layer(stack().boxed())
        .service(routes());
    assert_guarded(guarded).await;
}

#[tokio::test]
async fn the_stack_guards_a_service_that_is_not_clone() {
    struct NotClone(tokio::sync::Mutex<()>);
    let not_clone = NotClone(tokio::sync::Mutex::new(()));
    let service = service_fn(move |request: Request<_>| {
        let _ = &not_clone.0;
        let body = request.map(Body::new).into_body();
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    // A service that is not `Clone` becomes `Clone` behind tower's buffer.
    let buffered = tower::buffer::Buffer::new(service, 16);
    let guarded = stack()
        .layer(buffered)
        .map_err(|error| -> Infallible { panic!("{error}") });
    assert_guarded(BoxCloneSyncService::new(guarded)).await;
}

#[tokio::test]
async fn the_stack_guards_tonic_s_server() {
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
