//! HTTP settings.

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use palisade_core::ConfigError;
use std::{ops::RangeInclusive, time::Duration};

/// HTTP settings: the protocols that the server speaks, and the limits of one connection.
///
/// Everything that hyper does not limit by default has a limit here, and no limit can be removed.
///
/// ```
/// # use palisade_serve::Http;
/// let http = Http::builder().max_concurrent_streams(250).max_header_size(16 * 1024).build()?;
/// # Ok::<_, palisade_serve::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Http {
    pub(crate) protocol: Protocol,
    max_header_size: usize,
    max_headers: Option<usize>,
    max_buffer_size: Option<usize>,
    pub(crate) half_close: bool,
    max_concurrent_streams: u32,
    stream_window: u32,
    connection_window: u32,
    max_send_buffer_size: usize,
    max_header_list_size: u32,
    max_local_resets: usize,
    max_pending_resets: usize,
    ping: Option<(Duration, Duration)>,
    extended_connect: bool,
    pub(crate) allow_connect: bool,
}

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Detected from the first bytes.
    Auto,
    Http1,
    Http2,
}

/// Builder of [`Http`]. [`build`](Self::build) checks all settings and reports every fault at once.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct HttpBuilder(Http);

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

// === Http ===

impl Http {
    /// Returns a builder, with every setting at its default.
    pub fn builder() -> HttpBuilder {
        HttpBuilder(Self::default())
    }

    /// Returns the size of hyper's HTTP/1 buffers. A request head must fit into it.
    fn buffer_size(&self) -> usize {
        self.max_buffer_size
            .unwrap_or((64 * KIB).max(self.max_header_size))
    }

    /// Returns hyper's HTTP/1 builder with these settings.
    pub(crate) fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            // The guard has this timeout, with one timer for all connections. hyper's own timer
            // costs every request an allocation.
            .header_read_timeout(None)
            .half_close(self.half_close)
            .max_header_size(self.max_header_size)
            .max_buf_size(self.buffer_size());
        if let Some(max) = self.max_headers {
            builder.max_headers(max);
        }
        builder
    }

    /// Returns hyper's HTTP/2 builder with these settings, which spawns streams on `executor`.
    pub(crate) fn http2<E: Clone>(&self, executor: E) -> http2::Builder<E> {
        let mut builder = http2::Builder::new(executor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_concurrent_streams)
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_send_buf_size(self.max_send_buffer_size)
            .max_header_list_size(self.max_header_list_size)
            .max_local_error_reset_streams(self.max_local_resets)
            .max_pending_accept_reset_streams(self.max_pending_resets);
        if let Some((interval, timeout)) = self.ping {
            builder
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout);
        }
        if self.extended_connect {
            builder.enable_connect_protocol();
        }
        builder
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            protocol: Protocol::Auto,
            max_header_size: 32 * KIB,
            max_headers: None,
            max_buffer_size: None,
            half_close: false,
            max_concurrent_streams: 100,
            stream_window: 256 * KIB as u32,
            connection_window: 512 * KIB as u32,
            max_send_buffer_size: 64 * KIB,
            max_header_list_size: 32 * KIB as u32,
            max_local_resets: 1024,
            max_pending_resets: 20,
            ping: None,
            extended_connect: false,
            allow_connect: false,
        }
    }
}

// === HttpBuilder ===

impl HttpBuilder {
    /// Serves only HTTP/1.1 and HTTP/1.0, without protocol detection. With TLS, ALPN offers nothing
    /// else. Replaces an earlier [`Self::http2_only`]. Defaults to HTTP/1 and HTTP/2, detected from
    /// the first bytes.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().http1_only().build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let answer = ask(server, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    /// assert!(answer.starts_with("HTTP/1.1 200 "));
    /// let answer = ask(server, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?; // A client of HTTP/2.
    /// assert_eq!(answer, "");
    /// # Ok(())
    /// # }
    /// ```
    pub fn http1_only(mut self) -> Self {
        self.0.protocol = Protocol::Http1;
        self
    }

