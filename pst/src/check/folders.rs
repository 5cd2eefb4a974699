//! Folders: parents, tables against nodes, counts and their copies ([MS-PST] 2.4.4).

use std::collections::{BTreeMap, BTreeSet};

use super::codes::Code;
use super::collect::Findings;
use super::content::{Copies, Facts, RowFacts};
use crate::messaging::tags;
use crate::ndb::NbtEntry;
use crate::{Nid, NidType};

/// PidTagDisplayName, PidTagContentCount, PidTagContentUnreadCount, PidTagSubfolders (2.4.4.1.1).
const FOLDER: [u16; 4] = [0x3001, 0x3602, 0x3603, 0x360A];

struct Folders<'a> {
    out: &'a mut Findings,
    facts: &'a Facts,
    /// All nodes, in NID order.
    nodes: &'a [NbtEntry],
    /// Normal and search folders by parent.
    children: BTreeMap<Nid, Vec<Nid>>,
    /// Messages by (parent, NID).
    messages: Vec<(Nid, Nid)>,
}

pub(super) fn check(out: &mut Findings, nodes: &[NbtEntry], facts: &Facts) {
    let mut folders = Folders {
        out,
        facts,
        nodes,
        children: BTreeMap::new(),
        messages: Vec::new(),
    };
    folders.gather();
    folders.reach();
    for node in nodes {
        match node.nid.kind() {
            NidType::NORMAL_FOLDER => folders.folder(node),
            NidType::SEARCH_FOLDER => folders.search_folder(node),
            _ => {}
        }
    }
}

impl<'a> Folders<'a> {
    fn node(&self, nid: Nid) -> Option<&NbtEntry> {
        let i = self.nodes.binary_search_by_key(&nid, |n| n.nid).ok()?;
        self.nodes.get(i)
    }

    fn at(&self, nid: Nid) -> u64 {
        self.facts.offsets.get(&nid).copied().unwrap_or_default()
    }

    fn gather(&mut self) {
        for node in self.nodes {
            match node.nid.kind() {
                NidType::NORMAL_FOLDER | NidType::SEARCH_FOLDER if node.nid != Nid::ROOT_FOLDER => {
                    let siblings = self.children.entry(node.nid_parent).or_default();
                    siblings.push(node.nid);
                }
                NidType::NORMAL_MESSAGE | NidType::ASSOC_MESSAGE => {
                    self.messages.push((node.nid_parent, node.nid));
                }
                _ => {}
            }
        }
        self.messages.sort_unstable();
    }

    /// Every folder must lie below the root, every message in a folder.
    fn reach(&mut self) {
        let mut reached = BTreeSet::new();
        let mut todo = vec![Nid::ROOT_FOLDER];
        while let Some(nid) = todo.pop() {
            if reached.insert(nid) {
                todo.extend(self.children.get(&nid).into_iter().flatten());
            }
        }
        let mut homeless: BTreeMap<Nid, (u64, Nid)> = BTreeMap::new();
        for node in self.nodes {
            let (nid, parent) = (node.nid, node.nid_parent);
            match nid.kind() {
                NidType::NORMAL_FOLDER if !reached.contains(&nid) => {
                    let at = self.facts.offsets.get(&nid).copied().unwrap_or_default();
                    self.out.add(Code::FolderUnreachable, at, || {
                        format!("folder {nid}: its parent is {parent}")
                    });
                }
                NidType::NORMAL_MESSAGE | NidType::ASSOC_MESSAGE
                    if !reached.contains(&parent) || parent.kind() != NidType::NORMAL_FOLDER =>
                {
                    homeless.entry(parent).or_insert((0, nid)).0 += 1;
                }
                _ => {}
            }
        }
        for (parent, (n, first)) in homeless {
            let at = self.facts.offsets.get(&first).copied().unwrap_or_default();
            self.out.add(Code::MessageUnreachable, at, || {
                format!("{n} messages, the first is {first}: their parent is {parent}")
            });
        }
    }

    fn folder(&mut self, node: &NbtEntry) {
        let nid = node.nid;
        let at = self.at(nid);
        let own = self.facts.objects.get(&nid).copied();
        if let Some(own) = own {
            let lacking: Vec<String> = FOLDER
                .iter()
                .filter(|id| own.get(**id).is_none())
                .map(|id| format!("{id:#06x}"))
                .collect();
            if !lacking.is_empty() {
                self.out.add(Code::FolderProperty, at, || {
                    format!("folder {nid}: without {}", lacking.join(", "))
                });
            }
        }
        let own = own.unwrap_or_default();
        let has = |kind| -> Vec<Nid> {
            let start = self.messages.partition_point(|m| m.0 < nid);
            let of_folder = self.messages.iter().skip(start);
            let of_folder = of_folder.take_while(|m| m.0 == nid).map(|m| m.1);
            of_folder.filter(|m| m.kind() == kind).collect()
        };
        let (normal, associated) = (has(NidType::NORMAL_MESSAGE), has(NidType::ASSOC_MESSAGE));
        if let Some(rows) = self.table(nid, NidType::CONTENTS_TABLE) {
            self.contents(nid, NidType::CONTENTS_TABLE, rows, &normal);
            self.counts(nid, own, rows);
        }
        if let Some(rows) = self.table(nid, NidType::ASSOC_CONTENTS_TABLE) {
            self.contents(nid, NidType::ASSOC_CONTENTS_TABLE, rows, &associated);
        }
        if let Some(rows) = self.table(nid, NidType::HIERARCHY_TABLE) {
            self.hierarchy(nid, own, rows);
        }
    }

