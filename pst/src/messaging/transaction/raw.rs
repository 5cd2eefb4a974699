//! Raw nodes: everything that is carried as it is (search folders, criteria, the store's
//! properties, views, the receive-folder table, unknown nodes).

use super::super::read::not_found;
use super::super::schema;
use super::super::search::Change;
use super::Transaction;
use crate::derived::is_derived_node;
use crate::ltp::TableBuilder;
use crate::ndb::{NbtEntry, NodeContent};
use crate::{Nid, NidType, PstError, Result};

impl Transaction {
    /// Writes a node as it is, replacing one of the same NID. A search folder also gets its row in
    /// the parent's hierarchy table, and an empty contents table and update queue where it has none.
    ///
    /// # Errors
    /// [`PstError::Refused`] for a node that the engine derives ([`crate::derived`]).
    pub fn put_raw_node(&mut self, nid: Nid, parent: Nid, content: &NodeContent) -> Result<()> {
        if is_derived_node(nid) {
            return Err(PstError::Refused(format!(
                "node {nid} is derived and cannot be written as it is"
            )));
        }
        let before = self.ndb.node(nid)?;
        self.refuse_object(before.as_ref())?;
        self.ndb.put_node(nid, parent, content)?;
        self.written.insert(nid);
        self.raw.insert(nid);
        if nid.kind() == NidType::SEARCH_FOLDER {
            match before {
                Some(before) if before.nid_parent == parent => {
                    if self.is_folder(parent)? {
                        self.pending(parent).stale_rows.insert(nid);
                    }
                }
                before => {
                    self.relink_search_folder(nid, before.map(|b| b.nid_parent), Some(parent))?;
                }
            }
            self.make_search_companions(nid)?;
        }
        Ok(())
    }

    /// Gives a raw node another parent.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such node; [`PstError::Refused`] if it is derived.
    pub fn set_raw_parent(&mut self, nid: Nid, parent: Nid) -> Result<()> {
        if is_derived_node(nid) {
            return Err(PstError::Refused(format!(
                "node {nid} is derived and cannot be moved"
            )));
        }
        let before = self.ndb.node(nid)?.ok_or_else(|| not_found("node", nid))?;
        self.refuse_object(Some(&before))?;
        self.ndb.set_parent(nid, parent)?;
        self.raw.insert(nid);
        if nid.kind() == NidType::SEARCH_FOLDER && before.nid_parent != parent {
            self.relink_search_folder(nid, Some(before.nid_parent), Some(parent))?;
        }
        Ok(())
    }

    /// Deletes a raw node; a search folder with its contents table and update queue.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such node; [`PstError::Refused`] if it is derived, or the
    /// message store.
    pub fn delete_raw_node(&mut self, nid: Nid) -> Result<()> {
        if is_derived_node(nid) || nid == Nid::MESSAGE_STORE {
            return Err(PstError::Refused(format!("node {nid} cannot be deleted")));
        }
        let before = self.ndb.node(nid)?.ok_or_else(|| not_found("node", nid))?;
        self.refuse_object(Some(&before))?;
        self.ndb.delete_node(nid)?;
        self.written.remove(&nid);
        self.raw.remove(&nid);
        if nid.kind() == NidType::SEARCH_FOLDER {
            self.relink_search_folder(nid, Some(before.nid_parent), None)?;
            for kind in [NidType::SEARCH_UPDATE_QUEUE, NidType::SEARCH_CONTENTS_TABLE] {
                if self.ndb.node(nid.with_kind(kind))?.is_some() {
                    self.ndb.delete_node(nid.with_kind(kind))?;
                }
            }
        }
        Ok(())
    }

    /// Whether a node is a folder that the root folder leads to, or a message in one. Those have rows
    /// and counts that must follow, so they are never handled as raw nodes.
    fn is_object(&self, entry: &NbtEntry) -> Result<bool> {
        let below = match entry.nid.kind() {
            NidType::NORMAL_FOLDER => entry.nid,
            NidType::NORMAL_MESSAGE | NidType::ASSOC_MESSAGE => entry.nid_parent,
            _ => return Ok(false),
        };
        match self.ancestors(below) {
            Ok(_) => Ok(true),
            // Not known now is not the same as outside of all folders.
            Err(e @ PstError::Io { .. }) => Err(e),
            Err(_) => Ok(false),
        }
    }

    fn refuse_object(&self, entry: Option<&NbtEntry>) -> Result<()> {
        match entry {
            Some(entry) if self.is_object(entry)? => Err(PstError::Refused(format!(
                "node {} is a folder or a message, not a raw node",
                entry.nid
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses an edit that made a raw node a folder or a message, without its rows and counts.
    pub(super) fn check_raw(&self) -> Result<()> {
        let index = self.base_index()?;
        let before = index.raw.keys().filter(|nid| {
            let kind = nid.kind();
            (kind == NidType::NORMAL_FOLDER
                || kind == NidType::NORMAL_MESSAGE
                || kind == NidType::ASSOC_MESSAGE)
                && !self.placed.contains_key(nid)
        });
        for nid in before.chain(&self.raw) {
            self.refuse_object(self.ndb.node(*nid)?.as_ref())?;
        }
        Ok(())
    }

    fn is_folder(&self, nid: Nid) -> Result<bool> {
        Ok(nid.kind() == NidType::NORMAL_FOLDER && self.ndb.node(nid)?.is_some())
    }

    fn relink_search_folder(&mut self, nid: Nid, from: Option<Nid>, to: Option<Nid>) -> Result<()> {
        if let Some(from) = from
            && self.is_folder(from)?
        {
            let pending = self.pending(from);
            pending.children.insert(nid, false);
            pending.stale_rows.remove(&nid);
        }
        if let Some(to) = to
            && self.is_folder(to)?
        {
            self.pending(to).children.insert(nid, true);
        }
        match (from, to) {
            (None, Some(_)) => self.changes.push(Change::SearchAdded { folder: nid }),
            (Some(_), None) => self.changes.push(Change::SearchDeleted { folder: nid }),
            _ => {}
        }
        Ok(())
    }

    fn make_search_companions(&mut self, nid: Nid) -> Result<()> {
        let queue = nid.with_kind(NidType::SEARCH_UPDATE_QUEUE);
        if self.ndb.node(queue)?.is_none() {
            self.ndb.put_node(queue, Nid(0), &NodeContent::default())?;
        }
        let table = nid.with_kind(NidType::SEARCH_CONTENTS_TABLE);
        if self.ndb.node(table)?.is_none() {
            let columns = self.template(schema::SEARCH_CONTENTS_TEMPLATE)?;
            let content = TableBuilder::new(&columns)?.build(Some(&self.base))?;
            self.ndb.put_node(table, Nid(0), &content)?;
        }
        Ok(())
    }
}
