//! The description of an attack.

use crate::{machine::Machine, plan::Plan};

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
    /// Whether a quick drill runs it. The others are second shapes: they meet the same guard as
    /// another attack of their family.
    pub is_quick: bool,
    /// The size of the kernel's receive buffer in bytes, if not the system's choice.
    pub receive_buffer: Option<u32>,
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
    /// HTTP/2 with prior knowledge.
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
        is_quick: true,
        receive_buffer: None,
        make: |_, _| Box::new(Nothing),
    };
}

/// The machine of [`Attack::BASE`].
struct Nothing;

impl Machine for Nothing {
    fn on(
        &mut self,
        _: crate::machine::Event<'_>,
        _: std::time::Duration,
        _: &mut crate::machine::Actions,
    ) {
    }
}

/// Shortens the lists of remedies.
pub(crate) const fn remedy(server: &'static str, setting: &'static str) -> Remedy {
    Remedy { server, setting }
}
