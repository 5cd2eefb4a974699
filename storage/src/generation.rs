//! Naming exact bytes: one BLAKE3 digest per 64 KiB leaf, and one root over all of them.
//!
//! The leaf digests let a change be re-hashed at the cost of the change, and two files be compared
//! leaf by leaf. The root commits to the length and every leaf:
//!
//! ```text
//! leaf i = BLAKE3(bytes[i * 65536 .. min((i + 1) * 65536, len)])
//! root   = BLAKE3("pstsyncd generation 1\0" | len as u64 LE | leaf 0 | leaf 1 | ...)
//! ```

use std::fmt;
use std::io;

use crate::{RangeSet, ReadAt};

/// Size of a leaf in bytes; the last leaf of a file may be shorter.
pub const LEAF_SIZE: u64 = 64 * 1024;

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

const ROOT_DOMAIN: &[u8] = b"pstsyncd generation 1\0";

/// The name of exact bytes: length and root digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation {
    /// Length in bytes.
    pub len: u64,
    /// Root over the leaf digests (see the module head).
    pub root: Digest,
}

impl Generation {
    /// Reads all of `storage` and names it.
    ///
    /// # Errors
    /// As [`Leaves::hash`].
    pub fn of(storage: &dyn ReadAt) -> io::Result<Self> {
        Ok(Leaves::hash(storage)?.generation())
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The length, a dash and the first 16 hexadecimal digits of the root: for logs.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.len)?;
        self.root
            .iter()
            .take(8)
            .try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The leaf digests of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaves {
    len: u64,
    digests: Vec<Digest>,
}

impl Leaves {
    /// Reads all of `storage`, which must not change meanwhile.
    ///
    /// # Errors
    /// The first read error; [`io::ErrorKind::UnexpectedEof`] if it shrinks under the reader.
    pub fn hash(storage: &dyn ReadAt) -> io::Result<Self> {
        let mut leaves = Self {
            len: 0,
            digests: Vec::new(),
        };
        leaves.rehash(storage, &RangeSet::new())?;
        Ok(leaves)
    }

    /// Leaf digests from elsewhere; `None` if their number does not fit `len`.
    #[must_use]
    pub fn from_parts(len: u64, digests: Vec<Digest>) -> Option<Self> {
        (digests.len() as u64 == leaf_count(len)).then_some(Self { len, digests })
    }

    /// Brings the digests up to date with `storage`, reading only the leaves that `changed` or a
    /// different length touches. Bytes outside `changed` must be as they were.
    ///
    /// # Errors
    /// As [`Leaves::hash`]; the digests are then as before.
    pub fn rehash(&mut self, storage: &dyn ReadAt, changed: &RangeSet) -> io::Result<()> {
        let len = storage.len()?;
        let mut todo = changed.clone();
        // From the shorter length on, bytes appeared or went; the leaf that held the shorter end
        // has another length now even if none of its bytes was written.
        todo.insert(self.len.min(len)..self.len.max(len));
        let mut fresh = Vec::new();
        let mut buf = vec![0; LEAF_SIZE as usize];
        for run in todo
            .aligned(LEAF_SIZE)
            .within(0..len.next_multiple_of(LEAF_SIZE))
        {
            for leaf in run.start / LEAF_SIZE..run.end / LEAF_SIZE {
                let size = leaf_range(leaf, len);
                let part = buf
                    .get_mut(..(size.end - size.start) as usize)
                    .ok_or(io::ErrorKind::InvalidData)?;
                storage.read_exact_at(size.start, part)?;
                fresh.push((leaf as usize, *blake3::hash(part).as_bytes()));
            }
        }
        self.len = len;
        self.digests.resize(leaf_count(len) as usize, [0; 32]);
        for (leaf, digest) in fresh {
            if let Some(slot) = self.digests.get_mut(leaf) {
                *slot = digest;
            }
        }
        Ok(())
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of leaf `index`; `None` past the end.
    #[must_use]
    pub fn get(&self, index: u64) -> Option<&Digest> {
        self.digests.get(usize::try_from(index).ok()?)
    }

    /// All digests, in order.
    #[must_use]
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Length and root.
    #[must_use]
    pub fn generation(&self) -> Generation {
        let mut hasher = blake3::Hasher::new();
        hasher.update(ROOT_DOMAIN);
        hasher.update(&self.len.to_le_bytes());
        for digest in &self.digests {
            hasher.update(digest);
        }
        Generation {
            len: self.len,
            root: *hasher.finalize().as_bytes(),
        }
    }

    /// The byte ranges of this file's leaves that `other` does not hold in the same place.
    #[must_use]
    pub fn differing(&self, other: &Leaves) -> RangeSet {
        (0u64..)
            .zip(&self.digests)
            .filter(|(index, digest)| other.get(*index) != Some(*digest))
            .map(|(index, _)| leaf_range(index, self.len))
            .collect()
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaves({})", self.generation())
    }
}

/// How many leaves a file of `len` bytes has.
pub(crate) fn leaf_count(len: u64) -> u64 {
    len.div_ceil(LEAF_SIZE)
}

/// The bytes of leaf `index` in a file of `len` bytes; empty if the file ends before it.
pub(crate) fn leaf_range(index: u64, len: u64) -> std::ops::Range<u64> {
    let start = index.saturating_mul(LEAF_SIZE).min(len);
    start..start.saturating_add(LEAF_SIZE).min(len)
}
