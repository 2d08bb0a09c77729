//! Honest clients. They send requests throughout a drill, each kind from an address of its own.

mod client;
mod exchange;
mod log;
pub(crate) mod preflight;

pub(crate) use exchange::Route;
pub(crate) use log::Log;

use crate::{
    sample::Kind,
    target::{Source, Target},
    worker::Worker,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// The time between two requests of all clients together.
const REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// The honest clients, which run in a thread of their own. Dropping this ends them.
#[derive(Debug)]
pub(crate) struct HonestClients {
    log: Arc<Log>,
    retry: watch::Sender<()>,
    kinds: Vec<Kind>,
    _worker: Worker<()>,
}

impl HonestClients {
    /// Starts a client for each of `routes`. Times in the log are those since `epoch`.
    ///
    /// # Errors
    ///
    /// If the system has no more threads or files.
    pub(crate) fn start(target: &Target, routes: Vec<Route>, epoch: Instant) -> io::Result<Self> {
        let kinds: Vec<_> = routes.iter().map(|route| route.kind).collect();
        let log = Arc::new(Log::new(epoch, &kinds));
        let (retry, retried) = watch::channel(());
        let (target, shared) = (target.clone(), log.clone());
        let worker = Worker::spawn("drill-honest", move || async move {
            let interval = REQUEST_INTERVAL * routes.len() as u32;
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
                clients.spawn(client.run(REQUEST_INTERVAL * number as u32));
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

    /// Returns the time between two requests of one kind.
    pub(crate) fn interval(&self) -> Duration {
        REQUEST_INTERVAL * self.kinds.len() as u32
    }

    /// Lets every client give up its request and send the next one, on a new connection.
    pub(crate) fn retry(&self) {
        self.retry.send_replace(());
    }
}

/// Records how late this thread is, also while all clients wait.
async fn watch_clock(log: Arc<Log>) {
    loop {
        let due = Instant::now() + REQUEST_INTERVAL;
        tokio::time::sleep_until(due).await;
        log.tick(due.elapsed());
    }
}

#[cfg(test)]
mod tests;
