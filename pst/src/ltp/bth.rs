//! B-tree-on-heap ([MS-PST] 2.3.2): reading all entries, and building a tree.
//!
//! Keys are little-endian numbers of 2, 4, 8 or 16 bytes; a tree's entries are handed out in
//! stored order.

use super::heap::{Heap, Hid};
use super::heap_build::{HeapBuilder, MAX_ITEM};
use crate::ndb::bytes::{u8_at, u32_at};
use crate::{PstError, Result};

/// Deepest tree that is followed. One level of a heap item holds at least 179 children, so no
/// heap can fill even five.
const MAX_LEVELS: u8 = 8;

/// The header of a BTH ([MS-PST] 2.3.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BthHeader {
    /// Bytes of a key: 2, 4, 8 or 16.
    pub key_size: usize,
    /// Bytes of a leaf entry's data: 1 to 32.
    pub entry_size: usize,
    /// Index levels above the leaves.
    pub levels: u8,
    /// The root record array; none where the tree is empty.
    pub root: Hid,
}

impl BthHeader {
    /// Reads the header in heap item `hid`.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if it is none.
    pub fn read(heap: &Heap, hid: Hid) -> Result<Self> {
        let b = heap.item(hid)?;
        let kind = u8_at(&b, 0, "BTHHEADER.bType")?;
        let h = Self {
            key_size: u8_at(&b, 1, "BTHHEADER.cbKey")?.into(),
            entry_size: u8_at(&b, 2, "BTHHEADER.cbEnt")?.into(),
            levels: u8_at(&b, 3, "BTHHEADER.bIdxLevels")?,
            root: Hid(u32_at(&b, 4, "BTHHEADER.hidRoot")?),
        };
        if kind != 0xB5 {
            return Err(PstError::corrupt(
                "BTHHEADER.bType",
                0,
                format!("{kind:#04x}, not 0xb5"),
            ));
        }
        if !matches!(h.key_size, 2 | 4 | 8 | 16) {
            return Err(PstError::corrupt(
                "BTHHEADER.cbKey",
                1,
                h.key_size.to_string(),
            ));
        }
        if !(1..=32).contains(&h.entry_size) {
            return Err(PstError::corrupt(
                "BTHHEADER.cbEnt",
                2,
                h.entry_size.to_string(),
            ));
        }
        if h.levels > MAX_LEVELS {
            return Err(PstError::Limit {
                what: "levels of a BTH",
                found: h.levels.into(),
                limit: MAX_LEVELS.into(),
            });
        }
        Ok(h)
    }

    /// The header as it is stored.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![
            0xB5,
            self.key_size as u8,
            self.entry_size as u8,
            self.levels,
        ];
        out.extend_from_slice(&self.root.0.to_le_bytes());
        out
    }
}

/// One leaf entry: the key as a number, and the data bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BthEntry {
    /// The key, little-endian.
    pub key: u128,
    /// The data.
    pub data: Vec<u8>,
}

/// A stored key as a number.
pub(crate) fn key_of(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |n, b| (n << 8) | u128::from(*b))
}

/// All entries of the BTH whose header is heap item `hid`, in stored order.
///
/// # Errors
/// [`PstError::Corrupt`] for a malformed tree (also for one that claims more entries than its
/// heap has bytes for), and what reading gives.
pub fn read_bth(heap: &Heap, hid: Hid) -> Result<(BthHeader, Vec<BthEntry>)> {
    let h = BthHeader::read(heap, hid)?;
    let mut entries = Vec::new();
    if h.root.is_none() {
        return Ok((h, entries));
    }
    // Records of a sane tree are distinct heap items, so their bytes cannot exceed the heap's.
    let mut budget = heap.len();
    let mut stack = vec![(h.root, h.levels)];
    while let Some((hid, level)) = stack.pop() {
        let item = heap.item(hid)?;
        budget = budget
            .checked_sub((item.len() as u64).max(1))
            .ok_or_else(|| PstError::corrupt("BTH", 0, "the records are longer than their heap"))?;
        let size = h.key_size + if level == 0 { h.entry_size } else { 4 };
        if item.len() % size != 0 {
            return Err(PstError::corrupt(
                "BTH record",
                0,
                format!("{hid}: {} bytes, records of {size}", item.len()),
            ));
        }
        if level == 0 {
            entries.extend(item.chunks_exact(size).filter_map(|r| {
                let (key, data) = r.split_at_checked(h.key_size)?;
                Some(BthEntry {
                    key: key_of(key),
                    data: data.to_vec(),
                })
            }));
        } else {
            for r in item.chunks_exact(size).rev() {
                stack.push((Hid(u32_at(r, h.key_size, "BTH hidNextLevel")?), level - 1));
            }
        }
    }
    Ok((h, entries))
}

/// Builds a BTH in `heap`: its records, and the header into the item `header` (8 bytes,
/// allocated before). `entries` are (key, data) with keys strictly rising; `data` are
/// `entry_size` bytes each.
///
/// # Errors
/// [`PstError::Refused`] for sizes or keys that do not fit, [`PstError::Limit`] where the heap
/// is full.
pub fn build_bth(
    heap: &mut HeapBuilder,
    header: Hid,
    key_size: usize,
    entry_size: usize,
    entries: &[(u128, Vec<u8>)],
) -> Result<()> {
    let refused = |why: &str| PstError::Refused(format!("building a BTH: {why}"));
    if !matches!(key_size, 2 | 4 | 8 | 16) || !(1..=32).contains(&entry_size) {
        return Err(refused("unsupported key or entry size"));
    }
    if entries
        .iter()
        .zip(entries.iter().skip(1))
        .any(|((a, _), (b, _))| a >= b)
    {
        return Err(refused("keys do not rise"));
    }
    if entries
        .last()
        .is_some_and(|(k, _)| key_size < 16 && *k >> (8 * key_size) != 0)
    {
        return Err(refused("key too large"));
    }
    let key_bytes = |k: u128| k.to_le_bytes().into_iter().take(key_size);

    // Each round turns records into items and leaves one index record for each item.
    let mut records: Vec<(u128, Vec<u8>)> = Vec::with_capacity(entries.len());
    for (k, d) in entries {
        if d.len() != entry_size {
            return Err(refused("entry of the wrong size"));
        }
        records.push((*k, key_bytes(*k).chain(d.iter().copied()).collect()));
    }
    let mut levels = 0u8;
    let mut size = key_size + entry_size;
    let root = loop {
        let mut next = Vec::new();
        // A full record must hold all; of several, none is filled to the brim (2.6.2.2.2).
        let width = MAX_ITEM / size;
        let width = if records.len() > width {
            width * 9 / 10
        } else {
            width
        };
        for chunk in records.chunks(width.max(1)) {
            let item: Vec<u8> = chunk.iter().flat_map(|(_, r)| r.iter().copied()).collect();
            let hid = heap.alloc(&item)?;
            let first = chunk.first().map_or(0, |(k, _)| *k);
            next.push((first, hid));
        }
        match next.as_slice() {
            [] => break Hid::NONE,
            [(_, only)] => break *only,
            _ => {}
        }
        levels += 1;
        size = key_size + 4;
        records = next
            .into_iter()
            .map(|(k, hid)| (k, key_bytes(k).chain(hid.0.to_le_bytes()).collect()))
            .collect();
    };
    let h = BthHeader {
        key_size,
        entry_size,
        levels,
        root,
    };
    heap.set(header, &h.encode())
}
