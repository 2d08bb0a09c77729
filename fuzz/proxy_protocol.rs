//! Headers of the PROXY protocol, also in comparison with the crates `ppp` and `proxy-protocol-rs`.
//! `tests/fuzz_bodies.rs` runs the same as a property test, on valid headers and on mutated ones.

use palisade::client_ip::{ProxyClient, ProxyHeader, ProxyHeaderError, ProxyParse};
use ppp::{HeaderResult, PartialResult, v1, v2};
use proxy_protocol_rs::{Command, ParseError, TransportProtocol, Version};
use std::net::SocketAddr;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The first 13 bytes of a LOCAL header.
const LOCAL_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20";

/// The verdict of another parser.
#[derive(Clone, Copy, Debug, PartialEq)]
enum OtherVerdict {
    Incomplete,
    Complete(usize, ProxyClient),
    Refused,
}

/// Checks the verdict on a connection that begins with the data, after the start of a header that
/// the first byte selects.
pub(crate) fn proxy_protocol(data: &[u8]) {
    let [kind, data @ ..] = data else { return };
    let data = &data[..data.len().min(5000)];
    let bytes = match (kind % 8, data) {
        (0, _) => [b"PROXY ", data].concat(),
        (1, _) => [b"PROXY TCP4 192.0.2.1", data].concat(),
        (2, _) => [b"PROXY TCP6 2001:db8::1 ::", data].concat(),
        (3, _) => [V2_SIGNATURE, data].concat(),
        (4, _) => [V2_SIGNATURE, b"\x21", data].concat(),
        (5, [command, family, block @ ..]) => v2_header(*command, *family, block, false),
        (6, [command, family, block @ ..]) => v2_header(*command, *family, block, true),
        _ => data.to_vec(),
    };
    let _ = check(&bytes);
}

/// Encodes a header of version 2, with a checksum as the last TLV if `has_checksum`.
pub(crate) fn v2_header(command: u8, family: u8, block: &[u8], has_checksum: bool) -> Vec<u8> {
    let checksum: &[u8] = if has_checksum {
        &[3, 0, 4, 0, 0, 0, 0]
    } else {
        &[]
    };
    let length = (block.len() + checksum.len()) as u16;
    let mut header = [
        V2_SIGNATURE,
        &[command, family],
        &length.to_be_bytes(),
        block,
    ]
    .concat();
    header.extend(checksum);
    if has_checksum {
        let crc = header.iter().fold(!0, |crc: u32, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        });
        header.truncate(header.len() - 4);
        header.extend((!crc).to_be_bytes());
    }
    header
}

/// Checks the verdict on a connection that begins with `bytes`, and returns it.
pub(crate) fn check(bytes: &[u8]) -> Result<ProxyParse, ProxyHeaderError> {
    let verdict = ProxyHeader::parse(bytes);
    check_divisions(bytes, verdict);
    compare(bytes, verdict, by_ppp(bytes), PPP);
    compare(
        bytes,
        verdict,
        by_proxy_protocol_rs(bytes),
        PROXY_PROTOCOL_RS,
    );
    verdict
}

/// Checks that the verdict does not depend on the division of `bytes`, and that no reader reads
/// beyond the header if it reads what is missing.
fn check_divisions(bytes: &[u8], verdict: Result<ProxyParse, ProxyHeaderError>) {
    let needed = match verdict {
        Ok(ProxyParse::Complete(header)) => {
            assert!(header.length() <= bytes.len().min(ProxyHeader::MAX_BYTES));
            header.length()
        }
        Ok(ProxyParse::Incomplete { missing }) => bytes.len() + missing,
        Err(_) => usize::MAX,
    };
    for end in 0..bytes.len() {
        match ProxyHeader::parse(&bytes[..end]) {
            Ok(ProxyParse::Incomplete { missing }) => {
                assert!(missing > 0 && end + missing <= needed, "{end} of {bytes:?}");
            }
            other => {
                assert_eq!(other, verdict, "{end} of {bytes:?}");
                assert!(other.is_err() || end >= needed);
            }
        }
    }
}

