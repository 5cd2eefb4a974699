//! What changed between two versions of a PST, object by object.
//!
//! There are three questions, and one answer to all of them: [`between`] two files at hand, [`since`] a
//! stored inventory, and `since` with the ranges that were written meanwhile. The answer is that of two
//! full inventories held against each other; what differs is how much is read.
//!
//! # What may be compared
//!
//! Blocks and pages are never rewritten ([MS-PST] 2.6.1.1): a change takes a new BID. So inside one
//! *lineage* (one physical life of a file, with an unbroken journal), equal `bidData` and `bidSub` mean
//! an equal object, and an equal BREF of a page of the node B-tree means an equal subtree. Between
//! lineages BIDs mean nothing: block checksums ([`crate::scan`]) or content fingerprints decide. A
//! `bidNextB` that fell is another lineage, whatever the caller believes.
//!
//! # What written ranges allow
//!
//! With a [`RangeSet`] of all bytes written since the stored inventory was made, only what they touch
//! is read:
//!
//! 1. The ranges are read, and every live block and B-tree page in them is recognised by its trailer and
//!    confirmed by a look-up in its tree. Every byte that the allocation map calls used must be explained
//!    by one of them; else ([`Reach::Tree`]) the whole B-trees are walked.
//! 2. A live block in the ranges whose BID was handed out before the inventory was made was overwritten
//!    in place, by a writer that does so or by another file copied over this one. Then the node B-tree
//!    is walked, and objects that such a block is part of are read again.
//! 3. Else all that changed is named by pages of the node B-tree that lie in the ranges. Their entries are
//!    held against the stored rows of the same key interval. A page outside the ranges was there, with
//!    the same bytes, when the inventory was made, and so were its entries; what was deleted between two
//!    such pages shows as stored rows in an interval that no page has any more.
//!
//! The argument rests on two facts of the format: block BIDs only rise within a lineage, and a page that
//! was freed does not come back to life unwritten (a rolled-back header brings `bidNextB` back with it,
//! and new blocks then have old BIDs: case 2).
//!
//! One thing no BID shows: an object that uses a property id above 0x8000 which the name-to-id map did not
//! name, and which is named later. Maps are only appended to, and before a name is used, so no writer
//! that follows [MS-PST] 2.4.7 makes one; deltas by BIDs do not notice it.

mod objects;
mod pages;
mod pair;
mod stored;
mod tables;
mod written;

use std::collections::BTreeMap;

use storage::RangeSet;

use crate::derived::ObjectKind;
use crate::inventory::{Inventory, Row};
use crate::ltp::PropTag;
use crate::{Bid, Nid};

pub use pair::between;
pub use stored::since;
pub use tables::TableCells;

/// What happened to an object. One that was both updated and moved has two changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Add,
    /// Its content changed.
    Update,
    /// It lies in another folder.
    Move {
        /// The folder before.
        from: Nid,
        /// The folder now.
        to: Nid,
    },
    /// It is gone, or its NID was given to another object (a delete and an add).
    Delete,
    /// Cells changed in its row of a contents or hierarchy table that are no copies of its own
    /// properties ([MS-PST] 2.4.4.4, 2.4.4.5).
    TableOnly {
        /// The table.
        table: Nid,
        /// The cells that differ, by tag; empty where only digests of the older version are known.
        cells: Vec<PropTag>,
    },
}

/// One change of one object. Its rows before and after, with both sides' BIDs, are in
/// [`Delta::before`] and [`Delta::after`]; property by property it is told by comparing the two
/// records ([`crate::canonical::Record`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object.
    pub nid: Nid,
    /// What it is; of a deleted object, what it was.
    pub kind: ObjectKind,
    /// What happened to it.
    pub action: Action,
}

/// How much had to be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// Only what the written ranges touch.
    Ranges,
    /// Pages that the two trees do not share.
    Pages,
    /// The node B-tree, and the objects whose BIDs differ.
    Tree,
    /// Every object.
    Everything,
}

/// What changed, in NID order.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Rows that differ in anything, BIDs included, as they were. An added object has none.
    pub before: BTreeMap<Nid, Row>,
    /// The same rows as they are. A deleted object has none.
    pub after: BTreeMap<Nid, Row>,
    /// What happened to the objects; less than the rows that differ, since a writer also writes anew
    /// what did not change.
    pub changes: Vec<Change>,
    /// Contents and hierarchy tables that were written since, where their cells were not compared:
    /// see [`TableCells::changed`].
    pub tables: Vec<Nid>,
    /// How much had to be read.
    pub reach: Reach,
}

impl Delta {
    /// Brings the inventory that this was made against up to date.
    pub fn apply(&self, inventory: &mut Inventory) {
        for nid in self.before.keys() {
            inventory.rows.remove(nid);
        }
        for (nid, row) in &self.after {
            inventory.rows.insert(*nid, row.clone());
        }
    }
}

/// How two versions at hand are related.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// One lineage: the newer version is the older one after writes to the same file.
    SameLineage,
    /// Nothing is known, or the file was compacted, replaced or restored.
    Unrelated,
}

/// What is known of the way from a stored inventory to the file at hand.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Another lineage, or nothing known.
    Nothing,
    /// One lineage, but what was written is not known: for a file that only engines that follow
    /// [MS-PST] write.
    Lineage {
        /// [`Ndb::next_bid`](crate::ndb::Ndb::next_bid) when the inventory was made.
        bid_next: Bid,
    },
    /// One lineage, and these are all the bytes written since, in any state in between.
    Written {
        /// [`Ndb::next_bid`](crate::ndb::Ndb::next_bid) when the inventory was made.
        bid_next: Bid,
        /// What was written.
        ranges: &'a RangeSet,
    },
}
