//! Heap-on-node, editing ([MS-PST] 2.6.2.1): changes some items of a stored heap.
//!
//! Only the blocks that hold the changed items are read, and those whose maps tell their fill
//! levels. A block that is touched is written tightly packed (2.6.2.1.3), with its page map and its
//! count of freed items made anew; the place of a freed item is given to the next new one.
//!
//! New items go where a block is rewritten anyway or into the last block, else where the fill
//! level maps promise room, else into a new block: so that one edit touches few blocks, and what
//! was freed is found again.

use std::collections::{BTreeMap, BTreeSet};

use super::heap::{Heap, Hid, MAX_BLOCKS};
use super::heap_build::{
    MAX_ITEM, MAX_ITEMS, VALUE_BLOCKS, fill_level, has_bitmap, header_size, level_room,
};
use crate::ndb::bytes::put;
use crate::{PstError, Result};

/// How many of the blocks that are rewritten anyway are tried for room.
const RECENT: usize = 8;
/// How many fill level maps (of 128 blocks each) are searched for room before a block is added.
const MAX_MAPS: usize = 64;
/// Room that values leave in a block, so that a BTH record in it can grow where it is.
const SLACK: usize = 256;

enum Item {
    Live(Vec<u8>),
    /// A freed item: its place in the page map may be used again.
    Free,
}

struct Page {
    /// The block's header as stored; the map's offset in it is set when the block is packed.
    header: Vec<u8>,
    items: Vec<Item>,
    bytes: usize,
    free: usize,
    /// The block as it was; empty for a new one.
    before: Vec<u8>,
    /// The room under which the block is listed in [`HeapEdit::roomy`].
    listed: usize,
}

impl Page {
    fn used(&self, new_items: usize, new_bytes: usize) -> usize {
        let body = self.header.len() + self.bytes + new_bytes;
        body.next_multiple_of(2) + 4 + 2 * (self.items.len() + new_items + 1)
    }

    fn has_room(&self, len: usize, block: usize, slack: usize) -> bool {
        let new_items = usize::from(self.free == 0);
        self.items.len() + new_items <= MAX_ITEMS && self.used(new_items, len) + slack <= block
    }

    /// How long an item can be that still fits.
    fn room(&self, block: usize) -> usize {
        let new_items = usize::from(self.free == 0);
        if self.items.len() + new_items > MAX_ITEMS {
            return 0;
        }
        // One byte may go to the padding before the map.
        block.saturating_sub(self.used(new_items, 1))
    }

    fn pack(&self, block: usize, last: bool) -> Vec<u8> {
        let mut b = self.header.clone();
        let mut ends = vec![b.len() as u16];
        for item in &self.items {
            if let Item::Live(bytes) = item {
                b.extend_from_slice(bytes);
            }
            ends.push(b.len() as u16);
        }
        b.resize(b.len().next_multiple_of(2), 0);
        let map = b.len() as u16;
        let counts = [self.items.len() as u16, self.free as u16];
        for n in counts.iter().chain(&ends) {
            b.extend_from_slice(&n.to_le_bytes());
        }
        if !last {
            b.resize(block, 0);
        }
        put(&mut b, 0, &map.to_le_bytes());
        b
    }
}

/// A stored heap with uncommitted changes.
pub(crate) struct HeapEdit {
    heap: Heap,
    /// Bytes of a full block.
    block: usize,
    count: usize,
    /// Values are put into blocks below this one.
    value_blocks: usize,
    pages: BTreeMap<usize, Page>,
    recent: Vec<usize>,
    /// The blocks that are rewritten anyway, by their room.
    roomy: BTreeSet<(usize, usize)>,
    /// Blocks in which the fill level maps promise room, next one last; `None` until searched.
    candidates: Option<Vec<(usize, usize)>>,
}

fn odd(i: usize, detail: impl Into<String>) -> PstError {
    PstError::corrupt("HNPAGEMAP", 0, format!("heap block {i}: {}", detail.into()))
}

