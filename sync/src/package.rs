//! The package: a change list and its carrier as one sequence of bytes.
//!
//! ```text
//! offset  size  field
//! 0       4     magic "PSTC"
//! 4       1     format version (1)
//! 5       3     zero
//! 8       8     length of the record, bytes, little-endian
//! 16      n     record: bincode (legacy configuration) of `Record`
//! 16+n    32    BLAKE3 of everything before
//! ```
//!
//! The carrier is a whole PST that other readers open, but it travels as what differs from the
//! empty PST that both sides can make (`pst::create_empty`): a change of one subject must not ship
//! an empty file's 271 KB.

use std::sync::Arc;

use bincode::{Decode, Encode};
use storage::{MemStorage, Overlay, ReadAt, WriteAt};

use crate::change_list::Change;
use crate::error::{Result, SyncError};

const MAGIC: &[u8; 4] = b"PSTC";
const VERSION: u8 = 1;
const HEADER: usize = 16;
const DIGEST: usize = 32;

/// The most bytes of a package that are accepted: a message with its attachments must fit.
pub const MAX_PACKAGE: usize = 1 << 30;
/// The most bytes that a carrier may unfold to.
pub const MAX_CARRIER: u64 = 2 << 30;
/// The rules by which this version applies a change list (DESIGN R6).
pub const APPLY_VERSION: u8 = 1;
/// The empty PST on which carriers of this version travel.
pub const EMPTY_VERSION: u8 = 1;
/// The record key seed of that empty PST.
pub(crate) const CARRIER_SEED: [u8; 16] = *b"pstsyncd carrier";

/// A run of bytes in which the carrier differs from the empty PST.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Extent {
    /// Byte offset in the carrier.
    pub offset: u64,
    /// The bytes there.
    pub bytes: Vec<u8>,
}

/// The carrier as it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Carrier {
    /// Length of the unfolded PST, bytes. 0: nothing is carried.
    pub len: u64,
    /// What differs from the empty PST, ascending.
    pub extents: Vec<Extent>,
}

#[derive(Encode, Decode)]
struct Record {
    apply_version: u8,
    empty_version: u8,
    changes: Vec<Change>,
    carrier: Carrier,
}

/// A change list with its carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The rules to apply it by.
    pub apply_version: u8,
    /// The ordered work.
    pub changes: Vec<Change>,
    /// The objects that it adds or updates.
    pub carrier: Carrier,
}

impl Package {
    /// The package as bytes, in the format above.
    ///
    /// # Errors
    /// [`SyncError::Package`] if it is larger than [`MAX_PACKAGE`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let record = Record {
            apply_version: self.apply_version,
            empty_version: EMPTY_VERSION,
            changes: self.changes.clone(),
            carrier: self.carrier.clone(),
        };
        let body = bincode::encode_to_vec(&record, bincode::config::legacy())
            .map_err(|e| SyncError::package("record", e.to_string()))?;
        if body.len() > MAX_PACKAGE {
            return Err(SyncError::package(
                "length",
                format!("{} bytes; the limit is {MAX_PACKAGE}", body.len()),
            ));
        }
        let mut out = Vec::with_capacity(HEADER + body.len() + DIGEST);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&(body.len() as u64).to_le_bytes());
        out.extend_from_slice(&body);
        let digest = blake3::hash(&out);
        out.extend_from_slice(digest.as_bytes());
        Ok(out)
    }

    /// Reads a package from outside.
    ///
    /// # Errors
    /// [`SyncError::Package`] naming the field that is not acceptable.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (signed, digest) = bytes
            .split_last_chunk::<DIGEST>()
            .filter(|(signed, _)| signed.len() >= HEADER)
            .ok_or_else(|| SyncError::package("length", "too short"))?;
        if !signed.starts_with(MAGIC) {
            return Err(SyncError::package(
                "magic",
                "this is no pstsyncd change list",
            ));
        }
        if signed.get(4) != Some(&VERSION) {
            return Err(SyncError::package(
                "version",
                format!("{:?}; this version reads {VERSION}", signed.get(4)),
            ));
        }
        if blake3::hash(signed) != *digest {
            return Err(SyncError::package(
                "digest",
                "the bytes were damaged on the way",
            ));
        }
        let body = signed.get(HEADER..).unwrap_or_default();
        let len = signed
            .get(8..HEADER)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes);
        if len != Some(body.len() as u64) || body.len() > MAX_PACKAGE {
            return Err(SyncError::package(
                "length",
                format!("{len:?} for {} bytes", body.len()),
            ));
        }
        let config = bincode::config::legacy().with_limit::<MAX_PACKAGE>();
        let (record, used): (Record, usize) = bincode::decode_from_slice(body, config)
            .map_err(|e| SyncError::package("record", e.to_string()))?;
        if used != body.len() {
            return Err(SyncError::package("record", "trailing bytes"));
        }
        if record.empty_version != EMPTY_VERSION {
            return Err(SyncError::package(
                "empty_version",
                record.empty_version.to_string(),
            ));
        }
        record.carrier.check()?;
        Ok(Self {
            apply_version: record.apply_version,
            changes: record.changes,
            carrier: record.carrier,
        })
    }
}

