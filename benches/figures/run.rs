//! The runs that are counted, and the list of them.

use http::{Request, Response};
use http_body::Body;
use palisade_benches::{drive, drive_to_the_end, runtime};
use tower::Service;

/// Runs the given number of requests.
pub(crate) type Run = Box<dyn FnMut(usize)>;

/// A name, and the constructor of the scenario's run. The run is created before the scenario is
/// counted and dropped after it.
pub(crate) type Scenario = (&'static str, Box<dyn FnOnce() -> Run>);

/// A list of scenarios under construction.
#[derive(Default)]
pub(crate) struct ScenarioList(Vec<Scenario>);

// === ScenarioList ===

impl ScenarioList {
    pub(crate) fn into_vec(self) -> Vec<Scenario> {
        self.0
    }

    pub(crate) fn add(&mut self, name: &'static str, make: impl FnOnce() -> Run + 'static) {
        self.0.push((name, Box::new(make)));
    }

    /// Adds a scenario that sends each `request` to one service by polling it directly.
    pub(crate) fn drive<S, B, R>(&mut self, name: &'static str, service: S, request: R)
    where
        S: Service<Request<B>> + 'static,
        R: Fn() -> Request<B> + 'static,
    {
        self.add(name, move || {
            let mut service = service;
            Box::new(move |requests| {
                for _ in 0..requests {
                    drive(&mut service, request());
                }
            })
        });
    }

    /// Adds a scenario like [`Self::drive`] that reads the body of each response to its end.
    pub(crate) fn drive_to_the_end<S, B, R, A>(
        &mut self,
        name: &'static str,
        service: S,
        request: R,
    ) where
        S: Service<Request<B>, Response = Response<A>> + 'static,
        R: Fn() -> Request<B> + 'static,
        A: Body,
    {
        self.add(name, move || {
            let mut service = service;
            Box::new(move |requests| {
                for _ in 0..requests {
                    drive_to_the_end(&mut service, request());
                }
            })
        });
    }

    /// Adds a scenario that runs each request in the task of a runtime that wakes it.
    pub(crate) fn drive_tasks<S, B, R>(&mut self, name: &'static str, service: S, request: R)
    where
        S: Service<Request<B>> + 'static,
        R: Fn() -> Request<B> + 'static,
    {
        self.add(name, move || {
            let (mut service, runtime) = (service, runtime());
            Box::new(move |requests| {
                for _ in 0..requests {
                    let response = runtime.block_on(async {
                        let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
                        assert!(ready.is_ok(), "poll_ready never waits");
                        service.call(request()).await
                    });
                    let _ = std::hint::black_box(response);
                }
            })
        });
    }

    /// Adds a scenario like [`Self::drive`] that clones the service for each request.
    pub(crate) fn drive_clones<S, B, R>(&mut self, name: &'static str, service: S, request: R)
    where
        S: Service<Request<B>> + Clone + 'static,
        R: Fn() -> Request<B> + 'static,
    {
        self.add(name, move || {
            Box::new(move |requests| {
                for _ in 0..requests {
                    drive(&mut service.clone(), request());
                }
            })
        });
    }
}
