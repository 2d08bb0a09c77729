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
    /// For each shard, how often another server was asked after one without an answer.
    turns: [usize; MAX_SHARDS as usize],
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
                turns: Default::default(),
            }),
        }
    }

    pub(crate) async fn call(&self, batch: &Batch) -> Result<Answers, StoreError> {
        let shard = (batch.shard % MAX_SHARDS) as usize;
        let server = self.server_of(shard);
        let mut on_drop = AskAnotherOnDrop {
            cluster: self,
            shard,
            server: Arc::clone(&server),
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
        // The script has not run. If there is no time left to ask the other server, the next call
        // does: both may be too far away for one call.
        on_drop.is_answered = true;
        let server = self.moved(shard, &server, addr);
        let answer = server.call(batch).await;
        if let Err(CallError { moved_to, .. }) = &answer {
            match moved_to {
                // Servers that name each other are tried again by the next call.
                Some(addr) => drop(self.moved(shard, &server, addr.clone())),
                None => self.ask_another(shard, &server),
            }
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

    /// Asks another server than `failed` for a shard, unless another call has done so.
    fn ask_another(&self, shard: usize, failed: &Arc<Server>) {
        let state = &mut *self.state.lock();
        let asked = &mut state.asked[shard];
        if !Arc::ptr_eq(&state.servers[*asked], failed) {
            return;
        }
        let learnt = state.servers.len() - self.named;
        let turn = &mut state.turns[shard];
        *turn = turn.wrapping_add(1);
        // In turn one that is named and one that was learnt: most of these may be gone for long.
        let next = match learnt {
            0 => *asked,
            _ if *turn % 2 == 1 => *turn / 2 % self.named,
            _ => self.named + *turn / 2 % learnt,
        };
        *asked = match next == *asked {
            true => (next + 1) % state.servers.len(),
            false => next,
        };
    }
}

/// Asks another server for a shard after a call without an answer: it knows which one holds it now.
struct AskAnotherOnDrop<'a> {
    cluster: &'a Cluster,
    shard: usize,
    server: Arc<Server>,
    is_answered: bool,
}

impl Drop for AskAnotherOnDrop<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.cluster.ask_another(self.shard, &self.server);
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::{sleep, timeout},
    };

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
            server: from,
            is_answered: false,
        });
    }

    fn cluster_of(count: u8) -> Cluster {
        let server = |it| Server::new(&format!("redis://10.0.0.{it}"), None).unwrap();
        Cluster::new((1..=count).map(server).collect())
    }

    #[test]
    fn calls_that_fail_at_the_same_time_ask_one_other_server_and_not_the_next_but_one() {
        let cluster = cluster_of(2);
        let first = cluster.server_of(0);
        for _ in 0..2 {
            drop(AskAnotherOnDrop {
                cluster: &cluster,
                shard: 0,
                server: Arc::clone(&first),
                is_answered: false,
            });
        }
        assert!(!Arc::ptr_eq(&first, &cluster.server_of(0)));
    }

    #[test]
    fn servers_that_are_named_are_soon_asked_also_after_many_have_gone() {
        let cluster = cluster_of(2);
        let named = [cluster.server_of(0), {
            cluster.ask_another(0, &cluster.server_of(0));
            cluster.server_of(0)
        }];
        for port in 1..50 {
            cluster.moved(0, &named[0], ("10.0.0.9".to_owned(), port));
        }
        let mut asked = Vec::new();
        for _ in 0..100 {
            cluster.ask_another(0, &cluster.server_of(0));
            asked.push(format!("{:?}", cluster.server_of(0)));
        }
        for server in &named {
            let addr = format!("{server:?}");
            assert!(asked[..4].contains(&addr), "{asked:?}");
        }
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), 51, "each is asked");
    }

    /// Starts a server that answers all scripts so after 25 ms, and the rest at once. Returns its
    /// port.
    async fn far_server(answer: String) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut bytes = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..length]);
                        let answer = match () {
                            () if text.contains("\r\nSCRIPT\r\n") => "$2\r\nab\r\n",
                            () if text.contains("\r\nEVALSHA\r\n") => {
                                sleep(Duration::from_millis(25)).await;
                                &answer
                            }
                            () => continue,
                        };
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn a_server_is_found_also_if_a_call_has_no_time_for_two_of_them() {
        let holds = far_server("*1\r\n:0\r\n".to_owned()).await;
        let names_it = far_server(format!("-MOVED 1 127.0.0.1:{holds}\r\n")).await;
        let server = Server::new(&format!("redis://127.0.0.1:{names_it}"), None).unwrap();
        let cluster = Cluster::new(vec![server]);
        let batch = Batch {
            fleet: Arc::from("fleet"),
            shard: 0,
            asks: Vec::new(),
            node: None,
        };
        for _ in 0..20 {
            let answer = timeout(Duration::from_millis(40), cluster.call(&batch)).await;
            if answer.is_ok_and(|it| it.is_ok()) {
                return;
            }
        }
        panic!("no call was answered: {cluster:?}");
    }
}
