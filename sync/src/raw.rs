//! Raw nodes travel as they are: decoded data and the whole subnode tree, block by block.

use std::collections::BTreeMap;
use std::sync::Arc;

use pst::Bid;
use pst::ndb::{NbtEntry, Ndb, NodeContent, NodeData, Subnodes};

use crate::error::{Result, SyncError};

/// Deeper nesting of subnodes than this is refused.
const MAX_DEPTH: usize = 8;

/// The content of a node, to be written to another PST.
pub(crate) fn content(ndb: &Arc<Ndb>, entry: &NbtEntry) -> Result<NodeContent> {
    of(ndb, entry.bid_data, entry.bid_sub, 0)
}

fn of(ndb: &Arc<Ndb>, data: Bid, sub: Bid, depth: usize) -> Result<NodeContent> {
    if depth > MAX_DEPTH {
        return Err(SyncError::package(
            "raw node",
            "subnodes are nested too deeply",
        ));
    }
    let data = if data.is_none() {
        NodeData::None
    } else {
        NodeData::Copy(Arc::clone(ndb), data)
    };
    let subnodes = if sub.is_none() {
        Subnodes::None
    } else {
        let mut tree = BTreeMap::new();
        for (nid, entry) in ndb.subnodes(sub)? {
            tree.insert(nid, of(ndb, entry.bid_data, entry.bid_sub, depth + 1)?);
        }
        Subnodes::Tree(tree)
    };
    Ok(NodeContent { data, subnodes })
}