impl HeapEdit {
    pub(crate) fn new(heap: Heap, block: usize) -> Self {
        Self {
            count: heap.block_count(),
            heap,
            block,
            value_blocks: VALUE_BLOCKS,
            pages: BTreeMap::new(),
            recent: Vec::new(),
            roomy: BTreeSet::new(),
            candidates: None,
        }
    }

    /// Keeps values out of all but the first `n` blocks, as if the others were the last ones that a
    /// HID can address.
    #[cfg(test)]
    pub(crate) const fn limit_values(&mut self, n: usize) {
        self.value_blocks = n;
    }

    /// The bytes of an item as it is now.
    pub(crate) fn item(&self, hid: Hid) -> Result<Vec<u8>> {
        match self.pages.get(&hid.block()) {
            None => self.heap.item(hid),
            Some(page) => {
                let item = hid.index().checked_sub(1).and_then(|i| page.items.get(i));
                match item {
                    Some(Item::Live(bytes)) if hid.0 & 0x1F == 0 => Ok(bytes.clone()),
                    _ => Err(PstError::corrupt("HID", 0, format!("no item {hid}"))),
                }
            }
        }
    }

    /// Adds a record of a BTH: 1 to [`MAX_ITEM`] bytes.
    pub(crate) fn alloc(&mut self, item: Vec<u8>) -> Result<Hid> {
        self.place(item, MAX_BLOCKS, 0)
    }

