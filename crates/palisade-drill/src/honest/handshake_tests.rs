//! Handshakes that take their time, on real sockets.

use super::{log::Log, pace::FLIGHT_DELAYS, steady::Record, *};
use crate::{
    plan::Plan,
    sample::{Outcome, Sample, Span},
    tls::{
        Tls,
        tests::{config, serve},
    },
};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Makes one slow handshake. Returns its samples.
async fn exchange(addr: SocketAddr) -> Vec<Sample> {
    let target = Target::open(&[addr]).await.unwrap();
    let target = target.with_tls(Some(Tls::new("localhost").unwrap()));
    let mut plan = Plan::new("localhost");
    plan.tls = true;
    let steady = long::steady(Kind::SlowHandshake, &plan, &OpenPaths::default()).unwrap();
    let log = Arc::new(Log::new(Instant::now(), &[Kind::SlowHandshake]));
    let mut record = Record::new(log.clone(), Kind::SlowHandshake);
    handshake::exchange(&target, Source::Honest(0), &steady, &mut record).await;
    let span = Span {
        from: Duration::ZERO,
        to: log.now(),
    };
    log.samples(Kind::SlowHandshake, span)
}

#[test]
fn a_handshake_that_is_given_up_accounts_for_the_wait_before_as_well() {
    let kind = Kind::SlowHandshake;
    let log = Arc::new(Log::new(Instant::now(), &[kind]));
    let mut record = Record::new(log.clone(), kind);
    record.begin(Duration::ZERO, Duration::ZERO);
    record.suspend();
    record.begin(Duration::ZERO, Duration::ZERO);
    record.give_up();
    let outcomes = || {
        let to = log.now() + Duration::from_secs(1);
        let span = Span {
            from: Duration::ZERO,
            to,
        };
        let samples = log.samples(kind, span).into_iter();
        samples.map(|sample| sample.outcome).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(), [Outcome::Unfinished; 2]);
    // Once.
    record.settle(Outcome::Served);
    assert_eq!(outcomes().len(), 2);
}

#[tokio::test]
async fn each_flight_is_a_sample_without_the_delay_of_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, &["http/1.1"], |mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"GET / HTTP/1.1\r\nhost: localhost\r\n"));
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        stream.flush().await.unwrap();
    }));
    let began = Instant::now();
    let samples = exchange(addr).await;
    let elapsed = began.elapsed();
    let [first, second] = &*samples else {
        panic!("{samples:?}");
    };
    assert_eq!(
        (first.outcome, second.outcome),
        (Outcome::Served, Outcome::Served)
    );
    assert!(second.start >= first.end + FLIGHT_DELAYS[1], "{samples:?}");
    let waits = samples.iter().map(|sample| sample.end - sample.start);
    let delays: Duration = FLIGHT_DELAYS.iter().sum();
    assert!(waits.sum::<Duration>() + delays <= elapsed, "{samples:?}");
}

#[tokio::test]
async fn a_handshake_that_breaks_off_is_lost_as_a_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    // The server answers the first flight and does not wait for the second.
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config(&["localhost"], &[]));
        let (mut socket, _) = listener.accept().await.unwrap();
        let accepted = acceptor.accept(&mut socket);
        let wait = FLIGHT_DELAYS[0] + FLIGHT_DELAYS[1] / 2;
        assert!(timeout(wait, accepted).await.is_err());
    });
    let samples = exchange(addr).await;
    assert_eq!(samples.len(), 2, "{samples:?}");
    for sample in samples {
        assert_eq!(sample.outcome, Outcome::Cut, "{sample:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_never_reached_is_one_sample() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { drop(listener.accept().await) });
    let samples = exchange(addr).await;
    assert_eq!(samples.len(), 1, "{samples:?}");
    assert_eq!(samples[0].outcome, Outcome::Cut);
}
