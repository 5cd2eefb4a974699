//! A version with its inventory, and every way to ask what changed between two.

use std::collections::BTreeMap;

use crate::support::{bytes, committed};
use pst::delta::{Action, Change, Delta, Reach, Relation, TableCells, Trust, between, since};
use pst::derived::ObjectKind;
use pst::inventory::Inventory;
use pst::messaging::Transaction;
use pst::scan::{Depth, scan};
use pst::{Bid, Nid, Pst};
use storage::RangeSet;

/// A version, with what a sync would remember of it.
pub struct Version {
    pub file: Vec<u8>,
    pub pst: Pst,
    pub inventory: Inventory,
    pub next: Bid,
}

impl Version {
    pub fn new(file: Vec<u8>) -> Self {
        let pst = Pst::open(bytes(file.clone())).unwrap();
        Self {
            inventory: Inventory::read(&pst).unwrap(),
            next: pst.ndb().next_bid().unwrap(),
            file,
            pst,
        }
    }

    pub fn empty() -> Self {
        Self::new(pst::create_empty(&crate::support::mail::SEED).unwrap())
    }

    /// The version after an edit, and what the edit wrote.
    pub fn edited(&self, edit: impl FnOnce(&mut Transaction)) -> (Self, RangeSet) {
        let mut tx = Transaction::begin(bytes(self.file.clone())).unwrap();
        edit(&mut tx);
        let set = tx.finish().unwrap();
        let mut written: RangeSet = set
            .phases
            .iter()
            .flat_map(|p| &p.writes)
            .map(|(at, data)| *at..*at + data.len())
            .collect();
        written.insert(set.base_len..set.target_len);
        (Self::new(committed(&self.file, &set)), written)
    }
}

/// What two inventories say, told in the plainest way.
pub fn expected(old: &Inventory, new: &Inventory) -> Vec<Change> {
    let mut out = Vec::new();
    let nids: std::collections::BTreeSet<_> = old.rows.keys().chain(new.rows.keys()).collect();
    for nid in nids {
        let (a, b) = (old.rows.get(nid), new.rows.get(nid));
        let mut add = |kind, action| {
            out.push(Change {
                nid: *nid,
                kind,
                action,
            });
        };
        let one = match (a, b) {
            (Some(a), Some(b)) => {
                a.kind == b.kind
                    && (a.search_key == b.search_key
                        || matches!(a.kind, ObjectKind::Folder | ObjectKind::Raw))
            }
            _ => false,
        };
        if let (Some(a), Some(b), true) = (a, b, one) {
            if a.fingerprint != b.fingerprint {
                add(a.kind, Action::Update);
            }
            if a.parent != b.parent {
                let (from, to) = (a.parent, b.parent);
                add(a.kind, Action::Move { from, to });
            }
            continue;
        }
        if let Some(a) = a {
            add(a.kind, Action::Delete);
        }
        if let Some(b) = b {
            add(b.kind, Action::Add);
        }
    }
    out
}

pub fn objects(delta: &Delta) -> Vec<Change> {
    let table = |c: &&Change| !matches!(c.action, Action::TableOnly { .. });
    delta.changes.iter().filter(table).cloned().collect()
}

/// Checks one answer: the changes, the inventory that it leads to, and the rows it names.
pub fn check(what: &str, old: &Version, new: &Version, delta: &Delta) {
    let want = expected(&old.inventory, &new.inventory);
    assert_eq!(objects(delta), want, "{what} ({:?})", delta.reach);
    let mut led = old.inventory.clone();
    delta.apply(&mut led);
    if delta.reach == Reach::Everything {
        // BIDs of another lineage say nothing, and are not brought over where the object is the same.
        assert_eq!(led.digest(), new.inventory.digest(), "{what}");
    } else if led != new.inventory {
        let all: std::collections::BTreeSet<_> =
            led.rows.keys().chain(new.inventory.rows.keys()).collect();
        let wrong: Vec<_> = all
            .into_iter()
            .map(|nid| (led.rows.get(nid), new.inventory.rows.get(nid)))
            .filter(|(a, b)| a != b)
            .take(3)
            .collect();
        panic!("{what} ({:?}): {wrong:#?}", delta.reach);
    }
    for change in &want {
        let (a, b) = (
            delta.before.contains_key(&change.nid),
            delta.after.contains_key(&change.nid),
        );
        let named = match change.action {
            Action::Add => b,
            Action::Delete => a,
            _ => a && b,
        };
        assert!(named, "{what}: {change:?} names its rows");
    }
}

