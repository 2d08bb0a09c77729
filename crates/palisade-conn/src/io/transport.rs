//! The byte streams that a guarded connection can run over.

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// The largest number of unsent bytes in the kernel. It is small, so that the kernel takes bytes
/// only as fast as the client does.
pub(crate) const MAX_UNSENT_BYTES: u32 = 64 * 1024;
/// The time of silence before the first TCP keep-alive probe.
const KEEPALIVE_IDLE_TIME: Duration = Duration::from_secs(60);
/// The interval between keep-alive probes. With `TCP_USER_TIMEOUT`, the connection is closed if a
/// probe is not answered before the next one. So the interval is long: a phone may be in a tunnel.
/// Windows probes without a pause if none is set.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    windows
))]
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A byte stream that a [`GuardedIo`](crate::GuardedIo) can guard. Implemented for the sockets of
/// tokio.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Sets the options of the socket. Called once, when the connection is admitted. An option that
    /// cannot be set stays as it was.
    fn prepare(&self) {}

    /// Lets the system close the connection once its client has acknowledged no sent byte for this
    /// time. Called once, when a guard that enforces its limits admits the connection. Does nothing
    /// by default, and on systems without such an option.
    fn give_up_after(&self, silence: Duration) {
        let _ = silence;
    }

    /// Limits the bytes that the kernel keeps for the server to read (`SO_RCVBUF`). Called when the
    /// connection is admitted, unless it has this limit from its listener. Does nothing by default.
    fn limit_receive_buffer(&self, bytes: u32) {
        let _ = bytes;
    }

    /// Turns the next close into a reset: the client sees an RST, and the kernel keeps nothing.
    /// Does nothing by default.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::Transport;
    ///
    /// let (mut client, socket) = pair().await?;
    /// socket.reset_on_close();
    /// drop(socket);
    /// assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    /// # Ok(())
    /// # }
    /// ```
    fn reset_on_close(&self) {}

    /// Returns how many bytes have arrived that the server has not read. Returns 0 if that is
    /// unknown, which is the default.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(unix))] fn main() {}
    /// # #[cfg(unix)]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::Transport;
    /// use tokio::net::UnixStream;
    ///
    /// let (server, mut client) = UnixStream::pair()?;
    /// client.write_all(b"hello").await?;
    /// assert_eq!(server.unread_bytes(), 5);
    /// # Ok(())
    /// # }
    /// ```
    fn unread_bytes(&self) -> u64 {
        0
    }

    /// Returns whether the client is known to have closed its direction or to be gone. Bytes that
    /// it sent may be unread. `false` if that is unknown, which is the default.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[cfg(not(target_os = "linux"))] fn main() {}
    /// # #[cfg(target_os = "linux")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::Transport;
    /// use tokio::net::UnixStream;
    ///
    /// let (server, mut client) = UnixStream::pair()?;
    /// client.write_u8(b'x').await?; // Stays unread.
    /// assert!(!server.has_hung_up());
    /// client.shutdown().await?;
    /// assert!(server.has_hung_up() && !server.is_gone()); // It may still read a response.
    /// drop(client);
    /// assert!(server.is_gone());
    /// # Ok(())
    /// # }
    /// ```
    fn has_hung_up(&self) -> bool {
        false
    }

    /// Returns whether the client is known to be gone, and not only to have closed its own
    /// direction: the connection was reset, or both directions are closed. `false` if that is
    /// unknown, which is the default.
    fn is_gone(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn prepare(&self) {
        let socket = SockRef::from(self);
        // A socket refuses the options if its client is gone. The next read reports that.
        let _ = socket.set_tcp_nodelay(true);
        let _ = limit_unsent(&socket);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE_TIME);
        #[cfg(any(
            target_os = "linux",
            target_os = "android",
            target_vendor = "apple",
            windows
        ))]
        let keepalive = keepalive.with_interval(KEEPALIVE_INTERVAL);
        let _ = socket.set_tcp_keepalive(&keepalive);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn give_up_after(&self, silence: Duration) {
        let _ = SockRef::from(self).set_tcp_user_timeout(Some(silence));
    }

    fn limit_receive_buffer(&self, bytes: u32) {
        let _ = SockRef::from(self).set_recv_buffer_size(bytes as usize);
    }

    fn reset_on_close(&self) {
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    #[cfg(unix)]
    fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(self).unwrap_or(0)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn has_hung_up(&self) -> bool {
        has_event(self, PollFlags::RDHUP)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn is_gone(&self) -> bool {
        has_event(self, PollFlags::empty())
    }
}

#[cfg(unix)]
impl Transport for tokio::net::UnixStream {
    fn prepare(&self) {
        // A Unix socket has no low-water mark for unsent bytes.
        let _ = SockRef::from(self).set_send_buffer_size(2 * MAX_UNSENT_BYTES as usize);
    }

    fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(self).unwrap_or(0)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn has_hung_up(&self) -> bool {
        has_event(self, PollFlags::RDHUP)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn is_gone(&self) -> bool {
        has_event(self, PollFlags::empty())
    }
}

/// Limits the unsent bytes in the kernel. Otherwise Linux takes megabytes for a client that reads
/// nothing, and the write timeout does not begin.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn limit_unsent(socket: &SockRef<'_>) -> std::io::Result<()> {
    socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn limit_unsent(socket: &SockRef<'_>) -> std::io::Result<()> {
    socket.set_send_buffer_size(2 * MAX_UNSENT_BYTES as usize)
}

/// Returns whether `socket` was reset, is closed in both directions, or has one of the `events`.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn has_event(socket: &impl std::os::fd::AsFd, events: PollFlags) -> bool {
    const NO_WAIT: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // The system reports HUP and ERR even if they are not requested.
    let reported = events | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(socket, events)];
    let result = poll(&mut fds, Some(&NO_WAIT));
    result.is_ok_and(|ready| ready > 0) && fds[0].revents().intersects(reported)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use crate::{ConnGuard, Mode};
    use palisade_testkit::{clients::wait_until, servers};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_client_that_hangs_up_after_an_unread_byte_is_detected() {
        let listener = servers::listener().await;
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.prepare();
        client.write_all(b"x").await.unwrap();
        assert!(!server.has_hung_up());
        assert_eq!(
            SockRef::from(&server).tcp_notsent_lowat().unwrap(),
            MAX_UNSENT_BYTES
        );
        assert!(SockRef::from(&server).tcp_nodelay().unwrap());
        assert!(SockRef::from(&server).keepalive().unwrap());
        assert_eq!(
            SockRef::from(&server).tcp_keepalive_time().unwrap(),
            KEEPALIVE_IDLE_TIME
        );
        drop(client);
        wait_until("hung up", || server.has_hung_up()).await;
    }

    #[tokio::test]
    async fn a_client_that_closed_its_own_direction_is_not_gone() {
        let listener = servers::listener().await;
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        wait_until("closed", || server.has_hung_up()).await;
        assert!(!server.is_gone());
        client.reset_on_close();
        drop(client);
        wait_until("reset", || server.is_gone()).await;

        let (server, mut client) = tokio::net::UnixStream::pair().unwrap();
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        assert!(server.has_hung_up() && !server.is_gone());
        drop(client);
        assert!(server.is_gone());
    }

    #[tokio::test]
    async fn the_send_buffer_of_a_unix_socket_is_small() {
        let (server, _client) = tokio::net::UnixStream::pair().unwrap();
        server.prepare();
        // Linux doubles the value, for its own bookkeeping (socket(7)).
        assert_eq!(
            SockRef::from(&server).send_buffer_size().unwrap(),
            4 * MAX_UNSENT_BYTES as usize
        );
    }

    #[tokio::test]
    async fn the_kernel_timeout_is_longer_than_the_write_timeout_and_set_only_if_enforced() {
        let stall = |seconds| ConnGuard::builder().write_timeout(Duration::from_secs(seconds));
        let cases = [
            (stall(10), Some(30)),
            (stall(30), Some(35)),
            (stall(600), Some(605)),
            (stall(30).mode(Mode::Shadow), None),
            (stall(30).mode(Mode::Off), None),
        ];
        for (builder, seconds) in cases {
            let mut listener = builder.build().unwrap().bind("127.0.0.1:0").await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let set = SockRef::from(server.get_ref()).tcp_user_timeout().unwrap();
            assert_eq!(set, seconds.map(Duration::from_secs));
        }
    }
}
