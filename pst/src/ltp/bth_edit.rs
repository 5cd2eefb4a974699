//! B-tree-on-heap, searching and editing ([MS-PST] 2.6.2.2): one entry at a time.
//!
//! A search reads one heap item per level. An edit changes one leaf record and, where it moved,
//! split, emptied or got another first key, the index records above it.

use super::bth::{BthHeader, key_of};
use super::heap::{Heap, Hid};
use super::heap_build::MAX_ITEM;
use super::heap_edit::HeapEdit;
use crate::ndb::bytes::u32_at;
use crate::{PstError, Result};

/// Bytes of a reference to the record below, behind the key of an index record.
const REF: usize = 4;

/// The records of one item, cut.
struct Records {
    bytes: Vec<u8>,
    size: usize,
    key: usize,
}

impl Records {
    fn new(bytes: Vec<u8>, key: usize, entry: usize) -> Result<Self> {
        let size = key + entry;
        if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
            return Err(PstError::corrupt(
                "BTH record",
                0,
                format!("{} bytes, records of {size}", bytes.len()),
            ));
        }
        Ok(Self { bytes, size, key })
    }

    fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    fn get(&self, i: usize) -> &[u8] {
        self.bytes
            .get(i * self.size..(i + 1) * self.size)
            .unwrap_or_default()
    }

    fn key(&self, i: usize) -> u128 {
        key_of(self.get(i).get(..self.key).unwrap_or_default())
    }

    fn data(&self, i: usize) -> &[u8] {
        self.get(i).get(self.key..).unwrap_or_default()
    }

    /// How many records have keys up to `key`.
    fn upto(&self, key: u128) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = usize::midpoint(low, high);
            if self.key(mid) <= key {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        low
    }

    /// Replaces `n` records from `at` on.
    fn splice(&mut self, at: usize, n: usize, records: &[u8]) {
        let end = ((at + n) * self.size).min(self.bytes.len());
        let start = (at * self.size).min(end);
        self.bytes.splice(start..end, records.iter().copied());
    }
}

/// Finds the data of one entry in a stored tree.
pub(crate) fn find(heap: &Heap, h: &BthHeader, key: u128) -> Result<Option<Vec<u8>>> {
    search(h, key, |hid| heap.item(hid))
}

fn search(
    h: &BthHeader,
    key: u128,
    item: impl Fn(Hid) -> Result<Vec<u8>>,
) -> Result<Option<Vec<u8>>> {
    if h.root.is_none() {
        return Ok(None);
    }
    let mut hid = h.root;
    for _ in 0..h.levels {
        let records = Records::new(item(hid)?, h.key_size, REF)?;
        let at = records.upto(key).max(1) - 1;
        hid = Hid(u32_at(records.data(at), 0, "BTH hidNextLevel")?);
    }
    let records = Records::new(item(hid)?, h.key_size, h.entry_size)?;
    let at = records.upto(key).max(1) - 1;
    Ok((records.key(at) == key).then(|| records.data(at).to_vec()))
}

/// An open edit of a BTH; its heap is passed to each call.
pub(crate) struct BthEdit {
    hid: Hid,
    header: BthHeader,
}

impl BthEdit {
    pub(crate) const fn new(hid: Hid, header: BthHeader) -> Self {
        Self { hid, header }
    }

    pub(crate) const fn header(&self) -> &BthHeader {
        &self.header
    }

    pub(crate) fn find(&self, heap: &HeapEdit, key: u128) -> Result<Option<Vec<u8>>> {
        search(&self.header, key, |hid| heap.item(hid))
    }

    /// Sets the data of an entry, which is added where it is new.
    pub(crate) fn set(&mut self, heap: &mut HeapEdit, key: u128, data: &[u8]) -> Result<()> {
        let h = self.header;
        let mut record: Vec<u8> = key.to_le_bytes().into_iter().take(h.key_size).collect();
        record.extend_from_slice(data);
        if data.len() != h.entry_size || (h.key_size < 16 && key >> (8 * h.key_size) != 0) {
            return Err(PstError::Refused("a BTH entry of the wrong size".into()));
        }
        if h.root.is_none() {
            self.header.root = heap.alloc(record)?;
            self.header.levels = 0;
            return self.store(heap);
        }
        let (path, hid, mut leaf) = self.descend(heap, key)?;
        let at = leaf.upto(key);
        let there = at > 0 && leaf.key(at - 1) == key;
        leaf.splice(if there { at - 1 } else { at }, usize::from(there), &record);
        let above = rewrite(heap, hid, leaf, at)?;
        self.ascend(heap, path, above)
    }