/// Asks in every way that is true of two versions of one lineage.
pub fn check_lineage(what: &str, old: &Version, new: &Version, written: &RangeSet) -> Reach {
    let bid_next = old.next;
    let ask = |trust| since(&old.inventory, &new.pst, trust).unwrap();
    let by_ranges = ask(Trust::Written {
        bid_next,
        ranges: written,
    });
    let by_tree = ask(Trust::Lineage { bid_next });
    assert_eq!(by_tree.reach, Reach::Tree);
    check(&format!("{what}, ranges"), old, new, &by_ranges);
    check(&format!("{what}, tree"), old, new, &by_tree);
    check(&format!("{what}, nothing"), old, new, &ask(Trust::Nothing));
    let pages = between(&old.pst, &new.pst, Relation::SameLineage).unwrap();
    check(&format!("{what}, pages"), old, new, &pages);
    let apart = between(&old.pst, &new.pst, Relation::Unrelated).unwrap();
    check(&format!("{what}, unrelated"), old, new, &apart);
    assert_eq!(
        tables(&pages.changes),
        tables(&apart.changes),
        "{what}: cells of tables"
    );
    // An equal change fingerprint is an equal object, in one lineage and by all blocks.
    for depth in [Depth::Named, Depth::All] {
        let was: BTreeMap<_, _> = scan(&old.pst, depth)
            .unwrap()
            .iter()
            .map(|r| (r.nid(), (r.kind, r.print)))
            .collect();
        let now = scan(&new.pst, depth).unwrap();
        assert!(
            now.iter()
                .map(pst::scan::ScanRow::nid)
                .eq(new.inventory.rows.keys().copied()),
            "{what}: the same objects as in an inventory"
        );
        for row in now {
            let content = |v: &Version| {
                v.inventory
                    .rows
                    .get(&row.nid())
                    .map(|r| (r.kind, r.fingerprint))
            };
            // What its row says is no part of a message's change fingerprint.
            let cells = |v: &Version| {
                v.inventory
                    .rows
                    .get(&row.nid())
                    .map(|r| (r.cells, r.parent))
            };
            if was.get(&row.nid()) == Some(&(row.kind, row.print)) && cells(old) == cells(new) {
                assert_eq!(
                    content(old),
                    content(new),
                    "{what}: {depth:?} of {}",
                    row.nid()
                );
            }
        }
    }
    // What changed in tables only is also told by kept digests, from the tables that were written.
    let told: Vec<_> = tables(&pages.changes).into_keys().collect();
    for delta in [&by_ranges, &by_tree] {
        let mut cells = TableCells::read(&old.pst).unwrap();
        let changed = cells.changed(&new.pst, &delta.tables).unwrap();
        assert_eq!(
            tables(&changed).into_keys().collect::<Vec<_>>(),
            told,
            "{what}: digests of tables ({:?})",
            delta.reach
        );
        // Those of tables that are gone stay until they are asked about.
        let now = TableCells::read(&new.pst).unwrap();
        for (key, digest) in now.digests {
            assert_eq!(cells.digests.get(&key), Some(&digest), "{what}: {key:?}");
        }
    }
    by_ranges.reach
}

pub fn tables(changes: &[Change]) -> BTreeMap<(Nid, Nid), Vec<u32>> {
    changes
        .iter()
        .filter_map(|c| match &c.action {
            Action::TableOnly { table, cells } => {
                let tags = cells.iter().map(|t| t.0).collect();
                Some(((*table, c.nid), tags))
            }
            _ => None,
        })
        .collect()
}

/// How many messages changed in what their rows say and in nothing else.
pub fn restated(delta: &Delta) -> usize {
    let same = |nid: &Nid| match (delta.before.get(nid), delta.after.get(nid)) {
        (Some(a), Some(b)) => {
            a.cells != b.cells && (a.bid_data, a.bid_sub) == (b.bid_data, b.bid_sub)
        }
        _ => false,
    };
    delta.before.keys().filter(|nid| same(nid)).count()
}
