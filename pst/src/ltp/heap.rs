//! Heap-on-node, reading ([MS-PST] 2.3.1).
//!
//! Items are located one by one when they are asked for, so an odd page map spoils only the
//! items it misplaces: some writers leave maps whose counts disagree with their blocks, and all
//! other items in them are good. What is tolerated here is reported by the check.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::node::{Blocks, NodeSource};
use crate::ndb::bytes::{u8_at, u16_at, u32_at};
use crate::{Nid, PstError, Result};

/// Blocks of one heap kept in memory (256 KiB of them).
const CACHE_BLOCKS: usize = 32;
/// Most blocks that a HID can address ([MS-PST] 2.3.1.1).
pub(crate) const MAX_BLOCKS: usize = 1 << 16;

/// A heap id ([MS-PST] 2.3.1.1): block index and 1-based item index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hid(pub u32);

impl Hid {
    /// No item.
    pub const NONE: Self = Self(0);

    /// Builds a HID from a block index and a 1-based item index.
    #[must_use]
    pub const fn new(block: u16, index: u16) -> Self {
        Self(((block as u32) << 16) | ((index as u32 & 0x7FF) << 5))
    }

    /// The data block's index.
    #[must_use]
    pub const fn block(self) -> usize {
        (self.0 >> 16) as usize
    }

    /// The item's 1-based index in its block.
    #[must_use]
    pub const fn index(self) -> usize {
        ((self.0 >> 5) & 0x7FF) as usize
    }

    /// Whether this is the null HID.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Hid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HID {:#010x}", self.0)
    }
}

impl fmt::Display for Hid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HID {:#010x}", self.0)
    }
}

/// A reference that is a HID or a subnode's NID ([MS-PST] 2.3.3.2): the low five bits tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hnid {
    /// Nothing.
    None,
    /// An item of the same heap.
    Heap(Hid),
    /// A subnode of the same node.
    Sub(Nid),
}

impl From<u32> for Hnid {
    fn from(v: u32) -> Self {
        if v == 0 {
            Self::None
        } else if v & 0x1F == 0 {
            Self::Heap(Hid(v))
        } else {
            Self::Sub(Nid(v))
        }
    }
}

/// What a heap holds ([MS-PST] 2.3.1.2, bClientSig).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientSig(pub u8);

impl ClientSig {
    /// A table context.
    pub const TABLE: Self = Self(0x7C);
    /// A property context.
    pub const PROPERTIES: Self = Self(0xBC);
    /// A bare BTH.
    pub const BTH: Self = Self(0xB5);

    /// Whether the value is one of those reserved for structures that are not documented.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        matches!(self.0, 0x6C | 0x8C | 0x9C | 0xA5 | 0xAC | 0xCC)
    }
}

/// The page map of one heap block ([MS-PST] 2.3.1.5), as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageMap {
    /// Its offset in the block.
    pub offset: usize,
    /// Number of items.
    pub alloc: usize,
    /// Number of freed items.
    pub free: usize,
}

impl PageMap {
    /// Parses the map of a block.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where it does not lie in the block.
    pub fn parse(block: &[u8]) -> Result<Self> {
        let offset = usize::from(u16_at(block, 0, "ibHnpm")?);
        Ok(Self {
            offset,
            alloc: u16_at(block, offset, "HNPAGEMAP.cAlloc")?.into(),
            free: u16_at(block, offset + 2, "HNPAGEMAP.cFree")?.into(),
        })
    }

    /// Where item `index` (1-based) lies in the block.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] where the map has no such item or puts it outside the block.
    pub fn range(&self, block: &[u8], index: usize) -> Result<std::ops::Range<usize>> {
        let bad = |detail: String| PstError::corrupt("rgibAlloc", self.offset as u64, detail);
        if index == 0 || index > self.alloc {
            return Err(bad(format!("item {index} of {}", self.alloc)));
        }
        let at = self.offset + 4 + 2 * (index - 1);
        let start = usize::from(u16_at(block, at, "rgibAlloc")?);
        let end = usize::from(u16_at(block, at + 2, "rgibAlloc")?);
        if start > end || end > block.len() {
            return Err(bad(format!(
                "item {index} at {start}..{end} of {}",
                block.len()
            )));
        }
        Ok(start..end)
    }
}

