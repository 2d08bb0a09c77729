//! The PROXY protocol, versions 1 and 2: the header in which a proxy that forwards TCP names its
//! client.
//!
//! Pure, without allocation and without state.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::{FromStr, from_utf8},
};

/// Begins each header of version 1, which is a line of text.
const V1_START: &[u8] = b"PROXY ";
/// The shortest line is `PROXY UNKNOWN`, with its end.
const V1_MIN_BYTES: usize = 15;
/// The longest line that the specification allows, with its end.
const V1_MAX_BYTES: usize = 107;
/// Begins each header of version 2, which is binary.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The length of the signature, version and command, family and transport, and length.
const V2_FIXED_BYTES: usize = 16;
/// The type of the TLV that has a checksum of the header.
const TLV_CRC32C: u8 = 0x03;

/// The header that a proxy sends before the first byte of its client: version 1 or 2 of the [PROXY
/// protocol](https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
///
/// Anyone can write such a header. Parse it only on connections of proxies that are known by their
/// address, and demand it there (section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    length: usize,
    client: ProxyClient,
}

/// The client that a [`ProxyHeader`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyClient {
    /// A TCP client. The addresses are as the header has them: an IPv4 address may be in its form
    /// for IPv6, for example if source and destination were of different families.
    Named {
        /// The address of the client.
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
    /// The proxy connected by itself: the command LOCAL, which health checks use. The client is
    /// the peer of the connection.
    Local,
    /// The header names no TCP client, so the peer of the connection is all that is known. It is
    /// `UNKNOWN` in version 1, UNSPEC, `AF_UNIX` or DGRAM in version 2, or the source is 0.0.0.0 or
    /// `::`.
    ///
    /// The specification allows to treat each family and transport that is not supported in this
    /// way (section 2.2), but not to refuse it. DGRAM belongs to them, because no handshake
    /// has confirmed the source of a datagram: anyone could name a victim as the client.
    Unknown,
}

/// What is known of a header from the bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyParse {
    /// The header is valid so far, but not complete.
    Incomplete {
        /// At least so many more bytes belong to the header, and never 0. A reader that reads no
        /// more than that reads no byte beyond the header.
        missing: usize,
    },
    /// The header is complete and valid.
    Complete(ProxyHeader),
}

/// The reason why bytes are not a valid [`ProxyHeader`]. More bytes do not change it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeaderError {
    /// The connection does not begin with a header of version 1 or 2.
    NotAHeader,
    /// Version 1: a CR or LF that is not part of CR LF.
    LineEnd,
    /// Version 1: no CR LF within 107 bytes.
    LineLength,
    /// Version 1: a protocol other than `TCP4`, `TCP6` and `UNKNOWN`, in capitals.
    Protocol,
    /// Version 1: not two addresses and two ports, each after a single space.
    Fields,
    /// Version 1: not an address of the protocol's family, or an octet with a leading zero.
    Address,
    /// Version 1: not a decimal number up to 65,535 without sign or leading zero.
    Port,
    /// Version 2: a version other than 2, in the upper four bits of this byte.
    Version(u8),
    /// Version 2: a command other than LOCAL and PROXY, in the lower four bits of this byte.
    Command(u8),
    /// Version 2: a family (upper four bits) or transport (lower) that is not assigned.
    Family(u8),
    /// Version 2: the announced length, in bytes, does not hold the addresses of the family.
    AddressLength(usize),
    /// Version 2: the header announces more than [`ProxyHeader::MAX_BYTES`], namely this number.
    Length(usize),
    /// Version 2: a TLV continues after the end of the header.
    Tlv,
    /// Version 2: a checksum that does not have four bytes, or a second one.
    ChecksumField,
    /// Version 2: the CRC32C of the header is not the one that it announces.
    Checksum,
}

// === ProxyHeader ===

impl ProxyHeader {
    /// The maximum length of a header, in bytes. Senders stay below 536 (section 2), unless a TLV
    /// has a certificate. Version 2 could announce 65,551.
    pub const MAX_BYTES: usize = 4096;

