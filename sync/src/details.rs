//! Details of synced objects: kept so that a later update can say what changed ([`Detail`]).
//!
//! They are taken after a sync was verified, from the snapshot that was synced, and only for so many
//! bytes of objects at a time: the first sync of a large container must not read it twice. What is not
//! known yet is sent whole. Every detail is stored with the fingerprint of the version that it is of,
//! and is used for that version alone.

use std::collections::BTreeMap;

use pst::canonical::Detail;
use pst::inventory::Kind;
use pst::{Nid, Pst};

use crate::database::{StoredDetail, Synced};

/// Bytes of objects that are read for their details after one sync. One object is always read.
const BUDGET: u64 = 128 << 20;

/// Takes details of objects that have none, the newest first, and marks their rows.
pub(crate) fn fill(pst: &Pst, synced: &mut Synced) -> BTreeMap<Nid, StoredDetail> {
    let mut out = BTreeMap::new();
    let mut spent = 0u64;
    let rows = synced.rows.values_mut().rev();
    for row in rows.filter(|r| r.ours && !r.detailed && r.row.kind != Kind::Raw) {
        spent = spent.saturating_add(row.row.size);
        if spent > BUDGET && !out.is_empty() {
            break;
        }
        // A detail is a hint: an object that cannot be read now is sent whole later.
        let Ok(record) = pst.record(row.row.kind, row.row.nid) else {
            continue;
        };
        let encoded = Detail::of(&record).encode();
        let Some(detail) = encoded.filter(|_| record.fingerprint() == row.row.fingerprint) else {
            continue;
        };
        row.detailed = true;
        out.insert(
            row.row.nid,
            StoredDetail {
                fingerprint: row.row.fingerprint,
                detail,
            },
        );
    }
    out
}
