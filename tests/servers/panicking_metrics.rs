//! A metrics sink that panics at every event: the guard, the accept loop and the server keep
//! working.

use palisade::{
    Stack,
    conn::ConnGuard,
    types::{Event, GaugeSource, Metrics},
};
use palisade_testkit::clients::{RawClient, wait_until};
use palisade_testkit::guarded::{
    SECOND, ServerKind, all_gone, app, ask, assert_served, read_until_closed,
};
use std::{net::Ipv4Addr, sync::Weak};

/// A metrics sink that panics.
struct PanickingMetrics;

impl Metrics for PanickingMetrics {
    fn record(&self, event: &Event<'_>) {
        panic!("on purpose: {event:?}");
    }

    fn register(&self, _: Weak<dyn GaugeSource>) {
        panic!("on purpose");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_metrics_sink_stops_no_server_and_no_guard() {
    let stack = Stack::edge()
        .metrics(PanickingMetrics)
        .max_body(1)
        .build()
        .unwrap();
    for name in ServerKind::ALL {
        let guard = ConnGuard::builder()
            .metrics(PanickingMetrics)
            .accept_rate((1, 2))
            .idle_timeout(SECOND)
            .build();
        let guard = guard.unwrap();
        let app = app().route(
            "/refused",
            axum::routing::post("never").layer(stack.clone()),
        );
        let server = name.serve(&guard, app).await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = RawClient::connect(server.addr).await.unwrap();
            assert_served(&mut client).await;
            let head = "POST /refused HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n";
            client.send([head, "hello"].concat()).await.unwrap();
            assert_eq!(client.head().await.unwrap().status, 413);
            clients.push(client);
        }
        // The third connection exceeds the accept rate. Its refusal is an event too.
        let third = RawClient::connect(server.addr).await;
        wait_until("the third connection is refused", || {
            guard.snapshot().refused == 1
        })
        .await;
        for mut client in clients {
            // Closed as idle, which is an event too.
            read_until_closed(&mut client).await;
        }
        drop(third);
        let from = Ipv4Addr::new(127, 0, 0, 2);
        assert_eq!(ask(from, server.addr, "/").await.unwrap().status(), 200);
        all_gone(&guard).await;
    }
}
