//! The folder tree, and a walk over all messages in memory that does not grow with their number.
//!
//! The parent links of the node B-tree decide what belongs where ([MS-PST] 2.4.4.1.2, 2.4.5.2); tables
//! are copies and may lag behind. The B-tree is in NID order, so the messages of a folder lie all
//! over it. [`Pst::each_message`] passes over it once for as many folders as fit into a bound: a
//! folder larger than that gets a pass of its own, and streams.

use std::collections::{BTreeMap, BTreeSet};

use super::read::{FolderEntry, MessageEntry, Pst};
use crate::derived::{ObjectKind, is_derived_node};
use crate::ndb::{NbtEntry, Ndb};
use crate::{Nid, NidType, Result};

/// Messages that are kept while a pass collects those of several folders: 3 MB of them.
const COLLECTED: u64 = 1 << 16;

/// A folder of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFolder {
    /// The folder, its parent and its node.
    pub folder: FolderEntry,
    /// Normal messages in it, counted in the node B-tree.
    pub messages: u64,
    /// Associated messages in it.
    pub associated: u64,
}

/// The folders of a file. Memory grows with their number (some 150 bytes each), not with that of the
/// messages.
#[derive(Clone, Debug, Default)]
pub struct FolderTree {
    /// Folders reachable from the root folder, by NID.
    pub folders: BTreeMap<Nid, TreeFolder>,
    /// The sub-folders of each of them, in NID order.
    pub children: BTreeMap<Nid, Vec<Nid>>,
}

/// A step of [`Pst::each_message`].
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// The messages of this folder follow.
    Folder(&'a TreeFolder),
    /// A message of the folder named last.
    Message(&'a MessageEntry),
}

impl FolderTree {
    /// Finds the folders that hang below the root folder; counts are left at zero.
    pub(crate) fn read(ndb: &Ndb) -> Result<Self> {
        let mut found: BTreeMap<Nid, NbtEntry> = BTreeMap::new();
        for entry in ndb.nodes() {
            let entry = entry?;
            if entry.nid.kind() == NidType::NORMAL_FOLDER {
                found.insert(entry.nid, entry);
            }
        }
        let mut children: BTreeMap<Nid, Vec<Nid>> = BTreeMap::new();
        for (nid, entry) in &found {
            if *nid != Nid::ROOT_FOLDER {
                children.entry(entry.nid_parent).or_default().push(*nid);
            }
        }
        // Down from the root: what a parent cycle or a missing parent cuts off is no folder.
        let mut tree = Self::default();
        let mut queue = vec![Nid::ROOT_FOLDER];
        let mut seen = BTreeSet::new();
        while let Some(nid) = queue.pop() {
            if let Some(entry) = found.remove(&nid)
                && seen.insert(nid)
            {
                let parent = entry.nid_parent;
                let folder = TreeFolder {
                    folder: FolderEntry { nid, parent, entry },
                    messages: 0,
                    associated: 0,
                };
                tree.folders.insert(nid, folder);
                if let Some(list) = children.remove(&nid) {
                    queue.extend(list.iter().copied());
                    tree.children.insert(nid, list);
                }
            }
        }
        Ok(tree)
    }

    fn count(&mut self, ndb: &Ndb) -> Result<()> {
        for entry in ndb.nodes() {
            let entry = entry?;
            let slot = match entry.nid.kind() {
                NidType::NORMAL_MESSAGE => |f: &mut TreeFolder| f.messages += 1,
                NidType::ASSOC_MESSAGE => |f: &mut TreeFolder| f.associated += 1,
                _ => continue,
            };
            if let Some(folder) = self.folders.get_mut(&entry.nid_parent) {
                slot(folder);
            }
        }
        Ok(())
    }

    /// What a node is; `None` if it is derived ([`is_derived_node`]).
    #[must_use]
    pub fn kind(&self, entry: &NbtEntry) -> Option<ObjectKind> {
        kind_of(entry, &mut |folder| Ok(self.folders.contains_key(&folder)))
            .ok()
            .flatten()
    }
}

/// What a node is, where `is_folder` tells whether a NID is that of a folder below the root.
pub(crate) fn kind_of(
    entry: &NbtEntry,
    is_folder: &mut dyn FnMut(Nid) -> Result<bool>,
) -> Result<Option<ObjectKind>> {
    let held = |yes: bool, kind| if yes { kind } else { ObjectKind::Raw };
    Ok(Some(match entry.nid.kind() {
        NidType::NORMAL_FOLDER => held(is_folder(entry.nid)?, ObjectKind::Folder),
        NidType::NORMAL_MESSAGE => held(is_folder(entry.nid_parent)?, ObjectKind::Message),
        NidType::ASSOC_MESSAGE => held(is_folder(entry.nid_parent)?, ObjectKind::Associated),
        _ if is_derived_node(entry.nid) => return Ok(None),
        _ => ObjectKind::Raw,
    }))
}

/// Tells folders below the root by looking up their parents, for those who ask of a few only.
pub(crate) struct FolderLookup<'a> {
    ndb: &'a Ndb,
    known: BTreeMap<Nid, bool>,
}

