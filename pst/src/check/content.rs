//! The walk over what the nodes hold ([MS-PST] 2.3), gathering what the messaging checks compare.
//!
//! Values are located, not read: whether a reference leads to as many bytes as its type asks for
//! does not take the bytes, and the blocks that hold them were verified before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::codes::Code;
use super::collect::Findings;
use super::place::Place;
use super::properties::Properties;
use super::{Level, Progress};
use crate::ltp::{ClientSig, NodeSource, PropTag, PropType};
use crate::ndb::{NbtEntry, Ndb};
use crate::{Bid, Nid, NidType, PstError, Result};

/// How deep subnodes are followed: each embedded message takes two levels.
const MAX_DEPTH: usize = 128;
/// What reading one block costs of the budget; reading one entry of a subnode tree costs 1.
const BLOCK_COST: u64 = 340;
/// Progress is told each time this many nodes were looked at.
const PROGRESS_STEP: usize = 256;

/// The properties that rows of folder tables have copies of, as far as they are compared: class,
/// subject, delivery time, flags; display name, counts, sub-folders. (Outlook itself lets the size
/// in a row lag behind.)
pub(super) const COPIED: [u16; 8] = [
    0x001A, 0x0037, 0x0E06, 0x0E07, 0x3001, 0x3602, 0x3603, 0x360A,
];

/// Checksums of those of them that an object or row has.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Copies {
    have: u16,
    /// Those that are 8-bit text: a row may have as 8-bit text what its object has as UTF-16, and
    /// the other way round. Such are not compared.
    narrow: u16,
    sums: [u32; COPIED.len()],
}

impl Copies {
    pub fn set(&mut self, tag: PropTag, sum: u32) {
        if let Some(i) = COPIED.iter().position(|c| *c == tag.id())
            && let Some(slot) = self.sums.get_mut(i)
        {
            *slot = sum;
            self.have |= 1 << i;
            self.narrow |= u16::from(tag.prop_type() == PropType::STRING8) << i;
        }
    }

    /// The value, for properties of up to four bytes: they are kept as they are.
    pub fn get(&self, id: u16) -> Option<u32> {
        let i = COPIED.iter().position(|c| *c == id)?;
        (self.have & 1 << i != 0).then(|| self.sums.get(i).copied())?
    }

    /// The first property that both have, but not alike.
    pub fn differs(&self, other: &Self) -> Option<u16> {
        let alike = !(self.narrow ^ other.narrow);
        COPIED.iter().enumerate().find_map(|(i, id)| {
            let pair = self.get(*id).zip(other.get(*id));
            let differs = alike & 1 << i != 0 && pair.is_some_and(|(a, b)| a != b);
            differs.then_some(*id)
        })
    }
}

/// A row of a table.
#[derive(Clone, Copy)]
pub(super) struct RowFacts {
    pub id: u32,
    pub copies: Copies,
}

/// What a heap turned out to hold.
pub(super) enum Held {
    Properties(Properties),
    Rows(Vec<RowFacts>),
    /// Nothing that could be read, or something that was looked at elsewhere.
    Nothing,
}

/// What the messaging checks need to know of the nodes.
#[derive(Default)]
pub(super) struct Facts {
    /// Folders, search folders and messages whose properties could be read.
    pub objects: BTreeMap<Nid, Copies>,
    /// Tables of folders that could be read.
    pub tables: BTreeMap<Nid, Vec<RowFacts>>,
    /// Nodes that share their content with one looked at before.
    pub shared: BTreeSet<Nid>,
    /// Where a node's data lies.
    pub offsets: BTreeMap<Nid, u64>,
}

pub(super) struct Content<'a> {
    pub ndb: &'a Arc<Ndb>,
    pub out: &'a mut Findings,
    pub place: Place,
    progress: Option<Progress<'a>>,
    seen: HashSet<(u64, u64)>,
    budget: u64,
    pub facts: Facts,
    /// Named property ids in use, with where each was seen first.
    pub named: BTreeMap<u16, Place>,
    /// The messaging level is wanted too.
    pub messages: bool,
}

/// What a node (`top`) or subnode of a type holds; `None` where it is not a heap.
fn expected(nid: Nid, top: bool) -> Option<ClientSig> {
    match nid.kind() {
        NidType::NORMAL_FOLDER
        | NidType::SEARCH_FOLDER
        | NidType::NORMAL_MESSAGE
        | NidType::ATTACHMENT
        | NidType::ASSOC_MESSAGE => Some(ClientSig::PROPERTIES),
        NidType::HIERARCHY_TABLE
        | NidType::CONTENTS_TABLE
        | NidType::ASSOC_CONTENTS_TABLE
        | NidType::SEARCH_CONTENTS_TABLE
        | NidType::ATTACHMENT_TABLE
        | NidType::RECIPIENT_TABLE => Some(ClientSig::TABLE),
        _ if top && (nid == Nid::MESSAGE_STORE || nid == Nid::NAME_TO_ID_MAP) => {
            Some(ClientSig::PROPERTIES)
        }
        _ => None,
    }
}

impl<'a> Content<'a> {
    pub fn new(
        ndb: &'a Arc<Ndb>,
        out: &'a mut Findings,
        blocks: u64,
        progress: Option<Progress<'a>>,
        messages: bool,
    ) -> Self {
        Self {
            ndb,
            out,
            place: Place::default(),
            progress,
            seen: HashSet::new(),
            // Files that do not share what they hold read each block twice at most.
            budget: (blocks * BLOCK_COST + 100_000) * 8,
            facts: Facts::default(),
            named: BTreeMap::new(),
            messages,
        }
    }

