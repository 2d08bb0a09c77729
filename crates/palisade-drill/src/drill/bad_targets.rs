//! Targets that are no servers, or no honest ones: one sentence that says what to do, no verdict
//! that was not earned.

use crate::{Drill, DrillError, Kind, Verdict};
use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, Request},
    http::Method,
    middleware::{self, Next},
    routing::get,
    serve::ListenerExt,
};
use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a server that does `each` with every connection.
pub(super) fn server<Fut>(each: impl Fn(TcpStream) -> Fut + Send + 'static) -> Drill
where
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    Drill::serving(async move |listener: TcpListener| {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    })
}

/// Answers every connection with `bytes` after its first, and closes it.
pub(super) async fn answer(mut stream: TcpStream, bytes: &'static [u8]) -> std::io::Result<()> {
    let _ = stream.read(&mut [0; 4_096]).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    // Without this, unread bytes would turn the end into a reset.
    while stream.read(&mut [0; 4_096]).await? > 0 {}
    Ok(())
}

pub(super) async fn refusal(drill: Drill) -> String {
    let drill = drill.quick().only("silent");
    let error = timeout(PATIENCE, drill.run()).await.unwrap().unwrap_err();
    assert!(matches!(error, DrillError::NotServed { .. }), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains(['\n', '\x1b']), "{text}");
    text
}

