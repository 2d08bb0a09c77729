//! Reports of `palisade-drill` from any file, and its attack machines against any server.
//! `crates/palisade-drill/tests/fuzz.rs` runs the same as a property test.

use palisade_drill::{
    Report,
    attacks::{self, Plan},
    machine::{Actions, Event, Machine},
};
use serde_json::Value;
use std::time::Duration;

/// A report with every field.
const REPORT: &str = r#"{"schema":1,"version":"0.1.0","target":"127.0.0.1:44363","places":100,"file_limit":256,
"memory_limit":268435456,"tls":true,
"quick":true,"seed":1,"seconds":25.123488078,"attacks":[{"name":"silent","threat":"T01",
"title":"connections that send nothing","cve":"CVE-2019-9512","verdict":"harmed",
"reason":"served 0.0 %","honest":[{"kind":"new-connection","before":{"sent":8,"served":8,
"seconds":0.8,"served_share":1.0,"p50_ms":0.811,"p99_ms":1.892,"failures":{}},
"during":{"sent":1,"served":0,"seconds":2.201086121,"served_share":0.0,"p50_ms":null,
"p99_ms":null,"failures":{"hung":1}}}],"recovery_ms":220.461,"lateness_ms":15.365,
"attackers":{"connections":400,"opened":377,"failed":0,"alive":377,"holding":377,
"displaced_to":377,"served":0,"refused":0,"passed":0,"sent_per_second":0.0,
"received_per_second":0.0,"bytes_per_lost_request":0.0,"bytes_per_kept_place":0.0,
"connections_per_kept_place":1.0},"server":{"memory_before":24215552,"memory_peak":29196288,
"memory_after":25239552,"files_before":7,"files_peak":256,"files_after":7,"cpu_seconds":6.61},
"processor":{"others":0.4,"idle":0.1},
"series":{"attack_from":0.802,"attack_to":9.023,"moments":[{"seconds":1.5,"served_share":0.5,
"median_ms":3.002,"longest_ms":368.464,"attackers":377,"memory":29196288},{"seconds":1.75,
"served_share":0.5,"median_ms":0.738,"longest_ms":618.464,"attackers":377,"memory":29196288}]},
"stopped_by":"a deadline",
"remedies":["palisade: ConnGuard: first_request_timeout and max_connections"],
"cautions":["perhaps"]},{"name":"cpu-overload","threat":"T20",
"title":"connections that send nothing","cve":"CVE-2019-9512","verdict":"held",
"reason":"served 0.0 %","honest":[{"kind":"new-connection","before":{"sent":8,"served":8,
"seconds":0.8,"served_share":1.0,"p50_ms":0.811,"p99_ms":1.892,"failures":{}},
"during":{"sent":1,"served":0,"seconds":2.201086121,"served_share":0.0,"p50_ms":null,
"p99_ms":null,"failures":{"hung":1}}}],"recovery_ms":220.461,"lateness_ms":15.365,
"attackers":{"connections":400,"opened":377,"failed":0,"alive":377,"holding":377,
"displaced_to":377,"served":0,"refused":0,"passed":0,"sent_per_second":0.0,
"received_per_second":0.0,"bytes_per_lost_request":0.0,"bytes_per_kept_place":0.0,
"connections_per_kept_place":1.0},"stopped_by":"a deadline",
"remedies":["palisade: ConnGuard: first_request_timeout and max_connections"],
"cautions":["perhaps"],"overload":{"capacity_per_second":200.0,"busy_cores":0.9,
"offered_per_second":400.0,"answered_per_second":180.0,"refused":7,"refused_late":1}}],
"skipped":[{"name":"slow-reader","reason":"it needs the path of a large GET: set `large`"}],
"cautions":["perhaps"]}"#;
/// Values that take the place of one in [`REPORT`].
const VALUES: [&str; 16] = [
    "null",
    "true",
    "0",
    "-1",
    "0.5",
    "1e308",
    "-1e308",
    "5e-324",
    "4294967296",
    "18446744073709551615",
    "[]",
    "{}",
    "\"held\"",
    "\"inconclusive\"",
    r#""</svg><script>\u0000\u001b[2J\r\n | **x** ]]>\u202e""#,
    r#"["<img src=x>"]"#,
];
/// The bytes of a rendered report for each byte of the file, and of an empty one, at most.
const MAX_GROWTH: usize = 100;
const MAX_PAGE_BYTES: usize = 16 << 10;

