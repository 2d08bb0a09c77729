//! The receive buffers of real sockets.

use super::*;
use crate::{Listener, Memory, Mode};
use socket2::SockRef;
use std::os::fd::AsFd;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

const KIB: u32 = 1 << 10;
const LOOPBACK: &str = "127.0.0.1:0";

/// A listener that does not know of receive buffers.
struct Plain(TcpListener);

impl Listener for Plain {
    type Io = TcpStream;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, Option<SocketAddr>)>> {
        Listener::poll_accept(&mut self.0, cx)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn local_of(io: &TcpStream) -> Option<SocketAddr> {
        <TcpListener as Listener>::local_of(io)
    }
}

/// Returns what the kernel says of a socket that was limited to so many bytes: twice as much, of
/// what the system allows.
fn limited_to(bytes: u32) -> usize {
    let max = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
    2 * max.trim().parse::<usize>().unwrap().min(bytes as usize)
}

fn buffer_of(socket: &impl AsFd) -> usize {
    SockRef::from(socket).recv_buffer_size().unwrap()
}

/// Connects to a listener, and returns the client and the accepted socket.
async fn accept<L: Listener>(
    listener: &mut crate::GuardedListener<L>,
) -> (TcpStream, GuardedIo<L::Io>) {
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn connections_have_the_receive_buffer_of_the_guard_however_they_are_accepted() {
    let guard = ConnGuard::default();
    let plain = TcpListener::bind(LOOPBACK).await.unwrap();
    let own = TcpListener::bind(LOOPBACK).await.unwrap();
    let (_client, io) = accept(&mut guard.bind(LOOPBACK).await.unwrap()).await;
    let (_client, wrapped) = accept(&mut guard.listen(own)).await;
    let (_client, set_alone) = accept(&mut guard.listen(Plain(plain))).await;
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let admitted = guard.admit(socket, Some(peer), None).unwrap();
    for io in [io, wrapped, set_alone, admitted] {
        assert_eq!(buffer_of(io.get_ref()), limited_to(256 * KIB));
    }
}

#[tokio::test]
async fn no_system_call_is_made_for_a_connection_that_has_the_buffer_of_its_listener() {
    let guard = ConnGuard::default();
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    listener.set_nonblocking(true).unwrap();
    let same = listener.try_clone().unwrap();
    let mut guarded = guard.listen(TcpListener::from_std(listener).unwrap());
    assert_eq!(buffer_of(&same), limited_to(256 * KIB));
    // What was set on the connection would be another number.
    SockRef::from(&same).set_recv_buffer_size(10_000).unwrap();
    let (_client, io) = accept(&mut guarded).await;
    assert_eq!(buffer_of(io.get_ref()), 20_000);
}

#[tokio::test]
async fn without_the_option_or_without_enforcement_the_kernel_chooses_the_buffer() {
    let mut by_kernel = ConnGuard::builder().receive_buffer(None).build().unwrap();
    let (_client, io) = accept(&mut by_kernel.bind(LOOPBACK).await.unwrap()).await;
    let chosen = buffer_of(io.get_ref());
    assert_ne!(chosen, limited_to(100 * KIB));
    for mode in [Mode::Shadow, Mode::Off] {
        let builder = ConnGuard::builder().mode(mode);
        by_kernel = builder.receive_buffer(100 * KIB).build().unwrap();
        let (_client, io) = accept(&mut by_kernel.bind(LOOPBACK).await.unwrap()).await;
        assert_eq!(buffer_of(io.get_ref()), chosen);
    }
}

#[tokio::test]
async fn while_memory_is_short_new_connections_have_a_smaller_buffer() {
    let memory = Memory::reported(1000).unwrap();
    let guard = |bytes: Option<u32>| {
        let builder = ConnGuard::builder().memory(memory.clone());
        builder.receive_buffer(bytes).build().unwrap()
    };
    let mut usual = guard(Some(256 * KIB)).bind(LOOPBACK).await.unwrap();
    let mut small = guard(Some(16 * KIB)).bind(LOOPBACK).await.unwrap();
    let mut by_kernel = guard(None).bind(LOOPBACK).await.unwrap();
    let chosen = buffer_of(accept(&mut by_kernel).await.1.get_ref());
    for (used, is_short) in [(799, false), (800, true), (870, true), (799, false)] {
        memory.report(used);
        let (_client, io) = accept(&mut usual).await;
        let bytes = if is_short { 64 * KIB } else { 256 * KIB };
        assert_eq!(buffer_of(io.get_ref()), limited_to(bytes), "{used}");
        let (_client, io) = accept(&mut small).await;
        assert_eq!(buffer_of(io.get_ref()), limited_to(16 * KIB));
        let (_client, io) = accept(&mut by_kernel).await;
        assert_eq!(buffer_of(io.get_ref()), chosen);
    }
}

/// The attack: a client is read fast, so that the kernel enlarges its buffer, and then not at all.
#[tokio::test]
async fn the_kernel_keeps_no_more_of_a_client_than_the_buffer_allows() {
    let guard = ConnGuard::default();
    let mut listener = guard.bind(LOOPBACK).await.unwrap();
    let (mut client, mut io) = accept(&mut listener).await;
    let (sent, mut read) = (vec![b'x'; 64 << 10], vec![0; 64 << 10]);
    for _ in 0..256 {
        let (written, result) = tokio::join!(client.write_all(&sent), io.read_exact(&mut read));
        written.unwrap();
        result.unwrap();
    }
    // The kernels of both sides do not take that much.
    let sent = vec![b'x'; 64 << 20];
    let is_blocked = timeout(Duration::from_millis(500), client.write_all(&sent)).await;
    assert!(is_blocked.is_err());
    let unread = rustix::io::ioctl_fionread(io.get_ref()).unwrap();
    assert!(
        (1..=limited_to(256 * KIB) as u64).contains(&unread),
        "{unread}"
    );
}
