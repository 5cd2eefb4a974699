//! Reading packages of format version 1, which earlier programs wrote and people may keep.
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
//! Updates carry whole objects, and the carrier lies over pattern 1 as a list of extents.

use bincode::{Decode, Encode};

use super::{Carrier, Extent, MAGIC, MAX_PACKAGE, Package};
use crate::change_list::{self, Change, Fingerprint, ObjectKind};
use crate::error::{Result, SyncError};

pub(super) const VERSION: u8 = 1;
/// The only apply version and the only empty PST of this format.
const APPLY_VERSION: u8 = 1;
const EMPTY_VERSION: u8 = 1;
const HEADER: usize = 16;
const DIGEST: usize = 32;

#[derive(Encode, Decode)]
struct Record {
    apply_version: u8,
    empty_version: u8,
    changes: Vec<Entry>,
    carrier_len: u64,
    extents: Vec<Extent>,
}

#[derive(Encode, Decode)]
struct Entry {
    kind: ObjectKind,
    nid: u32,
    action: Action,
}

#[derive(Encode, Decode)]
enum Action {
    Add {
        parent: u32,
        carrier: u32,
        after: Fingerprint,
    },
    Update {
        carrier: u32,
        before: Fingerprint,
        after: Fingerprint,
    },
    Move {
        from: u32,
        to: u32,
    },
    Delete {
        before: Fingerprint,
    },
}

impl From<Entry> for Change {
    fn from(entry: Entry) -> Self {
        let action = match entry.action {
            Action::Add {
                parent,
                carrier,
                after,
            } => change_list::Action::Add {
                parent,
                carrier,
                after,
            },
            Action::Update {
                carrier,
                before,
                after,
            } => change_list::Action::Update {
                carrier,
                before,
                after,
                patch: None,
            },
            Action::Move { from, to } => change_list::Action::Move { from, to },
            Action::Delete { before } => change_list::Action::Delete { before },
        };
        Self {
            kind: entry.kind,
            nid: entry.nid,
            action,
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Package> {
    let (signed, digest) = bytes
        .split_last_chunk::<DIGEST>()
        .filter(|(signed, _)| signed.len() >= HEADER)
        .ok_or_else(|| SyncError::package("length", "too short"))?;
    if !signed.starts_with(MAGIC) || signed.get(4) != Some(&VERSION) {
        return Err(SyncError::package("version", "not of version 1"));
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
        let detail = record.empty_version.to_string();
        return Err(SyncError::package("empty_version", detail));
    }
    if record.apply_version != APPLY_VERSION {
        let detail = record.apply_version.to_string();
        return Err(SyncError::package("apply_version", detail));
    }
    Ok(Package {
        apply_version: record.apply_version,
        changes: record.changes.into_iter().map(Change::from).collect(),
        carrier: Carrier::over_one(record.carrier_len, record.extents)?,
    })
}
