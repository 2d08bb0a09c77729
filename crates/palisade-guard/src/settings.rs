//! The settings that all guards have, and the builder methods for them.

use crate::{Facts, OnReject, Refusal};
use palisade_core::{ConnInfo, Event, Mode, Recorder, Rejection, Violation};
use std::fmt;

/// Mode, metrics sink and response writer of one guard. Set by the builder methods of its layer.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Settings {
    /// Whether the guard enforces its rules. Defaults to [`Mode::Enforce`].
    pub mode: Mode,
    /// Receives the guard's events. Defaults to no sink.
    pub recorder: Recorder,
    /// Writes the responses to refused requests of plain HTTP. Defaults to
    /// [`Rejection::into_response`].
    pub on_reject: Option<OnReject>,
}

impl Settings {
    /// Returns whether the guard checks requests at all.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// Records `rejection`. Returns `true` if it must be enforced, and `false` if the request is
    /// admitted.
    pub fn refuse(&self, rejection: &Rejection, conn: Option<&ConnInfo>) -> bool {
        self.recorder
            .record(|| Event::refused(rejection, self.mode, conn));
        self.mode == Mode::Enforce
    }

    /// Records `rejection` of the request with these facts. Returns an error if it must be
    /// enforced.
    pub fn refuse_request(&self, rejection: Rejection, facts: &Facts) -> Result<(), Refusal> {
        if self.refuse(&rejection, facts.conn()) {
            return Err(Refusal::new(rejection, self.on_reject.clone()));
        }
        Ok(())
    }

    /// Records that a body broke a rule after the response head was sent. Returns `true` if the
    /// body must be cut, and `false` if it continues.
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

/// Defines `mode`, `metrics` and `on_reject` for a layer. The layer has a method `policy_mut` that
/// returns a policy with a field `settings: Settings`. `gauges: field` registers the gauges of the
/// policy's `field: Arc<_>`. `records: field` passes the recorder to the method `record_to` of that
/// field.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_methods {
    ($layer:ident $(, gauges: $gauges:ident)? $(, records: $records:ident)?) => {
        impl $layer {
            /// Sets whether the guard enforces its rules, only reports what it would refuse, or
            /// does nothing. Defaults to [`Mode::Enforce`](palisade_core::Mode::Enforce).
            pub fn mode(mut self, mode: $crate::__private::palisade_core::Mode) -> Self {
                self.policy_mut().settings.mode = mode;
                self
            }

            /// Sends all events and gauges of the guard to `metrics`. Defaults to no sink.
            pub fn metrics(mut self, metrics: impl Into<$crate::__private::palisade_core::Recorder>) -> Self {
                let recorder = metrics.into();
                let policy = self.policy_mut();
                $(
                    let gauges = std::sync::Arc::downgrade(&policy.$gauges);
                    let gauges: std::sync::Weak<dyn $crate::__private::palisade_core::GaugeSource> = gauges;
                    recorder.register(gauges);
                )?
                $(policy.$records.record_to(recorder.clone());)?
                policy.settings.recorder = recorder;
                self
            }

            /// Writes the responses to refused requests of plain HTTP with `respond`. A status of
            /// 200 is replaced by the default one. `Retry-After` and `Connection: close` are added
            /// where they apply. Responses to gRPC keep their own format.
            /// Defaults to [`Rejection::into_response`](palisade_core::Rejection::into_response).
            pub fn on_reject(
                mut self,
                respond: impl Fn(&$crate::__private::palisade_core::Rejection,
                ) -> $crate::__private::http::Response<$crate::__private::bytes::Bytes>
                    + Send
                    + Sync
                    + 'static,
            ) -> Self {
                self.policy_mut().settings.on_reject = Some(std::sync::Arc::new(respond));
                self
            }
        }
    };
}
