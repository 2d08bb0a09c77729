//! Figures of Linux about listening sockets, from `/proc`. They are read when gauges are sampled.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The largest part of a file that is read: enough for some thousand listeners.
const MAX_READ_BYTES: u64 = 512 * 1024;
/// The state of a listening socket, as `/proc` writes it.
const LISTEN_STATE: &str = "0A";

/// Connections that were lost before they were accepted, in the whole network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostConnections {
    /// Those that were lost because an accept queue was full.
    pub(crate) overflows: u64,
    /// Those that were lost for any reason, including this one.
    pub(crate) drops: u64,
}

/// Returns the number of connections that wait to be accepted at all sockets that listen on
/// `addresses`; `None` if it is unknown.
pub(crate) fn waiting_connections(addresses: &[SocketAddr]) -> Option<u64> {
    let mut sum = None;
    let families = [
        (
            "/proc/self/net/tcp",
            SocketAddr::is_ipv4 as fn(&SocketAddr) -> bool,
        ),
        ("/proc/self/net/tcp6", SocketAddr::is_ipv6),
    ];
    for (path, is_of_family) in families {
        if addresses.iter().any(is_of_family)
            && let Ok(file) = File::open(path)
        {
            let found = waiting_in(BufReader::new(file.take(MAX_READ_BYTES)), addresses);
            sum = sum.into_iter().chain(found).reduce(u64::saturating_add);
        }
    }
    sum
}

/// Returns this number from the text of a table. Listening sockets come first in it. The sockets of
/// connections, which may be very many, are not read.
fn waiting_in(table: impl BufRead, addresses: &[SocketAddr]) -> Option<u64> {
    let lines = table.lines().map_while(Result::ok).skip(1);
    let listening = lines.map_while(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let address = columns.next().and_then(parse_address);
        let state = columns.nth(1)?;
        let queue = columns.next()?.split_once(':')?.1;
        let waiting = u64::from_str_radix(queue, 16).ok()?;
        (state == LISTEN_STATE).then_some((address?, waiting))
    });
    let ours = listening.filter(|(address, _)| {
        addresses
            .iter()
            .any(|own| (own.ip(), own.port()) == *address)
    });
    ours.map(|(_, waiting)| waiting).reduce(u64::saturating_add)
}

/// Parses an address as `/proc` writes it: words of 32 bits in the byte order of the machine, then
/// the port.
fn parse_address(text: &str) -> Option<(IpAddr, u16)> {
    let (words, port) = text.split_once(':')?;
    let word = |start: usize| u32::from_str_radix(words.get(start..start + 8)?, 16).ok();
    let ip = match words.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut bytes = [0; 16];
            for (index, bytes) in bytes.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(8 * index)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

/// Returns the number of connections that were lost before they were accepted.
pub(crate) fn lost_connections() -> Option<LostConnections> {
    let file = File::open("/proc/self/net/netstat").ok()?;
    lost_in(BufReader::new(file.take(MAX_READ_BYTES)))
}

/// Returns these numbers from the text of a table: a line of names, followed by one of numbers.
fn lost_in(table: impl BufRead) -> Option<LostConnections> {
    let mut lines = table
        .lines()
        .map_while(Result::ok)
        .filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let number = |name: &str| {
        let index = names
            .split_ascii_whitespace()
            .position(|column| column == name)?;
        numbers.split_ascii_whitespace().nth(index)?.parse().ok()
    };
    Some(LostConnections {
        overflows: number("ListenOverflows")?,
        drops: number("ListenDrops")?,
    })
}

/// Returns the largest number of connections that the system lets wait at one listener.
pub(crate) fn max_backlog() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000005 00:00000000 00000000     0        0 1
   1: 0100007F:1F91 00000000:0000 0A 00000000:00000007 00:00000000 00000000     0        0 2
   2: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 3
   3: 0100007F:1F90 0100007F:A000 01 00000000:00000064 00:00000000 00000000     0        0 4
   4: 0100007F:1F90 00000000:0000 0A 00000000:00000064 00:00000000 00000000     0        0 5
";

    fn waiting_at(table: &str, address: &str) -> Option<u64> {
        waiting_in(table.as_bytes(), &[address.parse().unwrap()])
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_queues_of_one_address_are_summed_up_to_the_first_connection() {
        assert_eq!(waiting_at(TABLE, "127.0.0.1:8080"), Some(8));
        assert_eq!(waiting_at(TABLE, "127.0.0.1:8081"), Some(7));
        assert_eq!(waiting_at(TABLE, "127.0.0.1:8082"), None);
        assert_eq!(waiting_at(TABLE, "127.0.0.2:8080"), None);
        let v6 = "head\n 0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000002 0\n";
        assert_eq!(waiting_at(v6, "[2001:db8::1]:80"), Some(2));
    }

    #[test]
    fn a_malformed_table_is_ignored() {
        for table in [
            "",
            "\n",
            "head\n0:\n",
            "head\n 0: 0:0 0:0 0A\n",
            "head\n0: é:é 0:0 0A 0:1\n",
        ] {
            assert_eq!(waiting_at(table, "127.0.0.1:80"), None);
        }
        assert_eq!(lost_in("TcpExt: ListenDrops\nTcpExt:\n".as_bytes()), None);
        let table = "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 2 3\nIpExt: B\nIpExt: 9\n";
        assert_eq!(
            lost_in(table.as_bytes()),
            Some(LostConnections {
                overflows: 2,
                drops: 3
            })
        );
    }
}
