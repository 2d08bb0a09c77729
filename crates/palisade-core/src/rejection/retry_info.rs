//! The details of a gRPC status, which say when the client may retry.

use super::base64;
use bytes::{BufMut, Bytes, BytesMut};

/// The name of the message in a `google.protobuf.Any`.
const RETRY_INFO: &[u8] = b"type.googleapis.com/google.rpc.RetryInfo";

/// The tag of a protobuf field with this number that is a varint.
const fn varint(field: u8) -> u8 {
    field << 3
}

/// The tag of a protobuf field with this number that has a length.
const fn delimited(field: u8) -> u8 {
    (field << 3) | 2
}

/// Returns the value of `grpc-status-details-bin`: a `google.rpc.Status` with one detail, a
/// `google.rpc.RetryInfo` of `millis`. In base64 without padding, as the gRPC protocol asks of
/// binary metadata.
pub(super) fn status_details(code: u8, message: &str, millis: u64) -> Bytes {
    let mut delay = BytesMut::new(); // google.protobuf.Duration
    put_varint(&mut delay, 1, millis / 1000);
    put_varint(&mut delay, 2, millis % 1000 * 1_000_000);
    let mut info = BytesMut::new();
    put_bytes(&mut info, 1, &delay);
    let mut detail = BytesMut::new();
    put_bytes(&mut detail, 1, RETRY_INFO);
    put_bytes(&mut detail, 2, &info);
    let mut status = BytesMut::new();
    put_varint(&mut status, 1, code.into());
    put_bytes(&mut status, 2, message.as_bytes());
    put_bytes(&mut status, 3, &detail);
    let mut text = base64(&status);
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    text.truncate(text.len().saturating_sub(padding));
    text
}

/// Writes a number. A 0 is left out, as protobuf's encoders do.
fn put_varint(message: &mut BytesMut, field: u8, number: u64) {
    if number > 0 {
        message.put_u8(varint(field));
        put_number(message, number);
    }
}

/// Writes text, or a message.
fn put_bytes(message: &mut BytesMut, field: u8, bytes: &[u8]) {
    message.put_u8(delimited(field));
    put_number(message, bytes.len() as u64);
    message.put(bytes);
}

/// Writes seven bits per byte, the lowest first. The top bit says that more follow.
fn put_number(message: &mut BytesMut, mut number: u64) {
    while number > 0x7f {
        message.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    message.put_u8(number as u8);
}