    /// Removes an entry; says whether there was one.
    pub(crate) fn remove(&mut self, heap: &mut HeapEdit, key: u128) -> Result<bool> {
        if self.header.root.is_none() {
            return Ok(false);
        }
        let (path, hid, mut leaf) = self.descend(heap, key)?;
        let at = leaf.upto(key);
        if at == 0 || leaf.key(at - 1) != key {
            return Ok(false);
        }
        leaf.splice(at - 1, 1, &[]);
        let above = rewrite(heap, hid, leaf, at)?;
        self.ascend(heap, path, above)?;
        Ok(true)
    }

    /// The index records from the root down, each with the place taken, and the leaf.
    #[expect(clippy::type_complexity, reason = "one use")]
    fn descend(
        &self,
        heap: &HeapEdit,
        key: u128,
    ) -> Result<(Vec<(Hid, Records, usize)>, Hid, Records)> {
        let h = &self.header;
        let mut path = Vec::new();
        let mut hid = h.root;
        for _ in 0..h.levels {
            let records = Records::new(heap.item(hid)?, h.key_size, REF)?;
            let at = records.upto(key).max(1) - 1;
            let next = Hid(u32_at(records.data(at), 0, "BTH hidNextLevel")?);
            path.push((hid, records, at));
            hid = next;
        }
        let leaf = Records::new(heap.item(hid)?, h.key_size, h.entry_size)?;
        Ok((path, hid, leaf))
    }

    /// Carries what became of a record up: none, one or two records stand for it now.
    fn ascend(
        &mut self,
        heap: &mut HeapEdit,
        path: Vec<(Hid, Records, usize)>,
        mut now: Vec<(u128, Hid)>,
    ) -> Result<()> {
        let width = self.header.key_size;
        let encode = |list: &[(u128, Hid)]| -> Vec<u8> {
            let record = |(k, hid): &(u128, Hid)| {
                k.to_le_bytes()
                    .into_iter()
                    .take(width)
                    .chain(hid.0.to_le_bytes())
            };
            list.iter().flat_map(record).collect()
        };
        for (hid, mut records, at) in path.into_iter().rev() {
            let new = encode(&now);
            if records.get(at) == new {
                return Ok(());
            }
            records.splice(at, 1, &new);
            now = rewrite(heap, hid, records, at + 1)?;
        }
        let before = self.header;
        match now.as_slice() {
            [] => (self.header.root, self.header.levels) = (Hid::NONE, 0),
            [(_, only)] => {
                self.header.root = *only;
                // An index of one record leads nowhere else.
                while self.header.levels > 0 {
                    let top = Records::new(heap.item(self.header.root)?, width, REF)?;
                    if top.len() > 1 {
                        break;
                    }
                    heap.free(self.header.root)?;
                    self.header.root = Hid(u32_at(top.data(0), 0, "BTH hidNextLevel")?);
                    self.header.levels -= 1;
                }
            }
            many => {
                self.header.root = heap.alloc(encode(many))?;
                self.header.levels += 1;
            }
        }
        if self.header == before {
            return Ok(());
        }
        self.store(heap)
    }

    fn store(&self, heap: &mut HeapEdit) -> Result<()> {
        if heap.put(self.hid, self.header.encode())? != self.hid {
            return Err(PstError::corrupt(
                "BTHHEADER",
                0,
                "its item cannot be rewritten",
            ));
        }
        Ok(())
    }
}

/// Puts changed records back into their item: freed where none is left, split where they are too
/// long. `at` is where the change was: rising keys fill the left item and begin a new one.
fn rewrite(heap: &mut HeapEdit, hid: Hid, records: Records, at: usize) -> Result<Vec<(u128, Hid)>> {
    if records.bytes.is_empty() {
        heap.free(hid)?;
        return Ok(Vec::new());
    }
    let first = records.key(0);
    if records.bytes.len() <= MAX_ITEM {
        return Ok(vec![(first, heap.put(hid, records.bytes)?)]);
    }
    let cut = if at + 1 >= records.len() {
        records.len() - 1
    } else {
        records.len() / 2
    };
    let second = records.key(cut);
    let (left, right) = records.bytes.split_at(cut * records.size);
    let left = heap.put(hid, left.to_vec())?;
    let right = heap.alloc(right.to_vec())?;
    Ok(vec![(first, left), (second, right)])
}
