//! Creating, updating and moving folders ([MS-PST] 2.6.3.2.1 to 2.6.3.2.5).

use super::super::read::not_found;
use super::super::search::Change;
use super::super::tags;
use super::{Transaction, without_counts};
use crate::ltp::{PropBag, PropValue, PropertyContext, build_pc};
use crate::{Nid, NidType, PstError, Result};

/// How deep folders may be nested.
const MAX_DEPTH: usize = 1000;

impl Transaction {
    /// Creates a folder with its three tables; `nid` is taken if given and free. Counts in `props`
    /// are ignored: they are kept by the engine.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such parent; [`PstError::Refused`] if `nid` is taken or of
    /// the wrong type.
    pub fn create_folder(&mut self, parent: Nid, nid: Option<Nid>, props: &PropBag) -> Result<Nid> {
        self.require_folder(parent)?;
        self.check_depth(parent)?;
        let nid = self.take_nid(nid, NidType::NORMAL_FOLDER)?;
        for kind in TABLES {
            if self.ndb.node(nid.with_kind(kind))?.is_some() {
                return Err(PstError::Refused(format!(
                    "folder {nid}: its table {} is taken",
                    nid.with_kind(kind)
                )));
            }
        }
        let props = without_counts(props);
        // Written now so that the NID is taken, and again with its counts when all is gathered.
        self.put_folder(nid, parent, with_zero_counts(&props))?;
        self.placed.insert(nid, Some(parent));
        self.linked = true;
        let pending = self.pending(nid);
        *pending = super::Pending {
            created: true,
            props: Some(props),
            ..super::Pending::default()
        };
        self.pending(parent).children.insert(nid, true);
        self.changes.push(Change::FolderAdded {
            parent,
            folder: nid,
        });
        Ok(nid)
    }

    /// Replaces a folder's properties; its counts stay what its contents make them.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such folder.
    pub fn update_folder(&mut self, nid: Nid, props: &PropBag) -> Result<()> {
        self.require_folder(nid)?;
        self.pending(nid).props = Some(without_counts(props));
        self.changes.push(Change::FolderChanged { folder: nid });
        Ok(())
    }

    /// Moves a folder, with all that is in it, under another parent.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if one of them does not exist; [`PstError::Refused`] for the root folder
    /// and for a parent inside the folder itself.
    pub fn move_folder(&mut self, nid: Nid, parent: Nid) -> Result<()> {
        let entry = self.require_folder(nid)?;
        self.require_folder(parent)?;
        if nid == Nid::ROOT_FOLDER {
            return Err(PstError::Refused("the root folder cannot be moved".into()));
        }
        let from = entry.nid_parent;
        if from == parent {
            return Ok(());
        }
        if self.ancestors(parent)?.contains(&nid) {
            return Err(PstError::Refused(format!(
                "folder {nid} cannot be moved into itself"
            )));
        }
        self.check_depth(parent)?;
        self.ndb.set_parent(nid, parent)?;
        self.placed.insert(nid, Some(parent));
        self.linked = true;
        self.pending(from).children.insert(nid, false);
        self.pending(from).stale_rows.remove(&nid);
        self.pending(parent).children.insert(nid, true);
        self.changes.push(Change::FolderMoved {
            from,
            to: parent,
            folder: nid,
        });
        Ok(())
    }

    /// A folder and its ancestors up to the root.
    pub(super) fn ancestors(&self, nid: Nid) -> Result<Vec<Nid>> {
        let mut out = vec![nid];
        let mut at = nid;
        while at != Nid::ROOT_FOLDER {
            at = self.require_folder(at)?.nid_parent;
            if out.contains(&at) {
                return Err(PstError::corrupt(
                    "nidParent",
                    0,
                    format!("folder {at} is its own ancestor"),
                ));
            }
            out.push(at);
        }
        Ok(out)
    }

    fn check_depth(&self, parent: Nid) -> Result<()> {
        let depth = self.ancestors(parent)?.len();
        if depth >= MAX_DEPTH {
            return Err(PstError::Limit {
                what: "folder depth",
                found: depth as u64,
                limit: MAX_DEPTH as u64,
            });
        }
        Ok(())
    }

    pub(super) fn put_folder(&mut self, nid: Nid, parent: Nid, props: PropBag) -> Result<()> {
        self.ndb
            .put_node(nid, parent, &build_pc(&props, Some(&self.base))?)?;
        self.written.insert(nid);
        self.bags.insert(nid, props);
        Ok(())
    }

    /// A folder's properties as they are now, with the counts last written.
    pub(super) fn folder_props(&mut self, nid: Nid) -> Result<PropBag> {
        if let Some(props) = self.bags.get(&nid) {
            return Ok(props.clone());
        }
        let entry = self
            .ndb
            .node(nid)?
            .ok_or_else(|| not_found("folder", nid))?;
        let ndb = if self.written.contains(&nid) {
            self.ndb.view()?
        } else {
            self.base.clone()
        };
        PropertyContext::open(&ndb, entry.bid_data, entry.bid_sub)?.bag()
    }
}

/// The tables that every folder has ([MS-PST] 2.4.4).
pub(super) const TABLES: [NidType; 3] = [
    NidType::HIERARCHY_TABLE,
    NidType::CONTENTS_TABLE,
    NidType::ASSOC_CONTENTS_TABLE,
];

/// The properties of an empty folder ([MS-PST] 2.4.4.1.1).
pub(super) fn with_zero_counts(props: &PropBag) -> PropBag {
    let mut props = props.clone();
    if props.get(tags::DISPLAY_NAME).is_none() {
        props.insert(PropValue::string(tags::DISPLAY_NAME, ""));
    }
    props.insert(PropValue::i32(tags::CONTENT_COUNT, 0));
    props.insert(PropValue::i32(tags::CONTENT_UNREAD, 0));
    props.insert(PropValue::bool(tags::SUBFOLDERS, false));
    props
}
