//! Single rules of the machine, and what holds whatever happens.

use super::fleet::{Arrival, MAX_WAIT, Setup, Simulation};
use crate::{
    machine::{Asked, Claim, Machine, Outcome, Reply, State},
    store::{Answer, Answers},
};
use palisade_guard::Gcra;
use proptest::prelude::*;
use std::{task::Waker, time::Duration};

fn arrivals(nodes: u32) -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0u64..3_000_000, 0..nodes as usize, 0u64..3, 1u32..4).prop_map(
        |(at, node, client, cost)| Arrival {
            at,
            node,
            client,
            cost,
        },
    );
    proptest::collection::vec(arrival, 1..400)
}

/// Any setup that `change` has changed, and arrivals at its nodes.
fn any_traffic(change: fn(Setup) -> Setup) -> impl Strategy<Value = (Setup, Vec<Arrival>)> {
    any_setup().prop_map(change).prop_flat_map(|setup| {
        let nodes = setup.nodes;
        (Just(setup), arrivals(nodes))
    })
}

fn any_setup() -> impl Strategy<Value = Setup> {
    let numbers = (
        1u32..9,
        1_000u64..200_000,
        1u32..60,
        100u64..20_000,
        0u64..5_000,
    );
    let parts = (0u64..2, 0u32..5);
    (numbers, parts).prop_map(
        |((nodes, period, burst, round_trip, jitter), (seed, shards))| Setup {
            nodes,
            quota: Gcra::new(period, burst).unwrap(),
            flush_every: 20_000,
            round_trip,
            lost_calls: 0,
            lost_answers: 0,
            jitter,
            seed: 0x5eed_0002 + seed,
            shards: 1 << shards,
        },
    )
}

/// The cells that a single limiter would have admitted at most in any time: the burst, the rate,
/// and the allowances.
fn bound(simulation: &Simulation, seconds: f64) -> f64 {
    let Setup { nodes, quota, .. } = &simulation.setup;
    let allowance = (quota.burst() / (4 * nodes)).max(1);
    let rate = 1_000_000.0 / quota.period() as f64;
    f64::from(quota.burst()) + rate * seconds + f64::from(2 * nodes * allowance)
}

fn one_account(rule: u16) -> [Claim; 1] {
    let claim = Claim {
        tag: 2,
        rule,
        account: 0,
    };
    [claim]
}

#[test]
fn accounts_of_one_request_do_not_take_the_slot_of_each_other() {
    let digest = |index: usize| [0, index as u64];
    // Two of sixteen slots: both tags are assigned to the first eight of them.
    let claims = |rule| [(2, 0), (4, 1)].map(|(tag, account)| Claim { tag, rule, account });
    let accounts = |machine: &mut Machine| {
        let asks = machine.take_batch(0, |_| true).unwrap().asks.into_iter();
        asks.map(|ask| (ask.account, ask.admitted, ask.asked))
            .collect::<Vec<_>>()
    };
    let mut machine = Machine::new(1, 16, 1);
    let rule = machine.rule(1_000, 40).unwrap();
    let outcome = machine.check(&claims(rule), 1, 0, &mut || true, &digest);
    assert_eq!(outcome, Outcome::Admit);
    assert_eq!(accounts(&mut machine), [(0, 1, 0), (1, 1, 0)]);

    let mut machine = Machine::new(1, 16, 1);
    let rule = machine.rule(1_000, 40).unwrap();
    let asked = machine.ask(&claims(rule), 20, 0, &digest);
    assert!(matches!(asked, Asked::Waits(_)), "{asked:?}");
    assert_eq!(accounts(&mut machine), [(0, 0, 20), (1, 0, 20)]);
}

#[test]
fn a_node_without_requests_tries_a_dead_store_when_it_counts_nodes_and_not_before() {
    let mut machine = Machine::new(1, 16, 1);
    machine.count_nodes();
    let flush = machine.flush(0).unwrap();
    machine.reply(flush.call, Reply::TimedOut, 40_000);
    // Else the task would look again and again, from the time of the next try on.
    assert_eq!(machine.wake_at(), Some(1_000_000));
    assert!(
        machine
            .flush(1_000_000)
            .is_some_and(|flush| flush.counts_nodes)
    );
}

