//! The settings that all guards have, and the builder methods for them.

use crate::{Facts, Refusal};
use bytes::Bytes;
use http::Response;
use palisade_core::{ConnInfo, Event, Mode, Recorder, Rejection, Violation};
use std::{fmt, sync::Arc};

/// Makes the answer to a refused request in place of the default one.
pub type OnReject = Arc<dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync>;

/// Mode, metrics and answer of one guard. The layers' own builder methods set these.
#[derive(Clone, Default)]
pub struct Settings {
    /// Whether the guard acts. Defaults to [`Mode::Enforce`].
    pub mode: Mode,
    /// Hears of what the guard does. Defaults to no sink.
    pub recorder: Recorder,
    /// Writes its responses to plain HTTP. Defaults to [`Rejection::into_response`].
    pub on_reject: Option<OnReject>,
}

impl Settings {
    /// Whether the guard looks at all.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// Records `rejection`. `true` if it is to be enforced, `false` if the request passes.
    pub fn refuse(&self, rejection: &Rejection, conn: Option<&ConnInfo>) -> bool {
        self.recorder
            .record(|| Event::refused(rejection, self.mode, conn));
        self.mode == Mode::Enforce
    }

    /// Records `rejection` of the request with these facts. An error if it is enforced.
    pub fn turn_away(&self, rejection: Rejection, facts: &Facts) -> Result<(), Refusal> {
        if self.refuse(&rejection, facts.conn()) {
            return Err(Refusal::new(rejection, self));
        }
        Ok(())
    }

    /// Records that a body broke a rule after its response head was sent. `true` if it is to be
    /// cut, `false` if it goes on.
    pub fn cut(&self, violation: &Violation, conn: Option<&ConnInfo>) -> bool {
        self.recorder
            .record(|| Event::cut(violation, self.mode, conn));
        self.mode == Mode::Enforce
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("mode", &self.mode)
            .field("recorder", &self.recorder)
            .field("on_reject", &self.on_reject.as_ref().map(|_| ".."))
            .finish()
    }
}

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
                    let levels: std::sync::Weak<dyn palisade_core::GaugeSource> = levels;
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
