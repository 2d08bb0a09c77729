//! A Redis that sentinels watch.

use crate::{
    Answers, Batch, StoreError,
    redis::{CONNECTION_WITHIN, Server},
};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, task::JoinSet, time::timeout};

/// Sentinels, and the master that they have named.
pub(crate) struct Sentinels {
    shared: Arc<Shared>,
    /// How the master is reached, but for its address.
    master: Server,
    current: Mutex<Current>,
    /// The task that asks the sentinels, if one does. It outlives the call that has started it.
    finding: AsyncMutex<JoinSet<Result<(String, u16), StoreError>>>,
}

struct Shared {
    sentinels: Vec<Server>,
    name: String,
    /// The times that they were asked. Each time another one is the first, so that one that errs
    /// does not decide alone.
    asked: AtomicUsize,
}

#[derive(Default)]
struct Current {
    server: Option<Arc<Server>>,
    /// Whether the sentinels must be asked before it is called again.
    is_doubtful: bool,
}

/// How long a call waits for the sentinels, if they have named a master before.
const ASK_WITHIN: Duration = Duration::from_millis(5);

impl Sentinels {
    /// Creates sentinels, at least one, of the master with this name. `master` says how it is
    /// reached, and its address is not used.
    pub(crate) fn new(sentinels: Vec<Server>, name: String, master: Server) -> Self {
        Self {
            shared: Arc::new(Shared {
                sentinels,
                name,
                asked: AtomicUsize::new(0),
            }),
            master,
            current: Mutex::default(),
            finding: AsyncMutex::default(),
        }
    }

    pub(crate) async fn call(&self, batch: &Batch) -> Result<Answers, StoreError> {
        // A master that is doubtful may be the right one, and needs time to answer, too. What the
        // sentinels say later is for the next call.
        let is_known = self.current.lock().server.is_some();
        let within = if is_known {
            ASK_WITHIN
        } else {
            CONNECTION_WITHIN
        };
        let server = timeout(within, self.server())
            .await
            .unwrap_or_else(|late| Err(StoreError::unsent(late)));
        // Without an answer of the sentinels, the one that they named last may still be the master.
        let server = server.or_else(|error| self.current.lock().server.clone().ok_or(error))?;
        let mut on_drop = DoubtOnDrop {
            sentinels: self,
            is_answered: false,
        };
        let answers = server.call(batch).await.map_err(|it| it.error)?;
        on_drop.is_answered = true;
        self.trust(&server);
        Ok(answers)
    }

    pub(crate) fn clock_skew(&self) -> Option<Duration> {
        let current = self.current.lock();
        current.server.as_ref().and_then(|it| it.clock_skew())
    }

    /// Returns the master.
    async fn server(&self) -> Result<Arc<Server>, StoreError> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let mut finding = self.finding.lock().await;
        // Another call may have asked meanwhile.
        if let Some(known) = self.known() {
            return Ok(known);
        }
        // What was found since the last call. What has failed since is tried again.
        let addr = match finding.try_join_next() {
            Some(Ok(Ok(addr))) => addr,
            _ => {
                if finding.is_empty() {
                    finding.spawn(Arc::clone(&self.shared).find());
                }
                let ended = finding.join_next().await.and_then(Result::ok);
                ended.unwrap_or_else(|| Err(StoreError::unsent("the runtime ends")))?
            }
        };
        let current = &mut *self.current.lock();
        current.is_doubtful = false;
        // Else a server far away would never be reached: it takes more than one call to connect.
        let known = current.server.as_ref();
        let same = known.filter(|it| it.tcp_addr() == Some((&addr.0, addr.1)));
        let server = same.map_or_else(|| Arc::new(self.master.at(addr)), Arc::clone);
        Ok(Arc::clone(current.server.insert(server)))
    }

    /// Does not ask the sentinels again, if this is still the master that they named last.
    fn trust(&self, server: &Arc<Server>) {
        let current = &mut *self.current.lock();
        let is_current = |it: &Arc<Server>| Arc::ptr_eq(it, server);
        if current.is_doubtful && current.server.as_ref().is_some_and(is_current) {
            current.is_doubtful = false;
            // What a sentinel says of an earlier doubt may be old at the next one.
            if let Ok(mut finding) = self.finding.try_lock() {
                *finding = JoinSet::new();
            }
        }
    }

    fn known(&self) -> Option<Arc<Server>> {
        let current = self.current.lock();
        current.server.clone().filter(|_| !current.is_doubtful)
    }
}

impl Shared {
    /// Asks one sentinel after another.
    async fn find(self: Arc<Self>) -> Result<(String, u16), StoreError> {
        let first = self.asked.fetch_add(1, Relaxed);
        let mut found = Err(StoreError::unsent("there is no sentinel"));
        for index in 0..self.sentinels.len() {
            let sentinel = &self.sentinels[(first + index) % self.sentinels.len()];
            found = sentinel.master(&self.name).await;
            if found.is_ok() {
                break;
            }
        }
        found
    }
}

/// Makes the next call ask the sentinels, after one without an answer.
struct DoubtOnDrop<'a> {
    sentinels: &'a Sentinels,
    is_answered: bool,
}

impl Drop for DoubtOnDrop<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.sentinels.current.lock().is_doubtful = true;
        }
    }
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels")
            .field("sentinels", &self.shared.sentinels)
            .field("name", &self.shared.name)
            .field("master", &self.current.lock().server)
            .finish()
    }
}
