//! The allocation maps against what is really in use ([MS-PST] 2.2.2.7.2 to 2.2.2.7.6).

use std::collections::BTreeMap;

use super::{Checker, Severity};
use crate::ndb::amap::{Bits, SLOTS, reserved, span_count};
use crate::ndb::format::{AMAP_SPAN, DLIST_OFFSET, FIRST_AMAP, SLOT, amap_offset, map_pages};
use crate::ndb::maps::read_dlist;
use crate::ndb::{PageType, verify_page};

impl Checker<'_> {
    pub(super) fn space(&mut self) {
        if !self.ndb.format().writable {
            return self.overlaps();
        }
        let header = self.ndb.header().clone();
        let spans = span_count(header.file_eof);
        if spans == 0 || header.file_eof != amap_offset(spans) {
            let detail = format!(
                "ibFileEof {:#x} is not at the end of a span",
                header.file_eof
            );
            self.add("file-eof", Severity::Warning, 184, "2.6.1.1.2", detail);
        }
        if spans > 0 && header.amap_last != amap_offset(spans - 1) {
            let detail = format!(
                "{:#x}, expected {:#x}",
                header.amap_last,
                amap_offset(spans - 1)
            );
            self.add("amap-last", Severity::Warning, 192, "2.2.2.5", detail);
        }
        let used = self.used(spans);
        if header.maps_valid() {
            self.maps(&used, header.amap_free);
        }
        if let Err(e) = read_dlist(self.ndb) {
            // Other programs use its place for other things (2.2.2.7.4).
            self.add(
                "dlist",
                Severity::Info,
                DLIST_OFFSET,
                "2.2.2.7.4",
                e.to_string(),
            );
        }
    }

    /// For a format whose allocation maps are not documented and never used: only that no two
    /// structures share bytes, and that all lie in the file.
    fn overlaps(&mut self) {
        let format = self.ndb.format();
        let pages = self.pages.iter().map(|ib| (*ib, format.page_size));
        let blocks = self.blocks.values();
        let blocks = blocks.map(|b| (b.bref.ib, format.block_space(usize::from(b.cb))));
        let mut things: Vec<(u64, usize)> = pages.chain(blocks).collect();
        things.sort_unstable();
        let (mut end, file_end) = (0, self.ndb.header().file_eof);
        for (ib, len) in things {
            if ib < end {
                let detail = format!("{len} bytes overlap another structure");
                self.add("overlap", Severity::Error, ib, "2.2.2.7.2", detail);
            }
            end = ib.saturating_add(len as u64).max(end);
            if end > file_end {
                let detail = format!("{len} bytes pass the end of the file");
                self.add("outside", Severity::Error, ib, "2.2.2.7.2", detail);
            }
        }
    }

    /// Marks what pages and blocks use; reports overlaps and what lies outside.
    fn used(&mut self, spans: u64) -> BTreeMap<u64, Bits> {
        let mut maps: BTreeMap<u64, Bits> = (0..spans).map(|i| (i, reserved(i))).collect();
        let format = self.ndb.format();
        let mut things: Vec<(u64, usize, String)> = Vec::new();
        for ib in &self.pages {
            things.push((*ib, format.page_size, "a B-tree page".into()));
        }
        for b in self.blocks.values() {
            let space = format.block_space(usize::from(b.cb));
            things.push((b.bref.ib, space, format!("block {}", b.bref.bid)));
        }
        things.sort();
        for (ib, len, what) in things {
            let place = ib
                .checked_sub(FIRST_AMAP)
                .map(|r| (r / AMAP_SPAN, r % AMAP_SPAN));
            let Some((index, rest)) = place else {
                self.add(
                    "outside",
                    Severity::Error,
                    ib,
                    "2.2.2.7.2",
                    format!("{what} lies in the header area"),
                );
                continue;
            };
            let (slot, n) = ((rest / SLOT) as usize, len.div_ceil(SLOT as usize));
            let Some(bits) = maps.get_mut(&index).filter(|_| slot + n <= SLOTS) else {
                self.add(
                    "outside",
                    Severity::Error,
                    ib,
                    "2.2.2.7.2",
                    format!("{what} passes the end of its span"),
                );
                continue;
            };
            let clash = bits.any(slot, n);
            bits.set(slot, n, true);
            if clash {
                self.add(
                    "overlap",
                    Severity::Error,
                    ib,
                    "2.2.2.7.2",
                    format!("{what} overlaps another structure"),
                );
            }
        }
        maps
    }

    fn maps(&mut self, used: &BTreeMap<u64, Bits>, stated_free: u64) {
        let format = self.ndb.format();
        let (mut free, mut leaked, mut first_leak) = (0u64, 0usize, 0u64);
        let mut whole = true;
        for (index, expected) in used {
            for (kind, offset) in map_pages(*index) {
                let ib = amap_offset(*index) + offset;
                let page = self.ndb.read(ib, format.page_size).and_then(|page| {
                    verify_page(format, &page, kind, ib, None)?;
                    Ok(page)
                });
                let page = match page {
                    Ok(page) => page,
                    Err(e) => {
                        let amap = kind == PageType::AMap;
                        whole &= !amap;
                        let severity = if amap {
                            Severity::Error
                        } else {
                            Severity::Warning
                        };
                        self.add("map-page", severity, ib, "2.2.2.7.2", e.to_string());
                        continue;
                    }
                };
                if kind != PageType::AMap {
                    continue;
                }
                let Ok(stated) = Bits::from_page(format, &page) else {
                    continue;
                };
                free += stated.free() as u64 * SLOT;
                let lost = expected.combine(&stated, |e, s| e & !s);
                let n = SLOTS - lost.free();
                if n > 0 {
                    let slot = (0..SLOTS).find(|s| lost.get(*s)).unwrap_or(0) as u64;
                    let detail = format!("{n} slots from here on are in use but marked free");
                    let at = amap_offset(*index) + slot * SLOT;
                    self.add("used-but-free", Severity::Error, at, "2.2.2.7.2", detail);
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
        let reserve = self.ndb.header().pmap_free / SLOT;
        if leaked as u64 > reserve {
            let detail = format!("{leaked} slots of 64 bytes are marked used but hold nothing");
            self.add("leaked", Severity::Info, first_leak, "2.2.2.7.2", detail);
        }
        if whole && free != stated_free {
            let detail = format!("cbAMapFree is {stated_free}, the AMaps say {free}");
            self.add("amap-free", Severity::Warning, 200, "2.2.2.5", detail);
        }
    }
}
