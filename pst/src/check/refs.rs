//! What refers to each block, and whether its reference count says so ([MS-PST] 2.2.2.7.7.3.1).

use std::collections::{BTreeMap, BTreeSet};

use super::{Checker, Severity};
use crate::Bid;
use crate::ndb::data_tree::XBlock;
use crate::ndb::subnode::SBlock;

/// What a reference is expected to lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Data,
    Subnodes,
}

impl Checker<'_> {
    pub(super) fn references(&mut self) {
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut todo: Vec<(Bid, Role, String)> = Vec::new();
        for node in std::mem::take(&mut self.nodes) {
            todo.push((
                node.bid_data,
                Role::Data,
                format!("data of node {}", node.nid),
            ));
            todo.push((
                node.bid_sub,
                Role::Subnodes,
                format!("subnodes of node {}", node.nid),
            ));
            while let Some((bid, role, whose)) = todo.pop() {
                if bid.is_none() {
                    continue;
                }
                if !self.blocks.contains_key(&bid.key()) {
                    let detail = format!("block {bid}, {whose}, is not in the block B-tree");
                    self.add("block-missing", Severity::Error, 0, "2.2.2.7.7.3", detail);
                    continue;
                }
                *counts.entry(bid.key()).or_default() += 1;
                if bid.is_internal() && seen.insert(bid.key()) {
                    self.follow(bid, role, &whose, &mut todo);
                } else if !bid.is_internal() && role == Role::Subnodes {
                    let detail = format!("block {bid}, {whose}, is a data block");
                    self.add(
                        "block-kind",
                        Severity::Error,
                        self.block_offset(bid),
                        "2.2.2.8.3",
                        detail,
                    );
                }
            }
            self.nodes.push(node);
        }
        for (key, block) in self.blocks.clone() {
            let found = counts.get(&key).copied().unwrap_or_default();
            let stated = u32::from(block.cref);
            let (at, bid) = (block.bref.ib, block.bref.bid);
            let section = "2.2.2.7.7.3.1";
            if found == 0 {
                let detail = format!(
                    "block {bid} of {} bytes is referred to by nothing",
                    block.cb
                );
                self.add("block-orphan", Severity::Info, at, section, detail);
            } else if stated < found + 1 {
                // Releasing one of the references would free a block that is still in use.
                let detail = format!("block {bid} has cRef {stated} but {found} references");
                self.add("cref-low", Severity::Error, at, section, detail);
            } else if stated > found + 1 {
                let detail = format!("block {bid} has cRef {stated} but {found} references");
                self.add("cref-high", Severity::Info, at, section, detail);
            }
        }
    }

    /// Queues what an internal block refers to.
    fn follow(&mut self, bid: Bid, role: Role, whose: &str, todo: &mut Vec<(Bid, Role, String)>) {
        let at = self.block_offset(bid);
        // Damage of the block itself has been reported already.
        let Ok(data) = self.ndb.block_data(bid) else {
            return;
        };
        let format = self.ndb.format();
        match role {
            Role::Data => match XBlock::parse(format, bid, &data) {
                Ok(x) => {
                    if let Some(total) = self.total(&x)
                        && total != u64::from(x.total)
                    {
                        let detail = format!(
                            "block {bid}, {whose}: lcbTotal {} but {total} bytes",
                            x.total
                        );
                        self.add("data-total", Severity::Error, at, "2.2.2.8.3.2.1", detail);
                    }
                    todo.extend(x.bids.into_iter().map(|b| (b, role, whose.to_owned())));
                }
                Err(e) => self.failed("data-tree", at, "2.2.2.8.3.2", &e),
            },
            Role::Subnodes => match SBlock::parse(format, bid, &data) {
                Ok(SBlock::Leaf(entries)) => {
                    if !entries.is_sorted_by(|a, b| a.nid < b.nid) {
                        let detail = format!("block {bid}, {whose}: NIDs do not rise");
                        self.add(
                            "subnode-order",
                            Severity::Warning,
                            at,
                            "2.2.2.8.3.3",
                            detail,
                        );
                    }
                    for e in entries {
                        todo.push((
                            e.bid_data,
                            Role::Data,
                            format!("data of {} in {whose}", e.nid),
                        ));
                        todo.push((
                            e.bid_sub,
                            Role::Subnodes,
                            format!("subnodes of {} in {whose}", e.nid),
                        ));
                    }
                }
                Ok(SBlock::Inner(children)) => {
                    todo.extend(
                        children
                            .into_iter()
                            .map(|(_, b)| (b, role, whose.to_owned())),
                    );
                }
                Err(e) => self.failed("subnode-tree", at, "2.2.2.8.3.3", &e),
            },
        }
    }

    /// The bytes below an XBLOCK or XXBLOCK, if every block on the way can be found.
    fn total(&self, x: &XBlock) -> Option<u64> {
        let mut sum = 0;
        for bid in &x.bids {
            if x.level == 1 {
                sum += u64::from(self.blocks.get(&bid.key())?.cb_data);
            } else {
                let data = self.ndb.block_data(*bid).ok()?;
                sum += u64::from(XBlock::parse(self.ndb.format(), *bid, &data).ok()?.total);
            }
        }
        Some(sum)
    }
}
