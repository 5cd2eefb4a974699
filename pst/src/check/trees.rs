//! The two B-trees and the blocks that they list ([MS-PST] 2.2.2.7.7, 2.2.2.8).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Level;
use super::codes::Code;
use super::structure::{Block, Structure};
use crate::Nid;
use crate::ndb::{BbtEntry, BtLeaf, BtPage, NbtEntry, PageType};

/// Progress is told each time this many bytes of blocks were read.
const PROGRESS_STEP: u64 = 4 << 20;

impl Structure<'_> {
    pub(super) fn trees(&mut self) {
        self.nodes = self.tree::<NbtEntry>();
        let mut unknown: BTreeMap<u8, (usize, Nid)> = BTreeMap::new();
        for node in &self.nodes {
            let kind = node.nid.kind().0;
            if matches!(kind, 0x09 | 0x14..=0x1E) {
                unknown.entry(kind).or_insert((0, node.nid)).0 += 1;
            }
        }
        for (kind, (n, first)) in unknown {
            self.out.add(Code::NodeType, 0, || {
                format!("{n} nodes of the unknown type {kind:#04x}, the first is {first}")
            });
        }
        let entries = self.tree::<BbtEntry>();
        self.blocks = entries
            .into_iter()
            .map(|entry| Block { entry, found: 0 })
            .collect();
        // Keys out of order have been reported; look-ups need them in order all the same.
        self.nodes.sort_by_key(BtLeaf::key);
        self.nodes.dedup_by_key(|n| n.nid);
        self.blocks.sort_by_key(|b| b.entry.key());
        self.blocks.dedup_by_key(|b| b.entry.key());
    }

    fn tree<E: BtLeaf>(&mut self) -> Vec<E> {
        let ndb = self.ndb;
        let damaged = if E::PAGE == PageType::Nbt {
            Code::NbtPage
        } else {
            Code::BbtPage
        };
        let mut entries: Vec<E> = Vec::new();
        let mut seen = BTreeSet::new();
        let root = match ndb.bt_root::<E>() {
            Ok(root) => root,
            Err(e) => {
                self.out.failed(damaged, E::root(ndb).ib, "", &e);
                return entries;
            }
        };
        // Each page with the range of keys that its parent gives it.
        let mut todo: Vec<(Arc<BtPage>, u64, Option<u64>)> = vec![(root, 0, None)];
        while let Some((page, low, high)) = todo.pop() {
            let at = page.bref.ib;
            if !seen.insert(at) {
                self.out
                    .add(Code::BtreeSharedPage, at, || "reached twice".into());
                continue;
            }
            self.pages.push(at);
            self.page(&page, seen.len() == 1);
            let mut children = Vec::new();
            for i in 0..page.count() {
                let key = match page.key::<E>(i) {
                    Ok(key) => key,
                    Err(e) => {
                        self.out.failed(damaged, at, "", &e);
                        break;
                    }
                };
                if key < low || high.is_some_and(|h| key >= h) {
                    self.out.add(Code::BtreeOrder, at, || {
                        format!("key {key:#x} lies outside its page's range from {low:#x}")
                    });
                }
                if page.level == 0 {
                    match page.leaf::<E>(i) {
                        Ok(entry) => entries.push(entry),
                        Err(e) => self.out.failed(damaged, at, "", &e),
                    }
                    continue;
                }
                let end = if i + 1 < page.count() {
                    page.key::<E>(i + 1).ok()
                } else {
                    high
                };
                match ndb.bt_child::<E>(&page, i) {
                    Ok(child) => {
                        if child.count() > 0 && child.key::<E>(0).is_ok_and(|k| k != key) {
                            self.out.add(Code::BtreeKey, child.bref.ib, || {
                                format!("the parent's key is {key:#x}, not the page's first")
                            });
                        }
                        // A smaller first key would never be found from above.
                        children.push((child, key, end));
                    }
                    Err(e) => {
                        let ib = page.child(i).map_or(at, |c| c.bref.ib);
                        self.out.failed(damaged, ib, "", &e);
                    }
                }
            }
            todo.extend(children.into_iter().rev());
        }
        entries
    }

    /// What a page says about itself.
    fn page(&mut self, page: &BtPage, root: bool) {
        let next = self.ndb.header().bid_next_page;
        let at = page.bref.ib;
        if page.bref.bid.0 >= next.0 {
            self.out.add(Code::PageBid, at, || {
                format!("page {} is not below bidNextP {next}", page.bref.bid)
            });
        }
        if page.count() == 0 && !root {
            self.out
                .add(Code::BtreeEmptyPage, at, || "the page is empty".into());
        }
        let (stated, fit) = page.capacity();
        if stated != fit {
            self.out.add(Code::BtreeFill, at, || {
                format!(
                    "cEntMax is {stated}, {fit} entries fit, {} are there",
                    page.count()
                )
            });
        }
    }

    /// Reads every block that the tree lists, in the order in which they lie.
    pub(super) fn blocks(&mut self) {
        let ndb = self.ndb;
        let next = ndb.header().bid_next_block;
        let mut order: Vec<(u64, usize)> = self
            .blocks
            .iter()
            .enumerate()
            .map(|(i, b)| (b.entry.bref.ib, i))
            .collect();
        order.sort_unstable();
        let all: u64 = self.blocks.iter().map(|b| u64::from(b.entry.cb)).sum();
        let (mut done, mut told) = (0, 0);
        for (at, i) in order {
            let Some(block) = self.blocks.get(i).map(|b| b.entry) else {
                continue;
            };
            let bid = block.bref.bid;
            if bid.key() >= next.0 {
                self.out.add(Code::BlockBid, at, || {
                    format!("block {bid} is not below bidNextB {next}")
                });
            }
            let align = ndb.format().block_align;
            if !at.is_multiple_of(align as u64) {
                self.out.add(Code::BlockAlignment, at, || {
                    format!("block {bid} is not aligned to {align} bytes")
                });
            }
            if let Err(e) = ndb.verify_stored(&block) {
                self.out
                    .failed(Code::BlockDamaged, at, &format!("block {bid}"), &e);
            }
            done += u64::from(block.cb);
            if let Some(tell) = self.progress
                && done - told >= PROGRESS_STEP
            {
                told = done;
                tell(Level::Structure, done, all);
            }
        }
    }
}
