//! The carrier in memory: a PST as what differs from one that the program holds anyway.

use std::io;
use std::sync::Arc;

use bincode::{Decode, Encode};
use storage::{MemStorage, Overlay, ReadAt, WriteAt};

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
        let ground = self.ground.bytes()?;
        let image = Overlay::new(MemStorage::from(ground.to_vec()))?;
        image.set_len(self.len)?;
        for extent in self.extents.iter() {
            image.write_all_at(extent.offset, &extent.bytes)?;
        }
        Ok(Arc::new(image))
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