/// Where palisade and another parser are known to disagree.
struct Differences {
    name: &'static str,
    /// What the other parser accepts and palisade refuses with this error.
    stricter: fn(&[u8], ProxyHeaderError) -> bool,
    /// What the other parser refuses, or waits for the end of, and palisade accepts.
    laxer: fn(&[u8]) -> bool,
}

/// Compares two verdicts. One parser may refuse what the other finds incomplete, because they
/// decode lines and blocks at different times.
fn compare(
    bytes: &[u8],
    verdict: Result<ProxyParse, ProxyHeaderError>,
    other: OtherVerdict,
    differences: &Differences,
) {
    let agrees = match (verdict, other) {
        (Ok(ProxyParse::Complete(header)), OtherVerdict::Complete(length, client)) => {
            (header.length(), header.client()) == (length, client)
        }
        (Ok(ProxyParse::Complete(_)), _) => (differences.laxer)(bytes),
        (Ok(ProxyParse::Incomplete { .. }), OtherVerdict::Complete(..)) => false,
        (Err(error), OtherVerdict::Complete(..)) => (differences.stricter)(bytes, error),
        (_, OtherVerdict::Incomplete | OtherVerdict::Refused) => true,
    };
    let name = differences.name;
    assert!(
        agrees,
        "{verdict:?}, {name} {other:?}: {}",
        bytes.escape_ascii()
    );
}

const PPP: &Differences = &Differences {
    name: "ppp",
    stricter: |bytes, error| match error {
        // A lone LF in what follows `UNKNOWN`, or a space and LF in place of CR LF.
        ProxyHeaderError::LineEnd => bytes.starts_with(b"PROXY UNKNOWN") || contains(bytes, b" \n"),
        // A plus sign before a port.
        ProxyHeaderError::Port => contains(bytes, b" +"),
        // `ppp` has no limit, and does not look at checksums.
        ProxyHeaderError::Length(_)
        | ProxyHeaderError::ChecksumField
        | ProxyHeaderError::Checksum => true,
        _ => false,
    },
    laxer: |bytes| {
        // More than four words, or words that are not UTF-8, after `UNKNOWN`. They must be ignored.
        let line = bytes
            .split(|byte| *byte == b'\r')
            .next()
            .unwrap_or_default();
        let words = line.split(|byte| *byte == b' ').count();
        let is_unknown =
            line.starts_with(b"PROXY UNKNOWN") && (words > 6 || std::str::from_utf8(line).is_err());
        // The family of a LOCAL header, which must be ignored.
        is_unknown || is_local_with_family(bytes)
    },
};

const PROXY_PROTOCOL_RS: &Differences = &Differences {
    name: "proxy-protocol-rs",
    stricter: |bytes, error| match error {
        // A lone CR or LF in what follows `UNKNOWN`.
        ProxyHeaderError::LineEnd => bytes.starts_with(b"PROXY UNKNOWN"),
        // A plus sign or a leading zero before a port.
        ProxyHeaderError::Port => contains(bytes, b" +") || contains(bytes, b" 0"),
        // The limit is the caller's.
        ProxyHeaderError::Length(_) => true,
        // The last of several checksums counts. In a LOCAL header, malformed TLVs are ignored.
        ProxyHeaderError::ChecksumField => {
            let checksums = kinds_of_tlvs(bytes).into_iter().filter(|kind| *kind == 3);
            checksums.count() > 1 || bytes.starts_with(LOCAL_START)
        }
        // In a LOCAL header with a family, it finds TLVs in place of the addresses.
        ProxyHeaderError::Tlv | ProxyHeaderError::Checksum => bytes.starts_with(LOCAL_START),
        _ => false,
    },
    laxer: |bytes| {
        let is_v2 = bytes.starts_with(V2_SIGNATURE);
        let family = bytes.get(13).copied().unwrap_or_default();
        // The rest of an `UNKNOWN` line must be ignored, UTF-8 or not.
        (bytes.starts_with(b"PROXY UNKNOWN") && std::str::from_utf8(bytes).is_err())
            // PROXY with UNSPEC: it refuses, as a receiver may.
            || is_v2 && (family >> 4 == 0 || family & 0xf == 0)
            // In a LOCAL header with a family, it finds checksums in place of the addresses.
            || is_local_with_family(bytes)
            // It looks into unique ids and information about TLS, which palisade skips.
            || is_v2 && kinds_of_tlvs(bytes).iter().any(|kind| matches!(kind, 0x05 | 0x20))
    },
};

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn is_local_with_family(bytes: &[u8]) -> bool {
    bytes.starts_with(LOCAL_START) && bytes.get(13).is_some_and(|family| *family != 0)
}

