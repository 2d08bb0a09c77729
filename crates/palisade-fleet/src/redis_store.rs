//! The store on Redis, and the forms of its URL.

use crate::{
    Answers, Batch, QuotaStore, StoreError,
    cluster::Cluster,
    machine::MAX_SHARDS,
    redis::{Server, Tls},
    sentinel::Sentinels,
};
use palisade_core::ConfigError;
use std::{fmt, time::Duration};

/// A [`QuotaStore`] on Redis or Valkey: what [`Fleet::redis`](crate::Fleet::redis) counts on: one
/// server, a cluster, or the master that sentinels name. Tested with Redis 7.0.15; the script uses
/// only commands of Redis 6.2.
///
/// It has one connection to each server, and opens another one when that one fails, or when a call
/// is dropped. It needs these rights: `+evalsha +eval +script|load +time +get +set`, and all keys
/// that begin with `palisade:`; for another database than 0 also `+select`; and if nodes are
/// [counted](crate::FleetBuilder::count_nodes), `+zadd +zremrangebyscore +zcard +pexpire`. No
/// password is in its `Debug` form or in an error.
///
/// On a cluster the accounts are divided over 16 shards, each in one slot. It is told which server
/// holds a shard by the servers, and asks another one when that one fails. What is in a slot while
/// it migrates is counted by each node alone.
///
/// ```
/// use palisade_fleet::{Fleet, FleetBuilder, RedisStore};
/// # fn main() -> Result<(), palisade_fleet::ConfigError> {
/// let fleet: FleetBuilder<RedisStore> = Fleet::redis("redis://palisade:password@10.0.0.5")?;
/// assert!(!format!("{fleet:?}").contains("password"));
/// # Ok(())
/// # }
/// ```
pub struct RedisStore {
    servers: Servers,
}

#[derive(Debug)]
enum Servers {
    One(Server),
    Cluster(Cluster),
    Sentinels(Sentinels),
}

/// The most servers in one URL.
const MAX_SERVERS: usize = 16;

const ALLOWED: &str = "redis://[user:password@]host[:port][/db], redis+unix:///path, \
                       redis+cluster://[user:password@]host[:port],host[:port], or \
                       redis+sentinel://[user:password@]host[:port],host[:port]/master[/db]; \
                       and for rediss:// Fleet::redis_over_tls, with the feature rustls";

impl RedisStore {
    /// Creates a store on the Redis at this URL. Connects when it is called for the first time.
    pub(crate) fn new(url: &str) -> Result<Self, ConfigError> {
        Self::at(url, None).ok_or_else(|| invalid("redis", ALLOWED))
    }

    /// Creates a store that is reached by TLS.
    #[cfg(feature = "rustls")]
    pub(crate) fn over_tls(
        url: &str,
        config: std::sync::Arc<tokio_rustls::rustls::ClientConfig>,
    ) -> Result<Self, ConfigError> {
        let plain = url
            .strip_prefix("rediss")
            .filter(|rest| !rest.starts_with("+unix"));
        plain
            .and_then(|rest| Self::at(&format!("redis{rest}"), Some(config.into())))
            .ok_or_else(|| invalid("redis_over_tls", "what is allowed for redis, with rediss"))
    }

    fn at(url: &str, tls: Option<Tls>) -> Option<Self> {
        // A fragment has no meaning. In a password, it would make the user a host.
        if url.contains('#') {
            return None;
        }
        let servers = match url.split_once("://")? {
            ("redis+cluster", rest) => cluster(rest, tls.as_ref()),
            ("redis+sentinel", rest) => sentinels(rest, tls.as_ref()),
            _ => Server::new(url, tls).map(Servers::One),
        };
        servers.map(|servers| Self { servers })
    }
}

/// Returns an error without the URL, and hence without the password.
fn invalid(field: &'static str, allowed: &'static str) -> ConfigError {
    let mut error = ConfigError::new("invalid address of a Redis");
    error.push(field, "not a URL of a Redis", allowed);
    error
}

/// Returns the user and the password with an `@` behind them, and the hosts.
fn split(authority: &str) -> Option<(&str, Vec<&str>)> {
    let host = authority.rfind('@').map_or(0, |at| at + 1);
    let (user, hosts) = authority.split_at(host);
    let hosts: Vec<_> = hosts.split(',').collect();
    let is_named = hosts.len() <= MAX_SERVERS && hosts.iter().all(|host| !host.is_empty());
    is_named.then_some((user, hosts))
}

fn cluster(rest: &str, tls: Option<&Tls>) -> Option<Servers> {
    // A cluster has no other database.
    let rest = rest
        .strip_suffix("/0")
        .or(rest.strip_suffix('/'))
        .unwrap_or(rest);
    let (user, hosts) = split(rest).filter(|_| !rest.contains(['/', '?', '#']))?;
    let server = |host| Server::new(&format!("redis://{user}{host}"), tls.cloned());
    let servers = hosts.into_iter().map(server).collect::<Option<_>>()?;
    Some(Servers::Cluster(Cluster::new(servers)))
}

fn sentinels(rest: &str, tls: Option<&Tls>) -> Option<Servers> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/')?;
    let (name, db) = path.split_once('/').unwrap_or((path, "0"));
    // What a sentinel accepts.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return None;
    }
    let (mut sentinel_user, mut sentinel_password) = ("", "");
    for part in query.split('&').filter(|part| !part.is_empty()) {
        // What would end the user and the password in a URL is percent-encoded.
        match part
            .split_once('=')
            .filter(|_| !part.contains(['/', '?']))?
        {
            ("sentinel_user", value) => sentinel_user = value,
            ("sentinel_pass", value) => sentinel_password = value,
            _ => return None,
        }
    }
    let (user, hosts) = split(authority)?;
    let sentinel = |host: &str| {
        let has_port = host.rsplit(']').next().is_some_and(|it| it.contains(':'));
        let port = if has_port { "" } else { ":26379" };
        let login = match (sentinel_user, sentinel_password) {
            ("", "") => String::new(),
            (user, password) => format!("{user}:{password}@"),
        };
        Server::new(&format!("redis://{login}{host}{port}"), tls.cloned())
    };
    let servers = hosts
        .iter()
        .map(|host| sentinel(host))
        .collect::<Option<_>>()?;
    let master = Server::new(&format!("redis://{user}{}/{db}", hosts[0]), tls.cloned())?;
    let sentinels = Sentinels::new(servers, name.to_owned(), master);
    Some(Servers::Sentinels(sentinels))
}

impl QuotaStore for RedisStore {
    async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
        match &self.servers {
            Servers::One(server) => server.call(&batch).await.map_err(|it| it.error),
            Servers::Cluster(cluster) => cluster.call(&batch).await,
            Servers::Sentinels(sentinels) => sentinels.call(&batch).await,
        }
    }

    fn shards(&self) -> u32 {
        match &self.servers {
            Servers::Cluster(_) => MAX_SHARDS,
            Servers::One(_) | Servers::Sentinels(_) => 1,
        }
    }

    fn clock_skew(&self) -> Option<Duration> {
        match &self.servers {
            Servers::One(server) => server.clock_skew(),
            Servers::Cluster(cluster) => cluster.clock_skew(),
            Servers::Sentinels(sentinels) => sentinels.clock_skew(),
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses, and no password.
        f.debug_tuple("RedisStore").field(&self.servers).finish()
    }
}
