//! The canonical form of an object: what it says, whatever its bytes, ids and place in the file.
//!
//! There is one traversal, [`Record`], and two renderings of it: a JSON line ([`crate::dump`]) and a
//! fingerprint ([`Record::fingerprint`]). Named properties stand under their names, derived and
//! per-file properties are left out ([`crate::derived`]), long values stand as their BLAKE3 and
//! length, and everything has a fixed order. The folder that holds an object is no part of it: a
//! move does not change a fingerprint.
//!
//! One thing that a message says stands in no property context but in its folder's contents table:
//! [`Record::cells`] ([`crate::derived::is_content_cell`] says which cells those are).

mod detail;
mod encode;
pub(crate) mod json;
mod record;

pub use detail::{AttachmentEdit, Detail, Edits, MAX_DETAIL};
pub use encode::FINGERPRINT_VERSION;
pub(crate) use encode::cells_hash;
pub use record::{CanonKey, CanonProp, CanonValue, Record, RecordAttachment, SHORT_VALUE};
pub(crate) use record::{canon_cells, canon_key, with_attach_flag};

use std::sync::Arc;

use crate::ndb::Ndb;
use crate::{Bid, PstError, Result};

/// The deepest subnode tree that is hashed as raw content.
const MAX_RAW_DEPTH: usize = 32;
/// The most subnodes that one raw node may have, over all levels.
const MAX_RAW_SUBNODES: usize = 1 << 20;

/// BLAKE3 over a node's decoded data and its subnode tree (NIDs, lengths and contents), read block
/// by block; returns it with the number of data bytes.
pub(crate) fn hash_tree(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Result<([u8; 32], u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut size = 0u64;
    let mut budget = MAX_RAW_SUBNODES;
    hash_level(
        ndb,
        bid_data,
        bid_sub,
        0,
        &mut budget,
        &mut hasher,
        &mut size,
    )?;
    Ok((*hasher.finalize().as_bytes(), size))
}

fn hash_level(
    ndb: &Arc<Ndb>,
    bid_data: Bid,
    bid_sub: Bid,
    depth: usize,
    budget: &mut usize,
    hasher: &mut blake3::Hasher,
    size: &mut u64,
) -> Result<()> {
    if depth > MAX_RAW_DEPTH {
        return Err(PstError::Limit {
            what: "subnode depth",
            found: depth as u64,
            limit: MAX_RAW_DEPTH as u64,
        });
    }
    if bid_data.is_none() {
        hasher.update(&0u64.to_le_bytes());
    } else {
        let tree = ndb.data(bid_data)?;
        hasher.update(&tree.len().to_le_bytes());
        *size = size.saturating_add(tree.len());
        for i in 0..tree.block_count() {
            hasher.update(&tree.read_block(ndb, i)?);
        }
    }
    if bid_sub.is_none() {
        hasher.update(&0u64.to_le_bytes());
        return Ok(());
    }
    let subnodes = ndb.subnodes(bid_sub)?;
    hasher.update(&(subnodes.len() as u64).to_le_bytes());
    *budget = budget.checked_sub(subnodes.len()).ok_or(PstError::Limit {
        what: "subnodes of one node",
        found: subnodes.len() as u64,
        limit: MAX_RAW_SUBNODES as u64,
    })?;
    for (nid, sub) in &subnodes {
        hasher.update(&nid.0.to_le_bytes());
        hash_level(
            ndb,
            sub.bid_data,
            sub.bid_sub,
            depth + 1,
            budget,
            hasher,
            size,
        )?;
    }
    Ok(())
}
