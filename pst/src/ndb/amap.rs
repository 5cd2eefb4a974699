//! Which 64-byte slots of the file are in use ([MS-PST] 2.2.2.7.2, 2.6.1.3.7).
//!
//! A [`Space`] belongs to one transaction. It reads AMap pages when it needs them and keeps three
//! bitmaps for each: what the committed file uses (`base`), what this transaction has taken
//! (`mine`), and what it gives back (`freed`). A slot is handed out only if it is in neither of
//! the first two: space that the committed state uses, even space this transaction frees, is
//! never written before the new header is durable. The AMap after the transaction is
//! `base - freed + mine`.

use std::collections::BTreeMap;

use super::Ndb;
use super::btree::{BbtEntry, BtLeaf, BtPage, NbtEntry};
use super::bytes::slice;
use super::format::{AMAP_SPAN, FIRST_AMAP, Format, MAP_BYTES, SLOT, amap_offset, map_pages};
use super::page::{PageType, verify_page};
use crate::{PstError, Result};

/// Bytes of one bitmap.
const BYTES: usize = MAP_BYTES as usize;
/// Slots that one AMap covers.
pub(crate) const SLOTS: usize = BYTES * 8;

/// The bits of one AMap. The first slot is the highest bit of the first byte.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bits([u8; BYTES]);

impl Bits {
    pub const EMPTY: Self = Self([0; BYTES]);

    pub fn from_page(format: &Format, page: &[u8]) -> Result<Self> {
        let bits = slice(page, format.page_data - BYTES, BYTES, "rgbAMapBits")?;
        bits.try_into()
            .map(Self)
            .map_err(|_| PstError::corrupt("rgbAMapBits", 0, "short page"))
    }

    pub const fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn get(&self, slot: usize) -> bool {
        self.0
            .get(slot / 8)
            .is_some_and(|b| b & (0x80 >> (slot % 8)) != 0)
    }

    pub fn set(&mut self, slot: usize, n: usize, on: bool) {
        for s in slot..slot + n {
            if let Some(b) = self.0.get_mut(s / 8) {
                if on {
                    *b |= 0x80 >> (s % 8);
                } else {
                    *b &= !(0x80 >> (s % 8));
                }
            }
        }
    }

    pub fn any(&self, slot: usize, n: usize) -> bool {
        (slot..slot + n).any(|s| self.get(s))
    }

    pub fn free(&self) -> usize {
        let (words, rest) = self.0.as_chunks::<8>();
        let words = words.iter().map(|w| u64::from_ne_bytes(*w).count_zeros());
        let rest = rest.iter().map(|b| b.count_zeros());
        words.chain(rest).map(|n| n as usize).sum()
    }

    pub fn combine(&self, other: &Self, f: impl Fn(u8, u8) -> u8) -> Self {
        let mut out = self.clone();
        for (o, b) in out.0.iter_mut().zip(&other.0) {
            *o = f(*o, *b);
        }
        out
    }

    /// The first run of `n` free slots, aligned to `align` slots.
    fn find(&self, n: usize, align: usize) -> Option<usize> {
        let mut start = 0;
        while start + n <= SLOTS {
            match self.0.get(start / 8) {
                Some(0xFF) => {
                    start = (start / 8 + 1) * 8;
                    continue;
                }
                Some(_) => {}
                None => return None,
            }
            match (start..start + n).find(|s| self.get(*s)) {
                None => return Some(start),
                Some(used) => start = (used + 1).next_multiple_of(align),
            }
        }
        None
    }
}

/// The bits that the map pages of a span take themselves.
pub(crate) fn reserved(index: u64) -> Bits {
    let mut bits = Bits::EMPTY;
    for (_, offset) in map_pages(index) {
        bits.set((offset / SLOT) as usize, 512 / SLOT as usize, true);
    }
    bits
}

struct Map {
    base: Bits,
    mine: Bits,
    freed: Bits,
    /// No free run of this many slots or more is left, as far as known.
    exhausted: usize,
}

impl Map {
    fn new(base: Bits) -> Self {
        Self {
            // No run is longer than all free slots together: a full map is never searched.
            exhausted: base.free() + 1,
            base,
            mine: Bits::EMPTY,
            freed: Bits::EMPTY,
        }
    }

    fn after(&self) -> Bits {
        self.base
            .combine(&self.freed, |b, f| b & !f)
            .combine(&self.mine, |b, m| b | m)
    }
}

