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
}
