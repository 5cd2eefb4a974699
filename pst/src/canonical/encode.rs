//! The fingerprint: BLAKE3 over an unambiguous binary encoding of a [`Record`].
//!
//! Every variable-length part is preceded by its length and every choice by a tag byte, so no two
//! records share an encoding. The encoding has a version in its prefix; changing it changes every
//! fingerprint, and stored ones are then known to be old.

use super::record::{CanonKey, CanonProp, CanonValue, Record, RecordAttachment};
use crate::derived::{ObjectKind, is_folder_count};

/// Version of the encoding under the fingerprint.
pub const FINGERPRINT_VERSION: u8 = 1;

impl Record {
    /// The layout-independent fingerprint of the object. A folder's counts are left out: adding a
    /// message must not change the folder object.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd object\0");
        h.update(&[FINGERPRINT_VERSION]);
        record(&mut h, self);
        *h.finalize().as_bytes()
    }
}

impl RecordAttachment {
    /// Fingerprint of one attachment, for finding it unchanged in another version of its message.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"pstsyncd attachment\0");
        h.update(&[FINGERPRINT_VERSION]);
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
    h.update(&(r.recipients.len() as u64).to_le_bytes());
    for recipient in &r.recipients {
        props(h, recipient, false);
    }
    h.update(&(r.attachments.len() as u64).to_le_bytes());
    for a in &r.attachments {
        attachment(h, a);
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
}
