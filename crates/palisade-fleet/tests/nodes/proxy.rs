//! A real Redis behind a proxy that is in the way.

use crate::{
    failures::{LIMIT, NODES, at_most, outage, quota, sum, together},
    false_redis::read_command,
    node::{Flood, Node},
};
use palisade_core::Gauge;
use palisade_testkit::{clients::wait_until, redis::RedisServer};
use parking_lot::Mutex;
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixStream},
    task::{JoinHandle, yield_now},
    time::sleep,
};

/// What the proxy does with answers.
#[derive(Clone, Copy)]
enum How {
    Pass,
    /// Keeps them, and passes nothing on any more.
    Stall,
    /// Resets the connection.
    Reset,
    /// Passes them on with a pause between bytes.
    Dribble(Duration),
    /// Passes on a half, and closes the connection.
    Truncate,
    /// Passes them on after a time.
    Delay(Duration),
    /// Answers scripts that ask for the time by an error.
    RefuseTime(&'static str),
    /// Answers scripts by an error, and does not pass them on.
    Refuse(&'static str),
    /// The same, once.
    RefuseOnce(&'static str),
}

struct Proxy {
    addr: SocketAddr,
    how: Arc<Mutex<How>>,
    opened: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(redis: &RedisServer, how: How) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (how, opened) = (Arc::new(Mutex::new(how)), Arc::<AtomicUsize>::default());
        let (its_how, its_opened) = (Arc::clone(&how), Arc::clone(&opened));
        let socket = redis.socket();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                its_opened.fetch_add(1, Relaxed);
                let (socket, how) = (socket.clone(), Arc::clone(&its_how));
                tokio::spawn(async move { pass(stream, socket, &how).await });
            }
        });
        Self {
            addr,
            how,
            opened,
            task,
        }
    }

    fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    fn set(&self, how: How) {
        *self.how.lock() = how;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(stream: TcpStream, socket: PathBuf, how: &Mutex<How>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut client = BufReader::new(stream);
    let mut redis = BufReader::new(UnixStream::connect(socket).await?);
    while let Some(words) = read_command(&mut client).await? {
        let is_script = words[0].starts_with(b"EVAL");
        let now = *how.lock();
        let refuses_time =
            || is_script && words[3 + crate::false_redis::accounts(&words)].is_empty();
        let refused = match now {
            How::Refuse(error) | How::RefuseOnce(error) => Some(error),
            How::RefuseTime(error) if refuses_time() => Some(error),
            _ => None,
        };
        let Some(error) = refused else {
            let mut command = format!("*{}\r\n", words.len()).into_bytes();
            for word in &words {
                command.extend(format!("${}\r\n", word.len()).bytes());
                command.extend(word);
                command.extend(b"\r\n");
            }
            redis.write_all(&command).await?;
            let answer = read_answer(&mut redis).await?;
            // What it does when it has the answer.
            let now = *how.lock();
            pass_answer(&mut client, &answer, now).await?;
            continue;
        };
        if is_script {
            if matches!(now, How::RefuseOnce(_)) {
                *how.lock() = How::Pass;
            }
            client.write_all(format!("-{error}\r\n").as_bytes()).await?;
        } else {
            client
                .write_all(format!("$40\r\n{}\r\n", "ab".repeat(20)).as_bytes())
                .await?;
        }
    }
    Ok(())
}

async fn pass_answer(client: &mut BufReader<TcpStream>, answer: &[u8], how: How) -> io::Result<()> {
    let closed = || io::Error::from(io::ErrorKind::ConnectionAborted);
    match how {
        How::Stall => {
            // Until the client closes the connection.
            let _ = client.read_to_end(&mut Vec::new()).await;
            return Err(closed());
        }
        How::Reset => {
            client.get_ref().set_zero_linger()?;
            return Err(closed());
        }
        How::Dribble(pause) => {
            for byte in answer {
                client.write_all(&[*byte]).await?;
                if pause.is_zero() {
                    yield_now().await;
                } else {
                    sleep(pause).await;
                }
            }
        }
        How::Truncate => {
            client.write_all(&answer[..answer.len() / 2]).await?;
            return Err(closed());
        }
        How::Delay(delay) => {
            sleep(delay).await;
            client.write_all(answer).await?;
        }
        How::Pass | How::Refuse(_) | How::RefuseOnce(_) | How::RefuseTime(_) => {
            client.write_all(answer).await?;
        }
    }
    Ok(())
}

/// Returns one answer of Redis as it is.
async fn read_answer(redis: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let (mut answer, mut left) = (Vec::new(), 1);
    while left > 0 {
        left -= 1;
        let mut line = String::new();
        if redis.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend(line.bytes());
        match (line.as_bytes()[0], line[1..].trim().parse::<usize>()) {
            (b'*', Ok(length)) => left += length,
            (b'$', Ok(length)) => {
                let start = answer.len();
                answer.resize(start + length + 2, 0);
                redis.read_exact(&mut answer[start..]).await?;
            }
            _ => {}
        }
    }
    Ok(answer)
}

/// The nodes count together, then not, while the proxy does this, and then together again.
async fn outage_by(name: &str, how: How) {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let proxy = Proxy::start(&redis, How::Pass).await;
    let fail = async |_: &mut RedisServer| proxy.set(how);
    let mend = async |_: &mut RedisServer| proxy.set(How::Pass);
    outage(name, &mut redis, &proxy.url(), fail, mend).await;
}

#[tokio::test]
async fn a_proxy_that_stalls_or_resets_is_an_outage_until_it_does_not() {
    tokio::join!(
        outage_by("a proxy that stalls", How::Stall),
        outage_by("a proxy that resets", How::Reset),
    );
}

#[tokio::test]
async fn a_proxy_that_dribbles_or_truncates_is_an_outage_until_it_does_not() {
    tokio::join!(
        outage_by(
            "a proxy that dribbles",
            How::Dribble(Duration::from_millis(20))
        ),
        outage_by("a proxy that truncates", How::Truncate),
        // An answer comes after the call that has asked for it, and before the next one.
        outage_by(
            "a proxy that is late",
            How::Delay(Duration::from_millis(120))
        ),
    );
}

#[tokio::test]
async fn an_answer_in_single_bytes_is_an_answer() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let proxy = Proxy::start(&redis, How::Dribble(Duration::ZERO)).await;
    let nodes = Node::start_all(&proxy.url(), NODES, quota());
    let flood = together(&nodes, 1).await;
    println!("single bytes: {flood:?}");
    assert!(sum(&nodes, Gauge::FleetCalls) > sum(&nodes, Gauge::FleetFailures));
}

