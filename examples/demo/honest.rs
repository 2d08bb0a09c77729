//! Clients that mean well: a few requests a second each, from addresses of their own.

use crate::clients;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{Either, Full};
use hyper::client::conn::http1::SendRequest;
use palisade_testkit::bodies::Pieces;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

const CLIENTS: u8 = 8;
/// Each asks so often, for `/`, with a small upload, and for `/work` in turn, four requests on a
/// connection.
const EVERY: Duration = Duration::from_millis(250);
/// Who has no answer by then goes away.
const PATIENCE: Duration = Duration::from_secs(2);
const SMALL: usize = 2048;
/// And one client uploads 80 KiB at 32 KiB a second, again and again.
const SLOW_PIECES: u64 = 10;
const SLOW_PIECE: usize = 8 * 1024;
const SLOW_PAUSE: Duration = Duration::from_millis(250);

type Upload = Either<Full<Bytes>, Pieces>;
type Sender = SendRequest<Upload>;

/// The clients at work.
pub(crate) struct Honest {
    tasks: JoinSet<()>,
    go_on: watch::Sender<bool>,
    book: Arc<Mutex<Book>>,
    looked: (u64, u64),
}

/// What they got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) asked: u64,
    pub(crate) served: u64,
    /// How long the answers took that were in time, but for the slow uploads.
    pub(crate) latencies: Vec<Duration>,
    /// What the others got.
    pub(crate) failures: BTreeMap<String, u64>,
}

// === Honest ===

impl Honest {
    pub(crate) fn start(addr: SocketAddr) -> Self {
        let (go_on, going) = watch::channel(true);
        let book = Arc::new(Mutex::new(Book::default()));
        let mut tasks = JoinSet::new();
        for number in 1..=CLIENTS {
            tasks.spawn(small(number, addr, going.clone(), book.clone()));
        }
        tasks.spawn(slow(CLIENTS + 1, addr, going, book.clone()));
        Self {
            tasks,
            go_on,
            book,
            looked: (0, 0),
        }
    }

    /// From now on it counts.
    pub(crate) fn begin(&self) {
        *self.book.lock().unwrap_or_else(PoisonError::into_inner) = Book::default();
    }

    /// How many were asked and served since this was called last.
    pub(crate) fn since_last_look(&mut self) -> (u64, u64) {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut self.looked, (book.asked, book.served));
        (
            book.asked.saturating_sub(before.0),
            book.served.saturating_sub(before.1),
        )
    }

    /// Waits for the answers that are under way.
    pub(crate) async fn end(mut self) -> Book {
        self.go_on.send_replace(false);
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn small(
    number: u8,
    addr: SocketAddr,
    mut going: watch::Receiver<bool>,
    book: Arc<Mutex<Book>>,
) {
    // Not all at once.
    sleep(EVERY / u32::from(CLIENTS) * u32::from(number)).await;
    let from = Ipv4Addr::new(127, 0, 1, number);
    let mut connection = None;
    let mut turns = interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in usize::from(number).. {
        tokio::select! {
            _ = turns.tick() => {}
            _ = going.wait_for(|going| !going) => return,
        }
        if turn % 4 == 0 {
            connection = None;
        }
        let request = match turn % 3 {
            0 => Request::get("/").body(Full::default()),
            1 => Request::post("/upload").body(Full::from(vec![b'x'; SMALL])),
            _ => Request::get("/work").body(Full::default()),
        };
        let request = request.expect("a request").map(Either::Left);
        let asked = Instant::now();
        let answer = ask(from, addr, &mut connection, request, PATIENCE).await;
        note(&book, answer, Some(asked.elapsed()));
    }
}

async fn slow(
    number: u8,
    addr: SocketAddr,
    mut going: watch::Receiver<bool>,
    book: Arc<Mutex<Book>>,
) {
    let from = Ipv4Addr::new(127, 0, 1, number);
    let takes = SLOW_PAUSE * SLOW_PIECES as u32;
    while *going.borrow_and_update() {
        let body = Pieces::new(SLOW_PIECES, SLOW_PIECE)
            .declared()
            .every(SLOW_PAUSE);
        let request = Request::post("/upload")
            .body(Either::Right(body))
            .expect("a request");
        let mut connection = None;
        let answer = tokio::select! {
            answer = ask(from, addr, &mut connection, request, takes + PATIENCE) => answer,
            // It is not to be waited for, and has no outcome.
            _ = going.wait_for(|going| !going) => return,
        };
        let refused = answer != Ok(StatusCode::OK);
        note(&book, answer, None);
        if refused {
            sleep(EVERY).await;
        }
    }
}

/// The status of the answer, or what came in place of one.
async fn ask(
    from: Ipv4Addr,
    addr: SocketAddr,
    connection: &mut Option<Sender>,
    mut request: Request<Upload>,
    patience: Duration,
) -> Result<StatusCode, &'static str> {
    let host = http::HeaderValue::from_static("demo");
    request.headers_mut().insert(http::header::HOST, host);
    let exchange = async {
        let mut sender = match connection.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => clients::http1(from, addr)
                .await
                .map_err(|_| "not connected")?,
        };
        let answer = sender.send_request(request).await.map_err(|_| "cut")?;
        let status = answer.status();
        clients::whole(answer).await.map_err(|_| "cut")?;
        Ok((sender, status))
    };
    match timeout(patience, exchange).await {
        Ok(Ok((sender, status))) => {
            // hyper says so a moment later that the server closes.
            *connection = status.is_success().then_some(sender);
            Ok(status)
        }
        Ok(Err(what)) => Err(what),
        Err(_) => Err("too late"),
    }
}

fn note(book: &Mutex<Book>, answer: Result<StatusCode, &'static str>, took: Option<Duration>) {
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    book.asked += 1;
    let what = match answer {
        Ok(StatusCode::OK) => {
            book.served += 1;
            book.latencies.extend(took);
            return;
        }
        Ok(status) => status.as_str().to_owned(),
        Err(what) => what.to_owned(),
    };
    *book.failures.entry(what).or_default() += 1;
}

// === Book ===

impl Book {
    /// The part that was served, from 0 to 1.
    pub(crate) fn rate(&self) -> f64 {
        self.served as f64 / self.asked.max(1) as f64
    }

    /// The latency that so many percent of the served did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
        sorted.get(place).copied()
    }
}
