//! Writing parameter data into the caller's buffer, cut off at the ALLOCATION LENGTH.
//!
//! Invariant: a reply never depends on where it is cut. Length fields state the full length, what is written is a prefix
//! of the full data, and bytes of the buffer behind it are not touched.

/// What a read-only command wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes there would be with a large enough ALLOCATION LENGTH and buffer.
    pub full: usize,
    /// Bytes written at the beginning of the buffer: what is sent to the initiator.
    pub written: usize,
}

/// Puts parameter data together. Whatever does not fit any more is counted only.
#[derive(Debug)]
pub struct ReplyWriter<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl<'a> ReplyWriter<'a> {
    /// Writes to the beginning of `out`, at most `allocation_length` bytes. A buffer that is smaller than both the
    /// ALLOCATION LENGTH and the data cuts data off that the initiator could have got: callers see it by
    /// `Reply::full > out.len()`.
    pub fn new(out: &'a mut [u8], allocation_length: u32) -> ReplyWriter<'a> {
        let room = out.len().min(usize::try_from(allocation_length).unwrap_or(usize::MAX));
        let (out, _) = out.split_at_mut_checked(room).unwrap_or_default();
        ReplyWriter { out, len: 0 }
    }

    /// Bytes put so far, written or not.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.patch(self.len, bytes);
        self.len = self.len.saturating_add(bytes.len());
    }

    /// Appends one byte.
    pub fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Appends big-endian 16 bits.
    pub fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    /// Appends big-endian 32 bits.
    pub fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// Appends big-endian 64 bits.
    pub fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    /// Appends `count` zero bytes.
    pub fn put_zeroes(&mut self, count: usize) {
        for _ in 0..count {
            self.put(&[0]);
        }
    }

    /// Appends ASCII text, cut or filled with spaces to `width` bytes, as the standards left-align it.
    pub fn put_text(&mut self, text: &str, width: usize) {
        let mut bytes = text.bytes();
        for _ in 0..width {
            self.put_u8(bytes.next().unwrap_or(b' '));
        }
    }

    /// Overwrites bytes put earlier, beginning at offset `at`: for length fields that are known at the end.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.out.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    /// Sets the 16-bit length field at `at` to the number of bytes behind offset `from`.
    pub fn patch_len16(&mut self, at: usize, from: usize) {
        let len = u16::try_from(self.len.saturating_sub(from)).unwrap_or(u16::MAX);
        self.patch(at, &len.to_be_bytes());
    }

    /// Sets the 32-bit length field at `at` to the number of bytes behind offset `from`.
    pub fn patch_len32(&mut self, at: usize, from: usize) {
        let len = u32::try_from(self.len.saturating_sub(from)).unwrap_or(u32::MAX);
        self.patch(at, &len.to_be_bytes());
    }

    /// Ends the reply.
    pub fn finish(self) -> Reply {
        Reply { full: self.len, written: self.len.min(self.out.len()) }
    }
}

/// For tests: writes a reply at every ALLOCATION LENGTH from 0 to beyond its full length, checks that each is a prefix
/// of the full one and touches nothing behind it, and returns the full data.
#[cfg(test)]
pub(crate) fn full_reply(write: impl Fn(u32, &mut [u8]) -> Reply) -> std::vec::Vec<u8> {
    let mut full = std::vec![0x5a; 64 * 1024];
    let reply = write(u32::MAX, &mut full);
    assert!(reply.full <= full.len() && reply.written == reply.full);
    full.truncate(reply.full);
    for allocation_length in 0..=reply.full + 3 {
        let mut cut = std::vec![0xa5; reply.full + 8];
        let got = write(allocation_length as u32, &mut cut);
        assert_eq!(got, Reply { full: reply.full, written: reply.full.min(allocation_length) });
        assert_eq!(cut[..got.written], full[..got.written]);
        assert!(cut[got.written..].iter().all(|b| *b == 0xa5), "wrote behind the allocation length");
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_fields_state_the_full_length_wherever_it_is_cut() {
        let full = full_reply(|allocation_length, out| {
            let mut w = ReplyWriter::new(out, allocation_length);
            w.put_u16(0);
            w.put_u8(9);
            w.put_zeroes(300);
            w.put_text("AB", 4);
            w.patch_len16(0, 2);
            w.finish()
        });
        assert_eq!(&full[..3], [1, 49, 9]);
        assert_eq!(&full[303..], b"AB  ");
    }

    #[test]
    fn small_buffer_is_seen_by_the_full_length() {
        let mut out = [0; 3];
        let mut w = ReplyWriter::new(&mut out, 100);
        w.put_u32(0x0102_0304);
        assert_eq!(w.finish(), Reply { full: 4, written: 3 });
        assert_eq!(out, [1, 2, 3]);
    }
}
