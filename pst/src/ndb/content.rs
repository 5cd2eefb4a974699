//! What a node holds, as the layers above hand it to a transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage::Payload;

use super::Ndb;
use crate::{Bid, Nid};

/// The data of a node and its subnodes.
#[derive(Clone, Debug, Default)]
pub struct NodeContent {
    /// The node's own data.
    pub data: NodeData,
    /// The nodes below it.
    pub subnodes: Subnodes,
}

/// The data of a node.
#[derive(Clone, Debug, Default)]
pub enum NodeData {
    /// No data at all (bidData 0).
    #[default]
    None,
    /// Bytes, cut into blocks by the transaction: every block but the last is full.
    Bytes(Vec<u8>),
    /// As `Bytes`, but read block by block from where they lie when the node is written.
    Payload(Payload),
    /// Data blocks kept exactly as given (a heap's pages), each at most
    /// [`Format::max_data`](super::Format::max_data) bytes.
    Blocks(Vec<Vec<u8>>),
    /// A data tree of the same file, shared: its reference count rises by one.
    Existing(Bid),
    /// A data tree of another file, copied block by block: with its block boundaries from a file of the
    /// same format, cut anew from one of another format (unless it is one block that fits).
    Copy(Arc<Ndb>, Bid),
    /// A data tree of the same file with some of its blocks replaced; it shares the others.
    Patched(DataPatch),
}

/// A change of some blocks of a data tree ([MS-PST] 2.6.1.2.3). Only the changed blocks and the
/// XBLOCKs over them are written.
#[derive(Clone, Debug, Default)]
pub struct DataPatch {
    /// The data tree that is changed.
    pub base: Bid,
    /// How many data blocks there are afterwards: the base is cut off or continued.
    pub count: usize,
    /// The bytes of changed and new blocks by index. Every block but the last of a tree is full.
    pub blocks: BTreeMap<usize, Vec<u8>>,
}

/// The subnodes of a node.
#[derive(Clone, Debug, Default)]
pub enum Subnodes {
    /// None (bidSub 0).
    #[default]
    None,
    /// These, written anew.
    Tree(BTreeMap<Nid, NodeContent>),
    /// A subnode tree of the same file, shared: its reference count rises by one.
    Existing(Bid),
    /// A subnode tree of the same file with some of its subnodes replaced; it shares the others.
    Patched(SubnodePatch),
}

/// A change of some subnodes of a subnode tree ([MS-PST] 2.6.1.2.5). Only the SLBLOCKs that list
/// them and the SIBLOCK are written.
#[derive(Clone, Debug, Default)]
pub struct SubnodePatch {
    /// The subnode tree that is changed; [`Bid::NONE`] for an empty one.
    pub base: Bid,
    /// The new content of subnodes; `None` deletes one.
    pub changes: BTreeMap<Nid, Option<NodeContent>>,
}
