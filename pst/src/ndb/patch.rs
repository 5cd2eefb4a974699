//! Changing some blocks of a large tree ([MS-PST] 2.6.1.2.3, 2.6.1.2.5).
//!
//! Cost is that of what changes: the changed blocks, the XBLOCKs or SLBLOCKs that list them, the
//! root above. The other blocks are shared with the tree as it was.
//!
//! Shared how depends on who else holds the old tree. Where the node that is written has the only
//! reference (the usual case) an old XBLOCK is *taken apart*: the references that it held pass to
//! its successor, and not one of its blocks is looked up. Else the successor takes references of
//! its own (2.6.1.2.4). Both end with the same counts.

use std::collections::BTreeMap;

use super::Ndb;
use super::content::{DataPatch, SubnodePatch};
use super::content_write::check_depth;
use super::data_tree::XBlock;
use super::subnode::{SBlock, SubnodeEntry};
use super::transaction::NdbTransaction;
use crate::{Bid, Nid, PstError, Result};

/// An XBLOCK or SLBLOCK on its way from the old tree to the new one.
struct Part<T> {
    /// The stored block; `None` for a new one.
    bid: Option<Bid>,
    /// Whether a reference to it is ours to pass on or drop.
    owned: bool,
    entries: Vec<T>,
    /// Bytes of data below (XBLOCKs only).
    total: u64,
    changed: bool,
}

impl<T> Part<T> {
    const fn stored(bid: Bid, owned: bool, entries: Vec<T>, total: u64) -> Self {
        Self {
            bid: Some(bid),
            owned,
            entries,
            total,
            changed: false,
        }
    }

    const fn fresh(entries: Vec<T>) -> Self {
        Self {
            bid: None,
            owned: false,
            entries,
            total: 0,
            changed: true,
        }
    }
}

fn refused(why: &str) -> PstError {
    PstError::Refused(format!("patching a tree: {why}"))
}

impl NdbTransaction {
    /// Whether nobody but the holder of one reference refers to a block.
    fn is_sole(&self, bid: Bid) -> Result<bool> {
        Ok(self.block(bid)?.is_some_and(|e| e.cref <= 2))
    }

    /// Writes a changed data tree; the BID returned carries one reference for the caller to store.
    /// `owned`: the caller has a reference to the base and drops it afterwards.
    pub(super) fn put_patched_data(&mut self, patch: &DataPatch, owned: bool) -> Result<Bid> {
        let max = self.base.format().max_data();
        if patch.count == 0 {
            return Ok(Bid::NONE);
        }
        let last = patch.count.checked_sub(1);
        if let Some((i, b)) = patch
            .blocks
            .iter()
            .find(|(i, b)| Some(**i) > last || b.is_empty() || (Some(**i) < last && b.len() != max))
        {
            return Err(refused(&format!(
                "block {i} of {} with {} bytes",
                patch.count,
                b.len()
            )));
        }
        let mut parts = self.data_parts(patch.base)?;
        let before: usize = parts.iter().map(|p| p.entries.len()).sum();
        let mut changes: BTreeMap<usize, &[u8]> = BTreeMap::new();
        for (i, bytes) in &patch.blocks {
            let same = match entry_at(&parts, *i) {
                Some(bid) => self.holds(bid, bytes)?,
                None => false,
            };
            if !same {
                changes.insert(*i, bytes);
            }
        }
        if changes.is_empty() && patch.count == before {
            self.retain(patch.base)?;
            return Ok(patch.base);
        }
        if patch.count > before
            && let Some(old_last) = before.checked_sub(1)
            && !changes.contains_key(&old_last)
            && let Some(bid) = entry_at(&parts, old_last)
            && self.data_len(bid)? as usize != max
        {
            return Err(refused("a block that is not full would not be the last"));
        }

        // The XBLOCKs below an XXBLOCK are the root's: only with it do they become ours.
        let two_levels = parts.iter().any(|p| p.bid != Some(patch.base));
        if two_levels && owned && patch.base.is_internal() && self.is_sole(patch.base)? {
            self.take_apart(patch.base)?;
            parts.iter_mut().for_each(|p| p.owned = true);
        }
        let owned = owned && !two_levels;
        let bids = self.patch_parts(&mut parts, patch, &changes, owned)?;
        if let [only] = bids.as_slice() {
            return Ok(*only);
        }
        let total = self.checked_total(parts.iter().map(|p| p.total).sum())?;
        let width = self.base.format().max_xblock();
        if bids.len() > width {
            return Err(PstError::Limit {
                what: "data blocks of a node",
                found: patch.count as u64,
                limit: (width * width) as u64,
            });
        }
        let root = XBlock {
            level: 2,
            total,
            bids,
        };
        self.write_block(&root.encode(self.base.format()), true)
    }

