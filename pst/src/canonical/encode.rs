//! The fingerprint: BLAKE3 over an unambiguous binary encoding of a [`Record`].
//!
//! Every variable-length part is preceded by its length and every choice by a tag byte, so no two
//! records share an encoding. The encoding has a version in its prefix; changing it changes every
//! fingerprint, and stored ones are then known to be old.

use super::record::{CanonKey, CanonProp, CanonValue, Record, RecordAttachment};
use crate::derived::{ObjectKind, is_folder_count};

/// Version of the encoding under the fingerprint. Version 2 differs from 1 only for messages that have
/// cells of their own ([`Record::cells`]), which 1 did not see.
pub const FINGERPRINT_VERSION: u8 = 2;
/// The version that stands in the encoding of an object without cells.
const PLAIN_VERSION: u8 = 1;

impl Record {
    /// The layout-independent fingerprint of the object. A folder's counts are left out: adding a
    /// message must not change the folder object.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        if self.cells.is_empty() {
            return self.fingerprint_v1();
        }
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd object\0");
        h.update(&[FINGERPRINT_VERSION]);
        props(&mut h, &self.cells, false);
        record(&mut h, self);
        *h.finalize().as_bytes()
    }

    /// The fingerprint as version 1 had it: without the cells of a message's row.
    #[must_use]
    pub fn fingerprint_v1(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd object\0");
        h.update(&[PLAIN_VERSION]);
        record(&mut h, self);
        *h.finalize().as_bytes()
    }

    /// A short hash of the cells; 0 where there are none.
    #[must_use]
    pub fn cells_hash(&self) -> u64 {
        cells_hash(&self.cells)
    }
}

/// [`Record::cells_hash`] of cells that stand alone.
pub(crate) fn cells_hash(cells: &[CanonProp]) -> u64 {
    if cells.is_empty() {
        return 0;
    }
    let mut h = blake3::Hasher::new();
    h.update(b"pstsyncd cells\0");
    props(&mut h, cells, false);
    let mut out = [0; 8];
    h.finalize_xof().fill(&mut out);
    u64::from_le_bytes(out).max(1)
}

impl RecordAttachment {
    /// Fingerprint of one attachment, for finding it unchanged in another version of its message.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd attachment\0");
        h.update(&[PLAIN_VERSION]);
        attachment(&mut h, self);
        *h.finalize().as_bytes()
    }
}

fn record(h: &mut blake3::Hasher, r: &Record) {
    h.update(&[r.kind as u8]);
    match &r.raw {
        Some((hash, len)) => {
            h.update(&[1]);
            h.update(hash);
            h.update(&len.to_le_bytes());
        }
        None => {
            h.update(&[0]);
        }
    }
    props(h, &r.props, r.kind == ObjectKind::Folder);
    hash_recipients(h, r);
    h.update(&(r.attachments.len() as u64).to_le_bytes());
    for a in &r.attachments {
        attachment(h, a);
    }
}

/// The part of a record's encoding that is its recipients.
pub(super) fn hash_recipients(h: &mut blake3::Hasher, r: &Record) {
    h.update(&(r.recipients.len() as u64).to_le_bytes());
    for recipient in &r.recipients {
        props(h, recipient, false);
    }
}

fn attachment(h: &mut blake3::Hasher, a: &RecordAttachment) {
    props(h, &a.props, false);
    match &a.message {
        Some(m) => {
            h.update(&[1]);
            record(h, m);
        }
        None => {
            h.update(&[0]);
        }
    }
}

fn props(h: &mut blake3::Hasher, props: &[CanonProp], folder: bool) {
    let counted =
        |p: &&CanonProp| !(folder && matches!(p.key, CanonKey::Id(id) if is_folder_count(id)));
    h.update(&(props.iter().filter(counted).count() as u64).to_le_bytes());
    for p in props.iter().filter(counted) {
        hash_prop(h, p);
    }
}

/// The part of a record's encoding that is one property.
pub(super) fn hash_prop(h: &mut blake3::Hasher, p: &CanonProp) {
    match &p.key {
        CanonKey::Id(id) => {
            h.update(&[0]);
            h.update(&id.to_le_bytes());
        }
        CanonKey::Number(guid, n) => {
            h.update(&[1]);
            h.update(guid);
            h.update(&n.to_le_bytes());
        }
        CanonKey::Text(guid, s) => {
            h.update(&[2]);
            h.update(guid);
            h.update(&(s.len() as u64).to_le_bytes());
            h.update(s);
        }
        CanonKey::Unmapped(id) => {
            h.update(&[3]);
            h.update(&id.to_le_bytes());
        }
    }
    h.update(&p.prop_type.to_le_bytes());
    match &p.value {
        CanonValue::Short(bytes) => {
            h.update(&[0]);
            h.update(&(bytes.len() as u64).to_le_bytes());
            h.update(bytes);
        }
        CanonValue::Long { hash, len } => {
            h.update(&[1]);
            h.update(&len.to_le_bytes());
            h.update(hash);
        }
    }
}