    /// Parses the first bytes of a connection, all that have arrived so far. Bytes after the header
    /// are not examined: a second header, for example, is data of the connection.
    ///
    /// Calls that find a header incomplete are cheap: they look at no more than 107 bytes of
    /// version 1 and 16 of version 2. The last call looks at each byte of the header a fixed number
    /// of times. So the work is linear even if each byte arrives by itself.
    ///
    /// Version 1 must be exactly as in section 2.1 of the specification, version 2 as in section
    /// 2.2. TLVs are skipped, but must end where the header ends, and CRC32C is checked if it is
    /// there (section 2.2.3). Malformed TLVs are accepted in a LOCAL header with a family only,
    /// because both the family and the block of LOCAL must be ignored.
    ///
    /// # Errors
    ///
    /// Fails at the first byte that no valid header can have at this place, except that a line of
    /// version 1 is decoded as a whole, and so are the TLVs of version 2. The result is the same
    /// for any division of the bytes. The connection should be aborted.
    ///
    /// ```
    /// use palisade_client_ip::{ProxyClient, ProxyHeader, ProxyHeaderError, ProxyParse};
    ///
    /// let bytes = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n";
    /// assert_eq!(ProxyHeader::parse(&bytes[..7])?, ProxyParse::Incomplete { missing: 8 });
    /// let ProxyParse::Complete(header) = ProxyHeader::parse(bytes)? else { panic!() };
    /// assert!(bytes[header.length()..].starts_with(b"GET /"));
    /// let ProxyClient::Named { source, .. } = header.client() else { panic!() };
    /// assert_eq!(source.to_string(), "192.0.2.7:56324");
    ///
    /// // HAProxy's health check: version 2, LOCAL, no family, and a checksum.
    /// let check = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x07\x03\x00\x04\xa9\xb8\x7e\x8f";
    /// let ProxyParse::Complete(header) = ProxyHeader::parse(check)? else { panic!() };
    /// assert_eq!((header.length(), header.client()), (23, ProxyClient::Local));
    ///
    /// assert_eq!(ProxyHeader::parse(b"GET / "), Err(ProxyHeaderError::NotAHeader));
    /// # Ok::<(), ProxyHeaderError>(())
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<ProxyParse, ProxyHeaderError> {
        let agrees_with = |start: &[u8]| bytes.iter().zip(start).all(|(byte, want)| byte == want);
        if agrees_with(V1_START) {
            parse_v1(bytes)
        } else if agrees_with(V2_SIGNATURE) {
            parse_v2(bytes)
        } else {
            Err(ProxyHeaderError::NotAHeader)
        }
    }

    /// Returns the length of the header in bytes. The connection's own data begin there.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Returns the client that the header names.
    pub const fn client(&self) -> ProxyClient {
        self.client
    }
}

// === Version 1 ===

fn parse_v1(bytes: &[u8]) -> Result<ProxyParse, ProxyHeaderError> {
    // The CR must come early enough for an LF within the limit.
    let start = bytes.get(..V1_MAX_BYTES - 1).unwrap_or(bytes);
    let incomplete_line = |at_least| ProxyParse::Incomplete {
        missing: V1_MIN_BYTES.saturating_sub(bytes.len()).max(at_least),
    };
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let Some((line, end)) = start.iter().position(is_end).map(|at| bytes.split_at(at)) else {
        if start.len() == V1_MAX_BYTES - 1 {
            return Err(ProxyHeaderError::LineLength);
        }
        return Ok(incomplete_line(2));
    };
    match end {
        [b'\r', b'\n', ..] => Ok(ProxyParse::Complete(ProxyHeader {
            length: line.len() + 2,
            client: client_of_line(line.strip_prefix(V1_START).unwrap_or_default())?,
        })),
        [b'\r'] => Ok(incomplete_line(1)),
        _ => Err(ProxyHeaderError::LineEnd),
    }
}

/// Parses a line without its start and its end.
fn client_of_line(line: &[u8]) -> Result<ProxyClient, ProxyHeaderError> {
    let mut fields = line.split(|byte| *byte == b' ');
    match fields.next() {
        Some(b"TCP4") => client_of_fields::<Ipv4Addr>(fields),
        Some(b"TCP6") => client_of_fields::<Ipv6Addr>(fields),
        Some(b"UNKNOWN") => Ok(ProxyClient::Unknown), // The rest must be ignored.
        _ => Err(ProxyHeaderError::Protocol),
    }
}