/// The file's space as one transaction sees it.
pub(crate) struct Space {
    maps: BTreeMap<u64, Map>,
    /// AMaps of the committed file.
    old_count: u64,
    /// AMaps with those added.
    count: u64,
    /// All maps were recomputed from the trees and must be written anew.
    pub rebuilt: bool,
    /// The AMap that served the last block, and the last page.
    hints: [u64; 2],
    /// No AMap in memory has this many free slots in a row.
    no_block: usize,
    /// No AMap in memory has a free page.
    no_page: bool,
    /// AMaps worth trying first, from the density list.
    dense: Vec<u64>,
    /// How many AMaps the walk from the end of the file has looked at.
    scan: u64,
}

/// Committed AMaps that one transaction looks into for free space before it lets the file grow.
const SCAN_LIMIT: usize = 2048;

fn index_of(ib: u64) -> Result<(u64, usize)> {
    let rel = ib
        .checked_sub(FIRST_AMAP)
        .filter(|r| r.is_multiple_of(SLOT));
    let rel = rel.ok_or_else(|| PstError::corrupt("ib", ib, "not a slot of the data area"))?;
    Ok((rel / AMAP_SPAN, ((rel % AMAP_SPAN) / SLOT) as usize))
}

fn slots_of(len: usize) -> usize {
    len.div_ceil(SLOT as usize)
}

/// How many AMap spans a file of `len` bytes has, the last perhaps cut short.
pub(crate) fn span_count(len: u64) -> u64 {
    len.saturating_sub(FIRST_AMAP).div_ceil(AMAP_SPAN)
}

/// Recomputes all AMaps from the two trees, calling `overlap` for slots used twice. The maps
/// cover at least `at_least` and at most `at_most` spans; `overlap` is also called for what lies
/// behind them.
fn rebuild(
    ndb: &Ndb,
    at_least: u64,
    at_most: u64,
    mut overlap: impl FnMut(u64, &'static str) -> Result<()>,
) -> Result<BTreeMap<u64, Bits>> {
    let mut maps: BTreeMap<u64, Bits> = (0..at_least).map(|i| (i, reserved(i))).collect();
    let mut mark = |ib: u64, len: usize, what: &'static str| -> Result<()> {
        let (index, slot) = index_of(ib)?;
        let n = slots_of(len);
        if slot + n > SLOTS || index >= at_most {
            return overlap(ib, what);
        }
        while maps.len() as u64 <= index {
            let next = maps.len() as u64;
            maps.insert(next, reserved(next));
        }
        if let Some(bits) = maps.get_mut(&index) {
            if bits.any(slot, n) {
                overlap(ib, what)?;
            }
            bits.set(slot, n, true);
        }
        Ok(())
    };
    let page = ndb.format().page_size;
    walk_pages::<NbtEntry>(ndb, &mut |p| mark(p.bref.ib, page, "node B-tree page"))?;
    walk_pages::<BbtEntry>(ndb, &mut |p| mark(p.bref.ib, page, "block B-tree page"))?;
    for block in ndb.blocks() {
        let block = block?;
        mark(
            block.bref.ib,
            ndb.format().block_space(usize::from(block.cb)),
            "block",
        )?;
    }
    Ok(maps)
}

/// Calls `f` for each page of a tree, parents before children.
pub(crate) fn walk_pages<E: BtLeaf>(
    ndb: &Ndb,
    f: &mut dyn FnMut(&BtPage) -> Result<()>,
) -> Result<()> {
    // One frame a level: levels fall by one on each step down.
    fn below<E: BtLeaf>(
        ndb: &Ndb,
        page: &BtPage,
        f: &mut dyn FnMut(&BtPage) -> Result<()>,
    ) -> Result<()> {
        f(page)?;
        if page.level > 0 {
            for i in 0..page.count() {
                below::<E>(ndb, &*ndb.bt_child::<E>(page, i)?, f)?;
            }
        }
        Ok(())
    }
    below::<E>(ndb, &*ndb.bt_root::<E>()?, f)
}

impl Space {
    /// Takes the space of a committed file whose AMaps are marked valid.
    pub fn trusted(ndb: &Ndb, dense: Vec<u64>) -> Self {
        let count = span_count(ndb.header().file_eof);
        Self {
            maps: BTreeMap::new(),
            old_count: count,
            count,
            rebuilt: false,
            hints: [0; 2],
            no_block: SLOTS + 1,
            no_page: false,
            dense,
            scan: 0,
        }
    }

