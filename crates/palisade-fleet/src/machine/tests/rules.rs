//! Single rules of the machine, and what holds whatever happens.

use super::fleet::{Arrival, MAX_WAIT, Setup, Simulation};
use palisade_guard::Gcra;
use proptest::prelude::*;

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

fn any_setup() -> impl Strategy<Value = Setup> {
    let numbers = (
        1u32..9,
        1_000u64..200_000,
        1u32..60,
        100u64..20_000,
        0u64..5_000,
    );
    (numbers, 0u64..2).prop_map(|((nodes, period, burst, round_trip, jitter), seed)| Setup {
        nodes,
        quota: Gcra::new(period, burst).unwrap(),
        flush_every: 20_000,
        round_trip,
        lost_calls: 0,
        lost_answers: 0,
        jitter,
        seed: 0x5eed_0002 + seed,
    })
}

/// The cells that a single limiter would have admitted at most in any time: the burst, the rate,
/// and the allowances.
fn bound(simulation: &Simulation, seconds: f64) -> f64 {
    let Setup { nodes, quota, .. } = &simulation.setup;
    let allowance = (quota.burst() / (4 * nodes)).max(1);
    let rate = 1_000_000.0 / quota.period() as f64;
    f64::from(quota.burst()) + rate * seconds + f64::from(2 * nodes * allowance)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_admitted_cell_is_charged_in_the_store_once(
        (setup, arrivals) in any_setup().prop_flat_map(|setup| {
            let nodes = setup.nodes;
            (Just(setup), arrivals(nodes))
        }),
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
        (setup, arrivals) in any_setup().prop_flat_map(|setup| {
            let nodes = setup.nodes;
            (Just(Setup { round_trip: setup.round_trip.min(4_000), jitter: 0, ..setup }), arrivals(nodes))
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
        (setup, arrivals) in any_setup().prop_flat_map(|setup| {
            let nodes = setup.nodes;
            let setup = Setup { lost_calls: 50, lost_answers: 50, ..setup };
            (Just(setup), arrivals(nodes))
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
