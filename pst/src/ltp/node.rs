//! Where a node's bytes come from: a file, or content that was just built and lies in memory.
//!
//! The readers of this layer work on either, so a freshly built table can be opened again before
//! it was committed, and an attachment's embedded message is read with the same code as a node.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::ndb::{DataTree, Ndb, NodeContent, NodeData, SubnodeEntry, Subnodes};
use crate::{Bid, Nid, NidType, PstError, Result};

/// Deepest nesting of subnodes that is followed when content is copied. Embedded messages nest
/// two levels each; Outlook itself stops far earlier.
const MAX_SUBNODE_DEPTH: usize = 64;
/// Bytes by which data in memory is handed out; nothing depends on where it is cut.
const BLOCK_DATA: usize = 8176;

/// A node's data and subnodes, wherever they are.
#[derive(Clone)]
pub enum NodeSource {
    /// A node or subnode of a file.
    Stored {
        /// The file.
        ndb: Arc<Ndb>,
        /// Root of its data tree.
        bid_data: Bid,
        /// Root of its subnode tree.
        bid_sub: Bid,
    },
    /// Content in memory.
    Built(Arc<NodeContent>),
}

impl fmt::Debug for NodeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored {
                bid_data, bid_sub, ..
            } => f
                .debug_struct("Stored")
                .field("bid_data", bid_data)
                .field("bid_sub", bid_sub)
                .finish_non_exhaustive(),
            Self::Built(_) => f.write_str("Built(..)"),
        }
    }
}

impl NodeSource {
    /// A node of a file.
    #[must_use]
    pub fn stored(ndb: &Arc<Ndb>, bid_data: Bid, bid_sub: Bid) -> Self {
        Self::Stored {
            ndb: Arc::clone(ndb),
            bid_data,
            bid_sub,
        }
    }

    /// Content in memory.
    #[must_use]
    pub fn built(content: NodeContent) -> Self {
        Self::Built(Arc::new(content))
    }

    /// This node as content to be written. What lies in `same` is shared with it; what lies in
    /// another file is copied block by block when the content is written.
    ///
    /// # Errors
    /// What reading the subnode trees gives; [`PstError::Limit`] where they nest too deep.
    pub fn to_content(&self, same: Option<&Arc<Ndb>>) -> Result<NodeContent> {
        match self {
            Self::Built(c) => Ok(NodeContent::clone(c)),
            Self::Stored {
                ndb,
                bid_data,
                bid_sub,
            } => stored_content(ndb, *bid_data, *bid_sub, same, MAX_SUBNODE_DEPTH),
        }
    }

    /// Whether two nodes hold the same data bytes, however they are cut into blocks.
    ///
    /// # Errors
    /// What reading gives.
    pub fn same_data(&self, other: &Self) -> Result<bool> {
        let hash = |s: &Self| -> Result<blake3::Hash> {
            let blocks = Blocks::open(s)?;
            let mut h = blake3::Hasher::new();
            for i in 0..blocks.count() {
                h.update(&blocks.read(i)?);
            }
            Ok(h.finalize())
        };
        Ok(hash(self)? == hash(other)?)
    }

    /// A reader of the subnodes by NID.
    #[must_use]
    pub(crate) fn subnodes(&self) -> SubnodeMap {
        SubnodeMap {
            source: self.clone(),
            stored: OnceLock::new(),
        }
    }
}

fn stored_content(
    ndb: &Arc<Ndb>,
    bid_data: Bid,
    bid_sub: Bid,
    same: Option<&Arc<Ndb>>,
    depth: usize,
) -> Result<NodeContent> {
    if same.is_some_and(|s| Arc::ptr_eq(s, ndb)) {
        let data = if bid_data.is_none() {
            NodeData::None
        } else {
            NodeData::Existing(bid_data)
        };
        let subnodes = if bid_sub.is_none() {
            Subnodes::None
        } else {
            Subnodes::Existing(bid_sub)
        };
        return Ok(NodeContent { data, subnodes });
    }
    if depth == 0 {
        return Err(PstError::Limit {
            what: "nesting of subnodes",
            found: MAX_SUBNODE_DEPTH as u64 + 1,
            limit: MAX_SUBNODE_DEPTH as u64,
        });
    }
    let data = if bid_data.is_none() {
        NodeData::None
    } else {
        NodeData::Copy(Arc::clone(ndb), bid_data)
    };
    let subnodes = if bid_sub.is_none() {
        Subnodes::None
    } else {
        let mut tree = BTreeMap::new();
        for (nid, e) in ndb.subnodes(bid_sub)? {
            tree.insert(
                nid,
                stored_content(ndb, e.bid_data, e.bid_sub, same, depth - 1)?,
            );
        }
        Subnodes::Tree(tree)
    };
    Ok(NodeContent { data, subnodes })
}