    /// The XBLOCKs of a tree with their data blocks; a single data block is a part without a BID.
    fn data_parts(&self, base: Bid) -> Result<Vec<Part<Bid>>> {
        if base.is_none() {
            return Ok(Vec::new());
        }
        let format = self.base.format();
        if !base.is_internal() {
            let total = self.data_len(base)?;
            let mut part = Part::fresh(vec![base]);
            (part.total, part.changed) = (total, false);
            return Ok(vec![part]);
        }
        let parse = |bid: Bid| XBlock::parse(format, bid, &self.block_data(bid)?);
        let root = parse(base)?;
        if root.level == 1 {
            return Ok(vec![Part::stored(
                base,
                false,
                root.bids,
                root.total.into(),
            )]);
        }
        let mut parts = Vec::with_capacity(root.bids.len());
        for bid in root.bids {
            let x = parse(bid)?;
            if x.level != 1 {
                return Err(PstError::corrupt("cLevel", 0, "XXBLOCK below XXBLOCK"));
            }
            parts.push(Part::stored(bid, false, x.bids, x.total.into()));
        }
        Ok(parts)
    }

    fn data_len(&self, bid: Bid) -> Result<u64> {
        let entry = self.block(bid)?.ok_or_else(|| PstError::NotFound {
            what: "block",
            id: bid.to_string(),
        })?;
        Ok(entry.cb_data.into())
    }

    fn checked_total(&self, sum: u64) -> Result<u32> {
        u32::try_from(sum).map_err(|_| PstError::Limit {
            what: "node data in bytes",
            found: sum,
            limit: u32::MAX.into(),
        })
    }

    /// Applies the changes to the parts and writes those that changed. Returns one BID for each part
    /// that is left, or that of the only data block; each with a reference of ours.
    fn patch_parts(
        &mut self,
        parts: &mut Vec<Part<Bid>>,
        patch: &DataPatch,
        changes: &BTreeMap<usize, &[u8]>,
        owned: bool,
    ) -> Result<Vec<Bid>> {
        let format = self.base.format();
        // Cut off: whole parts first, then the end of the last one that stays.
        let mut start = 0;
        let mut keep = 0;
        for p in parts.iter() {
            if start >= patch.count {
                break;
            }
            start += p.entries.len();
            keep += 1;
        }
        for part in parts.split_off(keep) {
            if let (Some(bid), true) = (part.bid, part.owned) {
                self.release(bid)?;
            }
        }
        let mut first = 0;
        for part in parts.iter_mut() {
            let len = part.entries.len();
            let kept = len.min(patch.count - first);
            let touched = kept < len || changes.range(first..first + kept).next().is_some();
            if touched {
                let ours = self.own_entries(part, owned)?;
                let cut = part.entries.split_off(kept);
                for bid in cut {
                    part.total = part.total.saturating_sub(self.data_len(bid)?);
                    if ours {
                        self.release(bid)?;
                    }
                }
                for (i, bid) in part.entries.iter_mut().enumerate() {
                    match changes.get(&(first + i)) {
                        Some(bytes) => {
                            let old = self.data_len(*bid)?;
                            part.total = part.total.saturating_sub(old) + bytes.len() as u64;
                            if ours {
                                self.release(*bid)?;
                            }
                            *bid = self.write_block(bytes, false)?;
                        }
                        None if !ours => self.retain(*bid)?,
                        None => {}
                    }
                }
            }
            first += len.min(kept);
        }
        // Continue: fill up the last part, then new ones.
        for i in first..patch.count {
            let bytes = changes
                .get(&i)
                .ok_or_else(|| refused(&format!("no bytes for the new block {i}")))?;
            let full = parts
                .last()
                .is_none_or(|p| p.entries.len() >= format.max_xblock());
            if full {
                parts.push(Part::fresh(Vec::new()));
            }
            let Some(part) = parts.last_mut() else {
                return Err(refused("no part"));
            };
            if !part.changed && !self.own_entries(part, owned)? {
                for bid in &part.entries {
                    self.retain(*bid)?;
                }
            }
            part.entries.push(self.write_block(bytes, false)?);
            part.total += bytes.len() as u64;
        }
        if let [part] = parts.as_slice()
            && let [only] = part.entries.as_slice()
        {
            let only = *only;
            if !part.changed {
                self.retain(only)?;
            }
            if let (Some(bid), true, false) = (part.bid, part.owned, part.changed) {
                self.release(bid)?;
            }
            return Ok(vec![only]);
        }
        let mut bids = Vec::with_capacity(parts.len());
        for part in parts.iter() {
            bids.push(match part.bid {
                Some(bid) if !part.changed => {
                    if !part.owned {
                        self.retain(bid)?;
                    }
                    bid
                }
                _ => {
                    let x = XBlock {
                        level: 1,
                        total: self.checked_total(part.total)?,
                        bids: part.entries.clone(),
                    };
                    self.write_block(&x.encode(format), true)?
                }
            });
        }
        Ok(bids)
    }

