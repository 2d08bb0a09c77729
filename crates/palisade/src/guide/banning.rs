//! How to keep abusers out for a while.
//!
//! A rate limit answers each request of an abuser with 429, for ever. A [`Ban`](crate::Ban) keeps
//! the client out: at accept, where a connection costs nearly nothing, and per request, where the
//! client is behind a proxy. The application decides what counts against a client, such as failed
//! logins, and other guards can count as well. Needs the feature `ban`, on by default.
//!
//! ```
//! use axum::{Router, extract::State, http::StatusCode, routing::post};
//! use palisade::{Ban, Stack, conn::ConnGuard, types::Client};
//! use std::{future::IntoFuture, time::Duration};
//! # use std::{io, net::SocketAddr};
//! # use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream};
//!
//! # async fn exchange(to: SocketAddr, bytes: &str) -> io::Result<String> {
//! #     let (mut socket, mut answer) = (TcpStream::connect(to).await?, String::new());
//! #     socket.write_all(bytes.as_bytes()).await?;
//! #     socket.read_to_string(&mut answer).await?;
//! #     Ok(answer)
//! # }
//! #
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Three failed logins at once, or more than three in ten minutes for long.
//! let ban = Ban::builder().strikes(3, Duration::from_secs(600)).build()?;
//! let guard = ConnGuard::builder().gate(ban.clone()).build()?;
//! let stack = Stack::edge().ban(ban.clone()).build()?;
//!
//! async fn log_in(State(ban): State<Ban>, client: Client, password: String) -> StatusCode {
//!     if password == "secret" {
//!         return StatusCode::OK;
//!     }
//!     ban.strike(&client, 1);
//!     StatusCode::UNAUTHORIZED
//! }
//!
//! let app = Router::new().route("/login", post(log_in)).with_state(ban.clone()).layer(stack);
//! # let listener = guard.bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # tokio::spawn(palisade::serve(listener, app).into_future());
//! let log_in = async |password: &str| {
//!     let length = password.len();
//!     let head = format!("POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n");
//!     let request = head + "connection: close\r\n\r\n" + password;
//!     exchange(server, &request).await.map(|answer| answer[9..12].to_owned())
//! };
//! for _ in 0..3 {
//!     assert_eq!(log_in("123456").await?, "401");
//! }
//! // The next connection is reset. After 10 s the client is admitted again, then banned for 20 s.
//! assert!(log_in("secret").await.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # What to decide
//!
//! - **What counts.** A failed login, an invalid token, a scanner's path. Count refusals of other
//!   guards with `BanBuilder::strike_for`, and give the ban to their `.metrics(..)`. Nothing counts
//!   by itself, and nothing of a guard in shadow mode.
//! - **What is never banned.** `BanBuilder::allow` has the networks of your offices and monitoring,
//!   and of carriers, where thousands of people share one address: a ban of the address keeps all
//!   of them out. A trusted proxy is never banned.
//! - **Lists.** `BanBuilder::deny` has networks of your own files, replaced while the server runs.
//! - **Behind a proxy that sends a field** the gate sees the proxy, and lets it pass: only the
//!   `Stack` refuses, with 403. With the PROXY protocol the gate acts on the client.
//! - **First in shadow mode.** `BanBuilder::mode(Mode::Shadow)` writes the line of each ban, and
//!   admits the client.
//!
//! The document `docs/operations/fail2ban` hands bans to a firewall.
