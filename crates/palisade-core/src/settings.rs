//! What every guard can be told, whatever it guards.

use crate::{ConnInfo, Event, Mode, Recorder, Rejection, Violation};
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
