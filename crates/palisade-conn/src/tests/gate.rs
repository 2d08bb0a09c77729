//! The gate, which is asked before a connection is counted.

use super::*;
use palisade_client_ip::Trust;
use palisade_core::{ConnInfo, Gate, Guard, Mode, Network, Phase, Violation};
use std::sync::atomic::AtomicUsize;

/// Refuses all peers, in this mode, and counts how often it is asked.
#[derive(Clone, Debug)]
struct Closed(Mode, Arc<AtomicUsize>);

impl Gate for Closed {
    fn refusal(&self, _: &ConnInfo) -> Option<(Violation, Mode)> {
        self.1.fetch_add(1, Relaxed);
        let violation = Violation::new(Guard::Ban, Reason::Banned, Phase::Accept, 0, 10_000);
        Some((violation, self.0))
    }
}

fn closed(mode: Mode) -> Closed {
    Closed(mode, Arc::default())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_gate_refuses_is_reset_and_counts_for_nothing_else() {
    let gate = closed(Mode::Enforce);
    let builder = ConnGuard::builder().accept_rate((1, 1)).gate(gate.clone());
    let (guard, journal) = tracking_guard(builder);
    for _ in 0..100 {
        // Its rate is not charged: the reason stays the same.
        let refused = violation(&connect_from(&guard, 1).err().unwrap());
        assert_eq!(
            (refused.guard, refused.reason),
            (Guard::Ban, Reason::Banned)
        );
    }
    assert_eq!(gate.1.load(Relaxed), 100);
    assert_eq!(journal.disconnected().len(), 100);
    assert_eq!((guard.snapshot().refused, journal.opened()), (100, 0));
    let closed = guard.recently_closed()[0];
    assert_eq!((closed.reason, closed.observed), (Reason::Banned, 10_000));
    let transport = TestTransport::new(duplex(1).0);
    let is_reset = transport.reset.clone();
    assert!(guard.admit(transport, peer(1), None).is_err());
    assert!(is_reset.load(Relaxed));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn the_weaker_mode_of_gate_and_guard_holds() {
    use Mode::{Enforce, Off, Shadow};
    for (of_gate, of_guard, recorded) in [
        (Enforce, Enforce, Some(Enforce)),
        (Shadow, Enforce, Some(Shadow)),
        (Enforce, Shadow, Some(Shadow)),
        (Shadow, Shadow, Some(Shadow)),
        (Off, Enforce, None),
        (Enforce, Off, None),
    ] {
        let builder = ConnGuard::builder().mode(of_guard).gate(closed(of_gate));
        let (guard, journal) = tracking_guard(builder);
        let is_admitted = connect_from(&guard, 1).is_ok();
        assert_eq!(is_admitted, recorded != Some(Enforce));
        let modes: Vec<_> = journal
            .disconnected()
            .iter()
            .map(|(_, mode)| *mode)
            .collect();
        assert_eq!(modes, Vec::from_iter(recorded), "{of_gate} {of_guard}");
    }
}

#[tokio::test(start_paused = true)]
async fn reserved_peers_trusted_proxies_and_unknown_peers_are_admitted_past_the_gate() {
    let network = |text: &str| text.parse::<Network>().unwrap();
    let gate = closed(Mode::Enforce);
    let builder = ConnGuard::builder()
        .reserve(1, [network("192.0.2.200/32")])
        .trust(Trust::networks(network("192.0.2.8/29")))
        .gate(gate.clone());
    let (guard, journal) = tracking_guard(builder);
    let pairs = [200, 8, 15].map(|last| connect_from(&guard, last).unwrap());
    let unix_socket = guard.admit(TestTransport::new(duplex(1).0), None, None);
    assert!(unix_socket.is_ok());
    assert_eq!(journal.disconnected(), []);
    assert!(connect_from(&guard, 16).is_err());
    assert!(connect_from(&guard, 201).is_err());
    drop((pairs, unix_socket));
    assert_nothing_left(&guard);
}
