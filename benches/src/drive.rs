//! One request, polled by hand: no runtime, no socket, nothing but the guards.

use http::{Request, Response};
use http_body::Body;
use std::{
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};
use tower::Service;

/// Sends `request` into `service` and polls until there is an answer, which is dropped.
pub fn drive<S, B>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        service.poll_ready(&mut cx).is_ready(),
        "nothing waits in poll_ready"
    );
    let mut response = pin!(service.call(black_box(request)));
    let answer = loop {
        if let Poll::Ready(answer) = response.as_mut().poll(&mut cx) {
            break answer;
        }
    };
    let _ = black_box(answer);
}

/// The same, and reads the body of the answer to its end.
pub fn drive_to_the_end<S, B, R>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        service.poll_ready(&mut cx).is_ready(),
        "nothing waits in poll_ready"
    );
    let mut response = pin!(service.call(black_box(request)));
    let answer = loop {
        if let Poll::Ready(answer) = response.as_mut().poll(&mut cx) {
            break answer;
        }
    };
    let Ok(answer) = answer else {
        panic!("the handler does not fail")
    };
    let mut body = pin!(answer.into_body());
    // As hyper does: nothing is polled that says that it is at its end.
    while !body.is_end_stream() {
        if let Poll::Ready(frame) = body.as_mut().poll_frame(&mut cx)
            && black_box(frame).is_none()
        {
            break;
        }
    }
}

/// A runtime of one thread, for those who set timers.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("one thread can be had")
}
