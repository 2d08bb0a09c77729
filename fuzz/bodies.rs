//! The fuzz targets `heads`, `frames` and `table`. `tests/fuzz_bodies.rs` runs the same as property
//! tests on stable.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use palisade::{Stack, StackLayer, types::ClientKey};
use palisade_guard::Table;
use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, ServiceExt, service_fn};

/// Runs `future` on paused time.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built").block_on(future)
}

/// The maximum length of a request body.
const MAX_BODY_BYTES: u64 = 5000;

fn guards() -> StackLayer {
    Stack::edge()
        .max_body(MAX_BODY_BYTES)
        .max_requests(4)
        .build()
        .expect("the settings are valid")
}

/// Checks that a request with any method, `grpc-timeout` and `content-type` gets a response in the
/// client's format, and never causes a panic.
pub(crate) fn heads(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (method, content_type, timeout) = (part(), part(), part());
    let mut request = Request::new(Full::<Bytes>::default());
    *request.method_mut() = Method::from_bytes(method).unwrap_or(Method::POST);
    *request.version_mut() = Version::HTTP_2;
    for (name, value) in [("content-type", content_type), ("grpc-timeout", timeout)] {
        let Ok(value) = HeaderValue::from_bytes(value) else {
            return;
        };
        request.headers_mut().insert(name, value);
    }
    let names: [&[u8]; 3] = [
        b"application/grpc",
        b"application/grpc-web",
        b"application/grpc-web-text",
    ];
    let rest = names
        .into_iter()
        .filter_map(|name| content_type.strip_prefix(name));
    let has_grpc_type = rest
        .into_iter()
        .any(|rest| matches!(rest, [] | [b'+' | b';', ..]));
    let speaks_grpc = request.method() == Method::POST && has_grpc_type;
    run(async {
        let handler = service_fn(|_request| async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        let started = tokio::time::Instant::now();
        let response = guards().layer(handler).oneshot(request).await;
        let response = response.unwrap_or_else(|never| match never {});
        // The client can shorten the timeout of 30 seconds, but not extend it.
        assert!(started.elapsed() <= Duration::from_secs(31));
        if speaks_grpc {
            assert_eq!(response.status(), StatusCode::OK);
            let content_type = response.headers()["content-type"].as_bytes();
            assert!(content_type.starts_with(b"application/grpc"));
        } else {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    });
}

/// Sends a body of any frames with any pauses through all guards. Checks that the handler receives
/// every byte in order, or that the client receives a refusal.
pub(crate) fn frames(data: &[u8]) {
    let sent: Vec<u8> = Script::new(data)
        .filter_map(Step::bytes)
        .flatten()
        .collect();
    run(async {
        let collect = service_fn(|request: Request<_>| async {
            Ok::<_, Infallible>(match BodyExt::collect(request.into_body()).await {
                Ok(body) => Response::new(Full::new(body.to_bytes())),
                Err(_) => {
                    let mut response = Response::new(Full::<Bytes>::default());
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                    response
                }
            })
        });
        let request = Request::post("/").body(ScriptedBody {
            script: Script::new(data),
            sleep: None,
        });
        let request = request.expect("a request can be built");
        let response = guards().layer(collect).oneshot(request).await;
        let response = response.unwrap_or_else(|never| match never {});
        match response.status().as_u16() {
            200 => {
                assert!(sent.len() as u64 <= MAX_BODY_BYTES);
                let body = response
                    .into_body()
                    .collect()
                    .await
                    .expect("the body is in memory");
                assert_eq!(body.to_bytes(), sent);
            }
            // The body is too long or its frames are too small; it is too slow; or it has failed.
            413 | 408 | 400 => {}
            other => panic!("{other}"),
        }
    });
}

/// A step of a scripted body.
#[derive(Clone, Copy, Debug)]
enum Step {
    Data(usize),
    Wait(u64),
    Trailers,
    Fail,
}

/// The steps of a body, each encoded in two bytes.
#[derive(Clone, Debug)]
struct Script {
    data: Bytes,
    ended: bool,
}

impl Script {
    fn new(data: &[u8]) -> Self {
        // Long enough to reach every limit of a body, short enough to run often.
        Self {
            data: Bytes::copy_from_slice(&data[..data.len().min(1000)]),
            ended: false,
        }
    }
}

impl Iterator for Script {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let &[kind, size] = self.data.first_chunk()?;
        if self.ended {
            return None;
        }
        self.data.advance(2);
        let size = usize::from(size);
        let step = match kind % 16 {
            0..6 => Step::Data(size % 4),
            6..9 => Step::Data(size),
            9 => Step::Data(size * 16),
            10..13 => Step::Wait(size as u64 % 20),
            13 => Step::Wait(size as u64 * 100),
            14 => Step::Trailers,
            _ => Step::Fail,
        };
        self.ended = matches!(step, Step::Trailers | Step::Fail);
        Some(step)
    }
}

impl Step {
    /// Returns the bytes of a data frame.
    fn bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Data(length) => Some((0..length).map(|index| index as u8).collect()),
            _ => None,
        }
    }
}

/// A body that follows a script.
struct ScriptedBody {
    script: Script,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                std::task::ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            return Poll::Ready(match self.script.next() {
                None => None,
                Some(Step::Wait(millis)) => {
                    let sleep = tokio::time::sleep(Duration::from_millis(millis));
                    self.sleep = Some(Box::pin(sleep));
                    continue;
                }
                Some(Step::Trailers) => Some(Ok(Frame::trailers(HeaderMap::new()))),
                Some(Step::Fail) => Some(Err(std::io::ErrorKind::ConnectionReset.into())),
                Some(step @ Step::Data(_)) => {
                    Some(Ok(Frame::data(step.bytes().unwrap_or_default().into())))
                }
            });
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Updates debts of some keys at any times. Checks that the table agrees with a map that evicts
/// nothing.
pub(crate) fn table(data: &[u8]) {
    const MAX_DEBT: u64 = 1 << 30;
    let table = Table::new(1 << 12);
    let mut oracle: HashMap<u8, u64> = HashMap::new();
    let mut now = 0u64;
    for &[key, shift, step, debt] in data.as_chunks().0 {
        now += u64::from(step) << (shift % 32);
        let paid_at = oracle.entry(key).or_default();
        let expected = paid_at.saturating_sub(now);
        let more = u64::from(debt) << (shift / 16);
        let seen = table.update(ClientKey::of(&key), now, MAX_DEBT, |debt| {
            if debt + more > MAX_DEBT {
                Err(debt)
            } else {
                Ok((debt, debt + more))
            }
        });
        match seen {
            Some(Ok(seen)) => {
                assert_eq!(seen, expected);
                *paid_at = now.max(*paid_at) + more;
            }
            Some(Err(seen)) => assert_eq!(seen, expected),
            None => unreachable!("there is no concurrent update"),
        }
    }
}
