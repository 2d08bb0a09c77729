//! What an attack knows of its target: routes, headers, and how long it lasts.

use bytes::Bytes;
use std::time::Duration;

/// The `User-Agent` of every complete request.
pub(crate) const USER_AGENT: &str = concat!("palisade-drill/", env!("CARGO_PKG_VERSION"));

/// What an attack knows of its target. Shared by all its machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The value of `Host`.
    pub host: String,
    /// Whether the target speaks TLS: the scheme of its HTTP/2 requests is `https` then.
    pub tls: bool,
    /// The path of a cheap GET.
    pub get: String,
    /// The path of a POST that reads its body, if there is one.
    pub post: Option<String>,
    /// The path of a GET with a response of 256 KiB or more, if there is one.
    pub large: Option<String>,
    /// Headers of every request, beside `Host` and `User-Agent`.
    pub headers: Vec<(String, String)>,
    /// The time from the beginning of the attack at which machines begin nothing more.
    pub ends: Duration,
    /// The seed of what varies between the attackers; 0 for nothing.
    pub seed: u64,
}

impl Plan {
    /// Returns a plan with a GET of `/` and an attack of 10 seconds.
    ///
    /// ```
    /// let plan = palisade_drill::attacks::Plan::new("localhost");
    /// assert!(plan.get_request().starts_with(b"GET / HTTP/1.1\r\nhost: localhost\r\n"));
    /// ```
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            tls: false,
            get: "/".to_owned(),
            post: None,
            large: None,
            headers: Vec::new(),
            ends: Duration::from_secs(10),
            seed: 0,
        }
    }

    /// Returns the HTTP/1 head of `method path` without the empty line that ends it.
    pub fn head(&self, method: &str, path: &str) -> String {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: {USER_AGENT}\r\n",
            self.host
        );
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head
    }

    /// Returns the cheap GET as an HTTP/1 request.
    pub fn get_request(&self) -> Bytes {
        format!("{}\r\n", self.head("GET", &self.get)).into()
    }

    /// Returns the fields of `method path` for HTTP/2, pseudo-headers first.
    pub fn fields<'a>(&'a self, method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut fields = vec![
            (":method", method),
            (":scheme", if self.tls { "https" } else { "http" }),
            (":path", path),
            (":authority", &self.host),
            ("user-agent", USER_AGENT),
        ];
        let headers = self.headers.iter();
        fields.extend(headers.map(|(name, value)| (name.as_str(), value.as_str())));
        fields
    }
}
