//! The node database layer ([MS-PST] 2.2): nodes, blocks, pages, and how they are found.
//!
//! [`Ndb`] reads. It verifies whatever it reads (checksums, signatures, types, levels, order)
//! and fails with a typed error instead of guessing. It holds a small bounded cache of B-tree
//! pages and nothing else, and is shared between threads in an [`Arc`]. The storage below must
//! not change while it is open: give it a snapshot.

pub(crate) mod amap;
mod bits;
mod block;
mod btree;
mod btree_write;
pub(crate) mod bytes;
mod content;
mod content_write;
mod create;
mod crypt;
pub(crate) mod data_tree;
pub mod format;
mod header;
mod limits;
pub(crate) mod maps;
mod page;
mod proof;
mod recompute;
mod references;
pub(crate) mod subnode;
mod transaction;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use storage::ReadAt;

pub use block::verify_block;
pub use btree::{
    BbtEntry, BlockIter, BtEntry, BtIter, BtLeaf, BtPage, MAX_LEVEL, NbtEntry, NodeIter,
};
pub use bytes::{crc, signature};
pub use content::{NodeContent, NodeData, Subnodes};
pub use crypt::CryptMethod;
pub use data_tree::DataTree;
pub use format::Format;
pub use header::{HEADER_LEN, Header};
pub use limits::{SizeLimits, SizeState};
pub use page::{PageType, seal_page, verify_page};
pub use subnode::SubnodeEntry;
pub use transaction::{EditOptions, NdbTransaction};

use crate::{Bid, Bref, Nid, PstError, Result};

/// Bytes of B-tree pages kept in memory per open file. Folder by folder is not the order of the tree:
/// a walk passes over the leaves once per folder, and rereads them all where they do not fit. These
/// are the pages of about 300,000 blocks, of 2 GB of mail.
const CACHE_BYTES: usize = 8 << 20;

#[derive(Default)]
struct PageCache {
    pages: HashMap<u64, Arc<BtPage>>,
    order: VecDeque<u64>,
}

impl PageCache {
    fn insert(&mut self, page: &Arc<BtPage>, page_size: usize) {
        if self.pages.insert(page.bref.ib, Arc::clone(page)).is_none() {
            self.order.push_back(page.bref.ib);
        }
        while self.pages.len() > CACHE_BYTES / page_size.max(1) {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.pages.remove(&oldest);
        }
    }
}

/// A page cache that several readers of one lineage of pages share. A page is found by where it
/// lies and by its BID, so a page written over a discarded one is never mistaken for it.
#[derive(Clone, Default)]
pub(crate) struct SharedCache(Arc<Mutex<PageCache>>);

/// An open node database.
pub struct Ndb {
    storage: Arc<dyn ReadAt>,
    header: Header,
    cache: SharedCache,
}