#[tokio::test]
async fn a_redis_far_away_is_reached_though_a_connection_takes_longer_than_a_call_may() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    // Two round trips are more than the 40 ms of a call.
    let proxy = Proxy::start(&redis, How::Delay(Duration::from_millis(25))).await;
    let nodes = Node::start_all(&proxy.url(), 1, quota());
    let is_counted = || nodes[0].gauge(Gauge::FleetRoundTrip) > 0 && !nodes[0].is_alone();
    let flood = Flood::until(&nodes, 1, is_counted).await;
    println!("25 ms away: counted after {flood:?}");
    // One, but for calls that were too late.
    assert!(proxy.opened.load(Relaxed) <= 3);
    wait_until("it is reported", || {
        nodes[0].gauge(Gauge::FleetUnreported) == 0
    })
    .await;
}

#[tokio::test]
async fn a_script_that_is_not_known_is_sent_again_once() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let error = How::RefuseOnce("NOSCRIPT No matching script. Please use EVAL.");
    let proxy = Proxy::start(&redis, error).await;
    let nodes = Node::start_all(&proxy.url(), NODES, quota());
    together(&nodes, 1).await;
    assert_eq!(sum(&nodes, Gauge::FleetFailures), 0);
    assert_eq!(proxy.opened.load(Relaxed), NODES as usize);
    // A server that knows no script, ever.
    proxy.set(How::Refuse("NOSCRIPT No matching script. Please use EVAL."));
    Flood::until(&nodes, 2, || nodes.iter().all(Node::is_alone)).await;
}

#[tokio::test]
async fn with_a_redis_that_refuses_time_in_scripts_the_nodes_carry_it() {
    const ERROR: &str = "ERR This Redis command is not allowed from script";
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let proxy = Proxy::start(&redis, How::RefuseTime(ERROR)).await;
    let nodes = Node::start_all(&proxy.url(), NODES, quota());
    // Each carries the time of the server that it has asked for.
    together(&nodes, 1).await;
    assert_eq!(sum(&nodes, Gauge::FleetFailures), 0);
    for node in &nodes {
        let skew = node.gauge(Gauge::FleetClockSkew);
        assert!(skew < 50, "{skew} ms");
    }
    proxy.set(How::Refuse(ERROR));
    Flood::until(&nodes, 2, || nodes.iter().all(Node::is_alone)).await;
    let alone = Flood::of(&nodes, 3, 100).await;
    println!("not allowed from script: {alone:?}");
    assert!(
        (2 * LIMIT..=at_most(2, alone.took)).contains(&alone.served),
        "{alone:?}"
    );
    assert_eq!(sum(&nodes, Gauge::FleetAlone), u64::from(NODES));
    let texts = nodes[0].texts();
    assert!(texts.contains("not allowed from script"), "{texts}");
}
