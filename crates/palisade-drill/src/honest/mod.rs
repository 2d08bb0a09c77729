//! Honest clients. They send requests throughout a drill, each kind from an address of its own.

pub(crate) mod answer;
mod client;
mod dialect;
mod exchange;
mod frames;
mod h2;
#[cfg(feature = "rustls")]
mod handshake;
mod log;
mod long;
mod open;
pub(crate) mod openings;
pub(crate) mod pace;
mod phone;
pub(crate) mod preflight;
mod steady;
mod streams;

pub(crate) use exchange::Route;
pub(crate) use log::Log;
pub(crate) use long::OpenPaths;
pub(crate) use steady::Steady;

use crate::{
    sample::Kind,
    target::{Source, Target},
    worker::Worker,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// The honest clients, which run in a thread of their own. Dropping this ends them.
#[derive(Debug)]
pub(crate) struct HonestClients {
    log: Arc<Log>,
    retry: watch::Sender<()>,
    kinds: Vec<Kind>,
    _worker: Worker<()>,
}

impl HonestClients {
    /// Starts a client for each of `routes` and of `steady`. Times in the log are those since
    /// `epoch`.
    ///
    /// # Errors
    ///
    /// If the system has no more threads or files.
    pub(crate) fn start(
        target: &Target,
        routes: Vec<Route>,
        steady: Vec<Steady>,
        epoch: Instant,
    ) -> io::Result<Self> {
        let kinds = routes.iter().map(|route| route.kind);
        let kinds: Vec<_> = kinds
            .chain(steady.iter().map(|steady| steady.kind))
            .collect();
        let interval = pace::interval(Kind::NewConnection, &kinds);
        let log = Arc::new(Log::new(epoch, &kinds));
        let (retry, retried) = watch::channel(());
        let (target, shared) = (target.clone(), log.clone());
        let worker = Worker::spawn("drill-honest", move || async move {
            let turns = routes.len() as u32;
            let mut clients = tokio::task::JoinSet::new();
            for (number, route) in routes.into_iter().enumerate() {
                let client = client::Client {
                    target: target.clone(),
                    source: Source::Honest(number as u8),
                    route,
                    log: shared.clone(),
                    retry: retried.clone(),
                    interval,
                };
                // The clients take turns.
                clients.spawn(client.run(interval * number as u32 / turns));
            }
            for (number, steady) in steady.into_iter().enumerate() {
                let client = long::Client {
                    target: target.clone(),
                    source: Source::Honest((turns as usize + number) as u8),
                    record: steady::Record::new(shared.clone(), steady.kind),
                    steady,
                    retry: retried.clone(),
                };
                clients.spawn(client.run());
            }
            clients.spawn(watch_clock(shared));
            while clients.join_next().await.is_some() {}
        })?;
        Ok(Self {
            log,
            retry,
            kinds,
            _worker: worker,
        })
    }

    /// Returns the log of all requests.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the kinds of clients.
    pub(crate) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// Returns the time that one sample of `kind` accounts for.
    pub(crate) fn interval(&self, kind: Kind) -> Duration {
        pace::interval(kind, &self.kinds)
    }

    /// Returns the requests of `kind` in a second.
    pub(crate) fn rate(&self, kind: Kind) -> f64 {
        pace::requests_per_second(kind, &self.kinds)
    }

    /// Lets every client give up its request and send the next one, on a new connection.
    pub(crate) fn retry(&self) {
        self.retry.send_replace(());
    }
}

/// The time between two looks at the clock.
const CLOCK_INTERVAL: Duration = Duration::from_millis(50);

/// Records how late this thread is, also while all clients wait.
async fn watch_clock(log: Arc<Log>) {
    loop {
        let due = Instant::now() + CLOCK_INTERVAL;
        tokio::time::sleep_until(due).await;
        log.tick(due.elapsed());
    }
}

#[cfg(test)]
#[cfg(feature = "rustls")]
mod handshake_tests;
#[cfg(test)]
mod long_tests;
#[cfg(test)]
mod tests;
