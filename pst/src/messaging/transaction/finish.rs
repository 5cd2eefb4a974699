//! Writing what a transaction gathered: tables, counts, the name map, the search queue.
//!
//! The order matters: contents tables give the counts, counts go into the folders' properties,
//! those into the rows of the parents' hierarchy tables, which are written last. Everything is in
//! NID order, so the same calls on the same file write the same bytes.

use std::collections::BTreeMap;

use super::super::row_cells::cells_in;
use super::super::schema::{self, is_table_only};
use super::super::search::{self, SUD_LEN};
use super::super::tags;
use super::folders::with_zero_counts;
use super::{MAX_SEARCH_NODE, Pending, Rows, Transaction};
use crate::ltp::{PropBag, PropType, PropValue, TableContext, TableEdit};
use crate::ndb::{NodeContent, NodeData, Subnodes};
use crate::{Nid, NidType, Result};

/// What a folder's edited table says about it.
#[derive(Clone, Copy)]
struct Counts {
    rows: i32,
    unread: i32,
}

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
        let contents = self.write_table(
            nid.with_kind(NidType::CONTENTS_TABLE),
            pending.created,
            &pending.contents,
        )?;
        // No count is kept of associated messages: PidTagAssociatedContentCount in a file is a server's.
        self.write_table(
            nid.with_kind(NidType::ASSOC_CONTENTS_TABLE),
            pending.created,
            &pending.associated,
        )?;
        let before = self.folder_props(nid)?;
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
    fn has_children(&self, nid: Nid, pending: &Pending) -> Result<bool> {
        if pending.children.values().any(|came| *came) {
            return Ok(true);
        }
        if pending.created {
            return Ok(false);
        }
        let Some(table) = self.table_edit(nid.with_kind(NidType::HIERARCHY_TABLE))? else {
            return Ok(false);
        };
        Ok(table
            .rows()
            .any(|row| pending.children.get(&Nid(row.id)) != Some(&false)))
    }

    fn table_edit(&self, table: Nid) -> Result<Option<TableEdit>> {
        match self.base.node(table)? {
            Some(entry) => Ok(Some(TableEdit::open(
                &self.base,
                entry.bid_data,
                entry.bid_sub,
            )?)),
            None => Ok(None),
        }
    }

    /// Puts the gathered rows into a contents table; its counts, or `None` if nothing changed.
    fn write_table(&mut self, table: Nid, created: bool, rows: &Rows) -> Result<Option<Counts>> {
        if rows.is_empty() && !created {
            return Ok(None);
        }
        let existing = if created {
            None
        } else {
            self.table_edit(table)?
        };
        let mut edit = match existing {
            Some(edit) => edit,
            None => self.new_table(table.kind())?,
        };
        for (id, row) in rows {
            match row {
                Some(cells) => edit.put_row(*id, cells)?,
                None => {
                    edit.delete_row(*id);
                }
            }
        }
        let counts = Counts {
            rows: i32::try_from(edit.row_count()).unwrap_or(i32::MAX),
            unread: unread(&edit),
        };
        self.put_table(table, &edit)?;
        Ok(Some(counts))
    }

    /// An empty table as the file's template has it.
    fn new_table(&self, kind: NidType) -> Result<TableEdit> {
        let template = schema::template_of(kind);
        match self.base.node(template)? {
            Some(entry) => {
                let table = TableContext::open(&self.base, entry.bid_data, entry.bid_sub)?;
                Ok(TableEdit::with_layout(table.layout().clone()))
            }
            None => TableEdit::new(schema::columns(template)),
        }
    }

    fn put_table(&mut self, table: Nid, edit: &TableEdit) -> Result<()> {
        let parent = self.ndb.node(table)?.map_or(Nid(0), |e| e.nid_parent);
        let content = edit.build(Some(&self.base))?;
        self.ndb.put_node(table, parent, &content)?;
        self.written.insert(table);
        Ok(())
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
        let existing = if created {
            None
        } else {
            self.table_edit(table)?
        };
        let mut edit = match existing {
            Some(edit) => edit,
            None => self.new_table(NidType::HIERARCHY_TABLE)?,
        };
        for (child, came) in pending.iter().flat_map(|p| &p.children) {
            if !came {
                edit.delete_row(child.0);
            }
        }
        let mut children: Vec<Nid> = children.iter().copied().filter(|c| !gone(c)).collect();
        children.sort_unstable();
        children.dedup();
        for child in children {
            let mut row: PropBag = match edit.row(child.0) {
                Some(old) => old
                    .props
                    .iter()
                    .filter(|v| is_table_only(v.tag.id()))
                    .cloned()
                    .collect(),
                None => PropBag::new(),
            };
            row.extend(cells_in(&self.folder_props(child)?, &columns, page));
            edit.put_row(child.0, &row)?;
        }
        self.put_table(table, &edit)
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
        let mut data = if entry.bid_data.is_none() {
            Vec::new()
        } else {
            self.base
                .data(entry.bid_data)?
                .read_all(&self.base, MAX_SEARCH_NODE)?
        };
        if data.len() % SUD_LEN != 0 {
            return Ok(());
        }
        data.extend_from_slice(&suds);
        let content = NodeContent {
            data: NodeData::Bytes(data),
            subnodes: Subnodes::None,
        };
        // The parent field is the byte offset of the queue's head: it stays.
        self.ndb
            .put_node(Nid::SEARCH_MANAGEMENT_QUEUE, entry.nid_parent, &content)?;
        Ok(())
    }
}

/// How many rows of a contents table lack `mfRead` ([MS-OXCMSG] 2.2.1.6).
fn unread(table: &TableEdit) -> i32 {
    let unread =
        |props: &PropBag| props.i32(tags::MESSAGE_FLAGS).unwrap_or(0) & tags::FLAG_READ == 0;
    i32::try_from(table.rows().filter(|row| unread(&row.props)).count()).unwrap_or(i32::MAX)
}
