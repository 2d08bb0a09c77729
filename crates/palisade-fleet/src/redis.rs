//! The store on Redis.

use crate::{Answer, Answers, Batch, QuotaStore, StoreError, bounded::Bounded};
use palisade_core::ConfigError;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, ServerErrorKind, Value, aio::MultiplexedConnection,
};
use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex as AsyncMutex,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};

/// A [`QuotaStore`] on one Redis or Valkey: what [`Fleet::redis`](crate::Fleet::redis) counts on.
/// Tested with Redis 7.0.15; the script uses only commands of Redis 6.2.
///
/// It has one connection, and opens another one when that one fails, or when a call is dropped. It
/// needs these rights: `+evalsha +eval +script|load +time +get +set`, and all keys that begin with
/// `palisade:`; for another database than 0 also `+select`; and if nodes are
/// [counted](crate::FleetBuilder::count_nodes), `+zadd +zremrangebyscore +zcard +pexpire`. No
/// password is in its `Debug` form or in an error.
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
    server: Arc<Server>,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The task that opens a connection, if one does. It outlives the call that has started it: a
    /// server far away would otherwise never be reached, because a call has less time than the
    /// round trips take that open a connection.
    opening: AsyncMutex<JoinSet<Result<Connection, RedisError>>>,
    /// The clock of the server, if scripts are not told its time.
    clock: Mutex<Option<ServerClock>>,
}

/// The clock of a server, by that of this node.
#[derive(Clone, Copy, Debug)]
struct ServerClock {
    /// When it was read, and what it was then, in microseconds.
    read_at: Instant,
    micros: u64,
    /// By how much it has moved since it was read before.
    skew: Duration,
}

/// The address of the server, and the user and the password for it.
struct Server {
    addr: ConnectionAddr,
    settings: RedisConnectionInfo,
    tls: Option<Tls>,
}

/// How the certificate of the server is verified.
#[cfg(feature = "rustls")]
type Tls = tokio_rustls::TlsConnector;
#[cfg(not(feature = "rustls"))]
enum Tls {}

/// An open connection on which the script is known.
struct Connection {
    inner: MultiplexedConnection,
    /// The script, as Redis calls it.
    digest: String,
    /// The bytes that may still arrive before the next complete answer, which adds its own.
    budget: Arc<AtomicUsize>,
    task: AbortHandle,
}

const SCRIPT: &str = include_str!("script.lua");

/// The most bytes without a complete answer. The longest answer has 128 times two numbers: 6 KiB.
/// What is no answer counts for as long as the connection is open: the client keeps some of it.
const MAX_ANSWER: usize = 64 << 10;

/// How long a call waits for a connection. Beyond it the call has failed, and was not sent.
const CONNECTION_WITHIN: Duration = Duration::from_millis(25);

/// How long it may take to open a connection. Shorter than the time between two tries of a server
/// that does not answer, so that each of them connects anew.
const OPEN_WITHIN: Duration = Duration::from_millis(500);

/// How often the time of the server is read, if scripts are not told it.
const READ_TIME_EVERY: Duration = Duration::from_secs(1);
/// How much the clock of the server may move in that time.
const MAX_SKEW: Duration = Duration::from_millis(50);

/// The most characters of an error that a server has sent.
const MAX_ERROR: usize = 200;

/// A retry longer than this is the answer of a store that errs. The longest debt of a quota is 12
/// days.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60 * 24 * 365);

impl RedisStore {
    /// Creates a store on the Redis at this URL. Connects when it is called for the first time.
    pub(crate) fn new(url: &str) -> Result<Self, ConfigError> {
        Self::with_tls(url, None)
    }

    /// Creates a store that is reached by TLS.
    #[cfg(feature = "rustls")]
    pub(crate) fn over_tls(
        url: &str,
        config: Arc<tokio_rustls::rustls::ClientConfig>,
    ) -> Result<Self, ConfigError> {
        let Some(rest) = url.strip_prefix("rediss://") else {
            let mut error = ConfigError::new("invalid address of a Redis");
            let allowed = "rediss://[user:password@]host[:port][/db]";
            error.push("redis_over_tls", "not a URL of a Redis with TLS", allowed);
            return Err(error);
        };
        Self::with_tls(&format!("redis://{rest}"), Some(config.into()))
    }

