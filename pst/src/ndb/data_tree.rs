//! Data trees: the data of a node as one block, an XBLOCK or an XXBLOCK ([MS-PST] 2.2.2.8.3.2).

use std::cell::RefCell;

use super::Ndb;
use super::bytes::{put, slice, u8_at, u16_at, u32_at};
use super::format::Format;
use crate::{Bid, PstError, Result};

/// btype of XBLOCK and XXBLOCK.
const BTYPE_DATA_TREE: u8 = 1;

/// The data blocks of a node, in order.
#[derive(Clone, Debug)]
pub struct DataTree {
    bid: Bid,
    len: u64,
    blocks: Vec<Bid>,
    internal: Vec<Bid>,
}

impl DataTree {
    /// The BID under which the tree is referenced.
    #[must_use]
    pub const fn bid(&self) -> Bid {
        self.bid
    }

    /// Bytes of data in all blocks, as the tree's root states (verified by
    /// [`DataTree::read_all`]).
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no data.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many data blocks there are.
    #[must_use]
    pub const fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// The data blocks' BIDs, in order.
    #[must_use]
    pub fn block_bids(&self) -> &[Bid] {
        &self.blocks
    }

    /// The XBLOCKs and the XXBLOCK, root first; empty for a tree of one block.
    #[must_use]
    pub fn internal_bids(&self) -> &[Bid] {
        &self.internal
    }

    /// The decoded bytes of data block `i`.
    ///
    /// # Errors
    /// [`PstError::NotFound`] if there is no such block, [`PstError::Corrupt`] if it is damaged.
    pub fn read_block(&self, ndb: &Ndb, i: usize) -> Result<Vec<u8>> {
        let bid = self.blocks.get(i).ok_or_else(|| PstError::NotFound {
            what: "data block",
            id: i.to_string(),
        })?;
        ndb.block_data(*bid)
    }

    /// All bytes.
    ///
    /// # Errors
    /// [`PstError::Limit`] above `limit` bytes; [`PstError::Corrupt`] if the blocks do not add
    /// up to [`DataTree::len`].
    pub fn read_all(&self, ndb: &Ndb, limit: u64) -> Result<Vec<u8>> {
        if self.len > limit {
            return Err(PstError::Limit {
                what: "node data in bytes",
                found: self.len,
                limit,
            });
        }
        // Blocks are read before memory is committed to what a damaged root claims.
        let mut out = Vec::new();
        for i in 0..self.blocks.len() {
            out.extend_from_slice(&self.read_block(ndb, i)?);
            if out.len() as u64 > self.len {
                break;
            }
        }
        if out.len() as u64 != self.len {
            return Err(PstError::corrupt(
                "lcbTotal",
                0,
                format!(
                    "tree {}: {} stated, {} found",
                    self.bid,
                    self.len,
                    out.len()
                ),
            ));
        }
        Ok(out)
    }
}

/// A data tree read in pieces of another length than its blocks have: for a copy into a file of
/// another format.
pub(crate) struct Pieces {
    tree: DataTree,
    /// Where each block ends in the data.
    ends: Vec<u64>,
    size: u64,
    last: RefCell<Option<(usize, Vec<u8>)>>,
}

impl Pieces {
    /// Pieces of `size` bytes, the last one perhaps shorter.
    pub fn new(ndb: &Ndb, tree: DataTree, size: usize) -> Result<Self> {
        let mut ends = Vec::with_capacity(tree.block_count());
        let mut end = 0u64;
        for bid in tree.block_bids() {
            let entry = ndb.block(*bid)?.ok_or_else(|| PstError::NotFound {
                what: "block",
                id: bid.to_string(),
            })?;
            end += u64::from(entry.cb_data);
            ends.push(end);
        }
        if end != tree.len {
            let detail = format!("tree {}: {} stated, {end} found", tree.bid, tree.len);
            return Err(PstError::corrupt("lcbTotal", 0, detail));
        }
        Ok(Self {
            tree,
            ends,
            size: size.max(1) as u64,
            last: RefCell::new(None),
        })
    }

    pub fn count(&self) -> usize {
        usize::try_from(self.tree.len.div_ceil(self.size)).unwrap_or(usize::MAX)
    }

