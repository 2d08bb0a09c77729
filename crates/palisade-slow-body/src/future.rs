//! The response future.

use crate::{ResponseBody, layer::Shared, response::Writing, watch::Watch};
use bytes::Bytes;
use http::Response;
use http_body::Body;
use palisade_core::{AnswerForm, Answering, BoxError, ConnInfo, GuardBody};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

pin_project! {
    /// Response future of [`SlowBody`](crate::SlowBody).
    ///
    /// When the request body is too slow, in whatever task that is read, it drops the handler and
    /// answers in its place. To drop it is to drop the handler, and leaves nothing behind.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Bodiless {
            #[pin]
            inner: F,
            shared: Arc<Shared>,
            form: AnswerForm,
            conn: Option<Arc<ConnInfo>>,
        },
        Watched { #[pin] inner: F, answering: Answering<Watch> },
        Answered,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn bodiless(
        inner: F,
        shared: Arc<Shared>,
        form: AnswerForm,
        conn: Option<Arc<ConnInfo>>,
    ) -> Self {
        Self { state: State::Bodiless { inner, shared, form, conn } }
    }

    pub(crate) fn watched(inner: F, watch: Arc<Watch>) -> Self {
        Self { state: State::Watched { inner, answering: Answering::new(watch) } }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<GuardBody<ResponseBody<B>>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let (rejection, shared) = match state.as_mut().project() {
            StateProj::Bodiless { inner, shared, form, conn } => {
                let response = ready!(inner.poll(cx))?;
                let judged = Writing::is_of_use(&response, shared, shared.response_pace());
                let writing =
                    judged.then(|| Writing::new(shared.clone(), *form, conn.clone(), None));
                return Poll::Ready(Ok(passing(response, writing)));
            }
            StateProj::Watched { inner, answering } => {
                let polled = inner.poll(cx);
                let watch = answering.watch();
                match watch.answerer.handler_polled(polled.is_ready(), cx.waker()) {
                    Some(rejection) => (rejection, watch.shared.clone()),
                    None => {
                        let response = ready!(polled)?;
                        let (shared, conn) = (&watch.shared, watch.answerer.conn());
                        let judged = Writing::is_of_use(&response, shared, watch.response_pace());
                        let writing = judged.then(|| {
                            let form = watch.answerer.form();
                            Writing::new(shared.clone(), form, conn.cloned(), Some(watch.clone()))
                        });
                        return Poll::Ready(Ok(passing(response, writing)));
                    }
                }
            }
            StateProj::Answered => panic!("polled after completion"),
        };
        // Whatever the handler holds it holds no longer than this.
        state.set(State::Answered);
        Poll::Ready(Ok(shared.settings.answer(rejection)))
    }
}

fn passing<B>(
    response: Response<B>,
    writing: Option<Writing>,
) -> Response<GuardBody<ResponseBody<B>>> {
    response.map(|body| GuardBody::passing(ResponseBody::new(body, writing)))
}
