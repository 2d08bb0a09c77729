//! A server in a thread and a runtime of its own, on a loopback port.

use crate::{
    consent::Secret,
    error::{ConfigFault, DrillError},
    options::Options,
    worker::Worker,
};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
};
use tokio::net::{TcpListener, TcpSocket};

/// The connections that wait in the kernel, as many as tokio's listener lets wait.
const BACKLOG: u32 = 1024;

/// Serves a listener for ever. The future is made in the thread that runs it.
type Serve = dyn FnOnce(TcpListener) -> Pin<Box<dyn Future<Output = ()>>> + Send;

/// The server under attack.
#[derive(Debug)]
pub(crate) enum Subject {
    /// Started by the drill, in this process.
    Server(Server),
    /// Started by the drill, as a process of its own.
    Child(std::process::Command),
    /// Runs already, at one of these addresses.
    Running(Vec<SocketAddr>),
    /// Runs already, and all of these addresses have to consent.
    Consenting(Vec<SocketAddr>, Secret),
}

impl Subject {
    /// Checks the options that belong to another subject.
    ///
    /// # Errors
    ///
    /// If one is set.
    pub(crate) fn check(&self, options: &Options) -> Result<(), DrillError> {
        let of_children = [
            ("file_limit", options.file_limit),
            ("memory_limit", options.memory_limit),
        ];
        let is_child = matches!(self, Self::Child(_));
        let of_children = of_children.into_iter().filter(|_| !is_child);
        let mut faults: Vec<_> = of_children
            .filter_map(|(field, value)| {
                Some(ConfigFault {
                    field,
                    value: value?.to_string(),
                    allowed: "nothing but for `Drill::child`".to_owned(),
                })
            })
            .collect();
        // No certificate is verified, which is no risk on loopback alone.
        if let (Self::Consenting(..), Some(name)) = (self, &options.tls) {
            faults.push(ConfigFault {
                field: "tls",
                value: name.clone(),
                allowed: "nothing for `Drill::with_consent`, which asks and drills in clear text"
                    .to_owned(),
            });
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(DrillError::Config(faults))
        }
    }
}

/// A server that the drill starts.
pub(crate) struct Server(Box<Serve>);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    pub(crate) fn new<F, Fut>(serve: F) -> Self
    where
        F: FnOnce(TcpListener) -> Fut + Send + 'static,
        Fut: Future + 'static,
    {
        Self(Box::new(|listener| {
            let served = serve(listener);
            Box::pin(async {
                served.await;
            })
        }))
    }

    /// Starts the server. It ends with its worker.
    ///
    /// # Errors
    ///
    /// If the system has no more ports, threads or files.
    pub(crate) fn start(self) -> Result<(SocketAddr, Worker<()>), DrillError> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let listener = socket.listen(BACKLOG)?.into_std()?;
        let addr = listener.local_addr()?;
        let worker = Worker::spawn("drill-server", move || async move {
            if let Ok(listener) = TcpListener::from_std(listener) {
                self.0(listener).await;
            }
        })?;
        Ok((addr, worker))
    }
}
