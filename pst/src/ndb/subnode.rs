//! Subnode B-trees: SLBLOCK and SIBLOCK ([MS-PST] 2.2.2.8.3.3).

use std::collections::BTreeMap;

use super::Ndb;
use super::bytes::{put, slice, u8_at, u16_at, u32_at};
use super::format::Format;
use crate::{Bid, Nid, PstError, Result};

/// btype of SLBLOCK and SIBLOCK.
const BTYPE_SUBNODES: u8 = 2;

/// A subnode of a node (SLENTRY, 2.2.2.8.3.3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubnodeEntry {
    /// The subnode's id, unique inside its node only.
    pub nid: Nid,
    /// Its data tree.
    pub bid_data: Bid,
    /// Its own subnode tree; [`Bid::NONE`] without.
    pub bid_sub: Bid,
}

/// A parsed SLBLOCK or SIBLOCK.
pub(crate) enum SBlock {
    Leaf(Vec<SubnodeEntry>),
    Inner(Vec<(Nid, Bid)>),
}

impl SBlock {
    pub fn parse(format: &Format, bid: Bid, b: &[u8]) -> Result<Self> {
        let btype = u8_at(b, 0, "btype")?;
        let level = u8_at(b, 1, "cLevel")?;
        if btype != BTYPE_SUBNODES || level > 1 {
            return Err(PstError::corrupt(
                "btype",
                0,
                format!("block {bid}: type {btype:#04x} level {level} in a subnode tree"),
            ));
        }
        let count = usize::from(u16_at(b, 2, "cEnt")?);
        let w = format.bid_size;
        let size = if level == 0 { 3 * w } else { 2 * w };
        let entries = slice(b, format.slblock_header, count * size, "rgentries")?;
        if level == 0 {
            let mut out = Vec::with_capacity(count);
            for i in 0..count {
                out.push(SubnodeEntry {
                    nid: Nid(u32_at(entries, i * size, "SLENTRY.nid")?),
                    bid_data: Bid(format.id_at(entries, i * size + w, "SLENTRY.bidData")?),
                    bid_sub: Bid(format.id_at(entries, i * size + 2 * w, "SLENTRY.bidSub")?),
                });
            }
            Ok(Self::Leaf(out))
        } else {
            let mut out = Vec::with_capacity(count);
            for i in 0..count {
                out.push((
                    Nid(u32_at(entries, i * size, "SIENTRY.nid")?),
                    Bid(format.id_at(entries, i * size + w, "SIENTRY.bid")?),
                ));
            }
            Ok(Self::Inner(out))
        }
    }

    pub fn encode(&self, format: &Format) -> Vec<u8> {
        let w = format.bid_size;
        let (level, count, size) = match self {
            Self::Leaf(e) => (0, e.len(), 3 * w),
            Self::Inner(e) => (1, e.len(), 2 * w),
        };
        let mut b = vec![0; format.slblock_header + count * size];
        put(&mut b, 0, &[BTYPE_SUBNODES, level]);
        put(&mut b, 2, &(count as u16).to_le_bytes());
        let start = |i: usize| format.slblock_header + i * size;
        match self {
            Self::Leaf(entries) => {
                for (i, e) in entries.iter().enumerate() {
                    format.put_id(&mut b, start(i), u64::from(e.nid.0));
                    format.put_id(&mut b, start(i) + w, e.bid_data.0);
                    format.put_id(&mut b, start(i) + 2 * w, e.bid_sub.0);
                }
            }
            Self::Inner(entries) => {
                for (i, (nid, bid)) in entries.iter().enumerate() {
                    format.put_id(&mut b, start(i), u64::from(nid.0));
                    format.put_id(&mut b, start(i) + w, bid.0);
                }
            }
        }
        b
    }
}

impl Ndb {
    /// The subnodes in the tree at `bid`, by NID; none for [`Bid::NONE`].
    ///
    /// A tree has at most one SIBLOCK over its SLBLOCKs, so it is bounded by the block size.
    ///
    /// # Errors
    /// [`PstError::NotFound`] for a missing block, [`PstError::Corrupt`] for a damaged tree.
    pub fn subnodes(&self, bid: Bid) -> Result<BTreeMap<Nid, SubnodeEntry>> {
        Ok(self.subnode_tree(bid)?.0)
    }

    /// As [`Ndb::subnodes`], with the SIBLOCK and SLBLOCKs of the tree itself.
    ///
    /// # Errors
    /// As [`Ndb::subnodes`].
    pub fn subnode_tree(&self, bid: Bid) -> Result<(BTreeMap<Nid, SubnodeEntry>, Vec<Bid>)> {
        let mut out = BTreeMap::new();
        let mut blocks = Vec::new();
        if bid.is_none() {
            return Ok((out, blocks));
        }
        blocks.push(bid);
        let leaves = match SBlock::parse(self.format(), bid, &self.block_data(bid)?)? {
            SBlock::Leaf(entries) => vec![(bid, entries)],
            SBlock::Inner(children) => {
                let mut leaves = Vec::new();
                for (_, child) in children {
                    blocks.push(child);
                    match SBlock::parse(self.format(), child, &self.block_data(child)?)? {
                        SBlock::Leaf(entries) => leaves.push((child, entries)),
                        SBlock::Inner(_) => {
                            return Err(PstError::corrupt(
                                "cLevel",
                                0,
                                format!("block {child}: SIBLOCK below an SIBLOCK"),
                            ));
                        }
                    }
                }
                leaves
            }
        };
        for (leaf, entries) in leaves {
            for entry in entries {
                if out.insert(entry.nid, entry).is_some() {
                    return Err(PstError::corrupt(
                        "SLENTRY.nid",
                        0,
                        format!("block {leaf}: subnode {} twice", entry.nid),
                    ));
                }
            }
        }
        Ok((out, blocks))
    }
}
