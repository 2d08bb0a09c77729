use super::*;
use std::collections::VecDeque;

const STEP: Duration = Duration::from_millis(100);
/// What a handler and a refusal take, in microseconds.
const HANDLER: u64 = 10_000;
const REFUSAL: u64 = 50;
/// The time between two looks.
const LOOK_INTERVAL: u64 = 10_000;
/// No request in a step.
const NONE: Requests = Requests {
    have_asked: false,
    admitted: 0,
    in_flight: 0,
};
/// Many requests in a step.
const ASKED: Requests = Requests {
    have_asked: true,
    admitted: 10,
    in_flight: 10,
};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One worker of a runtime, whose queue is first in, first out. It serves requests by the share,
/// which it learns as [`RuntimeLoad`](crate::RuntimeLoad) does: from a probe in the same queue.
struct Runtime {
    shedding: Shedding,
    /// What the handlers take, in turn. All times are in microseconds.
    handlers: Vec<u64>,
    now: u64,
    queue: VecDeque<Task>,
    turn: u32,
    step_began: u64,
    least: Option<u64>,
    probe_began: Option<u64>,
    last_delay: u64,
    requests: Requests,
    /// The requests in the queue.
    waiting: usize,
    /// What each turn of a task takes that is no request, and never ends.
    job: Option<u64>,
    /// When each request was served, and after which time.
    served: Vec<(u64, u64)>,
    refused: u64,
}

enum Task {
    Request { arrived: u64 },
    Probe,
    Job(u64),
}

impl Runtime {
    fn new(handler: u64) -> Self {
        Self::in_turn([handler])
    }

    fn in_turn(handlers: impl Into<Vec<u64>>) -> Self {
        Self {
            shedding: Shedding::default(),
            handlers: handlers.into(),
            now: 0,
            queue: VecDeque::new(),
            turn: 0,
            step_began: 0,
            least: None,
            probe_began: None,
            last_delay: 0,
            requests: Requests::default(),
            waiting: 0,
            job: None,
            served: Vec::new(),
            refused: 0,
        }
    }

    /// Serves requests that arrive at these times, in microseconds.
    fn serve(&mut self, arrivals: impl IntoIterator<Item = u64>) {
        let mut arrivals = arrivals.into_iter().peekable();
        self.queue.extend(self.job.map(Task::Job));
        while arrivals.peek().is_some() || self.waiting > 0 {
            while let Some(arrived) = arrivals.next_if(|arrived| *arrived <= self.now) {
                self.queue.push_back(Task::Request { arrived });
                self.waiting += 1;
            }
            self.look(false);
            match self.queue.pop_front() {
                None => self.now += 1000,
                Some(Task::Job(turn)) => {
                    self.work(turn);
                    self.queue.push_back(Task::Job(turn));
                }
                Some(Task::Probe) => {
                    let delay = self.now - self.probe_began.take().unwrap();
                    self.last_delay = delay;
                    self.least = Some(self.least.map_or(delay, |least| least.min(delay)));
                }
                Some(Task::Request { arrived }) => {
                    self.requests.have_asked = true;
                    self.waiting -= 1;
                    self.turn += 1;
                    let rank = self.turn.wrapping_mul(633) % 1024;
                    if rank < (self.shedding.share * 1024.0) as u32 {
                        self.requests.admitted += u32::from(self.shedding.share < 1.0);
                        self.work(self.handlers[self.served.len() % self.handlers.len()]);
                        self.served.push((self.now, self.now - arrived));
                    } else {
                        self.now += REFUSAL;
                        self.refused += 1;
                    }
                }
            }
        }
    }

    /// Works for so long. The looks are taken by a thread of its own, and so continue.
    fn work(&mut self, mut time: u64) {
        while time > LOOK_INTERVAL {
            time -= LOOK_INTERVAL;
            self.now += LOOK_INTERVAL;
            self.look(true);
        }
        self.now += time;
    }

