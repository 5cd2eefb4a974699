//! Shortening the queue of waiting changes, durably: one record of the journal, then a mark that the
//! rest is about to be tried.

use std::collections::HashSet;

use super::Drive;
use super::optimise::{Plan, optimise};
use crate::error::Result;
use crate::journal::record::{MetaRecord, Record, TreeOp};
use crate::tree::{Pending, Tree};

impl Drive {
    /// Drops waiting changes that cancel each other, and marks the rest as tried: what the share
    /// may have seen is never dropped again. Returns whether there was anything to shorten.
    pub(super) fn shorten(&self) -> Result<bool> {
        let mut tree = self.tree_mut();
        let Some(through) = tree.pending.back().map(|p| p.lsn) else {
            return Ok(false);
        };
        let plan = plan(&tree);
        let shorter = !plan.is_empty();
        if shorter {
            let gone: HashSet<u64> = plan.gone.iter().copied().collect();
            let dropped = tree.pending.iter().filter(|p| gone.contains(&p.lsn));
            let touched: Vec<u64> = dropped.map(|p| p.op.node()).collect();
            let lsn = self.log(MetaRecord::Optimised {
                gone: plan.gone.clone(),
                instead: plan.instead.clone(),
            })?;
            tree.replace_pending(&plan.gone, &plan.instead, lsn);
            for id in touched {
                if tree.nodes.get(&id).is_some_and(|n| !n.linked) {
                    self.after_removal(&mut tree, id);
                }
            }
        }
        if tree.tried >= through {
            return Ok(shorter);
        }
        let lsn = self.log(MetaRecord::Tried { through })?;
        tree.tried = through;
        tree.lsn = lsn;
        drop(tree);
        // Before the share sees any of them.
        self.journal.sync(lsn)?;
        Ok(shorter)
    }
}

/// Most waiting changes that are looked at together, and most bytes that what they become may take
/// in one record of the journal.
const PLANNED: usize = 20_000;
const LONGEST: usize = 2 << 20;

/// How the part of the queue that the share has not seen becomes shorter. What it refused it has not: so a
/// file whose making it refused can be given another name here, or removed again.
fn plan(tree: &Tree) -> Plan {
    let tried = if tree.all_tried_are_held() {
        0
    } else {
        tree.tried
    };
    let links = undone_links(tree, tried);
    let left = |p: &&Pending| !links.contains(&p.lsn);
    // What was changed before a file got another name may be about more names than one: only what comes
    // after is looked at.
    let is_link = |p: &&Pending| matches!(p.op, TreeOp::Link { .. });
    let link = tree.pending.iter().filter(left).rfind(is_link);
    let tried = link.map_or(tried, |p| tried.max(p.lsn));
    let log = tree.pending.iter().filter(left).filter(|p| p.lsn > tried);
    let log: Vec<&Pending> = log.take(PLANNED).collect();
    // Where a node lies after what was tried: unknown here, unless nothing of that touched it.
    let touched = |id: u64| {
        let mut earlier = tree.pending.iter().take_while(|p| p.lsn <= tried);
        earlier.any(|p| p.op.node() == id)
    };
    let origin = |id: u64| {
        let node = tree.nodes.get(&id)?;
        let place = node.share.clone().filter(|_| !touched(id))?;
        Some((place, node.attr.kind))
    };
    let mut plan = optimise(log.into_iter().map(|p| (p.lsn, &p.op)), tree.names, &origin);
    plan.gone.extend(links);
    let mut bytes = Vec::new();
    let record = MetaRecord::Optimised {
        gone: plan.gone.clone(),
        instead: plan.instead.clone(),
    };
    Record::Meta(record).encode(&mut bytes);
    if bytes.len() > LONGEST {
        return Plan::default();
    }
    plan
}

/// Names that were given to files and taken again, of what the share has not seen: all that is about them.
/// Not where the file got another name later: it may be by the first that its content lived until then.
fn undone_links(tree: &Tree, tried: u64) -> HashSet<u64> {
    let unseen = || tree.pending.iter().filter(|p| p.lsn > tried);
    let mut undone = HashSet::new();
    let mut needed = HashSet::new();
    for link in unseen().rev() {
        let TreeOp::Link { file, id, .. } = &link.op else {
            continue;
        };
        let of_it = || unseen().filter(|p| p.op.node() == *id);
        let replaces =
            |p: &Pending| matches!(p.op, TreeOp::Rename { replaced, .. } if replaced.is_some());
        let removed = of_it()
            .next_back()
            .is_some_and(|p| matches!(p.op, TreeOp::Remove { .. }));
        if removed && !needed.contains(file) && !of_it().any(replaces) {
            undone.extend(of_it().map(|p| p.lsn));
        } else {
            needed.insert(*file);
        }
    }
    undone
}
