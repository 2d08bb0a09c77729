//! Honest clients with answers that take long: phones, open answers, and HTTP/2.
//!
//! They have no turns of their own. Each goes on from one piece, look or connection to the next,
//! and begins again, on a new connection, when it was cut or when the drill asks.

#[cfg(feature = "rustls")]
use super::handshake;
use super::{
    h2, open,
    pace::REOPEN_PAUSE,
    phone,
    steady::{Record, Steady},
    streams,
};
use crate::{
    plan::Plan,
    sample::Kind,
    target::{Source, Target},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Paths that only honest clients need.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenPaths {
    pub(crate) events: Option<String>,
    pub(crate) websocket: Option<String>,
}

/// A client of a [`Steady`] kind.
pub(super) struct Client {
    pub(super) target: Target,
    pub(super) source: Source,
    pub(super) steady: Steady,
    pub(super) record: Record,
    pub(super) retry: watch::Receiver<()>,
}

/// Returns the client of `kind` for these routes; `None` if one is missing.
pub(super) fn steady(kind: Kind, plan: &Plan, paths: &OpenPaths) -> Option<Steady> {
    let request = match kind {
        Kind::PhoneUpload => phone::upload(plan)?,
        Kind::PhoneDownload => phone::download(plan)?,
        Kind::EventStream => open::events(plan, paths.events.as_ref()?),
        Kind::WebSocket => open::websocket(plan, paths.websocket.as_ref()?),
        Kind::Http2 => streams::opening(plan),
        Kind::SlowHandshake if plan.tls => {
            format!("{}connection: close\r\n\r\n", plan.head("GET", &plan.get)).into()
        }
        Kind::NewConnection | Kind::KeepAlive | Kind::SmallPost | Kind::SlowHandshake => {
            return None;
        }
    };
    Some(Steady {
        kind,
        request: request.into(),
        expected: None,
    })
}

impl Client {
    /// Goes on for ever, until it is dropped.
    pub(super) async fn run(mut self) {
        let mut retry = self.retry.clone();
        retry.mark_unchanged();
        loop {
            tokio::select! {
                biased;
                Ok(()) = retry.changed() => self.record.give_up(),
                () = self.session() => {}
            }
        }
    }

    /// Runs one connection and the pause after it.
    async fn session(&mut self) {
        let Self {
            target,
            source,
            steady,
            record,
            ..
        } = self;
        let began = Instant::now();
        let pause = match steady.kind {
            Kind::PhoneUpload => phone::send(target, *source, steady, record).await,
            Kind::PhoneDownload => phone::receive(target, *source, steady, record).await,
            Kind::Http2 => h2::exchange(target, *source, steady, record).await,
            #[cfg(feature = "rustls")]
            Kind::SlowHandshake => handshake::exchange(target, *source, steady, record).await,
            _ => open::hold(target, *source, steady, record).await,
        };
        sleep(
            pause
                .unwrap_or(REOPEN_PAUSE)
                .saturating_sub(began.elapsed()),
        )
        .await;
    }
}
