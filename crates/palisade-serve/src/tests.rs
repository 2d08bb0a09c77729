//! What the sniffer makes of first bytes. Not in its own file, which the fuzz target takes in.

use crate::{
    Rewind,
    sniff::{Begins, PREFACE},
};
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_test::{assert_pending, assert_ready, io::Builder, task};

/// What it is told to be, and all that is read after.
async fn begins(pieces: &[&[u8]]) -> (Begins, Vec<u8>) {
    let mut mock = Builder::new();
    pieces.iter().for_each(|piece| _ = mock.read(piece));
    let mut io = Rewind::new(mock.build());
    let begins = poll_fn(|cx| io.poll_begins(cx)).await.unwrap();
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    (begins, all)
}

#[tokio::test]
async fn nothing_that_was_looked_at_is_lost_however_it_comes() {
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let http2 = [PREFACE.as_slice(), settings].concat();
    let gets: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.1\r\n\r\n",
        b"P",
        b"\x16",
    ];
    for whole in gets.into_iter().chain([http2.as_slice()]) {
        let expected = if whole == http2.as_slice() {
            Begins::Http2
        } else {
            Begins::Http1
        };
        assert_eq!(begins(&[whole]).await, (expected, whole.to_vec()));
        for at in 1..whole.len() {
            let pieces = [&whole[..at], &whole[at..]];
            assert_eq!(begins(&pieces).await, (expected, whole.to_vec()), "{at}");
        }
        let bytes: Vec<_> = whole.chunks(1).collect();
        assert_eq!(begins(&bytes).await, (expected, whole.to_vec()));
    }
    assert_eq!(begins(&[]).await, (Begins::Nothing, vec![]));
}

#[tokio::test]
async fn the_first_byte_that_differs_tells() {
    let (io, mut client) = tokio::io::duplex(64);
    let mut io = Rewind::new(io);
    client.write_all(b"PRI").await.unwrap();
    let mut look = task::spawn(poll_fn(|cx| io.poll_begins(cx)));
    assert_pending!(look.poll());
    client.write_all(b"*").await.unwrap();
    assert!(look.is_woken());
    assert_eq!(assert_ready!(look.poll()).unwrap(), Begins::Http1);
}
