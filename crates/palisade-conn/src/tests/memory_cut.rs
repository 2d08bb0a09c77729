//! The steps while memory is short, and the last of them: the connections that hold most are
//! closed while it grows.

use super::*;
use crate::{Budget, Memory, Mode};
use futures_util::FutureExt;
use palisade_core::{Phase, shed::Shed};
use std::mem;
use tokio::time::sleep;

const LIMIT: u64 = 1000 << 20;
const KIB: u64 = 1 << 10;

/// A guard over memory that the test reports.
struct Fixture {
    guard: ConnGuard,
    journal: Journal,
    memory: Memory,
    budget: Budget,
}

fn fixture(mode: Mode) -> Fixture {
    let memory = Memory::reported(LIMIT).unwrap();
    let budget = Budget::new(LIMIT / 4).unwrap();
    let builder = ConnGuard::builder()
        .mode(mode)
        .max_connections(1000)
        .max_per_client(None)
        .accept_rate(None)
        .reserve(1, ["192.0.2.9/32".parse().unwrap()])
        .byte_budget(budget.clone());
    let (guard, journal) = tracking_guard(builder.memory(memory.clone()));
    Fixture {
        guard,
        journal,
        memory,
        budget,
    }
}

impl Fixture {
    /// Reports so many thousandths of the limit, and waits for the next sweep.
    async fn report(&self, thousandths: u64) {
        self.memory.report(LIMIT / 1000 * thousandths);
        sleep(TICK).await;
    }

    /// Lets memory grow to the level from which sockets are asked.
    async fn grow_until_asked(&self) {
        sleep(TICK / 2).await; // From now on between two sweeps.
        self.report(870).await;
        self.report(890).await;
    }

    fn assert_nothing_left(&self) {
        assert_nothing_left(&self.guard);
        assert_eq!(self.budget.held(), 0);
    }
}

/// Connects a client with a request in flight that is charged so many bytes.
fn connect_charged(guard: &ConnGuard, last: u8, bytes: u64) -> (Pair, InFlight) {
    let (pair, mut request) = connect_working(guard, last).unwrap();
    request.charge_head(bytes).unwrap();
    assert_eq!(u64::from(pair.server.conn().charged_bytes()), bytes);
    (pair, request)
}

fn is_cut(pair: &Pair) -> bool {
    let decision = pair.decision();
    decision.is_some_and(|decision| decision.reason == Reason::MemoryPressure)
}

/// Polls the socket, as its task does when the guard wakes it.
fn poll_socket(pair: &mut Pair) {
    let _ = pair.server.flush().now_or_never();
}