/// Returns the types of all whole TLVs of a header of version 2, as `ppp` finds them.
fn kinds_of_tlvs(bytes: &[u8]) -> Vec<u8> {
    let Ok(header) = v2::Header::try_from(bytes) else {
        return Vec::new();
    };
    let tlvs = header.tlvs().map_while(Result::ok);
    tlvs.map(|tlv| tlv.kind).collect()
}

/// Returns the client with these addresses, if it is one.
fn named(source: SocketAddr, destination: SocketAddr) -> ProxyClient {
    if source.ip().to_canonical().is_unspecified() {
        return ProxyClient::Unknown;
    }
    ProxyClient::Named {
        source,
        destination,
    }
}

fn by_ppp(bytes: &[u8]) -> OtherVerdict {
    let result = HeaderResult::parse(bytes);
    if result.is_incomplete() {
        return OtherVerdict::Incomplete;
    }
    match result {
        HeaderResult::V1(Ok(header)) => {
            let client = match header.addresses {
                v1::Addresses::Unknown => ProxyClient::Unknown,
                v1::Addresses::Tcp4(a) => named(
                    (a.source_address, a.source_port).into(),
                    (a.destination_address, a.destination_port).into(),
                ),
                v1::Addresses::Tcp6(a) => named(
                    (a.source_address, a.source_port).into(),
                    (a.destination_address, a.destination_port).into(),
                ),
            };
            OtherVerdict::Complete(header.header.len(), client)
        }
        HeaderResult::V2(Ok(header)) => {
            let has_addresses = header.protocol == v2::Protocol::Stream;
            let client = match header.addresses {
                _ if header.command == v2::Command::Local => ProxyClient::Local,
                v2::Addresses::IPv4(a) if has_addresses => named(
                    (a.source_address, a.source_port).into(),
                    (a.destination_address, a.destination_port).into(),
                ),
                v2::Addresses::IPv6(a) if has_addresses => named(
                    (a.source_address, a.source_port).into(),
                    (a.destination_address, a.destination_port).into(),
                ),
                _ => ProxyClient::Unknown,
            };
            // It takes the block of UNSPEC for an address.
            let is_unspec = header.addresses == v2::Addresses::Unspecified;
            let mut tlvs = if is_unspec {
                v2::TypeLengthValues::from(header.address_bytes())
            } else {
                header.tlvs()
            };
            // It does not look at TLVs by itself. Those of LOCAL count only without a family.
            if !is_local_with_family(bytes) && tlvs.any(|tlv| tlv.is_err()) {
                return OtherVerdict::Refused;
            }
            OtherVerdict::Complete(header.len(), client)
        }
        _ => OtherVerdict::Refused,
    }
}

fn by_proxy_protocol_rs(bytes: &[u8]) -> OtherVerdict {
    let (info, length) = match proxy_protocol_rs::parse(bytes) {
        Ok(parsed) => parsed,
        Err(ParseError::Incomplete) => return OtherVerdict::Incomplete,
        Err(_) => return OtherVerdict::Refused,
    };
    let has_addresses = matches!(info.transport, Some(transport)
        if transport.protocol == TransportProtocol::Stream);
    let client = match (info.source_inet(), info.destination_inet()) {
        _ if info.version == Version::V2 && info.command == Command::Local => ProxyClient::Local,
        (Some(source), Some(destination)) if has_addresses => named(source, destination),
        _ => ProxyClient::Unknown,
    };
    OtherVerdict::Complete(length, client)
}
