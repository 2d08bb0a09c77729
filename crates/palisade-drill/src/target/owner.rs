//! The owner of a listening socket on loopback, as Linux reports it.
//!
//! A port of this machine may belong to another user, or forward to another machine. Neither is
//! attacked. Other systems do not tell, and the report says so.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// Programs that listen for another server, as `/proc/<pid>/comm` cuts their names.
const FORWARDERS: [&str; 21] = [
    "autossh",
    "chisel",
    "cloudflared",
    "dbclient",
    "docker-proxy",
    "dropbear",
    "gvproxy",
    "kubectl",
    "ncat",
    "nc",
    "oc",
    "passt",
    "pasta",
    "pasta.avx2",
    "rootlesskit",
    "rootlessport",
    "slirp4netns",
    "socat",
    "ssh",
    "sshd",
    "sshd-session",
];

/// Returns whether [`check`] examines anything on this system.
pub(crate) fn is_known() -> bool {
    cfg!(target_os = "linux")
}

/// Checks that the listener at `addr` belongs to this user and does not forward. Checks nothing on
/// other systems than Linux.
///
/// # Errors
///
/// Why it may not be attacked, and what to do.
pub(crate) fn check(addr: SocketAddr) -> Result<(), String> {
    #[cfg(target_os = "linux")]
    {
        let table = |path| std::fs::read_to_string(path).unwrap_or_default();
        let listeners = [table("/proc/net/tcp"), table("/proc/net/tcp6")];
        let Some(listener) = find(&listeners, addr) else {
            return Err("nothing listens there: start the server first".to_owned());
        };
        let user = rustix::process::geteuid().as_raw();
        if listener.user != user {
            return Err(format!(
                "its listener belongs to user {}, and the drill runs as user {user}: run both as \
                 the same user",
                listener.user
            ));
        }
        if let Some(name) = forwarder(Path::new("/proc"), listener.inode) {
            return Err(format!(
                "its listener is of {name}, which forwards to another server: run the drill \
                 beside that server"
            ));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (
        addr,
        FORWARDERS,
        forwarder as fn(&Path, u64) -> Option<String>,
    );
    Ok(())
}

/// Returns the inode of the listener at `addr`; `None` if there is none, or if the system does not
/// tell.
pub(crate) fn inode(addr: SocketAddr) -> Option<u64> {
    let table = |path| std::fs::read_to_string(path).unwrap_or_default();
    let listeners = [table("/proc/net/tcp"), table("/proc/net/tcp6")];
    find(&listeners, addr).map(|listener| listener.inode)
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    user: u32,
    inode: u64,
}

/// Returns the listener that accepts connections to `addr`: one of that address before one of all
/// addresses.
fn find(tables: &[String], addr: SocketAddr) -> Option<Listener> {
    let all = tables.iter().flat_map(|table| table.lines());
    let listeners = all
        .filter_map(parse)
        .filter(|(at, _)| at.port() == addr.port());
    let mut found = None;
    for (at, listener) in listeners {
        let ip = at.ip().to_canonical();
        if ip == addr.ip().to_canonical() {
            return Some(listener);
        }
        // A socket of all IPv6 addresses accepts IPv4 as well, unless it says otherwise, which the
        // table does not show.
        let accepts = ip.is_unspecified() && (ip.is_ipv6() || addr.is_ipv4());
        if accepts && (found.is_none() || ip.is_ipv4() == addr.is_ipv4()) {
            found = Some(listener);
        }
    }
    found
}

/// Parses a line of `/proc/net/tcp` or `tcp6`; `None` if it is no listener.
fn parse(line: &str) -> Option<(SocketAddr, Listener)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let [_, local, _, "0A", _, _, _, user, _, inode, ..] = fields[..] else {
        return None;
    };
    let (ip, port) = local.split_once(':')?;
    // Words of 32 bits, each in the byte order of the machine.
    let words: Option<Vec<[u8; 4]>> = (0..ip.len() / 8)
        .map(|at| u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    let listener = Listener {
        user: user.parse().ok()?,
        inode: inode.parse().ok()?,
    };
    Some(((ip, port).into(), listener))
}

/// Returns the name of the forwarder that has the socket `inode`, below `proc`. If none of the
/// processes that can be looked at has it, a forwarder that cannot be looked at may be the one.
fn forwarder(proc: &Path, inode: u64) -> Option<String> {
    let link = format!("socket:[{inode}]");
    let processes = std::fs::read_dir(proc).ok()?;
    let mut suspect = None;
    for process in processes.flatten() {
        let Ok(name) = std::fs::read_to_string(process.path().join("comm")) else {
            continue;
        };
        let is_forwarder = FORWARDERS.contains(&name.trim());
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            // That of another user, or one that has changed its user, as sshd does.
            suspect = suspect.or_else(|| is_forwarder.then(|| name.trim().to_owned()));
            continue;
        };
        let has_socket = files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link.as_str())
        });
        if has_socket {
            return is_forwarder.then(|| name.trim().to_owned());
        }
    }
    suspect.map(|name| format!("{name}, as far as can be seen"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 71 1 0 100 0 0 10 0
   1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 72 1 0 100 0 0 10 0
   2: 0100007F:1F91 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1001        0 73 1 0 100 0 0 10 0";
    const TCP6: &str = "   0: 00000000000000000000000000000000:1F92 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1002        0 74 1
   1: 00000000000000000000000001000000:1F92 00000000000000000000000000000000:0000 0A 0:0 00:0 0  1003        0 75 1";

    fn user(addr: &str) -> Option<u32> {
        let tables = [TCP.to_owned(), TCP6.to_owned()];
        find(&tables, addr.parse().unwrap()).map(|listener| listener.user)
    }

    #[test]
    fn a_listener_of_the_address_or_of_all_addresses_is_found() {
        assert_eq!(user("127.0.0.1:8080"), Some(1000));
        assert_eq!(user("127.0.0.1:8081"), Some(0));
        assert_eq!(user("127.0.0.1:8082"), Some(1002));
        assert_eq!(user("[::1]:8082"), Some(1003));
        assert_eq!(user("127.0.0.2:8080"), None);
        assert_eq!(user("[::1]:8081"), None);
        assert_eq!(user("127.0.0.1:9999"), None);
    }

    #[test]
    fn garbage_in_the_table_is_no_listener() {
        for line in [
            "",
            "a b c 0A",
            "0: xx:1F90 y 0A 0 0 0 0 0 0",
            "0: ää:1 y 0A 0 0 0 0 0 0",
        ] {
            assert_eq!(parse(line), None);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_forwarder_is_found_by_the_inode_of_its_socket() {
        let proc = std::env::temp_dir().join(format!("palisade-drill-{}", std::process::id()));
        for (pid, name, inode) in [("10", "socat\n", 7), ("11", "server\n", 8)] {
            std::fs::create_dir_all(proc.join(pid).join("fd")).unwrap();
            std::fs::write(proc.join(pid).join("comm"), name).unwrap();
            let file = proc.join(pid).join("fd/3");
            std::os::unix::fs::symlink(format!("socket:[{inode}]"), file).unwrap();
        }
        let found = [7, 8, 9].map(|inode| forwarder(&proc, inode));
        assert_eq!(found, [Some("socat".to_owned()), None, None]);
        // Its files cannot be listed: it may be what no other process is.
        std::fs::create_dir_all(proc.join("12")).unwrap();
        std::fs::write(proc.join("12/comm"), "sshd-session\n").unwrap();
        let found = [7, 8, 9].map(|inode| forwarder(&proc, inode));
        std::fs::remove_dir_all(&proc).unwrap();
        let suspect = "sshd-session, as far as can be seen".to_owned();
        assert_eq!(found, [Some("socat".to_owned()), None, Some(suspect)]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_of_this_process_is_allowed_and_none_is_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(check(addr), Ok(()));
        drop(listener);
        assert!(check(addr).unwrap_err().contains("start the server first"));
    }
}
