//! What the checks of the node database share, and the header ([MS-PST] 2.2.2.5, 2.2.2.6).

use std::collections::BTreeMap;

use super::Progress;
use super::codes::Code;
use super::collect::Findings;
use crate::ndb::{BbtEntry, NbtEntry, Ndb};
use crate::{Bid, NidType};

/// A block of the block B-tree, with the references found to it.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub entry: BbtEntry,
    pub found: u32,
}

pub(super) struct Structure<'a> {
    pub ndb: &'a Ndb,
    pub out: &'a mut Findings,
    pub progress: Option<Progress<'a>>,
    /// In NID order.
    pub nodes: Vec<NbtEntry>,
    /// In BID order.
    pub blocks: Vec<Block>,
    /// Offsets of all reachable B-tree pages.
    pub pages: Vec<u64>,
}

impl<'a> Structure<'a> {
    pub fn new(ndb: &'a Ndb, out: &'a mut Findings, progress: Option<Progress<'a>>) -> Self {
        Self {
            ndb,
            out,
            progress,
            nodes: Vec::new(),
            blocks: Vec::new(),
            pages: Vec::new(),
        }
    }

    pub fn run(&mut self) {
        self.header();
        self.trees();
        self.counters();
        self.blocks();
        self.references();
        self.space();
    }

    /// The nodes, and how many blocks there are.
    pub fn into_parts(self) -> (Vec<NbtEntry>, u64) {
        (self.nodes, self.blocks.len() as u64)
    }

    /// Where `bid` is in the list of blocks.
    pub fn find(&self, bid: Bid) -> Option<usize> {
        self.blocks
            .binary_search_by_key(&bid.key(), |b| b.entry.bref.bid.key())
            .ok()
    }

    pub fn block(&self, bid: Bid) -> Option<&Block> {
        self.blocks.get(self.find(bid)?)
    }

    pub fn offset_of(&self, bid: Bid) -> u64 {
        self.block(bid).map_or(0, |b| b.entry.bref.ib)
    }

    fn header(&mut self) {
        let h = self.ndb.header();
        if h.torn {
            self.out.add(Code::HeaderTorn, 0, || {
                "a header checksum is wrong: a writer stopped in the middle of its work".into()
            });
        }
        if h.amap_valid > 2 {
            let flag = h.amap_valid;
            self.out
                .add(Code::MapsFlag, 0, || format!("fAMapValid is {flag}"));
        } else if h.amap_valid == 0 {
            self.out.add(Code::MapsInvalid, 0, || {
                "fAMapValid is 0: a writer stopped in the middle; the next edit recomputes the maps"
                    .into()
            });
        }
    }

    /// rgnid: what it holds for each type must not be behind the nodes of that type.
    fn counters(&mut self) {
        let mut greatest: BTreeMap<u8, u32> = BTreeMap::new();
        for node in &self.nodes {
            // The other types have their index from one of these, or a fixed one.
            let counted = [
                NidType::NORMAL_FOLDER,
                NidType::SEARCH_FOLDER,
                NidType::NORMAL_MESSAGE,
                NidType::ASSOC_MESSAGE,
            ];
            if counted.contains(&node.nid.kind()) {
                let most = greatest.entry(node.nid.kind().0).or_default();
                *most = (*most).max(node.nid.index());
            }
        }
        for (kind, index) in greatest {
            let rgnid = &self.ndb.header().rgnid;
            let stored = rgnid.get(usize::from(kind)).copied().unwrap_or_default();
            if stored < index {
                self.out.add(Code::NidCounter, 0, || {
                    format!("rgnid[{kind:#x}] is {stored:#x}, a node has index {index:#x}")
                });
            }
        }
    }
}
