//! Verdicts on what was answered: to clients that seem to be attackers, and to attackers that try
//! to pass a limit.

use crate::grade::{DOWN_SHARE, HELD_SHARE, KEPT_SHARE, Verdict, percent};

/// What the machines tell of their requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answers {
    /// The clients are honest: refusals are harm.
    ToHonestClients { served: u64, refused: u64 },
    /// The clients try to get what the server should refuse.
    ToTrespassers { refused: u64, passed: usize },
}

/// Returns the verdict and its reason.
pub(super) fn judge(answers: &Answers, connections: usize) -> (Verdict, String) {
    match *answers {
        Answers::ToHonestClients { served, refused } => {
            // A client without a connection has told nothing.
            let all = (served + refused).max(connections as u64);
            let share = if all == 0 {
                1.0
            } else {
                served as f64 / all as f64
            };
            let verdict = match share {
                share if share >= HELD_SHARE => return (Verdict::Held, String::new()),
                share if share >= DOWN_SHARE => Verdict::Harmed,
                _ => Verdict::Down,
            };
            let reason = format!(
                "these clients are honest, and {} of their {all} requests were served ({served})",
                percent(share)
            );
            (verdict, reason)
        }
        Answers::ToTrespassers { passed, .. }
            if passed as f64 > KEPT_SHARE * connections as f64 =>
        {
            let reason = format!("{passed} of {connections} attackers got what is to be refused");
            (Verdict::Kept, reason)
        }
        Answers::ToTrespassers { refused: 0, .. } if connections > 0 => {
            let reason = "nothing was refused, so that there was no limit to pass".to_owned();
            (Verdict::Held, reason)
        }
        Answers::ToTrespassers { .. } => (Verdict::Held, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn honest(served: u64, refused: u64, connections: usize) -> (Verdict, String) {
        judge(&Answers::ToHonestClients { served, refused }, connections)
    }

    #[test]
    fn a_server_that_refuses_honest_clients_is_judged_as_one_that_falls() {
        assert_eq!(honest(40, 0, 40).0, Verdict::Held);
        assert_eq!(honest(38, 2, 40).0, Verdict::Harmed);
        let (verdict, reason) = honest(1, 39, 40);
        assert_eq!(verdict, Verdict::Down);
        assert!(reason.contains("2.5 % of their 40 requests"), "{reason}");
        assert_eq!(honest(0, 0, 0).0, Verdict::Held);
    }

    #[test]
    fn an_honest_client_that_got_no_connection_was_not_served() {
        assert_eq!(honest(30, 0, 40).0, Verdict::Harmed);
        assert_eq!(honest(0, 0, 40).0, Verdict::Down);
    }

    #[test]
    fn attackers_that_pass_a_limit_keep_what_they_took() {
        let of = |refused, passed| judge(&Answers::ToTrespassers { refused, passed }, 16);
        assert_eq!(of(500, 16).0, Verdict::Kept);
        assert_eq!(of(500, 1), (Verdict::Held, String::new()));
        let (verdict, reason) = of(0, 0);
        assert_eq!(verdict, Verdict::Held);
        assert!(reason.contains("no limit to pass"));
    }
}
