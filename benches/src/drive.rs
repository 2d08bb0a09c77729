//! Sends single requests by polling the service directly: no runtime and no socket, only the
//! guards.

use http::{Request, Response};
use http_body::Body;
use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};
use tower::Service;

/// Sends `request` to `service`, polls until there is a response, and drops that.
pub fn drive<S, B>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        service.poll_ready(&mut cx).is_ready(),
        "poll_ready never waits"
    );
    let mut response = pin!(service.call(black_box(request)));
    let result = loop {
        if let Poll::Ready(result) = response.as_mut().poll(&mut cx) {
            break result;
        }
    };
    let _ = black_box(result);
}

/// Sends `request` to `service` and reads the response with its body to the end.
pub fn drive_to_the_end<S, B, R>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        service.poll_ready(&mut cx).is_ready(),
        "poll_ready never waits"
    );
    let mut response = pin!(service.call(black_box(request)));
    let result = loop {
        if let Poll::Ready(result) = response.as_mut().poll(&mut cx) {
            break result;
        }
    };
    let Ok(response) = result else {
        panic!("the handler does not fail")
    };
    let mut body = pin!(response.into_body());
    // Like hyper, do not poll a body that is at its end.
    while !body.is_end_stream() {
        if let Poll::Ready(frame) = body.as_mut().poll_frame(&mut cx)
            && black_box(frame).is_none()
        {
            break;
        }
    }
}

/// Returns a single-threaded runtime, for guards that set timers.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built")
}
