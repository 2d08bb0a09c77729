//! Honest bodies under a stack while memory is short.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::{BodyExt, Channel};
use palisade::{Budget, Memory, Stack, slow_body::Pace};
use palisade_testkit::{bodies::Pieces, example};
use std::{convert::Infallible, pin::pin, time::Duration};
use tokio::time::{Instant, sleep};
use tower::{BoxError, Layer, ServiceExt, service_fn};

const KIB: usize = 1 << 10;
const LIMIT: u64 = 256 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// Memory of which all is in use.
fn full() -> Memory {
    let memory = Memory::reported(LIMIT).unwrap();
    memory.report(LIMIT);
    assert_eq!(memory.pressure().get(), 1.0);
    memory
}

#[tokio::test(start_paused = true)]
async fn at_full_pressure_the_rates_of_fortress_hold() {
    // As in `examples/fortress.rs`.
    let pace = Pace::builder()
        .rate(4 * 1024)
        .full_pressure_rate(12 * 1024)
        .window(5 * SECOND)
        .grace(2 * SECOND)
        .gap(5 * SECOND);
    let stack = Stack::edge().pace(pace).memory(full()).build().unwrap();
    // 480 KiB at 16 KiB/s, in one piece each second, and a third of a second.
    for (pieces, length, pause) in [(30, 16 * KIB, SECOND), (90, 16 * KIB / 3, SECOND / 3)] {
        let upload = example::upload(pieces, length, pause);
        assert_eq!(example::status(&stack, upload).await, StatusCode::OK);
    }
    let slow = example::upload(60, 11 * KIB, SECOND);
    assert_eq!(
        example::status(&stack, slow).await,
        StatusCode::REQUEST_TIMEOUT
    );

    // A download of 64 MiB of which the client takes a piece of 64 KiB each second.
    let handler = service_fn(async |_: Request<_>| {
        Ok::<_, Infallible>(Response::new(Pieces::new(1024, 64 * KIB)))
    });
    let request = Request::new(Pieces::new(0, 1));
    let response = stack.layer(handler).oneshot(request).await.unwrap();
    let mut body = pin!(response.into_body());
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        taken += frame.unwrap().into_data().unwrap().len();
        sleep(SECOND).await;
    }
    assert_eq!(taken, 64 << 20);
}

/// Reads the messages of a stream, and answers with their number of bytes.
async fn counting<B>(request: Request<B>) -> Result<Response<String>, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let mut body = pin!(request.into_body());
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(Into::into)?;
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(Response::new(bytes.to_string()))
}

#[tokio::test(start_paused = true)]
async fn a_grpc_stream_of_hours_is_served_and_holds_one_message() {
    const MESSAGES: usize = 1000;
    let budget = Budget::new(1 << 20).unwrap();
    let message = Bytes::from([&[0, 0, 0, 0x40, 0], &[b'x'; 16 * KIB][..]].concat());
    for memory in [None, Some(full())] {
        let stack = Stack::edge().grpc().memory(memory);
        let stack = stack.byte_budget(budget.clone()).build().unwrap();
        let (mut client, body) = Channel::<Bytes, Infallible>::new(1);
        let request = Request::post("/").version(Version::HTTP_2);
        let request = request.header(header::CONTENT_TYPE, "application/grpc");
        let service = stack.layer(service_fn(counting));
        let response = tokio::spawn(service.oneshot(request.body(body).unwrap()));
        let start = Instant::now();
        let mut most = 0;
        for _ in 0..MESSAGES {
            sleep(20 * SECOND).await;
            client.send_data(message.clone()).await.unwrap();
            most = most.max(budget.held());
        }
        drop(client);
        let response = response.await.unwrap().unwrap();
        assert!(start.elapsed() > Duration::from_secs(5 * 3600));
        assert!((1..=128 << 10).contains(&most), "{most}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes, (MESSAGES * message.len()).to_string());
        assert_eq!(budget.held(), 0);
    }
}
