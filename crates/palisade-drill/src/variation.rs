//! What varies from one attacker to the next, drawn from the seed. Pure: the same seed gives the
//! same bytes and instants.

use std::time::Duration;

/// The constants of the generator splitmix64, by Steele, Lea and Flood.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTORS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
/// The part of a pause by which it is shorter at most. No pause is longer than it is described, so
/// that a byte in each window stays one.
const MAX_SHORTENED: f64 = 0.2;

/// The variation of one attacker. With seed 0 there is none: each does exactly what is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variation(Option<u64>);

impl Variation {
    /// Returns the variation of the attacker `index`, by the seed of the attack.
    pub(crate) fn new(seed: u64, index: usize) -> Self {
        Self((seed != 0).then(|| mixed(seed, index as u64)))
    }

    /// Returns a part from 0 to 1, which it never is; 0 without variation.
    pub(crate) fn part(&mut self) -> f64 {
        // The 53 bits that a float keeps.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns `pause`, or up to a fifth less.
    pub(crate) fn pause(&mut self, pause: Duration) -> Duration {
        match self.0 {
            Some(_) => pause.mul_f64(1.0 - MAX_SHORTENED * self.part()),
            None => pause,
        }
    }

    /// Returns `text` with another letter in the place of each `x`, and as long.
    pub(crate) fn letters(&mut self, text: &str) -> String {
        let vary = |letter| match letter {
            'x' if self.0.is_some() => char::from(b'a' + (self.next() % 26) as u8),
            other => other,
        };
        text.chars().map(vary).collect()
    }

    fn next(&mut self) -> u64 {
        let Some(state) = &mut self.0 else { return 0 };
        *state = state.wrapping_add(STEP);
        let [first, second] = FACTORS;
        let mixed = (*state ^ *state >> 30).wrapping_mul(first);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(second);
        mixed ^ mixed >> 31
    }
}

/// Returns the seed of the attack with this number; 0 for the seed 0 alone.
pub(crate) fn of_attack(seed: u64, number: u8) -> u64 {
    match seed {
        0 => 0,
        seed => mixed(seed, u64::from(number)).max(1),
    }
}

fn mixed(seed: u64, number: u64) -> u64 {
    let mut first = Variation(Some(seed ^ number.wrapping_mul(FACTORS[1])));
    first.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attacks::{self, Plan},
        machine::trace,
    };
    use std::collections::HashSet;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Returns all that the attacker `index` of each attack does in a minute.
    fn traces(seed: u64, index: usize) -> Vec<Vec<(Duration, Vec<u8>)>> {
        let attacks = attacks::all().into_iter().enumerate();
        let traces = attacks.map(|(number, attack)| {
            let mut plan = Plan::new("a");
            plan.post = Some("/post".to_owned());
            // Floods last no longer, and send much.
            plan.ends = Duration::from_millis(100);
            plan.seed = of_attack(seed, number as u8);
            trace(&mut *(attack.make)(&plan, index), MINUTE)
        });
        traces.collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_instants_and_another_gives_others() {
        let first = traces(7, 3);
        assert_eq!(first, traces(7, 3));
        let names = ["dripped-head", "one-byte-per-window", "slow-body"];
        let attacks = attacks::all();
        for name in names {
            let at = attacks.iter().position(|attack| attack.name == name);
            let at = at.unwrap();
            for (seed, index) in [(8, 3), (7, 4)] {
                let other = &traces(seed, index)[at];
                assert_ne!(other, &first[at], "{name}");
                let instants = |trace: &[(Duration, _)]| trace.iter().map(|it| it.0).max();
                assert_ne!(instants(other), instants(&first[at]), "{name}");
            }
        }
    }

    #[test]
    fn seed_zero_varies_nothing() {
        assert_eq!(of_attack(0, 3), 0);
        let mut variation = Variation::new(0, 3);
        assert_eq!(variation, Variation(None));
        assert_eq!(variation.pause(MINUTE), MINUTE);
        assert_eq!(variation.letters("xyz"), "xyz");
    }

    #[test]
    fn what_a_seed_varies_is_a_fifth_at_most() {
        let bytes =
            |trace: &[(Duration, Vec<u8>)]| trace.iter().map(|it| it.1.len()).sum::<usize>();
        let attacks = attacks::all().into_iter();
        for ((attack, plain), varied) in attacks.zip(traces(0, 3)).zip(traces(9, 3)) {
            let (more, least) = (bytes(&varied), bytes(&plain));
            assert!(
                more >= least && more * 4 <= least * 5 + 100,
                "{}",
                attack.name
            );
        }
    }

    #[test]
    fn parts_are_spread_and_pauses_are_never_longer() {
        let mut variation = Variation::new(1, 0);
        let parts: Vec<_> = (0..1_000).map(|_| variation.part()).collect();
        let mean = parts.iter().sum::<f64>() / 1_000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert!(parts.iter().all(|part| (0.0..1.0).contains(part)));
        for _ in 0..1_000 {
            let pause = variation.pause(Duration::from_secs(1));
            assert!(pause <= Duration::from_secs(1) && pause >= Duration::from_millis(800));
        }
        let text = variation.letters("name: xxxx");
        assert!(text.starts_with("name: ") && text.len() == 10 && text != "name: xxxx");
    }

    #[test]
    fn attacks_and_attackers_have_seeds_of_their_own() {
        let attacks = (0..=u8::MAX).map(|number| of_attack(1, number));
        assert_eq!(attacks.collect::<HashSet<_>>().len(), 256);
        let clients = (0..4_000).map(|index| Variation::new(1, index).next());
        assert_eq!(clients.collect::<HashSet<_>>().len(), 4_000);
    }
}
