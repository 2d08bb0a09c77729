//! A target that is asked, without a socket and on paused time.

use super::{
    fetch::{Refusal, ask},
    permission::LEASE,
    *,
};
use proptest::{
    collection,
    prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep, timeout},
};

const NOW: u64 = 1_796_032_800;
const ADDR: &str = "192.0.2.1:8080";
const DAY: Duration = Duration::from_secs(86_400);

fn addr() -> SocketAddr {
    ADDR.parse().unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a target does with a question.
#[derive(Clone, Debug)]
enum Answer {
    Bytes(Vec<u8>),
    /// The same bytes again and again, after others.
    Endless(Vec<u8>, Vec<u8>),
    Silence,
    /// The bytes after a while.
    Late(Duration, Vec<u8>),
}

/// A target, the secret that its line is for, and the clock of the wall.
#[derive(Clone)]
struct Script {
    answer: Arc<Mutex<Answer>>,
    questions: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    wall: Arc<AtomicU64>,
    secret: Secret,
}

impl Script {
    fn new() -> Self {
        Self {
            answer: Arc::new(Mutex::new(Answer::Silence)),
            questions: Arc::default(),
            sent: Arc::default(),
            wall: Arc::new(NOW.into()),
            secret: Secret::random().unwrap(),
        }
    }

    fn clock(&self) -> Clock {
        Clock::Set(self.wall.clone())
    }

    /// Returns a line that ends so long after `NOW`.
    fn line(&self, lasts: Duration) -> ConsentLine {
        let clock = Clock::Set(Arc::new(NOW.into()));
        ConsentLine::from(&self.secret, lasts, &clock).unwrap()
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn says(&self, answer: impl AsRef<[u8]>) {
        self.answers(Answer::Bytes(answer.as_ref().to_vec()));
    }

    /// Consents for so long after `NOW`.
    fn consents(&self, lasts: Duration) {
        self.says(ok(&self.line(lasts).to_string()));
    }

    /// Opens the connection of a question.
    async fn connect(&self) -> std::io::Result<DuplexStream> {
        let (client, mut server) = duplex(4 << 10);
        self.questions.fetch_add(1, Relaxed);
        let (answer, sent) = (self.answer.lock().unwrap().clone(), self.sent.clone());
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(server.read_u8().await?);
            }
            let text = String::from_utf8(request).unwrap();
            let expected = format!(
                "GET {PATH} HTTP/1.1\r\nhost: {ADDR}\r\nuser-agent: {}\r\nconnection: close\r\n\r\n",
                crate::plan::USER_AGENT
            );
            assert_eq!(text, expected);
            match answer {
                Answer::Bytes(bytes) => server.write_all(&bytes).await?,
                Answer::Endless(bytes, more) => {
                    server.write_all(&bytes).await?;
                    loop {
                        server.write_all(&more).await?;
                        sent.fetch_add(more.len() as u64, Relaxed);
                    }
                }
                Answer::Silence => std::future::pending().await,
                Answer::Late(after, bytes) => {
                    sleep(after).await;
                    server.write_all(&bytes).await?;
                }
            }
            server.shutdown().await
        });
        Ok(client)
    }

    async fn asked(&self) -> Result<ConsentLine, Refusal> {
        ask(self.connect(), addr(), &self.secret, &self.clock()).await
    }

    /// Returns whether the refusal is final, and the sentence.
    async fn refusal(&self) -> (bool, String) {
        let refusal = self.asked().await.unwrap_err();
        let text = &refusal.reason;
        assert!(!text.contains(['\n', '\r', '\x1b']), "{text}");
        assert!(text.contains(": "), "it says what to do: {text}");
        (refusal.is_final, refusal.reason)
    }

    async fn consent(&self) -> Consent {
        let asked = Consent::ask(addr(), &self.secret, self.clock(), self.connect());
        asked.await.unwrap()
    }
}