    /// Makes a part one that is written anew; whether the references of its entries are ours now.
    /// If not, each entry that stays must be retained.
    fn own_entries<T>(&mut self, part: &mut Part<T>, owned: bool) -> Result<bool> {
        let first = !std::mem::replace(&mut part.changed, true);
        let Some(bid) = part.bid.filter(|_| first) else {
            return Ok(false);
        };
        let sole = (part.owned || owned) && self.is_sole(bid)?;
        if sole {
            self.take_apart(bid)?;
        } else if part.owned {
            self.release(bid)?;
        }
        part.owned = false;
        Ok(sole)
    }

    /// Writes a changed subnode tree; the BID returned carries one reference for the caller to store.
    pub(super) fn put_patched_subnodes(
        &mut self,
        patch: &SubnodePatch,
        owned: bool,
        depth: usize,
    ) -> Result<Bid> {
        check_depth(depth)?;
        if patch.changes.is_empty() {
            self.retain(patch.base)?;
            return Ok(patch.base);
        }
        let format = self.base.format();
        // SLBLOCKs by the first NID that they answer for; only those with changes are read.
        let mut leaves: Vec<(Nid, Part<SubnodeEntry>)> = Vec::new();
        if !patch.base.is_none() {
            match SBlock::parse(format, patch.base, &self.block_data(patch.base)?)? {
                SBlock::Leaf(entries) => {
                    leaves.push((Nid(0), Part::stored(patch.base, false, entries, 0)));
                }
                SBlock::Inner(children) => {
                    let sole = owned && self.is_sole(patch.base)?;
                    if sole {
                        self.take_apart(patch.base)?;
                    }
                    leaves.extend(
                        children
                            .into_iter()
                            .map(|(nid, bid)| (nid, Part::stored(bid, sole, Vec::new(), 0))),
                    );
                }
            }
        }
        if leaves.is_empty() {
            leaves.push((Nid(0), Part::fresh(Vec::new())));
        }
        let two_levels = leaves.len() > 1 || leaves.iter().any(|(_, p)| p.bid != Some(patch.base));

        let mut changes: BTreeMap<usize, Vec<Nid>> = BTreeMap::new();
        for nid in patch.changes.keys() {
            let at = leaves.partition_point(|(first, _)| first <= nid).max(1) - 1;
            changes.entry(at).or_default().push(*nid);
        }
        for (at, nids) in changes {
            let Some((_, part)) = leaves.get_mut(at) else {
                continue;
            };
            if let (Some(bid), true) = (part.bid, part.entries.is_empty()) {
                match SBlock::parse(format, bid, &self.block_data(bid)?)? {
                    SBlock::Leaf(entries) => part.entries = entries,
                    SBlock::Inner(_) => {
                        return Err(PstError::corrupt("cLevel", 0, "SIBLOCK below SIBLOCK"));
                    }
                }
            }
            // The SLBLOCK of a tree of two levels is ours only if the SIBLOCK was.
            let ours = self.own_entries(part, owned && !two_levels)?;
            let mut entries: BTreeMap<Nid, SubnodeEntry> =
                part.entries.drain(..).map(|e| (e.nid, e)).collect();
            if !ours {
                for e in entries.values() {
                    self.retain(e.bid_data)?;
                    self.retain(e.bid_sub)?;
                }
            }
            for nid in nids {
                let old = entries.remove(&nid);
                let (data, sub) = old.map_or((Bid::NONE, Bid::NONE), |e| (e.bid_data, e.bid_sub));
                if let Some(Some(content)) = patch.changes.get(&nid) {
                    let bid_data = self.put_data(&content.data, data, true)?;
                    let bid_sub = self.put_subnodes(&content.subnodes, sub, true, depth + 1)?;
                    entries.insert(
                        nid,
                        SubnodeEntry {
                            nid,
                            bid_data,
                            bid_sub,
                        },
                    );
                }
                self.release(data)?;
                self.release(sub)?;
            }
            part.entries = entries.into_values().collect();
        }
        self.put_leaves(leaves)
    }

