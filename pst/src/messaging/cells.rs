//! What the rows of contents tables say that the messages themselves do not.
//!
//! [`crate::derived::is_content_cell`] is the rule. A folder's tables are read once, one column of
//! them, and only cells that say something are kept: in almost every file those are few.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::read::Pst;
use super::tags;
use crate::canonical::{canon_cells, cells_hash};
use crate::ltp::{PropBag, PropTag, PropType, PropValue, TableContext};
use crate::{Nid, NidType, PstError, Result};

/// The cells of the messages of one folder; messages without any are absent.
pub(super) type FolderCells = BTreeMap<Nid, PropBag>;

/// PidTagMessageStatus, the one column that is content.
const STATUS: PropTag = PropTag::new(tags::MESSAGE_STATUS, PropType::I32);

impl Pst {
    /// The cells of a message's row that are content ([`crate::derived::is_content_cell`]) and say
    /// something; none for a message outside any folder.
    ///
    /// # Errors
    /// If the file cannot be read. A contents table that is missing or damaged says nothing.
    pub fn cells(&self, nid: Nid) -> Result<PropBag> {
        match self.ndb().node(nid)? {
            Some(entry) => self.cells_in(nid, entry.nid_parent),
            None => Ok(PropBag::new()),
        }
    }

    /// [`Record::cells_hash`](crate::canonical::Record::cells_hash) of what lies in a folder.
    pub(crate) fn cells_hash(&self, nid: Nid, folder: Nid) -> Result<u64> {
        Ok(cells_hash(&canon_cells(&self.cells_in(nid, folder)?)?))
    }

    fn cells_in(&self, nid: Nid, folder: Nid) -> Result<PropBag> {
        let listed = matches!(nid.kind(), NidType::NORMAL_MESSAGE | NidType::ASSOC_MESSAGE);
        if !listed || folder.kind() != NidType::NORMAL_FOLDER {
            return Ok(PropBag::new());
        }
        let known = |pst: &Self| {
            let cells = pst.cells.lock().unwrap_or_else(PoisonError::into_inner);
            cells.get(&folder).map(Arc::clone)
        };
        let cells = match known(self) {
            Some(cells) => cells,
            None => {
                let read = Arc::new(self.read_cells(folder)?);
                let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
                cells.insert(folder, Arc::clone(&read));
                read
            }
        };
        Ok(cells.get(&nid).cloned().unwrap_or_default())
    }

    fn read_cells(&self, folder: Nid) -> Result<FolderCells> {
        let mut out = FolderCells::new();
        for kind in [NidType::CONTENTS_TABLE, NidType::ASSOC_CONTENTS_TABLE] {
            let Some(entry) = self.ndb().node(folder.with_kind(kind))? else {
                continue;
            };
            let table = match TableContext::open(self.ndb(), entry.bid_data, entry.bid_sub) {
                Ok(table) => table,
                Err(PstError::Io { offset, source }) => {
                    return Err(PstError::Io { offset, source });
                }
                Err(_) => continue,
            };
            for cell in table.inline_column(STATUS) {
                match cell {
                    Ok((id, bytes)) if bytes.iter().any(|b| *b != 0) => {
                        out.entry(Nid(id))
                            .or_default()
                            .insert(PropValue::new(STATUS, bytes));
                    }
                    Err(PstError::Io { offset, source }) => {
                        return Err(PstError::Io { offset, source });
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(out)
    }
}
