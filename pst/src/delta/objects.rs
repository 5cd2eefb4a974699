//! From rows that differ to what happened to the objects: the one rule that all deltas share.

use std::collections::BTreeMap;

use super::{Action, Change};
use crate::derived::ObjectKind;
use crate::inventory::Row;
use crate::ndb::NbtEntry;
use crate::{Nid, Pst, Result, parallel};

/// The changes between rows before and after, in NID order.
pub(super) fn changes(before: &BTreeMap<Nid, Row>, after: &BTreeMap<Nid, Row>) -> Vec<Change> {
    let mut out = Vec::new();
    let mut add = |row: &Row, action| {
        out.push(Change {
            nid: row.nid,
            kind: row.kind,
            action,
        });
    };
    let mut nids: Vec<Nid> = before.keys().chain(after.keys()).copied().collect();
    nids.sort_unstable();
    nids.dedup();
    for nid in nids {
        match (before.get(&nid), after.get(&nid)) {
            (Some(old), Some(new)) if is_other(old, new) => {
                add(old, Action::Delete);
                add(new, Action::Add);
            }
            (Some(old), Some(new)) => {
                if old.fingerprint != new.fingerprint {
                    add(new, Action::Update);
                }
                if old.parent != new.parent {
                    let (from, to) = (old.parent, new.parent);
                    add(new, Action::Move { from, to });
                }
            }
            (Some(old), None) => add(old, Action::Delete),
            (None, Some(new)) => add(new, Action::Add),
            (None, None) => {}
        }
    }
    out
}

/// NIDs are used again after deletes: one NID with another search key is another object. A folder
/// stays what its NID says, since its tables are found by it.
fn is_other(old: &Row, new: &Row) -> bool {
    old.kind != new.kind
        || matches!(new.kind, ObjectKind::Message | ObjectKind::Associated)
            && old.search_key != new.search_key
}

/// Reads the rows of nodes, in their order.
pub(super) fn rows(pst: &Pst, nodes: &[(ObjectKind, NbtEntry)]) -> Result<Vec<Row>> {
    parallel::map(nodes, &|(kind, entry)| Row::read(pst, *kind, entry))
}

/// Whether a row was made from a node with the same BIDs.
pub(super) fn same_bids(row: &Row, entry: &NbtEntry) -> bool {
    row.bid_data.key() == entry.bid_data.key() && row.bid_sub.key() == entry.bid_sub.key()
}

/// The row of an object whose content is known to be that of `row`.
pub(super) fn renewed(row: &Row, entry: &NbtEntry) -> Row {
    Row {
        parent: entry.nid_parent,
        bid_data: entry.bid_data,
        bid_sub: entry.bid_sub,
        ..row.clone()
    }
}
