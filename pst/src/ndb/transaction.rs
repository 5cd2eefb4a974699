//! Editing a file ([MS-PST] 2.6.1): one transaction, one write set, every cut a valid file.
//!
//! A transaction writes into an [`Overlay`] over the committed file. Blocks and pages are never
//! changed in place: what is new goes into space that the committed AMaps call free
//! ([`Space`]), under new BIDs; what is replaced keeps its bytes until the end. Edits of the two
//! B-trees are gathered and merged in batches. [`NdbTransaction::finish`] gives the write set in
//! phases, each made durable before the next:
//!
//! 1. `invalid`: the old header with fAMapValid = 0;
//! 2. `blocks`: new blocks and pages, into free space and behind the old end of the file;
//! 3. `header`: both new roots and all counters in one write, AMaps still invalid;
//! 4. `maps`: AMap, PMap and density list pages;
//! 5. `valid`: the header with fAMapValid = 2.
//!
//! Up to the third phase the file opens as before, from then on as after; while the AMaps are
//! marked invalid, the next transaction recomputes them from the trees.
//!
//! The result depends on the committed bytes and the calls alone: no clock, no randomness. Cost
//! follows what is edited, not the size of the file; with a scratch ([`EditOptions`]) memory does
//! not even follow that: new blocks and pages lie there until the write set is committed.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use storage::{Overlay, Payload, Phase, ReadAt, Scratch, WriteAt, WriteSet};

use super::amap::Space;
use super::block::{name_block, seal_block};
use super::btree::{BbtEntry, BtLeaf, NbtEntry};
use super::btree_write::{self, PageSpace};
use super::crypt::CryptMethod;
use super::limits::SizeLimits;
use super::maps::{dlist_hints, map_writes};
use super::recompute::walk_pages;
use super::{Header, Ndb, SharedCache};
use crate::{Bid, Bref, Nid, NidType, PstError, Result};

/// The largest index in a NID (27 bits).
const MAX_NID_INDEX: u32 = (1 << 27) - 1;

/// Pending edits of the block B-tree that are merged into it without being asked for: what bounds
/// their memory.
const MERGE_AT: usize = 1 << 14;

/// How an edit is made. The default: all in memory, and the format's own size limit.
#[derive(Clone, Default)]
pub struct EditOptions {
    /// Where new blocks and pages go that do not fit into `memory`.
    pub scratch: Option<Arc<dyn Scratch>>,
    /// Bytes of new blocks and pages that are kept in memory where there is a scratch.
    pub memory: u64,
    /// The largest size that the file may grow to, in bytes; `None`: [`SizeLimits::of`] its format.
    pub max_size: Option<u64>,
}

/// A reader of the uncommitted state sees this storage.
pub(super) type Work = Arc<Overlay<Arc<dyn ReadAt>>>;

/// An edit of a node database. Dropping it changes nothing.
pub struct NdbTransaction {
    pub(super) base: Arc<Ndb>,
    pub(super) work: Work,
    pub(super) header: Header,
    space: Space,
    nbt: BTreeMap<u64, Option<NbtEntry>>,
    pub(super) bbt: BTreeMap<u64, Option<BbtEntry>>,
    /// Reads the trees as of the last merge.
    reader: Arc<Ndb>,
    cache: SharedCache,
    /// Views handed out, which may still be in use.
    views: Vec<Weak<Ndb>>,
    /// Space that this transaction took and no longer needs, but that a view may still read.
    dead: Vec<(u64, usize)>,
    pub(super) changed: bool,
    /// An edit stopped half-way: its references do not add up.
    pub(super) failed: bool,
}

impl NdbTransaction {
    /// Begins an edit of the committed file `base`. Reads no more than the last page of the
    /// block B-tree, unless the AMaps are marked invalid and must be recomputed.
    ///
    /// # Errors
    /// [`PstError::Refused`] for a file too damaged to be edited, or of a format that is only read;
    /// errors of reading.
    pub fn begin(base: Arc<Ndb>) -> Result<Self> {
        Self::begin_with(base, &EditOptions::default())
    }

