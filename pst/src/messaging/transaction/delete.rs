//! Deleting folders with all that is in them ([MS-PST] 2.6.3.2.9).

use std::collections::BTreeSet;

use super::super::search::Change;
use super::Transaction;
use super::folders::TABLES;
use crate::{Nid, NidType, PstError, Result};

impl Transaction {
    /// Deletes a folder, its messages and its sub-folders, search folders included.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such folder; [`PstError::Refused`] for the root folder.
    pub fn delete_folder(&mut self, nid: Nid) -> Result<()> {
        self.require_folder(nid)?;
        if nid == Nid::ROOT_FOLDER {
            return Err(PstError::Refused(
                "the root folder cannot be deleted".into(),
            ));
        }
        // Parents before children, then deleted from the end: children first.
        let mut order = vec![nid];
        let mut seen = BTreeSet::from([nid]);
        let mut next = 0;
        while let Some(at) = order.get(next).copied() {
            next += 1;
            for child in self.children_of(at)? {
                if seen.insert(child) {
                    order.push(child);
                }
            }
        }
        for folder in order.into_iter().rev() {
            self.delete_one(folder)?;
        }
        Ok(())
    }

    /// Whether a folder holds nothing now: no message, no sub-folder, no search folder.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such folder.
    pub fn is_empty_folder(&self, nid: Nid) -> Result<bool> {
        self.require_folder(nid)?;
        Ok(self.children_of(nid)?.is_empty()
            && self.messages_in(nid)?.is_empty()
            && self.searches_in(nid)?.is_empty())
    }

    fn delete_one(&mut self, folder: Nid) -> Result<()> {
        for message in self.messages_in(folder)? {
            self.delete_message(message)?;
        }
        for search in self.searches_in(folder)? {
            self.delete_raw_node(search)?;
            // Its criteria would select for nothing (2.4.8.6.1).
            let criteria = search.with_kind(NidType::SEARCH_CRITERIA_OBJECT);
            if self.ndb.node(criteria)?.is_some() {
                self.delete_raw_node(criteria)?;
            }
        }
        let parent = self.require_folder(folder)?.nid_parent;
        self.ndb.delete_node(folder)?;
        for kind in TABLES {
            let table = folder.with_kind(kind);
            if self.ndb.node(table)?.is_some() {
                self.ndb.delete_node(table)?;
            }
            self.columns.remove(&table);
        }
        self.written.remove(&folder);
        self.bags.remove(&folder);
        self.placed.insert(folder, None);
        self.folders.remove(&folder);
        let pending = self.pending(parent);
        pending.children.insert(folder, false);
        pending.stale_rows.remove(&folder);
        self.changes.push(Change::FolderDeleted { parent, folder });
        Ok(())
    }

    /// The sub-folders of a folder as they are now.
    fn children_of(&self, folder: Nid) -> Result<Vec<Nid>> {
        let index = self.base_index()?;
        let before = index.children.get(&folder).map_or(&[][..], Vec::as_slice);
        Ok(self.now_in(folder, before.iter().copied(), &[NidType::NORMAL_FOLDER]))
    }

    fn messages_in(&self, folder: Nid) -> Result<Vec<Nid>> {
        let index = self.base_index()?;
        let before = index.messages.get(&folder).map_or(&[][..], Vec::as_slice);
        let kinds = [NidType::NORMAL_MESSAGE, NidType::ASSOC_MESSAGE];
        Ok(self.now_in(folder, before.iter().map(|m| m.nid), &kinds))
    }

    /// The search folders of the file as it was that are in a folder now.
    fn searches_in(&self, folder: Nid) -> Result<Vec<Nid>> {
        let mut found = Vec::new();
        for raw in self.base_index()?.raw.keys() {
            if raw.kind() == NidType::SEARCH_FOLDER
                && self.ndb.node(*raw)?.is_some_and(|e| e.nid_parent == folder)
            {
                found.push(*raw);
            }
        }
        Ok(found)
    }

    fn now_in(
        &self,
        folder: Nid,
        before: impl Iterator<Item = Nid>,
        kinds: &[NidType],
    ) -> Vec<Nid> {
        let mut out: Vec<Nid> = before
            .filter(|nid| !self.placed.contains_key(nid))
            .collect();
        out.extend(
            self.placed
                .iter()
                .filter(|(nid, at)| **at == Some(folder) && kinds.contains(&nid.kind()))
                .map(|(nid, _)| *nid),
        );
        out.sort_unstable();
        out
    }
}