    pub fn into_facts(self) -> Facts {
        self.facts
    }

    pub fn run(&mut self, nodes: &[NbtEntry]) {
        // The trees' own check names the page.
        if let Some(Err(e)) = self.ndb.nodes().find(Result::is_err) {
            self.out.failed(Code::Nodes, 0, "", &e);
        }
        for (i, node) in nodes.iter().enumerate() {
            if let Some(tell) = self.progress
                && i.is_multiple_of(PROGRESS_STEP)
            {
                tell(Level::Content, i as u64, nodes.len() as u64);
            }
            self.place.0 = vec![node.nid];
            let held = self.visit(node.nid, node.bid_data, node.bid_sub, MAX_DEPTH);
            self.keep(node, held);
        }
        self.names();
    }

    /// Keeps what the messaging checks compare.
    fn keep(&mut self, node: &NbtEntry, held: Option<Held>) {
        if !self.messages {
            return;
        }
        match held {
            None => {
                self.facts.shared.insert(node.nid);
            }
            Some(Held::Properties(p)) => {
                self.facts.objects.insert(node.nid, p.copies);
            }
            Some(Held::Rows(rows)) => {
                self.facts.tables.insert(node.nid, rows);
            }
            Some(Held::Nothing) => {}
        }
    }

    /// Takes from what the whole check may read; false once that is used up.
    pub fn spend(&mut self, cost: u64) -> bool {
        if let Some(left) = self.budget.checked_sub(cost).filter(|left| *left > 0) {
            self.budget = left;
            return true;
        }
        if self.budget == 0 {
            return false;
        }
        self.budget = 0;
        let place = &self.place;
        self.out.add(Code::Unfolding, 0, || {
            format!("{place}: given up here; the same content is named too often")
        });
        false
    }

    pub fn spend_blocks(&mut self, n: usize) -> bool {
        self.spend(BLOCK_COST.saturating_mul(n as u64))
    }

    /// Reports an error of reading.
    pub fn failed(&mut self, code: Code, offset: u64, e: &PstError) {
        let place = self.place.to_string();
        self.out.failed(code, offset, &place, e);
    }

    /// Looks at a node or subnode; `None` for a pair of trees that was looked at before.
    pub fn visit(&mut self, nid: Nid, data: Bid, sub: Bid, depth: usize) -> Option<Held> {
        // A pair of trees that two nodes share is looked at once: this also bounds the walk.
        if self.budget == 0 {
            return None;
        }
        let empty = data.is_none() && sub.is_none();
        if !empty && !self.seen.insert((data.key(), sub.key())) {
            return None;
        }
        let offset = self.offset(data, 0);
        if depth == 0 {
            if !sub.is_none() {
                let place = &self.place;
                self.out.add(Code::SubnodeDepth, offset, || {
                    format!("{place}: subnodes nest deeper than {MAX_DEPTH}")
                });
            }
            return Some(Held::Nothing);
        }
        if self.place.0.len() == 1 && self.messages {
            self.facts.offsets.insert(nid, offset);
        }
        let subnodes = match self.ndb.subnode_tree(sub) {
            Ok((subnodes, blocks)) => {
                let entries = subnodes.len() as u64;
                if !(self.spend_blocks(blocks.len()) && self.spend(entries)) {
                    return Some(Held::Nothing);
                }
                Some(subnodes)
            }
            Err(e) => {
                self.failed(Code::Subnodes, offset, &e);
                None
            }
        };
        let source = NodeSource::stored(self.ndb, data, sub);
        let mut used = BTreeSet::new();
        let held = match expected(nid, self.place.0.len() == 1) {
            Some(sig) => self.heap(&source, sig, data, offset, subnodes.as_ref(), &mut used),
            None => Held::Nothing,
        };
        let mut below = BTreeMap::new();
        for (child, e) in subnodes.iter().flatten() {
            self.place.0.push(*child);
            if let Some(held) = self.visit(*child, e.bid_data, e.bid_sub, depth - 1) {
                below.insert(*child, held);
            }
            self.place.0.pop();
            let whole = !matches!(held, Held::Nothing);
            if whole && child.kind() == NidType::LTP && !used.contains(child) {
                let place = &self.place;
                self.out.add(Code::SubnodeUnused, offset, || {
                    format!("{place}: nothing refers to subnode {child}")
                });
            }
        }
        if self.messages
            && let (Held::Properties(p), Some(subnodes)) = (&held, &subnodes)
        {
            self.object(nid, p, subnodes, &below, offset);
        }
        Some(held)
    }

    /// File offset of data block `i` of a tree; 0 where it has none.
    pub fn offset(&self, data: Bid, i: usize) -> u64 {
        let find = || -> Result<Option<u64>> {
            let bid = if data.is_internal() {
                self.ndb.data(data)?.block_bids().get(i).copied()
            } else {
                Some(data).filter(|_| i == 0)
            };
            let Some(bid) = bid.filter(|b| !b.is_none()) else {
                return Ok(None);
            };
            Ok(self.ndb.block(bid)?.map(|b| b.bref.ib))
        };
        find().ok().flatten().unwrap_or(0)
    }
}
