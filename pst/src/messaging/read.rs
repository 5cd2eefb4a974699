//! Reading ([MS-PST] 2.4.3 to 2.4.6): [`Pst`], its one-pass index of objects, and folders and messages
//! as property bags.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use storage::ReadAt;

use super::row_cells::code_page;
use super::tags;
use crate::derived::{ObjectKind, is_derived_node};
use crate::ltp::{
    CodePage, NameMap, NodeSource, PropBag, PropValue, PropertyContext, TableContext, ValueData,
};
use crate::ndb::{NbtEntry, Ndb};
use crate::{Bid, Nid, NidType, PstError, Result};

/// How deep messages may be embedded in messages.
pub const MAX_EMBED_DEPTH: usize = 32;
/// How many recipients, attachments and embedded messages one message may have over all its levels.
/// Subnode trees are shared by reference: without this bound a small file could unfold into an
/// endless message.
pub const MAX_MESSAGE_PARTS: usize = 1 << 20;

/// How many messages are asked for their code page.
const PAGE_SAMPLE: usize = 64;

/// An open PST. Cheap to share: all reading is through `&self`.
pub struct Pst {
    ndb: Arc<Ndb>,
    names: NameMap,
    index: OnceLock<Arc<Index>>,
    page: OnceLock<Option<CodePage>>,
}

/// A folder as the node B-tree knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderEntry {
    /// The folder's NID.
    pub nid: Nid,
    /// Its parent; the root folder is its own.
    pub parent: Nid,
    /// The node.
    pub entry: NbtEntry,
}

/// A message as the node B-tree knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageEntry {
    /// The message's NID.
    pub nid: Nid,
    /// Whether it is an associated (FAI) message.
    pub associated: bool,
    /// The node; its parent is the folder.
    pub entry: NbtEntry,
}

/// The objects of a file, from one pass over its node B-tree. The B-tree's parent links decide what
/// belongs where ([MS-PST] 2.4.4.1.2, 2.4.5.2): tables are copies and may lag behind.
#[derive(Debug, Default)]
pub struct Index {
    /// Folders reachable from the root folder, in NID order.
    pub folders: BTreeMap<Nid, FolderEntry>,
    /// The sub-folders of each of them, in NID order.
    pub children: BTreeMap<Nid, Vec<Nid>>,
    /// The messages in each of them, in NID order.
    pub messages: BTreeMap<Nid, Vec<MessageEntry>>,
    /// All other nodes that are not derived.
    pub raw: BTreeMap<Nid, NbtEntry>,
}

/// A folder's own properties.
#[derive(Clone, Debug)]
pub struct FolderData {
    /// Properties of the folder's property context, counts included.
    pub props: PropBag,
    /// The parent folder; the root folder is its own.
    pub parent: Nid,
}

/// A message with everything it holds.
#[derive(Clone, Debug, Default)]
pub struct MessageData {
    /// Properties of the message.
    pub props: PropBag,
    /// Rows of the recipient table, in its order.
    pub recipients: Vec<PropBag>,
    /// Attachments, in the order of the attachment table.
    pub attachments: Vec<AttachmentData>,
}

/// An attachment.
#[derive(Clone, Debug, Default)]
pub struct AttachmentData {
    /// Properties of the attachment; for an embedded message without PidTagAttachDataObject.
    pub props: PropBag,
    /// The embedded message, where the attachment is one.
    pub embedded: Option<Box<MessageData>>,
}

impl Pst {
    /// Opens a PST for reading.
    ///
    /// # Errors
    /// If the header, the B-trees or the name-to-id map are damaged or of an unsupported format.
    pub fn open(storage: Arc<dyn ReadAt>) -> Result<Self> {
        Self::from_ndb(Arc::new(Ndb::open(storage)?))
    }

    /// The messaging view of an open node database.
    ///
    /// # Errors
    /// If the name-to-id map is damaged.
    pub fn from_ndb(ndb: Arc<Ndb>) -> Result<Self> {
        let names = NameMap::read(&ndb)?;
        Ok(Self {
            ndb,
            names,
            index: OnceLock::new(),
            page: OnceLock::new(),
        })
    }