impl Carrier {
    /// Folds a carrier: keeps only what differs from the empty PST.
    ///
    /// # Errors
    /// A read of `image` that fails.
    pub fn fold(image: &[u8], empty: &[u8]) -> Self {
        // Runs are compared in units of 64 bytes, the alignment of blocks; short equal gaps are
        // cheaper to send than a new extent.
        const UNIT: usize = 64;
        let mut extents: Vec<Extent> = Vec::new();
        for (i, unit) in image.chunks(UNIT).enumerate() {
            let offset = i * UNIT;
            let same = match empty.get(offset..offset + unit.len()) {
                Some(old) => old == unit,
                None => unit.iter().all(|b| *b == 0),
            };
            if same {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.offset as usize + last.bytes.len() == offset => {
                    last.bytes.extend_from_slice(unit);
                }
                _ => extents.push(Extent {
                    offset: offset as u64,
                    bytes: unit.to_vec(),
                }),
            }
        }
        Self {
            len: image.len() as u64,
            extents,
        }
    }

    /// Whether nothing is carried: the change list only moves and deletes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn check(&self) -> Result<()> {
        if self.len > MAX_CARRIER {
            return Err(SyncError::package("carrier", format!("{} bytes", self.len)));
        }
        let mut at = 0u64;
        for extent in &self.extents {
            let end = extent.offset.checked_add(extent.bytes.len() as u64);
            match end {
                Some(end) if extent.offset >= at && end > extent.offset && end <= self.len => {
                    at = end;
                }
                _ => return Err(SyncError::package("carrier", "an extent lies outside")),
            }
        }
        Ok(())
    }

    /// Unfolds the carrier to the PST that it is.
    ///
    /// # Errors
    /// [`SyncError::Package`] if it does not fit on the empty PST.
    pub fn unfold(&self) -> Result<Arc<dyn ReadAt>> {
        self.check()?;
        // Only what travelled takes memory, whatever length is claimed.
        let fail = |e: std::io::Error| SyncError::package("carrier", e.to_string());
        let image = Overlay::new(MemStorage::from(empty()?)).map_err(fail)?;
        let write = || -> std::io::Result<()> {
            image.set_len(self.len)?;
            for extent in &self.extents {
                image.write_all_at(extent.offset, &extent.bytes)?;
            }
            Ok(())
        };
        write().map_err(fail)?;
        Ok(Arc::new(image))
    }
}

/// The empty PST on which carriers travel.
pub(crate) fn empty() -> Result<Vec<u8>> {
    Ok(pst::create_empty(&CARRIER_SEED)?)
}
