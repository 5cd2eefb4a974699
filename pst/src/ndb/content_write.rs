//! Writing node content: data trees and subnode trees ([MS-PST] 2.2.2.8.3.2, 2.2.2.8.3.3).
//!
//! Where a replaced node's old tree holds a block with the same bytes in the same place, the
//! block is shared and its reference count raised instead of being written again (2.6.1.2.3).
//! Wholly equal content keeps its BIDs, so that an unchanged object looks unchanged.

use std::borrow::Cow;
use std::collections::BTreeMap;

use storage::Payload;

use super::btree::NbtEntry;
use super::content::{NodeContent, NodeData, Subnodes};
use super::data_tree::{DataTree, Pieces, XBlock};
use super::subnode::{SBlock, SubnodeEntry};
use super::transaction::NdbTransaction;
use crate::{Bid, Nid, PstError, Result};

/// How deep subnodes may nest: each embedded message takes two levels.
const MAX_DEPTH: usize = 128;

/// Where the blocks of new data come from.
enum Source<'a> {
    Bytes(&'a [u8], usize),
    Blocks(&'a [Vec<u8>]),
    Copy(&'a super::Ndb, DataTree),
    Recut(&'a super::Ndb, Pieces),
    Payload(&'a Payload, usize),
}

impl<'a> Source<'a> {
    fn count(&self) -> usize {
        match self {
            Self::Bytes(b, size) => b.len().div_ceil(*size),
            Self::Blocks(b) => b.len(),
            Self::Copy(_, tree) => tree.block_count(),
            Self::Recut(_, pieces) => pieces.count(),
            Self::Payload(p, size) => {
                usize::try_from(p.len().div_ceil(*size as u64)).unwrap_or(usize::MAX)
            }
        }
    }

    fn block(&self, i: usize) -> Result<Cow<'a, [u8]>> {
        let missing = || PstError::NotFound {
            what: "data block",
            id: i.to_string(),
        };
        match self {
            Self::Bytes(b, size) => b
                .chunks(*size)
                .nth(i)
                .map(Cow::Borrowed)
                .ok_or_else(missing),
            Self::Blocks(b) => b
                .get(i)
                .map(|b| Cow::Borrowed(b.as_slice()))
                .ok_or_else(missing),
            Self::Copy(ndb, tree) => tree.read_block(ndb, i).map(Cow::Owned),
            Self::Recut(ndb, pieces) => pieces.read(ndb, i).map(Cow::Owned),
            Self::Payload(p, size) => {
                let at = i as u64 * *size as u64;
                let n = p.len().saturating_sub(at).min(*size as u64);
                let mut out = vec![0; n as usize];
                p.read_exact_at(at, &mut out)
                    .map_err(|source| PstError::Io { offset: at, source })?;
                Ok(Cow::Owned(out))
            }
        }
    }
}

impl NdbTransaction {
    /// Puts a node: creates it, or replaces its content and parent and gives the old blocks back.
    ///
    /// # Errors
    /// [`PstError::Limit`] for content that the format cannot hold, [`PstError::NotFound`] for a
    /// shared or copied block that does not exist; errors of reading. After an error the
    /// transaction can only be dropped.
    pub fn put_node(&mut self, nid: Nid, parent: Nid, content: &NodeContent) -> Result<NbtEntry> {
        let result = self.put(nid, parent, content);
        self.failed |= result.is_err();
        result
    }

    fn put(&mut self, nid: Nid, parent: Nid, content: &NodeContent) -> Result<NbtEntry> {
        let old = self.node(nid)?;
        let (old_data, old_sub) = old.map_or((Bid::NONE, Bid::NONE), |o| (o.bid_data, o.bid_sub));
        let bid_data = self.put_data(&content.data, old_data)?;
        let bid_sub = self.put_subnodes(&content.subnodes, old_sub, 0)?;
        let entry = NbtEntry {
            nid,
            bid_data,
            bid_sub,
            nid_parent: parent,
        };
        self.set_node(entry);
        self.note_nid(nid);
        self.release(old_data)?;
        self.release(old_sub)?;
        Ok(entry)
    }

    /// Writes data; the BID returned carries one reference for the caller to store.
    fn put_data(&mut self, data: &NodeData, old: Bid) -> Result<Bid> {
        let max = self.base.format().max_data();
        let source = match data {
            NodeData::None => return Ok(Bid::NONE),
            NodeData::Existing(bid) => {
                self.retain(*bid)?;
                return Ok(*bid);
            }
            NodeData::Bytes(bytes) => Source::Bytes(bytes, max),
            NodeData::Blocks(blocks) => Source::Blocks(blocks),
            NodeData::Payload(payload) => Source::Payload(payload, max),
            NodeData::Copy(ndb, bid) => {
                let tree = ndb.data(*bid)?;
                // Blocks of a file of another format are full at another length.
                let fits = tree.block_count() == 1 && tree.len() <= max as u64;
                if fits || ndb.format() == self.base.format() {
                    Source::Copy(ndb, tree)
                } else {
                    Source::Recut(ndb, Pieces::new(ndb, tree, max)?)
                }
            }
        };
        let count = source.count();
        let width = self.base.format().max_xblock();
        if count > width * width {
            // Said before gigabytes are written, not after.
            return Err(PstError::Limit {
                what: "data blocks of a node",
                found: count as u64,
                limit: (width * width) as u64,
            });
        }
        if count == 0 {
            return Ok(Bid::NONE);
        }
        // A damaged old tree is simply not shared with.
        let old_blocks = match self.data_blocks(old) {
            Ok(blocks) => blocks,
            Err(PstError::Io { offset, source }) => return Err(PstError::Io { offset, source }),
            Err(_) => Vec::new(),
        };

        let mut blocks = Vec::with_capacity(count);
        let mut lengths = Vec::with_capacity(count);
        let mut shared = 0;
        for i in 0..count {
            if let Source::Copy(from, tree) = &source
                && old_blocks.get(i).is_none()
                && let Some(bid) = tree.block_bids().get(i)
                && let Some((bid, len)) = self.copy_block(from, *bid)?
            {
                lengths.push(len);
                blocks.push(bid);
                continue;
            }
            let bytes = source.block(i)?;
            lengths.push(bytes.len() as u64);
            match old_blocks.get(i) {
                Some(bid) if self.holds(*bid, &bytes)? => {
                    self.retain(*bid)?;
                    blocks.push(*bid);
                    shared += 1;
                }
                _ => blocks.push(self.write_block(&bytes, false)?),
            }
        }
        if let ([only], 1) = (blocks.as_slice(), count) {
            return Ok(*only);
        }
        if shared == count && old_blocks.len() == count {
            for bid in blocks {
                self.release(bid)?;
            }
            self.retain(old)?;
            return Ok(old);
        }
        self.put_xblocks(&blocks, &lengths)
    }

    /// Whether a block exists, is whole and holds exactly these bytes.
    fn holds(&self, bid: Bid, bytes: &[u8]) -> Result<bool> {
        match self.block(bid)? {
            Some(entry) if usize::from(entry.cb) == bytes.len() && entry.cref < u16::MAX => {
                match self.block_data(bid) {
                    Ok(data) => Ok(data == bytes),
                    Err(PstError::Io { offset, source }) => Err(PstError::Io { offset, source }),
                    Err(_) => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    /// The data blocks of a tree as edited so far.
    fn data_blocks(&self, bid: Bid) -> Result<Vec<Bid>> {
        if bid.is_none() {
            return Ok(Vec::new());
        }
        if !bid.is_internal() {
            return Ok(vec![bid]);
        }
        let format = self.base.format();
        let root = XBlock::parse(format, bid, &self.block_data(bid)?)?;
        if root.level == 1 {
            return Ok(root.bids);
        }
        let mut out = Vec::new();
        for child in root.bids {
            out.extend(XBlock::parse(format, child, &self.block_data(child)?)?.bids);
        }
        Ok(out)
    }

    fn put_xblocks(&mut self, blocks: &[Bid], lengths: &[u64]) -> Result<Bid> {
        let format = self.base.format();
        let width = format.max_xblock();
        let total = |lengths: &[u64]| -> Result<u32> {
            let sum: u64 = lengths.iter().sum();
            u32::try_from(sum).map_err(|_| PstError::Limit {
                what: "node data in bytes",
                found: sum,
                limit: u64::from(u32::MAX),
            })
        };
        total(lengths)?;
        let mut parts = Vec::new();
        for (bids, lengths) in blocks.chunks(width).zip(lengths.chunks(width)) {
            let x = XBlock {
                level: 1,
                total: total(lengths)?,
                bids: bids.to_vec(),
            };
            parts.push(self.write_block(&x.encode(format), true)?);
        }
        if let [only] = parts.as_slice() {
            return Ok(*only);
        }
        let xx = XBlock {
            level: 2,
            total: total(lengths)?,
            bids: parts,
        };
        self.write_block(&xx.encode(format), true)
    }

    /// Writes subnodes; the BID returned carries one reference for the caller to store.
    fn put_subnodes(&mut self, subnodes: &Subnodes, old: Bid, depth: usize) -> Result<Bid> {
        let tree = match subnodes {
            Subnodes::None => return Ok(Bid::NONE),
            Subnodes::Existing(bid) => {
                self.retain(*bid)?;
                return Ok(*bid);
            }
            Subnodes::Tree(tree) if tree.is_empty() => return Ok(Bid::NONE),
            Subnodes::Tree(tree) => tree,
        };
        if depth >= MAX_DEPTH {
            return Err(PstError::Limit {
                what: "levels of subnodes",
                found: depth as u64 + 1,
                limit: MAX_DEPTH as u64,
            });
        }
        let old_entries = match self.subnode_entries(old) {
            Ok(entries) => entries,
            Err(PstError::Io { offset, source }) => return Err(PstError::Io { offset, source }),
            Err(_) => BTreeMap::new(),
        };
        let mut entries = Vec::with_capacity(tree.len());
        for (nid, content) in tree {
            let before = old_entries.get(nid);
            let (data, sub) = before.map_or((Bid::NONE, Bid::NONE), |e| (e.bid_data, e.bid_sub));
            let bid_data = self.put_data(&content.data, data)?;
            let bid_sub = self.put_subnodes(&content.subnodes, sub, depth + 1)?;
            entries.push(SubnodeEntry {
                nid: *nid,
                bid_data,
                bid_sub,
            });
        }
        if !old.is_none() && entries.iter().eq(old_entries.values()) {
            for e in entries {
                self.release(e.bid_data)?;
                self.release(e.bid_sub)?;
            }
            self.retain(old)?;
            return Ok(old);
        }
        self.put_slblocks(&entries)
    }

    /// The subnodes in a tree as edited so far.
    fn subnode_entries(&self, bid: Bid) -> Result<BTreeMap<Nid, SubnodeEntry>> {
        let mut out = BTreeMap::new();
        if bid.is_none() {
            return Ok(out);
        }
        let format = self.base.format();
        let mut leaf =
            |entries: Vec<SubnodeEntry>| out.extend(entries.into_iter().map(|e| (e.nid, e)));
        match SBlock::parse(format, bid, &self.block_data(bid)?)? {
            SBlock::Leaf(entries) => leaf(entries),
            SBlock::Inner(children) => {
                for (_, child) in children {
                    match SBlock::parse(format, child, &self.block_data(child)?)? {
                        SBlock::Leaf(entries) => leaf(entries),
                        SBlock::Inner(_) => {
                            return Err(PstError::corrupt("cLevel", 0, "SIBLOCK below SIBLOCK"));
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    fn put_slblocks(&mut self, entries: &[SubnodeEntry]) -> Result<Bid> {
        let format = self.base.format();
        let limit = format.max_slblock() * format.max_siblock();
        if entries.len() > limit {
            return Err(PstError::Limit {
                what: "subnodes of a node",
                found: entries.len() as u64,
                limit: limit as u64,
            });
        }
        let mut parts = Vec::new();
        for chunk in entries.chunks(format.max_slblock()) {
            let block = SBlock::Leaf(chunk.to_vec()).encode(format);
            let first = chunk.first().map_or(Nid(0), |e| e.nid);
            parts.push((first, self.write_block(&block, true)?));
        }
        if let [(_, only)] = parts.as_slice() {
            return Ok(*only);
        }
        self.write_block(&SBlock::Inner(parts).encode(format), true)
    }
}
