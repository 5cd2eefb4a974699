//! What is sent: the difference between here and there, without what others did there.
//!
//! One way, three states: here, there, and what both sides once held. An object that differs only
//! because someone changed, moved or added it there is drift: it is counted and left alone. What
//! was changed here is sent. What was deleted there and is still here is added again.

use std::collections::{BTreeMap, BTreeSet};

use pst::Nid;
use pst::inventory::{Inventory, Kind};

use crate::base::Base;
use crate::change_list::{Action, Change};
use crate::compare::{MAX_DEPTH, compare, depth, expected, order};

/// The change list in local NIDs, and what was left out of it.
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    /// Objects that others changed there and that are left alone.
    pub(crate) drift: usize,
    /// Deletes that nothing proves to be ours.
    pub(crate) held_deletes: usize,
}

impl Plan {
    /// Works out what to send so that `base` follows `local`.
    pub(crate) fn make(base: &Base, local: &Inventory) -> Self {
        let mut plan = Self {
            changes: Vec::new(),
            drift: 0,
            held_deletes: 0,
        };
        let mut kept: Vec<Nid> = Vec::new();
        let mut drifted: BTreeSet<Nid> = BTreeSet::new();
        let mut moved_there: Vec<Change> = Vec::new();
        for change in compare(&base.inventory, local) {
            let nid = change.nid();
            let once = base.ancestor.as_ref().and_then(|a| a.rows.get(&nid));
            let theirs = match &change.action {
                Action::Add { .. } => false,
                Action::Delete { .. } => {
                    let there = base.inventory.rows.get(&nid);
                    if there.is_some_and(|there| base.may_delete(there)) {
                        false
                    } else if base.ancestor.is_none() {
                        plan.held_deletes += 1;
                        kept.push(nid);
                        continue;
                    } else {
                        true
                    }
                }
                Action::Update { after, .. } => once.is_some_and(|o| o.fingerprint == *after),
                Action::Move { to, .. } => once.is_some_and(|o| o.parent == Nid(*to)),
            };
            if theirs {
                drifted.insert(nid);
                kept.push(nid);
                if matches!(change.action, Action::Move { .. }) {
                    moved_there.push(change);
                }
            } else {
                plan.changes.push(change);
            }
        }
        plan.drift = drifted.len();
        plan.keep_folders_of(&kept, &base.inventory);
        plan.untie(moved_there, &base.inventory);
        let after = expected(&base.inventory, &plan.changes, &BTreeMap::new());
        order(&mut plan.changes, &base.inventory, &after);
        plan
    }

    /// A folder that still holds something kept is not deleted either.
    fn keep_folders_of(&mut self, kept: &[Nid], base: &Inventory) {
        let mut holders = BTreeSet::new();
        for nid in kept {
            let mut at = *nid;
            while let Some(row) = base.rows.get(&at) {
                if row.parent == at || !holders.insert(row.parent) {
                    break;
                }
                at = row.parent;
            }
        }
        let before = self.changes.len();
        self.changes
            .retain(|c| !(matches!(c.action, Action::Delete { .. }) && holders.contains(&c.nid())));
        self.held_deletes += before - self.changes.len();
    }

    /// A folder that others moved into one that was moved into it here would be its own ancestor:
    /// there, the place that it has here wins.
    fn untie(&mut self, mut moved_there: Vec<Change>, base: &Inventory) {
        moved_there.retain(|c| Kind::from(c.kind) == Kind::Folder);
        while !moved_there.is_empty() {
            let after = expected(base, &self.changes, &BTreeMap::new());
            let tied = |c: &Change| depth(&after, c.nid()) >= MAX_DEPTH;
            let (tied, free) = moved_there.into_iter().partition(tied);
            let tied: Vec<Change> = tied;
            moved_there = free;
            if tied.is_empty() {
                break;
            }
            self.changes.extend(tied);
        }
    }
}
