//! Nodes and a store in virtual time.

use crate::{
    digest::Secret,
    machine::{Asked, Claim, Machine, Micros, Outcome, Reply},
    store::{Answer, Answers, Ask},
};
use palisade_guard::Gcra;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    task::Waker,
};

/// The longest wait of a request.
pub(super) const MAX_WAIT: Micros = 5_000;
/// The time after which a call counts as lost.
const CALL_WITHIN: Micros = 40_000;

/// What a simulated fleet is like.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) nodes: u32,
    pub(super) quota: Gcra,
    pub(super) flush_every: Micros,
    pub(super) round_trip: Micros,
    /// Of a thousand calls, those that never reach the store, and those whose answer is lost.
    pub(super) lost_calls: u64,
    pub(super) lost_answers: u64,
    /// Up to how much longer than a round trip a call may take.
    pub(super) jitter: Micros,
    pub(super) seed: u64,
    /// Parts of the store.
    pub(super) shards: u32,
}

/// A request of `cost` cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) at: Micros,
    pub(super) node: usize,
    pub(super) client: u64,
    pub(super) cost: u32,
}

/// What has become of the requests of one client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub(super) admitted: u64,
    pub(super) refused: u64,
    pub(super) waited: u64,
    /// Admitted because the store could not be asked.
    pub(super) alone: u64,
}

/// One node: the machine, and its own table at the whole limit.
pub(super) struct Node {
    pub(super) machine: Machine,
    table: HashMap<u64, Micros>,
    waiting: Vec<(Micros, u32, Arrival)>,
    /// Batches that are in flight, by call.
    calls: HashMap<u64, Vec<Ask>>,
}

pub(super) struct Simulation {
    pub(super) setup: Setup,
    pub(super) nodes: Vec<Node>,
    /// When the debt of each account is paid.
    pub(super) store: HashMap<u128, Micros>,
    pub(super) served: HashMap<u64, Served>,
    /// The longest wait of a request.
    pub(super) longest_wait: Micros,
    /// Cells that the store has charged for reports, and for grants.
    pub(super) reported: u64,
    pub(super) granted: u64,
    /// Cells of reports that have not reached the store.
    pub(super) lost: u64,
    pub(super) accounts_in_calls: u64,
    events: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    order: u64,
    random: u64,
    /// Whether the store answers.
    pub(super) is_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive {
        node: usize,
        client: u64,
        cost: u32,
    },
    Wake {
        node: usize,
    },
    Reach {
        node: usize,
        call: u64,
    },
    Return {
        node: usize,
        call: u64,
        answers: Option<Vec<(u32, Micros)>>,
    },
}

impl Simulation {
    pub(super) fn new(setup: Setup) -> Self {
        let node = |index| {
            let mut machine = Machine::new(setup.nodes, 1 << 16, setup.seed + index);
            machine.divide(setup.shards, setup.seed + index);
            machine.flush_every = setup.flush_every;
            machine.rule(setup.quota.period(), setup.quota.burst());
            Node {
                machine,
                table: HashMap::new(),
                waiting: Vec::new(),
                calls: HashMap::new(),
            }
        };
        Self {
            nodes: (0..u64::from(setup.nodes)).map(node).collect(),
            store: HashMap::new(),
            served: HashMap::new(),
            longest_wait: 0,
            reported: 0,
            granted: 0,
            lost: 0,
            accounts_in_calls: 0,
            events: BinaryHeap::new(),
            order: 0,
            random: setup.seed | 1,
            is_up: true,
            setup,
        }
    }