    /// As [`NdbTransaction::begin`], with options.
    ///
    /// # Errors
    /// As [`NdbTransaction::begin`].
    pub fn begin_with(base: Arc<Ndb>, options: &EditOptions) -> Result<Self> {
        let trusted = base.header().maps_valid();
        Self::start(base, trusted, options)
    }

    /// As [`NdbTransaction::begin`], but recomputes the AMaps from the trees even where they are
    /// marked valid: gives back leaked space, and repairs damaged map pages.
    ///
    /// # Errors
    /// As [`NdbTransaction::begin`].
    pub fn begin_recomputed(base: Arc<Ndb>) -> Result<Self> {
        let mut transaction = Self::start(base, false, &EditOptions::default())?;
        transaction.changed = true;
        Ok(transaction)
    }

    fn start(base: Arc<Ndb>, trusted: bool, options: &EditOptions) -> Result<Self> {
        base.format().require_writable()?;
        let below = Arc::clone(base.storage());
        let work = match &options.scratch {
            Some(scratch) => Overlay::with_scratch(below, Arc::clone(scratch), options.memory),
            None => Overlay::new(below),
        };
        let work: Work = Arc::new(work.map_err(|source| PstError::Io { offset: 0, source })?);
        let mut header = base.header().clone();
        // The counter may be behind the blocks: torn headers, and writers that forget it.
        if let Some(last) = base.last_entry::<BbtEntry>()? {
            let limit = base.format().max_id() - 4;
            let least = (last.key() & !3).checked_add(4);
            let least = least.filter(|n| *n <= limit).ok_or(PstError::Limit {
                what: "bidNextB",
                found: last.key(),
                limit,
            })?;
            header.bid_next_block = Bid(header.bid_next_block.0.max(least));
        }
        let dense = dlist_hints(&base)?;
        let limit = SizeLimits::of(base.format()).max;
        let mut space = Space::new(&base, dense, options.max_size.unwrap_or(limit))?;
        if !trusted {
            space.recompute(&base)?;
        }
        let cache = SharedCache::default();
        let reader = Arc::new(Ndb::assemble(
            Arc::clone(&work) as _,
            header.clone(),
            cache.clone(),
        ));
        Ok(Self {
            base,
            work,
            header,
            space,
            nbt: BTreeMap::new(),
            bbt: BTreeMap::new(),
            reader,
            cache,
            views: Vec::new(),
            dead: Vec::new(),
            changed: false,
            failed: false,
        })
    }

    /// The committed file that this edit is based on.
    #[must_use]
    pub const fn base(&self) -> &Arc<Ndb> {
        &self.base
    }

