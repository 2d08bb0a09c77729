//! The fleet under the traffic for which the protocol was chosen.

use super::fleet::{Arrival, MAX_WAIT, Setup, Simulation};
use palisade_guard::Gcra;

const SECOND: u64 = 1_000_000;
/// The client that sends far more than its limit.
const ABUSER: u64 = 0;

fn setup(nodes: u32, quota: Gcra) -> Setup {
    Setup {
        nodes,
        quota,
        flush_every: 20_000,
        round_trip: 1_000,
        lost_calls: 0,
        lost_answers: 0,
        jitter: 0,
        seed: 0x5eed_0001,
        shards: 1,
    }
}

/// Draws clients, the first of which come most often (Zipf).
struct Clients {
    /// The sum of the weights up to each.
    sums: Vec<f64>,
}

impl Clients {
    fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let weight = |rank: usize| {
            sum += 1.0 / (rank as f64);
            sum
        };
        Self {
            sums: (1..=count).map(weight).collect(),
        }
    }

    fn draw(&self, random: u64) -> u64 {
        let total = self.sums[self.sums.len() - 1];
        let at = (random >> 11) as f64 / (1u64 << 53) as f64 * total;
        self.sums.partition_point(|sum| *sum < at) as u64 + 1
    }
}

/// Sends `rate` requests a second of the clients, and `abuse` of the abuser, to random nodes.
fn traffic(simulation: &mut Simulation, clients: &Clients, rate: u64, abuse: u64, seconds: u64) {
    let nodes = u64::from(simulation.setup.nodes);
    for (rate, is_abuser) in [(rate, false), (abuse, true)] {
        for _ in 0..rate * seconds {
            let at = simulation.random() % (seconds * SECOND);
            let node = (simulation.random() % nodes) as usize;
            let client = if is_abuser {
                ABUSER
            } else {
                clients.draw(simulation.random())
            };
            let cost = 1;
            simulation.arrive(Arrival {
                at,
                node,
                client,
                cost,
            });
        }
    }
}

/// Returns the requests per call, the requests in a thousand that waited, and what the abuser got
/// relative to a burst and the rate.
fn measure(setup: Setup, clients: usize, rate: u64, abuse: u64) -> (f64, f64, f64) {
    const SECONDS: u64 = 10;
    let mut simulation = Simulation::new(setup);
    traffic(
        &mut simulation,
        &Clients::new(clients),
        rate,
        abuse,
        SECONDS,
    );
    simulation.run((SECONDS + 2) * SECOND);
    let totals = simulation.totals();
    let requests = totals.admitted + totals.refused;
    assert_eq!(requests, (rate + abuse) * SECONDS);
    assert!(simulation.longest_wait <= MAX_WAIT);
    let quota = simulation.setup.quota;
    let bound = f64::from(quota.burst()) + (SECONDS * SECOND) as f64 / quota.period() as f64;
    let abuser = simulation.served.get(&ABUSER).copied().unwrap_or_default();
    let per_call = requests as f64 / simulation.calls() as f64;
    let waited = 1000.0 * totals.waited as f64 / requests as f64;
    (per_call, waited, abuser.admitted as f64 / bound)
}

/// Ten a second, twenty at once.
fn ten_a_second() -> Gcra {
    Gcra::new(100_000, 20).unwrap()
}

#[test]
fn eight_nodes_make_few_calls_and_few_requests_wait() {
    let (per_call, waited, abuser) = measure(setup(8, ten_a_second()), 20_000, 14_000, 2_000);
    println!("20 ms: {per_call:.1} a call, {waited:.2} in 1000 waited, abuser {abuser:.3}");
    assert!(per_call >= 30.0, "{per_call}");
    assert!(waited < 10.0, "{waited}");
    assert!(abuser <= 1.05, "{abuser}");
}

#[test]
fn other_intervals_and_numbers_of_nodes_are_as_the_first_simulation_had_them() {
    for (nodes, flush_every, most_abuse) in [(8, 5_000, 1.08), (8, 50_000, 1.08), (32, 20_000, 1.2)]
    {
        let setup = Setup {
            flush_every,
            ..setup(nodes, ten_a_second())
        };
        let (per_call, waited, abuser) = measure(setup, 20_000, 20_000, 2_000);
        println!("{nodes} nodes, {flush_every} us: {per_call:.1}, {waited:.2}, {abuser:.3}");
        assert!(per_call >= 10.0, "{per_call}");
        assert!(waited < 15.0, "{waited}");
        assert!(abuser <= most_abuse, "{abuser}");
    }
}

#[test]
fn light_traffic_waits_rarely_and_costs_few_calls() {
    let (per_call, waited, abuser) = measure(setup(8, ten_a_second()), 20_000, 200, 20);
    println!("light: {per_call:.1}, {waited:.2}, {abuser:.3}");
    assert!(waited < 10.0, "{waited}");
    assert!(abuser <= 1.05, "{abuser}");
}

#[test]
fn one_heavy_tenant_is_served_from_leases_at_its_exact_rate() {
    // 2,000 a second, and eight times as many are sent.
    let quota = Gcra::new(500, 2_000).unwrap();
    let (per_call, waited, abuser) = measure(setup(8, quota), 20_000, 2_000, 16_000);
    println!("tenant: {per_call:.1}, {waited:.2}, {abuser:.3}");
    assert!(per_call >= 30.0, "{per_call}");
    assert!(waited < 10.0, "{waited}");
    assert!((0.97..=1.01).contains(&abuser), "{abuser}");
}