    /// The node database below.
    #[must_use]
    pub const fn ndb(&self) -> &Arc<Ndb> {
        &self.ndb
    }

    /// The file's named properties ([MS-PST] 2.4.7).
    #[must_use]
    pub const fn names(&self) -> &NameMap {
        &self.names
    }

    /// The objects of the file; built at the first call, kept after.
    ///
    /// # Errors
    /// If the node B-tree cannot be walked.
    pub fn index(&self) -> Result<Arc<Index>> {
        if let Some(index) = self.index.get() {
            return Ok(index.clone());
        }
        let index = Arc::new(Index::read(&self.ndb)?);
        Ok(self.index.get_or_init(|| index).clone())
    }

    /// The code page in which to read 8-bit text that names none itself, as names of folders: what the
    /// first messages that name one agree on. `None` where none does; no file says it of itself.
    ///
    /// # Errors
    /// If the node B-tree cannot be walked.
    pub fn code_page(&self) -> Result<Option<CodePage>> {
        if let Some(page) = self.page.get() {
            return Ok(*page);
        }
        let index = self.index()?;
        let mut pages: BTreeMap<u32, usize> = BTreeMap::new();
        for entry in index.messages.values().flatten().take(PAGE_SAMPLE) {
            let found = PropertyContext::open(&self.ndb, entry.entry.bid_data, entry.entry.bid_sub)
                .and_then(|pc| {
                    let mut props = PropBag::new();
                    for id in [tags::MESSAGE_CODEPAGE, tags::INTERNET_CODEPAGE] {
                        props.extend(pc.get(id)?);
                    }
                    Ok(code_page(&props))
                });
            match found {
                Ok(Some(page)) => *pages.entry(page.0).or_default() += 1,
                Ok(None) | Err(PstError::Corrupt { .. } | PstError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        // Of equally frequent ones the smallest number, so that the answer is always the same.
        let most = pages.into_iter().rev().max_by_key(|(_, n)| *n);
        Ok(*self
            .page
            .get_or_init(|| most.map(|(page, _)| CodePage(page))))
    }

    /// Properties of the message store ([MS-PST] 2.4.3).
    ///
    /// # Errors
    /// If the store node is missing or damaged.
    pub fn store(&self) -> Result<PropBag> {
        let entry = self.entry(Nid::MESSAGE_STORE, "message store")?;
        self.bag(&entry)
    }

    /// The folders reachable from the root folder, in NID order.
    ///
    /// # Errors
    /// If the node B-tree cannot be walked.
    pub fn folders(&self) -> Result<Vec<FolderEntry>> {
        Ok(self.index()?.folders.values().cloned().collect())
    }

    /// The messages (normal and associated) in a folder, in NID order.
    ///
    /// # Errors
    /// If the node B-tree cannot be walked, or the folder does not exist.
    pub fn messages_of(&self, folder: Nid) -> Result<Vec<MessageEntry>> {
        let index = self.index()?;
        if !index.folders.contains_key(&folder) {
            return Err(not_found("folder", folder));
        }
        Ok(index.messages.get(&folder).cloned().unwrap_or_default())
    }

    /// A folder's properties.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such folder; else if it is damaged.
    pub fn folder(&self, nid: Nid) -> Result<FolderData> {
        if nid.kind() != NidType::NORMAL_FOLDER {
            return Err(not_found("folder", nid));
        }
        let entry = self.entry(nid, "folder")?;
        Ok(FolderData {
            props: self.bag(&entry)?,
            parent: entry.nid_parent,
        })
    }

    /// A message with its recipients and attachments. Large values stay in the file and are streamed.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such message; else if it is damaged or exceeds a bound.
    pub fn message(&self, nid: Nid) -> Result<MessageData> {
        if !matches!(nid.kind(), NidType::NORMAL_MESSAGE | NidType::ASSOC_MESSAGE) {
            return Err(not_found("message", nid));
        }
        let entry = self.entry(nid, "message")?;
        read_message(&self.ndb, entry.bid_data, entry.bid_sub)
    }

    /// The folder that the store names as the top of the user's folders (PidTagIpmSubTreeEntryId,
    /// [MS-PST] 2.4.3.1).
    ///
    /// # Errors
    /// [`PstError::NotFound`] if the store names none that exists.
    pub fn ipm_subtree(&self) -> Result<Nid> {
        let store = self.store()?;
        // An EntryID is 4 bytes of flags, the store's 16-byte UID, and the NID (2.4.3.2).
        let nid = store
            .get(tags::IPM_SUBTREE)
            .and_then(|v| v.as_bytes()?.get(20..24)?.try_into().ok())
            .map(|b| Nid(u32::from_le_bytes(b)));
        match nid {
            Some(nid) if nid.kind() == NidType::NORMAL_FOLDER && self.ndb.node(nid)?.is_some() => {
                Ok(nid)
            }
            _ => Err(PstError::NotFound {
                what: "top folder of the store",
                id: format!("{nid:?}"),
            }),
        }
    }

    fn entry(&self, nid: Nid, what: &'static str) -> Result<NbtEntry> {
        self.ndb.node(nid)?.ok_or_else(|| not_found(what, nid))
    }

    fn bag(&self, entry: &NbtEntry) -> Result<PropBag> {
        PropertyContext::open(&self.ndb, entry.bid_data, entry.bid_sub)?.bag()
    }
}

impl Index {
    fn read(ndb: &Arc<Ndb>) -> Result<Self> {
        let mut folders: BTreeMap<Nid, NbtEntry> = BTreeMap::new();
        let mut messages = Vec::new();
        let mut index = Self::default();
        for entry in ndb.nodes() {
            let entry = entry?;
            match entry.nid.kind() {
                NidType::NORMAL_FOLDER => {
                    folders.insert(entry.nid, entry);
                }
                NidType::NORMAL_MESSAGE | NidType::ASSOC_MESSAGE => messages.push(entry),
                _ if is_derived_node(entry.nid) => {}
                _ => {
                    index.raw.insert(entry.nid, entry);
                }
            }
        }
        let mut children: BTreeMap<Nid, Vec<Nid>> = BTreeMap::new();
        for (nid, entry) in &folders {
            if *nid != Nid::ROOT_FOLDER {
                children.entry(entry.nid_parent).or_default().push(*nid);
            }
        }
        // Down from the root: what a parent cycle or a missing parent cuts off stays raw.
        let mut queue = vec![Nid::ROOT_FOLDER];
        let mut seen = BTreeSet::new();
        while let Some(nid) = queue.pop() {
            if let Some(entry) = folders.remove(&nid)
                && seen.insert(nid)
            {
                let parent = entry.nid_parent;
                index
                    .folders
                    .insert(nid, FolderEntry { nid, parent, entry });
                if let Some(list) = children.remove(&nid) {
                    queue.extend(list.iter().copied());
                    index.children.insert(nid, list);
                }
            }
        }
        index.raw.extend(folders);
        for entry in messages {
            if index.folders.contains_key(&entry.nid_parent) {
                let associated = entry.nid.kind() == NidType::ASSOC_MESSAGE;
                index
                    .messages
                    .entry(entry.nid_parent)
                    .or_default()
                    .push(MessageEntry {
                        nid: entry.nid,
                        associated,
                        entry,
                    });
            } else {
                index.raw.insert(entry.nid, entry);
            }
        }
        Ok(index)
    }

    /// What an object is; `None` if it is derived or does not exist.
    #[must_use]
    pub fn kind(&self, nid: Nid) -> Option<ObjectKind> {
        if self.folders.contains_key(&nid) {
            return Some(ObjectKind::Folder);
        }
        if self.raw.contains_key(&nid) {
            return Some(ObjectKind::Raw);
        }
        let found = self
            .messages
            .values()
            .any(|list| list.binary_search_by_key(&nid, |m| m.nid).is_ok());
        found.then_some(if nid.kind() == NidType::ASSOC_MESSAGE {
            ObjectKind::Associated
        } else {
            ObjectKind::Message
        })
    }
}

/// Reads a message from its node's two BIDs: a top-level one or an embedded one.
pub(crate) fn read_message(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<MessageData> {
    let mut budget = MAX_MESSAGE_PARTS;
    read_level(ndb, bid_data, bid_sub, 0, &mut budget)
}

fn spend(budget: &mut usize, n: usize) -> Result<()> {
    *budget = budget.checked_sub(n).ok_or(PstError::Limit {
        what: "parts of one message",
        found: n as u64,
        limit: MAX_MESSAGE_PARTS as u64,
    })?;
    Ok(())
}

fn read_level(
    ndb: &Arc<Ndb>,
    bid_data: Bid,
    bid_sub: Bid,
    depth: usize,
    budget: &mut usize,
) -> Result<MessageData> {
    if depth > MAX_EMBED_DEPTH {
        return Err(PstError::Limit {
            what: "depth of embedded messages",
            found: depth as u64,
            limit: MAX_EMBED_DEPTH as u64,
        });
    }
    spend(budget, 1)?;
    let mut message = MessageData {
        props: PropertyContext::open(ndb, bid_data, bid_sub)?.bag()?,
        ..MessageData::default()
    };
    if bid_sub.is_none() {
        return Ok(message);
    }
    let subnodes = ndb.subnodes(bid_sub)?;
    if let Some(table) = subnodes.get(&Nid::RECIPIENT_TABLE) {
        let table = TableContext::open(ndb, table.bid_data, table.bid_sub)?;
        spend(budget, table.row_count())?;
        // Kept together: bounded together.
        for row in table.all_rows()? {
            let mut props = row.props;
            drop_row_ids(&mut props);
            message.recipients.push(props);
        }
    }
    if let Some(table) = subnodes.get(&Nid::ATTACHMENT_TABLE) {
        let table = TableContext::open(ndb, table.bid_data, table.bid_sub)?;
        spend(budget, table.row_count())?;
        for row in table.all_rows()? {
            let attachment = match subnodes.get(&Nid(row.id)) {
                Some(sub) => read_attachment(ndb, sub.bid_data, sub.bid_sub, depth, budget)?,
                // A row without its subnode: all that is left of the attachment.
                None => {
                    let mut props = row.props;
                    drop_row_ids(&mut props);
                    AttachmentData {
                        props,
                        embedded: None,
                    }
                }
            };
            message.attachments.push(attachment);
        }
    }
    Ok(message)
}

fn drop_row_ids(props: &mut PropBag) {
    props.remove(tags::LTP_ROW_ID);
    props.remove(tags::LTP_ROW_VER);
}

fn read_attachment(
    ndb: &Arc<Ndb>,
    bid_data: Bid,
    bid_sub: Bid,
    depth: usize,
    budget: &mut usize,
) -> Result<AttachmentData> {
    let mut props = PropertyContext::open(ndb, bid_data, bid_sub)?.bag()?;
    let method = props.get(tags::ATTACH_METHOD).and_then(PropValue::as_i32);
    let object = props.get(tags::ATTACH_DATA).and_then(|v| match &v.data {
        ValueData::Object(object) => Some(object.clone()),
        _ => None,
    });
    let embedded = match object {
        Some(object)
            if method == Some(tags::METHOD_EMBEDDED)
                || object.nid.kind() == NidType::NORMAL_MESSAGE =>
        {
            match object.content {
                Some(NodeSource::Stored {
                    ndb,
                    bid_data,
                    bid_sub,
                }) => {
                    props.remove(tags::ATTACH_DATA);
                    Some(Box::new(read_level(
                        &ndb,
                        bid_data,
                        bid_sub,
                        depth + 1,
                        budget,
                    )?))
                }
                _ => None,
            }
        }
        _ => None,
    };
    Ok(AttachmentData { props, embedded })
}

pub(crate) fn not_found(what: &'static str, nid: Nid) -> PstError {
    PstError::NotFound {
        what,
        id: nid.to_string(),
    }
}