fn answer(head: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn ok(body: &str) -> String {
    answer("200 OK", body)
}

// === One question ===

#[tokio::test(start_paused = true)]
async fn a_line_for_the_secret_is_consent_however_it_is_framed() {
    let script = Script::new();
    let line = script.line(DAY);
    for bytes in [
        ok(&line.to_string()),
        ok(&format!("{line}\n")),
        ok(&format!("{line}\r\n")),
        answer(
            "200 Fine\r\nserver: nginx/1.26\r\ncontent-type: text/html",
            &line.to_string(),
        ),
        format!("HTTP/1.0 200 OK\r\n\r\n{line}"),
        format!("HTTP/1.1 103 Hints\r\nvia: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{line}"),
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\np\r\n73\r\n{}\r\n0\r\n\r\n",
            &line.to_string()[1..]
        ),
    ] {
        script.says(&bytes);
        assert_eq!(script.asked().await, Ok(line.clone()), "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_that_is_not_this_line_is_refused_with_what_to_do() {
    let script = Script::new();
    let line = script.line(DAY).to_string();
    let other = Script::new().line(DAY).to_string();
    for (bytes, expected) in [
        (
            ok(&other),
            "another secret: use the secret that was printed",
        ),
        (
            ok(""),
            "is no line of consent but \"\": publish the line as",
        ),
        (
            ok("<p>hello\x1b[1m"),
            "no line of consent but \"<p>hello\\u{1b}[1m\"",
        ),
        (ok(&format!("{line}\n{line}")), "no line of consent"),
        (
            ok(&format!("{line}{}", "\n".repeat(141))),
            "longer than a line of consent",
        ),
        (answer("404 No", &line), "answered 404: publish the line"),
        (answer("401 No", &line), "answered 401: publish the line"),
        (answer("500 Oh", &line), "answered 500: publish the line"),
        (answer("201 Made", &line), "answered 201: publish the line"),
        (answer("206 Part", &line), "answered 206: publish the line"),
        (
            "HTTP/1.1 204 None\r\n\r\n".to_owned(),
            "answered 204: publish the line",
        ),
        (
            answer("302 Found\r\nlocation: http://192.0.2.9/\x1b", &line).replace('\x1b', "a"),
            "redirected to http://192.0.2.9/a, which the drill does not follow: publish",
        ),
        (answer("304 Same", ""), "redirected to nowhere"),
    ] {
        script.says(&bytes);
        let (is_final, text) = script.refusal().await;
        assert!(is_final && text.contains(expected), "{bytes}: {text}");
    }
    script.says([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[0xff; 40]].concat());
    let (is_final, text) = script.refusal().await;
    assert!(is_final && text.contains("no line of consent"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_has_not_consented_whatever_it_answers() {
    let script = Script::new();
    let line = script.line(DAY).to_string();
    for field in [
        "via: 1.1 \x1bproxy",
        "Via:",
        "X-Forwarded-For: 192.0.2.7",
        "forwarded: for=192.0.2.7",
        "age: 0",
        "cf-ray: 1",
        "x-cache: MISS",
        "x-envoy-upstream-service-time: 1",
        "x-served-by: cache-1",
        "x-varnish: 1",
        "server: own\r\nserver: CloudFront",
        "server: cloudflare",
        "server: awselb/2.0",
    ] {
        for status in ["200 OK", "404 No", "302 Found\r\nlocation: /", "503 Busy"] {
            let field = field.replace('\x1b', "");
            script.says(answer(&format!("{status}\r\n{field}"), &line));
            let text = script.refusal().await.1;
            assert!(text.contains("a proxy answers for it ("), "{field}: {text}");
            assert!(text.contains("drill the server itself"), "{field}: {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_has_come_or_is_more_than_a_day_ahead_is_refused() {
    let script = Script::new();
    script.consents(DAY);
    for (wall, expected) in [
        (
            NOW - 1,
            Some("more than 24 hours ahead: publish a new line"),
        ),
        (NOW, None),
        (NOW + 86_399, None),
        (
            NOW + 86_400,
            Some("ended at 2026-12-01T10:00:00Z: publish a new line"),
        ),
        (NOW + 1_000_000, Some("ended at")),
        (0, Some("more than 24 hours ahead")),
        (u64::MAX / 2, Some("ended at")),
    ] {
        script.wall.store(wall, Relaxed);
        match (script.asked().await, expected) {
            (Ok(_), None) => {}
            (Err(refusal), Some(expected)) => {
                assert!(refusal.is_final, "{refusal:?}");
                assert!(refusal.reason.contains(expected), "{refusal:?}");
            }
            (asked, _) => panic!("{wall}: {asked:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_without_an_answer_may_be_busy() {
    let script = Script::new();
    let line = script.line(DAY).to_string();
    let cut = ok(&line).replace("content-length: 116", "content-length: 117");
    for bytes in [
        "",
        "SSH-2.0-a\r\n",
        "\x15\x03\x01\0\x02\x02\x0a",
        "HTTP/1.1 200 OK\r\ncontent-le",
        &cut,
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    ] {
        script.says(bytes);
        let (is_final, text) = script.refusal().await;
        assert!(
            !is_final && text.contains("start the server first"),
            "{bytes}: {text}"
        );
    }
    for status in ["429 Slow", "503 Busy"] {
        script.says(answer(status, &line));
        let (is_final, text) = script.refusal().await;
        assert!(!is_final && text.contains(&status[..3]), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_and_what_is_read_are_bounded() {
    let script = Script::new();
    let line = script.line(DAY).to_string();
    let start = Instant::now();
    let (is_final, text) = script.refusal().await;
    assert!(
        !is_final && text.contains("no answer within 5 s: start"),
        "{text}"
    );
    assert_eq!(start.elapsed(), seconds(5));

    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let body = format!("HTTP/1.1 200 OK\r\n\r\n{line}").into_bytes();
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for (first, more) in [
        (head.clone(), b"a: b\r\n".repeat(100)),
        (head, vec![b'x'; 1_000]),
        (body, b"\n".repeat(1_000)),
        (
            chunked.clone(),
            b"64\r\n"
                .iter()
                .copied()
                .chain([b'a'; 100])
                .chain(*b"\r\n")
                .collect(),
        ),
        (chunked, vec![b'0'; 1_000]),
    ] {
        script.sent.store(0, Relaxed);
        script.answers(Answer::Endless(first, more));
        let start = Instant::now();
        script.refusal().await;
        assert!(start.elapsed() <= seconds(5));
        let sent = script.sent.load(Relaxed);
        assert!(sent < 64 << 10, "{sent}");
    }
}

// === From the first confirmation to the end ===

/// Returns why and after which time the consent ends; `None` if it does not for most of an hour.
async fn ended(script: &Script, consent: &Consent) -> Option<(Duration, String)> {
    let start = Instant::now();
    let reason = timeout(seconds(3_595), consent.ended(|| script.connect())).await;
    let reason = reason.ok()?;
    assert!(consent.covers(addr()).is_err());
    Some((start.elapsed(), reason))
}

#[tokio::test(start_paused = true)]
async fn a_target_that_consents_is_asked_twice_a_minute() {
    let script = Script::new();
    script.consents(DAY);
    let consent = script.consent().await;
    assert_eq!(ended(&script, &consent).await, None);
    // The first one, and one each half a minute.
    assert_eq!(script.questions.load(Relaxed), 1 + 119);
    assert_eq!(consent.covers(addr()), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_consent_is_that_of_one_address() {
    let script = Script::new();
    script.consents(DAY);
    let consent = script.consent().await;
    for other in [
        "192.0.2.1:8081",
        "192.0.2.2:8080",
        "127.0.0.1:8080",
        "[::1]:8080",
    ] {
        assert!(consent.covers(other.parse().unwrap()).is_err(), "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_taken_away_ends_the_consent_within_a_minute() {
    for after in [0, 1, 29, 30, 31, 59, 60, 61, 200] {
        for bytes in [
            answer("404 No", ""),
            answer("302 Found\r\nlocation: /", ""),
            ok("hello"),
        ] {
            let script = Script::new();
            script.consents(DAY);
            let consent = script.consent().await;
            let watched = {
                let (script, consent) = (script.clone(), consent.clone());
                tokio::spawn(async move { ended(&script, &consent).await })
            };
            sleep(seconds(after)).await;
            script.says(&bytes);
            let removed = Instant::now();
            let (_, reason) = watched.await.unwrap().unwrap();
            assert!(removed.elapsed() <= seconds(60), "{after} {bytes}");
            assert!(reason.contains("publish the line"), "{reason}");
            // It stays so, also if the line comes back.
            script.consents(DAY);
            let questions = script.questions.load(Relaxed);
            assert!(consent.renew(script.connect()).await.is_err());
            assert!(consent.covers(addr()).is_err());
            assert_eq!(script.questions.load(Relaxed), questions);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_gives_no_answer_is_left_alone_a_minute_after_its_last_one() {
    for silence in [Answer::Silence, Answer::Bytes(Vec::new())] {
        let script = Script::new();
        script.consents(DAY);
        let consent = script.consent().await;
        script.answers(silence);
        let (after, reason) = ended(&script, &consent).await.unwrap();
        assert_eq!(after, LEASE);
        assert!(reason.contains("not confirmed for 60 s"), "{reason}");
        assert!(
            reason.contains("GET /.well-known/palisade-drill has no"),
            "{reason}"
        );
        // Bounded too: a question each two seconds.
        assert!(script.questions.load(Relaxed) <= 16);
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_busy_for_a_while_still_consents() {
    let script = Script::new();
    script.consents(DAY);
    let consent = script.consent().await;
    script.says(answer("503 Busy", ""));
    let watched = {
        let (script, consent) = (script.clone(), consent.clone());
        tokio::spawn(async move { ended(&script, &consent).await })
    };
    sleep(seconds(57)).await;
    script.consents(DAY);
    assert_eq!(watched.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_holds_for_a_minute_also_if_nothing_asks_again() {
    let script = Script::new();
    script.consents(DAY);
    let consent = script.consent().await;
    sleep(LEASE - Duration::from_millis(1)).await;
    assert_eq!(consent.covers(addr()), Ok(()));
    sleep(Duration::from_millis(1)).await;
    let reason = consent.covers(addr()).unwrap_err();
    assert!(reason.contains("it was not asked"), "{reason}");
    // And then nothing asks any more.
    assert!(consent.renew(script.connect()).await.is_err());
    assert_eq!(script.questions.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_for_a_minute_attacks_no_more() {
    let script = Script::new();
    script.consents(DAY);
    let consent = script.consent().await;
    // It stays so, whatever the clock says then.
    for (wall, holds) in [(59, true), (60, false), (3_600, false), (0, false)] {
        script.wall.store(NOW + wall, Relaxed);
        assert_eq!(consent.covers(addr()).is_ok(), holds, "{wall}");
    }
    let (after, reason) = ended(&script, &consent).await.unwrap();
    assert!(
        after.is_zero() && reason.contains("not confirmed"),
        "{reason}"
    );
    assert_eq!(script.questions.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn another_question_follows_after_two_seconds_at_the_earliest() {
    let script = Script::new();
    script.consents(DAY);
    let consent = script.consent().await;
    for (wait, questions) in [(0, 1), (1, 1), (1, 2), (1, 2), (1, 3)] {
        sleep(seconds(wait)).await;
        assert_eq!(consent.renew(script.connect()).await, Ok(()));
        assert_eq!(script.questions.load(Relaxed), questions);
    }
    // The time of the confirmation is that of the question, not that of a slow answer.
    sleep(seconds(10)).await;
    let line = ok(&script.line(DAY).to_string());
    script.answers(Answer::Late(seconds(4), line.into_bytes()));
    assert_eq!(consent.renew(script.connect()).await, Ok(()));
    sleep(LEASE - seconds(4) - Duration::from_millis(1)).await;
    assert_eq!(consent.covers(addr()), Ok(()));
    sleep(Duration::from_millis(1)).await;
    assert!(consent.covers(addr()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_later_line_does_not_move_the_end_by_the_clock_of_the_wall_either() {
    let script = Script::new();
    script.consents(seconds(40));
    let consent = script.consent().await;
    script.consents(DAY / 2);
    sleep(seconds(30)).await;
    script.wall.store(NOW + 30, Relaxed);
    assert_eq!(consent.renew(script.connect()).await, Ok(()));
    script.wall.store(NOW + 39, Relaxed);
    assert_eq!(consent.covers(addr()), Ok(()));
    script.wall.store(NOW + 40, Relaxed);
    let reason = consent.covers(addr()).unwrap_err();
    assert!(reason.contains("its consent has ended"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_line_ends_at_its_end_whatever_is_done_to_the_clock_or_the_line() {
    type Change = fn(&Script);
    let changes: [(&str, Change); 4] = [
        ("nothing", |_| {}),
        ("the clock stands still or is set back", |script| {
            script.wall.fetch_sub(80_000, Relaxed);
        }),
        ("a later line", |script| script.consents(DAY)),
        ("both", |script| {
            script.wall.fetch_sub(60, Relaxed);
            script.consents(DAY - seconds(60));
        }),
    ];
    for (name, change) in changes {
        let script = Script::new();
        script.consents(seconds(100));
        let consent = script.consent().await;
        change(&script);
        let (after, reason) = ended(&script, &consent).await.unwrap();
        assert_eq!(after, seconds(100), "{name}: {reason}");
        assert!(reason.contains("publish a new line"), "{name}: {reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_or_a_nearer_end_ends_the_consent_sooner() {
    let script = Script::new();
    script.consents(seconds(1_000));
    let consent = script.consent().await;
    let watched = {
        let (script, consent) = (script.clone(), consent.clone());
        tokio::spawn(async move { ended(&script, &consent).await })
    };
    sleep(seconds(7)).await;
    script.wall.store(NOW + 1_000, Relaxed);
    assert!(consent.covers(addr()).is_err());
    script.wall.store(NOW, Relaxed);
    // The refusal of one socket closes all others.
    assert_eq!(watched.await.unwrap().unwrap().0, seconds(7));
    assert!(consent.covers(addr()).is_err());

    let script = Script::new();
    script.consents(seconds(1_000));
    let consent = script.consent().await;
    script.consents(seconds(40));
    let watched = {
        let (script, consent) = (script.clone(), consent.clone());
        tokio::spawn(async move { ended(&script, &consent).await })
    };
    for second in 1..=40 {
        sleep(seconds(1)).await;
        script.wall.store(NOW + second, Relaxed);
    }
    let (after, _) = watched.await.unwrap().unwrap();
    assert_eq!(after, seconds(40));
}

/// What happens in a second.
#[derive(Clone, Copy, Debug)]
enum Second {
    Nothing,
    Consents,
    Renews,
    IsSilent,
    TakesAway,
    Jumps(i32),
}

fn second() -> impl Strategy<Value = Second> {
    prop_oneof![
        60 => Just(Second::Nothing),
        4 => Just(Second::Consents),
        4 => Just(Second::Renews),
        4 => Just(Second::IsSilent),
        1 => Just(Second::TakesAway),
        1 => (-200..30).prop_map(Second::Jumps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_keeps_a_consent_beyond_its_end_or_a_minute_without_the_line(
        lasts in 1_u64..300,
        course in collection::vec(second(), 100..400),
    ) {
        paused(async move {
            let script = Script::new();
            script.consents(seconds(lasts));
            let consent = script.consent().await;
            let watched = {
                let (script, consent) = (script.clone(), consent.clone());
                tokio::spawn(async move { consent.ended(|| script.connect()).await })
            };
            let (mut now, mut last_published, mut is_published) = (0, 0, true);
            let mut has_ended = false;
            for second in course {
                match second {
                    Second::Nothing => {}
                    Second::Consents => script.consents(seconds(lasts)),
                    Second::Renews => script.consents(DAY / 2),
                    Second::IsSilent => script.answers(Answer::Silence),
                    Second::TakesAway => script.says(answer("404 No", "")),
                    Second::Jumps(by) => {
                        script.wall.fetch_add(i64::from(by) as u64, Relaxed);
                    }
                }
                match second {
                    Second::Consents | Second::Renews => is_published = true,
                    Second::IsSilent | Second::TakesAway => is_published = false,
                    Second::Nothing | Second::Jumps(_) => {}
                }
                if is_published {
                    last_published = now;
                }
                sleep(seconds(1)).await;
                now += 1;
                script.wall.fetch_add(1, Relaxed);
                let covers = consent.covers(addr()).is_ok();
                assert!(!covers || now < lasts, "after its end");
                assert!(!covers || now - last_published <= 61, "long after the line");
                assert!(!covers || !has_ended, "once more");
                has_ended |= !covers;
            }
            // Whatever has ended it, the drill sees that within half a minute.
            if has_ended {
                timeout(seconds(31), watched).await.unwrap().unwrap();
            } else {
                assert!(!watched.is_finished());
                watched.abort();
            }
        });
    }

    #[test]
    fn a_changed_byte_consents_to_nothing_else(at in any::<prop::sample::Index>(), with: u8) {
        paused(async move {
            let script = Script::new();
            let line = script.line(DAY);
            let mut bytes = ok(&format!("{line}\n")).into_bytes();
            *at.get_mut(&mut bytes) = with;
            script.says(bytes);
            if let Ok(found) = script.asked().await {
                assert!(found.is_for(&script.secret));
                assert!(found.ends() > seconds(NOW) && found.ends() <= seconds(NOW) + DAY);
            }
        });
    }

    #[test]
    fn random_bytes_are_no_consent(start in "(HTTP/1.[01] 200 OK\r\n)?", bytes: Vec<u8>) {
        paused(async move {
            let script = Script::new();
            script.says([start.as_bytes(), &bytes].concat());
            script.refusal().await;
        });
    }
}

/// Runs `test` on paused time.
fn paused(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.unwrap().block_on(test);
}

#[tokio::test(start_paused = true)]
async fn debug_shows_no_secret() {
    let script = Script::new();
    script.consents(DAY);
    let text = format!("{:?}", script.consent().await);
    assert!(
        text.contains(ADDR) && !text.contains(&script.secret.to_string()),
        "{text}"
    );
}
