//! Listening, with what tokio's own `bind` does not set.

#[cfg(target_os = "linux")]
use crate::sys::accept_queue;
use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpSocket};

/// How [`ConnGuard::bind_with`](crate::ConnGuard::bind_with) listens.
#[derive(Clone, Copy, Debug)]
#[must_use = "it is for `ConnGuard::bind_with`"]
pub struct BindOptions {
    backlog: u32,
    reuse_port: bool,
}

// === BindOptions ===

impl BindOptions {
    /// What [`ConnGuard::bind`](crate::ConnGuard::bind) takes.
    pub const fn new() -> Self {
        Self {
            backlog: 1024,
            reuse_port: false,
        }
    }

    /// So many connections may wait to be accepted, at least 1. The system may allow fewer: Linux
    /// `net.core.somaxconn`. tokio's own listeners have 1,024, those of `std` 128 or what the
    /// system allows. Defaults to 1,024.
    pub const fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Others may listen at the same address if they say so, too, and the system deals the
    /// connections out (`SO_REUSEPORT`): for several accept loops of one guard, or for the next
    /// version of the process. Unix only. Defaults to `false`.
    pub const fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// How many connections may wait in the end, where that is known.
    pub(crate) fn effective_backlog(self) -> Option<u32> {
        #[cfg(target_os = "linux")]
        return accept_queue::longest_queue().map(|most| most.min(self.backlog));
        #[cfg(not(target_os = "linux"))]
        None
    }

    pub(crate) fn bind(self, address: SocketAddr) -> io::Result<TcpListener> {
        if self.backlog == 0 {
            let fault = "backlog is 0, allowed is at least 1";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // As tokio and std do: on Windows it would mean something else.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        if self.reuse_port {
            reuse_port(&socket)?;
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
        "there is no SO_REUSEPORT here",
    ))
}

#[cfg(all(test, unix, not(palisade_loom)))]
mod tests {
    use super::*;
    use crate::ConnGuard;
    use std::time::Duration;
    use tokio::{
        net::TcpStream,
        time::{Instant, timeout},
    };

    const LOOPBACK: &str = "127.0.0.1:0";

    #[tokio::test]
    async fn listeners_at_one_address_share_the_caps_of_their_guard() {
        let guard = ConnGuard::builder().max_per_client(2).build().unwrap();
        let shared = BindOptions::new().reuse_port(true);
        let mut first = guard.bind_with(LOOPBACK, shared).await.unwrap();
        let address = first.local_addr().unwrap();
        let mut second = guard.bind_with(address, shared).await.unwrap();
        guard.bind(address).await.unwrap_err(); // Whoever does not say so may not.
        let mut open = Vec::new();
        for _ in 0..20 {
            let client = TcpStream::connect(address).await.unwrap();
            let (io, _) = tokio::select! {
                accepted = first.accept() => accepted.unwrap(),
                accepted = second.accept() => accepted.unwrap(),
            };
            open.push((client, io));
            let is_left = |(_, io): &(TcpStream, crate::GuardedIo<TcpStream>)| {
                io.conn().state().decision().is_none()
            };
            open.retain(is_left);
            assert!(open.len() <= 2);
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn whoever_waits_to_be_accepted_shows_in_the_levels() {
        use palisade_core::{Gauge, Guard};
        use palisade_testkit::{Journal, clients::until};
        let journal = Journal::default();
        let guard = ConnGuard::builder()
            .metrics(journal.clone())
            .build()
            .unwrap();
        let level = |level| journal.level(Guard::Connection, level);
        assert_eq!(level(Gauge::AcceptQueue), None); // Nobody listens.
        let mut first = guard
            .bind_with(LOOPBACK, BindOptions::new().backlog(3))
            .await
            .unwrap();
        let second = guard
            .bind_with("[::1]:0", BindOptions::new().backlog(50))
            .await;
        let (second, most) = second.map_or((None, 3), |second| (Some(second), 53));
        assert_eq!(
            (level(Gauge::AcceptQueue), level(Gauge::AcceptQueueLimit)),
            (Some(0), Some(most))
        );
        let lost = level(Gauge::ListenOverflows).unwrap();
        assert!(level(Gauge::ListenDrops).unwrap() >= lost);

        let address = first.local_addr().unwrap();
        let connect = || TcpStream::connect(address);
        let mut clients = vec![connect().await.unwrap(), connect().await.unwrap()];
        if let Some(second) = &second {
            clients.push(
                TcpStream::connect(second.local_addr().unwrap())
                    .await
                    .unwrap(),
            );
        }
        until("they wait", || {
            level(Gauge::AcceptQueue) == Some(clients.len() as u64)
        })
        .await;
        let _accepted = first.accept().await.unwrap();
        assert_eq!(level(Gauge::AcceptQueue), Some(clients.len() as u64 - 1));
        drop((first, second));
        assert_eq!(level(Gauge::AcceptQueueLimit), None);
    }

    #[tokio::test]
    async fn the_backlog_is_what_it_was_told_to_be() {
        let guard = ConnGuard::default();
        let error = guard
            .bind_with(LOOPBACK, BindOptions::new().backlog(0))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let small = guard
            .bind_with(LOOPBACK, BindOptions::new().backlog(1))
            .await
            .unwrap();
        let large = guard.bind(LOOPBACK).await.unwrap();
        // Connects until the next one is not answered, which Linux takes one more for.
        let room = async |address, most| {
            let mut waiting = Vec::new();
            let started = Instant::now();
            while waiting.len() < most && started.elapsed() < Duration::from_secs(10) {
                let connect = timeout(Duration::from_millis(300), TcpStream::connect(address));
                let Ok(Ok(client)) = connect.await else { break };
                waiting.push(client);
            }
            waiting.len()
        };
        assert!((1..=3).contains(&room(small.local_addr().unwrap(), 20).await));
        assert_eq!(room(large.local_addr().unwrap(), 100).await, 100);
    }
}
