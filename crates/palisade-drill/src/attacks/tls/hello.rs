//! A `ClientHello`, written byte by byte.

use std::net::IpAddr;

/// The content types of records (RFC 8446 section 5.1).
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
/// The type of a `ClientHello` (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;
/// The version in all records that servers of any version send, without its last byte.
pub(crate) const VERSION: u8 = 3;
/// The version of TLS 1.2, which TLS 1.3 puts where its own would be (RFC 8446 section 4.1.2).
const TLS12: [u8; 2] = [VERSION, 3];

/// Suites of TLS 1.3, then of TLS 1.2 with elliptic curves.
const CIPHER_SUITES: [u8; 18] = [
    0x13, 0x01, 0x13, 0x02, 0x13, 0x03, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30, 0xcc, 0xa9,
    0xcc, 0xa8,
];
/// ECDSA, PSS, Ed25519 and PKCS #1.
const SIGNATURES: [u8; 16] = [
    0x04, 0x03, 0x05, 0x03, 0x08, 0x04, 0x08, 0x05, 0x08, 0x06, 0x08, 0x07, 0x04, 0x01, 0x05, 0x01,
];
const X25519: [u8; 2] = [0, 0x1d];
const SECP256R1: [u8; 2] = [0, 0x17];

/// Numbers that are random enough for a `ClientHello` (Marsaglia's xorshift64).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Returns the numbers of one client.
    pub(crate) fn new(seed: u64, client: usize) -> Self {
        let client = (client as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((seed ^ client) | 1)
    }

    fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for piece in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_be_bytes());
        }
        bytes
    }
}

/// Returns a `ClientHello` of TLS 1.3 or 1.2 in one record, which every server answers. It asks for
/// the host of `authority`, offers both protocols by ALPN, and has the share of a key that is not
/// kept: the handshake cannot be finished.
pub(crate) fn client_hello(authority: &str, random: &mut Random) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |number: u16, data: &[u8]| {
        extensions.extend(number.to_be_bytes());
        extensions.extend(sized(data));
    };
    if let Some(name) = host(authority) {
        // A list with one name, of the type of a host (RFC 6066 section 3).
        extension(0, &sized(&[&[0][..], &sized(name.as_bytes())].concat()));
    }
    extension(10, &sized(&[X25519, SECP256R1].concat())); // supported_groups
    extension(11, &[1, 0]); // ec_point_formats
    extension(13, &sized(&SIGNATURES)); // signature_algorithms
    extension(16, &sized(b"\x02h2\x08http/1.1")); // ALPN
    extension(23, &[]); // extended_master_secret
    extension(43, &[4, VERSION, 4, VERSION, 3]); // supported_versions
    extension(45, &[1, 1]); // psk_key_exchange_modes
    let share = [&X25519[..], &sized(&random.bytes())].concat();
    extension(51, &sized(&share)); // key_share
    extension(0xff01, &[0]); // renegotiation_info

    let session = random.bytes();
    let hello = [
        &TLS12[..],
        &random.bytes(),
        &[session.len() as u8],
        &session,
        &sized(&CIPHER_SUITES),
        &[1, 0], // No compression.
        &sized(&extensions),
    ]
    .concat();
    let message = [&[CLIENT_HELLO, 0][..], &sized(&hello)].concat();
    // The version of the first record is that of TLS 1.0, for old servers.
    [&[HANDSHAKE, VERSION, 1][..], &sized(&message)].concat()
}

/// Returns the name of a host in `authority`; `None` for an address, which is not sent.
fn host(authority: &str) -> Option<&str> {
    let name = authority
        .rsplit_once(':')
        .map_or(authority, |(name, _)| name);
    let is_address = name.parse::<IpAddr>().is_ok() || authority.starts_with('[');
    // Without the dot of a name that is complete (RFC 6066 section 3).
    let name = name.trim_end_matches('.');
    (!is_address && !name.is_empty()).then_some(name)
}

/// Returns `bytes` after their length in two bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_one_record_with_the_name_of_the_host() {
        let hello = client_hello("example.test:8443", &mut Random::new(1, 0));
        assert_eq!(hello[..3], [HANDSHAKE, 3, 1]);
        let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
        assert_eq!(hello.len(), 5 + length);
        assert_eq!(hello[5..9], [CLIENT_HELLO, 0, 0, length as u8 - 4]);
        let name = b"\0\0\0\x11\0\x0f\0\0\x0cexample.test";
        assert!(hello.windows(name.len()).any(|found| found == name));
    }

    #[test]
    fn an_address_is_not_sent_as_a_name() {
        for authority in ["127.0.0.1:1", "[::1]:1", "127.0.0.1"] {
            assert_eq!(host(authority), None, "{authority}");
        }
        assert_eq!(host("localhost:1"), Some("localhost"));
        assert_eq!(host("localhost"), Some("localhost"));
    }

    #[test]
    fn each_hello_of_each_client_is_another() {
        let mut random = Random::new(1, 0);
        let first = client_hello("a", &mut random);
        assert_ne!(first, client_hello("a", &mut random));
        assert_ne!(first, client_hello("a", &mut Random::new(1, 1)));
        assert_eq!(first, client_hello("a", &mut Random::new(1, 0)));
    }

    #[cfg(feature = "rustls")]
    #[test]
    fn rustls_answers_a_hello_with_a_server_hello() {
        let mut server = crate::tls::tests::session();
        let hello = client_hello("localhost:1", &mut Random::new(1, 0));
        assert_eq!(server.read_tls(&mut &*hello).unwrap(), hello.len());
        server.process_new_packets().unwrap();
        assert_eq!(server.server_name(), Some("localhost"));
        let mut answer = Vec::new();
        server.write_tls(&mut answer).unwrap();
        let server_hello = 2;
        assert_eq!((answer[0], answer[5]), (HANDSHAKE, server_hello));
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    }
}
