//! Listening sockets, with options that the `bind` of tokio does not offer.

#[cfg(target_os = "linux")]
use crate::sys::accept_queue;
use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpSocket};

/// The options of [`ConnGuard::bind_with`](crate::ConnGuard::bind_with).
#[derive(Clone, Copy, Debug)]
#[must_use = "options do nothing until they are passed to `ConnGuard::bind_with`"]
pub struct BindOptions {
    backlog: u32,
    reuse_port: bool,
}

// === BindOptions ===

impl BindOptions {
    /// Returns the options of [`ConnGuard::bind`](crate::ConnGuard::bind).
    pub const fn new() -> Self {
        Self {
            backlog: 1024,
            reuse_port: false,
        }
    }

    /// Limits the connections that wait to be accepted. The system may allow fewer, on Linux
    /// `net.core.somaxconn`. tokio's own listeners have 1,024, those of `std` have 128 or what the
    /// system allows.
    ///
    /// Range: at least 1. Defaults to 1,024.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{BindOptions, ConnGuard};
    ///
    /// let options = BindOptions::new().backlog(16);
    /// let mut listener = ConnGuard::default().bind_with("127.0.0.1:0", options).await?;
    /// // The system completes a connection before the server accepts it.
    /// let client = TcpStream::connect(listener.local_addr()?).await?;
    /// assert_eq!(listener.guard().snapshot().open, 0);
    /// let (io, _) = listener.accept().await?;
    /// assert_eq!(listener.guard().snapshot().open, 1);
    /// # drop((client, io));
    /// # Ok(())
    /// # }
    /// ```
    pub const fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Sets whether other sockets with this option may listen on the same address (`SO_REUSEPORT`).
    /// The system distributes the connections among them. Use it for several accept loops of one
    /// guard, or for the next version of the process. Unix only. Defaults to `false`.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(unix))] fn main() {}
    /// # #[cfg(unix)]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// use palisade_conn::{BindOptions, ConnGuard};
    ///
    /// let guard = ConnGuard::default();
    /// let shared = BindOptions::new().reuse_port(true);
    /// let first = guard.bind_with("127.0.0.1:0", shared).await?;
    /// let second = guard.bind_with(first.local_addr()?, shared).await?;
    /// assert_eq!(second.local_addr()?, first.local_addr()?);
    /// // A socket without the option is refused.
    /// let error = guard.bind(first.local_addr()?).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::AddrInUse);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// Returns the number of connections that may wait, with the limit of the system, if known.
    pub(crate) fn effective_backlog(self) -> Option<u32> {
        #[cfg(target_os = "linux")]
        return accept_queue::max_backlog().map(|max| max.min(self.backlog));
        #[cfg(not(target_os = "linux"))]
        None
    }

    pub(crate) fn bind(
        self,
        address: SocketAddr,
        receive_buffer: Option<u32>,
    ) -> io::Result<TcpListener> {
        if self.backlog == 0 {
            let fault = "backlog is 0, allowed is at least 1";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // tokio and std do the same. On Windows the option has another meaning.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        if self.reuse_port {
            reuse_port(&socket)?;
        }
        // Before `listen`, so that also the first connection has it. It is not worth a failure.
        if let Some(bytes) = receive_buffer {
            let _ = socket.set_recv_buffer_size(bytes);
        }
        socket.bind(address)?;
        socket.listen(self.backlog)
    }
}

impl Default for BindOptions {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos"))))]
fn reuse_port(socket: &TcpSocket) -> io::Result<()> {
    socket.set_reuseport(true)
}

#[cfg(not(all(unix, not(any(target_os = "solaris", target_os = "illumos")))))]
fn reuse_port(_: &TcpSocket) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "SO_REUSEPORT is not available on this system",
    ))
}

#[cfg(all(test, unix, not(palisade_loom)))]
mod tests;
