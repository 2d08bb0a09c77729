//! What Linux knows of listeners, read when somebody asks: nothing of it is kept up to date.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// More of a file is not read: some thousand listeners.
const MOST_BYTES: u64 = 512 * 1024;
/// The state of a socket that listens, as `/proc` writes it.
const LISTENS: &str = "0A";

/// Connections that were lost before anybody could accept them, of the whole network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Because an accept queue was full.
    pub(crate) overflows: u64,
    /// For any reason, that one among them.
    pub(crate) drops: u64,
}

/// How many connections wait to be accepted at `addresses`, by all sockets that listen there.
/// `None` if it cannot be told.
pub(crate) fn waiting(addresses: &[SocketAddr]) -> Option<u64> {
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
            let found = waiting_in(BufReader::new(file.take(MOST_BYTES)), addresses);
            sum = sum.into_iter().chain(found).reduce(u64::saturating_add);
        }
    }
    sum
}

/// The sockets that listen stand first; those of connections, perhaps very many, are not read.
fn waiting_in(table: impl BufRead, addresses: &[SocketAddr]) -> Option<u64> {
    let lines = table.lines().map_while(Result::ok).skip(1);
    let listening = lines.map_while(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let address = columns.next().and_then(address);
        let state = columns.nth(1)?;
        let queue = columns.next()?.split_once(':')?.1;
        let waiting = u64::from_str_radix(queue, 16).ok()?;
        (state == LISTENS).then_some((address?, waiting))
    });
    let ours = listening.filter(|(address, _)| {
        addresses
            .iter()
            .any(|ours| (ours.ip(), ours.port()) == *address)
    });
    ours.map(|(_, waiting)| waiting).reduce(u64::saturating_add)
}

/// An address as `/proc` writes it: words of 32 bits in the machine's own order, then the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (words, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(words.get(at..at + 8)?, 16).ok();
    let ip = match words.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        32 => {
            let mut bytes = [0; 16];
            for (place, bytes) in bytes.chunks_exact_mut(4).enumerate() {
                bytes.copy_from_slice(&word(8 * place)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

/// How many connections got lost before they could be accepted.
pub(crate) fn lost() -> Option<Lost> {
    let file = File::open("/proc/self/net/netstat").ok()?;
    lost_in(BufReader::new(file.take(MOST_BYTES)))
}

/// A line of names, and under it one of numbers.
fn lost_in(table: impl BufRead) -> Option<Lost> {
    let mut lines = table
        .lines()
        .map_while(Result::ok)
        .filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let of = |name: &str| {
        let place = names
            .split_ascii_whitespace()
            .position(|named| named == name)?;
        numbers.split_ascii_whitespace().nth(place)?.parse().ok()
    };
    Some(Lost {
        overflows: of("ListenOverflows")?,
        drops: of("ListenDrops")?,
    })
}

/// The most connections that the system lets wait at one listener.
pub(crate) fn longest_queue() -> Option<u32> {
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

    fn of(table: &str, address: &str) -> Option<u64> {
        waiting_in(table.as_bytes(), &[address.parse().unwrap()])
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_queues_of_one_address_are_added_up_to_the_first_connection() {
        assert_eq!(of(TABLE, "127.0.0.1:8080"), Some(8));
        assert_eq!(of(TABLE, "127.0.0.1:8081"), Some(7));
        assert_eq!(of(TABLE, "127.0.0.1:8082"), None);
        assert_eq!(of(TABLE, "127.0.0.2:8080"), None);
        let v6 = "head\n 0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000002 0\n";
        assert_eq!(of(v6, "[2001:db8::1]:80"), Some(2));
    }

    #[test]
    fn what_is_no_table_says_nothing() {
        for table in [
            "",
            "\n",
            "head\n0:\n",
            "head\n 0: 0:0 0:0 0A\n",
            "head\n0: é:é 0:0 0A 0:1\n",
        ] {
            assert_eq!(of(table, "127.0.0.1:80"), None);
        }
        assert_eq!(lost_in("TcpExt: ListenDrops\nTcpExt:\n".as_bytes()), None);
        let table = "TcpExt: A ListenOverflows ListenDrops\nTcpExt: 1 2 3\nIpExt: B\nIpExt: 9\n";
        assert_eq!(
            lost_in(table.as_bytes()),
            Some(Lost {
                overflows: 2,
                drops: 3
            })
        );
    }
}
