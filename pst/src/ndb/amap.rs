//! Which 64-byte slots of the file are in use ([MS-PST] 2.2.2.7.2, 2.6.1.3.7).
//!
//! A [`Space`] belongs to one transaction. It reads AMap pages when it needs them and knows of each
//! what the committed file uses, what this transaction has taken (`mine`), and what it gives back
//! (`freed`). A slot is handed out only if it is in neither of the first two: space that the
//! committed state uses, even space this transaction frees, is never written before the new header
//! is durable. The AMap after the transaction is `committed - freed + mine`.
//!
//! An AMap that the file marks valid is not believed: each piece of free space is held against what
//! really lies there before it is handed out ([`super::proof`]). Where the maps lie, or a map page
//! is damaged, all maps are recomputed from the trees ([`Space::recompute`]) and written anew.
//!
//! Looking for space costs as much as is taken: the AMap that served last, those in memory, the
//! density list (2.2.2.7.4) with the fullest information first, and a few maps more from a place
//! that moves on with every transaction; then the file grows. Free space that the list has forgotten is
//! so found again after a while, and what is found goes back into the list.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::Ndb;
pub(crate) use super::bits::{Bits, SLOTS, reserved};
use super::format::{AMAP_SPAN, FIRST_AMAP, SLOT, amap_offset};
use super::page::{PageType, verify_page};
use super::proof::live_in;
use super::recompute::rebuild;
use crate::{PstError, Result};

/// Slots that are held against the file at once: 32 KiB.
const PROOF_SLOTS: usize = 512;
/// AMaps beyond the density list that one transaction looks into before the file grows.
const WALK: u64 = 16;
/// AMaps that a small transaction reads in search of space.
const READS: usize = 32;
/// A transaction that takes much may read one AMap more for each so many slots (16 KiB).
const SLOTS_PER_READ: usize = 256;

struct Map {
    /// What the committed file uses, and `mine`. Those two have no slot in common.
    used: Bits,
    mine: Bits,
    freed: Option<Box<Bits>>,
    /// Slots of the committed file that were found to hold nothing.
    proven: Option<Box<Bits>>,
    /// No slot below is free.
    first_free: usize,
    /// No free run of this many slots or more is left, as far as known.
    exhausted: usize,
}

impl Map {
    fn new(used: Bits) -> Self {
        Self {
            // No run is longer than all free slots together: a full map is never searched.
            exhausted: used.free() + 1,
            first_free: used.next(0, false),
            used,
            mine: Bits::EMPTY,
            freed: None,
            proven: None,
        }
    }

    /// What the committed file uses.
    fn base(&self) -> Bits {
        self.used.combine(&self.mine, |u, m| u & !m)
    }

    fn after(&self) -> Bits {
        let Some(freed) = &self.freed else {
            return self.used.clone();
        };
        self.base()
            .combine(freed, |b, f| b & !f)
            .combine(&self.mine, |b, m| b | m)
    }
}

/// Where to look for space, and how much of that is left.
struct Search {
    /// AMaps of the density list that were not tried: (free slots, index), best last.
    dense: Vec<(usize, u64)>,
    /// Others to look into.
    walk: Vec<u64>,
    /// How many AMaps may still be read.
    reads: usize,
    /// Slots taken since `reads` last rose.
    credit: usize,
}

impl Search {
    /// The AMap to read next for `n` slots.
    fn next(&mut self, n: usize) -> Option<u64> {
        self.reads += self.credit / SLOTS_PER_READ;
        self.credit %= SLOTS_PER_READ;
        if self.reads == 0 {
            return None;
        }
        let index = match self.dense.last() {
            Some((free, _)) if *free >= n => self.dense.pop().map(|(_, index)| index),
            _ => self.walk.pop(),
        };
        self.reads -= usize::from(index.is_some());
        index
    }
}

