//! The line that a guard logs when it is made. In a process of its own: where others make guards at
//! the same moment, tracing may take it that nobody listens.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use palisade_conn::ConnGuard;
use std::sync::{Arc, Mutex};
use tracing::{Event, Metadata, Subscriber, field, span};

#[test]
fn a_guard_says_once_how_many_connections_there_may_be_and_why() {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl field::Visit for Line {
        fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
            self.0 += &format!("{field}={value:?} ");
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "palisade"
        }

        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    let lines = Lines::default();
    let _listening = tracing::subscriber::set_default(lines.clone());
    let guard = ConnGuard::builder().max_connections(5000).build().unwrap();
    drop(guard.clone());
    let lines = lines.0.lock().unwrap();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    for part in ["connections=5000 ", "from=max_connections ", "per_client=64 "] {
        assert!(line.contains(part), "{line}");
    }
}
