//! The carrier in memory: a PST as what differs from one that the program holds anyway.

use std::io;
use std::sync::Arc;

use bincode::{Decode, Encode};
use storage::ReadAt;

use super::pattern;
use super::{MAX_CARRIER, PIECE};
use crate::error::{Result, SyncError};

/// Differences are kept in units of this many bytes.
const UNIT: usize = 512;

/// A run of bytes in which the carrier differs from its ground.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Extent {
    /// Byte offset in the carrier.
    pub offset: u64,
    /// The bytes there.
    pub bytes: Vec<u8>,
}

/// The PST that a carrier lies over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ground {
    /// The empty PST of format version 1.
    One,
    /// The skeleton of this version.
    #[default]
    Skeleton,
}

impl Ground {
    fn bytes(self) -> io::Result<Arc<[u8]>> {
        match self {
            Self::One => pattern::one(),
            Self::Skeleton => pattern::skeleton(),
        }
    }
}

/// A carrier. Cheap to clone; takes memory only for what differs from its ground and from zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carrier {
    ground: Ground,
    len: u64,
    extents: Arc<Vec<Extent>>,
}

impl Carrier {
    /// The carrier of a package of version 1.
    pub(super) fn over_one(len: u64, extents: Vec<Extent>) -> Result<Self> {
        if len > MAX_CARRIER {
            return Err(SyncError::package("carrier", format!("{len} bytes")));
        }
        let mut at = 0u64;
        for extent in &extents {
            let end = extent.offset.checked_add(extent.bytes.len() as u64);
            match end {
                Some(end) if extent.offset >= at && end > extent.offset && end <= len => at = end,
                _ => return Err(SyncError::package("carrier", "an extent lies outside")),
            }
        }
        Ok(Self {
            ground: Ground::One,
            len,
            extents: Arc::new(extents),
        })
    }

    /// The carrier that is this PST, read piece by piece.
    ///
    /// # Errors
    /// A read of `image` that fails; [`SyncError::Package`] beyond [`MAX_CARRIER`].
    pub fn of(image: &dyn ReadAt) -> Result<Self> {
        let failed = |e: io::Error| SyncError::package("carrier", e.to_string());
        let len = image.len().map_err(failed)?;
        if len > MAX_CARRIER {
            return Err(SyncError::package("carrier", format!("{len} bytes")));
        }
        let mut fold = Folder::new().map_err(failed)?;
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            let n = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
            let piece = piece.get_mut(..n).unwrap_or_default();
            image.read_exact_at(at, piece).map_err(failed)?;
            fold.push(piece);
            at += n as u64;
        }
        Ok(fold.finish())
    }

    /// Length of the PST, bytes; 0: nothing is carried.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is carried: the change list only moves and deletes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The PST, for any reader.
    ///
    /// # Errors
    /// [`SyncError::Package`] if it cannot be laid out.
    pub fn unfold(&self) -> Result<Arc<dyn ReadAt>> {
        self.image()
            .map_err(|e| SyncError::package("carrier", e.to_string()))
    }

    pub(super) fn image(&self) -> io::Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(Image {
            ground: self.ground.bytes()?,
            len: self.len,
            extents: Arc::clone(&self.extents),
        }))
    }
}

/// A carrier laid out, without a copy of what it holds.
struct Image {
    ground: Arc<[u8]>,
    len: u64,
    extents: Arc<Vec<Extent>>,
}

impl ReadAt for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buf.len().min(room);
        let buf = buf.get_mut(..len).unwrap_or_default();
        buf.fill(0);
        lay(buf, offset, 0, &self.ground);
        let after = |e: &Extent| e.offset + e.bytes.len() as u64 <= offset;
        let first = self.extents.partition_point(after);
        let end = offset.saturating_add(len as u64);
        for extent in self.extents.iter().skip(first) {
            if extent.offset >= end {
                break;
            }
            lay(buf, offset, extent.offset, &extent.bytes);
        }
        Ok(len)
    }
}

/// Copies what `bytes`, which begin at `from`, have for `buf`, which begins at `at`.
fn lay(buf: &mut [u8], at: u64, from: u64, bytes: &[u8]) {
    let skip = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let to = buf.get_mut(skip(from.saturating_sub(at))..);
    let of = bytes.get(skip(at.saturating_sub(from))..);
    if let (Some(to), Some(of)) = (to, of) {
        for (to, of) in to.iter_mut().zip(of) {
            *to = *of;
        }
    }
}

/// Keeps of an image, given piece by piece, what differs from the ground.
pub(super) struct Folder {
    ground: Arc<[u8]>,
    at: u64,
    extents: Vec<Extent>,
}

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ground: Ground::default().bytes()?,
            at: 0,
            extents: Vec::new(),
        })
    }

    /// Takes the next piece; its length is a multiple of [`UNIT`] unless it is the last.
    pub(super) fn push(&mut self, piece: &[u8]) {
        for unit in piece.chunks(UNIT) {
            let offset = self.at;
            self.at += unit.len() as u64;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let same = match self.ground.get(from..from.saturating_add(unit.len())) {
                Some(old) => old == unit,
                // Partly or wholly beyond the ground: zeros, where the ground has ended.
                None => from >= self.ground.len() && unit.iter().all(|b| *b == 0),
            };
            if same {
                continue;
            }
            match self.extents.last_mut() {
                Some(last) if last.offset + last.bytes.len() as u64 == offset => {
                    last.bytes.extend_from_slice(unit);
                }
                _ => self.extents.push(Extent {
                    offset,
                    bytes: unit.to_vec(),
                }),
            }
        }
    }

    pub(super) fn finish(self) -> Carrier {
        Carrier {
            ground: Ground::default(),
            len: self.at,
            extents: Arc::new(self.extents),
        }
    }
}

#[cfg(test)]
mod tests {
    use storage::MemStorage;

    use super::*;

    #[test]
    fn a_carrier_reads_as_it_was() {
        let mut bytes = pattern::skeleton().expect("unpacks").to_vec();
        let len = bytes.len();
        bytes.resize(len + 5000, 0);
        for at in [0, 511, 512, 600, 5000, len - 1, len, len + 1, len + 4999] {
            bytes[at] ^= 0x55;
        }
        for cut in [0, 1, 511, 513, 4096, len - 1, len, len + 513, len + 5000] {
            let bytes = &bytes[..cut];
            let carrier = Carrier::of(&MemStorage::from(bytes.to_vec())).expect("folds");
            let image = carrier.image().expect("an image");
            let mut all = vec![1; cut + 10];
            assert_eq!(image.read_at(0, &mut all).expect("reads"), cut);
            assert_eq!(&all[..cut], bytes);
            for at in (0..cut).step_by(977) {
                let mut some = vec![1; 1500.min(cut - at)];
                let n = image.read_at(at as u64, &mut some).expect("reads");
                assert_eq!(some[..n], bytes[at..at + n], "at {at} of {cut}");
            }
            assert_eq!(image.read_at(cut as u64, &mut [0]).expect("reads"), 0);
            assert_eq!(image.read_at(u64::MAX, &mut [0]).expect("reads"), 0);
        }
    }
}
