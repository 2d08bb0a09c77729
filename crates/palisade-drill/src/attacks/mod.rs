//! The attacks. A file for each family; each attack is a pure machine and its description.
//!
//! ```
//! let attacks = palisade_drill::attacks::all();
//! assert!(attacks.iter().any(|attack| attack.cve == Some("CVE-2023-44487")));
//! ```

mod ambiguous;
mod attack;
mod body;
mod chunked;
mod churn;
mod files;
mod flood;
pub mod h2;
mod head;
mod held;
mod hoard;
mod huge;
mod identity;
mod overload;
mod pause;
mod protection;
mod reader;
mod responses;
mod silent;
pub(crate) mod tls;

pub use crate::plan::Plan;
pub use attack::{Addresses, Attack, InQuick, Needs, Protocol, Remedy, Takes, Times};

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
    attacks.extend(hoard::attacks());
    attacks.extend(body::attacks());
    attacks.extend(chunked::attacks());
    attacks.extend(huge::attacks());
    attacks.extend(reader::attacks());
    attacks.extend(churn::attacks());
    attacks.extend(tls::attacks());
    attacks.extend(files::attacks());
    attacks.extend(held::attacks());
    attacks.extend(flood::attacks());
    attacks.extend(identity::attacks());
    attacks.extend(ambiguous::attacks());
    attacks.extend(protection::attacks());
    attacks.extend(h2::attacks());
    attacks.extend(overload::attacks());
    attacks.push(protection::returning());
    attacks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Actions, Event};
    use std::{collections::HashSet, time::Duration};

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
    fn no_machine_panics_or_sends_without_bound_whatever_the_server_sends() {
        let mut random = 1_u64;
        let mut next = move || {
            // The generator of Marsaglia, xorshift64.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut plan = Plan::new("a");
        plan.post = Some("/post".to_owned());
        plan.large = Some("/large".to_owned());
        for attack in all() {
            let mut machine = (attack.make)(&plan, 0);
            for round in 0..2_000 {
                let noise: Vec<u8> = (0..next() % 200).map(|_| next() as u8).collect();
                // Frames with a plausible head reach further than noise does.
                let frame = h2::frames::frame(next() as u8 % 10, next() as u8 % 6, 0, &noise);
                let event = match next() % 8 {
                    0 => Event::Opened,
                    1 => Event::Woken,
                    2 => Event::Closed,
                    3 | 4 if !noise.is_empty() => Event::Received(&noise),
                    _ => Event::Received(&frame),
                };
                let mut out = Actions::default();
                machine.on(event, Duration::from_millis(round), &mut out);
                let (sent, name) = (out.sent().len(), attack.name);
                assert!(sent < 1 << 20, "{name} sent {sent} bytes");
                assert!(
                    out.wake()
                        .is_none_or(|at| at >= Duration::from_millis(round))
                );
            }
        }
    }

    #[test]
    fn every_request_names_the_drill_and_has_the_headers_that_were_set() {
        let mut plan = Plan::new("a");
        plan.headers = vec![("authorization".to_owned(), "Basic eA==".to_owned())];
        let text = String::from_utf8(plan.get_request().to_vec()).unwrap();
        assert!(text.contains(concat!(
            "\r\nuser-agent: palisade-drill/",
            env!("CARGO_PKG_VERSION")
        )));
        assert!(
            text.ends_with("\r\nauthorization: Basic eA==\r\n\r\n"),
            "{text}"
        );
        let fields = plan.fields("GET", "/");
        assert_eq!(fields.last(), Some(&("authorization", "Basic eA==")));
        assert!(fields.iter().any(|(name, _)| *name == "user-agent"));
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
