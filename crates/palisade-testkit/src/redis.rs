//! A Redis of a test's own, on a Unix socket in a temporary folder.

use crate::clients::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs, io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// A `redis-server` without a port, a file or another user. Killed when it is dropped, also by a
/// panic.
#[derive(Debug)]
pub struct RedisServer {
    folder: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl RedisServer {
    /// Starts a server. `None`, with a line that says so, if there is no `redis-server` on this
    /// machine and `PALISADE_REQUIRES_REDIS` is not set.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a server with further options, such as `--maxmemory`.
    pub async fn start_with(options: &[&str]) -> Option<Self> {
        let mut server = Self::new()?;
        let own = ["--port", "0", "--save", "", "--appendonly", "no", "--dir"];
        server.args = own.map(str::to_owned).to_vec();
        server.args.push(server.folder.display().to_string());
        let socket = server.socket().display().to_string();
        server.args.extend(["--unixsocket".to_owned(), socket]);
        server.args.extend(options.iter().map(ToString::to_string));
        server.restart().await;
        Some(server)
    }

    /// Starts a sentinel on a port of 127.0.0.1. It watches the master `watched` on another one,
    /// and decides alone that this is dead, after half a second.
    pub async fn start_sentinel(port: u16, master: u16) -> Option<Self> {
        let mut server = Self::new()?;
        let config = server.folder.join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {port}\nunixsocket {socket}\ndir {folder}\n\
             sentinel monitor watched 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds watched 500\n\
             sentinel failover-timeout watched 2000\n",
            socket = server.socket().display(),
            folder = server.folder.display(),
        );
        fs::write(&config, text).unwrap();
        server.args = vec![config.display().to_string(), "--sentinel".to_owned()];
        server.restart().await;
        Some(server)
    }

    /// Creates a folder for a server that is not started.
    fn new() -> Option<Self> {
        if Command::new("redis-server")
            .arg("--version")
            .output()
            .is_err()
        {
            let is_required = std::env::var_os("PALISADE_REQUIRES_REDIS").is_some();
            assert!(!is_required, "there is no redis-server");
            println!("skipped: there is no redis-server (Debian: redis-server)");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("palisade-redis-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Some(Self {
            folder,
            args: Vec::new(),
            child: None,
        })
    }

    /// Starts the server again, on the same socket, with nothing stored. Kills it first.
    pub async fn restart(&mut self) {
        self.kill();
        let child = Command::new("redis-server")
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let is_there = || std::os::unix::net::UnixStream::connect(self.socket()).is_ok();
        wait_until("redis-server has started", is_there).await;
    }

    /// Kills the server. What connects is refused.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.signal(&child, Signal::CONT);
            child.kill().unwrap();
            child.wait().unwrap();
            let _ = fs::remove_file(self.socket());
        }
    }

    /// Stops the server: it accepts connections, and answers nothing.
    pub fn pause(&self) {
        self.child
            .iter()
            .for_each(|it| self.signal(it, Signal::STOP));
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.child
            .iter()
            .for_each(|it| self.signal(it, Signal::CONT));
    }

    fn signal(&self, child: &Child, signal: Signal) {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Sends a command on a connection of its own. Returns the start of the answer as Redis writes
    /// it.
    pub async fn command(&self, words: &[&str]) -> String {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        let answer = async {
            let mut stream = UnixStream::connect(self.socket()).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = vec![0; 64 << 10];
            let length = stream.read(&mut answer).await?;
            io::Result::Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        };
        timeout(PATIENCE, answer).await.unwrap().unwrap()
    }
}

/// Returns a port of 127.0.0.1 that is free. Another process may take it before it is used.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