    fn look(&mut self, is_working: bool) {
        if self.queue.is_empty() && !is_working {
            self.least = Some(0); // The worker is parked.
        } else if self.probe_began.is_none() {
            self.probe_began = Some(self.now);
            self.queue.push_back(Task::Probe);
        }
        let elapsed = self.now - self.step_began;
        if elapsed >= 100_000 {
            let delay = self.least.unwrap_or_else(|| {
                let age = self.now - self.probe_began.unwrap();
                age.max(self.last_delay)
            });
            let delay = Duration::from_micros(delay);
            let elapsed = Duration::from_micros(elapsed);
            let requests = std::mem::take(&mut self.requests);
            self.shedding.step(delay, elapsed, requests);
            self.step_began = self.now;
            self.least = None;
        }
    }

    /// Returns how many requests were served per second in the time from the 4th second to `end`,
    /// and the longest time of one of them.
    fn result(&self, end: u64) -> (u64, Duration) {
        let time = 4_000_000..end * 1_000_000;
        let served = self.served.iter().filter(|(at, _)| time.contains(at));
        let longest = served.clone().map(|(_, time)| *time).max().unwrap_or(0);
        let per_second = served.count() as u64 / (end - 4);
        (per_second, Duration::from_micros(longest))
    }
}

/// Requests at so many per second, for so many seconds.
fn steady(per_second: u64, seconds: u64) -> impl Iterator<Item = u64> {
    (0..per_second * seconds).map(move |number| number * 1_000_000 / per_second)
}

