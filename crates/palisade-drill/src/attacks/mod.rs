//! The attacks. A file for each family; each attack is a pure machine and its description.
//!
//! ```
//! let attacks = palisade_drill::attacks::all();
//! assert!(attacks.iter().any(|attack| attack.cve == Some("CVE-2023-44487")));
//! ```

mod attack;
mod body;
mod churn;
mod flood;
pub mod h2;
mod head;
mod pause;
mod reader;
mod silent;

pub use crate::plan::Plan;
pub use attack::{Addresses, Attack, Needs, Protocol, Remedy, Takes};

/// Returns all attacks in the order in which a drill runs them.
///
/// ```
/// let attacks = palisade_drill::attacks::all();
/// assert!(attacks.iter().all(|attack| attack.threat.starts_with('T')));
/// ```
pub fn all() -> Vec<Attack> {
    let mut attacks = Vec::new();
    attacks.extend(silent::attacks());
    attacks.extend(head::attacks());
    attacks.extend(body::attacks());
    attacks.extend(reader::attacks());
    attacks.extend(churn::attacks());
    attacks.extend(flood::attacks());
    attacks.extend(h2::attacks());
    attacks
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_attack_is_described_and_has_a_name_of_its_own() {
        let attacks = all();
        let names: HashSet<_> = attacks.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), attacks.len());
        for attack in &attacks {
            let texts = [
                attack.title,
                attack.withholds,
                attack.stopped_by,
                attack.threat,
            ];
            assert!(texts.iter().all(|text| !text.is_empty()), "{}", attack.name);
            assert!(!attack.remedies.is_empty(), "{}", attack.name);
            assert!(attack.connections <= crate::bounds::MAX_CONNECTIONS);
        }
    }

    #[test]
    fn addresses_fit_into_one_network_of_their_own() {
        for attack in all() {
            assert!(
                !matches!(attack.addresses, Addresses::Many(count) if count == 0 || count > 250)
            );
        }
    }
}
