//! The fast inventory: what is there, where, and a *change fingerprint* of each object, without reading
//! the mail.
//!
//! There are three kinds of fingerprints. What equal ones mean:
//!
//! | | named blocks ([`Depth::Named`]) | all blocks ([`Depth::All`]) | content ([`crate::inventory`]) |
//! |---|---|---|---|
//! | made of | `bidData` and `bidSub`, with the lengths and checksums that the trailers of these two blocks store ([MS-PST] 2.2.2.8.1) | lengths and stored checksums of all data blocks, and the numbers of all subnodes | every property value, by name |
//! | reads | B-trees, two trailers an object | B-trees, XBLOCKs, subnode trees, a trailer a data block | everything |
//! | holds | inside one lineage | between all files in which property ids mean the same ([`crate::ltp::NameMap`]) | between all files |
//! | equal | the same object, since blocks are not rewritten; the checksums notice another file under the same BIDs, but not in blocks further down | the same stored bytes, as far as a CRC-32 a block can tell: by accident one changed block in four thousand million goes unseen, a forger can make any | the same object (BLAKE3) |
//! | different | nothing: a writer also writes anew what did not change | nothing: the same can be stored in many ways | different objects |
//!
//! BIDs are no part of the second kind, but where the encoding of the data depends on them ([MS-PST] 5.2).
//! That data still is what its checksum says is found out by who reads it.

use std::cell::RefCell;
use std::sync::Arc;

use crate::derived::ObjectKind;
use crate::messaging::FolderTree;
use crate::ndb::bytes::{u16_at, u32_at};
use crate::ndb::{BbtEntry, BtPage, CryptMethod, NbtEntry, Ndb};
use crate::{Bid, Nid, Pst, PstError, Result, parallel};

/// The deepest subnode tree that is followed.
const MAX_DEPTH: usize = 64;
/// The most subnodes that one object may have over all levels.
const MAX_SUBNODES: usize = 1 << 20;

/// What change fingerprints are made of: see the head of this module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// The two blocks that the node names.
    Named,
    /// All blocks of the object.
    All,
}

/// One object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanRow {
    /// The object's node, with its parent and its BIDs.
    pub entry: NbtEntry,
    /// What it is.
    pub kind: ObjectKind,
    /// Its change fingerprint.
    pub print: [u8; 16],
}

/// All objects of a file, in NID order.
///
/// # Errors
/// The first object whose trees cannot be read.
pub fn scan(pst: &Pst, depth: Depth) -> Result<Vec<ScanRow>> {
    let tree = FolderTree::read(pst.ndb())?;
    let mut nodes = Vec::new();
    for entry in pst.ndb().nodes() {
        let entry = entry?;
        if let Some(kind) = tree.kind(&entry) {
            nodes.push((kind, entry));
        }
    }
    parallel::map_with(
        &nodes,
        &|| Prints::new(pst.ndb()),
        &|prints, (kind, entry)| {
            Ok(ScanRow {
                entry: *entry,
                kind: *kind,
                print: prints.of(depth, *kind, entry)?,
            })
        },
    )
}

impl ScanRow {
    /// The object's node.
    #[must_use]
    pub const fn nid(&self) -> Nid {
        self.entry.nid
    }
}

/// Makes change fingerprints of the objects of one file.
pub(crate) struct Prints<'a> {
    ndb: &'a Ndb,
    /// The page of the block B-tree that was last used: an object's blocks lie together.
    leaf: RefCell<Option<Arc<BtPage>>>,
}

impl<'a> Prints<'a> {
    pub(crate) const fn new(ndb: &'a Ndb) -> Self {
        Self {
            ndb,
            leaf: RefCell::new(None),
        }
    }