/// Reads `data` as a report, and [`REPORT`] with values that `data` selects.
pub(crate) fn report(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        check_report(text);
    }
    let mut report: Value = serde_json::from_str(REPORT).expect("the report is JSON");
    for &[at, value, repeat] in data.as_chunks().0.iter().take(16) {
        let value = VALUES[usize::from(value) % VALUES.len()];
        let mut value: Value = serde_json::from_str(value).expect("the value is JSON");
        if let Value::String(text) = &mut value {
            *text = text.repeat(usize::from(repeat) + 1);
        }
        let mut left = usize::from(at);
        replace(&mut report, &mut left, value, usize::from(repeat));
    }
    check_report(&report.to_string());
}

/// Puts `value` in the place of the leaf number `left`, counted from zero. A list of it has its
/// last element `repeat` more times.
fn replace(inside: &mut Value, left: &mut usize, value: Value, repeat: usize) -> Option<Value> {
    let mut value = Some(value);
    match inside {
        Value::Array(list) if !list.is_empty() => {
            for each in list.iter_mut() {
                value = replace(each, left, value?, repeat);
            }
            if value.is_none()
                && let Some(last) = list.last().cloned()
            {
                list.extend(std::iter::repeat_n(last, repeat / 8));
            }
            value
        }
        Value::Object(fields) if !fields.is_empty() => {
            for each in fields.values_mut() {
                value = replace(each, left, value?, 0);
            }
            value
        }
        leaf => {
            if *left > 0 {
                *left -= 1;
                return value;
            }
            *leaf = value?;
            None
        }
    }
}

/// Whatever is read as a report is written in every format: bounded, without markup of its own, and
/// as JSON without a loss.
fn check_report(text: &str) {
    let report = match Report::from_json(text) {
        Ok(report) => report,
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.len() < 2_000 && !text.contains(char::is_control),
                "{text}"
            );
            return;
        }
    };
    let most = MAX_PAGE_BYTES + MAX_GROWTH * text.len();
    assert_eq!(Report::from_json(&report.to_json()), Ok(report.clone()));
    let table = report.to_string();
    let page = report.to_html();
    let markdown = report.to_markdown();
    let comparison = report.compare(&report).to_string();
    for text in [&table, &page, &markdown, &comparison, &report.to_junit()] {
        assert!(text.len() <= most, "{} of {most} bytes", text.len());
        assert!(!text.contains(['\0', '\x1b', '\r', '\u{202e}']), "{text}");
    }
    assert!(
        !page.contains("<script") && !page.contains("<img"),
        "{page}"
    );
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

/// The time after the end of an attack in which its machines are watched.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// The shortest pause of the engine before a connection is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(5);
/// What a machine may do in a second, and for each thing that happens to it. An attacker that
/// sends more than that is a test of the network.
const MAX_WAKES_A_SECOND: u64 = 1_000;
const MAX_BYTES_A_SECOND: u64 = 1 << 20;
const MAX_BYTES_AN_OPENING: u64 = 1 << 20;
const MAX_BYTES_A_BYTE: u64 = 64;

/// Parts of answers, with which random bytes get further.
const ANSWERS: [&[u8]; 12] = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    b"HTTP/1.1 2",
    b"\r\n\r\n",
    // SETTINGS that offer extended CONNECT, and allow one stream.
    &[
        0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 3, 0, 0, 0, 1,
    ],
    // A response of status 200 on stream 1, whose body goes on.
    &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88],
    // The largest frame, of which no more comes.
    &[255, 255, 255, 0, 0, 0, 0, 0, 1],
    // GOAWAY.
    &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
];