/// The same at random times.
fn random(per_second: f64, seconds: f64, mut seed: u64) -> impl Iterator<Item = u64> {
    let mut at = 0.0;
    std::iter::from_fn(move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((seed >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        at += -uniform.ln() / per_second;
        (at < seconds).then_some((at * 1e6) as u64)
    })
}

/// Returns the share after steps with these delays, in milliseconds.
fn shares(shedding: &mut Shedding, delays: impl IntoIterator<Item = u64>) -> Vec<f32> {
    let step = |delay| shedding.step(millis(delay), STEP, ASKED);
    delays.into_iter().map(step).collect()
}

#[test]
fn a_delay_of_less_than_a_second_or_below_the_limit_refuses_nothing() {
    let mut shedding = Shedding::default();
    let burst = [200, 400, 600, 800, 700, 600, 500, 400, 300, 200];
    let bursts = burst.into_iter().cycle().take(1000);
    assert!(
        shares(&mut shedding, bursts)
            .iter()
            .all(|share| *share == 1.0)
    );
    let below = std::iter::repeat_n(249, 36_000);
    assert!(
        shares(&mut shedding, below)
            .iter()
            .all(|share| *share == 1.0)
    );
    assert!(!shedding.is_shedding());
}

#[test]
fn the_share_is_divided_by_the_work_of_a_step() {
    let mut shedding = Shedding::default();
    let first = shares(&mut shedding, [250; 10]);
    // In 100 ms there are 100 ms of new work, and 150 ms that wait beyond the target.
    assert_eq!(first[8], 1.0);
    assert!((first[9] - 100.0 / 250.0).abs() < 1e-6, "{first:?}");
    // A delay that grows by 50 ms adds 50 ms to that.
    let second = shares(&mut shedding, [300]);
    assert!(
        (second[0] - first[9] * 100.0 / 350.0).abs() < 1e-6,
        "{second:?}"
    );
    // At the target nothing changes, once the delay stands still.
    let at_target = shares(&mut shedding, [100; 5]);
    assert!(at_target[1..].windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn the_share_is_never_below_its_least_and_returns_within_a_second() {
    let mut shedding = Shedding::default();
    let hour = std::iter::repeat_n(5000, 36_000);
    assert_eq!(shares(&mut shedding, hour).last(), Some(&LEAST));
    let risen = shares(&mut shedding, [0; 6]);
    assert_eq!(risen.last(), Some(&1.0));
    assert!(shedding.is_shedding());
    // After two seconds without a delay the overload is over, and a burst has a second again.
    shares(&mut shedding, [0; 20]);
    assert!(!shedding.is_shedding());
    assert_eq!(shares(&mut shedding, [900; 9]), [1.0; 9]);
}

#[test]
fn a_runtime_that_is_blocked_refuses_nothing() {
    let mut shedding = Shedding::default();
    for delay in 0..100 {
        assert_eq!(shedding.step(millis(100 * delay), STEP, NONE), 1.0);
    }
    // Nor does it let the share rise.
    shares(&mut shedding, [1000; 12]);
    let share = shedding.step(millis(1000), STEP, ASKED);
    assert_eq!(shedding.step(millis(1100), STEP, NONE), share);
    // Requests that stay away do.
    assert!(shedding.step(Duration::ZERO, STEP, NONE) > share);
}

#[test]
fn any_delay_and_time_leave_a_share_that_is_a_number() {
    let times = [0, 1, 99, 100, 101, 1000, u64::MAX].map(millis);
    for first in times {
        for second in times {
            for elapsed in times.into_iter().chain([Duration::MAX]) {
                let mut shedding = Shedding::default();
                shares(&mut shedding, [1000; 12]);
                for delay in [first, second, Duration::MAX, Duration::ZERO] {
                    let share = shedding.step(delay, elapsed, ASKED);
                    assert!(
                        (LEAST..=1.0).contains(&share),
                        "{delay:?} {elapsed:?} {share}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_overloaded_runtime_serves_nine_tenths_of_what_it_can_and_none_late() {
    for (handler, load) in [(HANDLER, 2), (HANDLER, 4), (HANDLER, 10), (1000, 2)] {
        let capacity = 1_000_000 / handler;
        let even: Vec<_> = steady(load * capacity, 20).collect();
        let uneven: Vec<_> = random((load * capacity) as f64, 20.0, 7).collect();
        for arrivals in [even, uneven] {
            let mut runtime = Runtime::new(handler);
            runtime.serve(arrivals);
            let (per_second, longest) = runtime.result(20);
            assert!(
                per_second * 10 >= capacity * 9,
                "{load} x {handler}: {per_second}"
            );
            assert!(longest < millis(300), "{load} x {handler}: {longest:?}");
        }
    }
}

#[test]
fn handlers_longer_than_the_target_leave_most_of_the_time_used() {
    let mut runtime = Runtime::new(100_000);
    runtime.serve(random(20.0, 60.0, 7));
    let (per_second, longest) = runtime.result(60);
    assert!(per_second >= 6, "{per_second}");
    assert!(longest < millis(600), "{longest:?}");
}

#[test]
fn handlers_of_50_us_and_of_5_s_in_turn_are_a_blocked_runtime_and_no_share_stays_behind() {
    // At twenty-five times the capacity. While a handler works, no request asks.
    let mut runtime = Runtime::in_turn([50, 5_000_000]);
    runtime.serve(steady(10, 60));
    let worked = runtime.served.len() as u64 / 2 * 5_000_000;
    assert!(worked * 100 >= runtime.now * 99, "{}", runtime.now);
    // Once the load is gone, nothing is refused.
    let (end, refused) = (runtime.now, runtime.refused);
    runtime.handlers = vec![50];
    runtime.serve((500..1000).map(|number| end + number * 10_000));
    assert_eq!(runtime.refused, refused);
    // A long handler now and then, of which the others wait for each.
    for every in [50, 1000] {
        let mut handlers = vec![50; every];
        handlers[every / 2] = 5_000_000;
        let mut runtime = Runtime::in_turn(handlers);
        runtime.serve(steady(5, 1000));
        assert_eq!(runtime.refused, 0, "{every}");
    }
}

#[test]
fn below_its_capacity_a_runtime_refuses_nothing() {
    for load in [0.7, 0.9] {
        for seed in 0..10 {
            let mut runtime = Runtime::new(HANDLER);
            runtime.serve(random(100.0 * load, 30.0, seed));
            assert_eq!(runtime.refused, 0, "{load} with seed {seed}");
        }
    }
    // Bursts of 300 ms at three times the capacity, six tenths in the mean.
    let mut runtime = Runtime::new(HANDLER);
    let burst = |number: u64| (0..90).map(move |request| number * 1_500_000 + request * 3_333);
    runtime.serve((0..20).flat_map(burst));
    assert_eq!((runtime.refused, runtime.served.len()), (0, 1800));
}

#[test]
fn beside_a_task_that_keeps_the_runtime_busy_most_requests_are_served() {
    let mut runtime = Runtime::new(1000);
    runtime.job = Some(300_000);
    runtime.serve(steady(50, 300));
    // Refusing cannot help. It is tried for a few seconds, and after longer and longer times.
    let served = runtime.served.len();
    assert!(served > 300 * 50 * 9 / 10, "{served}");
    assert!(runtime.refused > 0);
    let (_, longest) = runtime.result(300);
    assert!(longest < millis(700), "{longest:?}");
}

#[test]
fn a_pause_in_vain_doubles_up_to_ten_minutes_and_begins_anew_after_an_overload() {
    let few = Requests {
        have_asked: true,
        ..NONE
    };
    let mut shedding = Shedding::default();
    let mut pauses = Vec::new();
    let mut whole = Duration::ZERO;
    while pauses.len() < 9 {
        if shedding.step(millis(300), STEP, few) == 1.0 {
            whole += STEP;
        } else if !whole.is_zero() {
            pauses.push(whole.as_secs());
            whole = Duration::ZERO;
        }
    }
    // The first second is that of the patience, which each pause is followed by.
    assert_eq!(pauses, [0, 11, 21, 41, 81, 161, 321, 601, 601]);
    // An overload that refusing ends.
    shares(&mut shedding, std::iter::repeat_n(0, 7_000));
    shares(&mut shedding, [300; 12]);
    shares(&mut shedding, [0; 40]);
    assert_eq!(shedding.pause, MIN_PAUSE);
}

#[test]
fn requests_that_were_admitted_before_have_time_to_end_before_it_counts_as_vain() {
    let vain_after = |in_flight| {
        let mut shedding = Shedding::default();
        let requests = Requests {
            have_asked: true,
            admitted: 0,
            in_flight,
        };
        let steps = (0..1000).skip_while(|_| {
            shedding.step(millis(400), STEP, requests);
            !matches!(shedding.stage, Stage::Paused { .. })
        });
        1000 - steps.count()
    };
    let (few, many) = (vain_after(10), vain_after(11));
    assert_eq!(many - few, 290, "{few}, {many}");
}

#[test]
fn sparse_requests_beside_a_busy_task_are_refused_for_a_few_seconds_only() {
    // One request in each second.
    let mut shedding = Shedding::default();
    let refused = (0..600).filter(|step| {
        let have_asked = step % 10 == 0;
        let requests = Requests { have_asked, ..NONE };
        shedding.step(millis(300), STEP, requests) < 1.0 && have_asked
    });
    let refused = refused.count();
    assert!((1..10).contains(&refused), "{refused}");
}

#[test]
fn after_a_calm_time_as_long_as_the_pause_the_next_pause_is_short() {
    let mut shedding = Shedding::default();
    let few = Requests {
        have_asked: true,
        ..NONE
    };
    for _ in 0..3000 {
        shedding.step(millis(300), STEP, few);
    }
    let pause = shedding.pause;
    assert!(pause > 4 * MIN_PAUSE);
    let calm = pause.div_duration_f64(STEP) as usize;
    // The present pause ends first.
    shares(&mut shedding, std::iter::repeat_n(0, 2 * calm));
    assert_eq!(shedding.pause, MIN_PAUSE);
}
