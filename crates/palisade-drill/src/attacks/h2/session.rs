//! What every HTTP/2 attacker does: the preface, and the answers without which it would be closed.

use super::frames::{
    self, ACK, DATA, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, Reader, Received, SETTINGS,
};
use crate::machine::Actions;
use bytes::Bytes;

/// The client side of a connection: its next stream, and a reader of frames.
#[derive(Debug, Default)]
pub(super) struct Session {
    reader: Reader,
    streams: u32,
    /// The streams that the server has ended.
    ended: u32,
}

impl Session {
    /// Begins a connection with these SETTINGS, after an earlier one perhaps.
    pub(super) fn open(&mut self, values: &[(u16, u32)], out: &mut Actions) {
        *self = Self::default();
        out.send(Bytes::from_static(PREFACE));
        out.send(frames::settings(values));
    }

    /// Returns the number of the next stream. Numbers that are used up begin again, which the
    /// server answers with the end of the connection.
    pub(super) fn next_stream(&mut self) -> u32 {
        let stream = (2 * self.streams + 1) & 0x7fff_ffff;
        self.streams = self.streams.wrapping_add(1) & 0x3fff_ffff;
        stream
    }

    /// Returns the number of streams that are open, as far as the server has said.
    pub(super) fn open_streams(&self) -> u32 {
        self.streams.saturating_sub(self.ended)
    }

    /// Acknowledges SETTINGS and PING, as a client must that wants to stay.
    pub(super) fn answer(&mut self, bytes: &[u8], out: &mut Actions) {
        self.read(bytes, out, |_| ());
    }

    /// Acknowledges SETTINGS and PING, and calls `on` with each frame.
    pub(super) fn read(&mut self, bytes: &[u8], out: &mut Actions, mut on: impl FnMut(Received)) {
        let ended = &mut self.ended;
        self.reader.read(bytes, |frame| {
            let is_end = frame.kind == RST_STREAM
                || matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            *ended += u32::from(is_end);
            on(frame);
            if frame.flags & ACK == 0 {
                match frame.kind {
                    SETTINGS => out.send(frames::frame(SETTINGS, ACK, 0, &[])),
                    PING => out.send(frames::frame(PING, ACK, 0, &frame.start)),
                    _ => {}
                }
            }
        });
    }
}
