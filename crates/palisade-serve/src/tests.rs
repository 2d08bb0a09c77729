//! Tests of protocol detection. They are not in `sniff.rs`, because the fuzz target includes that
//! file.

use crate::{
    Rewind,
    sniff::{Begins, PREFACE},
};
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_test::{assert_pending, assert_ready, io::Builder, task};

/// Returns what a connection with these pieces begins with, and all bytes that are read afterwards.
async fn detect(pieces: &[&[u8]]) -> (Begins, Vec<u8>) {
    let mut mock = Builder::new();
    pieces.iter().for_each(|piece| _ = mock.read(piece));
    let mut io = Rewind::new(mock.build());
    let begins = poll_fn(|cx| io.poll_begins(cx)).await.unwrap();
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    (begins, all)
}

#[tokio::test]
async fn all_bytes_are_read_again_after_detection_however_they_arrive() {
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let http2 = [PREFACE.as_slice(), settings].concat();
    let others: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.1\r\n\r\n",
        b"P",
        b"\x16",
    ];
    for input in others.into_iter().chain([http2.as_slice()]) {
        let expected = if input == http2.as_slice() {
            Begins::Http2
        } else {
            Begins::Http1
        };
        assert_eq!(detect(&[input]).await, (expected, input.to_vec()));
        for at in 1..input.len() {
            let pieces = [&input[..at], &input[at..]];
            assert_eq!(detect(&pieces).await, (expected, input.to_vec()), "{at}");
        }
        let bytes: Vec<_> = input.chunks(1).collect();
        assert_eq!(detect(&bytes).await, (expected, input.to_vec()));
    }
    assert_eq!(detect(&[]).await, (Begins::Nothing, vec![]));
}

#[tokio::test]
async fn the_first_byte_that_differs_from_the_preface_decides() {
    let (io, mut client) = tokio::io::duplex(64);
    let mut io = Rewind::new(io);
    client.write_all(b"PRI").await.unwrap();
    let mut detection = task::spawn(poll_fn(|cx| io.poll_begins(cx)));
    assert_pending!(detection.poll());
    client.write_all(b"*").await.unwrap();
    assert!(detection.is_woken());
    assert_eq!(assert_ready!(detection.poll()).unwrap(), Begins::Http1);
}
