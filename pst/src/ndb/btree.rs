//! Reading the two B-trees ([MS-PST] 2.2.2.7.7): node B-tree (NBT) and block B-tree (BBT).
//!
//! Every page is verified (type, checksum, signature, BID, level, key order) before its entries
//! are used. Levels must fall by one on the way down, so a crafted tree cannot loop: depth is
//! bounded by [`MAX_LEVEL`], and iteration keeps one page per level.

use std::marker::PhantomData;
use std::sync::Arc;

use super::Ndb;
use super::bytes::{put, slice, u8_at, u16_at, u32_at};
use super::format::Format;
use super::page::{PageType, verify_page};
use crate::{Bid, Bref, Nid, PstError, Result};

/// The deepest level of a B-tree page (2.2.2.7.7: up to 8 intermediate levels).
pub const MAX_LEVEL: u8 = 8;

/// A leaf entry of the node B-tree (2.2.2.7.7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NbtEntry {
    /// The node.
    pub nid: Nid,
    /// Its data tree; [`Bid::NONE`] if it has no data.
    pub bid_data: Bid,
    /// Its subnode tree; [`Bid::NONE`] if it has no subnodes.
    pub bid_sub: Bid,
    /// The parent folder for children of folders, else 0.
    pub nid_parent: Nid,
}

/// A leaf entry of the block B-tree (2.2.2.7.7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BbtEntry {
    /// The block, and where it lies.
    pub bref: Bref,
    /// Bytes of data in the block as stored, without padding and trailer.
    pub cb: u16,
    /// Bytes of data when inflated; `cb` where the block is not deflated.
    pub cb_data: u16,
    /// References to the block, this entry included (2.2.2.7.7.3.1).
    pub cref: u16,
}

/// An entry of an intermediate page (2.2.2.7.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BtEntry {
    /// The smallest key below.
    pub key: u64,
    /// The child page.
    pub bref: Bref,
}

/// What distinguishes the two trees: their leaf entries.
pub trait BtLeaf: Copy + Sized + PartialEq {
    /// The type of the tree's pages.
    const PAGE: PageType;
    /// The key by which entries are sorted.
    fn key(&self) -> u64;
    /// Bytes of a stored entry.
    fn size(format: &Format) -> usize;
    /// Reads an entry.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if the bytes are too few.
    fn decode(format: &Format, b: &[u8]) -> Result<Self>;
    /// Writes the entry at the start of `b`, which is zeroed.
    fn encode(&self, format: &Format, b: &mut [u8]);
    /// The tree's root.
    fn root(ndb: &Ndb) -> Bref;
}

impl BtLeaf for NbtEntry {
    const PAGE: PageType = PageType::Nbt;
    fn key(&self) -> u64 {
        u64::from(self.nid.0)
    }
    fn size(format: &Format) -> usize {
        format.nbtentry
    }
    fn decode(format: &Format, b: &[u8]) -> Result<Self> {
        let w = format.bid_size;
        Ok(Self {
            // The NID is a 32-bit number in an 8-byte field; some writers leave rubbish above.
            nid: Nid(u32_at(b, 0, "NBTENTRY.nid")?),
            bid_data: Bid(format.id_at(b, w, "NBTENTRY.bidData")?),
            bid_sub: Bid(format.id_at(b, 2 * w, "NBTENTRY.bidSub")?),
            nid_parent: Nid(u32_at(b, 3 * w, "NBTENTRY.nidParent")?),
        })
    }
    fn encode(&self, format: &Format, b: &mut [u8]) {
        let w = format.bid_size;
        format.put_id(b, 0, u64::from(self.nid.0));
        format.put_id(b, w, self.bid_data.0);
        format.put_id(b, 2 * w, self.bid_sub.0);
        put(b, 3 * w, &self.nid_parent.0.to_le_bytes());
    }
    fn root(ndb: &Ndb) -> Bref {
        ndb.header().nbt
    }
}

