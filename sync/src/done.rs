//! Is all of a change list done already?
//!
//! An added object whose NID was taken got another one, so a list that is applied again does not find
//! it where the list says. It is found by what it says (its whole fingerprint, the search key
//! included) in the folder that it was added to. That is believed only where every other entry of the
//! list is done too: a list is applied as a whole or not at all.
//!
//! Of several equal folders, one is told from the other by what the list adds to it.

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
        changes,
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

/// So many equal folders are told from one another, and by so many of the objects added to them: each
/// is read for each of the others, and what comes from outside must not cost more.
const TWINS: usize = 8;

struct Look<'a> {
    target: &'a Pst,
    rules: Rules,
    changes: &'a [Change],
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
                let Some(found) = self.find(change, parent, after)? else {
                    return Ok(false);
                };
                self.claimed.insert(found);
                if found != nid {
                    self.given.insert(nid, found);
                }
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

    /// The object that this entry added: one of its kind and content that no other entry claims, under
    /// its own NID or else in its folder.
    fn find(&self, change: &Change, parent: Nid, after: &Fingerprint) -> Result<Option<Nid>> {
        let (kind, own) = (change.kind, change.nid());
        let mut found = Vec::new();
        if !self.claimed.contains(&own) && self.has(kind, own, after)? {
            found.push(own);
        }
        let most = match kind {
            ObjectKind::Folder => TWINS,
            _ => 1,
        };
        // What was added last has the highest NID.
        for nid in self.candidates(kind, parent)?.into_iter().rev() {
            if found.len() >= most {
                break;
            }
            if nid != own && !self.claimed.contains(&nid) && self.has(kind, nid, after)? {
                found.push(nid);
            }
        }
        if found.len() > 1 {
            for nid in &found {
                if self.holds_what_was_added(*nid, own)? {
                    return Ok(Some(*nid));
                }
            }
        }
        Ok(found.first().copied())
    }

    /// Whether the folder `at` holds what the list adds to the folder that it calls `named`; of one
    /// without, whether it holds nothing.
    fn holds_what_was_added(&self, at: Nid, named: Nid) -> Result<bool> {
        let mut any = false;
        let added = self.changes.iter().filter_map(|c| match &c.action {
            Action::Add { parent, after, .. } if *parent == named.0 => Some((c, after)),
            _ => None,
        });
        for (change, after) in added.take(TWINS) {
            any = true;
            let own = self.target.ndb().node(change.nid())?;
            let lies = own.is_some_and(|n| n.nid_parent == at)
                && self.has(change.kind, change.nid(), after)?;
            let mut like = self.candidates(change.kind, at)?.into_iter().rev();
            let mut is_like = |nid| self.has(change.kind, nid, after).unwrap_or(false);
            if !lies && !like.by_ref().take(TWINS).any(&mut is_like) {
                return Ok(false);
            }
        }
        let index = self.target.index()?;
        let is_empty = index.messages.get(&at).is_none_or(Vec::is_empty)
            && index.children.get(&at).is_none_or(Vec::is_empty);
        Ok(any || is_empty)
    }

    /// Objects of a kind in a folder, in NID order.
    fn candidates(&self, kind: ObjectKind, parent: Nid) -> Result<Vec<Nid>> {
        let index = self.target.index()?;
        let messages = |associated: bool| -> Vec<Nid> {
            let all = index.messages.get(&parent).into_iter().flatten();
            all.filter(|m| m.associated == associated)
                .map(|m| m.nid)
                .collect()
        };
        Ok(match kind {
            ObjectKind::Folder => index.children.get(&parent).cloned().unwrap_or_default(),
            ObjectKind::Message => messages(false),
            ObjectKind::Associated => messages(true),
            // Others refer to a raw node by its NID: it never gets another.
            ObjectKind::Raw => Vec::new(),
        })
    }
}
