//! Adding, updating, moving and deleting messages ([MS-PST] 2.6.3.2.6 to 2.6.3.2.10).

use super::super::build::{OldMessage, normalised};
use super::super::read::{MessageData, not_found, read_message};
use super::super::row_cells::cells;
use super::super::schema::is_table_only;
use super::super::search::Change;
use super::super::tags;
use super::Transaction;
use crate::ltp::{PropBag, PropertyContext, TableContext};
use crate::ndb::NbtEntry;
use crate::{Bid, Nid, NidType, PstError, Result};

impl Transaction {
    /// Adds a message to a folder; `nid` is taken if given and free. `associated` messages are
    /// hidden ones (FAI): rules, views, settings.
    ///
    /// # Errors
    /// [`crate::PstError::NotFound`] if there is no such folder; [`crate::PstError::Refused`] if `nid` is
    /// taken or of the wrong type; a limit; a value that cannot be read from its source.
    pub fn add_message(
        &mut self,
        folder: Nid,
        nid: Option<Nid>,
        message: &MessageData,
        associated: bool,
    ) -> Result<Nid> {
        self.require_folder(folder)?;
        let kind = if associated {
            NidType::ASSOC_MESSAGE
        } else {
            NidType::NORMAL_MESSAGE
        };
        let content = self.build_message(message, None)?;
        let nid = self.take_nid(nid, kind)?;
        self.ndb.put_node(nid, folder, &content)?;
        self.written.insert(nid);
        self.placed.insert(nid, Some(folder));
        self.set_row(folder, nid, &normalised(message), &PropBag::new())?;
        self.changes.push(Change::MessageAdded {
            folder,
            message: nid,
        });
        Ok(nid)
    }

    /// Replaces a message's properties, recipients and attachments. What did not change and is
    /// large shares the blocks of the old version.
    ///
    /// # Errors
    /// [`crate::PstError::NotFound`] if there is no such message; else as [`Transaction::add_message`].
    pub fn update_message(&mut self, nid: Nid, message: &MessageData) -> Result<()> {
        let entry = self.require_message(nid)?;
        let folder = entry.nid_parent;
        let old = if self.written.contains(&nid) {
            None
        } else {
            self.old_message(&entry)?
        };
        let content = self.build_message(message, old.as_ref())?;
        self.ndb.put_node(nid, folder, &content)?;
        self.written.insert(nid);
        let kept = self.table_only_cells(folder, nid)?;
        self.set_row(folder, nid, &normalised(message), &kept)?;
        self.changes.push(Change::MessageChanged {
            folder,
            message: nid,
        });
        Ok(())
    }

