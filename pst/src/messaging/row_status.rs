//! What the rows of contents tables say that the messages themselves do not.
//!
//! [`crate::derived::is_content_cell`] is the rule. Asked about a few messages of a folder, a row is looked up
//! for each; asked about many, the one column of the table is read at once, and only cells that say
//! something are kept: in almost every file those are few.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::read::Pst;
use super::tags;
use crate::canonical::{canon_cells, cells_hash};
use crate::ltp::{PropBag, PropTag, PropType, PropValue, TableContext, TableLookup};
use crate::ndb::NbtEntry;
use crate::{Nid, NidType, PstError, Result};

/// PidTagMessageStatus, the one column that is content.
pub(crate) const STATUS: PropTag = PropTag::new(tags::MESSAGE_STATUS, PropType::I32);

/// So many messages are looked up one by one before the column is read.
const FEW: u32 = 8;

/// What is known of one contents table.
pub(super) enum TableCells {
    /// Rows were looked up, so many.
    Asked(u32),
    /// The cells that say something, by message.
    Read(Arc<BTreeMap<Nid, PropBag>>),
}

/// The table that lists a message in a folder; `None` for what no folder lists.
fn table_of(nid: Nid, folder: Nid) -> Option<Nid> {
    if folder.kind() != NidType::NORMAL_FOLDER {
        return None;
    }
    match nid.kind() {
        NidType::NORMAL_MESSAGE => Some(folder.with_kind(NidType::CONTENTS_TABLE)),
        NidType::ASSOC_MESSAGE => Some(folder.with_kind(NidType::ASSOC_CONTENTS_TABLE)),
        _ => None,
    }
}

/// A table that is missing or damaged says nothing; a storage that fails does.
fn nothing_if_damaged<T: Default>(result: Result<T>) -> Result<T> {
    match result {
        Err(PstError::Io { offset, source }) => Err(PstError::Io { offset, source }),
        other => Ok(other.unwrap_or_default()),
    }
}

fn said(bytes: Vec<u8>) -> Option<PropBag> {
    let says = bytes.iter().any(|b| *b != 0);
    says.then(|| PropBag::from_iter([PropValue::new(STATUS, bytes)]))
}

/// [`Record::cells_hash`](crate::canonical::Record::cells_hash) of a status cell's bytes.
pub(crate) fn status_hash(bytes: Option<Vec<u8>>) -> Result<u64> {
    match bytes.and_then(said) {
        Some(cells) => Ok(cells_hash(&canon_cells(&cells)?)),
        None => Ok(0),
    }
}

impl Pst {
    /// The cells of a message's row that are content ([`crate::derived::is_content_cell`]) and say
    /// something; none for a message outside any folder.
    ///
    /// # Errors
    /// If the storage fails. A contents table that is missing or damaged says nothing.
    pub fn cells(&self, nid: Nid) -> Result<PropBag> {
        match self.ndb().node(nid)? {
            Some(entry) => self.cells_in(nid, entry.nid_parent),
            None => Ok(PropBag::new()),
        }
    }

    /// The same for a message that is known to lie in a folder.
    pub(crate) fn cells_in(&self, nid: Nid, folder: Nid) -> Result<PropBag> {
        let Some(table) = table_of(nid, folder) else {
            return Ok(PropBag::new());
        };
        let lock = || {
            self.row_status
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let few = match lock().entry(table).or_insert(TableCells::Asked(0)) {
            TableCells::Read(cells) => return Ok(cells.get(&nid).cloned().unwrap_or_default()),
            TableCells::Asked(n) => {
                *n += 1;
                *n <= FEW
            }
        };
        let Some(entry) = self.ndb().node(table)? else {
            return Ok(PropBag::new());
        };
        if few {
            return nothing_if_damaged(self.look_up(&entry, nid));
        }
        let cells = Arc::new(self.read_column(&entry)?);
        let found = cells.get(&nid).cloned().unwrap_or_default();
        lock().insert(table, TableCells::Read(cells));
        Ok(found)
    }

    /// [`Record::cells_hash`](crate::canonical::Record::cells_hash) of a message that lies in a folder, or
    /// more where the message says the same itself.
    pub(crate) fn cells_hash(&self, nid: Nid, folder: Nid) -> Result<u64> {
        Ok(cells_hash(&canon_cells(&self.cells_in(nid, folder)?)?))
    }

    fn look_up(&self, table: &NbtEntry, nid: Nid) -> Result<PropBag> {
        if table.bid_data.is_none() {
            return Ok(PropBag::new());
        }
        let lookup = TableLookup::open(self.ndb(), table.bid_data, table.bid_sub)?;
        let cell = lookup.inline_cell(nid.0, STATUS)?;
        Ok(cell.and_then(said).unwrap_or_default())
    }

    /// The cells that say something in one contents table, by message.
    pub(crate) fn read_column(&self, table: &NbtEntry) -> Result<BTreeMap<Nid, PropBag>> {
        let mut out = BTreeMap::new();
        let open = || TableContext::open(self.ndb(), table.bid_data, table.bid_sub).map(Some);
        let Some(context) = nothing_if_damaged(open())? else {
            return Ok(out);
        };
        for cell in context.inline_column(STATUS) {
            if let Some((id, bytes)) = nothing_if_damaged(cell.map(Some))?
                && let Some(cells) = said(bytes)
            {
                out.insert(Nid(id), cells);
            }
        }
        Ok(out)
    }
}
