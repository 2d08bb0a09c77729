//! The source of an application, on a thread that waits for questions.

use super::group::Sample;
use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// The time that a source has for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The closure of the application.
///
/// It has a thread of its own, because a call may never return. On the thread of the looks the
/// level and the share would then stay as they were, and refuse requests for ever.
pub(super) struct AppSource {
    limit: u64,
    questions: SyncSender<()>,
    answers: Receiver<Option<u64>>,
    /// Whether the last question has no answer yet.
    is_late: bool,
}

impl AppSource {
    /// Starts the thread. Returns `None` if there is none left.
    pub(super) fn start(
        limit: u64,
        used: impl Fn() -> Option<u64> + Send + 'static,
    ) -> Option<Self> {
        let (questions, next_question) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let thread = thread::Builder::new().name("palisade-source".to_owned());
        let spawned =
            thread.spawn(
                move || {
                    while next_question.recv().is_ok() && answer.send(used()).is_ok() {}
                },
            );
        spawned.ok()?;
        Some(Self {
            limit,
            questions,
            answers,
            is_late: false,
        })
    }

    /// Asks what is used. Returns `None` if that is not known, after a panic, and as long as the
    /// closure does not return.
    pub(super) fn sample(&mut self) -> Option<Sample> {
        if self.is_late {
            self.answers.try_recv().ok()?; // It is out of date.
            self.is_late = false;
        }
        self.questions.try_send(()).ok()?;
        self.is_late = true;
        let used = self.answers.recv_timeout(PATIENCE).ok()?;
        self.is_late = false;
        used.map(|used| Sample {
            used,
            limit: self.limit,
        })
    }
}