#[test]
fn a_flood_of_a_million_clients_changes_nothing_for_the_others() {
    let setup = Setup {
        round_trip: 10_000, // Too few answers for all of them.
        ..setup(8, ten_a_second())
    };
    let mut simulation = Simulation::new(setup);
    for client in 0..1_000_000 {
        let at = client * 2; // Half a million a second.
        let node = (client % 8) as usize;
        let cost = 1;
        simulation.arrive(Arrival {
            at,
            node,
            client: client + 10,
            cost,
        });
        if client % 50_000 == 0 {
            let client = 1; // Ten a second.
            simulation.arrive(Arrival {
                at,
                node,
                client,
                cost,
            });
        }
    }
    simulation.run(5 * SECOND);
    let totals = simulation.totals();
    assert_eq!(totals.refused, 0);
    // Of the neighbour, while its report was behind those of the flood.
    assert!(totals.waited < 10, "{}", totals.waited);
    for node in &simulation.nodes {
        assert!(node.machine.counts().local_only > 0);
        assert_eq!(node.machine.unreported(), 0);
    }
}

#[test]
fn an_idle_node_makes_no_call() {
    let mut simulation = Simulation::new(setup(2, ten_a_second()));
    simulation.arrive(Arrival {
        at: 0,
        node: 0,
        client: 1,
        cost: 1,
    });
    simulation.run(60 * SECOND);
    assert_eq!(simulation.calls(), 1);
}

#[test]
fn a_saturated_account_is_admitted_its_burst_and_rate_and_no_more() {
    for (nodes, burst) in [(1, 20), (4, 40), (8, 20), (8, 400), (16, 10)] {
        const SECONDS: u64 = 20;
        let quota = Gcra::new(50_000, burst).unwrap();
        let mut simulation = Simulation::new(setup(nodes, quota));
        traffic(&mut simulation, &Clients::new(1), 0, 1_000, SECONDS);
        simulation.run(SECONDS * SECOND);
        let exact = u64::from(burst) + SECONDS * 20;
        let allowance = (burst / (4 * nodes)).max(1);
        let most = exact + u64::from(2 * nodes * allowance);
        let admitted = simulation.served[&ABUSER].admitted;
        println!("{nodes} nodes, burst {burst}: {admitted} of {exact}, at most {most}");
        assert!(admitted as f64 >= 0.97 * exact as f64, "{admitted} {exact}");
        assert!(admitted <= most, "{admitted} {most}");
    }
}

#[test]
fn the_rate_over_a_long_time_is_exact() {
    let quota = Gcra::new(100_000, 20).unwrap();
    let mut simulation = Simulation::new(setup(8, quota));
    traffic(&mut simulation, &Clients::new(1), 0, 200, 600);
    let admitted_until = |simulation: &mut Simulation, at: u64| {
        simulation.run(at * SECOND);
        simulation.served[&ABUSER].admitted
    };
    let first = admitted_until(&mut simulation, 100);
    let last = admitted_until(&mut simulation, 600);
    let rate = (last - first) as f64 / 5_000.0;
    println!("{rate:.5} of the rate");
    assert!((rate - 1.0).abs() <= 0.001, "{rate}");
}

#[test]
fn a_client_at_nine_tenths_of_the_rate_is_never_refused() {
    let quota = Gcra::new(100_000, 20).unwrap();
    let mut simulation = Simulation::new(setup(8, quota));
    for request in 0..540 {
        let node = (simulation.random() % 8) as usize;
        simulation.arrive(Arrival {
            at: request * 111_112,
            node,
            client: 1,
            cost: 1,
        });
    }
    simulation.run(70 * SECOND);
    let served = simulation.served[&1];
    assert_eq!((served.admitted, served.refused), (540, 0));
}

#[test]
fn the_neighbours_of_an_abuser_are_never_refused_and_rarely_wait() {
    let mut simulation = Simulation::new(setup(8, ten_a_second()));
    traffic(&mut simulation, &Clients::new(1), 0, 16_000, 10);
    const NEIGHBOURS: u64 = 200;
    for client in 1..=NEIGHBOURS {
        for request in 0..50 {
            let at = request * 200_000 + simulation.random() % 100_000;
            let node = (simulation.random() % 8) as usize;
            simulation.arrive(Arrival {
                at,
                node,
                client,
                cost: 1,
            });
        }
    }
    simulation.run(12 * SECOND);
    let (mut waited, mut requests) = (0, 0);
    for client in 1..=NEIGHBOURS {
        let served = simulation.served[&client];
        assert_eq!(served.refused, 0, "{client}");
        waited += served.waited;
        requests += served.admitted;
    }
    assert!(waited * 100 < requests, "{waited} of {requests}");
    // A second and node.
    let calls = simulation.calls() as f64 / 8.0 / 12.0;
    println!("{waited} of {requests} waited, {calls:.1} calls a second and node");
    assert!(calls <= 60.0, "{calls}");
}

#[test]
fn all_that_a_node_keeps_takes_four_mebibytes_at_most() {
    use crate::machine::{Machine, entries::Entry, waiters::Waiter};
    const SLOTS: usize = 1 << 16;
    let account = size_of::<Entry>() + size_of::<u64>();
    assert!(account <= 64, "{account} bytes");
    // The queues of 16,384 and of 65,536 slots at most, which double as they grow.
    let queues = (16_384 + SLOTS) * size_of::<u32>();
    let waiters = 1024 * (size_of::<Option<Waiter>>() + 2 * size_of::<u32>());
    let all = SLOTS * account + queues + waiters + size_of::<Machine>();
    assert!(all <= 4 << 20, "{all} bytes");
}
