//! The settings that all guards have, and the builder methods for them.

use crate::{Facts, OnReject, Refusal};
use palisade_core::{Client, ConnInfo, Event, Mode, Recorder, Rejection, Violation};
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
    pub fn is_enabled(&self) -> bool {
        self.mode != Mode::Off
    }

    /// Records `rejection`. Returns `true` if it must be enforced, and `false` if the request is
    /// admitted.
    pub fn refuse(
        &self,
        rejection: &Rejection,
        conn: Option<&ConnInfo>,
        client: Option<&Client>,
    ) -> bool {
        self.recorder
            .record(|| Event::refused(rejection, self.mode, conn).of_client(client));
        self.mode == Mode::Enforce
    }

    /// Records `rejection` of the request with these facts. Returns an error if it must be
    /// enforced.
    pub fn refuse_request(&self, rejection: Rejection, facts: &Facts) -> Result<(), Refusal> {
        if self.refuse(&rejection, facts.conn(), facts.client()) {
            return Err(Refusal::new(rejection, self.on_reject.clone()));
        }
        Ok(())
    }

    /// Records that a body broke a rule after the response head was sent. Returns `true` if the
    /// body must be cut, and `false` if it continues.
    pub fn cut(&self, violation: &Violation, facts: &Facts) -> bool {
        self.recorder
            .record(|| Event::cut(violation, self.mode, facts.conn()).of_client(facts.client()));
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

/// Expands to the first of the literals.
#[doc(hidden)]
#[macro_export]
macro_rules! __first {
    ($first:literal $(, $rest:literal)*) => {
        $first
    };
}

/// Defines `mode`, `metrics` and `on_reject` for a layer. The layer has a method `policy_mut` that
/// returns a policy with a field `settings: Settings`. `gauges: field` registers the gauges of the
/// policy's `field: Arc<_>`. `records: field` passes the recorder to the method `record_to` of that
/// field. `example` is code for a layer that refuses every upload that stalls, or the `request`,
/// and the status and the reason that it refuses it with.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_methods {
    (
        $layer:ident
        $(, gauges: $gauges:ident)?
        $(, records: $records:ident)?
        $(, request: $request:literal)?
        , example: $refusing:literal => $status:literal $reason:literal
    ) => {
        impl $layer {
            /// Sets whether the guard enforces its rules, only reports what it would refuse, or
            /// does nothing. Defaults to [`Mode::Enforce`](palisade_core::Mode::Enforce).
            ///
            /// ```
            #[doc = concat!("use ", env!("CARGO_CRATE_NAME"), "::{Mode, ", stringify!($layer), "};")]
            #[doc = $crate::__example_setup!()]
            /// let status = async |mode| {
            #[doc = concat!("    let layer = ", $refusing, ";")]
            ///     let service = layer.mode(mode).layer(service_fn(wait_for_a_minute));
            #[doc = concat!("    let request = ", $crate::__first!($($request,)? "stalled_upload()"), ";")]
            ///     service.oneshot(request).await.map(|response| response.status())
            /// };
            #[doc = concat!("assert_eq!(status(Mode::Enforce).await?, ", $status, ");")]
            /// assert_eq!(status(Mode::Shadow).await?, 200);
            /// assert_eq!(status(Mode::Off).await?, 200);
            /// # Ok(())
            /// # }
            /// ```
            pub fn mode(mut self, mode: $crate::__private::palisade_core::Mode) -> Self {
                self.policy_mut().settings.mode = mode;
                self
            }

            /// Sends all events and gauges of the guard to `metrics`. Defaults to no sink.
            ///
            /// ```
            #[doc = concat!("use ", env!("CARGO_CRATE_NAME"), "::{Mode, ", stringify!($layer), "};")]
            /// use palisade_metrics::Snapshot;
            #[doc = $crate::__example_setup!()]
            /// let metrics = Snapshot::new();
            #[doc = concat!("let layer = ", $refusing, ";")]
            /// let service = layer.metrics(metrics.clone()).layer(service_fn(wait_for_a_minute));
            #[doc = concat!("service.oneshot(", $crate::__first!($($request,)? "stalled_upload()"), ").await?;")]
            /// assert_eq!(metrics.total_refused(Mode::Enforce), 1);
            /// # Ok(())
            /// # }
            /// ```
            pub fn metrics(mut self, metrics: impl Into<$crate::__private::palisade_core::Recorder>) -> Self {
                let recorder = metrics.into();
                let policy = self.policy_mut();
                $(
                    let gauges = std::sync::Arc::downgrade(&policy.$gauges);
                    let gauges: std::sync::Weak<dyn $crate::__private::palisade_core::GaugeSource> = gauges;
                    recorder.register(gauges);
                )?
                $(policy.$records.record_to(&recorder);)?
                policy.settings.recorder = recorder;
                self
            }

            /// Writes the responses to refused requests of plain HTTP with `respond`. A status of
            /// 200 is replaced by the default one. `Retry-After` and `Connection: close` are added
            /// where they apply. Responses to gRPC keep their own format.
            /// Defaults to [`Rejection::into_response`](palisade_core::Rejection::into_response).
            ///
            /// ```
            #[doc = concat!("use ", env!("CARGO_CRATE_NAME"), "::", stringify!($layer), ";")]
            #[doc = $crate::__example_setup!()]
            #[doc = concat!("let layer = ", $refusing, ";")]
            /// let layer = layer.on_reject(|rejection| {
            ///     let reason = rejection.violation().reason;
            ///     Response::new(format!(r#"{{"error": "{reason}"}}"#).into())
            /// });
            /// let service = layer.layer(service_fn(wait_for_a_minute));
            #[doc = concat!("let request = ", $crate::__first!($($request,)? "stalled_upload()"), ";")]
            /// let response = service.oneshot(request).await?;
            #[doc = concat!("assert_eq!(response.status(), ", $status, ");")]
            /// let body = response.into_body().collect().await?.to_bytes();
            #[doc = concat!("assert_eq!(body, r#\"{\"error\": \"", $reason, "\"}\"#);")]
            /// # Ok(())
            /// # }
            /// ```
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

/// Returns the first lines of the examples of [`settings_methods!`].
#[doc(hidden)]
#[macro_export]
macro_rules! __example_setup {
    () => {
        concat!(
            "# use ",
            env!("CARGO_CRATE_NAME"),
            "::*;\n",
            "# use palisade_testkit::example::*;
# #[tokio::main(flavor = \"current_thread\", start_paused = true)]
# async fn main() -> Result<(), BoxError> {
// The upload declares 4 bytes and sends none. The handler waits for it, for a minute."
        )
    };
}
