//! What a guarded connection runs over.

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// So many bytes may wait in the kernel unsent, so that what it takes is what the client takes.
const UNSENT: u32 = 64 * 1024;
/// A silent peer is asked for the first time after this.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// And then every so often. Where there is a `TCP_USER_TIMEOUT` the first probe that is not
/// answered by the next is the last, so the next is not soon: a phone may be in a tunnel. Windows
/// asks without a pause where none is given.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    windows
))]
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(30);

/// A byte stream that a [`GuardedIo`](crate::GuardedIo) can watch over: sockets, and whatever
/// tests put in their place.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Called once when the connection is let in. Sets options; what fails stays as it was.
    fn prepare(&self) {}

    /// Called once when the connection is let in by a guard that enforces: the system is to give it
    /// up when its client has acknowledged nothing of what was sent for so long. Where there is no
    /// such thing, nothing.
    fn give_up_after(&self, silence: Duration) {
        let _ = silence;
    }

    /// Makes the coming close a reset: the client sees an RST, the kernel keeps nothing. Where
    /// there is no such thing, nothing.
    fn reset_on_close(&self) {}

    /// Whether the client is known to have closed his end or to be gone, though bytes of his may
    /// be unread. `false` where that cannot be told.
    fn has_hung_up(&self) -> bool {
        false
    }

    /// Whether the client is known to be gone, and not only to have closed its own direction: the
    /// connection was reset, or both directions are closed. `false` where that cannot be told.
    fn is_gone(&self) -> bool {
        false
    }
}

impl Transport for TcpStream {
    fn prepare(&self) {
        let socket = SockRef::from(self);
        // A socket that is gone already refuses them, and is found out by whoever reads it.
        let _ = socket.set_tcp_nodelay(true);
        let _ = limit_unsent(&socket);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
        #[cfg(any(
            target_os = "linux",
            target_os = "android",
            target_vendor = "apple",
            windows
        ))]
        let keepalive = keepalive.with_interval(KEEPALIVE_AGAIN);
        let _ = socket.set_tcp_keepalive(&keepalive);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn give_up_after(&self, silence: Duration) {
        let _ = SockRef::from(self).set_tcp_user_timeout(Some(silence));
    }

    fn reset_on_close(&self) {
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn has_hung_up(&self) -> bool {
        hung_up(self, PollFlags::RDHUP)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn is_gone(&self) -> bool {
        hung_up(self, PollFlags::empty())
    }
}

#[cfg(unix)]
impl Transport for tokio::net::UnixStream {
    fn prepare(&self) {
        // There is no low-water mark here.
        let _ = SockRef::from(self).set_send_buffer_size(2 * UNSENT as usize);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn has_hung_up(&self) -> bool {
        hung_up(self, PollFlags::RDHUP)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn is_gone(&self) -> bool {
        hung_up(self, PollFlags::empty())
    }
}

/// Without this Linux takes megabytes for a client that reads nothing, and no clock of ours runs.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn limit_unsent(socket: &SockRef<'_>) -> std::io::Result<()> {
    socket.set_tcp_notsent_lowat(UNSENT)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn limit_unsent(socket: &SockRef<'_>) -> std::io::Result<()> {
    socket.set_send_buffer_size(2 * UNSENT as usize)
}

/// Whether `socket` was reset, is closed in both directions, or any of `asked` is so.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn hung_up(socket: &impl std::os::fd::AsFd, asked: PollFlags) -> bool {
    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // The system tells of the last two unasked.
    let gone = asked | PollFlags::HUP | PollFlags::ERR;
    let mut asked = [PollFd::new(socket, asked)];
    let answered = poll(&mut asked, Some(&AT_ONCE));
    answered.is_ok_and(|ready| ready > 0) && asked[0].revents().intersects(gone)
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;
    use crate::{ConnGuard, Mode};
    use palisade_testkit::{clients::until, servers};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_client_that_hangs_up_behind_an_unread_byte_is_found_out() {
        let listener = servers::listener().await;
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.prepare();
        client.write_all(b"x").await.unwrap();
        assert!(!server.has_hung_up());
        assert_eq!(SockRef::from(&server).tcp_notsent_lowat().unwrap(), UNSENT);
        assert!(SockRef::from(&server).tcp_nodelay().unwrap());
        assert!(SockRef::from(&server).keepalive().unwrap());
        assert_eq!(
            SockRef::from(&server).tcp_keepalive_time().unwrap(),
            KEEPALIVE
        );
        drop(client);
        until("hung up", || server.has_hung_up()).await;
    }

    #[tokio::test]
    async fn a_client_that_closed_its_own_direction_is_still_there() {
        let listener = servers::listener().await;
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        until("closed", || server.has_hung_up()).await;
        assert!(!server.is_gone());
        client.reset_on_close();
        drop(client);
        until("reset", || server.is_gone()).await;

        let (server, mut client) = tokio::net::UnixStream::pair().unwrap();
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        assert!(server.has_hung_up() && !server.is_gone());
        drop(client);
        assert!(server.is_gone());
    }

    #[tokio::test]
    async fn the_kernel_takes_little_for_whoever_reads_nothing_of_a_unix_socket() {
        let (server, _client) = tokio::net::UnixStream::pair().unwrap();
        server.prepare();
        // Linux counts what it keeps beside the bytes, and so doubles it (socket(7)).
        assert_eq!(
            SockRef::from(&server).send_buffer_size().unwrap(),
            4 * UNSENT as usize
        );
    }

    #[tokio::test]
    async fn the_kernel_gives_up_after_the_guard_would_have_and_only_if_it_enforces() {
        let stall = |seconds| ConnGuard::builder().write_stall(Duration::from_secs(seconds));
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
