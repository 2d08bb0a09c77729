//! Lingering after the response: the guard discards what still arrives.

use super::*;
use tokio::{task::yield_now, time::sleep};

#[tokio::test(start_paused = true)]
async fn a_shutdown_sends_the_fin_and_discards_what_still_arrives() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    let conn = server.conn().clone();
    let shutdown = tokio::spawn(async move { server.shutdown().await });
    // The client sees the end of the stream at once, and may continue to send.
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    for _ in 0..100 {
        client.write_all(&[b'x'; 1024]).await.unwrap();
    }
    yield_now().await;
    assert!(conn.state().stats().lingering && !shutdown.is_finished());
    drop(client);
    shutdown.await.unwrap().unwrap();
    assert_eq!(conn.state().stats().read, 100 * 1024);
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_connection_lingers_for_1_s_and_for_30_s_while_an_upload_arrives() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    for (bytes, due) in [
        (0, SECOND),
        (1, SECOND),
        (50, 30 * SECOND),
        (4096, 30 * SECOND),
    ] {
        let Pair {
            mut server,
            mut client,
            ..
        } = connect(&guard);
        let sender = tokio::spawn(async move {
            while bytes > 0 && client.write_all(&vec![b'x'; bytes]).await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
            std::future::pending::<()>().await;
        });
        let started = Instant::now();
        server.shutdown().await.unwrap();
        let after = started.elapsed();
        assert!(
            (due..=due + 2 * TICK).contains(&after),
            "{bytes}: {after:?}"
        );
        sender.abort();
    }
    // An upload that ends or pauses after 5 s.
    let Pair {
        mut server,
        mut client,
        ..
    } = connect(&guard);
    let sender = tokio::spawn(async move {
        for _ in 0..500 {
            client.write_all(&[b'x'; 4096]).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        client
    });
    let started = Instant::now();
    server.shutdown().await.unwrap();
    let after = started.elapsed();
    assert!(
        (6 * SECOND - TICK..=6 * SECOND + 2 * TICK).contains(&after),
        "{after:?}"
    );
    drop((sender.await.unwrap(), server));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn lingering_ends_after_64_mib() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let (inner, mut client) = duplex(1 << 20);
    let mut server = guard
        .admit(TestTransport::new(inner), peer(1), None)
        .unwrap();
    let conn = server.conn().clone();
    let shutdown = tokio::spawn(async move { server.shutdown().await });
    let chunk = vec![b'x'; 1 << 20];
    while client.write_all(&chunk).await.is_ok() {}
    shutdown.await.unwrap().unwrap();
    let read = conn.state().stats().read;
    assert!((64 << 20..=(64 << 20) + 8192).contains(&read), "{read}");
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_or_untracked_connection_does_not_linger() {
    let (tracked, _) = tracking_guard(ConnGuard::builder());
    let untracked = ConnGuard::default();
    for guard in [&tracked, &untracked] {
        let mut pair = connect(guard);
        if std::ptr::eq(guard, &tracked) {
            pair.server.conn().state().set_upgraded();
        }
        let started = Instant::now();
        pair.client.write_all(b"still read").await.unwrap();
        pair.server.shutdown().await.unwrap();
        pair.server.read_exact(&mut [0; 10]).await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