/// The file's space as one transaction sees it.
pub(crate) struct Space {
    maps: BTreeMap<u64, Map>,
    /// AMaps of the committed file.
    old_count: u64,
    /// AMaps with those added.
    count: u64,
    /// The most AMaps that the file may have, and the size that bounds them.
    most: (u64, u64),
    /// Spans that the storage reaches into: what lies behind is new.
    stored: u64,
    /// All maps were recomputed from the trees and must be written anew.
    pub rebuilt: bool,
    /// A map was found to be damaged or to lie.
    pub suspect: bool,
    /// The AMap that served the last block, and the last page.
    hints: [u64; 2],
    /// The AMaps in memory by [`Map::exhausted`]: which may have a run of some length.
    blocks: BTreeSet<(usize, u64)>,
    /// The AMaps in memory that may have a free page.
    pages: BTreeSet<u64>,
    search: Search,
}

/// The AMap and the slot in it of an offset.
pub(super) fn index_of(ib: u64) -> Result<(u64, usize)> {
    let rel = ib
        .checked_sub(FIRST_AMAP)
        .filter(|r| r.is_multiple_of(SLOT));
    let rel = rel.ok_or_else(|| PstError::corrupt("ib", ib, "not a slot of the data area"))?;
    Ok((rel / AMAP_SPAN, ((rel % AMAP_SPAN) / SLOT) as usize))
}

pub(super) const fn slots_of(len: usize) -> usize {
    len.div_ceil(SLOT as usize)
}

/// How many AMap spans a file of `len` bytes has, the last perhaps cut short.
pub(crate) fn span_count(len: u64) -> u64 {
    len.saturating_sub(FIRST_AMAP).div_ceil(AMAP_SPAN)
}

