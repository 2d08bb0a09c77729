//! T07 and T27 on HTTP/2 under `palisade::serve`: what is kept of responses that a client does not
//! take is charged to the byte budget, and other responses wait without a deadlock.

use axum::{
    Router,
    body::Body,
    response::sse::{Event, Sse},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use palisade::{Budget, conn::ConnGuard};
use palisade_testkit::{
    clients::wait_until,
    guarded::{ServerKind, all_gone},
    h2,
    servers::Server,
};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::sleep,
};

const KIB: usize = 1 << 10;
const STREAMS: u32 = 100;
/// The length of the responses to `/answer`.
const ANSWER_BYTES: usize = 64 * KIB;

struct Setup {
    server: Server,
    guard: ConnGuard,
    budget: Budget,
    /// The number of calls of `/answer`.
    calls: Arc<AtomicUsize>,
}

/// Serves with a budget of 1 MiB, of which responses have half.
async fn serve() -> Setup {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let answer = async move || {
        counted.fetch_add(1, SeqCst);
        vec![b'x'; ANSWER_BYTES]
    };
    let endless = async || {
        let piece = || Ok::<_, Infallible>(Bytes::from(vec![b'x'; 16 * KIB]));
        Body::from_stream(stream::repeat_with(piece))
    };
    let events = async || {
        let events = stream::unfold((), async |()| {
            sleep(Duration::from_millis(10)).await;
            Some((Ok::<_, Infallible>(Event::default().data("x")), ()))
        });
        Sse::new(events)
    };
    let app = Router::new()
        .route("/answer", get(answer))
        .route("/endless", get(endless))
        .route("/events", get(events));
    let budget = Budget::new(1 << 20).unwrap();
    let guard = ConnGuard::builder()
        .byte_budget(budget.clone())
        .runtime_load(None);
    let guard = guard.build().unwrap();
    let server = ServerKind::Serve.serve(&guard, app).await;
    Setup {
        server,
        guard,
        budget,
        calls,
    }
}

impl Setup {
    /// Connects a client whose socket takes little.
    async fn connect(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(32 * 1024).unwrap();
        socket.connect(self.server.addr).await.unwrap()
    }

    /// Charges the budget for so much that responses have no room. More would shorten timeouts.
    fn fill_budget(&self) -> palisade_core::Charge {
        let uploads = self.budget.charge(None);
        uploads.take(3 << 18).unwrap();
        uploads
    }

    /// Requests a hundred responses that fit into their windows, and reads nothing. Returns when
    /// the socket is full.
    async fn leave_unread(&self) -> TcpStream {
        let mut client = self.connect().await;
        let requests = (0..STREAMS).flat_map(|stream| h2::get(2 * stream + 1, "/answer"));
        let requests: Vec<_> = requests.collect();
        client
            .write_all(&[h2::hello(1 << 20), requests].concat())
            .await
            .unwrap();
        wait_until("a request is in flight", || {
            self.guard.snapshot().in_flight > 0
        })
        .await;
        loop {
            let calls = self.calls.load(SeqCst);
            sleep(Duration::from_millis(200)).await;
            if calls == self.calls.load(SeqCst) {
                return client;
            }
        }
    }

    async fn nothing_is_held(self) {
        all_gone(&self.guard).await;
        wait_until("nothing is held", || self.budget.held() == 0).await;
    }
}

/// Reads all hundred responses.
async fn read_all(client: &mut TcpStream) {
    let (mut ended, mut bytes) = (0, 0);
    while ended < STREAMS {
        let frame = h2::read(client).await;
        if frame.kind == h2::DATA {
            bytes += frame.payload.len();
            ended += u32::from(frame.flags & h2::END_STREAM != 0);
        }
    }
    assert_eq!(bytes, STREAMS as usize * ANSWER_BYTES);
}

#[tokio::test]
async fn a_client_that_reads_nothing_gets_no_more_responses_made_and_all_when_it_reads() {
    let setup = serve().await;
    let mut client = setup.leave_unread().await;
    let calls = setup.calls.load(SeqCst);
    assert!(calls < STREAMS as usize, "{calls}");
    assert!(setup.budget.held() <= 512 << 10);
    read_all(&mut client).await;
    assert_eq!(setup.calls.load(SeqCst), STREAMS as usize);
    assert_eq!(setup.budget.held(), 0);
    drop(client);
    setup.nothing_is_held().await;
}

#[tokio::test]
async fn all_responses_are_served_while_uploads_keep_the_room_in_the_budget() {
    let setup = serve().await;
    let uploads = setup.fill_budget();
    let mut client = setup.leave_unread().await;
    read_all(&mut client).await;
    drop((client, uploads));
    setup.nothing_is_held().await;
}

#[tokio::test]
async fn what_is_held_is_given_back_when_streams_are_reset() {
    let setup = serve().await;
    let mut client = setup.leave_unread().await;
    assert!(setup.budget.held() > 3 * ANSWER_BYTES as u64);
    let resets = (0..STREAMS)
        .flat_map(|stream| h2::frame(h2::RST_STREAM, 0, 2 * stream + 1, &h2::CANCEL.to_be_bytes()));
    client.write_all(&resets.collect::<Vec<_>>()).await.unwrap();
    // The socket may have a part of one response.
    let rest = (ANSWER_BYTES + KIB) as u64;
    wait_until("the streams are gone", || setup.budget.held() <= rest).await;
    wait_until("nothing is in flight", || {
        setup.guard.snapshot().in_flight == 0
    })
    .await;
    drop(client);
    setup.nothing_is_held().await;
}

#[tokio::test]
async fn what_is_held_is_given_back_when_the_client_leaves() {
    let setup = serve().await;
    drop(setup.leave_unread().await);
    setup.nothing_is_held().await;
}

#[tokio::test]
async fn events_and_another_response_go_on_beside_streams_that_are_not_read() {
    let setup = serve().await;
    let uploads = setup.fill_budget();
    let mut client = setup.connect().await;
    // The windows of two streams are closed.
    let unread = [h2::hello(0), h2::get(1, "/endless"), h2::get(3, "/endless")].concat();
    client.write_all(&unread).await.unwrap();
    let events = [h2::get(5, "/events"), h2::open(5, 1 << 20)].concat();
    client.write_all(&events).await.unwrap();
    let answer = [h2::get(7, "/answer"), h2::open(7, 1 << 20)].concat();
    client.write_all(&answer).await.unwrap();
    let (mut bytes, mut events) = (0, 0);
    while bytes < ANSWER_BYTES || events < 100 {
        let frame = h2::read(&mut client).await;
        match (frame.kind, frame.stream) {
            (h2::DATA, 5) => events += 1,
            (h2::DATA, 7) => bytes += frame.payload.len(),
            (h2::DATA | h2::RST_STREAM, stream) => panic!("of stream {stream}"),
            _ => {}
        }
    }
    drop((client, uploads));
    setup.nothing_is_held().await;
}
