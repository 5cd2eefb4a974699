//! Writing what a transaction gathered ([MS-PST] 2.6.3.2): tables, counts, the name map, the search
//! queue.
//!
//! The order matters: contents tables give the counts, counts go into the folders' properties,
//! those into the rows of the parents' hierarchy tables, which are written last. Everything is in
//! NID order, so the same calls on the same file write the same bytes.

use std::collections::BTreeMap;

use super::super::row_cells::cells_in;
use super::super::schema::is_table_only;
use super::super::search::{self, SUD_LEN};
use super::super::tags;
use super::folders::with_zero_counts;
use super::{MAX_SEARCH_NODE, Pending, Rows, Transaction};
use crate::ltp::{PropBag, PropType, PropValue};
use crate::ndb::{DataPatch, NodeContent, NodeData, Subnodes};
use crate::{Bid, Nid, NidType, Result};

impl Transaction {
    pub(super) fn write_gathered(&mut self) -> Result<()> {
        if self.names.changed() {
            let content = self.names.build(Some(&self.base))?;
            let parent = self
                .ndb
                .node(Nid::NAME_TO_ID_MAP)?
                .map_or(Nid(0), |e| e.nid_parent);
            self.ndb.put_node(Nid::NAME_TO_ID_MAP, parent, &content)?;
        }
        let folders = std::mem::take(&mut self.folders);
        let mut stale: BTreeMap<Nid, Vec<Nid>> = BTreeMap::new();
        for (nid, pending) in &folders {
            // The parent of an object may have been deleted after the object left it.
            let Some(entry) = self.ndb.node(*nid)? else {
                continue;
            };
            if self.write_folder(*nid, pending)? && *nid != Nid::ROOT_FOLDER {
                stale.entry(entry.nid_parent).or_default().push(*nid);
            }
        }
        for (nid, pending) in &folders {
            if self.ndb.node(*nid)?.is_some() {
                let rows = stale.entry(*nid).or_default();
                rows.extend(pending.stale_rows.iter().copied());
                rows.extend(
                    pending
                        .children
                        .iter()
                        .filter(|(_, came)| **came)
                        .map(|(child, _)| *child),
                );
            }
        }
        for (nid, children) in stale {
            let pending = folders.get(&nid);
            self.write_hierarchy(nid, &children, pending)?;
        }
        self.write_search_queue()
    }

    /// Writes a folder's contents tables and properties; whether its row in the parent's hierarchy
    /// table must follow.
    fn write_folder(&mut self, nid: Nid, pending: &Pending) -> Result<bool> {
        let before = self.folder_props(nid)?;
        let contents = self.write_table(
            nid.with_kind(NidType::CONTENTS_TABLE),
            pending.created,
            &pending.contents,
            &before,
        )?;
        // No count is kept of associated messages: PidTagAssociatedContentCount in a file is a server's.
        self.write_table(
            nid.with_kind(NidType::ASSOC_CONTENTS_TABLE),
            pending.created,
            &pending.associated,
            &before,
        )?;
        let mut props = match &pending.props {
            Some(new) => {
                let mut props = with_zero_counts(new);
                // Counts stay what they were until the tables say otherwise.
                if !pending.created {
                    props.extend(
                        before
                            .iter()
                            .filter(|v| crate::derived::is_folder_count(v.tag.id()))
                            .cloned(),
                    );
                }
                props
            }
            None => before.clone(),
        };
        if let Some(counts) = contents {
            props.insert(PropValue::i32(tags::CONTENT_COUNT, counts.rows));
            props.insert(PropValue::i32(tags::CONTENT_UNREAD, counts.unread));
        }
        if pending.created || !pending.children.is_empty() {
            let has = self.has_children(nid, pending)?;
            props.insert(PropValue::bool(tags::SUBFOLDERS, has));
        }
        if props.same_content(&before)? {
            return Ok(pending.created);
        }
        let parent = self
            .ndb
            .node(nid)?
            .map_or(Nid::ROOT_FOLDER, |e| e.nid_parent);
        self.put_folder(nid, parent, props)?;
        Ok(true)
    }

