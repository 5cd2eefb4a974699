//! The messaging-level transaction: edits of folders, messages and raw nodes that keep everything
//! that depends on them right ([MS-PST] 2.6.3).
//!
//! Nodes are written as the calls come; table rows, counts, the name map and the search queue are
//! gathered and written once, in NID order, when the transaction finishes. The result is a pure
//! function of the base file and the calls: no clock, no randomness. Nothing touches the file
//! before the caller commits the write set; dropping the transaction forgets it.

mod cells;
mod delete;
mod finish;
mod folders;
mod messages;
mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use storage::{ReadAt, WriteSet};

use super::build::{Builder, OldMessage};
use super::read::{Index, MessageData, Pst, not_found};
use super::schema;
use super::search::{self, Change};
use super::tags;
use crate::ltp::{NameMap, NameMapEdit, PropBag, PropName, PropTag, TableContext};
use crate::ndb::{EditOptions, NbtEntry, Ndb, NdbTransaction, NodeContent};
use crate::{Nid, NidType, PstError, Result};

/// Row edits of one table: `Some` cells to set, `None` to delete the row.
type Rows = BTreeMap<u32, Option<PropBag>>;

/// What the transaction gathered for one folder.
#[derive(Default)]
struct Pending {
    /// Whether the folder is new: its three tables do not exist yet.
    created: bool,
    /// New properties, without counts; `None` if they stay.
    props: Option<PropBag>,
    /// Edits of the contents table.
    contents: Rows,
    /// Edits of the associated contents table.
    associated: Rows,
    /// Sub-folders that came (true) or went (false).
    children: BTreeMap<Nid, bool>,
    /// Sub-folders whose row must be made anew from their properties.
    stale_rows: BTreeSet<Nid>,
}

/// An edit of a PST in progress.
pub struct Transaction {
    base: Arc<Ndb>,
    pst: Pst,
    ndb: NdbTransaction,
    names: NameMapEdit,
    folders: BTreeMap<Nid, Pending>,
    /// Nodes whose content was written in this transaction.
    written: BTreeSet<Nid>,
    /// Nodes that were written or moved as raw nodes.
    raw: BTreeSet<Nid>,
    /// Objects that were created, moved or deleted: where they are now.
    placed: BTreeMap<Nid, Option<Nid>>,
    columns: BTreeMap<Nid, Arc<Vec<PropTag>>>,
    /// The properties of folders as this transaction last wrote them.
    bags: BTreeMap<Nid, PropBag>,
    domain: BTreeSet<u32>,
    changes: Vec<Change>,
}

impl Transaction {
    /// Begins a transaction on a PST.
    ///
    /// # Errors
    /// If the file cannot be read, or cannot be written safely ([`NdbTransaction::begin`]).
    pub fn begin(storage: Arc<dyn ReadAt>) -> Result<Self> {
        Self::begin_with(storage, &EditOptions::default())
    }

    /// As [`Transaction::begin`], with options: where large values wait, how large the file may grow.
    ///
    /// # Errors
    /// As [`Transaction::begin`].
    pub fn begin_with(storage: Arc<dyn ReadAt>, options: &EditOptions) -> Result<Self> {
        Self::on_with(Arc::new(Ndb::open(storage)?), options)
    }

    /// Begins a transaction on an open node database. Values that were read from this very `ndb`
    /// are shared, not copied, when they are written back.
    ///
    /// # Errors
    /// As [`Transaction::begin`].
    pub fn on(base: Arc<Ndb>) -> Result<Self> {
        Self::on_with(base, &EditOptions::default())
    }

    /// As [`Transaction::on`], with options.
    ///
    /// # Errors
    /// As [`Transaction::begin`].
    pub fn on_with(base: Arc<Ndb>, options: &EditOptions) -> Result<Self> {
        let pst = Pst::from_ndb(Arc::clone(&base))?;
        let ndb = NdbTransaction::begin_with(Arc::clone(&base), options)?;
        let names = NameMapEdit::open(&base)?;
        let domain = match base.node(Nid::SEARCH_DOMAIN_OBJECT)? {
            Some(entry) if !entry.bid_data.is_none() => search::parse_domain(
                &base
                    .data(entry.bid_data)?
                    .read_all(&base, MAX_SEARCH_NODE)?,
            ),
            _ => BTreeSet::new(),
        };
        Ok(Self {
            base,
            pst,
            ndb,
            names,
            folders: BTreeMap::new(),
            written: BTreeSet::new(),
            raw: BTreeSet::new(),
            placed: BTreeMap::new(),
            columns: BTreeMap::new(),
            bags: BTreeMap::new(),
            domain,
            changes: Vec::new(),
        })
    }

    /// The state before the transaction.
    #[must_use]
    pub const fn base(&self) -> &Pst {
        &self.pst
    }

    /// The id of a named property in this file; a new one if the file does not know it yet. Ids are
    /// never taken back ([MS-PST] 2.6.3.4.3).
    ///
    /// # Errors
    /// If the name cannot be stored, or no id is left.
    pub fn named_id(&mut self, name: &PropName) -> Result<u16> {
        self.names.id(name)
    }

