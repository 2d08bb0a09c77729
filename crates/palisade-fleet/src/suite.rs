//! One suite over three implementations of a limit: the table of a node, the store in memory, and
//! the script on Redis.

use crate::{Answer, Answers, Ask, Batch, MemoryStore, QuotaStore, machine::Micros};
use palisade_rate_limit::{ClientKey, Decision, Limiter, Quota, TableLimiter};
use std::{future::ready, sync::Arc, time::Duration};
use tokio::time::advance;

/// A limit of `burst` cells, and one per `period`.
#[derive(Clone, Copy, Debug)]
struct Limit {
    period: Micros,
    burst: u32,
}

/// What a request gets: nothing, or the time until it may come again.
type Decided = Result<(), Micros>;

/// An implementation of a limit.
trait Implementation {
    /// Asks for `cost` cells, `later` microseconds after the request before.
    async fn request(&mut self, limit: Limit, later: Micros, client: u8, cost: u32) -> Decided;
}

/// A request: when it comes after the one before, of which client, for how many cells, and what it
/// gets.
type Case = (Micros, u8, u32, Decided);

const SECOND: Micros = 1_000_000;
/// A request that costs more than the burst waits for ever.
const NEVER: Micros = Micros::MAX;

/// One a second, and three at once.
const THREE: Limit = Limit {
    period: SECOND,
    burst: 3,
};

const CASES: &[(&str, Limit, &[Case])] = &[
    (
        "a burst at once, and then one per period",
        THREE,
        &[
            (0, 1, 1, Ok(())),
            (0, 1, 1, Ok(())),
            (0, 1, 1, Ok(())),
            (0, 1, 1, Err(SECOND)),
            (SECOND - 1, 1, 1, Err(1)),
            (1, 1, 1, Ok(())),
            (0, 1, 1, Err(SECOND)),
        ],
    ),
    (
        "a refusal leaves the state as it is",
        THREE,
        &[
            (0, 1, 2, Ok(())),
            (0, 1, 2, Err(SECOND)),
            (0, 1, 2, Err(SECOND)),
            (0, 1, 1, Ok(())),
            (0, 1, 1, Err(SECOND)),
        ],
    ),
    (
        "more than the burst is never admitted, and charged nothing",
        THREE,
        &[
            (0, 1, 4, Err(NEVER)),
            (0, 1, 3, Ok(())),
            (0, 1, 3, Err(3 * SECOND)),
            (0, 1, 4, Err(NEVER)),
            (3 * SECOND, 1, 3, Ok(())),
        ],
    ),
    (
        "clients do not know of each other",
        THREE,
        &[
            (0, 1, 3, Ok(())),
            (0, 2, 3, Ok(())),
            (0, 1, 1, Err(SECOND)),
            (SECOND, 2, 1, Ok(())),
            (0, 1, 1, Ok(())),
        ],
    ),
    (
        "a client that was quiet has its burst, and not more",
        THREE,
        &[
            (0, 1, 3, Ok(())),
            (100 * SECOND, 1, 3, Ok(())),
            (0, 1, 1, Err(SECOND)),
        ],
    ),
    (
        "periods of a microsecond and bursts of millions",
        Limit {
            period: 1,
            burst: 16_000_000,
        },
        &[
            (0, 1, 16_000_000, Ok(())),
            (0, 1, 1, Err(1)),
            (7, 1, 8, Err(1)),
            (1, 1, 8, Ok(())),
        ],
    ),
    (
        "the longest debt",
        Limit {
            period: 12 * 86_400 * SECOND,
            burst: 1,
        },
        &[
            (0, 1, 1, Ok(())),
            (86_400 * SECOND, 1, 1, Err(11 * 86_400 * SECOND)),
        ],
    ),
];

async fn run(mut implementation: impl Implementation) {
    for (number, (name, limit, cases)) in CASES.iter().enumerate() {
        for (index, (later, client, cost, expected)) in cases.iter().enumerate() {
            let client = client + 10 * number as u8;
            let decided = implementation.request(*limit, *later, client, *cost).await;
            assert_eq!(decided, *expected, "{name}: request {index}");
        }
    }
}

fn ask(limit: Limit, client: u8, cost: u32) -> Ask {
    Ask {
        account: client.into(),
        period: Duration::from_micros(limit.period),
        burst: limit.burst,
        admitted: 0,
        asked: cost,
        fewest: cost,
        longest: Duration::from_micros(4 * limit.period * u64::from(limit.burst)),
    }
}

fn batch(ask: Ask) -> Batch {
    Batch {
        fleet: Arc::from("suite"),
        shard: 0,
        asks: vec![ask],
        node: None,
    }
}

fn decided(limit: Limit, cost: u32, answers: &Answers) -> Decided {
    match answers.accounts[..] {
        [Answer::Granted { cells, .. }] if cells == cost => Ok(()),
        [Answer::Granted { cells: 0, .. }] if cost > limit.burst => Err(NEVER),
        [Answer::Granted { cells: 0, wait }] => Err(wait.as_micros() as u64),
        _ => unreachable!("{answers:?}"),
    }
}

