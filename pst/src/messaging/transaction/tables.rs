//! Writing the tables of folders ([MS-PST] 2.4.4.4 to 2.4.4.6).
//!
//! A large table is changed row by row, at the cost of the rows that change; a small or odd one, and
//! one of which much changes, is built anew. Row versions come from the header's dwUnique, as
//! Outlook's do: no two rows of a file have the same, and no table is searched for the last one.

use std::sync::Arc;

use super::super::schema;
use super::super::tags;
use super::{Rows, Transaction};
use crate::ltp::{PropBag, RowChange, TableContext, TableEdit, TableLookup, TablePatch};
use crate::ndb::{NbtEntry, NodeContent};
use crate::{Nid, NidType, PstError, Result};

/// What a contents table says about its folder.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    /// PidTagContentCount.
    pub rows: i32,
    /// PidTagContentUnreadCount.
    pub unread: i32,
}

impl Counts {
    fn of_folder(props: &PropBag) -> Option<Self> {
        Some(Self {
            rows: props.i32(tags::CONTENT_COUNT)?,
            unread: props.i32(tags::CONTENT_UNREAD)?,
        })
    }
}

impl Transaction {
    /// Puts edited rows into a table of a folder with the properties `folder`. Returns the counts of
    /// a contents table that changed.
    pub(super) fn write_table(
        &mut self,
        table: Nid,
        created: bool,
        rows: &Rows,
        folder: &PropBag,
    ) -> Result<Option<Counts>> {
        if rows.is_empty() && !created {
            return Ok(None);
        }
        let stored = if created {
            None
        } else {
            self.base.node(table)?
        };
        let patched = match &stored {
            Some(entry) => self.patch_table(entry, rows, folder)?,
            None => None,
        };
        let (content, counts) = match patched {
            Some(done) => done,
            None => self.build_table(table, stored.as_ref(), rows)?,
        };
        let parent = self.ndb.node(table)?.map_or(Nid(0), |e| e.nid_parent);
        self.ndb.put_node(table, parent, &content)?;
        self.written.insert(table);
        Ok((table.kind() == NidType::CONTENTS_TABLE).then_some(counts))
    }

    /// Changes a large table; `None` for one that is to be built anew.
    ///
    /// Its rows are not counted: the folder's own counts are carried on, where the one that can be
    /// checked agrees with the matrix. Where it does not, building anew puts them right.
    fn patch_table(
        &mut self,
        entry: &NbtEntry,
        rows: &Rows,
        folder: &PropBag,
    ) -> Result<Option<(NodeContent, Counts)>> {
        let Some(mut patch) = TablePatch::open(&self.base, entry.bid_data, entry.bid_sub)? else {
            return Ok(None);
        };
        if rows.len() > patch.row_count() / 2 {
            return Ok(None);
        }
        let mut unread = 0;
        if entry.nid.kind() == NidType::CONTENTS_TABLE {
            match Counts::of_folder(folder) {
                Some(c) if usize::try_from(c.rows) == Ok(patch.row_count()) => {
                    unread = c.unread;
                }
                _ => return Ok(None),
            }
        }
        let apply = || -> Result<(NodeContent, Counts)> {
            for (id, row) in rows {
                let mut version = |old| self.ndb.next_unique(old);
                let before = match row {
                    Some(cells) => match patch.put_row(*id, cells, &mut version)? {
                        RowChange::Same => continue,
                        RowChange::Added => None,
                        RowChange::Replaced(before) => Some(before),
                    },
                    None => match patch.delete_row(*id)? {
                        None => continue,
                        before => before,
                    },
                };
                unread -= before.as_ref().map_or(0, is_unread);
                unread += row.as_ref().map_or(0, is_unread);
            }
            let rows = i32::try_from(patch.row_count()).unwrap_or(i32::MAX);
            Ok((patch.finish()?, Counts { rows, unread }))
        };
        match apply() {
            Ok((_, counts)) if !(0..=counts.rows).contains(&counts.unread) => Ok(None),
            Ok(done) => Ok(Some(done)),
            Err(PstError::Io { offset, source }) => Err(PstError::Io { offset, source }),
            Err(_) => Ok(None),
        }
    }

    /// Builds a table from all its rows.
    fn build_table(
        &mut self,
        table: Nid,
        stored: Option<&NbtEntry>,
        rows: &Rows,
    ) -> Result<(NodeContent, Counts)> {
        let mut edit = match stored {
            Some(entry) => TableEdit::open(&self.base, entry.bid_data, entry.bid_sub)?,
            None => self.new_table(table.kind())?,
        };
        edit.set_lossy(true);
        for (id, row) in rows {
            match row {
                Some(cells) => {
                    edit.put_row_as(*id, cells, &mut |old| self.ndb.next_unique(old))?;
                }
                None => {
                    edit.delete_row(*id);
                }
            }
        }
        let unread: i32 = edit.rows().map(|row| is_unread(&row.props)).sum();
        let counts = Counts {
            rows: i32::try_from(edit.row_count()).unwrap_or(i32::MAX),
            unread,
        };
        Ok((edit.build(Some(&self.base))?, counts))
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

    /// Look-ups in a table of the file as it was; `None` where it has no such table.
    pub(super) fn lookup(&mut self, table: Nid) -> Result<Option<Arc<TableLookup>>> {
        if let Some(found) = self.lookups.get(&table) {
            return Ok(Some(Arc::clone(found)));
        }
        let Some(entry) = self.base.node(table)? else {
            return Ok(None);
        };
        let lookup = Arc::new(TableLookup::open(
            &self.base,
            entry.bid_data,
            entry.bid_sub,
        )?);
        if self.lookups.len() >= MAX_LOOKUPS {
            self.lookups.clear();
        }
        self.lookups.insert(table, Arc::clone(&lookup));
        Ok(Some(lookup))
    }

    /// Whether a folder's hierarchy table will have rows when those of `gone` are out of it.
    pub(super) fn has_rows_without(&mut self, table: Nid, gone: &[Nid]) -> Result<bool> {
        let Some(lookup) = self.lookup(table)? else {
            return Ok(false);
        };
        // Most folders have few sub-folders; of many, the matrix tells that some are left.
        if lookup.matrix_rows()? > gone.len().saturating_mul(2).max(FEW_ROWS) {
            return Ok(true);
        }
        let Some(entry) = self.base.node(table)? else {
            return Ok(false);
        };
        let table = TableContext::open(&self.base, entry.bid_data, entry.bid_sub)?;
        Ok(table.row_ids().any(|id| !gone.contains(&Nid(id))))
    }
}

/// Tables kept open for look-ups; each keeps a few blocks.
const MAX_LOOKUPS: usize = 16;
/// Rows that are looked through one by one.
const FEW_ROWS: usize = 1000;

/// 1 for a row that lacks `mfRead` ([MS-OXCMSG] 2.2.1.6).
fn is_unread(props: &PropBag) -> i32 {
    let flags = props.i32(tags::MESSAGE_FLAGS).unwrap_or(0);
    i32::from(flags & tags::FLAG_READ == 0)
}