    /// A folder's table; where there is none, that is reported.
    fn table(&mut self, folder: Nid, kind: NidType) -> Option<&'a [RowFacts]> {
        let table = folder.with_kind(kind);
        if self.node(table).is_none() {
            let at = self.at(folder);
            // The root's own are among the required nodes.
            if folder != Nid::ROOT_FOLDER {
                self.out.add(Code::FolderTable, at, || {
                    format!("folder {folder} has no node {table}")
                });
            }
            return None;
        }
        let facts: &'a Facts = self.facts;
        facts.tables.get(&table).map(Vec::as_slice)
    }

    /// The rows of a contents table against the messages below the folder.
    fn contents(&mut self, folder: Nid, kind: NidType, rows: &[RowFacts], messages: &[Nid]) {
        let at = self.at(folder.with_kind(kind));
        let listed: BTreeSet<u32> = rows.iter().map(|r| r.id).collect();
        for lost in messages.iter().filter(|m| !listed.contains(&m.0)) {
            self.out.add(Code::ContentsRowMissing, at, || {
                format!("message {lost} has no row in the table of folder {folder}")
            });
        }
        for row in rows {
            let nid = Nid(row.id);
            if messages.binary_search(&nid).is_err() {
                self.out.add(Code::ContentsRowStray, at, || {
                    format!("row {nid} in the table of folder {folder} stands for no message of it")
                });
            } else if let Some(message) = self.facts.objects.get(&nid)
                && let Some(id) = row.copies.differs(message)
            {
                self.out.add(Code::ContentsCopy, at, || {
                    format!("row {nid} of folder {folder} has another {id:#06x} than the message")
                });
            }
        }
    }

    fn counts(&mut self, folder: Nid, own: Copies, rows: &[RowFacts]) {
        let at = self.at(folder);
        let count = rows.len();
        if let Some(stated) = own.get(tags::CONTENT_COUNT)
            && stated as usize != count
        {
            self.out.add(Code::FolderCount, at, || {
                format!("folder {folder} counts {stated} messages, its table has {count}")
            });
        }
        let read = |r: &RowFacts| {
            let flags = r.copies.get(tags::MESSAGE_FLAGS).unwrap_or_default();
            flags.cast_signed() & tags::FLAG_READ != 0
        };
        let unread = rows.iter().filter(|r| !read(r)).count();
        if let Some(stated) = own.get(tags::CONTENT_UNREAD)
            && stated as usize != unread
        {
            self.out.add(Code::FolderUnread, at, || {
                format!("folder {folder} counts {stated} unread messages, its table has {unread}")
            });
        }
    }

    /// The rows of a hierarchy table against the folders below.
    fn hierarchy(&mut self, folder: Nid, own: Copies, rows: &[RowFacts]) {
        let at = self.at(folder.with_kind(NidType::HIERARCHY_TABLE));
        let listed: BTreeSet<u32> = rows.iter().map(|r| r.id).collect();
        let children = self.children.get(&folder).map_or(&[][..], Vec::as_slice);
        for lost in children.iter().filter(|c| !listed.contains(&c.0)) {
            self.out.add(Code::HierarchyRowMissing, at, || {
                format!("folder {lost} has no row in the table of folder {folder}")
            });
        }
        for row in rows {
            let nid = Nid(row.id);
            if children.binary_search(&nid).is_err() {
                self.out.add(Code::HierarchyRowStray, at, || {
                    format!("row {nid} in the table of folder {folder} stands for no folder below")
                });
            } else if let Some(child) = self.facts.objects.get(&nid)
                && let Some(id) = row.copies.differs(child)
            {
                self.out.add(Code::HierarchyCopy, at, || {
                    format!("row {nid} of folder {folder} has another {id:#06x} than the folder")
                });
            }
        }
        if let Some(stated) = own.get(tags::SUBFOLDERS)
            && (stated != 0) == rows.is_empty()
        {
            let at = self.at(folder);
            self.out.add(Code::FolderSubfolders, at, || {
                let n = rows.len();
                format!("folder {folder}: PidTagSubfolders is {stated}, its table has {n} rows")
            });
        }
    }

    fn search_folder(&mut self, node: &NbtEntry) {
        let nid = node.nid;
        let at = self.at(nid);
        for kind in [
            NidType::SEARCH_UPDATE_QUEUE,
            NidType::SEARCH_CRITERIA_OBJECT,
            NidType::SEARCH_CONTENTS_TABLE,
        ] {
            let part = nid.with_kind(kind);
            if self.node(part).is_none() {
                self.out.add(Code::SearchFolderParts, at, || {
                    format!("search folder {nid} has no node {part}")
                });
            }
        }
    }
}