impl std::fmt::Debug for Ndb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ndb")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Ndb {
    /// Opens a file: reads and verifies its header and both root pages.
    ///
    /// # Errors
    /// [`PstError::NotPst`], [`PstError::Unsupported`], [`PstError::Corrupt`] (also for a file
    /// shorter than its header says), [`PstError::Io`].
    pub fn open(storage: Arc<dyn ReadAt>) -> Result<Self> {
        let len = storage
            .len()
            .map_err(|source| PstError::Io { offset: 0, source })?;
        let mut head = vec![0u8; HEADER_LEN];
        let got = usize::try_from(len).unwrap_or(usize::MAX).min(HEADER_LEN);
        head.truncate(got);
        storage
            .read_exact_at(0, &mut head)
            .map_err(|source| PstError::Io { offset: 0, source })?;
        let header = Header::parse(&head)?;
        if len < header.file_eof {
            return Err(PstError::corrupt(
                "ibFileEof",
                header.eof_at(),
                format!("the file is cut off: {len} bytes of {}", header.file_eof),
            ));
        }
        let ndb = Self::assemble(storage, header, SharedCache::default());
        let roots = ndb
            .bt_root::<NbtEntry>()
            .and_then(|_| ndb.bt_root::<BbtEntry>());
        match roots {
            Ok(_) => Ok(ndb),
            // A header of which only a part is right must at least lead to two whole trees.
            Err(e @ PstError::Corrupt { .. }) if ndb.header.torn => Err(PstError::corrupt(
                "dwCRCPartial",
                4,
                format!("the header's checksum is wrong, and it leads nowhere: {e}"),
            )),
            Err(e) => Err(e),
        }
    }

    /// A reader with a header that is not, or not yet, in the storage.
    pub(crate) const fn assemble(
        storage: Arc<dyn ReadAt>,
        header: Header,
        cache: SharedCache,
    ) -> Self {
        Self {
            storage,
            header,
            cache,
        }
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The file's format constants.
    #[must_use]
    pub const fn format(&self) -> &'static Format {
        self.header.format()
    }

    /// The storage below.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn ReadAt> {
        &self.storage
    }

    /// The node `nid`, if there is one.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] or [`PstError::Io`] from the pages on the way.
    pub fn node(&self, nid: Nid) -> Result<Option<NbtEntry>> {
        btree::lookup(self, u64::from(nid.0))
    }

    /// All nodes, in NID order.
    #[must_use]
    pub fn nodes(&self) -> NodeIter<'_> {
        BtIter::new(self, 0)
    }

    /// The nodes from `nid` on, in NID order.
    #[must_use]
    pub fn nodes_from(&self, nid: Nid) -> NodeIter<'_> {
        BtIter::new(self, u64::from(nid.0))
    }

    /// The block `bid` (bit 0 ignored), if there is one.
    ///
    /// # Errors
    /// [`PstError::Corrupt`] or [`PstError::Io`] from the pages on the way.
    pub fn block(&self, bid: Bid) -> Result<Option<BbtEntry>> {
        btree::lookup(self, bid.key())
    }

    /// All blocks, in BID order.
    #[must_use]
    pub fn blocks(&self) -> BlockIter<'_> {
        BtIter::new(self, 0)
    }

    /// Reads `len` bytes at `offset`.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0u8; len];
        self.storage
            .read_exact_at(offset, &mut buf)
            .map_err(|source| PstError::Io { offset, source })?;
        Ok(buf)
    }

    /// The entry with the greatest key of a tree.
    pub(crate) fn last_entry<E: BtLeaf>(&self) -> Result<Option<E>> {
        let mut page = self.bt_root::<E>()?;
        loop {
            let Some(i) = page.count().checked_sub(1) else {
                return Ok(None);
            };
            if page.level == 0 {
                return page.leaf(i).map(Some);
            }
            page = self.bt_child::<E>(&page, i)?;
        }
    }

    /// The root page of a tree.
    pub(crate) fn bt_root<E: BtLeaf>(&self) -> Result<Arc<BtPage>> {
        self.bt_page::<E>(E::root(self))
    }

    /// The child page `i` of an intermediate page, one level below it.
    pub(crate) fn bt_child<E: BtLeaf>(&self, page: &BtPage, i: usize) -> Result<Arc<BtPage>> {
        let child = self.bt_page::<E>(page.child(i)?.bref)?;
        if child.level + 1 != page.level {
            return Err(PstError::corrupt(
                "cLevel",
                child.bref.ib,
                format!("{} below a page of level {}", child.level, page.level),
            ));
        }
        Ok(child)
    }

    /// The verified page at `bref`.
    pub(crate) fn bt_page<E: BtLeaf>(&self, bref: Bref) -> Result<Arc<BtPage>> {
        let lock = || self.cache.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = lock().pages.get(&bref.ib)
            && page.bref == bref
            && page.kind == E::PAGE
        {
            return Ok(Arc::clone(page));
        }
        let data = self.read(bref.ib, self.format().page_size)?;
        let page = Arc::new(BtPage::parse(self.format(), data, E::PAGE, bref)?);
        page.verify_order::<E>()?;
        lock().insert(&page, self.format().page_size);
        Ok(page)
    }
}