    fn with_tls(url: &str, tls: Option<Tls>) -> Result<Self, ConfigError> {
        let mut error = ConfigError::new("invalid address of a Redis");
        let allowed = "redis://[user:password@]host[:port][/db] or redis+unix:///path, and for \
                       rediss:// Fleet::redis_over_tls, with the feature rustls";
        // The error of the client may quote the URL, and hence the password.
        let Ok(info) = url.into_connection_info() else {
            error.push("redis", "not a URL of a Redis", allowed);
            return Err(error);
        };
        let addr = info.addr().clone();
        if !matches!(addr, ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_)) {
            error.push("redis", format!("a URL of {addr}"), allowed);
            return Err(error);
        }
        // What is not asked for need not be allowed.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        Ok(Self {
            server: Arc::new(Server {
                addr,
                settings,
                tls,
            }),
            connection: Mutex::new(None),
            opening: AsyncMutex::default(),
            clock: Mutex::new(None),
        })
    }

    /// Returns the open connection, or a new one.
    async fn connection(&self) -> Result<Arc<Connection>, RedisError> {
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let mut opening = self.opening.lock().await;
        // Another call may have opened it meanwhile.
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let closed = || RedisError::from(io::Error::from(io::ErrorKind::ConnectionAborted));
        // One that was opened since the last call. What has failed since is tried again.
        let opened = match opening.try_join_next() {
            Some(Ok(Ok(opened))) => opened,
            _ => {
                if opening.is_empty() {
                    opening.spawn(Arc::clone(&self.server).open());
                }
                let ended = opening.join_next().await.and_then(Result::ok);
                ended.unwrap_or_else(|| Err(closed()))?
            }
        };
        *self.connection.lock() = Some(Arc::new(opened));
        self.open().ok_or_else(closed)
    }

    /// Returns the connection if it is open. The server may have closed it while it was idle.
    fn open(&self) -> Option<Arc<Connection>> {
        let mut present = self.connection.lock();
        if present.as_ref().is_some_and(|it| it.task.is_finished()) {
            *present = None;
        }
        present.clone()
    }

    /// Closes a connection, unless another one has taken its place.
    fn close(&self, connection: &Arc<Connection>) {
        let mut present = self.connection.lock();
        if present
            .as_ref()
            .is_some_and(|it| Arc::ptr_eq(it, connection))
        {
            *present = None;
        }
    }
}

impl Server {
    async fn open(self: Arc<Self>) -> Result<Connection, RedisError> {
        let opened = timeout(OPEN_WITHIN, self.connect()).await;
        opened.unwrap_or_else(|late| Err(io::Error::from(late).into()))
    }

    async fn connect(&self) -> Result<Connection, RedisError> {
        match &self.addr {
            ConnectionAddr::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    None => self.connect_over(stream).await,
                    #[cfg(feature = "rustls")]
                    Some(tls) => {
                        let name = host.clone().try_into().map_err(io::Error::other)?;
                        self.connect_over(tls.connect(name, stream).await?).await
                    }
                    #[cfg(not(feature = "rustls"))]
                    Some(never) => match *never {},
                }
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => {
                self.connect_over(tokio::net::UnixStream::connect(path).await?)
                    .await
            }
            _ => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        }
    }

    async fn connect_over<T>(&self, stream: T) -> Result<Connection, RedisError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let budget = Arc::new(AtomicUsize::new(MAX_ANSWER));
        let stream = Bounded {
            stream,
            budget: Arc::clone(&budget),
        };
        // Timeouts are those of the caller.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None);
        let (inner, task) =
            MultiplexedConnection::new_with_config(&self.settings, stream, config).await?;
        let task = tokio::spawn(task).abort_handle();
        let mut connection = Connection {
            inner,
            digest: String::new(),
            budget,
            task,
        };
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(SCRIPT);
        connection.digest = load.query_async(&mut connection.inner.clone()).await?;
        connection.budget.store(MAX_ANSWER, Relaxed);
        Ok(connection)
    }

    /// Returns what to say of an error. A server may repeat in it what was sent, such as the
    /// password of a command that it does not know, and may write as much as it likes.
    fn describe(&self, error: &RedisError) -> String {
        let mut text = error.to_string();
        if let Some(arguments) = text.find("with args beginning with") {
            text.truncate(arguments);
        }
        if let Some(password) = self.settings.password().filter(|it| !it.is_empty()) {
            text = text.replace(password, "..");
        }
        text.chars()
            .take(MAX_ERROR)
            .flat_map(char::escape_debug)
            .collect()
    }
}

/// Closes the connection of a call without a right answer. The answer may come yet, the connection
/// may be dead, or the server may have become a replica since.
struct CloseOnDrop<'a> {
    store: &'a RedisStore,
    connection: &'a Arc<Connection>,
    is_answered: bool,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.store.close(self.connection);
        }
    }
}

