//! Rows of bad input, the specification's examples, and the vectors of other implementations.

use super::*;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Source 192.0.2.7:56324, destination 198.51.100.1:443.
const IPV4_BLOCK: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 220, 4, 1, 187];

/// Encodes a header of version 2.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, block].concat()
}

/// Encodes PROXY, TCP over IPv4, with these bytes after the addresses.
fn v2_with_tlvs(tlvs: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[&IPV4_BLOCK, tlvs].concat())
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

/// Writes the checksum of `header` to its last four bytes, which are zero.
fn with_checksum(mut header: Vec<u8>) -> Vec<u8> {
    let checksum = !crc32c(!0, &header);
    let end = header.len();
    assert_eq!(header[end - 4..], [0; 4]);
    header[end - 4..].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn named(source: &str, destination: &str) -> ProxyClient {
    ProxyClient::Named {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    }
}

/// Returns the verdict on `bytes`, which arrive as a whole. Checks that it is the same if they
/// arrive byte by byte, and if only the bytes that are certainly missing are read.
fn verdict(bytes: &[u8]) -> Result<ProxyParse, ProxyHeaderError> {
    let whole = ProxyHeader::parse(bytes);
    let mut prefixes = (0..bytes.len()).map(|end| ProxyHeader::parse(&bytes[..end]));
    let is_terminal =
        |verdict: &Result<_, _>| !matches!(verdict, Ok(ProxyParse::Incomplete { .. }));
    let first = prefixes.find(is_terminal).unwrap_or(whole);
    match (whole, first) {
        // Only the last call knows how much is missing.
        (Ok(ProxyParse::Incomplete { .. }), _) => assert_eq!(whole, first),
        _ => assert_eq!(whole, first, "byte by byte"),
    }
    let mut end = 0;
    while let Ok(ProxyParse::Incomplete { missing }) = ProxyHeader::parse(&bytes[..end]) {
        assert!(missing > 0);
        end += missing;
        if end > bytes.len() {
            return whole;
        }
    }
    assert_eq!(ProxyHeader::parse(&bytes[..end]), whole, "read exactly");
    if let Ok(ProxyParse::Complete(header)) = whole {
        assert_eq!(header.length(), end);
    }
    whole
}

/// Returns the length of the header that `bytes` begin with, and its client.
#[track_caller]
fn complete(bytes: impl AsRef<[u8]>) -> (usize, ProxyClient) {
    match verdict(bytes.as_ref()) {
        Ok(ProxyParse::Complete(header)) => (header.length(), header.client()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn client(bytes: impl AsRef<[u8]>) -> ProxyClient {
    complete(bytes).1
}

#[track_caller]
fn error(bytes: impl AsRef<[u8]>) -> ProxyHeaderError {
    verdict(bytes.as_ref()).unwrap_err()
}

#[track_caller]
fn missing(bytes: impl AsRef<[u8]>) -> usize {
    match verdict(bytes.as_ref()) {
        Ok(ProxyParse::Incomplete { missing }) => missing,
        other => panic!("{other:?}"),
    }
}

// === Version 1 ===

#[test]
fn a_line_that_arrives_byte_by_byte_is_complete_with_its_last_byte() {
    let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
    for end in 0..line.len() {
        missing(&line[..end]);
    }
    let client = named("192.0.2.7:56324", "198.51.100.1:443");
    assert_eq!(complete(line), (line.len(), client));
}

#[test]
fn bytes_after_a_line_in_the_same_segment_are_not_part_of_it() {
    let line = "PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n";
    let client = named("[2001:db8::7]:56324", "[2001:db8::1]:443");
    assert_eq!(
        complete(format!("{line}GET / HTTP/1.1\r\n\r\n")),
        (line.len(), client)
    );
    assert_eq!(complete(format!("{line}\n")), (line.len(), client));
}

#[test]
fn a_line_without_an_end_in_107_bytes_is_refused() {
    let of_length = |length: usize| format!("{:x<1$}\r\n", "PROXY UNKNOWN ", length - 2);
    assert_eq!(complete(of_length(107)), (107, ProxyClient::Unknown));
    assert_eq!(error(of_length(108)), ProxyHeaderError::LineLength);
    // As early as the end can no longer come in time.
    assert_eq!(missing(&of_length(200)[..105]), 2);
    assert_eq!(error(&of_length(200)[..106]), ProxyHeaderError::LineLength);
    assert_eq!(missing(&of_length(107)[..106]), 1);
}

#[test]
fn a_lone_lf_or_cr_does_not_end_a_line() {
    for line in [
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\nGET / HTTP/1.1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\rGET / HTTP/1.1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\r\n",
        "PROXY UNKNOWN\n",
        "PROXY UNKNOWN some\nthing\r\n",
        "PROXY UNKNOWN some\rthing\r\n",
    ] {
        assert_eq!(error(line), ProxyHeaderError::LineEnd, "{line:?}");
    }
}

#[test]
fn leading_zeros_are_refused() {
    for (fields, want) in [
        (
            "192.0.02.7 198.51.100.1 56324 443",
            ProxyHeaderError::Address,
        ),
        (
            "192.0.2.7 198.051.100.1 56324 443",
            ProxyHeaderError::Address,
        ),
        ("192.0.2.7 198.51.100.1 056324 443", ProxyHeaderError::Port),
        ("192.0.2.7 198.51.100.1 56324 0443", ProxyHeaderError::Port),
        ("192.0.2.7 198.51.100.1 00 443", ProxyHeaderError::Port),
    ] {
        assert_eq!(error(format!("PROXY TCP4 {fields}\r\n")), want, "{fields}");
    }
    // Of an IPv6 address, up to four digits are the form of the specification.
    let line = "PROXY TCP6 2001:0db8::0007 ::ffff:198.51.100.1 0 65535\r\n";
    assert_eq!(
        client(line),
        named("[2001:db8::7]:0", "[::ffff:198.51.100.1]:65535")
    );
    let line = "PROXY TCP6 2001:db8::00007 2001:db8::1 1 2\r\n";
    assert_eq!(error(line), ProxyHeaderError::Address);
    let line = "PROXY TCP6 ::ffff:198.51.100.01 2001:db8::1 1 2\r\n";
    assert_eq!(error(line), ProxyHeaderError::Address);
}

#[test]
fn port_65536_and_whatever_is_not_a_number_is_refused() {
    for port in [
        "65536",
        "99999",
        "100000",
        "+1",
        "-1",
        "",
        "0x1",
        "1a",
        "１",
        "18446744073709551617",
    ] {
        for ports in [format!("{port} 443"), format!("443 {port}")] {
            let line = format!("PROXY TCP4 192.0.2.7 198.51.100.1 {ports}\r\n");
            assert_eq!(error(&line), ProxyHeaderError::Port, "{line:?}");
        }
    }
}

#[test]
fn addresses_of_the_other_family_are_refused() {
    for fields in [
        "TCP6 192.0.2.7 198.51.100.1 1 2",
        "TCP6 2001:db8::7 198.51.100.1 1 2",
        "TCP4 2001:db8::7 2001:db8::1 1 2",
        "TCP4 ::ffff:192.0.2.7 198.51.100.1 1 2",
        "TCP6 [2001:db8::7] [2001:db8::1] 1 2",
        "TCP6 fe80::1%eth0 2001:db8::1 1 2",
        "TCP4 192.0.2 198.51.100.1 1 2",
        "TCP4 192.0.2.256 198.51.100.1 1 2",
        "TCP4 localhost 198.51.100.1 1 2",
        "TCP4 \u{e9} 198.51.100.1 1 2",
    ] {
        assert_eq!(
            error(format!("PROXY {fields}\r\n")),
            ProxyHeaderError::Address,
            "{fields}"
        );
    }
}

#[test]
fn extra_missing_and_double_spaces_are_refused() {
    for fields in [
        "TCP4 192.0.2.7 198.51.100.1 1 2 ",
        "TCP4 192.0.2.7 198.51.100.1 1 2 3",
        "TCP4 192.0.2.7 198.51.100.1 1  2",
        "TCP4  192.0.2.7 198.51.100.1 1 2",
        "TCP4 192.0.2.7 198.51.100.1 1",
        "TCP4 192.0.2.7 198.51.100.1",
        "TCP4",
        "TCP6 ",
        "TCP4 192.0.2.7\t198.51.100.1 1 2",
    ] {
        assert_eq!(
            error(format!("PROXY {fields}\r\n")),
            ProxyHeaderError::Fields,
            "{fields}"
        );
    }
    for line in [
        " TCP4 1.1.1.1 2.2.2.2 1 2",
        "",
        " UNKNOWN",
        "TCP4\t",
        "UNKNOWNS",
        "UNKNOWN\t",
    ] {
        assert_eq!(
            error(format!("PROXY {line}\r\n")),
            ProxyHeaderError::Protocol,
            "{line:?}"
        );
    }
    for start in [" PROXY UNKNOWN\r\n", "PROXY\tUNKNOWN\r\n", "PROXY\r\n"] {
        assert_eq!(error(start), ProxyHeaderError::NotAHeader, "{start:?}");
    }
}

#[test]
fn the_case_of_letters_is_exact() {
    for line in [
        "PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n",
        "PROXY Unknown\r\n",
        "PROXY UDP4 1 2 3 4\r\n",
    ] {
        assert_eq!(error(line), ProxyHeaderError::Protocol, "{line:?}");
    }
    assert_eq!(
        error("proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n"),
        ProxyHeaderError::NotAHeader
    );
    let line = "PROXY TCP6 2001:DB8::A 2001:db8::b 1 2\r\n";
    assert_eq!(client(line), named("[2001:db8::a]:1", "[2001:db8::b]:2"));
}

#[test]
fn whatever_follows_unknown_is_ignored() {
    for rest in [
        "",
        " ",
        " ffff::1 ffff::2 65535 65535",
        " 1  2 3 4 5 6 7",
        " \u{e9}",
    ] {
        let line = format!("PROXY UNKNOWN{rest}\r\n");
        assert_eq!(
            complete(&line),
            (line.len(), ProxyClient::Unknown),
            "{line:?}"
        );
    }
    assert_eq!(client(b"PROXY UNKNOWN \xff\0\r\n"), ProxyClient::Unknown);
}

// === Version 2 ===

#[test]
fn addresses_of_both_families_are_read() {
    let header = v2_with_tlvs(&[]);
    let ipv4 = named("192.0.2.7:56324", "198.51.100.1:443");
    assert_eq!(complete([&header[..], b"GET /"].concat()), (28, ipv4));

    let addresses = ["2001:db8::7", "2001:db8::1"];
    let addresses = addresses.map(|address| address.parse::<Ipv6Addr>().unwrap().octets());
    let block = [addresses.concat(), vec![220, 4, 1, 187]].concat();
    let ipv6 = named("[2001:db8::7]:56324", "[2001:db8::1]:443");
    assert_eq!(complete(v2(0x21, 0x21, &block)), (52, ipv6));
}

#[test]
fn a_length_below_that_of_the_family_is_refused() {
    for (family, length) in [
        (0x11, 12),
        (0x12, 12),
        (0x10, 12),
        (0x21, 36),
        (0x22, 36),
        (0x31, 216),
    ] {
        let block = vec![1; length];
        assert_eq!(complete(v2(0x21, family, &block)).0, 16 + length);
        let header = v2(0x21, family, &block[1..]);
        assert_eq!(error(&header), ProxyHeaderError::AddressLength(length - 1));
        // As soon as the length is known.
        assert_eq!(
            error(&header[..16]),
            ProxyHeaderError::AddressLength(length - 1)
        );
    }
}

#[test]
fn tlvs_are_skipped() {
    let tlvs = [
        tlv(0x02, b"example.org"),
        tlv(0x04, &[]),
        tlv(0xea, &[1; 300]),
    ]
    .concat();
    let client = named("192.0.2.7:56324", "198.51.100.1:443");
    assert_eq!(complete(v2_with_tlvs(&tlvs)), (28 + tlvs.len(), client));
}

#[test]
fn a_tlv_that_continues_after_the_end_is_refused() {
    for tlvs in [
        &[4][..],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 0, 4],
        &[4, 0, 2, 9],
        &[4, 255, 255, 9],
    ] {
        let header = v2_with_tlvs(tlvs);
        assert_eq!(error(&header), ProxyHeaderError::Tlv, "{tlvs:?}");
        // The data of the connection are not its continuation.
        assert_eq!(
            error([&header[..], &[0; 9]].concat()),
            ProxyHeaderError::Tlv
        );
        assert_eq!(error(v2(0x20, 0, tlvs)), ProxyHeaderError::Tlv);
        assert_eq!(error(v2(0x21, 0, tlvs)), ProxyHeaderError::Tlv);
    }
}

#[test]
fn a_checksum_is_checked_wherever_it_stands() {
    let header = with_checksum(v2_with_tlvs(&tlv(3, &[0; 4])));
    assert_eq!(complete(&header).0, 35);
    for bit in 0..header.len() * 8 {
        let mut flipped = header.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // The one flip that stays valid makes another type of the TLV, so there is no checksum.
        let is_type = bit / 8 == 28;
        let is_complete = matches!(verdict(&flipped), Ok(ProxyParse::Complete(_)));
        assert_eq!(is_complete, is_type, "bit {bit}");
    }

    let mut first = v2_with_tlvs(&[tlv(3, &[0; 4]), tlv(2, b"example.org")].concat());
    let checksum = !crc32c(!0, &first);
    first[31..35].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(complete(&first).0, first.len());
    *first.last_mut().unwrap() ^= 1;
    assert_eq!(error(&first), ProxyHeaderError::Checksum);
}

#[test]
fn a_wrong_checksum_is_refused() {
    assert_eq!(
        error(v2_with_tlvs(&tlv(3, &[0; 4]))),
        ProxyHeaderError::Checksum
    );
    assert_eq!(
        error(v2(0x20, 0, &tlv(3, &[0; 4]))),
        ProxyHeaderError::Checksum
    );
    let header = v2(0x20, 0x11, &[&IPV4_BLOCK[..], &tlv(3, &[0; 4])].concat());
    assert_eq!(error(&header), ProxyHeaderError::Checksum);
    assert_eq!(client(with_checksum(header)), ProxyClient::Local);
}

#[test]
fn a_checksum_of_3_bytes_and_a_second_one_are_refused() {
    for length in [0, 3, 5] {
        let tlvs = tlv(3, &vec![0; length]);
        assert_eq!(error(v2_with_tlvs(&tlvs)), ProxyHeaderError::ChecksumField);
        assert_eq!(error(v2(0x20, 0, &tlvs)), ProxyHeaderError::ChecksumField);
    }
    let twice = [tlv(3, &[0; 4]), tlv(3, &[0; 4])].concat();
    assert_eq!(
        error(with_checksum(v2_with_tlvs(&twice))),
        ProxyHeaderError::ChecksumField
    );
}

#[test]
fn a_header_of_65535_bytes_of_tlvs_is_refused_with_its_16th_byte() {
    let tlvs = tlv(4, &vec![0; 65_535 - 12 - 3]);
    let header = v2_with_tlvs(&tlvs);
    assert_eq!(header.len(), 16 + 65_535);
    assert_eq!(missing(&header[..15]), 1);
    assert_eq!(
        ProxyHeader::parse(&header[..16]),
        Err(ProxyHeaderError::Length(65_551))
    );
    assert_eq!(
        ProxyHeader::parse(&header),
        Err(ProxyHeaderError::Length(65_551))
    );
    assert_eq!(
        error(v2(0x20, 0, &vec![0; 4081])),
        ProxyHeaderError::Length(4097)
    );
}

#[test]
fn a_header_of_4096_bytes_is_accepted() {
    let header = v2_with_tlvs(&tlv(0x28, &vec![0xff; 4096 - 28 - 3]));
    assert_eq!(complete(&header).0, ProxyHeader::MAX_BYTES);
    assert_eq!(missing(&header[..16]), 4080);
}

#[test]
fn version_3_is_refused() {
    for byte in [0x31, 0x30, 0x11, 0x01, 0xf1] {
        assert_eq!(
            error(v2(byte, 0x11, &IPV4_BLOCK)),
            ProxyHeaderError::Version(byte)
        );
        assert_eq!(
            error(&v2(byte, 0x11, &[])[..13]),
            ProxyHeaderError::Version(byte)
        );
    }
}

#[test]
fn command_2_is_refused() {
    for byte in [0x22, 0x2f] {
        assert_eq!(
            error(v2(byte, 0x11, &IPV4_BLOCK)),
            ProxyHeaderError::Command(byte)
        );
        assert_eq!(
            error(&v2(byte, 0x11, &[])[..13]),
            ProxyHeaderError::Command(byte)
        );
    }
}

#[test]
fn a_family_or_transport_that_is_not_assigned_is_refused() {
    for family in [0x13, 0x1f, 0x41, 0xf1, 0x03, 0xff] {
        assert_eq!(
            error(v2(0x21, family, &[1; 216])),
            ProxyHeaderError::Family(family)
        );
        assert_eq!(
            error(&v2(0x21, family, &[])[..14]),
            ProxyHeaderError::Family(family)
        );
    }
}

/// Section 2.2: a receiver "automatically falls back to the UNSPEC mode" for what it does not
/// support, so it must not refuse.
#[test]
fn datagrams_unix_sockets_and_unspec_name_no_client() {
    for family in [0x00, 0x01, 0x02, 0x10, 0x12, 0x20, 0x22, 0x30, 0x31, 0x32] {
        let length = [0, 12, 36, 216][usize::from(family >> 4)];
        let header = v2(
            0x21,
            family,
            &[&vec![1; length], &tlv(3, &[0; 4])[..]].concat(),
        );
        assert_eq!(error(&header), ProxyHeaderError::Checksum);
        assert_eq!(
            client(with_checksum(header)),
            ProxyClient::Unknown,
            "{family:#x}"
        );
    }
}

#[test]
fn the_second_of_two_headers_is_data_of_the_connection() {
    let (first, second) = (v2_with_tlvs(&[]), v2(0x20, 0, &[]));
    let client = named("192.0.2.7:56324", "198.51.100.1:443");
    assert_eq!(
        complete([&first[..], &second].concat()),
        (first.len(), client)
    );
    assert_eq!(
        complete([&second[..], &first].concat()),
        (16, ProxyClient::Local)
    );
    let line = "PROXY UNKNOWN\r\n";
    assert_eq!(complete(line.repeat(2)), (line.len(), ProxyClient::Unknown));
}

#[test]
fn a_local_header_is_accepted_with_any_family_and_block() {
    // As HAProxy's health check sends it.
    let check = with_checksum(v2(0x20, 0, &tlv(3, &[0; 4])));
    assert_eq!(complete(check), (23, ProxyClient::Local));
    // Where the TLVs of an unknown family begin is not known, so they have no checksum.
    assert_eq!(client(v2(0x20, 0x44, &tlv(3, &[0; 4]))), ProxyClient::Local);
    for family in [0x01, 0x11, 0x12, 0x21, 0x31, 0x44, 0xff] {
        for block in [&[][..], &[4], &IPV4_BLOCK, &[0xff; 40], &[0xff; 300]] {
            let header = v2(0x20, family, block);
            assert_eq!(complete(&header), (header.len(), ProxyClient::Local));
        }
    }
}

#[test]
fn an_unspecified_source_names_no_client() {
    for line in [
        "PROXY TCP4 0.0.0.0 198.51.100.1 56324 443\r\n",
        "PROXY TCP6 :: 2001:db8::1 56324 443\r\n",
        "PROXY TCP6 ::ffff:0.0.0.0 2001:db8::1 56324 443\r\n",
    ] {
        assert_eq!(client(line), ProxyClient::Unknown, "{line:?}");
    }
    assert_eq!(client(v2(0x21, 0x11, &[0; 12])), ProxyClient::Unknown);
    assert_eq!(client(v2(0x21, 0x21, &[0; 36])), ProxyClient::Unknown);
    // Without a destination, the client is still known.
    let line = "PROXY TCP4 192.0.2.7 0.0.0.0 56324 0\r\n";
    assert_eq!(client(line), named("192.0.2.7:56324", "0.0.0.0:0"));
}

// === Both ===

#[test]
fn other_protocols_are_refused_with_the_first_byte_that_differs() {
    let tls = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0",
        &tls,
        b"\r\nGET /",
        b"PROXX",
    ] {
        assert_eq!(error(bytes), ProxyHeaderError::NotAHeader);
    }
    assert_eq!(error("G"), ProxyHeaderError::NotAHeader);
    assert_eq!(missing("PR"), 13);
    assert_eq!(missing("\r"), 15);
    assert_eq!(missing(""), 15);
}

#[test]
fn the_checksum_agrees_with_known_values() {
    // RFC 3720, B.4.
    assert_eq!(!crc32c(!0, &[0; 32]), 0x8a91_36aa);
    assert_eq!(!crc32c(!0, &[0xff; 32]), 0x62a8_ab43);
    assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    assert_eq!(!crc32c(!0, b""), 0);
}

#[test]
fn errors_describe_what_is_wrong() {
    let text = error(v2(0x31, 0x11, &IPV4_BLOCK)).to_string();
    assert_eq!(text, "the version is not 2: 0x31");
    assert_eq!(
        ProxyHeaderError::Length(4097).to_string(),
        "the PROXY header is too long: 4097 bytes"
    );
}

// === Vectors of others ===

/// The examples and lengths of sections 2.1 and 2.2.
#[test]
fn the_examples_of_the_specification_are_parsed() {
    let line = "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n";
    let request = "GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n";
    let client = named("192.168.0.1:56324", "192.168.0.11:443");
    assert_eq!(complete(format!("{line}{request}")), (line.len(), client));

    let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    for (line, length) in [
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_owned(),
            56,
        ),
        (
            format!("PROXY TCP6 {address} {address} 65535 65535\r\n"),
            104,
        ),
        ("PROXY UNKNOWN\r\n".to_owned(), 15),
        (
            format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n"),
            107,
        ),
    ] {
        assert_eq!(complete(line).0, length);
    }
}

/// `proxy_protocol_tlv_validation.vtc` of the reference implementation.
#[test]
fn tlvs_are_bounded_as_in_the_tests_of_haproxy() {
    let block = [127, 0, 0, 1, 127, 0, 0, 1, 0, 42, 5, 57];
    let header = |authority: &[u8]| [&v2(0x21, 0x11, &[0; 20])[..16], &block, authority].concat();
    let client = named("127.0.0.1:42", "127.0.0.1:1337");
    let authority = tlv(2, b"12345");
    assert_eq!(complete(header(&authority)), (36, client));
    let second = tlv(2, b"54321");
    assert_eq!(
        complete(header(&[authority, second].concat())),
        (36, client)
    );
    assert_eq!(error(header(&tlv(2, b"1234512345"))), ProxyHeaderError::Tlv);
    assert_eq!(
        error([header(&tlv(2, b"1234")), b"GET / ".to_vec()].concat()),
        ProxyHeaderError::Tlv
    );
}

/// `proxy_protocol_test.cc` of Envoy, version 1. Where palisade differs, the line says so.
#[test]
fn lines_are_judged_as_in_the_tests_of_envoy() {
    let of = |fields: &str| verdict(format!("PROXY {fields}\r\nmore data").as_bytes());
    let client = |verdict| match verdict {
        Ok(ProxyParse::Complete(header)) => header.client(),
        other => panic!("{other:?}"),
    };
    for (fields, source, destination) in [
        (
            "TCP4 1.2.3.4 253.253.253.253 65535 1234",
            "1.2.3.4:65535",
            "253.253.253.253:1234",
        ),
        (
            "TCP4 1.2.3.4 254.254.254.254 65535 1234",
            "1.2.3.4:65535",
            "254.254.254.254:1234",
        ),
        (
            "TCP4 254.254.254.254 1.2.3.4 65535 1234",
            "254.254.254.254:65535",
            "1.2.3.4:1234",
        ),
        (
            "TCP6 1:2:3::4 5:6::7:8 65535 1234",
            "[1:2:3::4]:65535",
            "[5:6::7:8]:1234",
        ),
        // Envoy refuses a multicast source and an unspecified destination.
        (
            "TCP4 230.0.0.1 10.1.1.3 1234 5678",
            "230.0.0.1:1234",
            "10.1.1.3:5678",
        ),
        (
            "TCP4 10.1.1.2 0.0.0.0 1234 5678",
            "10.1.1.2:1234",
            "0.0.0.0:5678",
        ),
    ] {
        assert_eq!(client(of(fields)), named(source, destination), "{fields}");
    }
    assert_eq!(client(of("UNKNOWN")), ProxyClient::Unknown);
    for (fields, want) in [
        ("TCP6 1:2:3::4 5:6::7:8 1234", ProxyHeaderError::Fields),
        (
            "UDP6 1:2:3::4 5:6::7:8 1234 5678",
            ProxyHeaderError::Protocol,
        ),
        ("TCP6 1:2:3::4 5:6::7:8 1234 abc", ProxyHeaderError::Port),
        ("TCP6 1:2:3::4 5:6::7:8 -1 1234", ProxyHeaderError::Port),
        ("TCP6 1:2:3::4 5:6::7:8 66776 1234", ProxyHeaderError::Port),
        (
            "TCP6 1::2:3::4 5:6::7:8 1234 5678",
            ProxyHeaderError::Address,
        ),
        (
            "TCP4 [1:2:3::4] 1.2.3.4 1234 5678",
            ProxyHeaderError::Address,
        ),
        (
            "TCP4 1.2.3.4 [1:2:3: 1234 4]:5678",
            ProxyHeaderError::Address,
        ),
    ] {
        assert_eq!(of(fields), Err(want), "{fields}");
    }
    assert_eq!(error("BOGUS\r\n"), ProxyHeaderError::NotAHeader);
    assert_eq!(error("0123456789".repeat(12)), ProxyHeaderError::NotAHeader);
    let start = "PROXY TCP4 1.2.3.4 2.3.4.5 100 100";
    assert_eq!(error(format!("{start:256}")), ProxyHeaderError::LineLength);
    missing("PROXY TCP4 1.2.3.4 5.6.7.8 1234 5678");
    missing("PROXY TCP4 1.2.3");
}

/// `proxy_protocol_test.cc` of Envoy, version 2. Where palisade differs, the line says so.
#[test]
fn binary_headers_are_judged_as_in_the_tests_of_envoy() {
    let ipv4 = [1, 2, 3, 4, 0, 1, 1, 2, 3, 5, 0, 2];
    let mut ipv6 = [0; 36];
    ipv6[..8].copy_from_slice(&[0, 1, 0, 2, 0, 3, 0, 0]);
    ipv6[15..20].copy_from_slice(&[4, 0, 1, 1, 0]);
    ipv6[31..].copy_from_slice(&[0, 0, 8, 0, 2]);
    let with_length = |command, family, length: u8, block: &[u8]| {
        [
            SIGNATURE,
            &[command, family, 0, length],
            block,
            b"more data",
        ]
        .concat()
    };
    let client = named("1.2.3.4:773", "0.1.1.2:2");
    assert_eq!(complete(with_length(0x21, 0x11, 12, &ipv4)), (28, client));
    // Envoy reads the addresses of DGRAM.
    assert_eq!(
        complete(with_length(0x21, 0x22, 36, &ipv6)),
        (52, ProxyClient::Unknown)
    );
    assert!(matches!(
        complete(with_length(0x21, 0x21, 36, &ipv6)).1,
        ProxyClient::Named { .. }
    ));
    let value = [0, 0, 1, 0xff];
    assert_eq!(
        complete(with_length(0x20, 0, 0, &[])),
        (16, ProxyClient::Local)
    );
    assert_eq!(
        complete(with_length(0x20, 0, 4, &value)),
        (20, ProxyClient::Local)
    );
    let of_nlb = [0, 0, 4, 10, 11, 12, 13];
    assert_eq!(
        complete(with_length(0x20, 0, 7, &of_nlb)),
        (23, ProxyClient::Local)
    );
    let two_tlvs = [&ipv4[..], &value, &value].concat();
    assert_eq!(
        complete(with_length(0x21, 0x11, 20, &two_tlvs)),
        (36, client)
    );
    let several = [
        &ipv4[..],
        &value,
        &tlv(2, b"foo.com"),
        &tlv(0x0f, &[0xf0, 0, 0x0f]),
        &tlv(0xea, b"\x01vpc-025test2fa6c63ha7"),
    ];
    assert_eq!(
        complete(with_length(0x21, 0x11, 57, &several.concat())),
        (73, client)
    );

    for (header, want) in [
        (
            with_length(0x21, 0x41, 12, &ipv4),
            ProxyHeaderError::Family(0x41),
        ),
        (
            with_length(0x23, 0x1f, 12, &ipv4),
            ProxyHeaderError::Command(0x23),
        ),
        (
            with_length(0x29, 0x32, 20, &[0; 20]),
            ProxyHeaderError::Command(0x29),
        ),
        (
            with_length(0x21, 0x21, 4, &[0, 8, 0, 2]),
            ProxyHeaderError::AddressLength(4),
        ),
        (
            with_length(0x21, 0x11, 11, &ipv4),
            ProxyHeaderError::AddressLength(11),
        ),
        (
            with_length(0x21, 0x22, 20, &ipv6),
            ProxyHeaderError::AddressLength(20),
        ),
        (
            with_length(0x21, 0x22, 35, &ipv6),
            ProxyHeaderError::AddressLength(35),
        ),
        // Envoy refuses AF_UNIX of any length.
        (
            with_length(0x21, 0x32, 20, &[0; 20]),
            ProxyHeaderError::AddressLength(20),
        ),
        (
            with_length(0x21, 0x93, 20, &[0; 20]),
            ProxyHeaderError::Family(0x93),
        ),
        (
            with_length(0x21, 0x11, 16, &[&ipv4[..], &[0, 0, 2, 0xff]].concat()),
            ProxyHeaderError::Tlv,
        ),
        (
            with_length(
                0x21,
                0x11,
                17,
                &[&ipv4[..], &value, &[1, 0, 1, 0xff]].concat(),
            ),
            ProxyHeaderError::Tlv,
        ),
    ] {
        assert_eq!(error(&header), want, "{header:?}");
    }
    // Envoy reads 65,535 bytes of TLVs.
    let header = [
        SIGNATURE,
        &[0x21, 0x11, 0xff, 0xff],
        &ipv4,
        &[2, 0xff, 0xf0],
    ]
    .concat();
    assert_eq!(error(header), ProxyHeaderError::Length(65_551));
}
