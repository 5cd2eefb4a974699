//! The allocation maps against what is really in use ([MS-PST] 2.2.2.7.2 to 2.2.2.7.6).

use std::collections::BTreeMap;
use std::fmt;

use super::codes::Code;
use super::structure::Structure;
use crate::Bid;
use crate::ndb::amap::{Bits, SLOTS, reserved, span_count};
use crate::ndb::format::{AMAP_SPAN, DLIST_OFFSET, FIRST_AMAP, SLOT, amap_offset, map_pages};
use crate::ndb::maps::read_dlist;
use crate::ndb::{PageType, verify_page};

/// What takes space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Page,
    Block(Bid),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page => f.write_str("a B-tree page"),
            Self::Block(bid) => write!(f, "block {bid}"),
        }
    }
}

impl Structure<'_> {
    pub(super) fn space(&mut self) {
        if !self.ndb.format().writable {
            return self.overlaps();
        }
        let (eof, last) = {
            let h = self.ndb.header();
            (h.file_eof, h.amap_last)
        };
        let spans = span_count(eof);
        if spans == 0 || eof != amap_offset(spans) {
            self.out.add(Code::FileEof, 0, || {
                format!("ibFileEof {eof:#x} is not at the end of a span")
            });
        }
        if let Ok(len) = self.ndb.storage().len()
            && len > eof
        {
            self.out.add(Code::FileLonger, eof, || {
                format!("{} bytes lie behind ibFileEof", len - eof)
            });
        }
        if spans > 0 && last != amap_offset(spans - 1) {
            self.out.add(Code::AMapLast, 0, || {
                format!("{last:#x}, expected {:#x}", amap_offset(spans - 1))
            });
        }
        let used = self.used(spans);
        let maps = if self.ndb.header().maps_valid() {
            self.maps(&used)
        } else {
            BTreeMap::new()
        };
        match read_dlist(self.ndb) {
            Ok(entries) if !maps.is_empty() => self.dlist(&entries, &maps),
            Ok(_) => {}
            // Other programs use its place for other things (2.2.2.7.4).
            Err(e) => self.out.failed(Code::DList, DLIST_OFFSET, "", &e),
        }
    }

    /// What takes space, by offset, with its length in bytes.
    fn things(&self) -> Vec<(u64, usize, Thing)> {
        let format = self.ndb.format();
        let pages = self
            .pages
            .iter()
            .map(|ib| (*ib, format.page_size, Thing::Page));
        let blocks = self.blocks.iter().map(|b| {
            let space = format.block_space(usize::from(b.entry.cb));
            (b.entry.bref.ib, space, Thing::Block(b.entry.bref.bid))
        });
        let mut things: Vec<(u64, usize, Thing)> = pages.chain(blocks).collect();
        things.sort_unstable();
        things
    }

    /// For files whose maps are not looked at because nothing is ever allocated in them.
    fn overlaps(&mut self) {
        let (mut end, file_end) = (0, self.ndb.header().file_eof);
        for (ib, len, what) in self.things() {
            if ib < end {
                self.out.add(Code::Overlap, ib, || {
                    format!("{what} overlaps another structure")
                });
            }
            end = end.max(ib.saturating_add(len as u64));
            if end > file_end {
                self.out.add(Code::Outside, ib, || {
                    format!("{what} passes the end of the file")
                });
            }
        }
    }

    /// Marks what pages and blocks use; reports overlaps and what lies outside.
    fn used(&mut self, spans: u64) -> BTreeMap<u64, Bits> {
        let mut maps: BTreeMap<u64, Bits> = (0..spans).map(|i| (i, reserved(i))).collect();
        for (ib, len, what) in self.things() {
            let place = ib
                .checked_sub(FIRST_AMAP)
                .map(|r| (r / AMAP_SPAN, r % AMAP_SPAN));
            let Some((index, rest)) = place else {
                self.out.add(Code::Outside, ib, || {
                    format!("{what} lies in the header area")
                });
                continue;
            };
            // A thing that is not aligned also uses the slot in which it ends.
            let slot = (rest / SLOT) as usize;
            let n = ((rest % SLOT) as usize + len).div_ceil(SLOT as usize);
            let Some(bits) = maps.get_mut(&index).filter(|_| slot + n <= SLOTS) else {
                self.out.add(Code::Outside, ib, || {
                    format!("{what} passes the end of its span")
                });
                continue;
            };
            let clash = bits.any(slot, n);
            bits.set(slot, n, true);
            if clash {
                self.out.add(Code::Overlap, ib, || {
                    format!("{what} overlaps another structure")
                });
            }
        }
        maps
    }

    /// Compares the AMaps with what is in use; the free slots of each that can be read.
    fn maps(&mut self, used: &BTreeMap<u64, Bits>) -> BTreeMap<u64, usize> {
        let ndb = self.ndb;
        let format = ndb.format();
        let (mut free, mut leaked, mut first_leak) = (0u64, 0usize, 0u64);
        let mut whole = true;
        let mut free_slots = BTreeMap::new();
        for (index, expected) in used {
            for (kind, offset) in map_pages(*index) {
                let ib = amap_offset(*index) + offset;
                let page = ndb.read(ib, format.page_size).and_then(|page| {
                    verify_page(format, &page, kind, ib, None)?;
                    Ok(page)
                });
                let page = match page {
                    Ok(page) => page,
                    Err(e) if kind == PageType::AMap => {
                        whole = false;
                        self.out.failed(Code::AMapPage, ib, "", &e);
                        continue;
                    }
                    Err(e) => {
                        self.out.failed(Code::MapPage, ib, "", &e);
                        continue;
                    }
                };
                if kind != PageType::AMap {
                    continue;
                }
                let Ok(stated) = Bits::from_page(format, &page) else {
                    continue;
                };
                free_slots.insert(*index, stated.free());
                free += stated.free() as u64 * SLOT;
                let lost = expected.combine(&stated, |e, s| e & !s);
                let n = SLOTS - lost.free();
                if n > 0 {
                    let slot = (0..SLOTS).find(|s| lost.get(*s)).unwrap_or(0) as u64;
                    let at = amap_offset(*index) + slot * SLOT;
                    self.out.add(Code::UsedButFree, at, || {
                        format!("{n} slots from here on are in use but marked free")
                    });
                }
                let extra = stated.combine(expected, |s, e| s & !e);
                let n = SLOTS - extra.free();
                if n > 0 && leaked == 0 {
                    let slot = (0..SLOTS).find(|s| extra.get(*s)).unwrap_or(0) as u64;
                    first_leak = amap_offset(*index) + slot * SLOT;
                }
                leaked += n;
            }
        }
        // An old PMap may hold free pages in reserve: used for the AMap, but not lost.
        let reserve = ndb.header().pmap_free / SLOT;
        if leaked as u64 > reserve {
            self.out.add(Code::Leaked, first_leak, || {
                format!("{leaked} slots of 64 bytes are marked used but hold nothing")
            });
        }
        let stated_free = ndb.header().amap_free;
        if whole && free != stated_free {
            self.out.add(Code::AMapFree, 0, || {
                format!("cbAMapFree is {stated_free}, the AMaps say {free}")
            });
        }
        free_slots
    }

    fn dlist(&mut self, entries: &[(u64, usize)], maps: &BTreeMap<u64, usize>) {
        for (index, free) in entries {
            if maps.get(index) != Some(free) {
                self.out.add(Code::DListStale, DLIST_OFFSET, || {
                    let found = maps
                        .get(index)
                        .map_or("no such AMap".into(), |n| format!("{n} by the AMap"));
                    format!("AMap {index}: {free} free slots by the list, {found}")
                });
            }
        }
    }
}