impl BtLeaf for BbtEntry {
    const PAGE: PageType = PageType::Bbt;
    fn key(&self) -> u64 {
        self.bref.bid.key()
    }
    fn size(format: &Format) -> usize {
        format.bbtentry
    }
    fn decode(format: &Format, b: &[u8]) -> Result<Self> {
        let w = format.bid_size;
        let cb = u16_at(b, 2 * w, "BBTENTRY.cb")?;
        // A format with deflated blocks has their inflated length before the count of references.
        let (cb_data, cref) = if format.compressed {
            (u16_at(b, 2 * w + 2, "BBTENTRY.cb")?, 2 * w + 4)
        } else {
            (cb, 2 * w + 2)
        };
        Ok(Self {
            bref: Bref {
                bid: Bid(format.id_at(b, 0, "BBTENTRY.bid")?),
                ib: format.id_at(b, w, "BBTENTRY.ib")?,
            },
            cb,
            cb_data,
            cref: u16_at(b, cref, "BBTENTRY.cRef")?,
        })
    }
    fn encode(&self, format: &Format, b: &mut [u8]) {
        let w = format.bid_size;
        format.put_id(b, 0, self.bref.bid.0);
        format.put_id(b, w, self.bref.ib);
        let lengths = [self.cb, self.cb_data];
        let lengths = lengths.get(..1 + usize::from(format.compressed));
        let fields = lengths.unwrap_or_default().iter().chain([&self.cref]);
        for (i, field) in fields.enumerate() {
            put(b, 2 * w + 2 * i, &field.to_le_bytes());
        }
    }
    fn root(ndb: &Ndb) -> Bref {
        ndb.header().bbt
    }
}

/// A verified B-tree page.
#[derive(Debug)]
pub struct BtPage {
    format: &'static Format,
    data: Vec<u8>,
    /// Where the page lies, and its BID.
    pub bref: Bref,
    /// 0 for leaf pages.
    pub level: u8,
    /// Which tree the page belongs to.
    pub kind: PageType,
    count: usize,
    stride: usize,
}

impl BtPage {
    /// Verifies a page of the tree `kind` read from `bref`.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] for a wrong trailer, level, entry size or count.
    pub fn parse(
        format: &'static Format,
        data: Vec<u8>,
        kind: PageType,
        bref: Bref,
    ) -> Result<Self> {
        verify_page(format, &data, kind, bref.ib, Some(bref.bid))?;
        let (e, n) = (format.btree_entries, format.count_size);
        let count = if n == 1 {
            usize::from(u8_at(&data, e, "cEnt")?)
        } else {
            usize::from(u16_at(&data, e, "cEnt")?)
        };
        let stride = usize::from(u8_at(&data, e + 2 * n, "cbEnt")?);
        let level = u8_at(&data, e + 2 * n + 1, "cLevel")?;
        let least = match (level, kind) {
            (0, PageType::Nbt) => format.nbtentry,
            (0, _) => format.bbtentry,
            _ => format.btentry,
        };
        if level > MAX_LEVEL {
            return Err(PstError::corrupt(
                "cLevel",
                bref.ib,
                format!("{level} > {MAX_LEVEL}"),
            ));
        }
        if stride < least || count * stride > e {
            return Err(PstError::corrupt(
                "cEnt",
                bref.ib,
                format!("{count} entries of {stride} bytes in {e}, entries need {least}"),
            ));
        }
        Ok(Self {
            format,
            data,
            kind,
            bref,
            level,
            count,
            stride,
        })
    }

    /// How many entries the page holds.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    fn raw(&self, i: usize) -> Result<&[u8]> {
        slice(&self.data, i * self.stride, self.stride, "rgentries")
    }

    /// Entry `i` of an intermediate page.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if there is no such entry.
    pub fn child(&self, i: usize) -> Result<BtEntry> {
        let (b, w) = (self.raw(i)?, self.format.bid_size);
        Ok(BtEntry {
            key: self.format.id_at(b, 0, "btkey")?,
            bref: Bref {
                bid: Bid(self.format.id_at(b, w, "BREF.bid")?),
                ib: self.format.id_at(b, 2 * w, "BREF.ib")?,
            },
        })
    }

    /// Entry `i` of a leaf page.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if there is no such entry.
    pub fn leaf<E: BtLeaf>(&self, i: usize) -> Result<E> {
        E::decode(self.format, self.raw(i)?)
    }

    /// The key of entry `i`, without the reserved bit of BIDs.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if there is no such entry.
    pub fn key<E: BtLeaf>(&self, i: usize) -> Result<u64> {
        let key = self.format.id_at(self.raw(i)?, 0, "btkey")?;
        Ok(match E::PAGE {
            PageType::Nbt => key & 0xFFFF_FFFF,
            _ => Bid(key).key(),
        })
    }

    /// How many entries have a key not greater than `key`. Also verifies the order.
    pub(super) fn upper_bound<E: BtLeaf>(&self, key: u64) -> Result<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let mid = low + (high - low) / 2;
            if self.key::<E>(mid)? <= key {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        Ok(low)
    }

    /// Checks that keys rise strictly.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where they do not.
    pub fn verify_order<E: BtLeaf>(&self) -> Result<()> {
        let mut last = None;
        for i in 0..self.count {
            let key = self.key::<E>(i)?;
            if last.is_some_and(|l| l >= key) {
                return Err(PstError::corrupt(
                    "btkey",
                    self.bref.ib,
                    format!("entry {i}: {key:#x} after {:#x}", last.unwrap_or(0)),
                ));
            }
            last = Some(key);
        }
        Ok(())
    }
}

