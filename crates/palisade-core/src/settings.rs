//! What every guard can be told, whatever it guards.

use crate::{AnswerForm, ConnInfo, Event, GuardBody, Mode, Recorder, Rejection, Violation};
use bytes::Bytes;
use http::{Extensions, Response};
use std::{fmt, sync::Arc};

/// Makes the answer to a refused request in place of the default one.
pub type OnReject = Arc<dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync>;

/// Mode, metrics and answer of one guard. The layers' own builder methods set these.
#[derive(Clone, Default)]
pub struct Settings {
    /// Whether the guard acts. Defaults to [`Mode::Enforce`].
    pub mode: Mode,
    /// Who hears of it. Defaults to nobody.
    pub recorder: Recorder,
    /// Who writes its answers to plain HTTP. Defaults to [`Rejection::into_response`].
    pub on_reject: Option<OnReject>,
}

impl Settings {
    /// Whether the guard looks at all.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// The connection of the request with these extensions, for events that come after the
    /// request is handed on. Not looked for when nobody listens.
    #[inline]
    pub fn conn(&self, extensions: &Extensions) -> Option<Arc<ConnInfo>> {
        if self.recorder.is_on() { ConnInfo::of(extensions).cloned() } else { None }
    }

    /// Records `rejection`. `true` if it is to be enforced, `false` if the request passes.
    pub fn refuse(&self, rejection: &Rejection, conn: Option<&ConnInfo>) -> bool {
        self.recorder.record(|| Event::Refused { rejection, mode: self.mode, conn });
        self.mode == Mode::Enforce
    }

    /// Records that a body broke a rule after its response head was sent. `true` if it is to be
    /// cut, `false` if it goes on.
    pub fn cut(&self, violation: &Violation, conn: Option<&ConnInfo>) -> bool {
        self.recorder.record(|| Event::cut(violation, self.mode, conn));
        self.mode == Mode::Enforce
    }

    /// The answer to a refused request.
    pub fn answer<B>(&self, rejection: Rejection) -> Response<GuardBody<B>> {
        match (&self.on_reject, rejection.form()) {
            (Some(on_reject), AnswerForm::Http { .. }) => {
                rejection.complete(on_reject(&rejection)).map(GuardBody::answer)
            }
            _ => rejection.into_response(),
        }
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

/// The builder methods that every layer has, for layers whose `shared: Arc<Shared>` has a
/// `settings: Settings`, and, where the guard keeps levels, says where they are.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_methods {
    ($layer:ident $(, levels: $levels:ident)?) => {
        impl $layer {
            /// Whether it enforces, only counts what it would have done, or does not look.
            /// Defaults to [`Mode::Enforce`]($crate::Mode::Enforce).
            pub fn mode(mut self, mode: $crate::Mode) -> Self {
                std::sync::Arc::make_mut(&mut self.shared).settings.mode = mode;
                self
            }

            /// Tells `metrics` of everything it does. Defaults to nobody.
            pub fn metrics(mut self, metrics: impl Into<$crate::Recorder>) -> Self {
                let recorder = metrics.into();
                $(
                    let levels = std::sync::Arc::downgrade(&self.shared.$levels);
                    recorder.register(levels as std::sync::Weak<dyn $crate::Levels>);
                )?
                std::sync::Arc::make_mut(&mut self.shared).settings.recorder = recorder;
                self
            }

            /// Writes the answers to refused requests of plain HTTP in place of the default. A
            /// status of 200 is replaced by the default one; `Retry-After` and
            /// `Connection: close` are added where they belong; gRPC keeps its own form.
            /// Defaults to [`Rejection::into_response`]($crate::Rejection::into_response).
            pub fn on_reject(
                mut self,
                answer: impl Fn(&$crate::Rejection) -> http::Response<bytes::Bytes>
                    + Send
                    + Sync
                    + 'static,
            ) -> Self {
                let settings = &mut std::sync::Arc::make_mut(&mut self.shared).settings;
                settings.on_reject = Some(std::sync::Arc::new(answer));
                self
            }
        }
    };
}