    /// The node `nid` as edited so far.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn node(&self, nid: Nid) -> Result<Option<NbtEntry>> {
        match self.nbt.get(&u64::from(nid.0)) {
            Some(edit) => Ok(*edit),
            None => self.reader.node(nid),
        }
    }

    /// The block `bid` as edited so far.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn block(&self, bid: Bid) -> Result<Option<BbtEntry>> {
        match self.bbt.get(&bid.key()) {
            Some(edit) => Ok(*edit),
            None => self.reader.block(bid),
        }
    }

    /// A reader of the state as edited so far. It stays as it is under later edits. Pending
    /// edits of the trees are merged first, so ask for one when it is needed, not per property.
    ///
    /// # Errors
    /// Errors of reading and allocating.
    pub fn view(&mut self) -> Result<Arc<Ndb>> {
        self.merge()?;
        let view = Arc::new(Ndb::assemble(
            Arc::clone(&self.work) as _,
            self.header.clone(),
            self.cache.clone(),
        ));
        self.views.push(Arc::downgrade(&view));
        Ok(view)
    }

    /// Hands out the next unused NID of a type from rgnid (2.2.2.6).
    ///
    /// # Errors
    /// [`PstError::Limit`] when the type's 27-bit index is used up.
    pub fn alloc_nid(&mut self, kind: NidType) -> Result<Nid> {
        loop {
            let slot = self.header.rgnid.get_mut(usize::from(kind.0 & 0x1F));
            let slot = slot.ok_or_else(|| PstError::Refused("no such node type".into()))?;
            if *slot >= MAX_NID_INDEX {
                return Err(PstError::Limit {
                    what: "node index",
                    found: u64::from(*slot) + 1,
                    limit: u64::from(MAX_NID_INDEX),
                });
            }
            *slot += 1;
            let nid = Nid::new(kind, *slot);
            self.changed = true;
            if self.node(nid)?.is_none() {
                return Ok(nid);
            }
        }
    }

    /// Raises rgnid so that [`NdbTransaction::alloc_nid`] does not hand out `nid`'s index again.
    pub(super) fn note_nid(&mut self, nid: Nid) {
        let counted = [
            NidType::NORMAL_FOLDER,
            NidType::SEARCH_FOLDER,
            NidType::NORMAL_MESSAGE,
            NidType::ASSOC_MESSAGE,
        ];
        // An index far ahead is left alone: following it would use the numbers up.
        if counted.contains(&nid.kind())
            && nid.index() < MAX_NID_INDEX / 2
            && let Some(slot) = self.header.rgnid.get_mut(usize::from(nid.kind().0))
        {
            *slot = (*slot).max(nid.index());
        }
    }

    /// Changes a node's parent.
    ///
    /// # Errors
    /// [`PstError::NotFound`] without such a node.
    pub fn set_parent(&mut self, nid: Nid, parent: Nid) -> Result<NbtEntry> {
        let mut entry = self.existing(nid)?;
        entry.nid_parent = parent;
        self.set_node(entry);
        Ok(entry)
    }

    /// Deletes a node and gives back its blocks.
    ///
    /// # Errors
    /// [`PstError::NotFound`] without such a node.
    pub fn delete_node(&mut self, nid: Nid) -> Result<()> {
        let entry = self.existing(nid)?;
        self.changed = true;
        self.nbt.insert(u64::from(nid.0), None);
        let result = self
            .release(entry.bid_data)
            .and_then(|()| self.release(entry.bid_sub));
        self.failed |= result.is_err();
        result
    }

    fn existing(&self, nid: Nid) -> Result<NbtEntry> {
        self.node(nid)?.ok_or_else(|| PstError::NotFound {
            what: "node",
            id: nid.to_string(),
        })
    }

    pub(super) fn set_node(&mut self, entry: NbtEntry) {
        self.changed = true;
        self.nbt.insert(entry.key(), Some(entry));
    }

    /// Writes a block with one reference besides its B-tree entry (2.2.2.7.7.3.1).
    pub(super) fn write_block(&mut self, data: &[u8], internal: bool) -> Result<Bid> {
        let format = self.base.format();
        if data.len() > format.max_data() {
            return Err(PstError::Limit {
                what: "block data in bytes",
                found: data.len() as u64,
                limit: format.max_data() as u64,
            });
        }
        let bref = self.name_of_block(format.block_space(data.len()), internal)?;
        let stored = seal_block(format, self.header.crypt, bref, data);
        self.put_block(bref, data.len() as u16, &stored)
    }

    /// Writes a data block of another file as it is stored there, if that is how this file would
    /// store it too. Gives the new BID and the bytes of data.
    pub(super) fn copy_block(&mut self, from: &Ndb, bid: Bid) -> Result<Option<(Bid, u64)>> {
        let format = self.base.format();
        let crypt = self.header.crypt;
        if from.format() != format || from.header().crypt != crypt || crypt == CryptMethod::Cyclic {
            return Ok(None);
        }
        let Some(entry) = from.block(bid)?.filter(|e| e.cb == e.cb_data) else {
            return Ok(None);
        };
        if bid.is_internal() || usize::from(entry.cb) > format.max_data() {
            return Ok(None);
        }
        let mut stored = from.stored_block(&entry)?;
        let bref = self.name_of_block(stored.len(), false)?;
        name_block(format, &mut stored, bref);
        let bid = self.put_block(bref, entry.cb, &stored)?;
        Ok(Some((bid, u64::from(entry.cb))))
    }

    /// A new BID, and space for a block of `len` bytes as stored.
    fn name_of_block(&mut self, len: usize, internal: bool) -> Result<Bref> {
        let max = self.base.format().max_id() - 8;
        let limit = PstError::Limit {
            what: "bidNextB",
            found: self.header.bid_next_block.0,
            limit: max,
        };
        let next = self.header.bid_next_block.0.checked_next_multiple_of(4);
        let next = next.filter(|n| *n <= max).ok_or(limit)?;
        let ib = self.take(len, false)?;
        self.header.bid_next_block = Bid(next + 4);
        let bid = Bid(next | if internal { 2 } else { 0 });
        Ok(Bref { bid, ib })
    }

    fn put_block(&mut self, bref: Bref, cb: u16, stored: &[u8]) -> Result<Bid> {
        self.write(bref.ib, stored)?;
        self.changed = true;
        let entry = BbtEntry {
            bref,
            cb,
            cb_data: cb,
            cref: 2,
        };
        self.bbt.insert(bref.bid.key(), Some(entry));
        if self.bbt.len() >= MERGE_AT {
            self.merge()?;
        }
        Ok(bref.bid)
    }

    /// The decoded data of a block as edited so far.
    pub(super) fn block_data(&self, bid: Bid) -> Result<Vec<u8>> {
        let entry = self.block(bid)?.ok_or_else(|| PstError::NotFound {
            what: "block",
            id: bid.to_string(),
        })?;
        self.reader.block_data_of(&entry)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.work
            .write_all_at(offset, data)
            .map_err(|source| PstError::Io { offset, source })
    }

    fn take(&mut self, len: usize, page: bool) -> Result<u64> {
        self.reclaim()?;
        self.with_space(|space, ndb| space.alloc(ndb, len, page))
    }

    pub(super) fn give_back(&mut self, ib: u64, len: usize) -> Result<()> {
        if !self.space.is_mine(ib) {
            return self.with_space(|space, ndb| space.free_committed(ndb, ib, len));
        }
        if self.viewed() {
            self.dead.push((ib, len));
            return Ok(());
        }
        self.space.free_mine(ib, len)
    }

    /// Works on the space; recomputes it once where the AMaps turn out to be damaged or to lie.
    fn with_space<T>(&mut self, f: impl Fn(&mut Space, &Ndb) -> Result<T>) -> Result<T> {
        let result = f(&mut self.space, &self.base);
        if result.is_err() && self.space.suspect {
            self.space.recompute(&self.base)?;
            return f(&mut self.space, &self.base);
        }
        result
    }

    /// Whether somebody may still read an earlier state of this edit.
    fn viewed(&mut self) -> bool {
        self.views.retain(|v| v.strong_count() > 0);
        !self.views.is_empty()
    }

    /// Space that only dropped views could read becomes free.
    fn reclaim(&mut self) -> Result<()> {
        if self.dead.is_empty() || self.viewed() {
            return Ok(());
        }
        for (ib, len) in std::mem::take(&mut self.dead) {
            self.space.free_mine(ib, len)?;
        }
        Ok(())
    }

    /// Merges the pending edits into both trees.
    fn merge(&mut self) -> Result<()> {
        if self.nbt.is_empty() && self.bbt.is_empty() {
            return Ok(());
        }
        // Half a merge is no state at all.
        let failed = std::mem::replace(&mut self.failed, true);
        let reader = Arc::clone(&self.reader);
        let nbt = effective(&reader, std::mem::take(&mut self.nbt))?;
        let bbt = effective(&reader, std::mem::take(&mut self.bbt))?;
        self.header.nbt = btree_write::apply(&reader, self, &nbt)?;
        self.header.bbt = btree_write::apply(&reader, self, &bbt)?;
        self.reader = Arc::new(Ndb::assemble(
            Arc::clone(&self.work) as _,
            self.header.clone(),
            self.cache.clone(),
        ));
        self.failed = failed;
        Ok(())
    }

    /// Compares the space that this edit has taken with every page and block of the committed
    /// file, by a walk over both trees. Space is held against what lies there when it is taken; this
    /// is the long way to the same answer.
    ///
    /// # Errors
    /// [`PstError::Refused`] if the edit would overwrite something.
    pub fn verify_space(&mut self) -> Result<()> {
        self.merge()?;
        let taken: storage::RangeSet = self
            .space
            .taken()
            .into_iter()
            .map(|(ib, len)| ib..ib + len)
            .collect();
        let format = self.base.format();
        let clash = |ib: u64, len: usize| -> Result<()> {
            if taken.intersects(ib..ib.saturating_add(len as u64)) {
                return Err(PstError::Refused(format!(
                    "the allocation maps call the used space at {ib:#x} free; \
                     the file needs its maps recomputed"
                )));
            }
            Ok(())
        };
        walk_pages::<NbtEntry>(&self.base, &mut |p| clash(p.bref.ib, format.page_size))?;
        walk_pages::<BbtEntry>(&self.base, &mut |p| clash(p.bref.ib, format.page_size))?;
        for block in self.base.blocks() {
            let block = block?;
            clash(block.bref.ib, format.block_space(usize::from(block.cb)))?;
        }
        Ok(())
    }

    /// Ends the edit: the write set that brings the committed file to the edited state.
    ///
    /// # Errors
    /// Errors of reading and allocating.
    pub fn finish(mut self) -> Result<WriteSet> {
        let base_len = self
            .base
            .storage()
            .len()
            .map_err(|source| PstError::Io { offset: 0, source })?;
        if self.failed {
            return Err(PstError::Refused(
                "an earlier edit of the transaction failed".into(),
            ));
        }
        if !self.changed {
            return Ok(WriteSet::empty(base_len));
        }
        self.merge()?;
        for (ib, len) in std::mem::take(&mut self.dead) {
            self.space.free_mine(ib, len)?;
        }

        let unique = self.header.unique;
        let mut old = self.base.header().clone();
        old.bid_next_block = self.header.bid_next_block;
        old.amap_valid = 0;
        old.unique = unique.wrapping_add(1);

        let maps = map_writes(&self.base, &self.space, &mut self.header)?;
        let mut blocks = Phase::new("blocks");
        // Not copied: they are read from where they lie when the write set is committed.
        for (ib, len) in self.space.taken() {
            let work = Arc::clone(&self.work) as Arc<dyn ReadAt>;
            blocks.writes.push((ib, Payload::stored(work, ib, len)));
        }
        blocks.writes.extend(maps.fresh);
        blocks.writes.sort_by_key(|(ib, _)| *ib);
        // The file must have its new length before a header says so.
        let target_len = base_len.max(self.header.file_eof);
        let reached = blocks
            .writes
            .iter()
            .any(|(ib, data)| ib + data.len() > base_len);
        if target_len > base_len && !reached {
            blocks.writes.push((target_len - 1, vec![0].into()));
        }

        self.header.amap_valid = 0;
        self.header.unique = unique.wrapping_add(2);
        let new = self.header.encode();
        self.header.amap_valid = 2;
        self.header.unique = unique.wrapping_add(3);
        let valid = self.header.encode();

        let phase = |name: &str, writes| Phase {
            name: name.into(),
            writes,
        };
        let write_set = WriteSet {
            base_len,
            target_len,
            phases: vec![
                phase("invalid", vec![(0, old.encode().into())]),
                blocks,
                phase("header", vec![(0, new.into())]),
                phase("maps", maps.changed),
                phase("valid", vec![(0, valid.into())]),
            ],
        };
        write_set
            .validate()
            .map_err(|source| PstError::Io { offset: 0, source })?;
        Ok(write_set)
    }
}

/// Leaves out the edits that change nothing, so that they copy no page.
fn effective<E: BtLeaf>(
    ndb: &Ndb,
    edits: BTreeMap<u64, Option<E>>,
) -> Result<BTreeMap<u64, Option<E>>> {
    let mut out = BTreeMap::new();
    for (key, edit) in edits {
        if super::btree::lookup::<E>(ndb, key)? != edit {
            out.insert(key, edit);
        }
    }
    Ok(out)
}

impl PageSpace for NdbTransaction {
    fn alloc_page(&mut self) -> Result<Bref> {
        let ib = self.take(self.base.format().page_size, true)?;
        let bid = self.header.bid_next_page;
        self.header.bid_next_page = self.base.format().next_page_bid(bid);
        Ok(Bref { bid, ib })
    }

    fn write_page(&mut self, bref: Bref, page: &[u8]) -> Result<()> {
        self.write(bref.ib, page)
    }

    fn free_page(&mut self, bref: Bref) -> Result<()> {
        self.give_back(bref.ib, self.base.format().page_size)
    }
}
