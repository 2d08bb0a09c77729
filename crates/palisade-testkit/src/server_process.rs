//! A server in a process of its own: the binary of the test once more.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

/// What a server prints before its address.
const LISTENING: &str = "listening on ";

/// A process of this binary. It is killed when this is dropped.
#[derive(Debug)]
pub struct ChildProcess(Child);

/// A process of this binary that serves.
#[derive(Debug)]
pub struct ServerProcess {
    /// The process.
    pub process: ChildProcess,
    /// The address that it serves.
    pub addr: SocketAddr,
}

impl ChildProcess {
    /// Starts this binary with a variable, from which it learns what to do. As a test, it runs the
    /// test `server_process` alone. Its standard input ends with this process.
    pub fn start<V: Into<OsString>>(
        variables: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name, value.into()));
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "server_process", "--nocapture"])
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Returns the number of the process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns whether the process has not ended.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Ends the standard input of the process, which may wait for that.
    pub fn close_stdin(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Waits until the process has [said](say_listening) where it listens.
    pub fn serving(mut self) -> ServerProcess {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let addr = lines.map_while(Result::ok).find_map(|line| {
            let (_, addr) = line.split_once(LISTENING)?;
            addr.parse().ok()
        });
        ServerProcess {
            addr: addr.expect("the server listens"),
            process: self,
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tells the process that has started this one where it listens.
#[allow(clippy::print_stdout, reason = "the other process reads it")]
pub fn say_listening(addr: SocketAddr) {
    println!("{LISTENING}{addr}");
}