    /// Whether the folder has rows in its hierarchy table once the gathered changes are in it.
    fn has_children(&mut self, nid: Nid, pending: &Pending) -> Result<bool> {
        if pending.children.values().any(|came| *came) {
            return Ok(true);
        }
        if pending.created {
            return Ok(false);
        }
        let gone: Vec<Nid> = pending.children.keys().copied().collect();
        self.has_rows_without(nid.with_kind(NidType::HIERARCHY_TABLE), &gone)
    }

    /// Brings the hierarchy table of `nid` up to date: rows of `children` anew, rows of those that
    /// went away out.
    fn write_hierarchy(
        &mut self,
        nid: Nid,
        children: &[Nid],
        pending: Option<&Pending>,
    ) -> Result<()> {
        let gone = |child: &Nid| pending.is_some_and(|p| p.children.get(child) == Some(&false));
        let created = pending.is_some_and(|p| p.created);
        let left = pending.is_some_and(|p| p.children.values().any(|came| !came));
        if children.is_empty() && !created && !left {
            return Ok(());
        }
        let table = nid.with_kind(NidType::HIERARCHY_TABLE);
        let columns = self.columns(table)?;
        // Folders name no code page: theirs is that of the store, which matters to 8-bit columns.
        let narrow = columns.iter().any(|c| c.prop_type() == PropType::STRING8);
        let page = if narrow { self.pst.code_page()? } else { None };
        let mut rows: Rows = pending
            .iter()
            .flat_map(|p| &p.children)
            .filter(|(_, came)| !**came)
            .map(|(child, _)| (child.0, None))
            .collect();
        for child in children.iter().copied().filter(|c| !gone(c)) {
            let mut row = PropBag::new();
            if !created
                && let Some(lookup) = self.lookup(table)?
                && let Some(old) = lookup.row_by_id(child.0)?
            {
                let kept = old.props.into_iter().filter(|v| is_table_only(v.tag.id()));
                row.extend(kept);
            }
            row.extend(cells_in(&self.folder_props(child)?, &columns, page));
            rows.insert(child.0, Some(row));
        }
        self.write_table(table, created, &rows, &PropBag::new())?;
        Ok(())
    }

    /// Appends to the search management queue. A queue that is no whole number of SUDs is not
    /// touched ([MS-PST] 2.4.8.3).
    fn write_search_queue(&mut self) -> Result<()> {
        let mut suds = Vec::new();
        for change in std::mem::take(&mut self.changes) {
            search::queue(&mut suds, &self.domain, change);
        }
        if suds.is_empty() {
            return Ok(());
        }
        let Some(entry) = self.base.node(Nid::SEARCH_MANAGEMENT_QUEUE)? else {
            return Ok(());
        };
        let Some(data) = self.appended(entry.bid_data, &suds)? else {
            return Ok(());
        };
        let content = NodeContent {
            data,
            subnodes: Subnodes::None,
        };
        // The parent field is the byte offset of the queue's head: it stays.
        self.ndb
            .put_node(Nid::SEARCH_MANAGEMENT_QUEUE, entry.nid_parent, &content)?;
        Ok(())
    }

    /// The queue's data with SUDs behind it: only its last block is written anew. `None` where it is
    /// no whole number of them.
    fn appended(&self, bid: Bid, suds: &[u8]) -> Result<Option<NodeData>> {
        if bid.is_none() {
            return Ok(Some(NodeData::Bytes(suds.to_vec())));
        }
        let tree = self.base.data(bid)?;
        if tree.len() % SUD_LEN as u64 != 0 {
            return Ok(None);
        }
        let full = self.base.format().max_data();
        let first = tree.block_count().saturating_sub(1);
        let mut tail = if tree.block_count() == 0 {
            Vec::new()
        } else {
            tree.read_block(&self.base, first)?
        };
        if tree.len() != (first * full + tail.len()) as u64 {
            // Blocks that are not full: the queue is written as a whole.
            let mut data = tree.read_all(&self.base, MAX_SEARCH_NODE)?;
            data.extend_from_slice(suds);
            return Ok(Some(NodeData::Bytes(data)));
        }
        tail.extend_from_slice(suds);
        let blocks: BTreeMap<usize, Vec<u8>> = tail
            .chunks(full)
            .enumerate()
            .map(|(i, b)| (first + i, b.to_vec()))
            .collect();
        Ok(Some(NodeData::Patched(DataPatch {
            base: bid,
            count: first + blocks.len(),
            blocks,
        })))
    }
}