/// The table of a node. The limit changes between cases.
struct Table(TableLimiter);

impl Implementation for Table {
    async fn request(&mut self, limit: Limit, later: Micros, client: u8, cost: u32) -> Decided {
        let quota = Quota::period(Duration::from_micros(limit.period)).burst(limit.burst);
        self.0.set(quota).unwrap();
        advance(Duration::from_micros(later)).await;
        match self.0.check(ClientKey::of(&client), cost) {
            Decision::Admit => Ok(()),
            Decision::Deny { wait } => Err(wait.as_micros() as u64),
            Decision::NeverPossible { .. } => Err(NEVER),
            decision => unreachable!("{decision:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_table_of_a_node_passes() {
    run(Table(TableLimiter::new(Quota::per_second(1)).unwrap())).await;
}

impl Implementation for MemoryStore {
    async fn request(&mut self, limit: Limit, later: Micros, client: u8, cost: u32) -> Decided {
        advance(Duration::from_micros(later)).await;
        let answers = self.call(batch(ask(limit, client, cost))).await.unwrap();
        ready(decided(limit, cost, &answers)).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_in_memory_passes() {
    run(MemoryStore::new()).await;
}

#[cfg(unix)]
mod script {
    use super::{
        Ask, Batch, Decided, Implementation, Limit, Micros, SECOND, THREE, ask, batch, decided, run,
    };
    use crate::{Answer, redis::Server};
    use palisade_testkit::redis::RedisServer;
    use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
    use std::{sync::Arc, time::Duration};

    /// The script, at times of the test.
    struct Script {
        store: Server,
        now: Micros,
    }

    /// In 2026, as a server has it.
    const START: Micros = 1_795_922_802_084_427;

    impl Implementation for Script {
        async fn request(&mut self, limit: Limit, later: Micros, client: u8, cost: u32) -> Decided {
            self.now += later;
            let batch = batch(ask(limit, client, cost));
            let answers = self.store.call_at(&batch, self.now).await;
            decided(limit, cost, &answers)
        }
    }

    #[tokio::test]
    async fn the_script_passes() {
        let Some(redis) = RedisServer::start().await else {
            return;
        };
        let store = Server::new(&redis.url(), None).unwrap();
        run(Script { store, now: START }).await;
    }

    fn any_ask() -> impl Strategy<Value = (Micros, Ask)> {
        let numbers = (
            // So long that no key of the server ends while the test runs.
            0u64..3_000_000_000,
            0u128..3,
            10_000_000u64..2_000_000_000,
            1u32..200,
            0u32..300,
        );
        (numbers, 0u32..300, 1u32..10).prop_map(
            |((later, account, period, burst, admitted), asked, fewest)| {
                let ask = Ask {
                    account,
                    period: Duration::from_micros(period),
                    burst,
                    admitted,
                    asked,
                    fewest,
                    longest: Duration::from_micros(period * u64::from(burst) * 3),
                };
                (later, ask)
            },
        )
    }

    #[tokio::test]
    async fn the_script_and_the_store_in_memory_agree_about_any_batch() {
        let Some(redis) = RedisServer::start().await else {
            return;
        };
        let store = Server::new(&redis.url(), None).unwrap();
        let mut runner = TestRunner::deterministic();
        let asks = proptest::collection::vec(any_ask(), 1..4);
        let (mut now, mut paid) = (START, std::collections::HashMap::new());
        for _ in 0..500 {
            let mut asks: Vec<_> = asks.new_tree(&mut runner).unwrap().current();
            asks.sort_by_key(|(_, ask)| ask.account);
            asks.dedup_by_key(|(_, ask)| ask.account);
            now += asks[0].0;
            let asks: Vec<Ask> = asks.into_iter().map(|(_, ask)| ask).collect();
            let expected: Vec<Answer> = asks
                .iter()
                .map(|ask| ask.apply(paid.entry(ask.account).or_insert(0), now))
                .collect();
            let batch = Batch {
                fleet: Arc::from("suite"),
                shard: 0,
                asks,
                node: None,
            };
            let answers = store.call_at(&batch, now).await;
            assert_eq!(answers.accounts, expected, "{batch:?}");
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_an_hour_costs_a_client_its_longest_debt_and_no_hour() {
        let Some(redis) = RedisServer::start().await else {
            return;
        };
        const HOUR: Micros = 3_600 * SECOND;
        let store = Server::new(&redis.url(), None).unwrap();
        let mut script = Script { store, now: START };
        assert_eq!(script.request(THREE, 0, 1, 3).await, Ok(()));
        script.now -= HOUR;
        // The longest debt is that of four bursts here.
        let wait = 12 * SECOND - 3 * SECOND + SECOND;
        assert_eq!(script.request(THREE, 0, 1, 1).await, Err(wait));
        assert_eq!(script.request(THREE, wait, 1, 1).await, Ok(()));
        // Forward: all debts are paid.
        assert_eq!(script.request(THREE, HOUR, 1, 3).await, Ok(()));
        assert_eq!(script.request(THREE, 0, 1, 1).await, Err(SECOND));
    }
}