/// Finds the entry with exactly `key`.
pub(crate) fn lookup<E: BtLeaf>(ndb: &Ndb, key: u64) -> Result<Option<E>> {
    let mut page = ndb.bt_root::<E>()?;
    loop {
        let n = page.upper_bound::<E>(key)?;
        let Some(i) = n.checked_sub(1) else {
            return Ok(None);
        };
        if page.level == 0 {
            let entry = page.leaf::<E>(i)?;
            return Ok((entry.key() == key).then_some(entry));
        }
        page = ndb.bt_child::<E>(&page, i)?;
    }
}

/// Iterates a tree's leaf entries in key order. Ends after the first error.
pub struct BtIter<'a, E> {
    ndb: &'a Ndb,
    stack: Vec<(Arc<BtPage>, usize)>,
    last: Option<u64>,
    failed: Option<PstError>,
    done: bool,
    _entry: PhantomData<E>,
}

/// Iterates nodes in NID order.
pub type NodeIter<'a> = BtIter<'a, NbtEntry>;
/// Iterates blocks in BID order.
pub type BlockIter<'a> = BtIter<'a, BbtEntry>;

impl<'a, E: BtLeaf> BtIter<'a, E> {
    /// Begins at the first entry whose key is not less than `from`.
    pub(crate) fn new(ndb: &'a Ndb, from: u64) -> Self {
        let mut iter = Self {
            ndb,
            stack: Vec::new(),
            last: None,
            failed: None,
            done: false,
            _entry: PhantomData,
        };
        if let Err(e) = iter.seek(from) {
            iter.failed = Some(e);
        }
        iter
    }

    fn seek(&mut self, from: u64) -> Result<()> {
        let mut page = self.ndb.bt_root::<E>()?;
        loop {
            let n = page.upper_bound::<E>(from)?;
            if page.level == 0 {
                let exact = match n.checked_sub(1) {
                    Some(i) => page.key::<E>(i)? == from,
                    None => false,
                };
                self.stack.push((page, n - usize::from(exact)));
                return Ok(());
            }
            let i = n.saturating_sub(1);
            if page.count() == 0 {
                return Ok(());
            }
            let child = self.ndb.bt_child::<E>(&page, i)?;
            self.stack.push((page, i + 1));
            page = child;
        }
    }

    fn step(&mut self) -> Result<Option<E>> {
        loop {
            let Some((page, next)) = self.stack.last_mut() else {
                return Ok(None);
            };
            if *next >= page.count() {
                self.stack.pop();
                continue;
            }
            let i = *next;
            *next += 1;
            let page = Arc::clone(page);
            if page.level == 0 {
                let entry = page.leaf::<E>(i)?;
                let key = entry.key();
                if self.last.is_some_and(|l| l >= key) {
                    return Err(PstError::corrupt(
                        "btkey",
                        page.bref.ib,
                        format!("entry {i}: key {key:#x} does not follow the one before"),
                    ));
                }
                self.last = Some(key);
                return Ok(Some(entry));
            }
            let child = self.ndb.bt_child::<E>(&page, i)?;
            self.stack.push((child, 0));
        }
    }
}

impl<E: BtLeaf> Iterator for BtIter<'_, E> {
    type Item = Result<E>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let result = match self.failed.take() {
            Some(e) => Err(e),
            None => self.step(),
        };
        self.done = !matches!(result, Ok(Some(_)));
        result.transpose()
    }
}