/// The subnodes of one node, read once when first asked for.
pub(crate) struct SubnodeMap {
    source: NodeSource,
    stored: OnceLock<BTreeMap<Nid, SubnodeEntry>>,
}

impl SubnodeMap {
    /// The subnode with this NID.
    pub(crate) fn get(&self, nid: Nid) -> Result<Option<NodeSource>> {
        match &self.source {
            NodeSource::Stored { ndb, bid_sub, .. } => {
                if bid_sub.is_none() {
                    return Ok(None);
                }
                let map = match self.stored.get() {
                    Some(m) => m,
                    None => {
                        let m = ndb.subnodes(*bid_sub)?;
                        self.stored.get_or_init(|| m)
                    }
                };
                Ok(map
                    .get(&nid)
                    .map(|e| NodeSource::stored(ndb, e.bid_data, e.bid_sub)))
            }
            NodeSource::Built(c) => match &c.subnodes {
                Subnodes::Tree(t) => Ok(t.get(&nid).cloned().map(NodeSource::built)),
                Subnodes::None => Ok(None),
                Subnodes::Existing(_) => Err(PstError::Refused(
                    "content in memory with subnodes of a file cannot be read back".into(),
                )),
            },
        }
    }

    /// Bytes of data in all subnodes of values, each counted up to what is read into memory.
    fn data_len(&self) -> Result<u64> {
        let limit = super::ValueData::INLINE_LIMIT;
        match &self.source {
            NodeSource::Stored { ndb, bid_sub, .. } => {
                let mut sum = 0u64;
                for e in ndb.subnodes(*bid_sub)?.values() {
                    let n = if e.nid.kind() == NidType::LTP {
                        ndb.data(e.bid_data)?.len()
                    } else {
                        0
                    };
                    sum = sum.saturating_add(n.min(limit));
                }
                Ok(sum)
            }
            NodeSource::Built(c) => match &c.subnodes {
                Subnodes::Tree(t) => t.values().try_fold(0u64, |sum, c| {
                    let n = Blocks::open(&NodeSource::Built(Arc::new(c.clone())))?.len();
                    Ok(sum.saturating_add(n))
                }),
                _ => Ok(0),
            },
        }
    }

    /// The subnode with this NID, or an error that names `field`.
    pub(crate) fn require(&self, nid: Nid, field: &'static str) -> Result<NodeSource> {
        self.get(nid)?
            .ok_or_else(|| PstError::corrupt(field, 0, format!("no subnode {nid}")))
    }
}

/// Bounds what the values of one node may take in memory: references are four bytes, so that a
/// small file could name one long value millions of times. Sane nodes share hardly any value.
pub(crate) struct Budget<'a> {
    subnodes: &'a SubnodeMap,
    left: u64,
    all: u64,
    counted: bool,
}

impl<'a> Budget<'a> {
    /// For the values of a node whose heap has `heap_len` bytes.
    pub(crate) fn new(heap_len: u64, subnodes: &'a SubnodeMap) -> Self {
        let all = heap_len.saturating_mul(2).saturating_add(1 << 20);
        Self {
            subnodes,
            left: all,
            all,
            counted: false,
        }
    }

    /// Takes a value's bytes from the budget.
    ///
    /// # Errors
    /// [`PstError::Limit`] where the values are longer than heap and subnodes can hold.
    pub(crate) fn spend(&mut self, value: &super::ValueData) -> Result<()> {
        let Some(n) = value.bytes().map(|b| b.len() as u64) else {
            return Ok(());
        };
        if n > self.left && !self.counted {
            // Subnodes are counted only where the heap alone does not explain the values.
            self.counted = true;
            let more = self.subnodes.data_len()?.saturating_mul(2);
            self.left = self.left.saturating_add(more);
            self.all = self.all.saturating_add(more);
        }
        self.left = self.left.checked_sub(n).ok_or(PstError::Limit {
            what: "bytes of property values in a node",
            found: self.all.saturating_add(n),
            limit: self.all,
        })?;
        Ok(())
    }
}