    /// Recomputes the space of a committed file from its trees.
    ///
    /// # Errors
    /// [`PstError::Refused`] if two structures overlap: such a file must be repaired first.
    pub fn recomputed(ndb: &Ndb) -> Result<Self> {
        let header = ndb.header();
        let len = ndb
            .storage()
            .len()
            .map_err(|source| PstError::Io { offset: 0, source })?;
        // Nothing that is used lies behind the file's end, so its length bounds the maps.
        let most = span_count(len).max(1);
        let last = span_count(header.amap_last.saturating_add(1));
        let count = span_count(header.file_eof).max(last).clamp(1, most);
        if count > ndb.format().max_amaps {
            return Err(PstError::Limit {
                what: "AMaps",
                found: count,
                limit: ndb.format().max_amaps,
            });
        }
        let maps = rebuild(ndb, count, most, |ib, what| {
            Err(PstError::Refused(format!(
                "the {what} at {ib:#x} overlaps another structure or lies outside the file; \
                 the file needs repair"
            )))
        })?;
        let count = maps.len() as u64;
        let len = ndb
            .storage()
            .len()
            .map_err(|source| PstError::Io { offset: 0, source })?;
        Ok(Self {
            maps: maps
                .into_iter()
                .map(|(i, bits)| (i, Map::new(bits)))
                .collect(),
            // Spans that the file does not reach come with the growth.
            old_count: count.min(span_count(len)),
            count,
            rebuilt: true,
            hints: [0; 2],
            no_block: SLOTS + 1,
            no_page: false,
            dense: Vec::new(),
            scan: 0,
        })
    }

