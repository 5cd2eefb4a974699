//! Counted references to blocks ([MS-PST] 2.2.2.7.7.3.1, 2.6.1.1.7).
//!
//! BBTENTRY.cRef is 1 for the entry itself and 1 for each place that names the block: a node, an
//! SLENTRY, an XBLOCK or XXBLOCK, an SIENTRY. A block is removed with the last of those, and with an internal
//! block the references that it holds. What a damaged block holds is kept: space leaks, mail does not.

use super::data_tree::XBlock;
use super::subnode::SBlock;
use super::transaction::NdbTransaction;
use crate::{Bid, PstError, Result};

impl NdbTransaction {
    /// Adds a reference to a block.
    pub(super) fn retain(&mut self, bid: Bid) -> Result<()> {
        if bid.is_none() {
            return Ok(());
        }
        let mut entry = self.block(bid)?.ok_or_else(|| PstError::NotFound {
            what: "block",
            id: bid.to_string(),
        })?;
        entry.cref = entry.cref.checked_add(1).ok_or(PstError::Limit {
            what: "references to a block",
            found: u64::from(entry.cref) + 1,
            limit: u64::from(u16::MAX),
        })?;
        self.changed = true;
        self.bbt.insert(bid.key(), Some(entry));
        Ok(())
    }

    /// Drops a reference; blocks without one are removed, and with an internal block the
    /// references that it holds (2.6.1.1.7, 2.6.1.2.6).
    pub(super) fn release(&mut self, bid: Bid) -> Result<()> {
        let mut todo = vec![bid];
        while let Some(bid) = todo.pop() {
            if bid.is_none() {
                continue;
            }
            // A block that is already missing leaves nothing to give back.
            let Some(mut entry) = self.block(bid)? else {
                continue;
            };
            self.changed = true;
            entry.cref = entry.cref.saturating_sub(1);
            if entry.cref > 1 {
                self.bbt.insert(bid.key(), Some(entry));
                continue;
            }
            if bid.is_internal() {
                leak_if_damaged(self.children(bid, &mut todo))?;
            }
            self.bbt.insert(bid.key(), None);
            let space = self.base.format().block_space(usize::from(entry.cb));
            leak_if_damaged(self.give_back(entry.bref.ib, space))?;
        }
        Ok(())
    }

    /// Appends the blocks that an internal block refers to.
    fn children(&self, bid: Bid, out: &mut Vec<Bid>) -> Result<()> {
        let format = self.base.format();
        let data = self.block_data(bid)?;
        if data.first() == Some(&1) {
            out.extend(XBlock::parse(format, bid, &data)?.bids);
        } else {
            match SBlock::parse(format, bid, &data)? {
                SBlock::Leaf(entries) => {
                    for e in entries {
                        out.extend([e.bid_data, e.bid_sub]);
                    }
                }
                SBlock::Inner(children) => out.extend(children.into_iter().map(|(_, b)| b)),
            }
        }
        Ok(())
    }
}

/// What a damaged block refers to, or where it claims to lie, cannot be given back: the space
/// stays in use, which loses nothing.
fn leak_if_damaged(result: Result<()>) -> Result<()> {
    match result {
        Err(PstError::Corrupt { .. }) => Ok(()),
        other => other,
    }
}