    /// The change fingerprint of an object.
    ///
    /// # Errors
    /// If its trees cannot be read, or exceed a bound.
    pub(crate) fn of(&self, depth: Depth, kind: ObjectKind, entry: &NbtEntry) -> Result<[u8; 16]> {
        let crypt = self.ndb.header().crypt;
        let mut h = Vec::with_capacity(256);
        h.extend_from_slice(b"pstsyncd blocks\0\x01");
        h.extend_from_slice(&self.ndb.header().version.to_le_bytes());
        h.extend_from_slice(&[kind as u8, crypt.to_byte(), depth as u8]);
        match depth {
            Depth::Named => {
                for bid in [entry.bid_data, entry.bid_sub] {
                    h.extend_from_slice(&bid.key().to_le_bytes());
                    if !bid.is_none() {
                        self.block(bid, &mut h)?;
                    }
                }
            }
            Depth::All => {
                let mut left = MAX_SUBNODES;
                self.node(entry.bid_data, entry.bid_sub, 0, &mut left, &mut h)?;
            }
        }
        let mut out = [0; 16];
        blake3::Hasher::new()
            .update(&h)
            .finalize_xof()
            .fill(&mut out);
        Ok(out)
    }

    fn node(
        &self,
        data: Bid,
        sub: Bid,
        depth: usize,
        left: &mut usize,
        h: &mut Vec<u8>,
    ) -> Result<()> {
        let count = |n: usize, h: &mut Vec<u8>| h.extend_from_slice(&(n as u64).to_le_bytes());
        if data.is_none() {
            count(0, h);
        } else if data.is_internal() {
            let tree = self.ndb.data(data)?;
            count(tree.block_count(), h);
            for bid in tree.block_bids() {
                self.block(*bid, h)?;
            }
        } else {
            count(1, h);
            self.block(data, h)?;
        }
        if sub.is_none() {
            count(0, h);
            return Ok(());
        }
        let subnodes = self.ndb.subnodes(sub)?;
        let limit = |what, found: usize, limit: usize| PstError::Limit {
            what,
            found: found as u64,
            limit: limit as u64,
        };
        *left = left
            .checked_sub(subnodes.len())
            .ok_or_else(|| limit("subnodes of one node", subnodes.len(), MAX_SUBNODES))?;
        if depth >= MAX_DEPTH && !subnodes.is_empty() {
            return Err(limit("subnode depth", depth + 1, MAX_DEPTH));
        }
        count(subnodes.len(), h);
        for (nid, node) in &subnodes {
            h.extend_from_slice(&nid.0.to_le_bytes());
            self.node(node.bid_data, node.bid_sub, depth + 1, left, h)?;
        }
        Ok(())
    }

    /// Length and stored checksum of a block.
    fn block(&self, bid: Bid, h: &mut Vec<u8>) -> Result<()> {
        let entry = self.entry(bid)?;
        let format = self.ndb.format();
        let space = format.block_space(usize::from(entry.cb)) as u64;
        let at = entry.bref.ib.saturating_add(space) - format.block_trailer as u64;
        let trailer = self.ndb.read(at, format.block_trailer)?;
        let (cb, own) = (
            u16_at(&trailer, 0, "cb")?,
            Bid(format.id_at(&trailer, format.trailer_bid, "bid")?),
        );
        if cb != entry.cb || own.key() != bid.key() {
            return Err(PstError::corrupt(
                "BLOCKTRAILER.bid",
                at,
                format!("{own} with {cb} bytes, expected {bid} with {}", entry.cb),
            ));
        }
        h.extend_from_slice(&cb.to_le_bytes());
        h.extend_from_slice(&u32_at(&trailer, format.trailer_crc, "dwCRC")?.to_le_bytes());
        // The same bytes under another BID say something else there.
        if self.ndb.header().crypt == CryptMethod::Cyclic {
            h.extend_from_slice(&(bid.0 as u32).to_le_bytes());
        }
        Ok(())
    }

    fn entry(&self, bid: Bid) -> Result<BbtEntry> {
        let mut leaf = self.leaf.borrow_mut();
        let found = |page: &BtPage| -> Result<Option<BbtEntry>> {
            match page.upper_bound::<BbtEntry>(bid.key())?.checked_sub(1) {
                Some(i) => {
                    let entry = page.leaf::<BbtEntry>(i)?;
                    Ok((entry.bref.bid.key() == bid.key()).then_some(entry))
                }
                None => Ok(None),
            }
        };
        if let Some(page) = &*leaf
            && let Some(entry) = found(page)?
        {
            return Ok(entry);
        }
        let page = self.ndb.leaf_of::<BbtEntry>(bid.key())?;
        let entry = found(&page)?;
        *leaf = Some(page);
        entry.ok_or_else(|| PstError::NotFound {
            what: "block",
            id: bid.to_string(),
        })
    }
}
