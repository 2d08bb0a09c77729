use super::*;
use crate::Prefix;
use http::Request;

const LIMIT: u64 = 1000;

/// Load shedding by memory that has just grown to this use, with a share of one half.
fn grown_to(used: u64) -> LoadShedding {
    let memory = Memory::reported(LIMIT).unwrap();
    memory.report(used - 10);
    memory.report(used);
    LoadShedding::new(Some(memory), None)
}

/// Load shedding by a runtime in which a task has waited for two seconds, with a share of 1/64.
fn overloaded() -> LoadShedding {
    let load = RuntimeLoad::reported();
    for _ in 0..12 {
        load.report(Duration::from_secs(2));
    }
    assert_eq!(load.ask(), WHOLE / 64);
    LoadShedding::new(None, Some(load))
}

/// Returns what a request of this client gets.
fn shed(shedding: &LoadShedding, client: Option<u64>, clients: u32, millis: u32) -> Option<Shed> {
    let rank = shedding.rank(client, clients, millis);
    shedding.shed(shedding.ask()?, rank)
}

/// Returns what each of so many requests without a client gets.
fn shed_of(shedding: &LoadShedding, requests: u32) -> Vec<Shed> {
    let requests = 0..requests;
    requests
        .filter_map(|_| shed(shedding, None, 0, 0))
        .collect()
}

/// Returns the requests that are not shed, of 160 in turn by each of so many clients.
fn admitted(shedding: &LoadShedding, clients: u16, millis: u32) -> Vec<usize> {
    let hash = |client: u16| {
        let [high, low] = client.to_be_bytes();
        let peer = ([198, 51, high, low], 1).into();
        ConnInfo::new(peer, None, Prefix::default()).known_client_hash()
    };
    let hashes: Vec<_> = (0..clients).map(hash).collect();
    let mut admitted = vec![0; hashes.len()];
    for _ in 0..160 {
        for (client, admitted) in hashes.iter().zip(&mut admitted) {
            let shed = shed(shedding, *client, clients.into(), millis);
            *admitted += usize::from(shed.is_none());
        }
    }
    admitted
}

#[test]
fn at_rest_and_below_the_first_level_nothing_is_shed() {
    assert_eq!(shed_of(&LoadShedding::default(), 100), []);
    let memory = Memory::reported(LIMIT).unwrap();
    memory.report(990);
    let shedding = LoadShedding::new(Some(memory), Some(RuntimeLoad::reported()));
    assert_eq!(shed_of(&shedding, 100), []);
    assert_eq!(shedding.ask_for_connection(), None);
    // Growth has halved the share, and then most of the memory was freed.
    let shedding = grown_to(960);
    shedding.memory().unwrap().report(500);
    assert!(shedding.ask().is_some());
    assert_eq!(shed_of(&shedding, 160), []);
}

#[test]
fn connections_end_from_the_first_level_on_and_requests_are_refused_from_the_second() {
    assert_eq!(shed_of(&grown_to(900), 16), [Shed::Close; 8]);
    assert_eq!(shed_of(&grown_to(919), 16), [Shed::Close; 8]);
    for used in [920, 949] {
        let shed = shed_of(&grown_to(used), 16);
        assert_eq!(shed.len(), 8);
        let is_sheddable = |one: &Shed| matches!(one, Shed::RefuseSheddable(_));
        assert!(shed.iter().all(is_sheddable), "{shed:?}");
    }
    let shed = shed_of(&grown_to(960), 16);
    assert_eq!(shed.len(), 8);
    for one in shed {
        let Shed::Refuse(refused) = one else {
            panic!("{one:?}")
        };
        assert_eq!(refused.reason, Reason::MemoryPressure);
        assert_eq!(refused.numbers, (LIMIT, 960));
        let seconds = refused.retry_after.as_secs();
        assert!((1..=5).contains(&seconds), "{seconds}");
    }
}

#[test]
fn an_overloaded_runtime_refuses_what_is_outside_of_the_share_from_the_first_request_on() {
    let mut shed = shed_of(&overloaded(), 64);
    // The one inside of the share is still refused if it is sheddable.
    let last = shed.pop().unwrap();
    assert!(matches!(last, Shed::RefuseSheddable(_)), "{last:?}");
    let is_refused = |one: &Shed| matches!(one, Shed::Refuse(_));
    assert!(shed.len() == 63 && shed.iter().all(is_refused), "{shed:?}");
    let Shed::Refuse(refused) = shed[0] else {
        panic!("{shed:?}")
    };
    assert_eq!(refused.reason, Reason::RuntimeBusy);
    assert_eq!(refused.numbers, (250, 2000));
    // New connections are admitted.
    assert_eq!(overloaded().ask_for_connection(), None);
}

