//! A server in a child process: started, limited, measured, and ended by its pid.

mod group;
pub(crate) mod limit;
mod meter;
pub(crate) mod tree;

pub(crate) use group::Group;
pub(crate) use meter::Meter;

use crate::{
    error::DrillError,
    target::{Source, Target, owner},
};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Command, ExitStatus},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};
use tree::Member;

/// The longest wait until the child accepts connections.
const MAX_START: Duration = Duration::from_secs(30);
/// The pause between two looks at a child that does not accept yet.
const START_CHECK: Duration = Duration::from_millis(20);

/// What is said of a server whose memory cannot be limited.
pub(crate) const NO_GROUP: &str = "the server has no limit on memory: this process may not make \
                                   control groups, or the system has none";

/// A server in a child process. Dropping this ends the process, and those that it started.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    /// The processes of the server when it began to accept.
    members: Vec<Member>,
    /// What the drill cannot be sure of.
    cautions: Vec<String>,
    /// Its limit on memory. The processes end before it does.
    group: Option<Group>,
}

/// The limits of a child.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// The number of open files.
    pub(crate) files: Option<u64>,
    /// The memory in bytes.
    pub(crate) memory: Option<u64>,
}

impl Child {
    /// Starts `command` with `PORT` in its environment, and waits until it accepts connections to
    /// that port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If it cannot be started, ends, or does not accept in time.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the process ends.
    pub(crate) async fn start(
        mut command: Command,
        limits: Limits,
    ) -> Result<(Self, Target), DrillError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |reason: String| DrillError::ChildFailed {
            program: program.clone(),
            reason,
        };
        // The system does not hand out the port again soon, so that it is still free for the child.
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        command.env("PORT", addr.port().to_string());
        // So that what it starts can be ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let process = command
            .spawn()
            .map_err(|error| failed(format!("it cannot be started ({error}): check its path")))?;
        let mut child = Self {
            process,
            members: Vec::new(),
            cautions: Vec::new(),
            group: limits.memory.and_then(Group::create),
        };
        if let Some(group) = &child.group {
            group
                .add(&child.members())
                .map_err(|error| failed(format!("its memory limit cannot be set: {error}")))?;
        } else if limits.memory.is_some() {
            child.cautions.push(NO_GROUP.to_owned());
        }
        if let Some(files) = limits.files {
            limit::lower(&child.members(), files)
                .map_err(|error| failed(format!("its file limit cannot be set: {error}")))?;
        }
        let target = child.accept(addr).await.map_err(failed)?;
        child.members = child.members();
        if let Some(group) = &child.group {
            // Once more, for what it has started meanwhile.
            let added = group.add(&child.members);
            added.map_err(|error| failed(format!("its memory limit cannot be set: {error}")))?;
        }
        if let Some(files) = limits.files {
            // Once more, for what it has started meanwhile.
            let caution = match limit::lower(&child.members, files) {
                Ok(had) if had > files => Some(format!(
                    "the server had already raised its file limit to {had}"
                )),
                Ok(_) => None,
                Err(error) => Some(format!("not every process got the file limit: {error}")),
            };
            child.cautions.extend(caution);
        }
        if !Meter::is_known() {
            child.cautions.push(
                "this system does not tell what a process uses: memory, files and processor time \
                 are not measured"
                    .to_owned(),
            );
        }
        Ok((child, target))
    }

    /// Waits until the child accepts a connection to `addr`.
    async fn accept(&mut self, addr: SocketAddr) -> Result<Target, String> {
        let deadline = Instant::now() + MAX_START;
        loop {
            // What it has started is known only while it lives, and runs on after that.
            self.members.retain(tree::runs);
            let known: Vec<_> = self.members.iter().map(|member| member.pid).collect();
            let new = self.members();
            let new = new.into_iter().filter(|it| !known.contains(&it.pid));
            self.members.extend(new);
            if let Some(status) = self.ended() {
                return Err(format!(
                    "it ended with {status} before it accepted a connection: it must listen on \
                     127.0.0.1:$PORT and stay in the foreground"
                ));
            }
            // The owner of the listener is known before the first connection to it.
            if owner::check(addr).is_ok()
                && let Ok(target) = Target::open(&[addr]).await
            {
                if let Some(inode) = owner::inode(addr)
                    && !tree::has_socket(&self.members(), inode)
                {
                    return Err(format!(
                        "the listener at {addr} is of another process: it must stay in the \
                         foreground, and listen on 127.0.0.1:$PORT itself"
                    ));
                }
                let connect = target.connect(Source::Honest(0), None);
                if timeout_at(deadline, connect)
                    .await
                    .is_ok_and(|it| it.is_ok())
                {
                    return Ok(target);
                }
            }
            if Instant::now() > deadline {
                let refusal = owner::check(addr).err().unwrap_or_default();
                return Err(format!(
                    "it does not accept connections to {addr} after {} s: it must listen on \
                     127.0.0.1:$PORT ({refusal})",
                    MAX_START.as_secs()
                ));
            }
            sleep(START_CHECK).await;
        }
    }

    /// Returns how the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Returns the pid.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the limit on its memory, if it has one.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Returns what the drill cannot be sure of.
    pub(crate) fn cautions(&self) -> &[String] {
        &self.cautions
    }

    /// Returns the processes of the server that run now.
    fn members(&self) -> Vec<Member> {
        tree::members(self.pid())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The pid is this child's until it is waited for, and its descendants are known only while
        // it lives.
        let mut members = Vec::new();
        if self.ended().is_none() {
            members = self.members();
            tree::end_group(self.pid());
        }
        members.append(&mut self.members);
        // The first process first, so that it does not replace the others.
        let _ = self.process.kill();
        tree::end(&members, self.pid());
        if let Some(group) = &self.group {
            group.end();
        }
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests;
