//! From a bare axum server to a guarded one, in five steps.
//!
//! Each step is a whole program: it serves on a free port of 127.0.0.1, sends requests to itself,
//! checks the responses and ends. The client of all steps writes bytes on a new connection, and
//! reads until the server closes it:
//!
//! ```
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
//!
//! async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//!     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//!     socket.write_all(bytes.as_bytes()).await?;
//!     socket.read_to_string(&mut answer).await?;
//!     Ok(answer)
//! }
//! ```
//!
//! # 1. The bare server
//!
//! `axum::serve` accepts any number of connections and gives hyper no timer. A connection that
//! never completes a request head stays open, and no `Layer` sees it, because there is no request.
//!
//! ```
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! use axum::{Router, routing::get};
//! use std::{future::IntoFuture, time::Duration};
//! use tokio::{net::TcpListener, time::timeout};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = Router::new().route("/", get("hello"));
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let server = listener.local_addr()?;
//! tokio::spawn(axum::serve(listener, app).into_future());
//!
//! assert!(exchange(server, GET).await?.ends_with("hello"));
//! // Half a request head: the server waits for the rest, with no limit.
//! let half = exchange(server, "GET / HTTP/1.1\r\nho");
//! assert!(timeout(Duration::from_millis(500), half).await.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # 2. Guard the connections
//!
//! [`palisade::serve`](crate::serve()) takes the place of `axum::serve`. With a `TcpListener`,
//! every limit has its default: `palisade::serve(listener, app).await`. To set limits, bind with a
//! [`ConnGuard`](crate::conn::ConnGuard). Here a client has 200 ms for its first request in place
//! of 10 s, so that the example ends soon.
//!
//! ```
//! # use {axum::{Router, routing::get}, std::{future::IntoFuture, time::Duration}};
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! use palisade::conn::ConnGuard;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let app = Router::new().route("/", get("hello"));
//! let guard = ConnGuard::builder().first_request_timeout(Duration::from_millis(200)).build()?;
//! let listener = guard.bind("127.0.0.1:0").await?;
//! let server = listener.local_addr()?;
//! tokio::spawn(palisade::serve(listener, app).into_future());
//!
//! assert!(exchange(server, GET).await?.ends_with("hello"));
//! // Half a request head is answered, and the connection is closed.
//! assert!(exchange(server, "GET / HTTP/1.1\r\nho").await?.starts_with("HTTP/1.1 408"));
//! // A silent connection is reset.
//! let silent = exchange(server, "").await.unwrap_err();
//! assert_eq!(silent.kind(), io::ErrorKind::ConnectionReset);
//! # Ok(())
//! # }
//! ```
//!
//! # 3. Guard the requests, and record what is refused
//!
//! A [`Stack`](crate::Stack) is one layer with all request guards. `Router::layer` applies it to
//! the routes that were added before it. All routes and connections share its limits. One
//! [`Snapshot`](crate::Snapshot) records what the stack and the connection guard refuse.
//!
//! ```
//! # use {axum::{Router, routing::get}, std::{future::IntoFuture, time::Duration}};
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! use palisade::{Guard, Quota, Reason, Snapshot, Stack, conn::ConnGuard};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Snapshot::new();
//! let guard = ConnGuard::builder().metrics(metrics.clone()).build()?;
//! let stack = Stack::edge()
//!     .rate_limit(Quota::per_minute(1).burst(3))
//!     .metrics(metrics.clone())
//!     .build()?;
//! let app = Router::new()
//!     .route("/", get("hello").post(async |body: String| body))
//!     .layer(stack);
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # tokio::spawn(palisade::serve(listener, app).into_future());
//!
//! // A body over 2 MiB is refused by its declared length. The client need not send it.
//! let head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000000\r\n\r\n";
//! let answer = exchange(server, head).await?;
//! assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close\r\n"));
//! // Two more requests are within the burst of three. The next one is over the quota.
//! assert!(exchange(server, GET).await?.starts_with("HTTP/1.1 200"));
//! assert!(exchange(server, GET).await?.starts_with("HTTP/1.1 200"));
//! let answer = exchange(server, GET).await?;
//! assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: "));
//!
//! assert_eq!(metrics.refused(Guard::BodyLimit, Reason::TooLarge), 1);
//! assert_eq!(metrics.refused(Guard::RateLimit, Reason::RateExceeded), 1);
//! println!("{metrics}"); // A table. `metrics.prometheus()` is the page for Prometheus.
//! # Ok(())
//! # }
//! ```
//!
//! # 4. Shut down in a limited time
//!
//! ```
//! # use {axum::{Router, routing::get}, std::{future::IntoFuture, time::Duration}};
//! # use {std::{io, net::SocketAddr}, tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream}};
//! # const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let second = Duration::from_secs(1);
//! # let begun = std::sync::Arc::new(tokio::sync::Notify::new());
//! # let begins = begun.clone();
//! # let slow = async move || { begins.notify_one(); tokio::time::sleep(second / 4).await; "slow" };
//! # let app = Router::new().route("/", get(slow));
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # let request = tokio::spawn(exchange(server, GET));
//! # let signal = async move { begun.notified().await };
//! // `signal` is any future, such as `tokio::signal::ctrl_c()`. Here a request has just begun.
//! let drained = palisade::serve(listener, app)
//!     .with_graceful_shutdown(signal)
//!     .drain(Duration::from_secs(20))
//!     .await?;
//! assert_eq!(drained.cut, 0); // The request was answered, and its connection closed.
//! assert!(request.await??.ends_with("slow"));
//! # Ok(())
//! # }
//! ```
//!
//! # 5. Go live in shadow mode
//!
//! Set [`Mode::Shadow`](crate::Mode::Shadow) on both builders. The guards then count what they
//! would refuse, and admit it. [`shadow_mode`](super::shadow_mode) has the whole procedure.
//!
//! # What is refused now
//!
//! | the client | sees | until you change |
//! |---|---|---|
//! | sends no request head within 10 s | a reset; 408 if a head of HTTP/1 has begun | `ConnGuardBuilder::first_request_timeout` |
//! | has nothing in flight for 65 s | the end of the stream (FIN), GOAWAY | `ConnGuardBuilder::idle_timeout` |
//! | takes too little of a response for 5 min | a reset, of the one stream on HTTP/2 | `ConnGuardBuilder::write_timeout` |
//! | sends a head over 32 KiB, or no `Host` | 431, 400 | [`Http::builder`](crate::serve::Http::builder) for the 431 |
//! | sends more requests than the quota | 429, `Retry-After` | [`Stack::rate_limit`](crate::Stack::rate_limit), unset by default |
//! | declares or sends a body over 2 MiB | 413 | [`Stack::max_body`](crate::Stack::max_body) |
//! | pauses a body for 15 s, or sends less than 500 B/s | 408 | [`Stack::pace`](crate::Stack::pace) |
//! | waits for a handler for 30 s | 503 | [`Stack::timeout`](crate::Stack::timeout) |
//! | arrives while 1,024 requests are at work | 503, `Retry-After` | [`Stack::max_requests`](crate::Stack::max_requests) |