    /// The file's named properties, with those that this transaction added.
    #[must_use]
    pub const fn names(&self) -> &NameMap {
        self.names.map()
    }

    /// Hands out a fresh NID of the given type (rgnid, [MS-PST] 2.2.2.6).
    ///
    /// # Errors
    /// If the type has no NID left.
    pub fn alloc_nid(&mut self, kind: NidType) -> Result<Nid> {
        self.ndb.alloc_nid(kind)
    }

    /// The folder that the store names as the top of the user's folders (PidTagIpmSubTreeEntryId).
    ///
    /// # Errors
    /// [`PstError::NotFound`] if the store names none that exists.
    pub fn ipm_subtree(&self) -> Result<Nid> {
        self.pst.ipm_subtree()
    }

    /// The node as it is now, uncommitted edits included.
    ///
    /// # Errors
    /// If the node B-tree cannot be read.
    pub fn node(&self, nid: Nid) -> Result<Option<NbtEntry>> {
        self.ndb.node(nid)
    }

    /// Writes what was gathered and ends the transaction. The write set takes the file from before
    /// to after; its phases must be made durable in order (DESIGN R8).
    ///
    /// # Errors
    /// If a table or property context that must change cannot be read; a limit.
    pub fn finish(mut self) -> Result<WriteSet> {
        self.check_raw()?;
        self.write_gathered()?;
        self.ndb.finish()
    }

    fn require(&self, nid: Nid, kind: NidType, what: &'static str) -> Result<NbtEntry> {
        if nid.kind() != kind {
            return Err(not_found(what, nid));
        }
        self.ndb.node(nid)?.ok_or_else(|| not_found(what, nid))
    }

    fn require_folder(&self, nid: Nid) -> Result<NbtEntry> {
        self.require(nid, NidType::NORMAL_FOLDER, "folder")
    }

    fn pending(&mut self, folder: Nid) -> &mut Pending {
        self.folders.entry(folder).or_default()
    }

    /// A NID for a new object: the given one, if it is of the right type and free.
    fn take_nid(&mut self, given: Option<Nid>, kind: NidType) -> Result<Nid> {
        let Some(nid) = given else {
            return self.ndb.alloc_nid(kind);
        };
        if nid.kind() != kind || nid.index() == 0 {
            return Err(PstError::Refused(format!(
                "NID {nid} is not of type {:#x}",
                kind.0
            )));
        }
        if self.ndb.node(nid)?.is_some() {
            return Err(PstError::Refused(format!("NID {nid} is taken")));
        }
        Ok(nid)
    }

    /// The columns of one of a folder's tables; of the template where the table is still to be made.
    fn columns(&mut self, table: Nid) -> Result<Arc<Vec<PropTag>>> {
        if let Some(columns) = self.columns.get(&table) {
            return Ok(Arc::clone(columns));
        }
        let columns = match self.base.node(table)? {
            Some(entry) => column_tags(&self.base, &entry)?,
            None => self.template(schema::template_of(table.kind()))?,
        };
        let columns = Arc::new(columns);
        self.columns.insert(table, Arc::clone(&columns));
        Ok(columns)
    }

    /// The columns of a template table of this file, or the ones [MS-PST] asks for.
    fn template(&self, template: Nid) -> Result<Vec<PropTag>> {
        match self.base.node(template)? {
            Some(entry) => column_tags(&self.base, &entry),
            None => Ok(schema::columns(template).to_vec()),
        }
    }

    fn build_message(
        &mut self,
        message: &MessageData,
        old: Option<&OldMessage>,
    ) -> Result<NodeContent> {
        let recipient_columns = self.template(Nid::RECIPIENT_TABLE)?;
        let attachment_columns = self.template(Nid::ATTACHMENT_TABLE)?;
        let mut builder = Builder {
            base: &self.base,
            names: self.pst.names(),
            recipient_columns: &recipient_columns,
            attachment_columns: &attachment_columns,
            nids: &mut self.ndb,
        };
        builder.message(message, old)
    }

    fn base_index(&self) -> Result<Arc<Index>> {
        self.pst.index()
    }
}

/// Longest search queue or domain that is read, in bytes.
const MAX_SEARCH_NODE: u64 = 64 << 20;

fn column_tags(ndb: &Arc<Ndb>, entry: &NbtEntry) -> Result<Vec<PropTag>> {
    let table = TableContext::open(ndb, entry.bid_data, entry.bid_sub)?;
    Ok(table.columns().iter().map(|c| c.tag).collect())
}

/// A folder's properties without its counts and without what is derived.
fn without_counts(props: &PropBag) -> PropBag {
    props
        .iter()
        .filter(|v| !crate::derived::is_folder_count(v.tag.id()))
        .filter(|v| !matches!(v.tag.id(), tags::LTP_ROW_ID | tags::LTP_ROW_VER))
        .cloned()
        .collect()
}