/// The data blocks of one node.
pub(crate) enum Blocks {
    /// No data at all.
    Empty,
    /// Blocks of a file.
    Stored(Arc<Ndb>, Bid, DataTree),
    /// Blocks in memory.
    Memory(Arc<NodeContent>),
}

impl Blocks {
    pub(crate) fn open(source: &NodeSource) -> Result<Self> {
        match source {
            NodeSource::Stored { bid_data, .. } if bid_data.is_none() => Ok(Self::Empty),
            NodeSource::Stored { ndb, bid_data, .. } => Ok(Self::Stored(
                Arc::clone(ndb),
                *bid_data,
                ndb.data(*bid_data)?,
            )),
            NodeSource::Built(c) => match &c.data {
                NodeData::None => Ok(Self::Empty),
                NodeData::Bytes(_) | NodeData::Blocks(_) | NodeData::Payload(_) => {
                    Ok(Self::Memory(Arc::clone(c)))
                }
                NodeData::Copy(ndb, bid) => {
                    Ok(Self::Stored(Arc::clone(ndb), *bid, ndb.data(*bid)?))
                }
                NodeData::Existing(_) => Err(PstError::Refused(
                    "content in memory with data of a file cannot be read back".into(),
                )),
            },
        }
    }

    /// Length of the data in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Stored(_, _, t) => t.len(),
            Self::Memory(c) => match &c.data {
                NodeData::Bytes(b) => b.len() as u64,
                NodeData::Blocks(b) => b.iter().map(|b| b.len() as u64).sum(),
                NodeData::Payload(p) => p.len(),
                _ => 0,
            },
        }
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Stored(_, _, t) => t.block_count(),
            Self::Memory(c) => match &c.data {
                NodeData::Bytes(b) => b.len().div_ceil(BLOCK_DATA),
                NodeData::Blocks(b) => b.len(),
                NodeData::Payload(p) => {
                    usize::try_from(p.len().div_ceil(BLOCK_DATA as u64)).unwrap_or(usize::MAX)
                }
                _ => 0,
            },
        }
    }

    /// Block `i`; the caller asks only for `i < count()`, more is a typed error.
    pub(crate) fn read(&self, i: usize) -> Result<Vec<u8>> {
        let missing = || PstError::corrupt("block index", 0, format!("no block {i}"));
        match self {
            Self::Empty => Err(missing()),
            Self::Stored(ndb, _, t) => {
                if i >= t.block_count() {
                    return Err(missing());
                }
                t.read_block(ndb, i)
            }
            Self::Memory(c) => match &c.data {
                NodeData::Bytes(b) => b.chunks(BLOCK_DATA).nth(i).map(<[u8]>::to_vec),
                NodeData::Blocks(b) => b.get(i).cloned(),
                NodeData::Payload(p) => {
                    let at = i as u64 * BLOCK_DATA as u64;
                    let part = p.slice(at..at + BLOCK_DATA as u64);
                    let bytes = part
                        .to_vec()
                        .map_err(|source| PstError::Io { offset: at, source })?;
                    Some(bytes).filter(|b| !b.is_empty())
                }
                _ => None,
            }
            .ok_or_else(missing),
        }
    }

    /// The data as a property value: in memory up to the inline limit, else a stream.
    pub(crate) fn value(&self) -> Result<super::ValueData> {
        if let Self::Stored(ndb, bid, t) = self {
            return if t.len() > super::ValueData::INLINE_LIMIT {
                let (ndb, bid, len) = (Arc::clone(ndb), *bid, t.len());
                Ok(super::ValueData::Stream { ndb, bid, len })
            } else {
                t.read_all(ndb, super::ValueData::INLINE_LIMIT)
                    .map(super::ValueData::Bytes)
            };
        }
        if let Self::Memory(c) = self
            && let NodeData::Payload(p) = &c.data
            && p.len() > super::ValueData::INLINE_LIMIT
        {
            return Ok(super::ValueData::Payload(p.clone()));
        }
        let mut out = Vec::new();
        for i in 0..self.count() {
            out.extend_from_slice(&self.read(i)?);
        }
        Ok(super::ValueData::Bytes(out))
    }
}