#[test]
fn an_account_that_the_store_can_hold_again_is_refused_when_it_has_nothing_left() {
    let digest = |_| [0, 1];
    let mut machine = Machine::new(1, 16, 1);
    let rule = machine.rule(1_000_000, 40).unwrap();
    let claims = one_account(rule);
    let answer = |machine: &mut Machine, answer, now| {
        let flush = machine.take_batch(now, |_| true).unwrap();
        let answers = Answers::new(vec![answer], None);
        machine.reply(flush.call, Reply::Answers(answers), now);
    };
    machine.report(&claims, 1, 0, &|_| 0, &digest);
    answer(&mut machine, Answer::Unusable, 0);
    machine.report(&claims, 1, 0, &|_| 0, &digest);
    let wait = Duration::from_secs(10);
    answer(&mut machine, Answer::Granted { cells: 0, wait }, 0);
    let outcome = machine.check(&claims, 1, 0, &mut || true, &digest);
    assert!(matches!(outcome, Outcome::Deny { .. }), "{outcome:?}");
}

#[test]
fn a_request_that_the_account_cannot_pay_keeps_no_cheaper_one_from_it() {
    let digest = |_| [0, 1];
    let mut machine = Machine::new(1, 16, 1);
    let rule = machine.rule(1_000_000, 40).unwrap();
    let claims = one_account(rule);
    let asked = machine.ask(&claims, 20, 0, &digest);
    assert!(matches!(asked, Asked::Waits(_)), "{asked:?}");
    let flush = machine.take_batch(0, |_| true).unwrap();
    let wait = Duration::from_secs(10);
    // Ten cells are left.
    let answers = Answers::new(vec![Answer::Granted { cells: 0, wait }], None);
    machine.reply(flush.call, Reply::Answers(answers), 0);
    let mut check = |cost| machine.check(&claims, cost, 0, &mut || true, &digest);
    assert!(matches!(check(20), Outcome::Deny { .. }));
    assert_eq!(check(1), Outcome::Admit);
    assert_eq!(check(9), Outcome::Admit);
}

#[test]
fn a_request_that_is_decided_has_a_place_among_those_that_wait_until_it_is_told() {
    let mut machine = Machine::new(1, 16, 1);
    let rule = machine.rule(1_000, 40).unwrap();
    let claims = one_account(rule);
    let digest = |_| [0, 1];
    let mut numbers = Vec::new();
    while let Asked::Waits(number) = machine.ask(&claims, 20, 0, &digest) {
        numbers.push(number);
    }
    assert_eq!(numbers.len(), 1024);
    let flush = machine.take_batch(0, |_| true).unwrap();
    let wait = Duration::from_micros(1);
    let answers = Answers::new(vec![Answer::Granted { cells: 0, wait }], None);
    machine.reply(flush.call, Reply::Answers(answers), 0);
    // All are refused, and none of them has heard of it. It is asked again after a while.
    let now = 1_000_000;
    let asked = machine.ask(&claims, 20, now, &digest);
    assert_eq!(asked, Asked::Decided(Outcome::Alone));
    machine.leave(numbers[0], false);
    let asked = machine.ask(&claims, 20, now, &digest);
    assert!(matches!(asked, Asked::Waits(_)), "{asked:?}");
    assert_eq!(machine.counts().not_waited, 2);
}

#[test]
fn a_part_of_the_store_that_does_not_answer_leaves_requests_to_the_others_as_they_were() {
    let mut machine = Machine::new(1, 16, 1);
    machine.divide(2, 1);
    let rule = machine.rule(1_000, 40).unwrap();
    let claims = |tag| {
        let account = 0;
        [Claim { tag, rule, account }]
    };
    let digest = |shard: u64| move |_: usize| [0, shard];
    let hello = [machine.flush(0).unwrap(), machine.flush(0).unwrap()];
    assert_eq!(hello.each_ref().map(|flush| flush.shard), [0, 1]);
    machine.reply(hello[0].call, Reply::Answers(Answers::new(vec![], None)), 0);
    let waits = [0, 1].map(|shard| {
        let asked = machine.ask(&claims(2 + shard), 20, 0, &digest(shard));
        let Asked::Waits(number) = asked else {
            panic!("{asked:?}");
        };
        number
    });
    machine.reply(hello[1].call, Reply::TimedOut, 0);
    assert_eq!(machine.state(), State::Open);
    let mut poll = |number| machine.poll(number, Waker::noop(), &mut None);
    assert_eq!(waits.map(&mut poll), [None, Some(Outcome::Alone)]);
    // Also later, and one of both parts.
    let mut local = || true;
    for shard in [0, 1] {
        let expected = [Outcome::Admit, Outcome::Alone][shard as usize];
        let outcome = machine.check(&claims(4 + shard), 1, 0, &mut local, &digest(shard));
        assert_eq!(outcome, expected);
    }
    let [both] = claims(6);
    let both = [both, Claim { tag: 7, ..both }];
    let outcome = machine.check(&both, 1, 0, &mut local, &|index| [0, index as u64]);
    assert_eq!(outcome, Outcome::Alone);
    // A part is asked at once, and the other one with one account when it is time.
    let first = machine.flush(0).unwrap();
    assert_eq!((first.shard, first.asks.len()), (0, 2));
    assert!(machine.flush(100_000).is_none());
    let second = machine.flush(400_000).unwrap();
    assert_eq!((second.shard, second.asks.len()), (1, 1));
    machine.end();
    assert_eq!(machine.state(), State::Ended);
}

