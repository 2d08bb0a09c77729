//! A thread with a runtime of its own, which ends with its handle.

use std::{io, sync::mpsc, thread, time::Duration};
use tokio::sync::oneshot;

/// The longest wait for a thread that is told to end. Only the handler of a server can take longer,
/// by blocking; its thread is then left to itself.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// A thread that runs one future. Dropping this drops the future and waits until that is done.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    result: oneshot::Receiver<T>,
    cancel: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts the thread, which runs the future that `make` returns.
    ///
    /// # Errors
    ///
    /// If the system has no more threads or files.
    pub(crate) fn spawn<Fut>(
        name: &str,
        make: impl FnOnce() -> Fut + Send + 'static,
    ) -> io::Result<Self>
    where
        Fut: Future<Output = T> + 'static,
    {
        let (build, built) = mpsc::channel();
        let (sender, result) = oneshot::channel();
        let (cancel, cancelled) = oneshot::channel::<()>();
        let (end, ended) = mpsc::channel::<()>();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Dropped last, also if the future panics.
                let _end = end;
                // Built in its thread: a runtime must not be dropped in that of the caller.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(build.send(error)),
                };
                drop(build);
                runtime.block_on(async move {
                    tokio::select! {
                        biased;
                        _ = cancelled => {}
                        output = make() => drop(sender.send(output)),
                    }
                });
                // Without a wait for `spawn_blocking`, which may never end.
                runtime.shutdown_background();
            })?;
        if let Ok(error) = built.recv() {
            return Err(error);
        }
        Ok(Self {
            result,
            cancel: Some(cancel),
            ended,
        })
    }

    /// Waits for the output of the future; `None` if it panicked.
    ///
    /// # Cancel safety
    ///
    /// May be called again after it was dropped, until it has returned.
    pub(crate) async fn finished(&mut self) -> Option<T> {
        (&mut self.result).await.ok()
    }

    /// Returns whether the future has ended or panicked. Its output is lost.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(
            self.result.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        )
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        drop(self.cancel.take());
        let _ = self.ended.recv_timeout(MAX_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_output_arrives_and_a_panic_is_none() {
        let mut worker = Worker::spawn("one", async || 1).unwrap();
        assert_eq!(worker.finished().await, Some(1));
        let mut worker = Worker::spawn("two", || async {
            let mut nothing = std::iter::empty::<u8>();
            nothing.next().unwrap()
        })
        .unwrap();
        assert_eq!(worker.finished().await, None);
    }

    #[test]
    fn a_drop_of_the_handle_drops_the_future_and_its_tasks() {
        let held = Arc::new(());
        let (ready, started) = mpsc::channel();
        let in_thread = held.clone();
        let worker = Worker::spawn("held", move || async move {
            let in_task = in_thread.clone();
            tokio::spawn(async move {
                let _in_task = in_task;
                std::future::pending::<()>().await;
            });
            tokio::task::yield_now().await;
            ready.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(in_thread);
        })
        .unwrap();
        started.recv().unwrap();
        drop(worker);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
