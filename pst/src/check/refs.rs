//! What refers to each block, and whether its reference count says so ([MS-PST] 2.2.2.7.7.3.1).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::codes::Code;
use super::structure::Structure;
use crate::ndb::data_tree::XBlock;
use crate::ndb::subnode::SBlock;
use crate::{Bid, Nid};

/// What a reference is expected to lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Data,
    Subnodes,
}

/// Whose a reference is: a node, and perhaps a subnode somewhere below it.
#[derive(Clone, Copy)]
struct Whose {
    node: Nid,
    sub: Option<Nid>,
}

struct Shown(Role, Whose);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0 {
            Role::Data => "data",
            Role::Subnodes => "subnodes",
        };
        match self.1.sub {
            Some(sub) => write!(f, "{what} of {sub} in node {}", self.1.node),
            None => write!(f, "{what} of node {}", self.1.node),
        }
    }
}

/// The bytes below XBLOCKs: each is read once, however often it is named.
type Totals = BTreeMap<u64, Option<u64>>;

impl Structure<'_> {
    pub(super) fn references(&mut self) {
        let mut seen = BTreeSet::new();
        let mut totals = Totals::new();
        let mut todo: Vec<(Bid, Role, Whose)> = Vec::new();
        for i in 0..self.nodes.len() {
            let Some(node) = self.nodes.get(i).copied() else {
                break;
            };
            let whose = Whose {
                node: node.nid,
                sub: None,
            };
            todo.push((node.bid_data, Role::Data, whose));
            todo.push((node.bid_sub, Role::Subnodes, whose));
            while let Some((bid, role, whose)) = todo.pop() {
                if bid.is_none() {
                    continue;
                }
                let Some(block) = self.find(bid).and_then(|i| self.blocks.get_mut(i)) else {
                    self.out.add(Code::BlockMissing, 0, || {
                        let whose = Shown(role, whose);
                        format!("block {bid}, {whose}, is not in the block B-tree")
                    });
                    continue;
                };
                block.found = block.found.saturating_add(1);
                if bid.is_internal() && seen.insert(bid.key()) {
                    self.follow(bid, role, whose, &mut todo, &mut totals);
                } else if !bid.is_internal() && role == Role::Subnodes {
                    let at = self.offset_of(bid);
                    self.out.add(Code::BlockKind, at, || {
                        format!("block {bid}, {}, is a data block", Shown(role, whose))
                    });
                }
            }
        }
        for block in &self.blocks {
            let (found, stated) = (block.found, u32::from(block.entry.cref));
            let (at, bid) = (block.entry.bref.ib, block.entry.bref.bid);
            if found == 0 {
                self.out.add(Code::BlockOrphan, at, || {
                    format!(
                        "block {bid} of {} bytes is referred to by nothing",
                        block.entry.cb
                    )
                });
            } else if stated < found.saturating_add(1) {
                // Releasing one of the references would free a block that is still in use.
                self.out.add(Code::CrefLow, at, || {
                    format!("block {bid} has cRef {stated} but {found} references")
                });
            } else if stated > found + 1 {
                self.out.add(Code::CrefHigh, at, || {
                    format!("block {bid} has cRef {stated} but {found} references")
                });
            }
        }
    }

    /// Queues what an internal block refers to.
    fn follow(
        &mut self,
        bid: Bid,
        role: Role,
        whose: Whose,
        todo: &mut Vec<(Bid, Role, Whose)>,
        totals: &mut Totals,
    ) {
        let at = self.offset_of(bid);
        // Damage of the block itself has been reported already.
        let Ok(data) = self.ndb.block_data(bid) else {
            return;
        };
        let format = self.ndb.format();
        match role {
            Role::Data => match XBlock::parse(format, bid, &data) {
                Ok(x) => {
                    self.data_tree(bid, &x, whose, totals);
                    todo.extend(x.bids.into_iter().map(|b| (b, role, whose)));
                }
                Err(e) => self.out.failed(Code::DataTree, at, "", &e),
            },
            Role::Subnodes => match SBlock::parse(format, bid, &data) {
                Ok(SBlock::Leaf(entries)) => {
                    self.order(bid, entries.iter().map(|e| e.nid), role, whose);
                    for e in entries {
                        let whose = Whose {
                            sub: Some(e.nid),
                            ..whose
                        };
                        todo.push((e.bid_data, Role::Data, whose));
                        todo.push((e.bid_sub, Role::Subnodes, whose));
                    }
                }
                Ok(SBlock::Inner(children)) => {
                    self.order(bid, children.iter().map(|(nid, _)| *nid), role, whose);
                    todo.extend(children.into_iter().map(|(_, b)| (b, role, whose)));
                }
                Err(e) => self.out.failed(Code::SubnodeTree, at, "", &e),
            },
        }
    }

    fn order(&mut self, bid: Bid, nids: impl Iterator<Item = Nid>, role: Role, whose: Whose) {
        if nids.is_sorted_by(|a, b| a < b) {
            return;
        }
        let at = self.offset_of(bid);
        self.out.add(Code::SubnodeOrder, at, || {
            format!("block {bid}, {}: NIDs do not rise", Shown(role, whose))
        });
    }

    fn data_tree(&mut self, bid: Bid, x: &XBlock, whose: Whose, totals: &mut Totals) {
        let at = self.offset_of(bid);
        let sum = self.total(x, totals);
        totals.insert(bid.key(), sum);
        if let Some(total) = sum
            && total != u64::from(x.total)
        {
            self.out.add(Code::DataTotal, at, || {
                let whose = Shown(Role::Data, whose);
                format!(
                    "block {bid}, {whose}: lcbTotal {} but {total} bytes",
                    x.total
                )
            });
        }
        let full = self.ndb.format().max_data();
        let last = x.bids.len().saturating_sub(1);
        let short = x.bids.iter().take(last).find_map(|b| {
            let cb = self.block(*b)?.entry.cb_data;
            (x.level == 1 && usize::from(cb) != full).then_some((*b, cb))
        });
        if let Some((block, cb)) = short {
            self.out.add(Code::DataBlockSize, at, || {
                let whose = Shown(Role::Data, whose);
                format!("block {block}, {whose}, has {cb} bytes, not {full}, and is not the last")
            });
        }
    }

    /// The bytes below an XBLOCK or XXBLOCK, if every block on the way can be found.
    fn total(&self, x: &XBlock, totals: &mut Totals) -> Option<u64> {
        let mut sum = 0;
        for bid in &x.bids {
            sum += if x.level == 1 {
                u64::from(self.block(*bid)?.entry.cb_data)
            } else if let Some(known) = totals.get(&bid.key()) {
                (*known)?
            } else {
                // A crafted tree may name an XXBLOCK below another: level by level it ends here.
                let below = self.ndb.block_data(*bid).ok().and_then(|data| {
                    XBlock::parse(self.ndb.format(), *bid, &data)
                        .ok()
                        .filter(|x| x.level == 1)
                });
                let known = below.and_then(|x| self.total(&x, totals));
                totals.insert(bid.key(), known);
                known?
            };
        }
        Some(sum)
    }
}
