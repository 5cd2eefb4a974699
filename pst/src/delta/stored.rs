//! A file against a stored inventory.

use std::collections::{BTreeMap, BTreeSet};

use storage::RangeSet;

use super::objects::{changes, renewed, rows, same_bids};
use super::{Delta, Reach, Trust, pages, tables, written};
use crate::derived::{ObjectKind, is_derived_node};
use crate::inventory::{Inventory, Row};
use crate::messaging::FolderTree;
use crate::ndb::NbtEntry;
use crate::{Bid, Nid, NidType, Pst, PstError, Result};

/// The deepest subnode tree that is searched for an overwritten block.
const MAX_DEPTH: usize = 64;
/// The most subnodes of one node that are searched.
const MAX_SUBNODES: usize = 1 << 20;

/// What changed since `known` was made, as far as `trust` allows reading less than everything.
///
/// The changes, and the inventory that [`Delta::apply`] leads to, are those of a full inventory of the
/// file, whatever `trust` is: if what it says is true.
///
/// # Errors
/// If something that had to be read is damaged: the delta of a part would look like deletes.
pub fn since(known: &Inventory, pst: &Pst, trust: Trust<'_>) -> Result<Delta> {
    // A counter that fell: another lineage, whatever is believed.
    let now = pst.ndb().next_bid()?;
    let fell = |bid: Bid| now.0 < bid.0;
    match trust {
        Trust::Lineage { bid_next } if !fell(bid_next) => {
            Stored { known, pst }.by_tree(Some(bid_next), &BTreeSet::new())
        }
        Trust::Written { bid_next, ranges } if !fell(bid_next) => {
            Stored { known, pst }.by_ranges(bid_next, ranges)
        }
        _ => Stored { known, pst }.by_tree(None, &BTreeSet::new()),
    }
}

struct Stored<'a> {
    known: &'a Inventory,
    pst: &'a Pst,
}

/// A row as it was, and the node that is there now.
type Pair<'a> = (Option<&'a Row>, Option<NbtEntry>);

impl<'a> Stored<'a> {
    fn by_ranges(&self, bid_next: Bid, ranges: &RangeSet) -> Result<Delta> {
        let ndb = self.pst.ndb();
        let Some(found) = written::find(ndb, ranges)? else {
            let mut reused = self.blocks_in(ranges)?;
            reused.retain(|bid| *bid < bid_next.key());
            return self.by_tree(Some(bid_next), &reused);
        };
        let reused: BTreeSet<u64> = found
            .blocks
            .iter()
            .map(|b| b.bref.bid.key())
            .filter(|bid| *bid < bid_next.key())
            .collect();
        if !reused.is_empty() {
            return self.by_tree(Some(bid_next), &reused);
        }
        let edges = |from: u64, until: u64| {
            let mut rows = self.between(from, until);
            let first = rows.next()?;
            let last = rows.next_back().unwrap_or(first);
            Some((u64::from(first.nid.0), u64::from(last.nid.0)))
        };
        let mut pairs: Vec<Pair<'_>> = Vec::new();
        let mut written_tables = Vec::new();
        for span in pages::changed_spans(ndb, &found.nbt, &found.above, &edges)? {
            let mut rows = self.between(span.from, span.until).peekable();
            for entry in span.nodes {
                while let Some(gone) = rows.next_if(|row| row.nid < entry.nid) {
                    pairs.push((Some(gone), None));
                }
                if tables::is_table(entry.nid) && is_new(&entry, bid_next) {
                    written_tables.push(entry.nid);
                }
                if !is_derived_node(entry.nid) {
                    let row = rows.next_if(|row| row.nid == entry.nid);
                    pairs.push((row, Some(entry)));
                }
            }
            pairs.extend(rows.map(|gone| (Some(gone), None)));
        }
        // A folder that comes, goes or moves may make folders and messages elsewhere raw nodes, or
        // raw nodes messages.
        let reshaped = pairs.iter().any(|(row, entry)| {
            let nid = row.map(|r| r.nid).or(entry.map(|e| e.nid));
            nid.is_some_and(|nid| nid.kind() == NidType::NORMAL_FOLDER)
                && row.map(|r| r.parent) != entry.map(|e| e.nid_parent)
        });
        if reshaped {
            return self.by_tree(Some(bid_next), &BTreeSet::new());
        }
        let kind = |entry: &NbtEntry, row: Option<&Row>| match entry.nid.kind() {
            NidType::NORMAL_FOLDER => row.map_or(ObjectKind::Raw, |row| row.kind),
            NidType::NORMAL_MESSAGE if self.is_folder(entry.nid_parent) => ObjectKind::Message,
            NidType::ASSOC_MESSAGE if self.is_folder(entry.nid_parent) => ObjectKind::Associated,
            _ => ObjectKind::Raw,
        };
        let mut run = Run::default();
        for (row, entry) in pairs {
            match entry {
                Some(entry) => run.pair(row, entry, kind(&entry, row), |row| {
                    self.says_the_same(row, &entry)
                })?,
                None => run.gone(row),
            }
        }
        self.restate(&mut run, &written_tables, Some(bid_next))?;
        run.delta(self.pst, Reach::Ranges, written_tables)
    }