    fn put_leaves(&mut self, leaves: Vec<(Nid, Part<SubnodeEntry>)>) -> Result<Bid> {
        let format = self.base.format();
        let mut out: Vec<(Nid, Bid)> = Vec::new();
        for (first, part) in leaves {
            match part.bid {
                Some(bid) if !part.changed => {
                    if !part.owned {
                        self.retain(bid)?;
                    }
                    out.push((first, bid));
                }
                _ => {
                    let pieces = part.entries.len().div_ceil(format.max_slblock()).max(1);
                    for chunk in part
                        .entries
                        .chunks(part.entries.len().div_ceil(pieces).max(1))
                    {
                        let nid = chunk.first().map_or(first, |e| e.nid);
                        let block = SBlock::Leaf(chunk.to_vec()).encode(format);
                        out.push((nid, self.write_block(&block, true)?));
                    }
                }
            }
        }
        if out.len() > format.max_siblock() {
            return Err(PstError::Limit {
                what: "SLBLOCKs of a node",
                found: out.len() as u64,
                limit: format.max_siblock() as u64,
            });
        }
        match out.as_slice() {
            [] => Ok(Bid::NONE),
            [(_, only)] => Ok(*only),
            _ => self.write_block(&SBlock::Inner(out).encode(format), true),
        }
    }
}

fn entry_at(parts: &[Part<Bid>], mut i: usize) -> Option<Bid> {
    for p in parts {
        match p.entries.get(i) {
            Some(bid) => return Some(*bid),
            None => i -= p.entries.len(),
        }
    }
    None
}

impl Ndb {
    /// The subnode `nid` in the tree at `bid`, by the SIBLOCK's keys: reads two blocks at most, where
    /// [`Ndb::subnodes`] reads all.
    ///
    /// # Errors
    /// [`PstError::NotFound`] for a missing block, [`PstError::Corrupt`] for a damaged tree.
    pub fn subnode(&self, bid: Bid, nid: Nid) -> Result<Option<SubnodeEntry>> {
        let entries = self.subnode_leaf(bid, Some(nid))?;
        Ok(entries.into_iter().find(|e| e.nid == nid))
    }

    /// The subnode with the greatest NID in the tree at `bid`.
    ///
    /// # Errors
    /// As [`Ndb::subnode`].
    pub fn last_subnode(&self, bid: Bid) -> Result<Option<SubnodeEntry>> {
        let entries = self.subnode_leaf(bid, None)?;
        Ok(entries.into_iter().max_by_key(|e| e.nid))
    }

    /// How many SLBLOCKs the subnode tree at `bid` has.
    pub(crate) fn subnode_leaves(&self, bid: Bid) -> Result<usize> {
        if bid.is_none() {
            return Ok(0);
        }
        match SBlock::parse(self.format(), bid, &self.block_data(bid)?)? {
            SBlock::Leaf(_) => Ok(1),
            SBlock::Inner(children) => Ok(children.len()),
        }
    }

    /// The SLBLOCK that answers for `nid`, or the last one.
    fn subnode_leaf(&self, bid: Bid, nid: Option<Nid>) -> Result<Vec<SubnodeEntry>> {
        if bid.is_none() {
            return Ok(Vec::new());
        }
        let parse = |bid: Bid| SBlock::parse(self.format(), bid, &self.block_data(bid)?);
        let children = match parse(bid)? {
            SBlock::Leaf(entries) => return Ok(entries),
            SBlock::Inner(children) => children,
        };
        let at = match nid {
            Some(nid) => children.partition_point(|(first, _)| *first <= nid),
            None => children.len(),
        };
        match children.get(at.max(1) - 1) {
            None => Ok(Vec::new()),
            Some((_, child)) => match parse(*child)? {
                SBlock::Leaf(entries) => Ok(entries),
                SBlock::Inner(_) => Err(PstError::corrupt("cLevel", 0, "SIBLOCK below SIBLOCK")),
            },
        }
    }
}
