//! One Redis server. The only file that uses its client.

use crate::{Answer, Answers, Batch, StoreError, bounded::Bounded};
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

/// One server that runs the script. It has one connection, and opens another one when that one
/// fails, or when a call is dropped.
pub(crate) struct Server {
    endpoint: Arc<Endpoint>,
    connection: Mutex<Option<Arc<Connection>>>,
    /// The task that opens a connection, if one does. It outlives the call that has started it: a
    /// server far away would otherwise never be reached, because a call has less time than the
    /// round trips take that open a connection.
    opening: AsyncMutex<JoinSet<Result<Connection, RedisError>>>,
    /// The clock of the server, if scripts are not told its time.
    clock: Mutex<Option<ServerClock>>,
    /// Held while the clock is read again: one call does it, for all of them.
    reading: AsyncMutex<()>,
}

/// A call without an answer.
pub(crate) struct CallError {
    pub(crate) error: StoreError,
    /// The server that holds the accounts, by the answer of this one.
    pub(crate) moved_to: Option<(String, u16)>,
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
struct Endpoint {
    addr: ConnectionAddr,
    settings: RedisConnectionInfo,
    tls: Option<Tls>,
}

/// How the certificate of the server is verified.
#[cfg(feature = "rustls")]
pub(crate) type Tls = tokio_rustls::TlsConnector;
#[cfg(not(feature = "rustls"))]
#[derive(Clone)]
pub(crate) enum Tls {}

/// An open connection.
struct Connection {
    inner: MultiplexedConnection,
    /// The script, as Redis calls it, if it is loaded.
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
pub(crate) const CONNECTION_WITHIN: Duration = Duration::from_millis(25);

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

impl Server {
    /// Creates the server at this URL, `redis://` or `redis+unix://`. Connects when it is called
    /// for the first time. `None` if the URL is invalid: the error of the client may quote it, and
    /// hence the password.
    pub(crate) fn new(url: &str, tls: Option<Tls>) -> Option<Self> {
        let info = url.into_connection_info().ok()?;
        let addr = info.addr().clone();
        if !matches!(addr, ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_)) {
            return None;
        }
        // What is not asked for need not be allowed.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        Some(Self::of(Endpoint {
            addr,
            settings,
            tls,
        }))
    }

    fn of(endpoint: Endpoint) -> Self {
        Self {
            endpoint: Arc::new(endpoint),
            connection: Mutex::new(None),
            opening: AsyncMutex::default(),
            clock: Mutex::new(None),
            reading: AsyncMutex::default(),
        }
    }

    /// Returns a server at another address that is reached in the same way.
    pub(crate) fn at(&self, (host, port): (String, u16)) -> Self {
        Self::of(Endpoint {
            addr: ConnectionAddr::Tcp(host, port),
            settings: self.endpoint.settings.clone(),
            tls: self.endpoint.tls.clone(),
        })
    }

    /// Returns the host and the port, if it is reached by TCP.
    pub(crate) fn tcp_addr(&self) -> Option<(&str, u16)> {
        match &self.endpoint.addr {
            ConnectionAddr::Tcp(host, port) => Some((host, *port)),
            _ => None,
        }
    }

    /// Asks a sentinel for the address of the master with this name.
    pub(crate) async fn master(&self, name: &str) -> Result<(String, u16), StoreError> {
        let endpoint = &*self.endpoint;
        let found = timeout(OPEN_WITHIN, endpoint.master(name)).await;
        found
            .unwrap_or_else(|late| Err(io::Error::from(late).into()))
            .map_err(|error| StoreError::unsent(endpoint.describe(&error)))
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
                    opening.spawn(Arc::clone(&self.endpoint).open());
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

impl Endpoint {
    /// Opens a connection and loads the script.
    async fn open(self: Arc<Self>) -> Result<Connection, RedisError> {
        let opened = timeout(OPEN_WITHIN, async {
            let mut connection = self.connect().await?;
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(SCRIPT);
            connection.digest = load.query_async(&mut connection.inner.clone()).await?;
            connection.budget.store(MAX_ANSWER, Relaxed);
            Ok(connection)
        });
        let late = |late| Err(io::Error::from(late).into());
        opened.await.unwrap_or_else(late)
    }

    async fn master(&self, name: &str) -> Result<(String, u16), RedisError> {
        let connection = self.connect().await?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("get-master-addr-by-name").arg(name);
        let found: Option<(String, u16)> = ask.query_async(&mut connection.inner.clone()).await?;
        let text = "the sentinel does not know the master";
        let found = found.filter(|(host, _)| is_host(host));
        found.ok_or_else(|| io::Error::other(text).into())
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
        Ok(Connection {
            inner,
            digest: String::new(),
            budget,
            task: tokio::spawn(task).abort_handle(),
        })
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
    server: &'a Server,
    connection: &'a Arc<Connection>,
    is_answered: bool,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.server.close(self.connection);
        }
    }
}

