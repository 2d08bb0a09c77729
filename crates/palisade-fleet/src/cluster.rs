//! A Redis cluster.

use crate::{
    Answers, Batch, StoreError,
    machine::MAX_SHARDS,
    redis::{CallError, Server},
};
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};

/// A cluster of Redis. It learns which server holds a shard from the servers: one that does not
/// hold it names the one that does.
pub(crate) struct Cluster {
    state: Mutex<State>,
    /// The servers that are named in the URL.
    named: usize,
}

struct State {
    /// Those that are named in the URL, and those that they have named since.
    servers: Vec<Arc<Server>>,
    /// For each shard, the index of the server that is asked.
    asked: [usize; MAX_SHARDS as usize],
}

/// The most servers. Beyond it, those that are not named in the URL are forgotten.
const MAX_SERVERS: usize = 64;

impl Cluster {
    /// Creates a cluster that these servers belong to, at least one.
    pub(crate) fn new(servers: Vec<Server>) -> Self {
        Self {
            named: servers.len(),
            state: Mutex::new(State {
                servers: servers.into_iter().map(Arc::new).collect(),
                asked: Default::default(),
            }),
        }
    }

    pub(crate) async fn call(&self, batch: &Batch) -> Result<Answers, StoreError> {
        let shard = (batch.shard % MAX_SHARDS) as usize;
        let server = self.server_of(shard);
        let mut on_drop = AskAnotherOnDrop {
            cluster: self,
            shard,
            is_answered: false,
        };
        let CallError { error, moved_to } = match server.call(batch).await {
            Ok(answers) => {
                on_drop.is_answered = true;
                return Ok(answers);
            }
            Err(error) => error,
        };
        let Some(addr) = moved_to else {
            return Err(error);
        };
        // The script has not run.
        let server = self.moved(shard, &server, addr);
        let answer = server.call(batch).await;
        let moved_to = answer.as_ref().err().and_then(|it| it.moved_to.clone());
        // Servers that name each other are tried again by the next call.
        on_drop.is_answered = answer.is_ok() || moved_to.is_some();
        if let Some(addr) = moved_to {
            self.moved(shard, &server, addr);
        }
        answer.map_err(|it| it.error)
    }

    /// Returns the largest skew of the clocks.
    pub(crate) fn clock_skew(&self) -> Option<Duration> {
        let state = self.state.lock();
        state.servers.iter().filter_map(|it| it.clock_skew()).max()
    }

    fn server_of(&self, shard: usize) -> Arc<Server> {
        let state = self.state.lock();
        Arc::clone(&state.servers[state.asked[shard]])
    }

    /// Asks the server at this address from now on, which is one of the cluster that `from` is in.
    fn moved(&self, shard: usize, from: &Server, addr: (String, u16)) -> Arc<Server> {
        let mut state = self.state.lock();
        let is_it = |it: &Arc<Server>| it.tcp_addr() == Some((&addr.0, addr.1));
        let known = state.servers.iter().position(is_it);
        let index = known.unwrap_or_else(|| {
            if state.servers.len() >= MAX_SERVERS {
                state.servers.truncate(self.named);
                state.asked = Default::default();
            }
            state.servers.push(Arc::new(from.at(addr)));
            state.servers.len() - 1
        });
        state.asked[shard] = index;
        Arc::clone(&state.servers[index])
    }
}

/// Asks another server for a shard after a call without an answer: it knows which one holds it now.
struct AskAnotherOnDrop<'a> {
    cluster: &'a Cluster,
    shard: usize,
    is_answered: bool,
}

impl Drop for AskAnotherOnDrop<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let state = &mut *self.cluster.state.lock();
            let asked = &mut state.asked[self.shard];
            *asked = (*asked + 1) % state.servers.len();
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_list().entries(&state.servers).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_learnt_once_and_too_many_of_them_are_forgotten() {
        let named = ["redis://10.0.0.1", "redis://10.0.0.2"];
        let named = named.map(|url| Server::new(url, None).unwrap());
        let cluster = Cluster::new(named.into());
        let from = cluster.server_of(3);
        let count = || cluster.state.lock().servers.len();
        for _ in 0..2 {
            let moved = cluster.moved(3, &from, ("10.0.0.9".to_owned(), 7000));
            assert_eq!(moved.tcp_addr(), Some(("10.0.0.9", 7000)));
            assert!(Arc::ptr_eq(&moved, &cluster.server_of(3)));
            assert_eq!(count(), 3);
        }
        for port in 0..1000 {
            cluster.moved(port as usize % 16, &from, ("10.0.0.9".to_owned(), port));
            assert!(count() <= MAX_SERVERS);
            for shard in 0..16 {
                cluster.server_of(shard);
            }
        }
        drop(AskAnotherOnDrop {
            cluster: &cluster,
            shard: 5,
            is_answered: false,
        });
    }
}