    /// Serves only HTTP/2, without protocol detection, for example for gRPC. With TLS, ALPN offers
    /// nothing else. Replaces an earlier [`Self::http1_only`]. Defaults to HTTP/1 and HTTP/2,
    /// detected from the first bytes.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().http2_only().build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// client.write_all(&h2::get(1, "/")).await?;
    /// assert_eq!(h2::next(&mut client, h2::DATA, 1).await, b"hello");
    /// // A client of HTTP/1 is disconnected.
    /// let answer = ask(server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap_or_default();
    /// assert!(!answer.contains("HTTP/1.1"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn http2_only(mut self) -> Self {
        self.0.protocol = Protocol::Http2;
        self
    }

    /// HTTP/1: limits a request head, and the trailers of a body, to `bytes`, 1 KiB to 1 MiB. A
    /// larger head is answered with 431. hyper's own default is not an exact limit, but the size of
    /// its buffer, some 500 KiB. Defaults to 32 KiB.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().max_header_size(1024).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let head = |bytes| format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n", "x".repeat(bytes));
    /// let answer = ask(server, head(900) + "connection: close\r\n\r\n").await?;
    /// assert!(answer.starts_with("HTTP/1.1 200 "));
    /// let answer = ask(server, head(1024) + "\r\n").await?;
    /// assert!(answer.starts_with("HTTP/1.1 431 "));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_header_size(mut self, bytes: usize) -> Self {
        self.0.max_header_size = bytes;
        self
    }

    /// HTTP/1: limits a request head to `fields` header fields, 1 to 1,000. A head with more is
    /// answered with 431. Any explicit number costs more than hyper's own default. Defaults to
    /// hyper's 100.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().max_headers(2).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let answer = ask(server, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    /// assert!(answer.starts_with("HTTP/1.1 200 "));
    /// let answer = ask(server, "GET / HTTP/1.1\r\nhost: x\r\na: 1\r\nb: 2\r\n\r\n").await?;
    /// assert!(answer.starts_with("HTTP/1.1 431 "));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_headers(mut self, fields: usize) -> Self {
        self.0.max_headers = Some(fields);
        self
    }

    /// HTTP/1: limits the buffer of each direction of a connection to `bytes`, 8 KiB to 16 MiB, and
    /// at least [`Self::max_header_size`]. One frame of a response body may come on top, whatever
    /// its length. hyper's own default is 408 KiB. Defaults to 64 KiB, or to the maximum head size
    /// if that is more.
    ///
    /// ```
    /// use palisade_serve::Http;
    ///
    /// let small = Http::builder().max_buffer_size(8 * 1024);
    /// // A head of 32 KiB, the default, would not fit.
    /// let error = small.clone().build().unwrap_err();
    /// assert!(error.to_string().contains("max_buffer_size is 8192, allowed is 32768 to"));
    /// let http = small.max_header_size(4 * 1024).build()?;
    /// # Ok::<_, palisade_serve::ConfigError>(())
    /// ```
    pub fn max_buffer_size(mut self, bytes: usize) -> Self {
        self.0.max_buffer_size = Some(bytes);
        self
    }

    /// HTTP/1: answers a client that has closed its own direction of the connection. Such a client
    /// then counts as gone only after a reset, or once both directions are closed.
    ///
    /// Without this option a client that sends a request and then a FIN (`nc -N`,
    /// `shutdown(SHUT_WR)`) counts as gone: hyper drops the request at once. If the client sent
    /// even one further byte before the FIN, hyper does not notice, and the guard's
    /// [`probe_interval`](palisade_conn::ConnGuardBuilder::probe_interval) resets the connection.
    /// For most servers that is better, because a FIN is also all that arrives from a client that
    /// has closed the whole connection. With this option, the handler of such a client continues
    /// until its response is written, or until TCP keepalive brings the reset after a minute or so.
    /// Defaults to off, as in hyper.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let app = Router::new().route("/", get(async || {
    ///     tokio::time::sleep(Duration::from_secs(1)).await; // Of tokio's paused clock.
    ///     "hello"
    /// }));
    /// for (http, is_answered) in [
    ///     (Http::builder().half_close().build()?, true),
    ///     (Http::default(), false),
    /// ] {
    ///     let listener = TcpListener::bind("127.0.0.1:0").await?;
    ///     // The address of a server with these settings.
    ///     let server = spawn(palisade_serve::serve(listener, app.clone()).http(http))?;
    ///     let mut client = TcpStream::connect(server).await?;
    ///     client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    ///     client.shutdown().await?; // A FIN.
    ///     let mut answer = String::new();
    ///     let _ = client.read_to_string(&mut answer).await;
    ///     assert_eq!(answer.ends_with("\r\n\r\nhello"), is_answered);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn half_close(mut self) -> Self {
        self.0.half_close = true;
        self
    }

    /// HTTP/2: limits the requests in flight on one connection to `streams`, 1 to 100,000
    /// (`SETTINGS_MAX_CONCURRENT_STREAMS`). The memory that one connection can use grows with it.
    /// hyper's own default is 200, and tonic has no limit. Defaults to 100, the smallest number
    /// that RFC 9113 (section 6.5.2) recommends.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().max_concurrent_streams(1).build()?;
    /// // The address of a server with these settings, and an app that never responds.
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get(pending::<()>));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// client.write_all(&[h2::get(1, "/"), h2::get(3, "/")].concat()).await?;
    /// let code = h2::next(&mut client, h2::RST_STREAM, 3).await;
    /// assert_eq!(code, h2::REFUSED_STREAM.to_be_bytes());
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.0.max_concurrent_streams = streams;
        self
    }

    /// HTTP/2: sets the flow-control window of a stream to `bytes`, 1 KiB to 16 MiB: what a client
    /// may send of one request body before the handler reads it. A single upload transfers at most
    /// this much in a round trip. hyper's own default is 1 MiB. Defaults to 256 KiB.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().stream_window(1024).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// let settings = h2::next(&mut client, h2::SETTINGS, 0).await;
    /// let window = [0, 4, 0, 0, 4, 0]; // SETTINGS_INITIAL_WINDOW_SIZE is 1,024.
    /// assert!(settings.chunks(6).any(|setting| setting == window));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.0.stream_window = bytes;
        self
    }

    /// HTTP/2: sets the flow-control window of a connection to `bytes`, 64 KiB to 64 MiB: what a
    /// client may send of all request bodies together before handlers read them. A client uses
    /// this much memory if no handler reads its uploads. Choose more than [`Self::stream_window`],
    /// so that one upload that waits for its handler does not block all others. hyper's own default
    /// is 1 MiB. Defaults to 512 KiB.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().connection_window(1 << 20).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// // A window begins at 65,535 bytes.
    /// let added = h2::next(&mut client, h2::WINDOW_UPDATE, 0).await;
    /// assert_eq!(added, ((1_u32 << 20) - 65_535).to_be_bytes());
    /// # Ok(())
    /// # }
    /// ```
    pub fn connection_window(mut self, bytes: u32) -> Self {
        self.0.connection_window = bytes;
        self
    }

    /// HTTP/2: limits the buffer for one response body that the client does not take to `bytes`,
    /// 4 KiB to 16 MiB. A piece of 16 KiB may come on top. hyper's own default is 400 KiB, and a
    /// frame of any length on top. Defaults to 64 KiB.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum::body::{Body, Bytes};
    /// use futures_util::stream;
    /// use palisade_serve::Http;
    /// use std::sync::{Arc, atomic::{AtomicUsize, Ordering::Relaxed}};
    ///
    /// let http = Http::builder().max_send_buffer_size(4 * 1024).build()?;
    /// // An app that responds with endless pieces of 1 KiB, and counts those that are taken.
    /// let taken = Arc::new(AtomicUsize::new(0));
    /// let counter = taken.clone();
    /// let endless = async move || {
    ///     Body::from_stream(stream::repeat_with(move || {
    ///         counter.fetch_add(1, Relaxed);
    ///         Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024]))
    ///     }))
    /// };
    /// let app = Router::new().route("/", get(endless));
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// // The address of a server with these settings.
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 0).await?; // Its window is closed.
    /// client.write_all(&h2::get(1, "/")).await?;
    /// h2::next(&mut client, h2::HEADERS, 1).await;
    /// # for _ in 0..1000 { tokio::task::yield_now().await }
    /// assert!((1..=20).contains(&taken.load(Relaxed)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_send_buffer_size(mut self, bytes: usize) -> Self {
        self.0.max_send_buffer_size = bytes;
        self
    }

    /// HTTP/2: limits the header fields of one request to `bytes`, 1 KiB to 1 MiB, counted as in
    /// RFC 9113 (section 6.5.2), with 32 bytes extra for each field. A request with more is
    /// answered with 431. hyper's own default is 16 KiB. Defaults to 32 KiB, as for an HTTP/1 head.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().max_header_list_size(1024).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// let large = "x".repeat(1024);
    /// let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), ("x", &large)];
    /// client.write_all(&h2::headers(1, h2::END_STREAM, &fields)).await?;
    /// let mut frame = h2::read(&mut client).await;
    /// while frame.kind != h2::HEADERS {
    ///     frame = h2::read(&mut client).await;
    /// }
    /// assert_eq!(frame.status(), Some(431));
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_header_list_size(mut self, bytes: u32) -> Self {
        self.0.max_header_list_size = bytes;
        self
    }

    /// HTTP/2: limits the streams of one connection that the server resets because of errors of the
    /// client, including refused streams, to `streams`, 1 to 1,000,000. Beyond that the connection
    /// ends with GOAWAY `ENHANCE_YOUR_CALM`. The count is over the whole life of the connection.
    /// tonic has no limit (`MadeYouReset`, CVE-2025-8671). Defaults to 1,024.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().max_concurrent_streams(1).max_local_resets(10).build()?;
    /// // The address of a server with these settings, and an app that never responds.
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get(pending::<()>));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// // The second request and all later ones are refused by `RST_STREAM`.
    /// for stream in (1..=25).step_by(2) {
    ///     client.write_all(&h2::get(stream, "/")).await?;
    /// }
    /// let goaway = h2::next(&mut client, h2::GOAWAY, 0).await;
    /// assert_eq!(goaway[4..8], h2::ENHANCE_YOUR_CALM.to_be_bytes());
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_local_resets(mut self, streams: usize) -> Self {
        self.0.max_local_resets = streams;
        self
    }

    /// HTTP/2: limits the streams that the client has reset before the server has accepted them to
    /// `streams`, 1 to 10,000. Beyond that the connection ends (Rapid Reset, CVE-2023-44487).
    /// Streams that reach the app are counted by the guard's
    /// [`max_cancelled`](palisade_conn::ConnGuardBuilder::max_cancelled). Defaults to 20.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let http = Http::builder().max_pending_resets(1).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// let mut flood = Vec::new();
    /// for stream in [1, 3, 5] {
    ///     flood.extend(h2::get(stream, "/"));
    ///     flood.extend(h2::frame(h2::RST_STREAM, 0, stream, &h2::CANCEL.to_be_bytes()));
    /// }
    /// client.write_all(&flood).await?;
    /// let goaway = h2::next(&mut client, h2::GOAWAY, 0).await;
    /// assert_eq!(goaway[4..8], h2::ENHANCE_YOUR_CALM.to_be_bytes());
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_pending_resets(mut self, streams: usize) -> Self {
        self.0.max_pending_resets = streams;
        self
    }

    /// HTTP/2: sends PING after `interval` without any bytes from the client, and closes the
    /// connection if it is not acknowledged within `timeout`, each 1 s to 24 h.
    ///
    /// Beside a slow download, PING waits for all bytes before it, a minute and more, and an honest
    /// client would be disconnected. Clients that are gone are found by TCP keepalive, and clients
    /// that do nothing by the guard. Defaults to no PING.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// let second = Duration::from_secs(1);
    /// let http = Http::builder().keep_alive_ping(second, second).build()?;
    /// // The address of a server with these settings, and an app that responds with "hello".
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let app = Router::new().route("/", get("hello"));
    /// let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    /// let mut client = http2(server, 65_535).await?;
    /// client.write_all(&h2::get(1, "/")).await?;
    /// h2::next(&mut client, h2::DATA, 1).await;
    /// h2::next(&mut client, h2::PING, 0).await;
    /// // The client does not acknowledge it, and the server closes the connection.
    /// client.read_to_end(&mut Vec::new()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep_alive_ping(mut self, interval: Duration, timeout: Duration) -> Self {
        self.0.ping = Some((interval, timeout));
        self
    }

    /// HTTP/2: allows extended CONNECT (RFC 8441), for a WebSocket over HTTP/2. Defaults to not
    /// allowed.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum::routing::any;
    /// use palisade_serve::Http;
    ///
    /// let app = Router::new().route("/chat", any(async || "hello"));
    /// for (http, answer) in [
    ///     (Http::builder().extended_connect().build()?, h2::HEADERS), // Of the app.
    ///     (Http::default(), h2::RST_STREAM),
    /// ] {
    ///     let listener = TcpListener::bind("127.0.0.1:0").await?;
    ///     // The address of a server with these settings.
    ///     let server = spawn(palisade_serve::serve(listener, app.clone()).http(http))?;
    ///     let mut client = http2(server, 65_535).await?;
    ///     client.write_all(&h2::websocket(1, "/chat")).await?;
    ///     h2::next(&mut client, answer, 1).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn extended_connect(mut self) -> Self {
        self.0.extended_connect = true;
        self
    }

    /// Passes CONNECT requests to the app, for a proxy. If the app responds with success, the
    /// connection is upgraded, and most limits do not apply to it. An app that ignores the method
    /// would do so for any client. Defaults to answering CONNECT with 501.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_serve::Http;
    ///
    /// // An app that refuses every host.
    /// let app = service_fn(async |_: Request<palisade_serve::RequestBody>| {
    ///     Response::builder().status(403).body(String::new())
    /// });
    /// for (http, status) in [
    ///     (Http::builder().allow_connect().build()?, 403),
    ///     (Http::default(), 501),
    /// ] {
    ///     let listener = TcpListener::bind("127.0.0.1:0").await?;
    ///     // The address of a server with these settings.
    ///     let server = spawn(palisade_serve::serve(listener, app).http(http))?;
    ///     let request = "CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\nconnection: close\r\n\r\n";
    ///     let answer = ask(server, request).await?;
    ///     assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn allow_connect(mut self) -> Self {
        self.0.allow_connect = true;
        self
    }

    /// Checks and returns the settings.
    ///
    /// ```
    /// use palisade_serve::Http;
    ///
    /// let error = Http::builder().max_headers(0).stream_window(1).build().unwrap_err();
    /// let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    /// assert_eq!(fields, ["max_headers", "stream_window"]);
    /// assert!(error.to_string().contains("max_headers is 0, allowed is 1 to 1000"));
    /// ```
    ///
    /// # Errors
    ///
    /// If any number is out of its range. The error names every fault.
    pub fn build(self) -> Result<Http, ConfigError> {
        let http = &self.0;
        let mut error = ConfigError::new("the HTTP settings cannot be built");
        let mut check = |field, value: usize, allowed: RangeInclusive<usize>| {
            if !allowed.contains(&value) {
                let allowed = format!("{} to {}", allowed.start(), allowed.end());
                error.push(field, value.to_string(), allowed);
            }
        };
        check("max_header_size", http.max_header_size, KIB..=MIB);
        if let Some(fields) = http.max_headers {
            check("max_headers", fields, 1..=1000);
        }
        if let Some(bytes) = http.max_buffer_size {
            let min = http.max_header_size.clamp(8 * KIB, MIB);
            check("max_buffer_size", bytes, min..=16 * MIB);
        }
        check(
            "max_concurrent_streams",
            http.max_concurrent_streams as usize,
            1..=100_000,
        );
        check("stream_window", http.stream_window as usize, KIB..=16 * MIB);
        check(
            "connection_window",
            http.connection_window as usize,
            64 * KIB..=64 * MIB,
        );
        check(
            "max_send_buffer_size",
            http.max_send_buffer_size,
            4 * KIB..=16 * MIB,
        );
        check(
            "max_header_list_size",
            http.max_header_list_size as usize,
            KIB..=MIB,
        );
        check("max_local_resets", http.max_local_resets, 1..=1_000_000);
        check("max_pending_resets", http.max_pending_resets, 1..=10_000);
        if let Some((interval, timeout)) = http.ping {
            let allowed = Duration::from_secs(1)..=Duration::from_secs(86_400);
            if !allowed.contains(&interval) || !allowed.contains(&timeout) {
                let value = format!("({interval:?}, {timeout:?})");
                error.push("ping", value, "each 1 s to 24 h");
            }
        }
        error.into_result().map(|()| self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_out_of_range_is_reported() {
        let error = Http::builder()
            .max_header_size(0)
            .max_headers(0)
            .max_buffer_size(8191)
            .max_concurrent_streams(0)
            .stream_window(u32::MAX)
            .connection_window(0)
            .max_send_buffer_size(usize::MAX)
            .max_header_list_size(0)
            .max_local_resets(0)
            .max_pending_resets(0)
            .keep_alive_ping(Duration::ZERO, Duration::MAX)
            .build()
            .unwrap_err();
        let fields: Vec<_> = error
            .faults()
            .iter()
            .map(|fault| fault.field.clone())
            .collect();
        let all = [
            "max_header_size",
            "max_headers",
            "max_buffer_size",
            "max_concurrent_streams",
            "stream_window",
            "connection_window",
            "max_send_buffer_size",
            "max_header_list_size",
            "max_local_resets",
            "max_pending_resets",
            "ping",
        ];
        assert_eq!(fields, all);
        let text = error.to_string();
        assert!(
            text.contains("\n  max_buffer_size is 8191, allowed is 8192 to 16777216"),
            "{text}"
        );
    }

    #[test]
    fn the_largest_allowed_head_fits_into_the_buffer() {
        assert_eq!(
            Http::builder()
                .max_header_size(100 * KIB)
                .build()
                .unwrap()
                .buffer_size(),
            100 * KIB
        );
        let error = Http::builder()
            .max_header_size(100 * KIB)
            .max_buffer_size(64 * KIB);
        assert_eq!(
            error.build().unwrap_err().faults()[0].field,
            "max_buffer_size"
        );
        Http::builder()
            .max_header_size(100 * KIB)
            .max_buffer_size(100 * KIB)
            .build()
            .unwrap();
    }

    #[test]
    fn hyper_accepts_the_smallest_and_the_largest_settings() {
        let min = Http::builder()
            .max_header_size(KIB)
            .max_headers(1)
            .max_buffer_size(8 * KIB);
        let min = min.max_concurrent_streams(1).stream_window(KIB as u32);
        let min = min
            .max_send_buffer_size(4 * KIB)
            .max_header_list_size(KIB as u32);
        let max = Http::builder()
            .max_header_size(MIB)
            .max_buffer_size(16 * MIB);
        let max = max
            .connection_window(64 * MIB as u32)
            .stream_window(16 * MIB as u32);
        for http in [min.build().unwrap(), max.build().unwrap(), Http::default()] {
            let _ = (
                http.http1(),
                http.http2(hyper_util::rt::TokioExecutor::new()),
            );
        }
    }
}
