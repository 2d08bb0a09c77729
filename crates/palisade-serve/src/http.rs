//! The settings of HTTP.

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use palisade_core::ConfigError;
use std::{ops::RangeInclusive, time::Duration};

/// Which HTTP is spoken, and how much of it one client may ask for.
///
/// What hyper leaves open by default is closed here, and nothing can be set to no limit.
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
    pub(crate) takes_connect: bool,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Whatever the client begins with.
    Auto,
    Http1,
    Http2,
}

/// Makes [`Http`]. Nothing is checked before [`build`](Self::build), which then names every fault
/// at once.
#[derive(Clone, Debug)]
#[must_use = "nothing is set before `build`, and nothing but what it returns is"]
pub struct HttpBuilder(Http);

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

// === Http ===

impl Http {
    /// Other settings than the default ones.
    pub fn builder() -> HttpBuilder {
        HttpBuilder(Self::default())
    }

    fn buffer_size(&self) -> usize {
        self.max_buffer_size
            .unwrap_or((64 * KIB).max(self.max_header_size))
    }

    pub(crate) fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            // The guard looks after that, with one timer for all connections. hyper's own costs
            // every request an allocation.
            .header_read_timeout(None)
            .half_close(self.half_close)
            .max_header_size(self.max_header_size)
            .max_buf_size(self.buffer_size());
        if let Some(most) = self.max_headers {
            builder.max_headers(most);
        }
        builder
    }

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
            takes_connect: false,
        }
    }
}

// === HttpBuilder ===

impl HttpBuilder {
    /// Speaks HTTP/1.1 and 1.0 only, without a look at the first bytes. Over TLS, nothing else is
    /// offered. Defaults to both, as the client begins.
    pub fn http1_only(mut self) -> Self {
        self.0.protocol = Protocol::Http1;
        self
    }

    /// Speaks HTTP/2 only, without a look at the first bytes: for gRPC. Over TLS, nothing else is
    /// offered. Defaults to both, as the client begins; of this and [`Self::http1_only`] the later
    /// one holds.
    pub fn http2_only(mut self) -> Self {
        self.0.protocol = Protocol::Http2;
        self
    }

    /// HTTP/1: how many bytes a request head may have, and the trailers of a body, 1 KiB to 1 MiB.
    /// More is answered with 431. hyper by itself has no exact limit and takes what its buffer
    /// holds, some 500 KiB. Defaults to 32 KiB.
    pub fn max_header_size(mut self, bytes: usize) -> Self {
        self.0.max_header_size = bytes;
        self
    }

    /// HTTP/1: how many fields a request head may have, 1 to 1,000. More is answered with 431.
    /// Defaults to hyper's 100, which costs less than any number that is set.
    pub fn max_headers(mut self, fields: usize) -> Self {
        self.0.max_headers = Some(fields);
        self
    }

    /// HTTP/1: how many bytes are kept for one connection in each direction, 8 KiB to 16 MiB, and
    /// not less than [`Self::max_header_size`]. One piece of a response body may come on top,
    /// however long it is. hyper by itself keeps 408 KiB. Defaults to 64 KiB,
    /// or the size of a head if that is more.
    pub fn max_buffer_size(mut self, bytes: usize) -> Self {
        self.0.max_buffer_size = Some(bytes);
        self
    }

    /// HTTP/1: answers a client that has closed its own direction of the connection, and looks at
    /// nothing but a reset, or a close of both, to find out that it is gone.
    ///
    /// Without it a client that sends a request and then a FIN (`nc -N`, `shutdown(SHUT_WR)`) is
    /// gone to hyper, which drops the request at once, or, where the client sent so much as a byte
    /// too many before the FIN, to the guard's [`probe`](palisade_conn::ConnGuardBuilder::probe),
    /// which resets the connection. That is for most servers the better bargain: a FIN is also all
    /// that comes of a client that has closed the whole connection. With it the handler of such a
    /// one works on until its answer is written, or TCP's keepalive brings the reset, after a
    /// minute or so. Defaults to off, as in hyper.
    pub fn half_close(mut self) -> Self {
        self.0.half_close = true;
        self
    }

