//! A server that speaks the protocol of Redis, and answers what a test wants.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::sleep,
};

/// What a false Redis does when it is called.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Answers this.
    Bytes(Vec<u8>),
    /// Answers this, and closes the connection.
    Last(Vec<u8>),
    /// Answers the first part, and then the second one for ever.
    Endless(&'static [u8], &'static [u8]),
    /// Answers this, one byte a second.
    Slow(Vec<u8>),
    /// Answers this after the answer of the next command.
    Later(Vec<u8>),
    /// Never answers.
    Nothing,
}

/// A false Redis on a port of loopback.
pub(crate) struct FalseRedis {
    addr: SocketAddr,
    task: JoinHandle<()>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    opened: AtomicUsize,
    calls: AtomicUsize,
    /// The most bytes that were written on one connection.
    most: AtomicUsize,
}

impl FalseRedis {
    /// Answers all commands that begin with `which` by `reply`, and the others as Redis does.
    pub(crate) fn start<F>(which: &'static str, reply: F) -> Self
    where
        F: Fn(&[Vec<u8>]) -> Reply + Clone + Send + Sync + 'static,
    {
        let socket = TcpSocket::new_v4().unwrap();
        // So that what is written has also been read, but for little.
        socket.set_send_buffer_size(8 << 10).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(64).unwrap();
        let counts = Arc::<Counts>::default();
        Self {
            addr: listener.local_addr().unwrap(),
            task: tokio::spawn(accept(listener, Arc::clone(&counts), which, reply)),
            counts,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Returns the number of connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Relaxed)
    }

    /// Returns the number of connections so far.
    pub(crate) fn opened(&self) -> usize {
        self.counts.opened.load(Relaxed)
    }

    /// Returns the number of scripts that were called so far.
    pub(crate) fn calls(&self) -> usize {
        self.counts.calls.load(Relaxed)
    }

    /// Returns the most bytes that one connection has taken.
    pub(crate) fn most(&self) -> usize {
        self.counts.most.load(Relaxed)
    }
}

impl Drop for FalseRedis {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept<F>(listener: TcpListener, counts: Arc<Counts>, which: &'static str, reply: F)
where
    F: Fn(&[Vec<u8>]) -> Reply + Clone + Send + Sync + 'static,
{
    while let Ok((stream, _)) = listener.accept().await {
        let (counts, reply) = (Arc::clone(&counts), reply.clone());
        tokio::spawn(async move {
            counts.opened.fetch_add(1, Relaxed);
            counts.open.fetch_add(1, Relaxed);
            let _ = serve(stream, &counts, which, reply).await;
            counts.open.fetch_sub(1, Relaxed);
        });
    }
}

async fn serve<F>(stream: TcpStream, counts: &Counts, which: &str, reply: F) -> io::Result<()>
where
    F: Fn(&[Vec<u8>]) -> Reply,
{
    let mut stream = BufReader::new(stream);
    let (mut written, mut later) = (0, Vec::new());
    while let Some(words) = read_command(&mut stream).await? {
        let is_script = words[0].starts_with(b"EVAL");
        counts.calls.fetch_add(is_script.into(), Relaxed);
        let answer = if words[0].starts_with(which.as_bytes()) {
            reply(&words)
        } else {
            Reply::Bytes(honest(&words))
        };
        match answer {
            Reply::Bytes(bytes) => {
                stream.write_all(&bytes).await?;
                stream.write_all(&std::mem::take(&mut later)).await?;
            }
            Reply::Last(bytes) => return stream.write_all(&bytes).await,
            Reply::Endless(first, rest) => {
                stream.write_all(first).await?;
                loop {
                    written += stream.write(rest).await?;
                    counts.most.fetch_max(written, Relaxed);
                }
            }
            Reply::Slow(bytes) => {
                for byte in bytes {
                    stream.write_all(&[byte]).await?;
                    // Ends when the client does.
                    tokio::select! {
                        () = sleep(Duration::from_secs(1)) => {}
                        _ = stream.fill_buf() => return Ok(()),
                    }
                }
            }
            Reply::Later(bytes) => later = bytes,
            Reply::Nothing => {}
        }
    }
    Ok(())
}

/// Returns the words of the next command.
pub(crate) async fn read_command<T>(stream: &mut BufReader<T>) -> io::Result<Option<Vec<Vec<u8>>>>
where
    BufReader<T>: AsyncBufReadExt + AsyncReadExt + Unpin,
{
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = Vec::new();
    for _ in 0..line[1..].trim().parse::<usize>().unwrap() {
        line.clear();
        stream.read_line(&mut line).await?;
        let mut word = vec![0; line[1..].trim().parse::<usize>().unwrap() + 2];
        stream.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Ok(Some(words))
}

/// Returns the number of accounts that a call of the script is about.
pub(crate) fn accounts(words: &[Vec<u8>]) -> usize {
    // Six numbers of each, after the command, the script, the keys, the time and the node.
    let keys: usize = String::from_utf8_lossy(&words[2]).parse().unwrap();
    (words.len() - keys - 5) / 6
}

/// Returns an answer of the script: the same two numbers for each of so many accounts, and no
/// nodes.
pub(crate) fn numbers(accounts: usize, cells: &str, wait: &str) -> Vec<u8> {
    let pair = format!(":{cells}\r\n:{wait}\r\n");
    format!("*{}\r\n{}:0\r\n", 2 * accounts + 1, pair.repeat(accounts)).into()
}

/// Returns what Redis answers, to a script that grants all that it is asked for.
pub(crate) fn honest(words: &[Vec<u8>]) -> Vec<u8> {
    match &words[0][..] {
        b"SCRIPT" => format!("$40\r\n{}\r\n", "ab".repeat(20)).into(),
        b"EVALSHA" | b"EVAL" => numbers(accounts(words), "1000000", "0"),
        _ => b"+OK\r\n".to_vec(),
    }
}