#[test]
fn a_part_of_the_store_without_clients_is_tried_again_until_it_answers() {
    let mut machine = Machine::new(1, 16, 1);
    machine.divide(2, 1);
    let hello = [machine.flush(0).unwrap(), machine.flush(0).unwrap()];
    let answer = || Reply::Answers(Answers::new(vec![], None));
    machine.reply(hello[0].call, answer(), 0);
    machine.reply(hello[1].call, Reply::TimedOut, 40_000);
    let mut now = 40_000;
    for _ in 0..3 {
        let at = machine.wake_at().unwrap();
        assert!((now + 200_000..=now + 960_000).contains(&at), "{now} {at}");
        let probe = machine.flush(at).unwrap();
        assert_eq!((probe.shard, probe.asks.len()), (1, 0));
        assert!(machine.flush(at).is_none());
        now = at + 40_000;
        machine.reply(probe.call, Reply::TimedOut, now);
    }
    let at = machine.wake_at().unwrap();
    let probe = machine.flush(at).unwrap();
    machine.reply(probe.call, answer(), at);
    assert_eq!((machine.state(), machine.wake_at()), (State::Closed, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_admitted_cell_is_charged_in_the_store_once(
        (setup, arrivals) in any_traffic(|setup| setup),
    ) {
        let mut simulation = Simulation::new(setup);
        let costs: u64 = arrivals.iter().map(|arrival| u64::from(arrival.cost)).sum();
        arrivals.iter().for_each(|arrival| simulation.arrive(*arrival));
        simulation.run(10_000_000);
        let totals = simulation.totals();
        prop_assert!(totals.admitted <= costs);
        prop_assert!(simulation.longest_wait <= MAX_WAIT);
        let unreported: u64 = simulation.nodes.iter().map(|it| it.machine.unreported()).sum();
        prop_assert_eq!(unreported, 0);
        // Grants that were not used are charged, too, and reported cells were all admitted.
        prop_assert!(simulation.reported <= totals.admitted);
        prop_assert!(simulation.reported + simulation.granted >= totals.admitted);
    }

    #[test]
    fn no_client_gets_more_than_the_bound(
        (setup, arrivals) in any_traffic(|setup| Setup {
            round_trip: setup.round_trip.min(4_000),
            jitter: 0,
            ..setup
        }),
    ) {
        let mut simulation = Simulation::new(setup);
        arrivals.iter().for_each(|arrival| simulation.arrive(*arrival));
        simulation.run(3_000_000);
        for served in simulation.served.values() {
            let most = bound(&simulation, 3.0) + served.alone as f64;
            prop_assert!(served.admitted as f64 <= most, "{served:?} {most}");
        }
    }

    #[test]
    fn lost_calls_and_answers_lose_their_own_cells_and_leave_the_node_in_order(
        (setup, arrivals) in any_traffic(|setup| Setup {
            lost_calls: 50,
            lost_answers: 50,
            ..setup
        }),
        restarts in proptest::collection::vec((0u64..3_000_000, 0usize..8), 0..4),
    ) {
        let mut simulation = Simulation::new(setup);
        arrivals.iter().for_each(|arrival| simulation.arrive(*arrival));
        let mut restarts = restarts;
        restarts.sort_unstable();
        for (at, node) in restarts {
            simulation.run(at);
            let node = node % simulation.nodes.len();
            simulation.restart(node);
        }
        simulation.run(60_000_000);
        prop_assert!(simulation.longest_wait <= MAX_WAIT);
        let totals = simulation.totals();
        let known = simulation.reported + simulation.granted + simulation.lost + simulation.paid();
        prop_assert!(known >= totals.admitted, "{known} {totals:?}");
    }
}
