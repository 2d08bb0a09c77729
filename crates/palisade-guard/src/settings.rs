//! The builder methods that all layers have.

/// Defines `mode`, `metrics` and `on_reject` for a layer with a method `policy_mut` whose result
/// has a `settings: Settings`. With `levels: field` the policy's `field: Arc<_>` has gauges; with
/// `tells: field` its method `record_to` is called with the sink.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_methods {
    ($layer:ident $(, levels: $levels:ident)? $(, tells: $tells:ident)?) => {
        impl $layer {
            /// Whether the guard enforces, only counts what it would have refused, or does nothing.
            /// Defaults to [`Mode::Enforce`](palisade_core::Mode::Enforce).
            pub fn mode(mut self, mode: palisade_core::Mode) -> Self {
                self.policy_mut().settings.mode = mode;
                self
            }

            /// Records everything that the guard does to `metrics`. Defaults to no sink.
            pub fn metrics(mut self, metrics: impl Into<palisade_core::Recorder>) -> Self {
                let recorder = metrics.into();
                let policy = self.policy_mut();
                $(
                    let levels = std::sync::Arc::downgrade(&policy.$levels);
                    let levels: std::sync::Weak<dyn palisade_core::Levels> = levels;
                    recorder.register(levels);
                )?
                $(policy.$tells.record_to(recorder.clone());)?
                policy.settings.recorder = recorder;
                self
            }

            /// Writes the responses to refused requests of plain HTTP in place of the default. A
            /// status of 200 is replaced by the default one; `Retry-After` and
            /// `Connection: close` are added where they belong; gRPC keeps its own form.
            /// Defaults to [`Rejection::into_response`](palisade_core::Rejection::into_response).
            pub fn on_reject(
                mut self,
                answer: impl Fn(&palisade_core::Rejection) -> http::Response<bytes::Bytes>
                    + Send
                    + Sync
                    + 'static,
            ) -> Self {
                self.policy_mut().settings.on_reject = Some(std::sync::Arc::new(answer));
                self
            }
        }
    };
}
