//! The service of a server that publishes its line.

use super::{PATH, line::ConsentLine, time::Clock};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

/// Answers [`PATH`] with a line, until the line ends. From then on the path is not found.
///
/// It is a service of tower's, which axum takes as it is:
///
/// ```
/// use axum::{Router, routing::get};
/// use palisade_drill::consent::{self, ConsentLine, ConsentService};
///
/// fn app(consent: Option<ConsentLine>) -> Router {
///     let app = Router::new().route("/", get("hello"));
///     match consent {
///         Some(line) => app.route_service(consent::PATH, ConsentService::new(line)),
///         None => app,
///     }
/// }
///
/// // Of the environment or the configuration: the line changes with every drill.
/// let line = std::env::var("DRILL_CONSENT").ok().and_then(|line| line.parse().ok());
/// app(line);
/// ```
///
/// A handler of hyper's asks it first:
///
/// ```
/// use http::{Request, Response};
/// use palisade_drill::consent::ConsentService;
///
/// fn handler<B>(consent: &ConsentService, request: Request<B>) -> Response<String> {
///     match consent.answer(&request) {
///         Some(answer) => answer,
///         None => Response::new("hello".to_owned()),
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct ConsentService {
    line: ConsentLine,
    clock: Clock,
}

impl ConsentService {
    /// Publishes `line`.
    pub fn new(line: ConsentLine) -> Self {
        let clock = Clock::System;
        Self { line, clock }
    }

    /// Returns the answer to `request`; `None` if it has another path.
    ///
    /// A GET and a HEAD are answered 200, another method 405, and all of them 404 after the end.
    pub fn answer<B>(&self, request: &Request<B>) -> Option<Response<String>> {
        if request.uri().path() != PATH {
            return None;
        }
        if self.clock.now() >= self.line.ends() {
            return Some(empty(StatusCode::NOT_FOUND));
        }
        let mut answer = match *request.method() {
            Method::GET => Response::new(format!("{}\n", self.line)),
            Method::HEAD => empty(StatusCode::OK),
            _ => {
                let mut answer = empty(StatusCode::METHOD_NOT_ALLOWED);
                let allowed = HeaderValue::from_static("GET, HEAD");
                answer.headers_mut().insert(header::ALLOW, allowed);
                return Some(answer);
            }
        };
        let headers = answer.headers_mut();
        let text = HeaderValue::from_static("text/plain");
        headers.insert(header::CONTENT_TYPE, text);
        // The consent ends when the server takes the line away, and no cache may keep it.
        let none = HeaderValue::from_static("no-store");
        headers.insert(header::CACHE_CONTROL, none);
        Some(answer)
    }
}

/// Returns an answer without a body.
fn empty(status: StatusCode) -> Response<String> {
    let mut answer = Response::new(String::new());
    *answer.status_mut() = status;
    answer
}

/// Answers other paths with 404.
impl<B> tower_service::Service<Request<B>> for ConsentService {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.answer(&request);
        ready(Ok(answer.unwrap_or_else(|| empty(StatusCode::NOT_FOUND))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consent::Secret;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    };

    const NOW: u64 = 1_796_032_800;

    fn service() -> (Arc<AtomicU64>, ConsentService) {
        let seconds = Arc::new(AtomicU64::new(NOW));
        let clock = Clock::Set(seconds.clone());
        let secret = Secret::random().unwrap();
        let line = ConsentLine::from(&secret, Duration::from_secs(60), &clock).unwrap();
        (seconds, ConsentService { line, clock })
    }

    fn ask(service: &ConsentService, method: Method, uri: &str) -> Option<(u16, String)> {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        let answer = service.answer(&request)?;
        Some((answer.status().as_u16(), answer.into_body()))
    }

    #[test]
    fn the_line_is_published_at_its_path_alone_and_for_reading_alone() {
        let (_, service) = service();
        let (status, body) = ask(&service, Method::GET, PATH).unwrap();
        assert_eq!((status, body.parse()), (200, Ok(service.line.clone())));
        let body = ask(&service, Method::GET, &format!("http://a{PATH}?x"))
            .unwrap()
            .1;
        assert_eq!(body.parse(), Ok(service.line.clone()));
        assert_eq!(
            ask(&service, Method::HEAD, PATH),
            Some((200, String::new()))
        );
        assert_eq!(
            ask(&service, Method::POST, PATH),
            Some((405, String::new()))
        );
        for path in [
            "/",
            "/.well-known/palisade-drill/",
            "/.well-known/Palisade-drill",
        ] {
            assert_eq!(ask(&service, Method::GET, path), None);
        }
    }

    #[test]
    fn a_line_that_has_ended_is_not_published() {
        let (seconds, service) = service();
        seconds.store(NOW + 59, Relaxed);
        assert_eq!(ask(&service, Method::GET, PATH).unwrap().0, 200);
        seconds.store(NOW + 60, Relaxed);
        assert_eq!(ask(&service, Method::GET, PATH), Some((404, String::new())));
    }

    #[test]
    fn no_cache_keeps_the_line() {
        let (_, service) = service();
        let request = Request::get(PATH).body(()).unwrap();
        let answer = service.answer(&request).unwrap();
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
    }
}
