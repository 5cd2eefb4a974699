//! Is this a moment at which the file is whole?
//!
//! A writer that never syncs leaves no mark of its commits; what it wrote says by itself whether
//! it was in the middle of something. [`verify_written`] checks the header, every B-tree page
//! ([MS-PST] 2.2.2.7.7), that every block a node names exists, and the checksum and signature of
//! every block that the written ranges touch (2.2.2.8.1). Blocks outside them were verified when
//! they were written, or are the file's own from before.

use std::sync::Arc;

use storage::{RangeSet, ReadAt};

use crate::ndb::{Ndb, SubnodeEntry};
use crate::{Bid, PstError, Result};

/// What a whole file still says about its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// ROOT.fAMapValid: a writer that is between two commits has marked its maps valid. Without
    /// it the trees are whole, but the writer may be in the middle of an edit of several steps.
    pub maps_valid: bool,
    /// Blocks whose bytes were read.
    pub blocks_read: u64,
}

/// Verifies the header and everything reachable through the `written` ranges of `file`.
///
/// Costs one pass over both B-trees and the blocks written; the mail itself is not read.
///
/// # Errors
/// [`PstError`] of the first structure that is not whole.
pub fn verify_written(file: Arc<dyn ReadAt>, written: &RangeSet) -> Result<Moment> {
    let ndb = Ndb::open(file)?;
    let mut moment = Moment {
        maps_valid: ndb.header().maps_valid(),
        blocks_read: 0,
    };
    if ndb.header().torn {
        return Err(PstError::corrupt(
            "dwCRCFull",
            0,
            "the header is half written",
        ));
    }
    // Ascending, as the block B-tree is.
    let mut known = Vec::new();
    for entry in ndb.blocks() {
        known.push(entry?.bref.bid.key());
    }
    let exists = |bid: Bid| bid.is_none() || known.binary_search(&bid.key()).is_ok();
    for entry in ndb.blocks() {
        let entry = entry?;
        let space = ndb.format().block_space(usize::from(entry.cb)) as u64;
        let end = entry.bref.ib.saturating_add(space);
        if !written.intersects(entry.bref.ib..end) {
            continue;
        }
        moment.blocks_read += 1;
        ndb.block_data_of(&entry)?;
    }
    for node in ndb.nodes() {
        let node = node?;
        for (field, bid) in [("bidData", node.bid_data), ("bidSub", node.bid_sub)] {
            if !exists(bid) {
                let detail = format!("node {}: block {bid} does not exist", node.nid);
                return Err(PstError::corrupt(field, 0, detail));
            }
            if bid.is_internal() && is_written(&ndb, bid, written)? {
                tree_is_whole(&ndb, bid, field == "bidSub", &exists)?;
            }
        }
    }
    Ok(moment)
}

fn is_written(ndb: &Ndb, bid: Bid, written: &RangeSet) -> Result<bool> {
    Ok(ndb.block(bid)?.is_some_and(|entry| {
        let space = ndb.format().block_space(usize::from(entry.cb)) as u64;
        written.intersects(entry.bref.ib..entry.bref.ib.saturating_add(space))
    }))
}

/// The blocks that a written tree root names must exist too.
fn tree_is_whole(ndb: &Ndb, bid: Bid, subnodes: bool, exists: &impl Fn(Bid) -> bool) -> Result<()> {
    let missing = |what: &'static str, bid: Bid| {
        PstError::corrupt(what, 0, format!("block {bid} does not exist"))
    };
    if subnodes {
        for SubnodeEntry {
            bid_data, bid_sub, ..
        } in ndb.subnodes(bid)?.into_values()
        {
            for named in [bid_data, bid_sub] {
                if !exists(named) {
                    return Err(missing("SLENTRY", named));
                }
            }
        }
    } else {
        for named in ndb.data(bid)?.block_bids() {
            if !exists(*named) {
                return Err(missing("rgbid", *named));
            }
        }
    }
    Ok(())
}