impl QuotaStore for RedisStore {
    async fn call(&self, batch: Batch) -> Result<Answers, StoreError> {
        let server = &*self.server;
        let connection = timeout(CONNECTION_WITHIN, self.connection())
            .await
            .unwrap_or_else(|late| Err(io::Error::from(late).into()))
            .map_err(|error| StoreError::unsent(server.describe(&error)))?;
        let mut on_drop = CloseOnDrop {
            store: self,
            connection: &connection,
            is_answered: false,
        };
        let mut time = self.time(&connection).await?;
        let mut answer = connection.call(&batch, time).await;
        if time.is_none() && answer.as_ref().is_err_and(refuses_time) {
            // The first thing that the script does, so that it has charged nothing.
            time = Some(self.read_time(&connection).await?);
            answer = connection.call(&batch, time).await;
        }
        let answer = answer.map_err(|error| {
            let text = server.describe(&error);
            if has_not_run(&error) {
                StoreError::unsent(text)
            } else {
                StoreError::unanswered(text)
            }
        })?;
        let (answers, length) = parse(&answer, &batch).ok_or_else(|| {
            StoreError::unanswered("an answer of another form than that of the script")
        })?;
        connection.budget.fetch_add(length, Relaxed);
        on_drop.is_answered = true;
        Ok(answers)
    }

    fn clock_skew(&self) -> Option<Duration> {
        self.clock.lock().map(|clock| clock.skew)
    }
}

/// Returns whether a server does not let scripts ask for the time, as serverless Redis does.
fn refuses_time(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("not allowed from script")
}

/// Returns whether an error says that the script has charged nothing.
fn has_not_run(error: &RedisError) -> bool {
    use ServerErrorKind as Kind;
    match error.kind() {
        ErrorKind::Server(
            Kind::NoScript
            | Kind::BusyLoading
            | Kind::ReadOnly
            | Kind::NoPerm
            | Kind::MasterDown
            | Kind::ClusterDown
            | Kind::CrossSlot
            | Kind::Moved
            | Kind::Ask
            | Kind::TryAgain,
        ) => true,
        // The script says the first itself.
        _ => matches!(error.code(), Some("UNCHARGED" | "BUSY" | "NOAUTH")),
    }
}

impl RedisStore {
    /// Returns the time of the server in microseconds, if scripts are not told it.
    async fn time(&self, connection: &Connection) -> Result<Option<u64>, StoreError> {
        let Some(clock) = *self.clock.lock() else {
            return Ok(None);
        };
        if clock.read_at.elapsed() < READ_TIME_EVERY {
            return Ok(Some(clock.now()));
        }
        self.read_time(connection).await.map(Some)
    }

    /// Reads the time of the server.
    ///
    /// # Errors
    ///
    /// If it has moved too much since it was read before, or takes too long to be read: debts would
    /// be paid too early or too late.
    async fn read_time(&self, connection: &Connection) -> Result<u64, StoreError> {
        let sent = Instant::now();
        let mut inner = connection.inner.clone();
        let time = redis::cmd("TIME").query_async(&mut inner).await;
        let half = sent.elapsed() / 2;
        let time: (u64, u64) = time.map_err(|error| {
            let text = self.server.describe(&error);
            StoreError::unsent(text)
        })?;
        let (seconds, micros) = time;
        connection.budget.fetch_add(TIME_LENGTH, Relaxed);
        let mut clock = ServerClock {
            read_at: sent + half,
            micros: seconds.saturating_mul(1_000_000).saturating_add(micros),
            skew: half,
        };
        let mut present = self.clock.lock();
        if let Some(before) = *present {
            let moved = clock.micros.abs_diff(before.at(clock.read_at));
            clock.skew = Duration::from_micros(moved).max(half);
        }
        *present = Some(clock);
        if clock.skew > MAX_SKEW {
            let text = format!("the clock of the store has moved by {:?}", clock.skew);
            return Err(StoreError::unsent(text));
        }
        Ok(clock.now())
    }
}

#[cfg(test)]
impl RedisStore {
    /// Runs the script at a time of the caller.
    pub(crate) async fn call_at(&self, batch: &Batch, time: u64) -> Answers {
        let connection = self.connection().await.unwrap();
        let answer = connection.call(batch, Some(time)).await.unwrap();
        let (answers, length) = parse(&answer, batch).unwrap();
        connection.budget.fetch_add(length, Relaxed);
        answers
    }
}

impl ServerClock {
    /// Returns the time of the server at an instant, in microseconds.
    fn at(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.read_at);
        self.micros.saturating_add(micros(since))
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }
}

