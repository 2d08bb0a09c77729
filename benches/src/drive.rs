//! One request, polled by hand: no runtime, no socket, nothing but the guards.

use http::Request;
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
    assert!(service.poll_ready(&mut cx).is_ready(), "nothing waits in poll_ready");
    let mut response = pin!(service.call(black_box(request)));
    let answer = loop {
        if let Poll::Ready(answer) = response.as_mut().poll(&mut cx) {
            break answer;
        }
    };
    let _ = black_box(answer);
}

/// A runtime of one thread, for those who set timers.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("one thread can be had")
}