impl Space {
    /// The space of a committed file whose AMaps are marked valid. `dense` says which AMaps have
    /// how many free slots; `limit` bounds the size that the file may grow to, in bytes.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn new(ndb: &Ndb, dense: Vec<(u64, usize)>, limit: u64) -> Result<Self> {
        let header = ndb.header();
        let count = span_count(header.file_eof);
        let stored = ndb
            .storage()
            .len()
            .map_err(|source| PstError::Io { offset: 0, source })?;
        let most = ndb.format().max_amaps;
        let most = most.min(limit.saturating_sub(FIRST_AMAP) / AMAP_SPAN);
        let mut listed = BTreeMap::new();
        for (index, free) in dense {
            if index < count && free > 0 {
                listed.insert(index, free);
            }
        }
        // What the list does not name may be anything, but is rarely much.
        let from = u64::from(header.unique).wrapping_mul(WALK);
        let more = if header.amap_free > 0 { WALK } else { 0 };
        let walk = (0..more.min(count)).map(|i| from.wrapping_add(i) % count);
        let walk = walk.filter(|i| !listed.contains_key(i)).collect();
        let mut dense: Vec<_> = listed.iter().map(|(index, free)| (*free, *index)).collect();
        dense.sort_unstable_by_key(|(free, index)| (*free, std::cmp::Reverse(*index)));
        Ok(Self {
            maps: BTreeMap::new(),
            old_count: count,
            count,
            most: (most, limit),
            stored: span_count(stored),
            rebuilt: false,
            suspect: false,
            hints: [0; 2],
            blocks: BTreeSet::new(),
            pages: BTreeSet::new(),
            search: Search {
                dense,
                walk,
                reads: READS,
                credit: 0,
            },
        })
    }

    /// Replaces what the AMaps say by what the trees say, and keeps what was taken and given back.
    ///
    /// # Errors
    /// [`PstError::Refused`] if two structures overlap: such a file must be repaired first.
    pub fn recompute(&mut self, ndb: &Ndb) -> Result<()> {
        let header = ndb.header();
        let max = ndb.format().max_amaps;
        // Nothing that is used lies behind the file's end, so its length bounds the maps.
        let most = self.stored.max(1);
        let last = span_count(header.amap_last.saturating_add(1));
        let count = span_count(header.file_eof).max(last).clamp(1, most);
        if count > max {
            return Err(PstError::Limit {
                what: "AMaps",
                found: count,
                limit: max,
            });
        }
        let maps = rebuild(ndb, count, most, |ib, what| {
            Err(PstError::Refused(format!(
                "the {what} at {ib:#x} overlaps another structure or lies outside the file; \
                 the file needs repair"
            )))
        })?;
        let before = std::mem::take(&mut self.maps);
        let count = maps.len() as u64;
        self.maps = maps
            .into_iter()
            .map(|(i, bits)| (i, Map::new(bits)))
            .collect();
        for (index, old) in before {
            let map = self
                .maps
                .entry(index)
                .or_insert_with(|| Map::new(reserved(index)));
            if old.mine.runs().any(|(slot, n)| map.used.any(slot, n)) {
                // Each slot was held against the file before it was taken.
                return Err(PstError::Refused(
                    "space in use was taken for free: the file needs its maps recomputed".into(),
                ));
            }
            let mut renewed = Map::new(map.used.combine(&old.mine, |u, m| u | m));
            renewed.mine = old.mine;
            renewed.freed = old.freed;
            *map = renewed;
        }
        // Spans that the file does not reach come with the growth.
        self.old_count = count.min(self.stored);
        self.count = self.count.max(count);
        for index in 0..self.count {
            self.maps
                .entry(index)
                .or_insert_with(|| Map::new(reserved(index)));
        }
        self.rebuilt = true;
        self.suspect = false;
        self.search.dense.clear();
        self.search.walk.clear();
        self.blocks = self.maps.iter().map(|(i, m)| (m.exhausted, *i)).collect();
        self.pages = self.maps.keys().copied().collect();
        Ok(())
    }

    fn load(&mut self, ndb: &Ndb, index: u64) -> Result<&mut Map> {
        if index >= self.count {
            // A header may claim less than there is.
            self.suspect |= !self.rebuilt && index < self.stored;
            return Err(PstError::corrupt(
                "ib",
                amap_offset(index),
                format!("in span {index} of {}", self.count),
            ));
        }
        if !self.maps.contains_key(&index) {
            let at = amap_offset(index);
            let page = ndb.read(at, ndb.format().page_size)?;
            if let Err(e) = verify_page(ndb.format(), &page, PageType::AMap, at, None) {
                self.suspect = true;
                return Err(e);
            }
            // The map pages' own slots count as used whatever the page says: they are written
            // in place and must never be handed out.
            let bits =
                Bits::from_page(ndb.format(), &page)?.combine(&reserved(index), |a, b| a | b);
            self.add(index, bits);
        }
        self.maps
            .get_mut(&index)
            .ok_or_else(|| PstError::corrupt("AMap", 0, "not loaded"))
    }

    fn add(&mut self, index: u64, bits: Bits) {
        let map = Map::new(bits);
        self.blocks.insert((map.exhausted, index));
        self.pages.insert(index);
        self.maps.insert(index, map);
    }

    fn take_from(&mut self, ndb: &Ndb, index: u64, n: usize, align: usize) -> Result<Option<u64>> {
        let unproven = !self.rebuilt && index < self.stored;
        let map = self.load(ndb, index)?;
        if align == 1 && n >= map.exhausted {
            return Ok(None);
        }
        let Some(slot) = map.used.find(map.first_free, n, align) else {
            // A page may fail on alignment alone; that says nothing about blocks.
            if align == 1 {
                let before = std::mem::replace(&mut map.exhausted, n);
                self.blocks.remove(&(before, index));
                self.blocks.insert((n, index));
            } else {
                self.pages.remove(&index);
            }
            return Ok(None);
        };
        if unproven && let Some(at) = prove(ndb, map, index, slot, n)? {
            self.suspect = true;
            return Err(PstError::corrupt(
                "rgbAMapBits",
                at,
                "the allocation map calls space free that is in use",
            ));
        }
        map.mine.set(slot, n, true);
        map.used.set(slot, n, true);
        if slot == map.first_free {
            map.first_free = map.used.next(slot, false);
        }
        if let Some(hint) = self.hints.get_mut(usize::from(align > 1)) {
            *hint = index;
        }
        self.search.credit += n;
        Ok(Some(amap_offset(index) + slot as u64 * SLOT))
    }

    /// Takes `len` bytes of free space. Pages are aligned to 512 bytes.
    ///
    /// # Errors
    /// [`PstError::Limit`] if the file cannot grow further; errors of reading. With
    /// [`Space::suspect`] set, the maps must be recomputed before anything else.
    pub fn alloc(&mut self, ndb: &Ndb, len: usize, page: bool) -> Result<u64> {
        let n = slots_of(len);
        let align = if page { 8 } else { 1 };
        let hint = self.hints.get(usize::from(page)).copied();
        if let Some(hint) = hint.filter(|hint| self.maps.contains_key(hint))
            && let Some(ib) = self.take_from(ndb, hint, n, align)?
        {
            return Ok(ib);
        }
        // Each failure takes the AMap out of the set that it came from.
        while let Some(index) = if page {
            self.pages.first().copied()
        } else {
            let may = self.blocks.range((n + 1, 0)..).next();
            may.map(|(_, index)| *index)
        } {
            if let Some(ib) = self.take_from(ndb, index, n, align)? {
                return Ok(ib);
            }
        }
        while let Some(index) = self.search.next(n) {
            if let Some(ib) = self.take_from(ndb, index, n, align)? {
                return Ok(ib);
            }
        }
        self.grow(ndb, len, align)
    }

    /// Adds a span and takes space from it. A file that may not grow is searched as a whole first.
    fn grow(&mut self, ndb: &Ndb, len: usize, align: usize) -> Result<u64> {
        let n = slots_of(len);
        let (most, limit) = self.most;
        if self.count >= most {
            for index in 0..self.old_count {
                if !self.maps.contains_key(&index)
                    && let Some(ib) = self.take_from(ndb, index, n, align)?
                {
                    return Ok(ib);
                }
            }
            return Err(PstError::Limit {
                what: "file size in bytes",
                found: amap_offset(self.count + 1),
                limit: limit.min(amap_offset(ndb.format().max_amaps)),
            });
        }
        let index = self.count;
        // A header may claim less than there is: the map pages go to where nothing lies, too.
        if !self.rebuilt && index < self.stored {
            let pages = reserved(index).next(0, false);
            let mut unused = Map::new(Bits::EMPTY);
            if let Some(at) = prove(ndb, &mut unused, index, 0, pages)? {
                self.suspect = true;
                return Err(PstError::corrupt(
                    "ibFileEof",
                    at,
                    "it lies before used space",
                ));
            }
        }
        self.count += 1;
        self.add(index, reserved(index));
        self.take_from(ndb, index, n, align)?
            .ok_or(PstError::Limit {
                what: "allocation in bytes",
                found: len as u64,
                limit: AMAP_SPAN,
            })
    }

    /// Gives back space of the committed file: free once the transaction is committed.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] for what cannot be a block's place; errors of reading, as
    /// [`Space::alloc`].
    pub fn free_committed(&mut self, ndb: &Ndb, ib: u64, len: usize) -> Result<()> {
        let (index, slot) = index_of(ib)?;
        let n = slots_of(len);
        let keep = reserved(index);
        if slot + n > SLOTS || keep.any(slot, n) {
            return Err(PstError::corrupt("ib", ib, "a block over a map page"));
        }
        let map = self.load(ndb, index)?;
        let freed = map.freed.get_or_insert_with(|| Box::new(Bits::EMPTY));
        freed.set(slot, n, true);
        Ok(())
    }

    /// Gives back space that this transaction took: free at once.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] for what cannot be a place.
    pub fn free_mine(&mut self, ib: u64, len: usize) -> Result<()> {
        let (index, slot) = index_of(ib)?;
        if let Some(map) = self.maps.get_mut(&index) {
            map.mine.set(slot, slots_of(len), false);
            map.used.set(slot, slots_of(len), false);
            map.first_free = map.first_free.min(slot);
            let before = std::mem::replace(&mut map.exhausted, SLOTS + 1);
            self.blocks.remove(&(before, index));
            self.blocks.insert((SLOTS + 1, index));
            self.pages.insert(index);
        }
        Ok(())
    }

    /// Whether the slot at `ib` was taken by this transaction.
    pub fn is_mine(&self, ib: u64) -> bool {
        index_of(ib).is_ok_and(|(i, slot)| self.maps.get(&i).is_some_and(|m| m.mine.get(slot)))
    }

    /// How many AMaps the file has after the transaction.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// How many of them the committed file has.
    pub const fn old_count(&self) -> u64 {
        self.old_count
    }

    /// Every AMap in memory as it is after the transaction: (index, bits, changed).
    pub fn after(&self) -> impl Iterator<Item = (u64, Bits, bool)> + '_ {
        self.maps.iter().map(|(i, m)| {
            let changed =
                self.rebuilt || *i >= self.old_count || m.freed.is_some() || m.mine != Bits::EMPTY;
            (*i, m.after(), changed)
        })
    }

    /// Free bytes gained minus free bytes lost, over the AMaps in memory.
    pub fn free_change(&self) -> i64 {
        self.maps
            .iter()
            .map(|(i, m)| {
                let before = if *i < self.old_count {
                    m.base().free()
                } else {
                    0
                };
                (m.after().free() as i64 - before as i64) * SLOT as i64
            })
            .sum()
    }

    /// The runs that this transaction has taken, ascending: (offset, bytes).
    pub fn taken(&self) -> Vec<(u64, u64)> {
        let runs = self.maps.iter().flat_map(|(index, map)| {
            let at = amap_offset(*index);
            map.mine
                .runs()
                .map(move |(slot, n)| (at + slot as u64 * SLOT, n as u64 * SLOT))
        });
        runs.collect()
    }
}

