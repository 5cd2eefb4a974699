//! What of a file lies in the ranges that were written: live blocks and live pages of the node B-tree.
//!
//! Every live block ends, and every live page is, at a multiple of the alignment, with a trailer
//! that names it ([MS-PST] 2.2.2.7.1, 2.2.2.8.1): so the ranges are searched for trailers, and each is
//! confirmed by a look-up in its B-tree. That this found everything is then proven by the allocation maps
//! (2.2.2.7.2): what they call used must lie in something that was found.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use storage::RangeSet;

use crate::ndb::bytes::{u8_at, u16_at};
use crate::ndb::format::{AMAP_SPAN, FIRST_AMAP, SLOT, amap_offset, map_pages};
use crate::ndb::{BbtEntry, BtLeaf, BtPage, NbtEntry, Ndb, PageType, signature, verify_page};
use crate::{Bid, Bref, Result};

/// Bytes read at once: a multiple of the page size.
const CHUNK: u64 = 256 << 10;

/// Where more than this, and half of the file, was written, the trees are read instead: they are less.
const MUCH: u64 = 64 << 20;

/// What lies in the written ranges.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Live blocks.
    pub blocks: Vec<BbtEntry>,
    /// Live pages of the node B-tree, by offset.
    pub nbt: BTreeSet<u64>,
    /// The pages above those.
    pub above: BTreeSet<u64>,
}

/// Finds what lies in `ranges`; `None` where the search cannot be proven complete.
pub(super) fn find(ndb: &Ndb, ranges: &RangeSet) -> Result<Option<Found>> {
    let format = ndb.format();
    let eof = ndb.header().file_eof;
    let page = format.page_size as u64;
    let written = ranges.total();
    if written > MUCH && written > eof / 2 {
        return Ok(None);
    }
    // Maps of another shape than those below are not known here.
    if !ndb.header().maps_valid() || format.page_size != 512 || format.block_align as u64 != SLOT {
        return Ok(None);
    }
    let mut search = Search {
        ndb,
        ranges,
        found: Found::default(),
        explained: RangeSet::new(),
    };
    let aligned =
        |start: u64, end: u64| start - start % page..end.min(eof).next_multiple_of(page).min(eof);
    let inside: RangeSet = ranges.iter().map(|r| aligned(r.start, r.end)).collect();
    search.windows(&inside)?;
    // A block may begin in a range and end behind it: then it holds the range's last byte, which nothing
    // else explains.
    let reach = format.max_block as u64;
    let mut behind: RangeSet = ranges
        .iter()
        .filter(|r| !search.explained.contains(r.end - 1))
        .map(|r| aligned(r.end, r.end.saturating_add(reach)))
        .collect();
    behind.subtract(&inside);
    search.windows(&behind)?;
    Ok(if search.complete(eof)? {
        Some(search.found)
    } else {
        None
    })
}

struct Search<'a> {
    ndb: &'a Ndb,
    ranges: &'a RangeSet,
    found: Found,
    /// Where what was found lies.
    explained: RangeSet,
}