type CachedBlock = (usize, Arc<(Vec<u8>, PageMap)>);

/// An open heap.
pub struct Heap {
    blocks: Blocks,
    client_sig: ClientSig,
    user_root: Hid,
    cache: Mutex<VecDeque<CachedBlock>>,
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap")
            .field("client_sig", &self.client_sig)
            .field("user_root", &self.user_root)
            .finish_non_exhaustive()
    }
}

impl Heap {
    /// Opens the heap in a node's data.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if the first block is no HNHDR, and what reading gives.
    pub fn open(source: &NodeSource) -> Result<Self> {
        let blocks = Blocks::open(source)?;
        if blocks.count() == 0 {
            return Err(PstError::corrupt("HNHDR", 0, "the node has no data"));
        }
        if blocks.count() > MAX_BLOCKS {
            return Err(PstError::Limit {
                what: "heap blocks",
                found: blocks.count() as u64,
                limit: MAX_BLOCKS as u64,
            });
        }
        let mut heap = Self {
            blocks,
            client_sig: ClientSig(0),
            user_root: Hid::NONE,
            cache: Mutex::default(),
        };
        let first = heap.block(0)?;
        let b = &first.0;
        let sig = u8_at(b, 2, "HNHDR.bSig")?;
        if sig != 0xEC {
            return Err(PstError::corrupt(
                "HNHDR.bSig",
                2,
                format!("{sig:#04x}, not 0xec"),
            ));
        }
        heap.client_sig = ClientSig(u8_at(b, 3, "HNHDR.bClientSig")?);
        heap.user_root = Hid(u32_at(b, 4, "HNHDR.hidUserRoot")?);
        Ok(heap)
    }

    /// Opens a heap that must hold what `sig` says.
    pub(crate) fn open_as(source: &NodeSource, sig: ClientSig) -> Result<Self> {
        let heap = Self::open(source)?;
        if heap.client_sig != sig {
            return Err(PstError::corrupt(
                "HNHDR.bClientSig",
                3,
                format!("{:#04x}, not {:#04x}", heap.client_sig.0, sig.0),
            ));
        }
        Ok(heap)
    }

    /// What the heap holds.
    #[must_use]
    pub const fn client_sig(&self) -> ClientSig {
        self.client_sig
    }

    /// The item with which the layer above begins.
    #[must_use]
    pub const fn user_root(&self) -> Hid {
        self.user_root
    }

    /// How many data blocks the heap has.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.count()
    }

    /// Bytes in all blocks: a bound for whatever claims to lie in the heap.
    pub(crate) fn len(&self) -> u64 {
        self.blocks.len()
    }

    /// Block `i` and its page map.
    ///
    /// # Errors
    /// What reading and [`PageMap::parse`] give.
    pub fn block(&self, i: usize) -> Result<Arc<(Vec<u8>, PageMap)>> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, b)) = lock().iter().find(|(n, _)| *n == i) {
            return Ok(Arc::clone(b));
        }
        let data = self.blocks.read(i)?;
        let map = PageMap::parse(&data)?;
        let block = Arc::new((data, map));
        let mut cache = lock();
        if cache.len() >= CACHE_BLOCKS {
            cache.pop_front();
        }
        cache.push_back((i, Arc::clone(&block)));
        Ok(block)
    }

    /// The bytes of an item.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] if the heap has no such item, and what reading gives.
    pub fn item(&self, hid: Hid) -> Result<Vec<u8>> {
        if hid.0 & 0x1F != 0 || hid.block() >= self.blocks.count() {
            return Err(PstError::corrupt(
                "HID",
                0,
                format!("{hid} is not in the heap"),
            ));
        }
        let block = self.block(hid.block())?;
        let range = block.1.range(&block.0, hid.index())?;
        Ok(block.0.get(range).unwrap_or_default().to_vec())
    }
}
