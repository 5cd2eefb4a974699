//! The two B-trees and the blocks that they list ([MS-PST] 2.2.2.7.7, 2.2.2.8).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Checker, Severity};
use crate::ndb::{BbtEntry, BtLeaf, BtPage, NbtEntry, PageType};
use crate::{Bid, Nid};

impl Checker<'_> {
    pub(super) fn trees(&mut self) {
        let nodes = self.tree::<NbtEntry>();
        let mut unknown: BTreeMap<u8, (usize, Nid)> = BTreeMap::new();
        for node in &nodes {
            let kind = node.nid.kind().0;
            if matches!(kind, 0x09 | 0x14..=0x1E) {
                unknown.entry(kind).or_insert((0, node.nid)).0 += 1;
            }
        }
        for (kind, (n, first)) in unknown {
            let detail = format!("{n} nodes of the unknown type {kind:#04x}, the first is {first}");
            self.add("node-type", Severity::Info, 0, "2.2.2.1", detail);
        }
        self.nodes = nodes;
        let blocks = self.tree::<BbtEntry>();
        self.blocks = blocks.into_iter().map(|b| (b.key(), b)).collect();
    }

    fn tree<E: BtLeaf>(&mut self) -> Vec<E> {
        let section = "2.2.2.7.7";
        let next = self.ndb.header().bid_next_page;
        let mut entries: Vec<E> = Vec::new();
        let mut seen = BTreeSet::new();
        let root = match self.ndb.bt_root::<E>() {
            Ok(root) => root,
            Err(e) => {
                self.failed("btree-page", E::root(self.ndb).ib, section, &e);
                return entries;
            }
        };
        // Each page with the range of keys that its parent gives it.
        let mut todo: Vec<(Arc<BtPage>, u64, Option<u64>)> = vec![(root, 0, None)];
        while let Some((page, low, high)) = todo.pop() {
            let at = page.bref.ib;
            if !seen.insert(at) {
                self.add(
                    "btree-shared-page",
                    Severity::Error,
                    at,
                    section,
                    "reached twice",
                );
                continue;
            }
            self.pages.push(at);
            if page.bref.bid.0 >= next.0 {
                let detail = format!("page {} is not below bidNextP {next}", page.bref.bid);
                self.add("page-bid", Severity::Warning, at, "2.2.2.6", detail);
            }
            if page.count() == 0 && seen.len() > 1 {
                self.add(
                    "btree-empty-page",
                    Severity::Warning,
                    at,
                    section,
                    "a page is empty",
                );
            }
            let mut children = Vec::new();
            for i in 0..page.count() {
                let key = match page.key::<E>(i) {
                    Ok(key) => key,
                    Err(e) => {
                        self.failed("btree-page", at, section, &e);
                        break;
                    }
                };
                if key < low || high.is_some_and(|h| key >= h) {
                    let detail =
                        format!("key {key:#x} lies outside its page's range from {low:#x}");
                    self.add("btree-order", Severity::Error, at, section, detail);
                }
                if page.level == 0 {
                    match page.leaf::<E>(i) {
                        Ok(entry) => entries.push(entry),
                        Err(e) => self.failed("btree-page", at, section, &e),
                    }
                    continue;
                }
                let end = if i + 1 < page.count() {
                    page.key::<E>(i + 1).ok()
                } else {
                    high
                };
                match self.ndb.bt_child::<E>(&page, i) {
                    Ok(child) => {
                        if child.count() > 0 && child.key::<E>(0).is_ok_and(|k| k != key) {
                            let detail =
                                format!("the parent's key is {key:#x}, not the page's first");
                            self.add(
                                "btree-key",
                                Severity::Warning,
                                child.bref.ib,
                                section,
                                detail,
                            );
                        }
                        // A smaller first key would never be found from above.
                        children.push((child, key, end));
                    }
                    Err(e) => {
                        let ib = page.child(i).map_or(at, |c| c.bref.ib);
                        let code = if E::PAGE == PageType::Nbt {
                            "nbt-page"
                        } else {
                            "bbt-page"
                        };
                        self.failed(code, ib, section, &e);
                    }
                }
            }
            todo.extend(children.into_iter().rev());
        }
        entries
    }

    /// Reads every block that the tree lists.
    pub(super) fn blocks(&mut self) {
        let next = self.ndb.header().bid_next_block;
        for block in self.blocks.values().copied().collect::<Vec<_>>() {
            let bid = block.bref.bid;
            let at = block.bref.ib;
            if bid.key() >= next.0 {
                let detail = format!("block {bid} is not below bidNextB {next}");
                self.add("block-bid", Severity::Error, at, "2.2.2.6", detail);
            }
            if !at.is_multiple_of(64) {
                let detail = format!("block {bid} is not aligned to 64 bytes");
                self.add("block-alignment", Severity::Error, at, "2.2.2.8", detail);
            }
            if let Err(e) = self.ndb.block_data_of(&block) {
                let e = e.to_string();
                let detail = format!("block {bid}: {e}");
                self.add("block-damaged", Severity::Error, at, "2.2.2.8.1", detail);
            }
        }
    }

    pub(super) fn block_offset(&self, bid: Bid) -> u64 {
        self.blocks.get(&bid.key()).map_or(0, |b| b.bref.ib)
    }
}
