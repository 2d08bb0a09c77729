//! The builder of a drill.

use crate::{
    consent::Secret,
    error::DrillError,
    options::Options,
    report::Report,
    run,
    server::{Server, Subject},
    target,
    worker::Worker,
};
use std::{fmt, net::ToSocketAddrs};
use tokio::net::TcpListener;

/// A drill against one server. See the [crate docs](crate).
///
/// A GET that is cheap is all that it needs. What needs another route is skipped by name.
#[derive(Debug)]
#[must_use = "a drill does nothing until it is run"]
pub struct Drill {
    subject: Subject,
    options: Options,
}

impl Drill {
    /// A drill against the server that `serve` runs on a loopback port, in a thread and a
    /// current-thread runtime of its own. The server ends with the drill.
    ///
    /// `serve` returns a future that serves the listener until it is dropped; its output is
    /// ignored. The limit on open files of this process is raised as far as it may be, because
    /// attackers and server share it.
    pub fn serving<F, Fut>(serve: F) -> Self
    where
        F: FnOnce(TcpListener) -> Fut + Send + 'static,
        Fut: Future + 'static,
    {
        Self::of(Subject::Server(Server::new(serve)))
    }

    /// A drill against a server that runs already, on a loopback address. A name is resolved once,
    /// here; the call blocks while it is.
    ///
    /// ```
    /// use palisade_drill::Drill;
    /// assert!(Drill::against("127.0.0.1:8080").is_ok());
    /// let error = Drill::against("192.0.2.1:80").unwrap_err();
    /// assert!(error.to_string().contains("only loopback addresses are attacked"));
    /// ```
    ///
    /// [`with_consent`](Self::with_consent) drills any other address.
    ///
    /// # Errors
    ///
    /// [`DrillError::Refused`] if the target has no address, or one that is not loopback.
    pub fn against(target: impl ToSocketAddrs + fmt::Debug) -> Result<Self, DrillError> {
        Ok(Self::of(Subject::Running(target::resolve(target)?)))
    }

    /// A drill against a server that runs already, on any address, and that publishes its
    /// [consent](crate::consent) to the holder of `secret`. A name is resolved once, here; all of
    /// its addresses have to consent, and the first is attacked. The call blocks while it is
    /// resolved. One on loopback has to consent too, which rehearses it, and its listener has to
    /// belong to the same user.
    ///
    /// The server is asked before anything else is sent, and at least once a minute from then on.
    /// The drill ends with [`DrillError::ConsentEnded`] within a minute after it has taken the line
    /// away, and nothing lifts that. Headers of [`header`](Self::header) are not sent with that
    /// question.
    ///
    /// ```no_run
    /// use palisade_drill::{Drill, Grade};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let secret = std::fs::read_to_string("drill.secret")?.parse()?;
    /// let drill = Drill::with_consent("staging.example.com:80", secret)?;
    /// drill.places(1_000).run().await?.assert(Grade::A);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`DrillError::Refused`] if the target has no address, more than eight, or one that is not
    /// that of a single machine. Whether it consents is found out by [`run`](Self::run).
    pub fn with_consent(
        target: impl ToSocketAddrs + fmt::Debug,
        secret: Secret,
    ) -> Result<Self, DrillError> {
        let addrs = target::resolve_any(target)?;
        Ok(Self::of(Subject::Consenting(addrs, secret)))
    }

    /// A drill against a server in a child process. `command` gets the variable `PORT`, and has to
    /// listen on that port of 127.0.0.1 within 30 seconds, in the foreground. Its memory, open
    /// files and processor time are measured on Linux. It ends with the drill, and so do processes
    /// that it started, as far as the system tells them (on Linux): by their pids, without notice.
    ///
    /// ```no_run
    /// use palisade_drill::{Drill, Grade};
    /// use std::process::Command;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_drill::DrillError> {
    /// let report = Drill::child(Command::new("target/release/my-server"))
    ///     .file_limit(1024)
    ///     .run()
    ///     .await?;
    /// report.assert(Grade::A);
    /// # Ok(())
    /// # }
    /// ```
    pub fn child(command: std::process::Command) -> Self {
        Self::of(Subject::Child(command))
    }

    fn of(subject: Subject) -> Self {
        Self {
            subject,
            options: Options::default(),
        }
    }

    /// The number of connections that the server admits, 1 to 1,897. More attackers than that come,
    /// and newcomers ask for all places at the end. Defaults to unknown: fewer attackers come, and
    /// whether those that stay are tolerated or cannot be displaced is not found out.
    pub fn places(mut self, places: usize) -> Self {
        self.options.places = Some(places);
        self
    }

    /// The limit on open files of the server, 64 to 1,897; 1,024 is that of most systems. It admits
    /// fewer connections than that, so that places are short without [`places`](Self::places). For
    /// [`child`](Self::child) on Linux alone. Defaults to that of the drill.
    ///
    /// It is set when the process has begun. A server that raises its limit before that, as root
    /// for example, is named in the report.
    pub fn file_limit(mut self, files: u64) -> Self {
        self.options.file_limit = Some(files);
        self
    }