    /// Moves a message to another folder.
    ///
    /// # Errors
    /// [`crate::PstError::NotFound`] if there is no such message or folder.
    pub fn move_message(&mut self, nid: Nid, folder: Nid) -> Result<()> {
        let entry = self.require_message(nid)?;
        self.require_folder(folder)?;
        let from = entry.nid_parent;
        if from == folder {
            return Ok(());
        }
        let kept = self.table_only_cells(from, nid)?;
        let props = if self.written.contains(&nid) {
            let view = self.ndb.view()?;
            PropertyContext::open(&view, entry.bid_data, entry.bid_sub)?.bag()?
        } else {
            PropertyContext::open(&self.base, entry.bid_data, entry.bid_sub)?.bag()?
        };
        self.set_row(folder, nid, &props, &kept)?;
        self.drop_row(from, nid);
        self.ndb.set_parent(nid, folder)?;
        self.placed.insert(nid, Some(folder));
        self.changes.push(Change::MessageMoved {
            from,
            to: folder,
            message: nid,
        });
        Ok(())
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// [`crate::PstError::NotFound`] if there is no such message.
    pub fn delete_message(&mut self, nid: Nid) -> Result<()> {
        let folder = self.require_message(nid)?.nid_parent;
        self.ndb.delete_node(nid)?;
        self.written.remove(&nid);
        self.placed.insert(nid, None);
        self.drop_row(folder, nid);
        self.changes.push(Change::MessageDeleted {
            folder,
            message: nid,
        });
        Ok(())
    }

    fn require_message(&self, nid: Nid) -> Result<NbtEntry> {
        let kind = nid.kind();
        if kind != NidType::NORMAL_MESSAGE && kind != NidType::ASSOC_MESSAGE {
            return Err(not_found("message", nid));
        }
        let entry = self.require(nid, kind, "message")?;
        // A message outside any folder is a raw node: it has no row and no counts.
        self.require_folder(entry.nid_parent).map_err(|e| match e {
            PstError::NotFound { .. } => not_found("message in a folder", nid),
            // What cannot be read is not absent.
            other => other,
        })?;
        Ok(entry)
    }

    /// The version of a message in the base file. A damaged one is no obstacle to replacing it.
    fn old_message(&self, entry: &NbtEntry) -> Result<Option<OldMessage>> {
        let data = unless_damaged(read_message(&self.base, entry.bid_data, entry.bid_sub))?;
        let attachments = unless_damaged(self.attachment_bids(entry))?.unwrap_or_default();
        Ok(data.map(|data| OldMessage { data, attachments }))
    }

    fn attachment_bids(&self, entry: &NbtEntry) -> Result<Vec<Option<(Bid, Bid)>>> {
        if entry.bid_sub.is_none() {
            return Ok(Vec::new());
        }
        let subnodes = self.base.subnodes(entry.bid_sub)?;
        let Some(table) = subnodes.get(&Nid::ATTACHMENT_TABLE) else {
            return Ok(Vec::new());
        };
        let table = TableContext::open(&self.base, table.bid_data, table.bid_sub)?;
        let bids = |id: u32| subnodes.get(&Nid(id)).map(|s| (s.bid_data, s.bid_sub));
        Ok(table.row_ids().map(bids).collect())
    }

    pub(super) fn set_row(
        &mut self,
        folder: Nid,
        nid: Nid,
        props: &PropBag,
        kept: &PropBag,
    ) -> Result<()> {
        let columns = self.columns(table_of(folder, nid))?;
        let mut row = cells(kept, &columns);
        let status = row.get(tags::MESSAGE_STATUS).cloned();
        row.extend(cells(props, &columns));
        // The row's status is its own; a message that carries none, or 0, does not take it back.
        if let Some(status) = status
            && row.i32(tags::MESSAGE_STATUS).is_none_or(|n| n == 0)
        {
            row.insert(status);
        }
        self.rows(folder, nid).insert(nid.0, Some(row));
        Ok(())
    }

    fn drop_row(&mut self, folder: Nid, nid: Nid) {
        self.rows(folder, nid).insert(nid.0, None);
    }

    fn rows(&mut self, folder: Nid, nid: Nid) -> &mut super::Rows {
        let pending = self.pending(folder);
        if nid.kind() == NidType::ASSOC_MESSAGE {
            &mut pending.associated
        } else {
            &mut pending.contents
        }
    }

    /// The cells of a message's row that exist in the table only ([MS-PST] 2.5.3.1: SPGET_TABLE_ONLY,
    /// SPGET_MSGSTATUS): a new version of the message does not have them, so they stay.
    pub(super) fn table_only_cells(&mut self, folder: Nid, nid: Nid) -> Result<PropBag> {
        let keep = |props: &PropBag| -> PropBag {
            props
                .iter()
                .filter(|v| is_table_only(v.tag.id()))
                .cloned()
                .collect()
        };
        if let Some(Some(row)) = self.rows(folder, nid).get(&nid.0) {
            return Ok(keep(row));
        }
        let row = match self.lookup(table_of(folder, nid))? {
            Some(lookup) => lookup.row_by_id(nid.0)?,
            None => None,
        };
        Ok(row.map(|row| keep(&row.props)).unwrap_or_default())
    }
}

/// Nothing for what is damaged. What cannot be read now is an error: the edit would come out otherwise.
fn unless_damaged<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e @ PstError::Io { .. }) => Err(e),
        Err(_) => Ok(None),
    }
}

/// The table of `folder` that lists message `nid`.
pub(super) const fn table_of(folder: Nid, nid: Nid) -> Nid {
    if nid.kind().0 == NidType::ASSOC_MESSAGE.0 {
        folder.with_kind(NidType::ASSOC_CONTENTS_TABLE)
    } else {
        folder.with_kind(NidType::CONTENTS_TABLE)
    }
}
