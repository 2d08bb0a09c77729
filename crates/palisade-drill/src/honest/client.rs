//! One honest client: a request at a time, at an even rate.

use super::{
    exchange::{Connection, Route, exchange},
    log::Log,
};
use crate::{
    attacks::Protocol,
    sample::{Kind, Outcome},
    target::{Source, Target},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// The time after which a client gives up a request.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// One honest client.
pub(super) struct Client {
    pub(super) target: Target,
    pub(super) source: Source,
    pub(super) route: Route,
    pub(super) log: Arc<Log>,
    /// A change means: give up, and begin again.
    pub(super) retry: watch::Receiver<()>,
    pub(super) interval: Duration,
}

impl Client {
    /// Sends requests for ever, the first after `offset`.
    pub(super) async fn run(mut self, offset: Duration) {
        let mut connection = None;
        let mut due = Instant::now() + offset;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                Ok(()) = self.retry.changed() => {
                    connection = None;
                    due = Instant::now();
                }
            }
            let late = due.elapsed();
            let start = self.log.begin(self.route.kind, late);
            let mut retry = self.retry.clone();
            let outcome = tokio::select! {
                biased;
                outcome = timeout(PATIENCE, self.request(&mut connection)) => {
                    outcome.unwrap_or(Outcome::TimedOut)
                }
                // The drill wants a new request.
                Ok(()) = retry.changed() => Outcome::Unfinished,
            };
            self.log.end(self.route.kind, start, outcome);
            if outcome == Outcome::Unfinished {
                self.retry.mark_unchanged();
                (connection, due) = (None, Instant::now());
                continue;
            }
            if outcome != Outcome::Served {
                connection = None;
            }
            // A client that waited sends its next request at once, and not those that it missed.
            due = (due + self.interval).max(Instant::now());
        }
    }

    /// Sends one request. A kept connection that the server has closed meanwhile is replaced once,
    /// as every client does.
    async fn request(&self, kept: &mut Option<Connection>) -> Outcome {
        if let Some(mut connection) = kept.take().filter(Connection::is_open) {
            let outcome = exchange(&mut connection, &self.route).await;
            if outcome != Outcome::Cut {
                *kept = Some(connection);
                return outcome;
            }
        }
        let connect = self.target.connect_as(Protocol::Http1, self.source, None);
        let Ok(stream) = connect.await else {
            return Outcome::NotConnected;
        };
        let Some(mut connection) = Connection::new(stream).await else {
            return Outcome::Cut;
        };
        let outcome = exchange(&mut connection, &self.route).await;
        if self.route.kind == Kind::KeepAlive && outcome == Outcome::Served {
            *kept = Some(connection);
        }
        outcome
    }
}