    fn load(&mut self, ndb: &Ndb, index: u64) -> Result<&mut Map> {
        if index >= self.count {
            return Err(PstError::corrupt(
                "ib",
                amap_offset(index),
                format!("in span {index} of {}", self.count),
            ));
        }
        if !self.maps.contains_key(&index) {
            let at = amap_offset(index);
            let page = ndb.read(at, ndb.format().page_size)?;
            verify_page(ndb.format(), &page, PageType::AMap, at, None)?;
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
        self.maps.insert(index, Map::new(bits));
        self.no_block = SLOTS + 1;
        self.no_page = false;
    }

    fn take_from(&mut self, ndb: &Ndb, index: u64, n: usize, align: usize) -> Result<Option<u64>> {
        let map = self.load(ndb, index)?;
        if n >= map.exhausted {
            return Ok(None);
        }
        let used = map.base.combine(&map.mine, |b, m| b | m);
        match used.find(n, align) {
            Some(slot) => {
                map.mine.set(slot, n, true);
                if let Some(hint) = self.hints.get_mut(usize::from(align > 1)) {
                    *hint = index;
                }
                Ok(Some(amap_offset(index) + slot as u64 * SLOT))
            }
            None => {
                // A page may fail on alignment alone; that says nothing about blocks.
                if align == 1 {
                    map.exhausted = n;
                }
                Ok(None)
            }
        }
    }

    /// Takes `len` bytes of free space. Pages are aligned to 512 bytes.
    ///
    /// # Errors
    /// [`PstError::Limit`] if the file cannot grow further; errors of reading AMaps.
    pub fn alloc(&mut self, ndb: &Ndb, len: usize, page: bool) -> Result<u64> {
        let n = slots_of(len);
        let align = if page { 8 } else { 1 };
        // The AMap that served last, what else is in memory, the density list, a bounded walk.
        let hint = self
            .hints
            .get(usize::from(page))
            .copied()
            .unwrap_or_default();
        if self.maps.contains_key(&hint)
            && let Some(ib) = self.take_from(ndb, hint, n, align)?
        {
            return Ok(ib);
        }
        if n < self.no_block && !(page && self.no_page) {
            for index in self.maps.keys().copied().collect::<Vec<_>>() {
                if let Some(ib) = self.take_from(ndb, index, n, align)? {
                    return Ok(ib);
                }
            }
            if page {
                self.no_page = true;
            } else {
                self.no_block = n;
            }
        }
        while let Some(index) = self.dense.pop() {
            if index < self.count
                && let Some(ib) = self.take_from(ndb, index, n, align)?
            {
                return Ok(ib);
            }
        }
        while self.scan < self.old_count && self.maps.len() < SCAN_LIMIT {
            // From the end: there the file grew last.
            self.scan += 1;
            let index = self.old_count - self.scan;
            if let Some(ib) = self.take_from(ndb, index, n, align)? {
                return Ok(ib);
            }
        }
        if self.count >= ndb.format().max_amaps {
            return Err(PstError::Limit {
                what: "AMaps",
                found: self.count + 1,
                limit: ndb.format().max_amaps,
            });
        }
        let index = self.count;
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
    pub fn free_committed(&mut self, ndb: &Ndb, ib: u64, len: usize) -> Result<()> {
        let (index, slot) = index_of(ib)?;
        let n = slots_of(len);
        let keep = reserved(index);
        if slot + n > SLOTS || keep.any(slot, n) {
            return Err(PstError::corrupt("ib", ib, "a block over a map page"));
        }
        self.load(ndb, index)?.freed.set(slot, n, true);
        Ok(())
    }

    /// Gives back space that this transaction took: free at once.
    pub fn free_mine(&mut self, ib: u64, len: usize) -> Result<()> {
        let (index, slot) = index_of(ib)?;
        if let Some(map) = self.maps.get_mut(&index) {
            map.mine.set(slot, slots_of(len), false);
            map.exhausted = SLOTS + 1;
            self.no_block = SLOTS + 1;
            self.no_page = false;
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
            let after = m.after();
            let changed = self.rebuilt || *i >= self.old_count || after != m.base;
            (*i, after, changed)
        })
    }

    /// Free bytes gained minus free bytes lost, over the AMaps in memory.
    pub fn free_change(&self) -> i64 {
        self.maps
            .iter()
            .map(|(i, m)| {
                let before = if *i < self.old_count {
                    m.base.free()
                } else {
                    0
                };
                (m.after().free() as i64 - before as i64) * SLOT as i64
            })
            .sum()
    }

    /// The runs that this transaction has taken, ascending: (offset, bytes).
    pub fn taken(&self) -> Vec<(u64, usize)> {
        let mut runs: Vec<(u64, usize)> = Vec::new();
        for (i, m) in &self.maps {
            // Most maps are only looked into: their bytes are all zero.
            let bytes = m.mine.0.iter().enumerate().filter(|(_, b)| **b != 0);
            for slot in bytes
                .flat_map(|(byte, _)| byte * 8..byte * 8 + 8)
                .filter(|s| m.mine.get(*s))
            {
                let at = amap_offset(*i) + slot as u64 * SLOT;
                match runs.last_mut() {
                    Some((start, len)) if *start + *len as u64 == at => *len += SLOT as usize,
                    _ => runs.push((at, SLOT as usize)),
                }
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_respects_use_length_and_alignment() {
        let mut bits = reserved(0);
        assert_eq!(bits.find(1, 1), Some(16));
        bits.set(17, 1, true);
        assert_eq!(bits.find(1, 1), Some(16));
        assert_eq!(bits.find(2, 1), Some(18));
        assert_eq!(bits.find(8, 8), Some(24));
        assert_eq!(bits.find(SLOTS - 24, 8), Some(24));
        assert_eq!(bits.find(SLOTS - 17, 1), None);
        bits.set(0, SLOTS, true);
        assert_eq!(bits.find(1, 1), None);
        assert_eq!(bits.free(), 0);
    }

    #[test]
    fn runs_taken_are_found_across_bytes_maps_and_gaps() {
        let map = |runs: &[(usize, usize)]| {
            let mut map = Map::new(reserved(1));
            runs.iter().for_each(|(s, n)| map.mine.set(*s, *n, true));
            map
        };
        let maps = [
            (1, map(&[(9, 1), (14, 12), (SLOTS - 1, 1)])),
            (2, map(&[])),
            (4, map(&[(8, 8)])),
        ];
        let space = Space {
            maps: BTreeMap::from(maps),
            old_count: 5,
            count: 5,
            rebuilt: false,
            hints: [0; 2],
            no_block: SLOTS + 1,
            no_page: false,
            dense: Vec::new(),
            scan: 0,
        };
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

    #[test]
    fn find_agrees_with_a_naive_search() {
        let mut seed = 7u32;
        for round in 0..200usize {
            let mut bits = Bits::EMPTY;
            for _ in 0..round * 6 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                bits.set(seed as usize >> 8 & 0xFFF, 1 + (seed as usize & 3), true);
            }
            for (n, align) in [(1, 1), (3, 1), (8, 8), (40, 1), (128, 1)] {
                let naive = (0..=SLOTS - n).step_by(align).find(|s| !bits.any(*s, n));
                assert_eq!(bits.find(n, align), naive, "{n} slots in round {round}");
            }
        }
    }
}