impl Connection {
    /// Runs the script, at `time` if scripts are not told the time.
    async fn call(&self, batch: &Batch, time: Option<u64>) -> Result<Value, RedisError> {
        let answer = self.run("EVALSHA", &self.digest, batch, time).await;
        match answer {
            // It has not run: the script was flushed, or this is another server.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.run("EVAL", SCRIPT, batch, time).await
            }
            answer => answer,
        }
    }

    async fn run(
        &self,
        command: &str,
        script: &str,
        batch: &Batch,
        time: Option<u64>,
    ) -> Result<Value, RedisError> {
        let mut command = redis::cmd(command);
        let keys = batch.asks.len() + usize::from(batch.node.is_some());
        command.arg(script).arg(keys);
        let prefix = format!("palisade:{{{}:0}}:", batch.fleet);
        for ask in &batch.asks {
            command.arg(format!("{prefix}{:032x}", ask.account));
        }
        if batch.node.is_some() {
            command.arg(format!("{prefix}nodes"));
        }
        let or_none = |number: Option<u64>| number.map(|it| it.to_string()).unwrap_or_default();
        command.arg(or_none(time)).arg(or_none(batch.node));
        for ask in &batch.asks {
            command
                .arg(micros(ask.period))
                .arg(ask.burst)
                .arg(ask.admitted)
                .arg(ask.asked)
                .arg(ask.fewest)
                .arg(micros(ask.longest));
        }
        command.query_async(&mut self.inner.clone()).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The fewest bytes of the answer to `TIME`.
const TIME_LENGTH: usize = "*2\r\n$10\r\n1795922802\r\n$1\r\n0\r\n".len();

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Returns the answers of the script, two numbers for each account and the number of nodes, and the
/// bytes that they take.
fn parse(answer: &Value, batch: &Batch) -> Option<(Answers, usize)> {
    let Value::Array(numbers) = answer else {
        return None;
    };
    let (pairs, [Value::Int(nodes)]) = numbers.as_chunks::<2>() else {
        return None;
    };
    if pairs.len() != batch.asks.len() {
        return None;
    }
    let answer = |pair: &[Value; 2]| match pair {
        [Value::Int(-1), Value::Int(_)] => Some(Answer::Unusable),
        [Value::Int(cells), Value::Int(wait)] => Some(Answer::Granted {
            cells: u32::try_from(*cells).ok()?,
            wait: Duration::from_micros(u64::try_from(*wait).ok()?).min(MAX_WAIT),
        }),
        _ => None,
    };
    let accounts = pairs.iter().map(answer).collect::<Option<_>>()?;
    // 0 if the set of nodes cannot be used.
    let nodes = u32::try_from(*nodes).ok().filter(|nodes| *nodes > 0);
    let lengths = numbers.iter().map(|number| match number {
        Value::Int(number) => length(*number),
        _ => 0,
    });
    let own = i64::try_from(numbers.len()).map_or(0, length);
    let length = own + lengths.sum::<usize>();
    Some((Answers::new(accounts, batch.node.and(nodes)), length))
}

/// Returns the number of bytes that a number takes, with its type before and a line end after it.
fn length(number: i64) -> usize {
    let digits = number.unsigned_abs().checked_ilog10().unwrap_or(0) as usize + 1;
    1 + usize::from(number < 0) + digits + 2
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the settings, which have the password.
        f.debug_struct("RedisStore")
            .field("addr", &self.server.addr.to_string())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ask;

    #[test]
    fn the_length_of_an_answer_is_that_of_its_bytes() {
        for number in [0, 1, 9, 10, 99, 100, -1, -10, i64::MAX, i64::MIN] {
            assert_eq!(length(number), format!(":{number}\r\n").len(), "{number}");
        }
        let numbers = [3, 0, -1, 0, 0].map(Value::Int);
        let ask = Ask {
            account: 1,
            period: Duration::from_secs(1),
            burst: 1,
            admitted: 0,
            asked: 0,
            fewest: 1,
            longest: Duration::from_secs(1),
        };
        let batch = Batch {
            fleet: Arc::from("fleet"),
            asks: vec![ask; 2],
            node: None,
        };
        let (answers, length) = parse(&Value::Array(numbers.to_vec()), &batch).unwrap();
        assert_eq!(length, "*5\r\n:3\r\n:0\r\n:-1\r\n:0\r\n:0\r\n".len());
        assert_eq!(answers.accounts[1], Answer::Unusable);
        let time = "*2\r\n$10\r\n1795922802\r\n$6\r\n084427\r\n";
        assert!(TIME_LENGTH <= time.len() && TIME_LENGTH > time.len() - 6);
    }
}