#[tokio::test(start_paused = true)]
async fn in_a_look_with_growth_the_fifty_connections_that_are_charged_most_are_closed() {
    let fixture = fixture(Mode::Enforce);
    let rank = |number: u64| number * 7 % 130;
    let mut conns: Vec<_> = (0..130)
        .map(|number| connect_charged(&fixture.guard, 1, (64 + rank(number)) * KIB))
        .collect();
    fixture.grow_until_asked().await;
    assert!(!conns.iter().any(|(pair, _)| is_cut(pair)));
    fixture.report(975).await;
    for (number, (pair, _)) in (0..).zip(&conns) {
        assert_eq!(is_cut(pair), rank(number) >= 80, "{number}");
    }
    let disconnected = fixture.journal.disconnected();
    assert_eq!(disconnected.len(), 50);
    let (violation, mode) = disconnected[0];
    assert_eq!(
        (violation.reason, violation.phase, mode),
        (Reason::MemoryPressure, Phase::Working, Mode::Enforce)
    );
    let numbers = (violation.limit, violation.observed);
    assert_eq!(numbers, (LIMIT, LIMIT / 1000 * 975));

    // They are reset, and what is charged for them is given back.
    let (cut, _request) = conns.iter_mut().find(|(pair, _)| is_cut(pair)).unwrap();
    let (_, result) = read_until_closed(&mut cut.server).await;
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(cut.reset.load(Relaxed));
    conns.retain(|(pair, _)| !is_cut(pair));
    let left: u64 = (0..80).map(|rank| (64 + rank) * KIB).sum();
    assert_eq!(fixture.budget.held(), left);

    // The next looks with growth close the next ones.
    let cut = |conns: &[(Pair, InFlight)]| conns.iter().filter(|(pair, _)| is_cut(pair)).count();
    fixture.report(985).await;
    assert_eq!(cut(&conns), 50);
    fixture.report(995).await;
    assert_eq!(cut(&conns), 80);
    drop(conns);
    fixture.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn memory_that_stands_still_closes_no_connection_however_high_it_is() {
    let fixture = fixture(Mode::Enforce);
    let (pair, _request) = connect_charged(&fixture.guard, 1, 500 * KIB);
    fixture.grow_until_asked().await;
    for level in [969, 969, 969] {
        fixture.report(level).await;
    }
    // It grows by less than a step.
    for level in [970, 971, 971] {
        fixture.report(level).await;
    }
    for _ in 0..1000 {
        fixture.report(971).await;
    }
    assert!(!is_cut(&pair));
    assert_eq!(fixture.journal.disconnected(), []);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_answer_is_spared_and_one_that_stalls_is_not() {
    let fixture = fixture(Mode::Enforce);
    let guard = &fixture.guard;
    let (mut taking, _taken) = connect_charged(guard, 1, 500 * KIB);
    let (mut full, _waiting) = connect_charged(guard, 2, 500 * KIB);
    let (mut continued, _body) = connect_charged(guard, 3, 500 * KIB);
    fixture.grow_until_asked().await;
    // A whole piece was taken by the time of the sweep.
    taking.server.write_all(&[b'x'; 500]).await.unwrap();
    taking.client.read_exact(&mut [0; 500]).await.unwrap();
    // There is more than the socket takes.
    assert!(
        full.server
            .write_all(&[b'x'; 2000])
            .now_or_never()
            .is_none()
    );
    // This is no answer yet.
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    continued.server.write_all(interim).await.unwrap();
    fixture.report(975).await;
    assert_eq!(
        [&taking, &full, &continued].map(is_cut),
        [false, false, true]
    );

    // The client takes no more of the answer.
    for _ in 0..20 {
        fixture.report(975).await;
    }
    fixture.report(985).await;
    fixture.report(995).await;
    assert!(is_cut(&full));
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_has_unread_counts_and_an_old_answer_of_a_socket_does_not() {
    let fixture = fixture(Mode::Enforce);
    let (mut pair, _request) = connect_working(&fixture.guard, 1).unwrap();
    let (mut drained, _other) = connect_working(&fixture.guard, 2).unwrap();
    let (mut little, _third) = connect_working(&fixture.guard, 3).unwrap();
    let (charged, _charged) = connect_charged(&fixture.guard, 4, 500 * KIB);
    little.unread.store(64 * KIB - 1, Relaxed);
    for pair in [&pair, &drained] {
        pair.unread.store(64 * KIB, Relaxed);
    }
    fixture.grow_until_asked().await;
    poll_socket(&mut pair);
    poll_socket(&mut drained);
    drained.unread.store(0, Relaxed);
    // Both answer once more before the level is reached, at which what is charged does not count.
    fixture.report(895).await;
    for pair in [&mut pair, &mut drained, &mut little] {
        poll_socket(pair);
    }
    fixture.report(905).await;
    let conns = [&pair, &drained, &little, &charged];
    assert_eq!(conns.map(is_cut), [true, false, false, false]);
    // An answer from before the last question is out of date.
    drained.unread.store(64 * KIB, Relaxed);
    poll_socket(&mut drained);
    for level in [900, 900, 900, 900, 960, 975] {
        fixture.report(level).await;
    }
    assert_eq!([&drained, &charged].map(is_cut), [false, true]);
    poll_socket(&mut drained);
    fixture.report(985).await;
    assert!(is_cut(&drained));
}

#[tokio::test(start_paused = true)]
async fn what_the_server_is_about_to_read_does_not_count() {
    let fixture = fixture(Mode::Enforce);
    let (mut pair, _request) = connect_working(&fixture.guard, 1).unwrap();
    let upload = async |pair: &mut Pair, level| {
        pair.client.write_all(&[b'x'; 800]).await.unwrap();
        pair.unread.store(64 * KIB + 700, Relaxed);
        fixture.report(level).await;
        // A task that is woken reads.
        pair.server.read_exact(&mut [0; 800]).await.unwrap();
    };
    sleep(TICK / 2).await;
    for level in [870, 890, 905, 915, 925] {
        upload(&mut pair, level).await;
        assert!(!is_cut(&pair), "{level}");
    }
    assert_eq!(pair.server.conn().unread_bytes(), 64 * KIB as u32 - 100);
}

#[tokio::test(start_paused = true)]
async fn while_memory_is_short_and_grows_what_is_not_read_gets_a_small_receive_buffer() {
    let fixture = fixture(Mode::Enforce);
    let (mut pair, _request) = connect_working(&fixture.guard, 1).unwrap();
    let (mut read, _other) = connect_working(&fixture.guard, 2).unwrap();
    sleep(TICK / 2).await;
    pair.unread.store(64 * KIB, Relaxed);
    read.unread.store(64 * KIB - 1, Relaxed);
    let mut buffers = async |level| {
        fixture.report(level).await;
        [&mut pair, &mut read].map(|pair| {
            poll_socket(pair);
            pair.receive_buffer.load(Relaxed)
        })
    };
    let usual = buffers(799).await;
    // It has not grown by a step.
    assert_eq!(buffers(801).await, usual);
    let small = 64 * KIB as u32;
    assert_eq!(buffers(805).await, [small, usual[1]]);
    assert_eq!(fixture.journal.disconnected(), []);
}

#[tokio::test(start_paused = true)]
async fn a_socket_whose_output_does_not_leave_answers_too() {
    let fixture = fixture(Mode::Enforce);
    let (mut pair, _request) = connect_working(&fixture.guard, 1).unwrap();
    pair.unread.store(64 * KIB, Relaxed);
    let write = |pair: &mut Pair| pair.server.write_all(&[b'x'; 2000]).now_or_never();
    assert!(write(&mut pair).is_none());
    sleep(20 * SECOND).await; // The client takes nothing.
    fixture.grow_until_asked().await;
    assert!(write(&mut pair).is_none());
    fixture.report(975).await;
    assert!(is_cut(&pair));
}

#[tokio::test(start_paused = true)]
async fn growth_just_after_a_sweep_is_not_left_until_the_next_one() {
    let fixture = fixture(Mode::Enforce);
    let (pair, _request) = connect_charged(&fixture.guard, 1, 500 * KIB);
    sleep(Duration::from_millis(5)).await; // From now on just after each sweep.
    fixture.report(870).await;
    fixture.report(890).await;
    fixture.memory.report(LIMIT / 1000 * 975);
    sleep(Duration::from_millis(50)).await;
    assert!(is_cut(&pair));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_each_connection_is_reported_once_and_reserved_ones_are_left() {
    let fixture = fixture(Mode::Shadow);
    let conns: Vec<_> = (0..3)
        .map(|_| connect_charged(&fixture.guard, 1, 500 * KIB))
        .collect();
    fixture.grow_until_asked().await;
    fixture.report(975).await;
    fixture.report(985).await;
    let reported = fixture.journal.disconnected();
    let of_memory = reported.iter().filter(|(violation, mode)| {
        violation.reason == Reason::MemoryPressure && *mode == Mode::Shadow
    });
    assert_eq!((of_memory.count(), reported.len()), (3, 3));
    assert!(conns.iter().all(|(pair, _)| pair.decision().is_none()));

    let fixture = self::fixture(Mode::Enforce);
    let (reserved, _request) = connect_charged(&fixture.guard, 9, 500 * KIB);
    let (other, _request) = connect_charged(&fixture.guard, 1, 100 * KIB);
    fixture.grow_until_asked().await;
    fixture.report(975).await;
    assert_eq!([&reserved, &other].map(is_cut), [false, true]);
}

/// What a guard does for memory at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    /// A new connection gets the small receive buffer.
    small_buffer: bool,
    /// What requests outside of the share get: nothing, and then one more at each level.
    shed: Option<&'static str>,
    /// A new connection evicts another one.
    evicts: bool,
    /// The connections that are closed since the last time.
    cut: usize,
}

impl Steps {
    fn of(fixture: &Fixture, cut_before: &mut usize) -> Self {
        let shared = fixture.guard.shared();
        let newcomer = connect_from(&fixture.guard, 9).unwrap();
        let conn = newcomer.server.conn();
        let unreserved = fixture.guard.shared().connection(peer(1), None);
        let shed = (0..16).find_map(|_| shared.totals.shed_connection(&unreserved));
        assert_eq!(shared.totals.shed_connection(conn), None); // It is reserved.
        let cut = fixture.journal.disconnected().len();
        Self {
            small_buffer: newcomer.receive_buffer.load(Relaxed) == 64 * KIB as u32,
            shed: shed.map(|shed| match shed {
                Shed::Close => "close",
                Shed::RefuseSheddable(_) => "refuse sheddable",
                Shed::Refuse(_) => "refuse",
            }),
            evicts: shared.evicts_for_memory(),
            cut: cut - mem::replace(cut_before, cut),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_step_begins_at_its_level_while_memory_grows_and_ends_below_it() {
    let fixture = fixture(Mode::Enforce);
    let conns: Vec<_> = (0..60)
        .map(|_| connect_charged(&fixture.guard, 1, 100 * KIB))
        .collect();
    let steps = |small_buffer, shed, evicts, cut| Steps {
        small_buffer,
        shed,
        evicts,
        cut,
    };
    let (none, close) = (None, Some("close"));
    let (sheddable, refuse) = (Some("refuse sheddable"), Some("refuse"));
    sleep(TICK / 2).await;
    let mut cut = 0;
    for (level, expected) in [
        (790, steps(false, none, false, 0)),
        (800, steps(true, none, false, 0)),
        (875, steps(true, none, false, 0)),
        (880, steps(true, close, false, 0)),
        (895, steps(true, close, false, 0)),
        (900, steps(true, close, true, 0)),
        (920, steps(true, sheddable, true, 0)),
        (945, steps(true, sheddable, true, 0)),
        (950, steps(true, refuse, true, 0)),
        (965, steps(true, refuse, true, 0)),
        (970, steps(true, refuse, true, 50)),
        // It grows no more, and no step comes a second time.
        (970, steps(true, refuse, true, 0)),
        (955, steps(true, refuse, true, 0)),
        (949, steps(true, sheddable, true, 0)),
        (919, steps(true, close, true, 0)),
        (899, steps(true, close, false, 0)),
        (879, steps(true, none, false, 0)),
        (799, steps(false, none, false, 0)),
    ] {
        fixture.report(level).await;
        assert_eq!(Steps::of(&fixture, &mut cut), expected, "{level}");
    }
    drop(conns);
    fixture.assert_nothing_left();
}