#[tokio::test]
async fn a_target_that_does_not_speak_http_is_named_so() {
    let text = refusal(server(|stream: TcpStream| async move {
        answer(stream, b"220 \x1b[1mmail\r\n").await
    }))
    .await;
    assert!(
        text.ends_with("it does not speak HTTP: 220 \\u{1b}[1mmail\\r\\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_target_that_speaks_tls_is_named_so() {
    // The alert `unexpected_message`, which TLS servers send to clear text.
    let text = refusal(server(|stream: TcpStream| async move {
        answer(stream, &[21, 3, 1, 0, 2, 2, 10]).await
    }))
    .await;
    assert!(text.contains("it looks like TLS: set `tls`"), "{text}");
}

#[tokio::test]
async fn a_target_that_speaks_http2_alone_is_named_so() {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let text = refusal(server(|stream| answer(stream, SETTINGS))).await;
    assert!(text.contains("it speaks HTTP/2 alone"), "{text}");
}

#[tokio::test]
async fn a_target_that_closes_or_says_nothing_is_named_so() {
    let text = refusal(server(|_| async { Ok(()) })).await;
    assert!(
        text.contains("it closes the connection without an answer"),
        "{text}"
    );
    let resets = server(|stream: TcpStream| async move { stream.set_zero_linger() });
    let text = refusal(resets).await;
    assert!(
        text.contains("it closes the connection without an answer"),
        "{text}"
    );
    let silent = server(|stream: TcpStream| async move {
        let _stream = stream;
        std::future::pending().await
    });
    let text = refusal(silent).await;
    assert!(text.contains("no answer to GET / within 5 s"), "{text}");
}

#[tokio::test]
async fn a_refusal_and_a_redirect_say_what_to_set() {
    let cases: [(&[u8], &str); 4] = [
        (
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            "answered 404: set a path that exists",
        ),
        (
            b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n",
            "answered 401: set credentials with `header`",
        ),
        (
            b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            "answered 500: mend it first",
        ),
        (
            b"HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
            "302: it redirects to http://192.0.2.1/, which the drill does not follow",
        ),
    ];
    for (bytes, expected) in cases {
        let text = refusal(server(move |stream| answer(stream, bytes))).await;
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn heads_and_bodies_without_end_are_read_to_a_bound() {
    let head = server(|mut stream: TcpStream| async move {
        let _ = stream.read(&mut [0; 4_096]).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
        loop {
            stream.write_all(&[b'x'; 4_096]).await?;
        }
    });
    assert!(refusal(head).await.contains("its answer breaks off"));
    let body = server(|mut stream: TcpStream| async move {
        let _ = stream.read(&mut [0; 4_096]).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        loop {
            stream.write_all(&[b'x'; 4_096]).await?;
        }
    });
    assert!(refusal(body).await.contains("more than 1 MiB"));
}

#[tokio::test]
async fn a_server_that_ends_at_once_and_a_port_without_a_server_are_named() {
    let ended = Drill::serving(async |listener| drop(listener)).run().await;
    let text = ended.unwrap_err().to_string();
    assert!(
        text.contains("the server ended") || text.contains("nothing listens"),
        "{text}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let text = Drill::against(addr)
        .unwrap()
        .run()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.ends_with("nothing listens there: start the server first"),
        "{text}"
    );
}

#[tokio::test]
async fn wrong_options_are_named_before_any_socket_is_made() {
    let drill = Drill::serving(async |_| panic!("the server has started"));
    let error = drill.places(0).only("slowloris").run().await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("places is 0") && text.contains("only is slowloris"),
        "{text}"
    );
}

/// Serves 25 connections as HTTP, then does `then` with each.
async fn turns<Fut>(listener: TcpListener, then: impl Fn(TcpStream) -> Fut)
where
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    for _ in 0..25 {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(answer(
            stream,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ));
    }
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(then(stream));
    }
}

#[tokio::test]
async fn a_server_that_begins_to_lie_or_to_reset_is_not_held() {
    let _turn = super::tests::TURNS.acquire().await;
    let lies = || {
        Drill::serving(|listener| {
            turns(listener, |stream: TcpStream| async move {
                answer(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await
            })
        })
    };
    let resets = || {
        Drill::serving(|listener| {
            turns(listener, |stream: TcpStream| async move {
                stream.set_zero_linger()?;
                Ok(())
            })
        })
    };
    let drills: [(&dyn Fn() -> Drill, _); 2] = [(&lies, "wrong body"), (&resets, "cut")];
    for (drill, failure) in drills {
        let Some(report) = super::tests::until_judged("churn", drill).await else {
            continue;
        };
        let attack = report.attack("churn").unwrap();
        assert_eq!(attack.verdict, Verdict::Down, "{report}");
        let failures = &attack.honest[0].during.failures;
        assert!(failures.contains_key(failure), "{report}");
    }
}

#[tokio::test]
async fn honest_requests_carry_the_headers_that_were_set() {
    let _turn = super::tests::TURNS.acquire().await;
    let picky = || {
        server(|mut stream: TcpStream| async move {
            let mut head = [0; 4_096];
            let count = stream.read(&mut head).await?;
            let text = String::from_utf8_lossy(&head[..count]).into_owned();
            let is_known = text.contains("\r\nx-key: 1\r\n");
            let is_named = text.contains("\r\nuser-agent: palisade-drill/");
            let status = if is_known && is_named {
                "200 OK"
            } else {
                "401 No"
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await
        })
    };
    assert!(
        refusal(picky())
            .await
            .contains("set credentials with `header`")
    );
    let drill = picky()
        .header("X-Key", "1")
        .rehearse()
        .quick()
        .only("silent");
    let report = drill.run().await.unwrap();
    assert!(report.attacks[0].honest[0].before.served > 0, "{report}");
}

/// Tells an attack by its connections.
#[derive(Default)]
struct Rush {
    /// When the connections of the last quarter of a second came.
    accepted: VecDeque<Instant>,
    seen: Option<Instant>,
}

impl Rush {
    fn accept(&mut self) {
        let now = Instant::now();
        let is_old = |at: &mut Instant| now > *at + Duration::from_millis(250);
        while self.accepted.pop_front_if(is_old).is_some() {}
        self.accepted.push_back(now);
        if self.accepted.len() > 30 {
            self.seen = Some(now);
        }
    }

    fn is_on(&self) -> bool {
        self.seen
            .is_some_and(|at| at.elapsed() < Duration::from_millis(200))
    }
}

/// Serves the first GET of each connection by a fast path, which is what most probes send, and lets
/// all other requests wait while there is an attack.
async fn fast_path(listener: TcpListener) {
    let rush = Arc::new(Mutex::new(Rush::default()));
    let (accepting, first) = (rush.clone(), Arc::new(Mutex::new(HashSet::new())));
    let listener = listener.tap_io(move |_| accepting.lock().unwrap().accept());
    let starve = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next| {
        let is_probe = first.lock().unwrap().insert(peer) && request.method() == Method::GET;
        let rush = rush.clone();
        async move {
            while !is_probe && rush.lock().unwrap().is_on() {
                sleep(Duration::from_millis(20)).await;
            }
            next.run(request).await
        }
    };
    let app = Router::new().route("/", get(async || "ok").post(async |_: Bytes| "read"));
    let app = app.layer(middleware::from_fn(starve));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let _ = axum::serve(listener, app).await;
}

#[tokio::test]
async fn a_fast_path_for_probes_deceives_one_kind_of_honest_client_and_not_the_others() {
    let _turn = super::tests::TURNS.acquire().await;
    let drill = || Drill::serving(fast_path).post("/");
    let Some(report) = super::tests::until_judged("churn", drill).await else {
        return;
    };
    let attack = report.attack("churn").unwrap();
    let verdicts = [Verdict::Harmed, Verdict::Down];
    assert!(verdicts.contains(&attack.verdict), "{report}");
    let share = |kind| {
        let honest = attack.honest.iter().find(|honest| honest.kind == kind);
        honest.unwrap().during.served_share
    };
    assert!(share(Kind::NewConnection) > 0.9, "{report}");
    for kind in [Kind::KeepAlive, Kind::SmallPost] {
        assert!(share(kind) < 0.5, "{kind}: {report}");
    }
}