fn client_of_fields<'a, A: FromStr + Into<IpAddr>>(
    mut fields: impl Iterator<Item = &'a [u8]>,
) -> Result<ProxyClient, ProxyHeaderError> {
    let mut next = || fields.next().ok_or(ProxyHeaderError::Fields);
    let (source, destination, source_port, destination_port) = (next()?, next()?, next()?, next()?);
    if next().is_ok() {
        return Err(ProxyHeaderError::Fields);
    }
    let source = SocketAddr::new(address::<A>(source)?, port(source_port)?);
    let destination = SocketAddr::new(address::<A>(destination)?, port(destination_port)?);
    Ok(ProxyClient::named(source, destination))
}

fn address<A: FromStr + Into<IpAddr>>(field: &[u8]) -> Result<IpAddr, ProxyHeaderError> {
    // The standard library refuses leading zeros of octets, and zones.
    let address: Option<A> = from_utf8(field).ok().and_then(|text| text.parse().ok());
    address.map(Into::into).ok_or(ProxyHeaderError::Address)
}

fn port(field: &[u8]) -> Result<u16, ProxyHeaderError> {
    // The standard library would accept a sign and leading zeros.
    let is_canonical = matches!(field, [b'0'] | [b'1'..=b'9', ..]);
    let text = from_utf8(field).ok().filter(|_| is_canonical);
    let port = text.and_then(|text| text.parse().ok());
    port.ok_or(ProxyHeaderError::Port)
}

// === Version 2 ===

fn parse_v2(bytes: &[u8]) -> Result<ProxyParse, ProxyHeaderError> {
    let incomplete = |length| ProxyParse::Incomplete {
        missing: usize::saturating_sub(length, bytes.len()),
    };
    let fixed = bytes.get(V2_SIGNATURE.len()..).unwrap_or_default();
    let is_local = match fixed.first() {
        None => return Ok(incomplete(V2_FIXED_BYTES)),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(other) if other >> 4 == 2 => return Err(ProxyHeaderError::Command(*other)),
        Some(other) => return Err(ProxyHeaderError::Version(*other)),
    };
    let Some(&family) = fixed.get(1) else {
        return Ok(incomplete(V2_FIXED_BYTES));
    };
    let addresses_length = match (family >> 4, family & 0xf) {
        (0, 0..=2) => Some(0),
        (1, 0..=2) => Some(2 * 4 + 2 * 2),
        (2, 0..=2) => Some(2 * 16 + 2 * 2),
        (3, 0..=2) => Some(2 * 108),
        _ if is_local => None,
        _ => return Err(ProxyHeaderError::Family(family)),
    };
    let [_, _, high, low, ..] = *fixed else {
        return Ok(incomplete(V2_FIXED_BYTES));
    };
    let block_length = usize::from(u16::from_be_bytes([high, low]));
    let length = V2_FIXED_BYTES + block_length;
    if length > ProxyHeader::MAX_BYTES {
        return Err(ProxyHeaderError::Length(length));
    }
    let addresses_length = addresses_length.filter(|addresses| *addresses <= block_length);
    if addresses_length.is_none() && !is_local {
        return Err(ProxyHeaderError::AddressLength(block_length));
    }
    let Some((header, block)) = bytes.get(..length).zip(bytes.get(V2_FIXED_BYTES..length)) else {
        return Ok(incomplete(length));
    };
    if let Some((_, tlvs)) = addresses_length.and_then(|length| block.split_at_checked(length)) {
        match check_tlvs(header, tlvs) {
            Err(ProxyHeaderError::Tlv) if is_local && family != 0 => {} // Not TLVs, then.
            checked => checked?,
        }
    }
    let client = match (is_local, family) {
        (true, _) => ProxyClient::Local,
        (false, 0x11) => client_of_block::<4, Ipv4Addr>(block),
        (false, 0x21) => client_of_block::<16, Ipv6Addr>(block),
        (false, _) => ProxyClient::Unknown,
    };
    Ok(ProxyParse::Complete(ProxyHeader { length, client }))
}

