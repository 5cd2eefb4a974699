//! The bytes of a write: in memory, or a part of some storage that is read when they are wanted.
//!
//! A change of gigabytes is a list of payloads that takes no memory: it is copied in pieces from
//! where its bytes lie (a scratch file, a redo log, another file) to where they go. Whoever owns
//! that storage leaves the part unchanged for as long as a payload names it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::ReadAt;

/// The largest piece that is read at once from a storage, in bytes.
const PIECE: u64 = 1 << 20;

/// Immutable bytes, cheap to clone and to cut.
#[derive(Clone)]
pub struct Payload(Repr);

#[derive(Clone)]
enum Repr {
    /// `bytes[from..from + len]`.
    Memory {
        bytes: Arc<Vec<u8>>,
        from: usize,
        len: usize,
    },
    Stored {
        source: Arc<dyn ReadAt>,
        offset: u64,
        len: u64,
    },
}

impl Payload {
    /// `len` bytes of `source` from `offset` on.
    #[must_use]
    pub fn stored(source: Arc<dyn ReadAt>, offset: u64, len: u64) -> Self {
        Self(Repr::Stored {
            source,
            offset,
            len,
        })
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match &self.0 {
            Repr::Memory { len, .. } => *len as u64,
            Repr::Stored { len, .. } => *len,
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes where they are in memory.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Repr::Memory { bytes, from, len } => bytes.get(*from..from + len),
            Repr::Stored { .. } => None,
        }
    }

    /// A part of these bytes, without copying; the range is cut to what there is.
    #[must_use]
    pub fn slice(&self, range: Range<u64>) -> Self {
        let start = range.start.min(self.len());
        let end = range.end.clamp(start, self.len());
        Self(match &self.0 {
            // Both bounds are inside `len`, hence inside usize.
            Repr::Memory { bytes, from, .. } => Repr::Memory {
                bytes: Arc::clone(bytes),
                from: from + start as usize,
                len: (end - start) as usize,
            },
            Repr::Stored { source, offset, .. } => Repr::Stored {
                source: Arc::clone(source),
                offset: offset + start,
                len: end - start,
            },
        })
    }

    /// Fills `buf` with the bytes from `at` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] past the end, and the storage's own.
    pub fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &self.0 {
            Repr::Memory { bytes, from, .. } => {
                let from = from + at as usize;
                let part = bytes
                    .get(from..from + buf.len())
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buf.copy_from_slice(part);
                Ok(())
            }
            Repr::Stored { source, offset, .. } => {
                let at = offset.checked_add(at).ok_or(io::ErrorKind::InvalidInput)?;
                source.read_exact_at(at, buf)
            }
        }
    }

    /// Hands out all bytes in order, as (offset in the payload, piece): in one piece where they
    /// are in memory, else in pieces of at most 1 MiB.
    ///
    /// # Errors
    /// The storage's, and the first of `f`.
    pub fn pieces(&self, mut f: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        if let Some(bytes) = self.bytes() {
            return if bytes.is_empty() {
                Ok(())
            } else {
                f(0, bytes)
            };
        }
        let mut buf = vec![0; self.len().min(PIECE) as usize];
        let mut at = 0;
        while at < self.len() {
            let n = (self.len() - at).min(PIECE) as usize;
            let part = buf.get_mut(..n).ok_or(io::ErrorKind::InvalidData)?;
            self.read_exact_at(at, part)?;
            f(at, part)?;
            at += n as u64;
        }
        Ok(())
    }

    /// All bytes, in memory.
    ///
    /// # Errors
    /// The storage's.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.pieces(|_, part| {
            out.extend_from_slice(part);
            Ok(())
        })?;
        Ok(out)
    }

    /// If `next` follows these bytes in the same storage, takes it in.
    pub(crate) fn absorb(&mut self, next: &Self) -> bool {
        match (&mut self.0, &next.0) {
            (
                Repr::Stored {
                    source,
                    offset,
                    len,
                },
                Repr::Stored {
                    source: s,
                    offset: o,
                    len: n,
                },
            ) if Arc::ptr_eq(source, s) && *offset + *len == *o => {
                *len += n;
                true
            }
            _ => false,
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self(Repr::Memory {
            bytes: Arc::new(bytes),
            from: 0,
            len,
        })
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

/// Equal bytes, wherever they lie. Bytes that cannot be read equal nothing.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        if self.len() != other.len() {
            return false;
        }
        if let (Some(a), Some(b)) = (self.bytes(), other.bytes()) {
            return a == b;
        }
        let mut buf = Vec::new();
        self.pieces(|at, part| {
            buf.resize(part.len(), 0);
            other.read_exact_at(at, &mut buf)?;
            if buf == part {
                Ok(())
            } else {
                Err(io::ErrorKind::InvalidData.into())
            }
        })
        .is_ok()
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Memory { .. } => write!(f, "Payload({} bytes)", self.len()),
            Repr::Stored { offset, len, .. } => write!(f, "Payload({len} bytes at {offset})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStorage;

    #[test]
    fn both_kinds_read_cut_and_compare_alike() {
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let memory = Payload::from(data.clone());
        let mut shifted = vec![9; 7];
        shifted.extend_from_slice(&data);
        let source: Arc<dyn ReadAt> = Arc::new(MemStorage::from(shifted));
        let stored = Payload::stored(Arc::clone(&source), 7, data.len() as u64);
        assert_eq!(memory, stored);
        assert_eq!(stored, memory);
        assert!(stored.to_vec().unwrap() == data);
        for (a, b) in [(0, 1), (5, 2_999_999), (2_999_999, u64::MAX), (9, 3)] {
            let end = (b as usize).min(data.len()).max(a);
            for payload in [&memory, &stored] {
                let cut = payload.slice(a as u64..b).slice(0..u64::MAX);
                assert!(cut.to_vec().unwrap() == data[a..end]);
                assert!(cut.read_exact_at(cut.len(), &mut [0]).is_err());
            }
        }
        let mut other = data.clone();
        other[2_500_000] ^= 1;
        assert_ne!(Payload::from(other), stored);
        assert_ne!(stored.slice(0..10), memory.slice(0..9));
        // A source that ends early equals nothing, not even itself.
        let short = Payload::stored(source, 10, data.len() as u64);
        assert_ne!(short, short.clone());
        assert!(short.to_vec().is_err());
    }

    #[test]
    fn neighbours_in_one_storage_become_one() {
        let source: Arc<dyn ReadAt> = Arc::new(MemStorage::from(vec![1, 2, 3, 4, 5]));
        let part = |at, n| Payload::stored(Arc::clone(&source), at, n);
        let mut a = part(1, 2);
        assert!(!a.absorb(&part(4, 1)) && !a.absorb(&Payload::from(vec![4])));
        assert!(a.absorb(&part(3, 2)));
        assert_eq!(a.to_vec().unwrap(), [2, 3, 4, 5]);
        let elsewhere: Arc<dyn ReadAt> = Arc::new(MemStorage::from(vec![0; 9]));
        assert!(!a.absorb(&Payload::stored(elsewhere, 5, 1)));
    }
}