    /// Walks the whole node B-tree. Rows are kept where the BIDs are those of a known lineage and
    /// no block of the object is one of those `overwritten` in place.
    fn by_tree(&self, bid_next: Option<Bid>, overwritten: &BTreeSet<u64>) -> Result<Delta> {
        let ndb = self.pst.ndb();
        let tree = FolderTree::read(ndb)?;
        let mut run = Run::default();
        let mut written_tables = Vec::new();
        let mut rows = self.known.rows.values().peekable();
        for entry in ndb.nodes() {
            let entry = entry?;
            let Some(kind) = tree.kind(&entry) else {
                // Of a table that was overwritten in place nothing more is known.
                let new = bid_next.is_none_or(|next| is_new(&entry, next));
                if tables::is_table(entry.nid) && (new || !overwritten.is_empty()) {
                    written_tables.push(entry.nid);
                }
                continue;
            };
            while let Some(gone) = rows.next_if(|row| row.nid < entry.nid) {
                run.gone(Some(gone));
            }
            let row = rows.next_if(|row| row.nid == entry.nid);
            run.pair(row, entry, kind, |row| {
                Ok(bid_next.is_some()
                    && self.says_the_same(row, &entry)?
                    && !self.holds_any(&entry, overwritten)?)
            })?;
        }
        rows.for_each(|row| run.gone(Some(row)));
        let since = bid_next.filter(|_| overwritten.is_empty());
        self.restate(&mut run, &written_tables, since)?;
        let reach = if bid_next.is_some() {
            Reach::Tree
        } else {
            Reach::Everything
        };
        run.delta(self.pst, reach, written_tables)
    }

    /// Whether an object under the same BIDs is the same: what a message's row says is not known in
    /// another folder.
    fn says_the_same(&self, row: &Row, entry: &NbtEntry) -> Result<bool> {
        Ok(same_bids(row, entry)
            && (row.parent == entry.nid_parent
                || row.cells == self.pst.cells_hash(entry.nid, entry.nid_parent)?))
    }

    /// Adds the messages whose rows say something else in `tables`, which were written.
    fn restate(&self, run: &mut Run, tables: &[Nid], bid_next: Option<Bid>) -> Result<()> {
        let ndb = self.pst.ndb();
        for table in tables {
            let Some(entry) = ndb.node(*table)? else {
                continue;
            };
            for row in tables::restated(self.known, self.pst, &entry, bid_next)? {
                let there = ndb.node(row.nid)?;
                if let Some(there) = there.filter(|e| e.nid_parent == row.parent)
                    && run.before.insert(row.nid, row.clone()).is_none()
                {
                    run.unread.push((row.kind, there));
                }
            }
        }
        Ok(())
    }

    /// The stored rows with NIDs from `from` to before `until`.
    fn between(&self, from: u64, until: u64) -> impl DoubleEndedIterator<Item = &'a Row> + use<'a> {
        let nid = |n: u64| u32::try_from(n).map(Nid);
        let start = std::ops::Bound::Included(nid(from).unwrap_or(Nid(u32::MAX)));
        let end = nid(until).map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let some = (from < until && u32::try_from(from).is_ok())
            .then(|| self.known.rows.range((start, end)));
        some.into_iter().flatten().map(|(_, row)| row)
    }

