//! The description of an attack.

use crate::{
    bounds::{MAX_ATTACK_TIME, MAX_PATIENT_ATTACK_TIME},
    machine::Machine,
    plan::Plan,
};
use std::time::Duration;

/// An attack: what it does to the server, what stops it, and its machines.
#[derive(Clone, Debug)]
pub struct Attack {
    /// The name, by which the drill selects and reports it.
    pub name: &'static str,
    /// The threat in palisade's list, such as `T03`.
    pub threat: &'static str,
    /// One line on what the attackers do.
    pub title: &'static str,
    /// What the attackers withhold, or what they take.
    pub withholds: &'static str,
    /// What stops the attack, in general terms.
    pub stopped_by: &'static str,
    /// The settings that stop it, by server.
    pub remedies: &'static [Remedy],
    /// The CVE that describes it, if there is one.
    pub cve: Option<&'static str>,
    /// The protocol of its connections.
    pub protocol: Protocol,
    /// The number of its connections.
    pub connections: usize,
    /// The addresses of its connections.
    pub addresses: Addresses,
    /// The route that it needs.
    pub needs: Needs,
    /// What it takes from the server.
    pub takes: Takes,
    /// The size of the kernel's receive buffer in bytes, if not the system's choice.
    pub receive_buffer: Option<u32>,
    /// The times of the attack, where they are not those of all.
    pub times: Times,
    /// What the quick drill does differently; `None` if nothing is lost but time.
    pub in_quick: InQuick,
    /// Creates the machine of the connection with this number.
    pub make: fn(&Plan, usize) -> Box<dyn Machine>,
}

/// A setting that stops an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The server or library: `palisade`, `hyper`, `nginx`.
    pub server: &'static str,
    /// The setting and a value.
    pub setting: &'static str,
}

/// A protocol of the attackers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: with prior knowledge, or by ALPN where the target speaks TLS.
    Http2,
}

/// The number of addresses of the attackers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// All connections come from one address.
    One,
    /// The connections come from this many addresses in turn, 250 at most.
    Many(usize),
}

/// A route that an attack needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// The cheap GET, which every drill has.
    Get,
    /// A POST that reads its body.
    Post,
    /// A GET with a large response.
    Large,
    /// An offer of extended CONNECT (RFC 8441) in the SETTINGS of the server.
    Tunnels,
    /// A CPU-bound GET of a server in a child process.
    Cpu,
    /// A server in a child process with a low limit on open files.
    FileLimit,
    /// A POST that reads its body, of a server in a child process with little memory.
    MemoryLimit,
    /// A target that speaks TLS. The machines have the bare TCP connection, and write the bytes of
    /// TLS themselves. The machines of all other attacks see what TLS carries.
    Tls,
}

/// What the attackers take from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Places: connections, or what a connection holds. What is left at the end is *kept*, and the
    /// number of connections is raised to the places of the server.
    Places,
    /// Work: processor time, reads, accepts. A connection that is still open when the flood has
    /// ended is no more than an idle one, which other attacks examine.
    Work,
    /// What the server should refuse. The machines tell whether they got it.
    Passage,
    /// Nothing: they are honest, and it is the server that is at fault if it refuses them. The
    /// machines tell which requests were served. They all begin at once.
    Nothing,
}

/// The times of an attack, where they are not those of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The time of the attack in the full drill.
    pub full: Option<Duration>,
    /// The time without which the attack says nothing.
    pub least: Option<Duration>,
    /// The clients come twice, at the beginning of the drill and in their turn. The pauses between
    /// the two at least, in the quick and in the full drill.
    pub returns: Option<[Duration; 2]>,
}

/// What becomes of an attack in the quick drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InQuick {
    /// It is run, and says the same in less time.
    Same,
    /// It is run, and cannot show what is told here.
    Less(&'static str),
    /// It is not run, unless it is asked for by name, for the reason that is told here.
    Skipped(&'static str),
}

impl Attack {
    /// An attack without a name, which every family fills in.
    pub(crate) const BASE: Self = Self {
        name: "",
        threat: "",
        title: "",
        withholds: "",
        stopped_by: "",
        remedies: &[],
        cve: None,
        protocol: Protocol::Http1,
        connections: 400,
        addresses: Addresses::Many(50),
        needs: Needs::Get,
        takes: Takes::Places,
        receive_buffer: None,
        times: Times {
            full: None,
            least: None,
            returns: None,
        },
        in_quick: InQuick::Same,
        make: |_, _| Box::new(Nothing),
    };

    /// Returns the longest time of its connections.
    pub(crate) fn longest(&self) -> Duration {
        match self.times.full {
            Some(full) if full > MAX_ATTACK_TIME => MAX_PATIENT_ATTACK_TIME,
            _ => MAX_ATTACK_TIME,
        }
    }
}

/// The machine of [`Attack::BASE`].
struct Nothing;

impl Machine for Nothing {
    fn on(&mut self, _: crate::machine::Event<'_>, _: Duration, _: &mut crate::machine::Actions) {}
}

/// Shortens the lists of remedies.
pub(crate) const fn remedy(server: &'static str, setting: &'static str) -> Remedy {
    Remedy { server, setting }
}