/// Runs the machine that the first bytes of `data` select, against a server that does what the
/// others say.
pub(crate) fn machines(data: &[u8]) {
    let [which, options, index, steps @ ..] = data else {
        return;
    };
    let attacks = attacks::all();
    let attack = &attacks[usize::from(*which) % attacks.len()];
    let mut plan = Plan::new("localhost");
    plan.post = (options & 1 == 0).then(|| "/post".to_owned());
    plan.large = (options & 2 == 0).then(|| "/large".to_owned());
    if options & 4 != 0 {
        plan.headers = vec![("authorization".to_owned(), "x".repeat(40))];
    }
    plan.seed = u64::from(*options);
    plan.ends = Duration::from_secs(1 + u64::from(options >> 6));
    let machine = (attack.make)(&plan, usize::from(*index));
    let mut run = Run::new(attack.name, machine, plan.ends);
    run.tell(Event::Opened);
    let mut steps = steps.iter().copied();
    while let Some(step) = steps.next() {
        let mut next = || steps.next().unwrap_or(step);
        match step % 8 {
            0 | 1 => run.wake(),
            2 => run.wait(Duration::from_millis(u64::from(next()) * 4)),
            3 if next() % 4 == 0 => run.close(),
            3 | 4 => run.receive(ANSWERS[usize::from(next()) % ANSWERS.len()]),
            5 => {
                let bytes: Vec<u8> = (0..next() % 32).map(|_| next()).collect();
                run.receive(&bytes);
            }
            _ => {
                let (kind, flags, stream, value) = (next() % 10, next(), next() % 8, next());
                let payload = vec![value; usize::from(next() % 32)];
                let head = [0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
                run.receive(&[&head[..], &payload].concat());
            }
        }
    }
    // The server is silent from here on: the machine ends by itself, or is as slow as it was.
    run.finish();
}

/// A machine and its connection, as the engine treats them. Each byte is read as soon as it is
/// written.
struct Run {
    name: &'static str,
    machine: Box<dyn Machine>,
    ends: Duration,
    now: Duration,
    is_open: bool,
    reads: bool,
    wakes_at: Option<Duration>,
    reopens_at: Option<Duration>,
    openings: u64,
    wakes: u64,
    sent: u64,
    received: u64,
}

impl Run {
    fn new(name: &'static str, machine: Box<dyn Machine>, ends: Duration) -> Self {
        Self {
            name,
            machine,
            ends,
            now: Duration::ZERO,
            is_open: true,
            reads: true,
            wakes_at: None,
            reopens_at: None,
            openings: 1,
            wakes: 0,
            sent: 0,
            received: 0,
        }
    }

    /// Hands an event to the machine, and checks what it does.
    fn tell(&mut self, event: Event<'_>) {
        let mut out = Actions::default();
        self.machine.on(event, self.now, &mut out);
        let _ = self.machine.holds();
        if event == Event::Closed {
            self.reopens_at = out.reopening();
            return;
        }
        self.reads = out.reading().unwrap_or(self.reads);
        self.wakes_at = out.wake().or(self.wakes_at);
        assert!(out.wake().is_none_or(|at| at >= self.now), "{}", self.name);
        self.sent += out.sent().len() as u64;
        let seconds = self.now.as_secs() + 1;
        let most = MAX_BYTES_A_SECOND * seconds
            + MAX_BYTES_AN_OPENING * self.openings
            + MAX_BYTES_A_BYTE * self.received;
        let Self { name, sent, .. } = *self;
        assert!(sent <= most, "{name} sent {sent} bytes, {most} are allowed");
        if out.is_closing() {
            self.close();
        }
    }

    /// Lets the machine reach the time for which it waits.
    fn wake(&mut self) {
        if self.is_open
            && let Some(at) = self.wakes_at.take()
        {
            self.now = self.now.max(at);
            self.wakes += 1;
            let most = MAX_WAKES_A_SECOND * (self.now.as_secs() + 1) + self.received;
            assert!(self.wakes <= most, "{} is woken without end", self.name);
            self.tell(Event::Woken);
        } else if !self.is_open
            && let Some(at) = self.reopens_at.take()
        {
            self.now = at.max(self.now + REOPEN_PAUSE);
            if self.now < self.ends {
                (self.is_open, self.reads) = (true, true);
                self.openings += 1;
                self.tell(Event::Opened);
            }
        }
    }

    /// Lets time pass, until the machine is to be woken at most.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        self.now = self.wakes_at.map_or(until, |at| at.clamp(self.now, until));
    }

    fn receive(&mut self, bytes: &[u8]) {
        if self.is_open && self.reads && !bytes.is_empty() {
            self.received += bytes.len() as u64;
            self.tell(Event::Received(bytes));
        }
    }

    fn close(&mut self) {
        if self.is_open {
            (self.is_open, self.wakes_at) = (false, None);
            self.tell(Event::Closed);
        }
    }

    /// Runs the machine beyond the end of the attack.
    fn finish(&mut self) {
        let until = self.now.max(self.ends) + AFTERWARDS;
        while self.now < until {
            let next = if self.is_open {
                self.wakes_at
            } else {
                self.reopens_at
            };
            if next.is_none() {
                return;
            }
            self.wake();
        }
    }
}