    /// HTTP/2: how many requests one connection may have in flight, 1 to 100,000
    /// (`SETTINGS_MAX_CONCURRENT_STREAMS`). All that one
    /// connection can make the server keep grows with it. hyper by itself allows 200, tonic any
    /// number. Defaults to 100, the least that RFC 9113 (section 6.5.2) recommends.
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.0.max_concurrent_streams = streams;
        self
    }

    /// HTTP/2: how many bytes of one request body a client may send before the handler takes
    /// them, 1 KiB to 16 MiB. A single upload goes at no more than this in a round trip. hyper by
    /// itself allows 1 MiB. Defaults to 256 KiB.
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.0.stream_window = bytes;
        self
    }

    /// HTTP/2: the same for all requests of a connection together, 64 KiB to 64 MiB. So much is
    /// kept for a client whose uploads no handler reads. More than [`Self::stream_window`], so that
    /// one upload that waits for its handler does not hold up all others. hyper by itself allows
    /// 1 MiB. Defaults to 512 KiB.
    pub fn connection_window(mut self, bytes: u32) -> Self {
        self.0.connection_window = bytes;
        self
    }

    /// HTTP/2: how many bytes of one response body are kept for a client that does not take them,
    /// 4 KiB to 16 MiB; a piece of 16 KiB may come on top. hyper by itself keeps 400 KiB, and a
    /// piece of any length. Defaults to 64 KiB.
    pub fn max_send_buffer_size(mut self, bytes: usize) -> Self {
        self.0.max_send_buffer_size = bytes;
        self
    }

    /// HTTP/2: how many bytes the header fields of one request may have, counted as RFC 9113
    /// (section 6.5.2) does, with 32 for each field, 1 KiB to 1 MiB. More is answered with 431.
    /// hyper by itself allows 16 KiB. Defaults to 32 KiB, as much as a head of HTTP/1.
    pub fn max_header_list_size(mut self, bytes: u32) -> Self {
        self.0.max_header_list_size = bytes;
        self
    }

    /// HTTP/2: how many streams of one connection may end by errors that are the client's, refused
    /// ones among them, 1 to 1,000,000; then it is told to calm down (GOAWAY `ENHANCE_YOUR_CALM`)
    /// and ends. It counts over the whole life of a connection. tonic by itself sets no limit
    /// (`MadeYouReset`, CVE-2025-8671). Defaults to 1,024.
    pub fn max_local_resets(mut self, streams: usize) -> Self {
        self.0.max_local_resets = streams;
        self
    }

    /// HTTP/2: how many streams may be reset by the client before a handler has heard of them,
    /// 1 to 10,000; then the connection ends (Rapid Reset, CVE-2023-44487). Those that a handler
    /// has heard of are the guard's to count. Defaults to 20.
    pub fn max_pending_resets(mut self, streams: usize) -> Self {
        self.0.max_pending_resets = streams;
        self
    }

    /// HTTP/2: how long nothing may come before the client is asked for a sign of life, 1 s to
    /// 24 h, and how long he has to give it, 1 s to 24 h.
    ///
    /// Defaults to never. Behind a download that is taken slowly the answer waits for all that is
    /// before it, a minute and more, and an honest client would be cut off. Whoever is gone is
    /// found out by TCP's own keepalive, and whoever is there and does nothing by the guard.
    pub fn ping(mut self, interval: Duration, timeout: Duration) -> Self {
        self.0.ping = Some((interval, timeout));
        self
    }

    /// HTTP/2: allows extended CONNECT (RFC 8441), for a WebSocket over HTTP/2. Defaults to not.
    pub fn extended_connect(mut self) -> Self {
        self.0.extended_connect = true;
        self
    }

    /// Lets CONNECT through to the app, for a proxy. An app that answers it with success has made
    /// of the connection something else than HTTP, to which most limits do not apply; one that
    /// answers every method alike would do so for whoever asks. Defaults to 501.
    pub fn connect(mut self) -> Self {
        self.0.takes_connect = true;
        self
    }

    /// The settings.
    ///
    /// # Errors
    ///
    /// If any number is out of its range; names every one.
    pub fn build(self) -> Result<Http, ConfigError> {
        let http = &self.0;
        let mut error = ConfigError::new("these settings of HTTP cannot be");
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
            let least = http.max_header_size.clamp(8 * KIB, MIB);
            check("max_buffer_size", bytes, least..=16 * MIB);
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
    fn every_number_out_of_range_is_named() {
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
            .ping(Duration::ZERO, Duration::MAX)
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
    fn a_head_that_is_allowed_fits_into_the_buffer() {
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
    fn hyper_takes_every_edge() {
        let least = Http::builder()
            .max_header_size(KIB)
            .max_headers(1)
            .max_buffer_size(8 * KIB);
        let least = least.max_concurrent_streams(1).stream_window(KIB as u32);
        let least = least
            .max_send_buffer_size(4 * KIB)
            .max_header_list_size(KIB as u32);
        let most = Http::builder()
            .max_header_size(MIB)
            .max_buffer_size(16 * MIB);
        let most = most
            .connection_window(64 * MIB as u32)
            .stream_window(16 * MIB as u32);
        for http in [
            least.build().unwrap(),
            most.build().unwrap(),
            Http::default(),
        ] {
            let _ = (
                http.http1(),
                http.http2(hyper_util::rt::TokioExecutor::new()),
            );
        }
    }
}
