//! Heaps: page maps, headers and fill levels ([MS-PST] 2.3.1), and the order of a BTH (2.3.2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::codes::Code;
use super::content::{Content, Held};
use crate::ltp::{BthEntry, ClientSig, Heap, Hid, NodeSource, PageMap, fill_level, header_size};
use crate::ndb::SubnodeEntry;
use crate::ndb::bytes::u16_at;
use crate::{Bid, Nid, Result};

/// Bytes of a heap item, without copying them.
pub(super) fn item_len(heap: &Heap, hid: Hid) -> Result<usize> {
    let missing = || crate::PstError::corrupt("HID", 0, format!("{hid} is not in the heap"));
    if hid.0 & 0x1F != 0 || hid.block() >= heap.block_count() {
        return Err(missing());
    }
    let block = heap.block(hid.block())?;
    Ok(block.1.range(&block.0, hid.index())?.len())
}

impl Content<'_> {
    /// Checks the heap of a node and what it holds. `used` gets the subnodes that it refers to.
    pub(super) fn heap(
        &mut self,
        source: &NodeSource,
        sig: ClientSig,
        data: Bid,
        offset: u64,
        subnodes: Option<&BTreeMap<Nid, SubnodeEntry>>,
        used: &mut BTreeSet<Nid>,
    ) -> Held {
        let heap = match Heap::open(source) {
            Ok(h) => h,
            Err(e) => {
                self.failed(Code::Heap, offset, &e);
                return Held::Nothing;
            }
        };
        if !self.spend_blocks(heap.block_count()) {
            return Held::Nothing;
        }
        for i in 0..heap.block_count() {
            match heap.block(i) {
                Ok(b) => {
                    if let Err(e) = self.block(i, &b.0, &b.1, data) {
                        let at = self.offset(data, i);
                        self.failed(Code::HeapMap, at, &e);
                    }
                }
                Err(e) => {
                    let at = self.offset(data, i);
                    self.failed(Code::HeapBlock, at, &e);
                }
            }
        }
        // Levels are for the next writer. Blocks that cannot be read have been reported.
        if self.ndb.format().writable {
            let _ = self.fill_levels(&heap, offset);
        }
        let place = &self.place;
        match heap.client_sig() {
            found if found == sig && sig == ClientSig::PROPERTIES => self
                .properties(heap, offset, subnodes, used)
                .map_or(Held::Nothing, Held::Properties),
            found if found == sig => self
                .table(source, offset, subnodes, used)
                .map_or(Held::Nothing, Held::Rows),
            // Six values are reserved; Outlook keeps some of its indexes under them.
            found if found.is_reserved() => {
                self.out.add(Code::HeapReserved, offset, || {
                    format!("{place}: a heap of the undocumented kind {:#04x}", found.0)
                });
                Held::Nothing
            }
            found => {
                self.out.add(Code::Heap, offset, || {
                    format!("{place}: bClientSig {:#04x}, not {:#04x}", found.0, sig.0)
                });
                Held::Nothing
            }
        }
    }

    fn block(&mut self, i: usize, b: &[u8], map: &PageMap, data: Bid) -> Result<()> {
        let entry = |k: usize| u16_at(b, map.offset + 4 + 2 * k, "rgibAlloc").map(usize::from);
        let mut start = entry(0)?;
        let first = start;
        let mut wrong = None;
        let mut empty = 0;
        for k in 1..=map.alloc {
            let end = entry(k)?;
            if end < start && wrong.is_none() {
                wrong = Some((k, end, start));
            }
            empty += usize::from(end == start);
            start = end;
        }
        if wrong.is_none() && start <= map.offset && first == header_size(i) && empty == map.free {
            return Ok(());
        }
        let offset = self.offset(data, i);
        let place = &self.place;
        if first != header_size(i) {
            self.out.add(Code::HeapFirstItem, offset, || {
                format!(
                    "{place}: the items of block {i} begin at {first}, not {}",
                    header_size(i)
                )
            });
        }
        if let Some((k, end, start)) = wrong {
            self.out.add(Code::HeapMap, offset, || {
                format!("{place}: item {k} of block {i} ends at {end}, before its start {start}")
            });
        }
        if start > map.offset {
            self.out.add(Code::HeapMap, offset, || {
                format!(
                    "{place}: the items of block {i} end at {start}, in the map at {}",
                    map.offset
                )
            });
        }
        if empty != map.free {
            self.out.add(Code::HeapFreeCount, offset, || {
                format!(
                    "{place}: cFree of block {i} is {} where {empty} of {} items are empty; \
                     readers that insist on it reject the object",
                    map.free, map.alloc
                )
            });
        }
        Ok(())
    }

    /// Fill levels are hints for the next writer.
    fn fill_levels(&mut self, heap: &Heap, offset: u64) -> Result<()> {
        let full = self.ndb.format().max_data();
        let mut map = heap.block(0)?;
        let mut base = (0, 8);
        for i in 0..heap.block_count() {
            let block = heap.block(i)?;
            if header_size(i) > 12 {
                map = Arc::clone(&block);
                base = (i, 2);
            }
            let k = i - base.0;
            // Blocks past the first eight of a heap whose bitmap header is missing have no level.
            let Some(byte) = map.0.get(base.1 + k / 2) else {
                continue;
            };
            let stored = (byte >> (4 * (k % 2))) & 15;
            let used = block.1.offset + 6 + 2 * block.1.alloc;
            let level = fill_level(full.saturating_sub(used));
            if stored != level {
                let place = &self.place;
                self.out.add(Code::HeapFill, offset, || {
                    format!("{place}: fill level {stored} of block {i}, by its map {level}")
                });
            }
        }
        Ok(())
    }

    pub(super) fn order(&mut self, what: &str, entries: &[BthEntry], offset: u64) {
        let falls = entries
            .iter()
            .zip(entries.iter().skip(1))
            .find(|(a, b)| a.key >= b.key);
        if let Some((a, b)) = falls {
            let place = &self.place;
            self.out.add(Code::BthOrder, offset, || {
                format!(
                    "{place}: in its {what}, key {:#x} follows {:#x}",
                    b.key, a.key
                )
            });
        }
    }
}