    fn is_folder(&self, nid: Nid) -> bool {
        let row = self.known.rows.get(&nid);
        row.is_some_and(|row| row.kind == ObjectKind::Folder)
    }

    /// The blocks that reach into `ranges`, from the whole block B-tree.
    fn blocks_in(&self, ranges: &RangeSet) -> Result<BTreeSet<u64>> {
        let ndb = self.pst.ndb();
        let mut found = BTreeSet::new();
        for block in ndb.blocks() {
            let block = block?;
            let space = ndb.format().block_space(usize::from(block.cb)) as u64;
            if ranges.intersects(block.bref.ib..block.bref.ib.saturating_add(space)) {
                found.insert(block.bref.bid.key());
            }
        }
        Ok(found)
    }

    /// Whether one of `blocks` is part of a node: named by it, by its trees, or by its subnodes.
    fn holds_any(&self, entry: &NbtEntry, blocks: &BTreeSet<u64>) -> Result<bool> {
        if blocks.is_empty() {
            return Ok(false);
        }
        let ndb = self.pst.ndb();
        let mut waiting = vec![(entry.bid_data, entry.bid_sub, 0)];
        let mut left = MAX_SUBNODES;
        while let Some((data, sub, depth)) = waiting.pop() {
            let named = |bid: &Bid| blocks.contains(&bid.key());
            if named(&data) || named(&sub) {
                return Ok(true);
            }
            if data.is_internal() {
                let tree = ndb.data(data)?;
                if tree
                    .internal_bids()
                    .iter()
                    .chain(tree.block_bids())
                    .any(named)
                {
                    return Ok(true);
                }
            }
            if sub.is_none() {
                continue;
            }
            let (subnodes, own) = ndb.subnode_tree(sub)?;
            if own.iter().any(named) {
                return Ok(true);
            }
            left = left.checked_sub(subnodes.len()).ok_or(PstError::Limit {
                what: "subnodes of one node",
                found: subnodes.len() as u64,
                limit: MAX_SUBNODES as u64,
            })?;
            if depth >= MAX_DEPTH && !subnodes.is_empty() {
                return Err(PstError::Limit {
                    what: "subnode depth",
                    found: depth as u64 + 1,
                    limit: MAX_DEPTH as u64,
                });
            }
            waiting.extend(
                subnodes
                    .values()
                    .map(|s| (s.bid_data, s.bid_sub, depth + 1)),
            );
        }
        Ok(false)
    }
}

/// Whether a node was written since `bid_next` was the next BID.
fn is_new(entry: &NbtEntry, bid_next: Bid) -> bool {
    entry.bid_data.key() >= bid_next.key() || entry.bid_sub.key() >= bid_next.key()
}

/// Collects what differs.
#[derive(Default)]
struct Run {
    before: BTreeMap<Nid, Row>,
    after: BTreeMap<Nid, Row>,
    unread: Vec<(ObjectKind, NbtEntry)>,
}

impl Run {
    fn gone(&mut self, row: Option<&Row>) {
        if let Some(row) = row {
            self.before.insert(row.nid, row.clone());
        }
    }

    /// A node that is there, with the row that its NID had; `keeps` tells whether it is the same
    /// content.
    fn pair(
        &mut self,
        row: Option<&Row>,
        entry: NbtEntry,
        kind: ObjectKind,
        keeps: impl FnOnce(&Row) -> Result<bool>,
    ) -> Result<()> {
        if let Some(row) = row {
            if row.kind == kind && keeps(row)? {
                let now = renewed(row, &entry);
                if now != *row {
                    self.before.insert(row.nid, row.clone());
                    self.after.insert(row.nid, now);
                }
                return Ok(());
            }
            self.before.insert(row.nid, row.clone());
        }
        self.unread.push((kind, entry));
        Ok(())
    }

    fn delta(mut self, pst: &Pst, reach: Reach, tables: Vec<Nid>) -> Result<Delta> {
        for row in rows(pst, &self.unread)? {
            if self.before.get(&row.nid) == Some(&row) {
                self.before.remove(&row.nid);
            } else {
                self.after.insert(row.nid, row);
            }
        }
        Ok(Delta {
            changes: changes(&self.before, &self.after),
            before: self.before,
            after: self.after,
            tables,
            reach,
        })
    }
}