impl Search<'_> {
    fn windows(&mut self, windows: &RangeSet) -> Result<()> {
        for window in windows.iter() {
            let mut at = window.start;
            while at < window.end {
                let end = window.end.min(at.saturating_add(CHUNK));
                let len = usize::try_from(end - at).unwrap_or(0);
                self.chunk(at, &self.ndb.read(at, len)?)?;
                at = end;
            }
        }
        Ok(())
    }

    /// Searches bytes that lie at `start`, a multiple of the page size.
    fn chunk(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let format = self.ndb.format();
        let at = |i: usize, unit: usize| start + (i * unit) as u64;
        for (i, page) in bytes.chunks_exact(format.page_size).enumerate() {
            let ib = at(i, format.page_size);
            if self.ranges.intersects(ib..ib + format.page_size as u64) {
                self.page(ib, page)?;
            }
        }
        for (i, slot) in bytes.chunks_exact(format.block_align).enumerate() {
            self.trailer(at(i + 1, format.block_align), slot)?;
        }
        Ok(())
    }

    fn page(&mut self, ib: u64, bytes: &[u8]) -> Result<()> {
        let format = self.ndb.format();
        let kind = u8_at(bytes, format.page_data, "ptype")?;
        let live = if kind == PageType::Nbt as u8 {
            self.live::<NbtEntry>(ib, bytes)?
        } else if kind == PageType::Bbt as u8 {
            self.live::<BbtEntry>(ib, bytes)?
        } else {
            None
        };
        let Some(above) = live else { return Ok(()) };
        self.explained.insert(ib..ib + format.page_size as u64);
        if kind == PageType::Nbt as u8 {
            self.found.nbt.insert(ib);
            self.found.above.extend(above);
        }
        Ok(())
    }

    /// The offsets of the pages above, if the page is one of the tree.
    fn live<E: BtLeaf>(&self, ib: u64, bytes: &[u8]) -> Result<Option<Vec<u64>>> {
        let format = self.ndb.format();
        let Ok(bid) = verify_page(format, bytes, E::PAGE, ib, None) else {
            return Ok(None);
        };
        let Ok(page) = BtPage::parse(format, bytes.to_vec(), E::PAGE, Bref { bid, ib }) else {
            return Ok(None);
        };
        let key = if page.count() == 0 {
            0
        } else {
            page.key::<E>(0)?
        };
        let mut above = Vec::new();
        let mut at: Arc<BtPage> = self.ndb.bt_root::<E>()?;
        while at.level > page.level && at.count() > 0 {
            above.push(at.bref.ib);
            // A page may begin behind the key that leads to it, and the first one before it.
            let i = at.upper_bound::<E>(key)?.saturating_sub(1);
            at = self.ndb.bt_child::<E>(&at, i)?;
        }
        Ok((at.bref == page.bref).then_some(above))
    }

    /// Looks whether the slot that ends at `end` ends a live block that reaches into the ranges.
    fn trailer(&mut self, end: u64, slot: &[u8]) -> Result<()> {
        let format = self.ndb.format();
        let t = format.block_align - format.block_trailer;
        let cb = usize::from(u16_at(slot, t, "cb")?);
        if cb == 0 || cb > format.max_data() {
            return Ok(());
        }
        let space = format.block_space(cb) as u64;
        let Some(ib) = end.checked_sub(space) else {
            return Ok(());
        };
        let bid = Bid(format.id_at(slot, t + format.trailer_bid, "bid")?);
        if u16_at(slot, t + 2, "wSig")? != signature(ib, bid.0) || !self.ranges.intersects(ib..end)
        {
            return Ok(());
        }
        let Some(entry) = self.ndb.block(bid)? else {
            return Ok(());
        };
        if entry.bref.ib == ib && usize::from(entry.cb) == cb {
            self.found.blocks.push(entry);
            self.explained.insert(ib..end);
        }
        Ok(())
    }

    /// Whether all used space in the ranges is explained by what was found.
    fn complete(&self, eof: u64) -> Result<bool> {
        let format = self.ndb.format();
        let page = format.page_size as u64;
        let mut map: Option<(u64, Vec<u8>)> = None;
        for range in self.ranges.within(FIRST_AMAP..eof) {
            for gap in self.explained.gaps(range) {
                let first = gap.start - (gap.start - FIRST_AMAP) % SLOT;
                let mut slot = first;
                while slot < gap.end {
                    let index = (slot - FIRST_AMAP) / AMAP_SPAN;
                    let start = amap_offset(index);
                    let fixed = map_pages(index)
                        .into_iter()
                        .any(|(_, at)| within(slot, start + at..start + at + page));
                    if map.as_ref().is_none_or(|(i, _)| *i != index) {
                        let bytes = self.ndb.read(start, format.page_size)?;
                        if verify_page(format, &bytes, PageType::AMap, start, None).is_err() {
                            return Ok(false);
                        }
                        map = Some((index, bytes));
                    }
                    let bit = usize::try_from((slot - start) / SLOT).unwrap_or(usize::MAX);
                    let used = map.as_ref().is_none_or(|(_, bytes)| {
                        bytes
                            .get(bit / 8)
                            .is_none_or(|b| b & (0x80 >> (bit % 8)) != 0)
                    });
                    if used && !fixed {
                        return Ok(false);
                    }
                    slot += SLOT;
                }
            }
        }
        Ok(true)
    }
}

const fn within(at: u64, range: Range<u64>) -> bool {
    at >= range.start && at < range.end
}
