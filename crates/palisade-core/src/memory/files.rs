//! Files of the kernel, read again and again into one buffer.

use std::{fs::File, io};

/// The length of the buffer for a file. `memory.stat` takes some 1.5 KiB.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;

/// Reads `file` from its beginning into `buffer`. What does not fit is left out.
pub(super) fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    while length < buffer.len() {
        match read_at(file, &mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(&buffer[..length])
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns the number that is all of `text`.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// Returns the number in the line that begins with `name`.
pub(super) fn value_of(text: &[u8], name: &str) -> Option<u64> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_prefix(name.as_bytes()))
        .find(|rest| rest.first() == Some(&b' '))
        .and_then(number)
}

/// Returns the bytes in a line of `/proc` that counts kibibytes.
pub(super) fn kibibytes(text: &[u8], name: &str) -> Option<u64> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let rest = lines.find_map(|line| line.strip_prefix(name.as_bytes()))?;
    number(rest.trim_ascii().strip_suffix(b"kB")?)?.checked_mul(1024)
}