    pub fn read(&self, ndb: &Ndb, i: usize) -> Result<Vec<u8>> {
        let from = self.size.saturating_mul(i as u64);
        let to = from.saturating_add(self.size).min(self.tree.len);
        let mut out = Vec::new();
        let mut block = self.ends.partition_point(|end| *end <= from);
        let mut at = from;
        while at < to {
            let start = block.checked_sub(1).and_then(|b| self.ends.get(b));
            let start = start.copied().unwrap_or(0);
            let mut last = self.last.borrow_mut();
            if last.as_ref().is_none_or(|(b, _)| *b != block) {
                *last = Some((block, self.tree.read_block(ndb, block)?));
            }
            let bytes = last.as_ref().map(|(_, bytes)| bytes.as_slice());
            let rest = bytes.and_then(|b| b.get((at - start) as usize..));
            let rest = rest.unwrap_or_default();
            let rest = rest.get(..(to - at) as usize).unwrap_or(rest);
            out.extend_from_slice(rest);
            at += rest.len() as u64;
            block += 1;
        }
        Ok(out)
    }
}

/// A parsed XBLOCK or XXBLOCK.
pub(crate) struct XBlock {
    pub level: u8,
    pub total: u32,
    pub bids: Vec<Bid>,
}

impl XBlock {
    pub fn parse(format: &Format, bid: Bid, b: &[u8]) -> Result<Self> {
        let bad =
            |field, detail: String| PstError::corrupt(field, 0, format!("block {bid}: {detail}"));
        let btype = u8_at(b, 0, "btype")?;
        if btype != BTYPE_DATA_TREE {
            return Err(bad("btype", format!("{btype:#04x} in a data tree")));
        }
        let level = u8_at(b, 1, "cLevel")?;
        if level != 1 && level != 2 {
            return Err(bad("cLevel", format!("{level}, expected 1 or 2")));
        }
        let count = usize::from(u16_at(b, 2, "cEnt")?);
        let total = u32_at(b, 4, "lcbTotal")?;
        let entries = slice(b, format.xblock_header, count * format.bid_size, "rgbid")?;
        let mut bids = Vec::with_capacity(count);
        for i in 0..count {
            bids.push(Bid(format.id_at(entries, i * format.bid_size, "rgbid")?));
        }
        Ok(Self { level, total, bids })
    }

    pub fn encode(&self, format: &Format) -> Vec<u8> {
        let mut b = vec![0; format.xblock_header + self.bids.len() * format.bid_size];
        put(&mut b, 0, &[BTYPE_DATA_TREE, self.level]);
        put(&mut b, 2, &(self.bids.len() as u16).to_le_bytes());
        put(&mut b, 4, &self.total.to_le_bytes());
        for (i, bid) in self.bids.iter().enumerate() {
            format.put_id(&mut b, format.xblock_header + i * format.bid_size, bid.0);
        }
        b
    }
}

impl Ndb {
    /// Opens the data tree at `bid`; [`Bid::NONE`] gives an empty one.
    ///
    /// # Errors
    /// [`PstError::NotFound`] for a missing block, [`PstError::Corrupt`] for a damaged tree.
    pub fn data(&self, bid: Bid) -> Result<DataTree> {
        let mut tree = DataTree {
            bid,
            len: 0,
            blocks: Vec::new(),
            internal: Vec::new(),
        };
        if bid.is_none() {
            return Ok(tree);
        }
        if !bid.is_internal() {
            let entry = self.block(bid)?.ok_or_else(|| PstError::NotFound {
                what: "block",
                id: bid.to_string(),
            })?;
            tree.len = u64::from(entry.cb_data);
            tree.blocks.push(bid);
            return Ok(tree);
        }
        let root = XBlock::parse(self.format(), bid, &self.block_data(bid)?)?;
        tree.len = u64::from(root.total);
        tree.internal.push(bid);
        if root.level == 1 {
            tree.blocks = root.bids;
        } else {
            for child in root.bids {
                let x = XBlock::parse(self.format(), child, &self.block_data(child)?)?;
                if x.level != 1 {
                    return Err(PstError::corrupt(
                        "cLevel",
                        0,
                        format!("block {child}: {} below an XXBLOCK", x.level),
                    ));
                }
                tree.internal.push(child);
                tree.blocks.extend(x.bids);
            }
        }
        if let Some(bad) = tree.blocks.iter().find(|b| b.is_internal() || b.is_none()) {
            return Err(PstError::corrupt(
                "rgbid",
                0,
                format!("{bad} is not a data block"),
            ));
        }
        Ok(tree)
    }
}
