//! Is all of a change list done already?
//!
//! An added object whose NID was taken got another one, so a list that is applied again does not find
//! it where the list says. It is found by what it says (its whole fingerprint, the search key
//! included) in the folder that it was added to. That is believed only where every other entry of the
//! list is done too: a list is applied as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use pst::inventory::Kind;
use pst::{Nid, Pst};

use crate::apply::Rules;
use crate::change_list::{Action, Change, Fingerprint, ObjectKind};
use crate::error::Result;

/// Where the added objects are that got another NID, if the target is as after `changes`; `None` if
/// something is left to do.
pub(crate) fn already(
    target: &Pst,
    changes: &[Change],
    rules: Rules,
) -> Result<Option<BTreeMap<Nid, Nid>>> {
    let mut look = Look {
        target,
        rules,
        given: BTreeMap::new(),
        claimed: BTreeSet::new(),
    };
    // Cheap entries first: most lists that are not done show it there.
    for change in changes {
        if !look.is_done_by_place(change)? {
            return Ok(None);
        }
    }
    let added: BTreeMap<u32, Fingerprint> = changes
        .iter()
        .filter_map(|c| match c.action {
            Action::Add { after, .. } => Some((c.nid, after)),
            _ => None,
        })
        .collect();
    for change in changes {
        if !look.is_done(change, &added)? {
            return Ok(None);
        }
    }
    Ok(Some(look.given))
}

struct Look<'a> {
    target: &'a Pst,
    rules: Rules,
    given: BTreeMap<Nid, Nid>,
    claimed: BTreeSet<Nid>,
}

impl Look<'_> {
    /// What the node B-tree alone can tell against it.
    fn is_done_by_place(&self, change: &Change) -> Result<bool> {
        let node = self.target.ndb().node(change.nid())?;
        Ok(match &change.action {
            // One that is not there at all was never added: its NID would have been free.
            Action::Add { .. } | Action::Update { .. } | Action::Move { .. } => node.is_some(),
            Action::Delete { .. } => true,
        })
    }

    fn is_done(&mut self, change: &Change, added: &BTreeMap<u32, Fingerprint>) -> Result<bool> {
        let nid = change.nid();
        match &change.action {
            Action::Add { parent, after, .. } => {
                let parent = self.mapped(Nid(*parent));
                if self.has(change.kind, nid, after)? && self.claimed.insert(nid) {
                    return Ok(true);
                }
                let Some(found) = self.find(change.kind, parent, after)? else {
                    return Ok(false);
                };
                self.claimed.insert(found);
                self.given.insert(nid, found);
                Ok(true)
            }
            Action::Update { after, .. } => self.has(change.kind, nid, after),
            Action::Move { to, .. } => {
                let to = self.mapped(Nid(*to));
                let node = self.target.ndb().node(nid)?;
                Ok(node.is_some_and(|n| n.nid_parent == to))
            }
            Action::Delete { .. } => match added.get(&change.nid) {
                // Another object took its NID, in this very list.
                Some(after) => self.has(change.kind, nid, after),
                None => Ok(self.target.ndb().node(nid)?.is_none()),
            },
        }
    }

    fn mapped(&self, nid: Nid) -> Nid {
        self.given.get(&nid).copied().unwrap_or(nid)
    }

    fn has(&self, kind: ObjectKind, nid: Nid, fingerprint: &Fingerprint) -> Result<bool> {
        let index = self.target.index()?;
        if index.kind(nid) != Some(Kind::from(kind)) {
            return Ok(false);
        }
        let record = self.target.record(kind.into(), nid)?;
        Ok(self.rules.fingerprint(&record) == *fingerprint)
    }

    /// An object of this kind and content in a folder that no other entry claims.
    fn find(&self, kind: ObjectKind, parent: Nid, after: &Fingerprint) -> Result<Option<Nid>> {
        let index = self.target.index()?;
        let messages = |associated: bool| -> Vec<Nid> {
            let all = index.messages.get(&parent).into_iter().flatten();
            all.filter(|m| m.associated == associated)
                .map(|m| m.nid)
                .collect()
        };
        let candidates = match kind {
            ObjectKind::Folder => index.children.get(&parent).cloned().unwrap_or_default(),
            ObjectKind::Message => messages(false),
            ObjectKind::Associated => messages(true),
            // Others refer to a raw node by its NID: it never gets another.
            ObjectKind::Raw => Vec::new(),
        };
        // What was added last has the highest NID.
        for nid in candidates.into_iter().rev() {
            if !self.claimed.contains(&nid) && self.has(kind, nid, after)? {
                return Ok(Some(nid));
            }
        }
        Ok(None)
    }
}