/// Makes sure that `n` free slots from `slot` on hold nothing of the committed file; the offset of
/// what lies there if they do.
fn prove(ndb: &Ndb, map: &mut Map, index: u64, slot: usize, n: usize) -> Result<Option<u64>> {
    let Map { used, proven, .. } = map;
    let proven = proven.get_or_insert_with(|| Box::new(Bits::EMPTY));
    if proven.all(slot, n) {
        return Ok(None);
    }
    // More than is wanted now: the next allocations follow.
    let end = (slot + n.max(PROOF_SLOTS)).min(SLOTS);
    let at = |slot: usize| amap_offset(index) + slot as u64 * SLOT;
    let (from, to) = (at(slot), at(end));
    let slots = |range: std::ops::Range<u64>| {
        let start = (range.start.max(from) - from) / SLOT;
        let end = range.end.min(to).saturating_sub(from).div_ceil(SLOT);
        (slot + start as usize, end.saturating_sub(start) as usize)
    };
    let found = Cell::new(None);
    live_in(
        ndb,
        from..to,
        |range| {
            let (slot, n) = slots(range);
            n > 0 && !used.all(slot, n)
        },
        |ib, _| {
            found.set(Some(ib));
            true
        },
    )?;
    if found.get().is_none() {
        proven.set(slot, end - slot, true);
    }
    Ok(found.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_taken_are_found_across_bytes_maps_and_gaps() {
        let map = |runs: &[(usize, usize)]| {
            let mut map = Map::new(reserved(1));
            runs.iter().for_each(|(s, n)| map.mine.set(*s, *n, true));
            map
        };
        let ndb = Ndb::create_empty_ndb();
        let ndb = Ndb::open(std::sync::Arc::new(storage::MemStorage::from(ndb))).unwrap();
        let mut space = Space::new(&ndb, Vec::new(), u64::MAX).unwrap();
        space.maps = BTreeMap::from([
            (1, map(&[(9, 1), (14, 12), (SLOTS - 1, 1)])),
            (2, map(&[])),
            (4, map(&[(8, 8)])),
        ]);
        let at = |i: u64, slot: usize| amap_offset(i) + slot as u64 * SLOT;
        assert_eq!(
            space.taken(),
            [
                (at(1, 9), 64),
                (at(1, 14), 12 * 64),
                (at(1, SLOTS - 1), 64),
                (at(4, 8), 512)
            ]
        );
    }
}