    /// Adds a cell's value: 1 to [`MAX_ITEM`] bytes. `None` where only records may be added: the last
    /// blocks that a HID can address are kept for the row index.
    pub(crate) fn alloc_value(&mut self, item: Vec<u8>) -> Result<Option<Hid>> {
        match self.place(item, self.value_blocks, SLACK) {
            Ok(hid) => Ok(Some(hid)),
            Err(PstError::Limit { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces the bytes of a record; it may get another HID.
    pub(crate) fn put(&mut self, hid: Hid, item: Vec<u8>) -> Result<Hid> {
        match self.put_in_place(hid, item)? {
            None => Ok(hid),
            Some(item) => {
                self.free(hid)?;
                self.alloc(item)
            }
        }
    }

    /// Replaces the bytes of a cell's value, which may get another HID; `None` as for
    /// [`HeapEdit::alloc_value`], and the old value is gone.
    pub(crate) fn put_value(&mut self, hid: Hid, item: Vec<u8>) -> Result<Option<Hid>> {
        match self.put_in_place(hid, item)? {
            None => Ok(Some(hid)),
            Some(item) => {
                self.free(hid)?;
                self.alloc_value(item)
            }
        }
    }

    /// Gives the bytes back where their block has no room for them.
    fn put_in_place(&mut self, hid: Hid, item: Vec<u8>) -> Result<Option<Vec<u8>>> {
        let block = self.block;
        let (page, at) = self.live(hid)?;
        let Some(Item::Live(slot)) = page.items.get_mut(at) else {
            return Ok(Some(item));
        };
        let old = slot.len();
        page.bytes -= old;
        let body = page.header.len() + page.bytes + item.len();
        if body.next_multiple_of(2) + 4 + 2 * (page.items.len() + 1) > block {
            page.bytes += old;
            return Ok(Some(item));
        }
        page.bytes += item.len();
        if let Some(slot) = page.items.get_mut(at) {
            *slot = Item::Live(item);
        }
        self.list(hid.block());
        Ok(None)
    }

    /// Frees an item.
    pub(crate) fn free(&mut self, hid: Hid) -> Result<()> {
        let (page, at) = self.live(hid)?;
        if let Some(slot) = page.items.get_mut(at)
            && let Item::Live(old) = std::mem::replace(slot, Item::Free)
        {
            page.bytes -= old.len();
            page.free += 1;
        }
        self.list(hid.block());
        Ok(())
    }

    /// Lists a block under the room that it has now.
    fn list(&mut self, i: usize) {
        if let Some(page) = self.pages.get_mut(&i) {
            self.roomy.remove(&(page.listed, i));
            page.listed = page.room(self.block);
            self.roomy.insert((page.listed, i));
        }
    }

    fn live(&mut self, hid: Hid) -> Result<(&mut Page, usize)> {
        let bad = || PstError::corrupt("HID", 0, format!("no item {hid}"));
        let at = hid.index().checked_sub(1).ok_or_else(bad)?;
        if hid.0 & 0x1F != 0 || hid.block() >= self.count {
            return Err(bad());
        }
        let page = self.page(hid.block())?;
        match page.items.get(at) {
            Some(Item::Live(_)) => Ok((page, at)),
            _ => Err(bad()),
        }
    }

    fn page(&mut self, i: usize) -> Result<&mut Page> {
        if !self.pages.contains_key(&i) {
            let page = load(&self.heap, i)?;
            self.pages.insert(i, page);
        }
        if self.recent.last() != Some(&i) {
            self.recent.retain(|r| *r != i);
            self.recent.push(i);
            if self.recent.len() > RECENT {
                self.recent.remove(0);
            }
        }
        self.pages.get_mut(&i).ok_or_else(|| odd(i, "not loaded"))
    }

    fn place(&mut self, item: Vec<u8>, limit: usize, slack: usize) -> Result<Hid> {
        if item.is_empty() || item.len() > MAX_ITEM {
            return Err(PstError::Refused(format!(
                "a heap item of {} bytes",
                item.len()
            )));
        }
        let at = self.find_room(item.len(), limit, slack)?;
        let page = self.page(at)?;
        page.bytes += item.len();
        let free = page.items.iter().position(|i| matches!(i, Item::Free));
        let index = match free.and_then(|i| Some((i, page.items.get_mut(i)?))) {
            Some((i, slot)) => {
                *slot = Item::Live(item);
                page.free -= 1;
                i + 1
            }
            None => {
                page.items.push(Item::Live(item));
                page.items.len()
            }
        };
        self.list(at);
        match (u16::try_from(at), u16::try_from(index)) {
            (Ok(block), Ok(index)) => Ok(Hid::new(block, index)),
            _ => Err(odd(at, "not addressable")),
        }
    }

    fn find_room(&mut self, len: usize, limit: usize, slack: usize) -> Result<usize> {
        let block = self.block;
        let fits = |p: &Page| p.has_room(len, block, slack);
        for i in self.recent.iter().rev() {
            if *i < limit && self.pages.get(i).is_some_and(fits) {
                return Ok(*i);
            }
        }
        if let Some(last) = self.count.checked_sub(1)
            && last < limit
            && fits(self.page(last)?)
        {
            return Ok(last);
        }
        if let Some((room, i)) = self.roomy.last().copied()
            && room >= len + slack
            && i < limit
        {
            return Ok(i);
        }
        if self.candidates.is_none() {
            self.candidates = Some(self.promises()?);
        }
        // A promise is tried once: a level that lies is not asked again.
        while let Some((i, room)) = self.candidates.as_mut().and_then(Vec::pop) {
            if room < len + slack {
                self.candidates
                    .as_mut()
                    .into_iter()
                    .for_each(|c| c.push((i, room)));
                break;
            }
            if i < limit && fits(self.page(i)?) {
                return Ok(i);
            }
        }
        let i = self.count;
        if i >= limit {
            return Err(PstError::Limit {
                what: "heap blocks",
                found: i as u64 + 1,
                limit: limit as u64,
            });
        }
        // Every block but the last is full-sized: the one that is last now must be padded.
        if let Some(last) = i.checked_sub(1) {
            self.page(last)?;
        }
        self.pages.insert(
            i,
            Page {
                header: vec![0; header_size(i)],
                items: Vec::new(),
                bytes: 0,
                free: 0,
                before: Vec::new(),
                listed: 0,
            },
        );
        self.count += 1;
        Ok(i)
    }

    /// The blocks with plenty of room by their fill levels, the emptiest last.
    fn promises(&self) -> Result<Vec<(usize, usize)>> {
        let count = self.heap.block_count();
        let mut out = Vec::new();
        let maps = (8..count).step_by(128).rev().take(MAX_MAPS);
        for map in maps.chain([0]) {
            let block = self.heap.block(map)?;
            let (at, n) = if map == 0 { (8, 8) } else { (2, 128) };
            for k in (0..n).take_while(|k| map + k < count) {
                let byte = block.0.get(at + k / 2).copied().unwrap_or(0xFF);
                let room = level_room((byte >> (4 * (k % 2))) & 15);
                if room >= 1024 && !self.pages.contains_key(&(map + k)) {
                    out.push((map + k, room));
                }
            }
        }
        out.sort_by_key(|(i, room)| (*room, std::cmp::Reverse(*i)));
        Ok(out)
    }

    /// The blocks that changed, and how many there are now.
    pub(crate) fn finish(mut self) -> Result<(usize, BTreeMap<usize, Vec<u8>>)> {
        let touched: Vec<usize> = self.pages.keys().copied().collect();
        for i in touched {
            let Some(page) = self.pages.get_mut(&i) else {
                continue;
            };
            // Freed items at the end need no place in the map.
            while let Some(Item::Free) = page.items.last() {
                page.items.pop();
                page.free -= 1;
            }
            let level = fill_level(self.block.saturating_sub(page.used(0, 0)));
            let (map, at) = match i {
                0..8 => (0, 8 + i / 2),
                _ => ((i - 8) / 128 * 128 + 8, 2 + (i - 8) % 128 / 2),
            };
            let shift = 4 * (i % 2);
            let page = self.page(map)?;
            if let Some(b) = page.header.get_mut(at) {
                *b = (*b & !(15 << shift)) | (level << shift);
            }
        }
        let (block, last) = (self.block, self.count - 1);
        let mut out = BTreeMap::new();
        for (i, page) in self.pages {
            let bytes = page.pack(block, i == last);
            if bytes.len() > block {
                return Err(odd(i, "too long"));
            }
            if bytes != page.before {
                out.insert(i, bytes);
            }
        }
        Ok((self.count, out))
    }
}

/// Takes a stored block apart. One that cannot be put together again is an error: the table is then
/// built anew.
fn load(heap: &Heap, i: usize) -> Result<Page> {
    let block = heap.block(i)?;
    let (data, map) = (&block.0, &block.1);
    let header = header_size(i);
    if map.alloc > MAX_ITEMS {
        return Err(odd(i, format!("{} items", map.alloc)));
    }
    let mut items = Vec::with_capacity(map.alloc);
    let mut at = header;
    let mut empty = 0;
    for k in 1..=map.alloc {
        let range = map.range(data, k)?;
        if range.start != at || range.end > map.offset {
            return Err(odd(i, format!("item {k} at {range:?}")));
        }
        at = range.end;
        empty += usize::from(range.is_empty());
        items.push(Item::Live(data.get(range).unwrap_or_default().to_vec()));
    }
    // Where the count of freed items is wrong, an empty item may be in use: it is left alone.
    let known = empty == map.free;
    if known {
        for item in &mut items {
            if matches!(item, Item::Live(b) if b.is_empty()) {
                *item = Item::Free;
            }
        }
    }
    Ok(Page {
        header: data.get(..header).unwrap_or_default().to_vec(),
        items,
        bytes: at - header,
        free: if known { empty } else { 0 },
        before: data.clone(),
        listed: 0,
    })
}

const _: () = assert!(has_bitmap(8) && has_bitmap(136) && !has_bitmap(135));
