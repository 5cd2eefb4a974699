//! Compares two inventories and orders what differs into a change list.
//!
//! Objects are matched by NID: both sides descend from one file, and the sync database keeps the
//! map where the applier had to choose another NID. One NID with another search key is another
//! object (NIDs are reused after deletes): delete and add.

use std::collections::BTreeMap;

use pst::Nid;
use pst::inventory::{Inventory, Kind, Row};

use crate::change_list::{Action, Change, ObjectKind};

/// A folder chain longer than this is a cycle in a damaged file.
pub(crate) const MAX_DEPTH: usize = 1024;

/// What has to happen to `base` so that it holds the objects of `source`. Both speak the same
/// NIDs. The entries' `carrier` NIDs are 0 until the carrier is made.
#[must_use]
pub fn compare(base: &Inventory, source: &Inventory) -> Vec<Change> {
    let mut changes = Vec::new();
    for (nid, before) in &base.rows {
        if source
            .rows
            .get(nid)
            .is_none_or(|after| is_other_object(before, after))
        {
            changes.push(entry(
                before,
                Action::Delete {
                    before: before.fingerprint,
                },
            ));
        }
    }
    for (nid, after) in &source.rows {
        let add = Action::Add {
            parent: after.parent.0,
            carrier: 0,
            after: after.fingerprint,
        };
        let Some(before) = base.rows.get(nid) else {
            changes.push(entry(after, add));
            continue;
        };
        if is_other_object(before, after) {
            changes.push(entry(after, add));
            continue;
        }
        if before.fingerprint != after.fingerprint {
            let (before, after_fp) = (before.fingerprint, after.fingerprint);
            changes.push(entry(
                after,
                Action::Update {
                    carrier: 0,
                    before,
                    after: after_fp,
                    patch: None,
                },
            ));
        }
        if before.parent != after.parent {
            changes.push(entry(
                after,
                Action::Move {
                    from: before.parent.0,
                    to: after.parent.0,
                },
            ));
        }
    }
    order(&mut changes, base, source);
    changes
}

/// Folders keep their identity by NID alone: other readers find their tables by it. A message that
/// lost its folder is a raw node from then on, and the other way round.
pub(crate) fn is_other_object(before: &Row, after: &Row) -> bool {
    before.kind != after.kind
        || matches!(after.kind, Kind::Message | Kind::Associated)
            && before.search_key != after.search_key
}

fn entry(row: &Row, action: Action) -> Change {
    Change {
        kind: ObjectKind::from(row.kind),
        nid: row.nid.0,
        action,
    }
}

/// Puts changes in the order of the format; `source` is what they lead to.
pub(crate) fn order(changes: &mut [Change], base: &Inventory, source: &Inventory) {
    changes.sort_by_cached_key(|c| {
        let deleted = matches!(c.action, Action::Delete { .. });
        let stage = match (deleted, c.kind) {
            (true, ObjectKind::Folder) => 4,
            (true, _) => 0,
            (false, ObjectKind::Folder) => 1,
            (false, ObjectKind::Message | ObjectKind::Associated) => 2,
            (false, ObjectKind::Raw) => 3,
        };
        let depth = match c.kind {
            ObjectKind::Folder if deleted => MAX_DEPTH - depth(base, c.nid()),
            ObjectKind::Folder => depth(source, c.nid()),
            _ => 0,
        };
        let step = match c.action {
            Action::Delete { .. } => 0,
            Action::Add { .. } => 1,
            Action::Update { .. } => 2,
            Action::Move { .. } => 3,
        };
        (stage, depth, c.nid, step)
    });
}

/// How deep below the root an object lies; [`MAX_DEPTH`] where its parents form a cycle.
pub(crate) fn depth(inventory: &Inventory, nid: Nid) -> usize {
    let mut at = nid;
    for depth in 0..MAX_DEPTH {
        match inventory.rows.get(&at) {
            Some(row) if row.parent != at => at = row.parent,
            _ => return depth,
        }
    }
    MAX_DEPTH
}

/// The inventory that the target must have after `changes` were applied to `base`, where the
/// applier gave added objects other NIDs as `remapped` says. This is what its answer is held
/// against (DESIGN R5).
#[must_use]
pub fn expected(base: &Inventory, changes: &[Change], remapped: &BTreeMap<Nid, Nid>) -> Inventory {
    let mut rows = base.rows.clone();
    let new_nid = |nid: u32| remapped.get(&Nid(nid)).copied().unwrap_or(Nid(nid));
    for change in changes {
        match &change.action {
            Action::Delete { .. } => {
                rows.remove(&change.nid());
            }
            Action::Add { parent, after, .. } => {
                let nid = new_nid(change.nid);
                rows.insert(
                    nid,
                    Row::expected(nid, new_nid(*parent), change.kind.into(), *after),
                );
            }
            Action::Update { after, .. } => {
                if let Some(row) = rows.get_mut(&change.nid()) {
                    row.fingerprint = *after;
                }
            }
            Action::Move { to, .. } => {
                if let Some(row) = rows.get_mut(&change.nid()) {
                    row.parent = new_nid(*to);
                }
            }
        }
    }
    Inventory { rows }
}