impl Server {
    /// Charges the accounts of `batch`, as [`QuotaStore::call`](crate::QuotaStore::call).
    pub(crate) async fn call(&self, batch: &Batch) -> Result<Answers, CallError> {
        let endpoint = &*self.endpoint;
        let connection = timeout(CONNECTION_WITHIN, self.connection())
            .await
            .unwrap_or_else(|late| Err(io::Error::from(late).into()))
            .map_err(|error| StoreError::unsent(endpoint.describe(&error)))?;
        let mut on_drop = CloseOnDrop {
            server: self,
            connection: &connection,
            is_answered: false,
        };
        let mut time = self.time(&connection).await?;
        let mut answer = connection.call(batch, time).await;
        if time.is_none() && answer.as_ref().is_err_and(refuses_time) {
            // The first thing that the script does, so that it has charged nothing.
            time = Some(self.read_time(&connection).await?);
            answer = connection.call(batch, time).await;
        }
        let answer = answer.map_err(|error| {
            let moved_to = moved_to(&error, self.tcp_addr());
            // That is an answer, in order.
            on_drop.is_answered = moved_to.is_some();
            let length = error.detail().map_or(0, str::len);
            connection.budget.fetch_add(length, Relaxed);
            let text = endpoint.describe(&error);
            let error = if has_not_run(&error) {
                StoreError::unsent(text)
            } else {
                StoreError::unanswered(text)
            };
            CallError { error, moved_to }
        })?;
        let (answers, length) = parse(&answer, batch).ok_or_else(|| {
            StoreError::unanswered("an answer of another form than that of the script")
        })?;
        connection.budget.fetch_add(length, Relaxed);
        on_drop.is_answered = true;
        Ok(answers)
    }

    pub(crate) fn clock_skew(&self) -> Option<Duration> {
        self.clock.lock().map(|clock| clock.skew)
    }
}

/// Returns the address of the server that holds the accounts, if an error names it.
fn moved_to(error: &RedisError, asked: Option<(&str, u16)>) -> Option<(String, u16)> {
    if error.kind() != ErrorKind::Server(ServerErrorKind::Moved) {
        return None;
    }
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    // A server that does not know its own host leaves it out.
    let host = match host {
        "" => asked?.0,
        host => host,
    };
    is_host(host).then_some((host.to_owned(), port.parse().ok()?))
}

/// Returns whether this may be a host: a server may write anything in its place.
fn is_host(host: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    (1..=255).contains(&host.len()) && host.bytes().all(is_allowed)
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        let moved_to = None;
        Self { error, moved_to }
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

impl Server {
    /// Returns the time of the server in microseconds, if scripts are not told it.
    async fn time(&self, connection: &Connection) -> Result<Option<u64>, StoreError> {
        let known = || {
            let clock = *self.clock.lock();
            clock.map(|clock| (clock.read_at.elapsed() < READ_TIME_EVERY).then(|| clock.now()))
        };
        match known() {
            None => return Ok(None),
            Some(Some(now)) => return Ok(Some(now)),
            Some(None) => {}
        }
        let _turn = self.reading.lock().await;
        // Another call may have read it meanwhile.
        if let Some(Some(now)) = known() {
            return Ok(Some(now));
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
            let text = self.endpoint.describe(&error);
            StoreError::unsent(text)
        })?;
        let (seconds, micros) = time;
        connection.budget.fetch_add(time_length(time), Relaxed);
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
impl Server {
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
        // Without any key, each server of a cluster would answer, also one that does not hold the
        // shard, and a replica.
        let has_nodes = batch.node.is_some() || batch.asks.is_empty();
        command
            .arg(script)
            .arg(batch.asks.len() + usize::from(has_nodes));
        let prefix = format!("palisade:{{{}:{}}}:", batch.fleet, batch.shard);
        for ask in &batch.asks {
            command.arg(format!("{prefix}{:032x}", ask.account));
        }
        if has_nodes {
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

/// Returns the bytes of the answer to `TIME`: two texts in an array.
fn time_length((seconds, micros): (u64, u64)) -> usize {
    let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 1;
    // Each with its own length and two line ends before it and behind it.
    let text = |digits_of_text: usize| 1 + digits(digits_of_text as u64) + 2 + digits_of_text + 2;
    "*2\r\n".len() + text(digits(seconds)) + text(digits(micros))
}

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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the settings, which have the password.
        fmt::Display::fmt(&self.endpoint.addr, f)
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
            shard: 0,
            asks: vec![ask; 2],
            node: None,
        };
        let (answers, length) = parse(&Value::Array(numbers.to_vec()), &batch).unwrap();
        assert_eq!(length, "*5\r\n:3\r\n:0\r\n:-1\r\n:0\r\n:0\r\n".len());
        assert_eq!(answers.accounts[1], Answer::Unusable);
        for (seconds, micros) in [(1_795_922_802, 84_427), (1, 0), (9_999_999_999, 999_999)] {
            let text = |number: u64| format!("${}\r\n{number}\r\n", number.to_string().len());
            let time = format!("*2\r\n{}{}", text(seconds), text(micros));
            assert_eq!(time_length((seconds, micros)), time.len(), "{time}");
        }
    }
}
