//! A Redis that the servers of a fleet count on.

use std::{
    env, fs,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio, id},
};

/// A `redis-server` on a Unix socket in a temporary folder. Dropping this kills it.
#[derive(Debug)]
pub(crate) struct Redis(Child);

impl Redis {
    /// Starts a server. `None` if there is no `redis-server` on this machine.
    pub(crate) fn start() -> io::Result<Option<Self>> {
        fs::create_dir_all(folder(id()))?;
        let started = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(folder(id()))
            .args(["--unixsocket", "redis.sock"])
            .stdout(Stdio::piped())
            .spawn();
        match started {
            Ok(mut child) => {
                let log = child.stdout.take();
                let redis = Self(child);
                let lines = log.map(BufReader::new).into_iter().flat_map(BufRead::lines);
                let mut lines = lines.map_while(Result::ok);
                // The log ends with the process.
                if lines.any(|line| line.contains("eady to accept connections")) {
                    Ok(Some(redis))
                } else {
                    Err(io::Error::other("redis-server does not start"))
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns the URL of the server that the parent of this process has started.
pub(crate) fn url_of_parent() -> String {
    let folder = folder(std::os::unix::process::parent_id());
    format!("redis+unix://{}", folder.join("redis.sock").display())
}

fn folder(process: u32) -> PathBuf {
    env::temp_dir().join(format!("palisade-load-{process}"))
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_dir_all(folder(id()));
    }
}
