//! Two versions, both at hand.

use std::collections::BTreeMap;

use super::objects::{changes, renewed, rows};
use super::{Delta, Reach, Relation, pages, tables};
use crate::derived::ObjectKind;
use crate::inventory::Row;
use crate::messaging::{FolderLookup, FolderTree};
use crate::ndb::NbtEntry;
use crate::scan::{Depth, Prints};
use crate::{Nid, NidType, Pst, Result};

/// What changed from `old` to `new`, cells of tables included.
///
/// Both must be views that do not change meanwhile. The changes are those of two full inventories
/// held against each other, whatever `relation` is: if it is true.
///
/// # Errors
/// If something that had to be read is damaged.
pub fn between(old: &Pst, new: &Pst, relation: Relation) -> Result<Delta> {
    let (a, b) = (old.ndb().header(), new.ndb().header());
    let one_life = relation == Relation::SameLineage
        && a.version == b.version
        && a.crypt == b.crypt
        && old.ndb().next_bid()?.0 <= new.ndb().next_bid()?.0
        && old.names().extended_by(new.names());
    let pair = Pair { old, new };
    if one_life {
        let (kinds_hold, differing) = pair.differing(true)?;
        // A folder that comes, goes or moves may change what objects elsewhere are.
        let differing = if kinds_hold {
            differing
        } else {
            pair.differing(false)?.1
        };
        return pair.delta(differing, Reach::Pages);
    }
    let (_, all) = pair.differing(false)?;
    pair.delta(pair.unequal(all)?, Reach::Everything)
}

struct Pair<'a> {
    old: &'a Pst,
    new: &'a Pst,
}

/// A node with what it is there.
type Side = Option<(ObjectKind, NbtEntry)>;

/// Objects that may differ, and tables.
#[derive(Default)]
struct Differing {
    objects: Vec<(Side, Side)>,
    /// Messages of which the rows say different things, whatever their own blocks are.
    restated: Vec<(Side, Side)>,
    tables: Vec<(NbtEntry, NbtEntry)>,
}