    pub(super) fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn push(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    pub(super) fn arrive(&mut self, arrival: Arrival) {
        let Arrival {
            at,
            node,
            client,
            cost,
        } = arrival;
        self.push(at, Event::Arrive { node, client, cost });
    }

    /// Continues until `end`, or until nothing is left to be done.
    pub(super) fn run(&mut self, end: Micros) {
        while let Some(Reverse((now, _, _))) = self.events.peek()
            && *now <= end
            && let Some(Reverse((now, _, event))) = self.events.pop()
        {
            match event {
                Event::Arrive { node, client, cost } => self.request(node, client, cost, now),
                Event::Wake { node } => self.expire(node, now),
                Event::Reach { node, call } => self.reach(node, call, now),
                Event::Return {
                    node,
                    call,
                    answers,
                } => self.end_call(node, call, answers, now),
            }
        }
    }

    /// Ends the process of a node, and begins another one.
    pub(super) fn restart(&mut self, node: usize) {
        let fresh = Self::new(self.setup.clone()).nodes.swap_remove(node);
        let old = std::mem::replace(&mut self.nodes[node], fresh);
        self.lost += old.machine.unreported() + old.machine.counts().paid;
        // Its calls are on their way.
        self.nodes[node].calls = old.calls;
        self.nodes[node].machine.last_call = old.machine.last_call;
    }

    fn claim(client: u64) -> Claim {
        Claim {
            tag: (client + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            rule: 0,
            account: 0,
        }
    }

    fn digest(client: u64) -> [u64; 2] {
        Secret::new(b"a secret of the tests").account("default", 0, [0, client], 0)
    }

    fn served(&mut self, client: u64) -> &mut Served {
        self.served.entry(client).or_default()
    }

    fn request(&mut self, index: usize, client: u64, cost: u32, now: Micros) {
        let quota = self.setup.quota;
        let node = &mut self.nodes[index];
        let paid = node.table.entry(client).or_default();
        let mut local = || match quota.decide(paid.saturating_sub(now), cost) {
            Ok(debt) => {
                *paid = now + debt;
                true
            }
            Err(_) => false,
        };
        let digest = |_: usize| Self::digest(client);
        let claims = [Self::claim(client)];
        let outcome = node.machine.check(&claims, cost, now, &mut local, &digest);
        let arrival = Arrival {
            at: now,
            node: index,
            client,
            cost,
        };
        match outcome {
            Outcome::Ask => match node.machine.ask(&claims, cost, now, &digest) {
                Asked::Decided(outcome) => self.decided(arrival, outcome, now),
                Asked::Waits(number) => {
                    node.waiting.push((now, number, arrival));
                    self.served(client).waited += 1;
                    self.push(now + MAX_WAIT, Event::Wake { node: index });
                }
            },
            outcome => self.decided(arrival, outcome, now),
        }
        self.flush(index, now);
    }

    fn decided(&mut self, arrival: Arrival, outcome: Outcome, now: Micros) {
        let Arrival {
            node, client, cost, ..
        } = arrival;
        self.longest_wait = self.longest_wait.max(now - arrival.at);
        match outcome {
            Outcome::Admit => self.served(client).admitted += u64::from(cost),
            Outcome::Alone => {
                let paid = self.nodes[node].table.get(&client).copied().unwrap_or(0);
                let digest = |_: usize| Self::digest(client);
                let claims = [Self::claim(client)];
                let machine = &mut self.nodes[node].machine;
                machine.report(&claims, cost, now, &|_| paid, &digest);
                let served = self.served(client);
                served.admitted += u64::from(cost);
                served.alone += u64::from(cost);
            }
            _ => {
                if outcome != Outcome::Local && arrival.at < now {
                    self.refund(node, client, cost);
                }
                self.served(client).refused += 1;
            }
        }
    }

    fn refund(&mut self, node: usize, client: u64, cost: u32) {
        if let Some(paid) = self.nodes[node].table.get_mut(&client) {
            *paid = paid.saturating_sub(u64::from(cost) * self.setup.quota.period());
        }
    }

    /// Ends the waits that have lasted too long, and flushes.
    fn expire(&mut self, index: usize, now: Micros) {
        let node = &mut self.nodes[index];
        let mut expired = Vec::new();
        node.waiting.retain(|(since, number, arrival)| {
            let is_expired = since + MAX_WAIT <= now;
            if is_expired {
                node.machine.leave(*number, true);
                expired.push(*arrival);
            }
            !is_expired
        });
        for arrival in expired {
            self.decided(arrival, Outcome::Alone, now);
        }
        self.flush(index, now);
    }

    fn flush(&mut self, index: usize, now: Micros) {
        while let Some(flush) = self.nodes[index].machine.flush(now) {
            self.accounts_in_calls += flush.asks.len() as u64;
            self.nodes[index].calls.insert(flush.call, flush.asks);
            let half = self.setup.round_trip / 2 + self.random() % (self.setup.jitter + 1);
            let call = flush.call;
            if self.is_up && self.random() % 1000 >= self.setup.lost_calls {
                self.push(now + half, Event::Reach { node: index, call });
            }
            let late = Event::Return {
                node: index,
                call,
                answers: None,
            };
            self.push(now + CALL_WITHIN, late);
        }
        if let Some(at) = self.nodes[index].machine.wake_at()
            && at > now
        {
            self.push(at, Event::Wake { node: index });
        }
    }

    fn reach(&mut self, index: usize, call: u64, now: Micros) {
        if !self.is_up {
            return;
        }
        let Some(asks) = self.nodes[index].calls.remove(&call) else {
            return;
        };
        let mut answers = Vec::new();
        for ask in asks {
            let paid = self.store.entry(ask.account).or_default();
            let Answer::Granted { cells, wait } = ask.apply(paid, now) else {
                unreachable!("no other answer of this store");
            };
            self.reported += u64::from(ask.admitted);
            self.granted += u64::from(cells);
            answers.push((cells, wait.as_micros() as u64));
        }
        if self.random() % 1000 >= self.setup.lost_answers {
            let half = self.setup.round_trip / 2 + self.random() % (self.setup.jitter + 1);
            let answers = Some(answers);
            let back = Event::Return {
                node: index,
                call,
                answers,
            };
            self.push(now + half, back);
        }
    }

    fn end_call(
        &mut self,
        index: usize,
        call: u64,
        answers: Option<Vec<(u32, Micros)>>,
        now: Micros,
    ) {
        let reply = match answers {
            Some(answers) => {
                let answer = |(cells, micros): (u32, Micros)| Answer::Granted {
                    cells,
                    wait: std::time::Duration::from_micros(micros),
                };
                Reply::Answers(Answers::new(
                    answers.into_iter().map(answer).collect(),
                    None,
                ))
            }
            None => {
                // It has not reached the store, and never will.
                let asks = self.nodes[index].calls.remove(&call);
                let cells = asks.iter().flatten().map(|ask| u64::from(ask.admitted));
                self.lost += cells.sum::<u64>();
                Reply::TimedOut
            }
        };
        let node = &mut self.nodes[index];
        node.machine.reply(call, reply, now);
        let mut decided = Vec::new();
        node.waiting.retain(|(_, number, arrival)| {
            match node.machine.poll(*number, Waker::noop(), &mut None) {
                Some(outcome) => {
                    node.machine.leave(*number, false);
                    decided.push((*arrival, outcome));
                    false
                }
                None => true,
            }
        });
        for (arrival, outcome) in decided {
            self.decided(arrival, outcome, now);
        }
        self.flush(index, now);
    }

    pub(super) fn totals(&self) -> Served {
        self.served
            .values()
            .fold(Served::default(), |sum, of| Served {
                admitted: sum.admitted + of.admitted,
                refused: sum.refused + of.refused,
                waited: sum.waited + of.waited,
                alone: sum.alone + of.alone,
            })
    }

    /// Returns the cells that were not reported because they were paid.
    pub(super) fn paid(&self) -> u64 {
        self.nodes.iter().map(|it| it.machine.counts().paid).sum()
    }

    pub(super) fn calls(&self) -> u64 {
        self.nodes.iter().map(|it| it.machine.counts().calls).sum()
    }
}
