//! Setting what only a message's row in its folder's contents table says.

use super::super::read::not_found;
use super::Transaction;
use super::messages::table_of;
use crate::derived::is_content_cell;
use crate::ltp::{PropBag, PropTag, PropType, PropValue, PropertyContext};
use crate::messaging::tags;
use crate::{Nid, PstError, Result};

impl Transaction {
    /// Gives a message's row exactly these content cells ([`crate::derived::is_content_cell`]); others
    /// in `cells` are ignored. Cells of other kinds stay as they are.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such message in a folder; [`PstError::Refused`] if the
    /// folder's table has no column for a cell.
    pub fn set_cells(&mut self, nid: Nid, cells: &PropBag) -> Result<()> {
        let entry = self.node(nid)?.ok_or_else(|| not_found("message", nid))?;
        let folder = entry.nid_parent;
        self.require_folder(folder)?;
        let mut kept: PropBag = self
            .table_only_cells(folder, nid)?
            .into_iter()
            .filter(|v| !is_content_cell(v.tag.0))
            .collect();
        let columns = self.columns(table_of(folder, nid))?;
        let status = PropTag::new(tags::MESSAGE_STATUS, PropType::I32);
        if columns.contains(&status) {
            kept.insert(PropValue::i32(tags::MESSAGE_STATUS, 0));
        }
        for cell in cells.iter().filter(|v| is_content_cell(v.tag.0)) {
            if !columns.contains(&cell.tag) {
                return Err(PstError::Refused(format!(
                    "the contents table of folder {folder} has no column {:#010x}",
                    cell.tag.0
                )));
            }
            kept.insert(cell.clone());
        }
        let ndb = if self.written.contains(&nid) {
            self.ndb.view()?
        } else {
            self.base.clone()
        };
        let mut props = PropertyContext::open(&ndb, entry.bid_data, entry.bid_sub)?.bag()?;
        if kept.i32(tags::MESSAGE_STATUS).is_some_and(|n| n != 0) {
            props.remove(tags::MESSAGE_STATUS);
        }
        self.set_row(folder, nid, &props, &kept)
    }
}
