//! Clients with answers that take long, on real sockets.

use super::*;
use crate::{
    figures::{Figures, figures},
    plan::Plan,
    sample::Span,
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::Response,
    routing::{get, post},
};
use hyper::body::Frame;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Interval, sleep},
};

/// A body that sends a piece at a time, and breaks off after a number of them.
struct Pieces {
    interval: Interval,
    piece: &'static [u8],
    left: usize,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        ready!(self.interval.poll_tick(cx));
        Poll::Ready(Some(match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(Frame::data(Bytes::from_static(self.piece)))
            }
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }))
    }
}

fn pieces(milliseconds: u64, piece: &'static [u8], left: usize) -> Body {
    let interval = tokio::time::interval(Duration::from_millis(milliseconds));
    Body::new(Pieces {
        interval,
        piece,
        left,
    })
}

/// Accepts a WebSocket, pings once, and closes it after that if `closes`.
async fn websocket(request: Request, closes: bool) -> Response<Body> {
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        stream.write_all(&[0x89, 2, b'h', b'i']).await.unwrap();
        let mut pong = [0; 8];
        // The first request of a drill ends at once.
        let is_answered = stream.read_exact(&mut pong).await.is_ok();
        assert!(!is_answered || pong[..2] == [0x8a, 0x82]);
        if closes && is_answered {
            stream.write_all(&[0x88, 0]).await.unwrap();
        }
        let _ = stream.read(&mut pong).await;
    });
    let response = Response::builder().status(101);
    let response = response.header("connection", "upgrade");
    let response = response.header("upgrade", "websocket");
    response.body(Body::empty()).unwrap()
}

/// A server that does as it should.
fn good() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/post", post(async |body: Bytes| body.len().to_string()))
        .route("/large", get(async || vec![b'x'; 300 << 10]))
        .route("/events", get(async || pieces(100, b"data: a\n\n", 10_000)))
        .route("/ws", get(async |request| websocket(request, false).await))
}

/// A server that harms each kind in a way of its own.
fn bad() -> Router {
    let slow = async |body: Bytes| {
        sleep(Duration::from_millis(300)).await;
        body.len().to_string()
    };
    Router::new()
        .route("/", get(async || "hello"))
        .route("/post", post(slow))
        .route("/large", get(async || pieces(300, &[b'x'; 4 << 10], 4)))
        .route("/events", get(async || pieces(100, b"data: a\n\n", 4)))
        .route("/ws", get(async |request| websocket(request, true).await))
}

async fn serve(listener: TcpListener, app: Router) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let io = TokioIo::new(stream);
            let _ = server.serve_connection_with_upgrades(io, service).await;
        });
    }
}

/// Runs all kinds of clients against `app`, and returns what each of them saw in 2.5 seconds.
async fn figures_of(app: Router) -> Vec<(Kind, Figures)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    // The server has a thread of its own, as in a drill.
    let listener = listener.into_std().unwrap();
    let _server = Worker::spawn("server", || async {
        serve(TcpListener::from_std(listener).unwrap(), app).await;
    });
    let target = Target::open(&[addr]).await.unwrap();
    let mut plan = Plan::new(addr.to_string());
    (plan.post, plan.large) = (Some("/post".to_owned()), Some("/large".to_owned()));
    let paths = OpenPaths {
        events: Some("/events".to_owned()),
        websocket: Some("/ws".to_owned()),
    };
    let (steady, cautions) = openings::learn(&target, &plan, &paths, true).await.unwrap();
    assert!(cautions.is_empty() && steady.len() == 5, "{cautions:?}");
    let epoch = Instant::now();
    let clients = HonestClients::start(&target, Vec::new(), steady, epoch).unwrap();
    let span = Span {
        from: Duration::ZERO,
        to: Duration::from_millis(2_500),
    };
    sleep(span.length()).await;
    let log = clients.log();
    let kinds = clients.kinds().iter();
    let figures = kinds.map(|kind| {
        let patience = Duration::from_millis(100);
        let samples = log.samples(*kind, span);
        (
            *kind,
            figures(&samples, span, clients.interval(*kind), patience),
        )
    });
    figures.collect()
}

#[tokio::test]
async fn each_kind_is_served_by_a_server_that_does_as_it_should() {
    for (kind, figures) in figures_of(good()).await {
        println!("{kind}: {figures:?}");
        assert_eq!(
            (figures.served, figures.served_share),
            (figures.sent, 1.0),
            "{kind}"
        );
        assert!((1.5..3.5).contains(&figures.seconds), "{kind}: {figures:?}");
        // A transfer that takes long has no latency: the phone takes its own time.
        assert!(figures.p50_ms < Some(100.0), "{kind}: {figures:?}");
    }
}

#[tokio::test]
async fn each_kind_sees_its_harm() {
    for (kind, figures) in figures_of(bad()).await {
        println!("{kind}: {figures:?}");
        let cut = figures.failures.get("cut").copied().unwrap_or(0);
        match kind {
            // Late, and served.
            Kind::PhoneUpload => {
                assert!(figures.p50_ms > Some(290.0), "{figures:?}");
                assert!(figures.served > 0);
            }
            // All pieces of a download that breaks off are lost.
            Kind::PhoneDownload => assert!(cut >= 4 && figures.served_share < 0.5, "{figures:?}"),
            Kind::EventStream | Kind::WebSocket => {
                assert!(
                    cut >= 1 && figures.served_share < 0.9,
                    "{kind}: {figures:?}"
                );
            }
            // Its requests are the same.
            _ => assert_eq!(figures.served_share, 1.0, "{kind}: {figures:?}"),
        }
    }
}

#[tokio::test]
async fn a_route_that_is_not_served_is_named_with_its_option() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, good()));
    let target = Target::open(&[addr]).await.unwrap();
    let plan = Plan::new(addr.to_string());
    for (events, websocket, text) in [
        (
            Some("/none"),
            None,
            "event stream: answered 404: set a path that serves it with `events`",
        ),
        (
            None,
            Some("/"),
            "quiet WebSocket: answered 200: set a path that serves it with `websocket`",
        ),
    ] {
        let paths = OpenPaths {
            events: events.map(str::to_owned),
            websocket: websocket.map(str::to_owned),
        };
        let error = openings::learn(&target, &plan, &paths, false)
            .await
            .unwrap_err();
        assert!(error.to_string().ends_with(text), "{error}");
    }
}

#[tokio::test]
async fn a_drill_of_all_kinds_without_attackers_is_held() {
    let _turn = crate::drill::tests::TURNS.acquire().await;
    let drill = crate::Drill::serving(|listener| serve(listener, good()));
    let drill = drill
        .post("/post")
        .large("/large")
        .events("/events")
        .websocket("/ws");
    let report = drill.rehearse().quick().only("silent").run().await.unwrap();
    let attack = &report.attacks[0];
    assert_eq!(attack.honest.len(), 8, "{report}");
    // A busy machine says nothing, and never harm.
    let expected = [crate::Verdict::Held, crate::Verdict::Inconclusive];
    assert!(expected.contains(&attack.verdict), "{report}");
    let sent: u64 = attack.honest.iter().map(|honest| honest.during.sent).sum();
    println!("{report}\n{sent} samples");
}