#[test]
fn a_request_is_asked_once_for_both_shares_and_the_lower_one_counts() {
    let load = overloaded().runtime().unwrap().clone();
    let memory = grown_to(960).memory().unwrap().clone();
    let both = LoadShedding::new(Some(memory), Some(load));
    let shed = shed_of(&both, 64);
    let refused_for = |reason| {
        let is_for = |one: &&Shed| matches!(one, Shed::Refuse(one) if one.reason == reason);
        shed.iter().filter(is_for).count()
    };
    assert_eq!(refused_for(Reason::MemoryPressure), 32);
    assert_eq!(refused_for(Reason::RuntimeBusy), 31);
}

#[test]
fn the_share_is_of_requests_where_there_are_few_clients_and_of_clients_where_there_are_many() {
    assert_eq!(admitted(&grown_to(960), 1, 0), [80]);
    let of_four = admitted(&grown_to(960), 4, 0);
    assert_eq!(of_four.iter().sum::<usize>(), 320);
    // Of many clients each is served whole, or not at all for this second.
    let shedding = grown_to(960);
    let of_hundred = admitted(&shedding, 100, 5000);
    assert!(of_hundred.iter().all(|served| [0, 160].contains(served)));
    let served = of_hundred.iter().filter(|served| **served == 160).count();
    assert!((30..70).contains(&served), "{served}");
    // In the next seconds it is the turn of others: nearly each client is served in one of ten.
    let mut is_served = [false; 100];
    for second in 0..10 {
        let served = admitted(&shedding, 100, second * 1000);
        for (is_served, served) in is_served.iter_mut().zip(served) {
            *is_served |= served > 0;
        }
    }
    assert!(is_served.iter().filter(|served| **served).count() >= 95);
}

#[test]
fn without_a_client_the_number_of_the_request_decides() {
    let shedding = grown_to(960);
    let shed = (0..160).filter(|_| shed(&shedding, None, 1000, 0).is_some());
    assert_eq!(shed.count(), 80);
}

#[test]
fn critical_requests_are_admitted_and_sheddable_ones_refused_first() {
    let mut shedding = LoadShedding::default();
    let is_at = |path: &'static str| -> Option<PicksRequests> {
        Some(Arc::new(move |head| head.uri.path().starts_with(path)))
    };
    shedding.set_critical(is_at("/health"));
    shedding.set_sheddable(is_at("/export"));
    let verdict = |path: &str, shed| {
        let request = Request::get(path).body(()).unwrap();
        shedding.verdict(shed, &RequestHead::from(&request))
    };
    let [memory, runtime] =
        [Reason::MemoryPressure, Reason::RuntimeBusy].map(|reason| Refused::new(reason, (1, 2), 0));
    for (path, shed, expected) in [
        ("/", Shed::Close, Verdict::Close),
        ("/", Shed::RefuseSheddable(memory), Verdict::Close),
        ("/", Shed::RefuseSheddable(runtime), Verdict::Admit),
        ("/", Shed::Refuse(runtime), Verdict::Refuse(runtime)),
        ("/export", Shed::Close, Verdict::Close),
        (
            "/export",
            Shed::RefuseSheddable(memory),
            Verdict::Refuse(memory),
        ),
        (
            "/export",
            Shed::RefuseSheddable(runtime),
            Verdict::Refuse(runtime),
        ),
        ("/health", Shed::Close, Verdict::Admit),
        ("/health", Shed::Refuse(memory), Verdict::Admit),
    ] {
        assert_eq!(verdict(path, shed), expected, "{path} {shed:?}");
    }
}

#[test]
fn a_clone_asks_the_same_sources_and_a_source_can_be_replaced() {
    let shedding = grown_to(960);
    let mut clone = shedding.clone();
    assert_eq!(shed_of(&clone, 16).len(), 8);
    clone.set_memory(None);
    assert_eq!((clone.ask(), clone.memory().is_none()), (None, true));
    clone.set_runtime(overloaded().runtime().cloned());
    assert!(clone.ask().is_some());
    clone.set_runtime(None);
    assert_eq!((clone.ask(), clone.runtime().is_none()), (None, true));
    assert_eq!(shed_of(&shedding, 16).len(), 8);
}

#[test]
fn the_gauges_are_those_of_the_sources_that_are_there() {
    let sampled = |shedding: &LoadShedding| {
        let mut sampled = Vec::new();
        shedding.sample(&mut |gauge, value| sampled.push((gauge, value)));
        sampled
    };
    assert_eq!(sampled(&LoadShedding::default()), []);
    let used = [
        (Gauge::MemoryUsed, 960),
        (Gauge::MemoryLimit, LIMIT),
        (Gauge::MemorySharePercent, 50),
    ];
    assert_eq!(sampled(&grown_to(960)), used);
    let delayed = [(Gauge::RuntimeDelay, 2000), (Gauge::RuntimeSharePercent, 1)];
    assert_eq!(sampled(&overloaded()), delayed);
}