impl<'a> FolderLookup<'a> {
    pub(crate) const fn new(ndb: &'a Ndb) -> Self {
        Self {
            ndb,
            known: BTreeMap::new(),
        }
    }

    /// As [`FolderTree::kind`].
    pub(crate) fn kind(&mut self, entry: &NbtEntry) -> Result<Option<ObjectKind>> {
        kind_of(entry, &mut |folder| self.is_folder(folder))
    }

    fn is_folder(&mut self, nid: Nid) -> Result<bool> {
        let mut way = BTreeSet::new();
        let mut at = nid;
        let answer = loop {
            if let Some(known) = self.known.get(&at) {
                break *known;
            }
            // A cycle of parents never reaches the root.
            if at.kind() != NidType::NORMAL_FOLDER || !way.insert(at) {
                break false;
            }
            match self.ndb.node(at)? {
                None => break false,
                Some(_) if at == Nid::ROOT_FOLDER => break true,
                Some(entry) => at = entry.nid_parent,
            }
        };
        self.known.extend(way.into_iter().map(|nid| (nid, answer)));
        Ok(answer)
    }
}

impl Pst {
    /// The folders of the file, with counts of their messages from the node B-tree.
    ///
    /// # Errors
    /// If the node B-tree cannot be walked.
    pub fn folder_tree(&self) -> Result<FolderTree> {
        let mut tree = FolderTree::read(self.ndb())?;
        tree.count(self.ndb())?;
        Ok(tree)
    }

    /// Visits the messages of the folders in `order` (those that `tree` does not know are left out),
    /// each folder's in NID order, in memory that does not grow with their number.
    ///
    /// # Errors
    /// If the node B-tree cannot be walked; what `visit` answers.
    pub fn each_message<E: From<crate::PstError>>(
        &self,
        tree: &FolderTree,
        order: &[Nid],
        visit: &mut dyn FnMut(Step<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut folders = order
            .iter()
            .filter_map(|nid| tree.folders.get(nid))
            .peekable();
        while let Some(first) = folders.next() {
            let mut sum = first.messages + first.associated;
            if sum > COLLECTED {
                visit(Step::Folder(first))?;
                for entry in self.ndb().nodes() {
                    if let Some(message) = message_in(entry?, |p| p == first.folder.nid) {
                        visit(Step::Message(&message))?;
                    }
                }
                continue;
            }
            let mut batch = vec![first];
            while let Some(next) = folders.next_if(|f| sum + f.messages + f.associated <= COLLECTED)
            {
                sum += next.messages + next.associated;
                batch.push(next);
            }
            let mut found: BTreeMap<Nid, Vec<MessageEntry>> = batch
                .iter()
                .filter(|f| f.messages + f.associated > 0)
                .map(|f| (f.folder.nid, Vec::new()))
                .collect();
            if !found.is_empty() {
                for entry in self.ndb().nodes() {
                    let entry = entry?;
                    if let Some(message) = message_in(entry, |p| found.contains_key(&p))
                        && let Some(list) = found.get_mut(&entry.nid_parent)
                    {
                        list.push(message);
                    }
                }
            }
            for folder in batch {
                visit(Step::Folder(folder))?;
                for message in found.remove(&folder.folder.nid).iter().flatten() {
                    visit(Step::Message(message))?;
                }
            }
        }
        Ok(())
    }
}

fn message_in(entry: NbtEntry, wanted: impl FnOnce(Nid) -> bool) -> Option<MessageEntry> {
    let associated = match entry.nid.kind() {
        NidType::NORMAL_MESSAGE => false,
        NidType::ASSOC_MESSAGE => true,
        _ => return None,
    };
    wanted(entry.nid_parent).then_some(MessageEntry {
        nid: entry.nid,
        associated,
        entry,
    })
}