impl Pair<'_> {
    /// The nodes that are not the same in both. First: whether both have the same folders, so that
    /// what was left out is on both sides the same kind of object.
    fn differing(&self, skip: bool) -> Result<(bool, Differing)> {
        let (mut here, mut there) = if skip {
            (
                Kinds::Lookup(FolderLookup::new(self.old.ndb())),
                Kinds::Lookup(FolderLookup::new(self.new.ndb())),
            )
        } else {
            (
                Kinds::Tree(FolderTree::read(self.old.ndb())?),
                Kinds::Tree(FolderTree::read(self.new.ndb())?),
            )
        };
        let mut kinds_hold = true;
        let mut out = Differing::default();
        let (old, new) = (self.old.ndb(), self.new.ndb());
        pages::differing(old, new, skip, &mut |a, b| {
            let nid = a.or(b).map(|e| e.nid);
            if nid.is_some_and(|nid| nid.kind() == NidType::NORMAL_FOLDER)
                && a.map(|e| e.nid_parent) != b.map(|e| e.nid_parent)
            {
                kinds_hold = false;
            }
            if let (Some(a), Some(b)) = (a, b)
                && tables::is_table(a.nid)
                && (!skip || !same_content(&a, &b))
            {
                out.tables.push((a, b));
            }
            let sides = (here.side(a)?, there.side(b)?);
            if sides.0.is_some() || sides.1.is_some() {
                // With equal pages passed over, what is equal here is equal.
                out.objects.push(sides);
            }
            Ok(())
        })?;
        for (a, b) in &out.tables {
            for nid in tables::restated_between(self.old, a, self.new, b)? {
                let sides = (here.side(old.node(nid)?)?, there.side(new.node(nid)?)?);
                if sides.0.is_some() && sides.1.is_some() {
                    out.restated.push(sides);
                }
            }
        }
        Ok((kinds_hold, out))
    }

    /// Leaves out the objects whose blocks have the same checksums on both sides, where property
    /// ids mean the same in both files.
    fn unequal(&self, all: Differing) -> Result<Differing> {
        let same_names = self.old.names().extended_by(self.new.names())
            && self.new.names().extended_by(self.old.names());
        if !same_names {
            return Ok(all);
        }
        let prints = |pst: &Pst, side: &Side| -> Result<Option<[u8; 16]>> {
            let print = |(kind, e): &(ObjectKind, NbtEntry)| {
                Ok(Some(Prints::new(pst.ndb()).of(Depth::All, *kind, e)?))
            };
            side.as_ref().map_or(Ok(None), print)
        };
        let equal = crate::parallel::map(&all.objects, &|(a, b)| {
            let same_place = match (a, b) {
                (Some((k, x)), Some((l, y))) => k == l && x.nid_parent == y.nid_parent,
                _ => false,
            };
            Ok(same_place && prints(self.old, a)? == prints(self.new, b)?)
        })?;
        let objects = all.objects.into_iter().zip(equal);
        Ok(Differing {
            objects: objects
                .filter(|(_, equal)| !equal)
                .map(|(o, _)| o)
                .collect(),
            restated: all.restated,
            tables: all.tables,
        })
    }

    /// Whether the rows of a message say the same in the folders that it lies in.
    fn rows_agree(&self, x: &NbtEntry, y: &NbtEntry) -> Result<bool> {
        Ok(
            self.old.cells_hash(x.nid, x.nid_parent)?
                == self.new.cells_hash(y.nid, y.nid_parent)?,
        )
    }

    fn delta(&self, differing: Differing, reach: Reach) -> Result<Delta> {
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        let (mut old, mut new) = (Vec::new(), Vec::new());
        // Inside one lineage, an object under the same BIDs is read once.
        let mut moved = Vec::new();
        for (a, b) in differing.objects {
            if let (Some((k, x)), Some((l, y))) = (a, b)
                && k == l
                && reach == Reach::Pages
                && same_content(&x, &y)
                && (x.nid_parent == y.nid_parent || self.rows_agree(&x, &y)?)
            {
                if x != y {
                    old.push((k, x));
                    moved.push(y);
                }
                continue;
            }
            old.extend(a);
            new.extend(b);
        }
        for (a, b) in differing.restated {
            old.extend(a);
            new.extend(b);
        }
        let insert = |map: &mut BTreeMap<Nid, Row>, rows: Vec<Row>| {
            map.extend(rows.into_iter().map(|row| (row.nid, row)));
        };
        insert(&mut before, rows(self.old, &old)?);
        insert(&mut after, rows(self.new, &new)?);
        for entry in moved {
            if let Some(row) = before.get(&entry.nid) {
                after.insert(entry.nid, renewed(row, &entry));
            }
        }
        before.retain(|nid, row| {
            let same = after.get(nid) == Some(row);
            if same {
                after.remove(nid);
            }
            !same
        });
        let mut changes = changes(&before, &after);
        for (a, b) in &differing.tables {
            changes.extend(tables::cells_changed(self.old, a, self.new, b)?);
        }
        changes.sort_by_key(|change| change.nid);
        Ok(Delta {
            before,
            after,
            changes,
            tables: Vec::new(),
            reach,
        })
    }
}

fn same_content(a: &NbtEntry, b: &NbtEntry) -> bool {
    a.bid_data.key() == b.bid_data.key() && a.bid_sub.key() == b.bid_sub.key()
}

/// Two ways to know what a node is.
enum Kinds<'a> {
    Lookup(FolderLookup<'a>),
    Tree(FolderTree),
}

impl Kinds<'_> {
    fn side(&mut self, entry: Option<NbtEntry>) -> Result<Side> {
        let Some(entry) = entry else { return Ok(None) };
        let kind = match self {
            Self::Lookup(lookup) => lookup.kind(&entry)?,
            Self::Tree(tree) => tree.kind(&entry),
        };
        Ok(kind.map(|kind| (kind, entry)))
    }
}