/// Reads two addresses and two ports, whose presence the caller has checked.
fn client_of_block<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(block: &[u8]) -> ProxyClient {
    let read = || {
        let (source, rest) = block.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk()?;
        let destination_port = rest.first_chunk()?;
        let socket = |address: &[u8; N], port: &[u8; 2]| {
            SocketAddr::new(A::from(*address).into(), u16::from_be_bytes(*port))
        };
        let source = socket(source, source_port);
        let destination = socket(destination, destination_port);
        Some(ProxyClient::named(source, destination))
    };
    read().unwrap_or(ProxyClient::Unknown)
}

/// Checks that `tlvs`, the end of `header`, are whole, and the checksum if there is one.
fn check_tlvs(header: &[u8], mut tlvs: &[u8]) -> Result<(), ProxyHeaderError> {
    let mut checksum = None;
    while let Some((&[kind, high, low], rest)) = tlvs.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(ProxyHeaderError::Tlv)?;
        if kind == TLV_CRC32C {
            // Each of two checksums would cover the other, and receivers disagree on the order.
            let value = value
                .try_into()
                .map_err(|_| ProxyHeaderError::ChecksumField)?;
            let after = header.len() - rest.len();
            if checksum
                .replace((u32::from_be_bytes(value), after))
                .is_some()
            {
                return Err(ProxyHeaderError::ChecksumField);
            }
        }
        tlvs = rest;
    }
    if !tlvs.is_empty() {
        return Err(ProxyHeaderError::Tlv);
    }
    let Some((announced, after)) = checksum else {
        return Ok(());
    };
    let (before, after) = header.split_at(after);
    let before = before
        .strip_suffix(&announced.to_be_bytes())
        .unwrap_or_default();
    let crc = crc32c(crc32c(crc32c(!0, before), &[0; 4]), after);
    if !crc == announced {
        Ok(())
    } else {
        Err(ProxyHeaderError::Checksum)
    }
}

/// Adds `bytes` to a CRC32C that begins with all bits set and is inverted at the end (RFC 9260,
/// appendix A). A byte at a time: a header is short, and nothing faster is worth a dependency.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let (mut entry, mut bit) = (at as u32, 0);
            while bit < 8 {
                entry = (entry >> 1) ^ (REVERSED_POLYNOMIAL * (entry & 1));
                bit += 1;
            }
            table[at] = entry;
            at += 1;
        }
        table
    };
    let add = |crc, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)];
    bytes.iter().fold(crc, add)
}

// === ProxyClient ===

impl ProxyClient {
    fn named(source: SocketAddr, destination: SocketAddr) -> Self {
        if source.ip().to_canonical().is_unspecified() {
            return Self::Unknown;
        }
        Self::Named {
            source,
            destination,
        }
    }
}

// === ProxyHeaderError ===

impl fmt::Display for ProxyHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAHeader => f.write_str("the connection does not begin with a PROXY header"),
            Self::LineEnd => f.write_str("the PROXY line has a CR or LF without the other"),
            Self::LineLength => f.write_str("the PROXY line does not end within 107 bytes"),
            Self::Protocol => f.write_str("the protocol is not TCP4, TCP6 or UNKNOWN"),
            Self::Fields => f.write_str("the PROXY line does not have two addresses and two ports"),
            Self::Address => f.write_str("the PROXY line has an address that is not valid"),
            Self::Port => f.write_str("the PROXY line has a port that is not valid"),
            Self::Version(byte) => write!(f, "the version is not 2: {byte:#04x}"),
            Self::Command(byte) => write!(f, "the command is not LOCAL or PROXY: {byte:#04x}"),
            Self::Family(byte) => write!(f, "the family or transport is unassigned: {byte:#04x}"),
            Self::AddressLength(length) => write!(f, "{length} bytes do not hold the addresses"),
            Self::Length(length) => write!(f, "the PROXY header is too long: {length} bytes"),
            Self::Tlv => f.write_str("a TLV continues after the end of the PROXY header"),
            Self::ChecksumField => f.write_str("the checksum does not have 4 bytes, or is twice"),
            Self::Checksum => f.write_str("the checksum of the PROXY header is wrong"),
        }
    }
}

impl Error for ProxyHeaderError {}

#[cfg(test)]
mod tests;