    /// The limit on memory of the server in bytes, 32 MiB to 320 MiB, by a control group that the
    /// drill makes and removes. For [`child`](Self::child) on Linux alone, and only where this
    /// process may make control groups: the report says so if not, and the attack that needs it is
    /// skipped. A server that has more than that is ended by the kernel, which is *down*. Defaults
    /// to none.
    ///
    /// Choose what the server will have: 256 MiB for example.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.options.memory_limit = Some(bytes);
        self
    }

    /// Speaks TLS with the target: honest clients, attackers and newcomers. Each handshake asks for
    /// the host `name` (SNI, RFC 6066 section 3), which is also the `Host` of every request; an IP
    /// address is not asked for. HTTP/1 offers `http/1.1` by ALPN, and HTTP/2 is drilled if the
    /// server chooses `h2`. Attacks on the handshake itself are added, and honest clients that make
    /// theirs slowly.
    ///
    /// The certificate is *not verified*: it may be self-signed, expired or of another name. The
    /// drill attacks loopback, where nothing comes between it and the server. The headers of
    /// [`header`](Self::header) are sent all the same: use a credential of a test. Sessions are not
    /// resumed. Defaults to clear text. Needs the feature `rustls`.
    ///
    /// ```no_run
    /// use palisade_drill::{Drill, Grade};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), palisade_drill::DrillError> {
    /// let report = Drill::against("127.0.0.1:8443")?.tls("localhost").run().await?;
    /// report.assert(Grade::A);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "rustls")]
    pub fn tls(mut self, name: impl Into<String>) -> Self {
        self.options.tls = Some(name.into());
        self
    }

    /// The path of a cheap GET. Defaults to `/`.
    pub fn get(mut self, path: impl Into<String>) -> Self {
        self.options.get = path.into();
        self
    }

    /// The path of a POST that reads its body, of 100,000 bytes at most. Defaults to none: honest
    /// clients send no POST, and slow uploads are skipped.
    pub fn post(mut self, path: impl Into<String>) -> Self {
        self.options.post = Some(path.into());
        self
    }

    /// The path of a GET with a response of 256 KiB or more. Defaults to none: slow readers are
    /// skipped.
    pub fn large(mut self, path: impl Into<String>) -> Self {
        self.options.large = Some(path.into());
        self
    }

    /// The path of a GET that is answered with an event stream, or with another answer that stays
    /// open. An honest client holds it open. Defaults to none.
    pub fn events(mut self, path: impl Into<String>) -> Self {
        self.options.open.events = Some(path.into());
        self
    }

    /// The path of a WebSocket. An honest client holds it open and is quiet. Defaults to none.
    pub fn websocket(mut self, path: impl Into<String>) -> Self {
        self.options.open.websocket = Some(path.into());
        self
    }

    /// The path of a GET that takes a millisecond of processor time or more. Requests at twice the
    /// capacity of the server are skipped without it. For [`child`](Self::child) on Linux alone, on
    /// two processor cores or more: the server is pinned to all but one. Defaults to none.
    pub fn cpu_get(mut self, path: impl Into<String>) -> Self {
        self.options.cpu_get = Some(path.into());
        self
    }

    /// Adds a header to every request, a credential for example. The name is sent in lower case, as
    /// HTTP/2 requires (RFC 9113, section 8.2.1). Defaults to none.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into().to_ascii_lowercase();
        self.options.headers.push((name, value.into()));
        self
    }

    /// Runs the attack `name`, and those of other calls of this method, alone. Defaults to all
    /// [`attacks`](crate::attacks::all).
    pub fn only(mut self, name: impl Into<String>) -> Self {
        self.options.only.push(name.into());
        self
    }

    /// Does not run the attack `name`. Defaults to none.
    pub fn skip(mut self, name: impl Into<String>) -> Self {
        self.options.skip.push(name.into());
        self
    }

    /// Runs the attacks that say most, for a shorter time: a minute at most in all. The others are
    /// skipped by name, with the reason; an attack of [`only`](Self::only) is always run. A server
    /// with patient timeouts has less time to end what it would end. Defaults to the full drill, of
    /// eight minutes or so.
    pub fn quick(mut self) -> Self {
        self.options.quick = true;
        self
    }

    /// The seed of what varies between attackers, so that a server does not hold by rules that know
    /// their gaps and bytes: when each begins, the pauses and the padding of slow heads and bodies,
    /// and invented identities. Attackers do the same in each drill with the same seed. With 0,
    /// all pauses and bytes are alike. Defaults to 1.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Runs the drill without any attacker. Every verdict is *held* or *inconclusive*, unless the
    /// machine or the server is too restless for a drill.
    pub fn rehearse(mut self) -> Self {
        self.options.has_attackers = false;
        self
    }

    /// Runs the drill, in threads and runtimes of its own. The caller's runtime may be of any kind.
    ///
    /// # Errors
    ///
    /// - [`DrillError::Config`] if options are wrong, before any socket is made.
    /// - [`DrillError::Refused`] if the target may not be attacked.
    /// - [`DrillError::ConsentEnded`] if it does not consent any more.
    /// - [`DrillError::NotServed`] if it does not answer the honest requests to begin with.
    /// - [`DrillError::ServerEnded`] if the server of [`serving`](Self::serving) ended.
    /// - [`DrillError::ChildFailed`] if the server of [`child`](Self::child) did not start.
    /// - [`DrillError::Io`] if the system has no more files, ports or threads.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the server of [`serving`](Self::serving) or
    /// [`child`](Self::child), all clients and all
    /// connections end. The drop waits for that, for two seconds at most.
    pub async fn run(self) -> Result<Report, DrillError> {
        let Self { subject, options } = self;
        options.check()?;
        subject.check(&options)?;
        let mut worker = Worker::spawn("drill", move || run::run(subject, options))?;
        worker.finished().await.unwrap_or_else(|| {
            Err(std::io::Error::other("a thread of the drill panicked, which is a bug").into())
        })
    }
}

#[cfg(test)]
mod bad_targets;
#[cfg(test)]
mod consent;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
#[cfg(feature = "rustls")]
mod tls_targets;
