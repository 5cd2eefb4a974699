//! Every way to find a delta gives what two full inventories held against each other give: on random
//! edits, on a real writer's, on copies that were compacted, restored or copied over, and where blocks
//! were overwritten in place.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pst::delta::{Action, Change, Delta, Reach, Relation, TableCells, Trust, between, since};
use pst::derived::ObjectKind;
use pst::inventory::Inventory;
use pst::ltp::{NodeSource, PropBag, PropValue, TableEdit};
use pst::messaging::{MessageData, Transaction, tags};
use pst::ndb::{Ndb, NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::scan::{Depth, scan};
use pst::{Bid, Nid, NidType, Pst};
use storage::{MemStorage, RangeSet, ReadAt};
use support::mail::{attachment, embedded, folder, message, recipient};
use support::{Rng, bytes, committed};

/// A version, with what a sync would remember of it.
struct Version {
    file: Vec<u8>,
    pst: Pst,
    inventory: Inventory,
    next: Bid,
}

impl Version {
    fn new(file: Vec<u8>) -> Self {
        let pst = Pst::open(bytes(file.clone())).unwrap();
        Self {
            inventory: Inventory::read(&pst).unwrap(),
            next: pst.ndb().next_bid().unwrap(),
            file,
            pst,
        }
    }

    fn empty() -> Self {
        Self::new(pst::create_empty(&support::mail::SEED).unwrap())
    }

    /// The version after an edit, and what the edit wrote.
    fn edited(&self, edit: impl FnOnce(&mut Transaction)) -> (Self, RangeSet) {
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
fn expected(old: &Inventory, new: &Inventory) -> Vec<Change> {
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

fn objects(delta: &Delta) -> Vec<Change> {
    let table = |c: &&Change| !matches!(c.action, Action::TableOnly { .. });
    delta.changes.iter().filter(table).cloned().collect()
}

/// Checks one answer: the changes, the inventory that it leads to, and the rows it names.
fn check(what: &str, old: &Version, new: &Version, delta: &Delta) {
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
fn check_lineage(what: &str, old: &Version, new: &Version, written: &RangeSet) -> Reach {
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

fn tables(changes: &[Change]) -> BTreeMap<(Nid, Nid), Vec<u32>> {
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
fn restated(delta: &Delta) -> usize {
    let same = |nid: &Nid| match (delta.before.get(nid), delta.after.get(nid)) {
        (Some(a), Some(b)) => {
            a.cells != b.cells && (a.bid_data, a.bid_sub) == (b.bid_data, b.bid_sub)
        }
        _ => false,
    };
    delta.before.keys().filter(|nid| same(nid)).count()
}

/// A message with some of everything.
fn mail(rng: &mut Rng, n: u32) -> MessageData {
    let mut m = message(n, rng.below(600) as usize, rng.below(2) == 0);
    if rng.below(2) == 0 {
        m.recipients.push(recipient("ada"));
    }
    match rng.below(5) {
        0 => {
            let len = rng.below(60_000) as usize;
            m.attachments.push(attachment("a.bin", rng.bytes(len)));
        }
        1 => m.attachments.push(embedded(message(n + 1, 50, true))),
        _ => {}
    }
    m
}

/// One edit of a kind that `rng` chooses.
fn random_edit(rng: &mut Rng, version: &Version, tx: &mut Transaction) {
    let index = version.pst.index().unwrap();
    let top = tx.ipm_subtree().unwrap();
    let folders: Vec<Nid> = index
        .folders
        .keys()
        .copied()
        .filter(|f| f.0 > 0x8082)
        .collect();
    let messages: Vec<_> = index.messages.values().flatten().map(|m| m.nid).collect();
    let pick = |rng: &mut Rng, list: &[Nid]| -> Option<Nid> {
        (!list.is_empty()).then(|| list[rng.below(list.len() as u64) as usize])
    };
    let place = pick(rng, &folders).unwrap_or(top);
    let n = rng.below(1 << 30) as u32;
    match (rng.below(12), pick(rng, &messages)) {
        (0, _) => drop(
            tx.create_folder(place, None, &folder(&format!("F{n}")))
                .unwrap(),
        ),
        (1, Some(nid)) => {
            let mut m = version.pst.message(nid).unwrap();
            m.props
                .insert(PropValue::string(tags::SUBJECT, &format!("changed {n}")));
            tx.update_message(nid, &m).unwrap();
        }
        (2, Some(nid)) => tx.move_message(nid, place).unwrap(),
        (3, Some(nid)) => tx.delete_message(nid).unwrap(),
        (4, Some(nid)) => {
            // The same NID again, for another message.
            tx.delete_message(nid).unwrap();
            let associated = nid.kind() == NidType::ASSOC_MESSAGE;
            tx.add_message(place, Some(nid), &mail(rng, n), associated)
                .unwrap();
        }
        (5, _) if !folders.is_empty() => {
            let moved = pick(rng, &folders).unwrap();
            // Into itself is refused, and changes nothing.
            let _ = tx.move_folder(moved, top);
        }
        (6, _) if folders.len() > 2 => drop(tx.delete_folder(place)),
        (7, _) => {
            let nid = Nid::new(NidType::INTERNAL, 0x500 + rng.below(6) as u32);
            let content = NodeContent {
                data: NodeData::Bytes(rng.bytes(100)),
                subnodes: Subnodes::None,
            };
            tx.put_raw_node(nid, Nid(0), &content).unwrap();
        }
        (8, Some(nid)) => {
            // Written anew, and the same.
            let m = version.pst.message(nid).unwrap();
            tx.update_message(nid, &m).unwrap();
        }
        (9, Some(nid)) if nid.kind() == NidType::NORMAL_MESSAGE => {
            // The message's row alone; now and then it says nothing any more.
            let status = PropValue::i32(tags::MESSAGE_STATUS, n as i32 & 3);
            tx.set_cells(nid, &PropBag::from_iter([status])).unwrap();
        }
        (_, _) => drop(
            tx.add_message(place, None, &mail(rng, n), rng.below(6) == 0)
                .unwrap(),
        ),
    }
}

#[test]
fn bookkeeping_in_a_row_is_told_apart_from_what_is_mail() {
    let old = Version::empty();
    let mut nids = Vec::new();
    let (old, _) = old.edited(|tx| {
        let top = tx.ipm_subtree().unwrap();
        for i in 0..3 {
            nids.push(
                tx.add_message(top, None, &message(i, 40, true), false)
                    .unwrap(),
            );
        }
    });
    let ndb = old.pst.ndb();
    let folder = ndb.node(nids[1]).unwrap().unwrap().nid_parent;
    let table = folder.with_kind(NidType::CONTENTS_TABLE);
    let entry = ndb.node(table).unwrap().unwrap();
    // PidTagReplFlags ([MS-PST] 2.4.4.5.1), which no message has.
    let flags = PropValue::i32(0x0E38, 7);
    let mut edit = TableEdit::open(ndb, entry.bid_data, entry.bid_sub).unwrap();
    edit.update_row(nids[1].0, &PropBag::from_iter([flags.clone()]))
        .unwrap();
    let content = edit.build(Some(ndb)).unwrap();
    let mut tx = NdbTransaction::begin(Arc::clone(ndb)).unwrap();
    tx.put_node(table, entry.nid_parent, &content).unwrap();
    let new = Arc::new(MemStorage::from(old.file.clone()));
    tx.finish().unwrap().commit(&*new).unwrap();
    let new = Version::new(new.to_vec());
    for relation in [Relation::SameLineage, Relation::Unrelated] {
        let delta = between(&old.pst, &new.pst, relation).unwrap();
        let only = Action::TableOnly {
            table,
            cells: vec![flags.tag],
        };
        let told: Vec<_> = delta
            .changes
            .iter()
            .map(|c| (c.nid, c.action.clone()))
            .collect();
        assert_eq!(told, [(nids[1], only)]);
    }
    assert_eq!(old.inventory.digest(), new.inventory.digest());

    let (marked, written) = new.edited(|tx| {
        let status = PropValue::i32(tags::MESSAGE_STATUS, 2);
        tx.set_cells(nids[2], &PropBag::from_iter([status]))
            .unwrap();
    });
    check_lineage("marked", &new, &marked, &written);
    let delta = between(&new.pst, &marked.pst, Relation::SameLineage).unwrap();
    let told: Vec<_> = delta
        .changes
        .iter()
        .map(|c| (c.nid, c.action.clone()))
        .collect();
    assert_eq!(told, [(nids[2], Action::Update)]);
    assert_eq!(restated(&delta), 1);
}

fn cases(default: u64) -> u64 {
    std::env::var("PSTSYNCD_DELTA_CASES")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

#[test]
fn random_edits_give_the_same_answer_in_every_way() {
    let mut reached: BTreeMap<Reach, u32> = BTreeMap::new();
    let mut rows_alone = 0;
    for case in 0..cases(12) {
        let mut rng = Rng(case * 7919 + 17);
        let mut now = Version::empty();
        for step in 0..10 {
            // Now and then a crowd, so that the trees get levels.
            let crowd = if step == 1 { 60 + rng.below(120) } else { 0 };
            let mut all = RangeSet::new();
            let mut to = Version::new(now.file.clone());
            for _ in 0..=rng.below(3) {
                let (next, written) = to.edited(|tx| {
                    let top = tx.ipm_subtree().unwrap();
                    for i in 0..crowd {
                        tx.add_message(top, None, &message(i as u32, 40, true), false)
                            .unwrap();
                    }
                    random_edit(&mut rng, &to, tx);
                });
                all.union_with(&written);
                to = next;
            }
            let reach = check_lineage(&format!("case {case} step {step}"), &now, &to, &all);
            *reached.entry(reach).or_default() += 1;
            let pages = between(&now.pst, &to.pst, Relation::SameLineage).unwrap();
            rows_alone += restated(&pages);
            now = to;
        }
    }
    println!("{reached:?}, {rows_alone} messages of which the row alone changed");
    assert!(rows_alone > 5);
    let by_ranges = reached.get(&Reach::Ranges).copied().unwrap_or(0);
    let all: u32 = reached.values().sum();
    assert!(by_ranges * 2 > all, "written ranges suffice: {reached:?}");
}

/// Storage that counts what is read of it.
struct Counted(Vec<u8>, AtomicU64);

impl ReadAt for Counted {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let start = (offset as usize).min(self.0.len());
        let n = buf.len().min(self.0.len() - start);
        buf[..n].copy_from_slice(&self.0[start..start + n]);
        self.1.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[test]
fn what_is_read_for_one_change_does_not_grow_with_the_file() {
    let cost = |count: u32| -> u64 {
        let (before, _) = Version::empty().edited(|tx| {
            let top = tx.ipm_subtree().unwrap();
            // Several folders, so that no table outgrows the rest.
            let folders: Vec<_> = (0..count / 50)
                .map(|i| {
                    tx.create_folder(top, None, &folder(&format!("F{i}")))
                        .unwrap()
                })
                .collect();
            for n in 0..count {
                let place = folders[n as usize % folders.len()];
                tx.add_message(place, None, &message(n, 3000, true), false)
                    .unwrap();
            }
        });
        let nid = *before
            .inventory
            .rows
            .keys()
            .rfind(|n| n.kind() == NidType::NORMAL_MESSAGE)
            .unwrap();
        let subject = |of: &Version, subject: &str| {
            of.edited(|tx| {
                let mut m = of.pst.message(nid).unwrap();
                m.props.insert(PropValue::string(tags::SUBJECT, subject));
                tx.update_message(nid, &m).unwrap();
            })
        };
        // The second one, since the first may make the file grow.
        let (before, _) = subject(&before, "one");
        let (after, written) = subject(&before, "another");
        let file = Arc::new(Counted(after.file.clone(), AtomicU64::new(0)));
        let pst = Pst::open(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap();
        let trust = Trust::Written {
            bid_next: before.next,
            ranges: &written,
        };
        let delta = since(&before.inventory, &pst, trust).unwrap();
        assert_eq!(delta.reach, Reach::Ranges);
        assert_eq!(delta.changes.len(), 1, "{:?}", delta.changes);
        file.1.load(Ordering::Relaxed)
    };
    let (small, large) = (cost(400), cost(4000));
    println!("{small} bytes read of 400 messages, {large} of 4,000");
    assert!(large < small * 2, "{small} {large}");
}

/// A file with the same nodes under other BIDs, at other places.
fn compacted(pst: &Pst) -> Vec<u8> {
    let base = pst::create_empty(&support::mail::SEED).unwrap();
    let mut tx = NdbTransaction::begin(Arc::new(Ndb::open(bytes(base.clone())).unwrap())).unwrap();
    let nodes: Vec<_> = pst.ndb().nodes().map(|n| n.unwrap()).collect();
    // From the back: no block gets the BID that it had.
    for node in nodes.iter().rev() {
        let source = NodeSource::stored(pst.ndb(), node.bid_data, node.bid_sub);
        let content = source.to_content(None).unwrap();
        tx.put_node(node.nid, node.nid_parent, &content).unwrap();
    }
    committed(&base, &tx.finish().unwrap())
}

fn crowd(count: u32) -> Version {
    let mut rng = Rng(5);
    let (version, _) = Version::empty().edited(|tx| {
        let top = tx.ipm_subtree().unwrap();
        let inbox = tx.create_folder(top, None, &folder("Inbox")).unwrap();
        for n in 0..count {
            tx.add_message(inbox, None, &mail(&mut rng, n), n % 9 == 0)
                .unwrap();
        }
    });
    version
}

#[test]
fn a_compacted_copy_holds_the_same_objects() {
    let old = crowd(150);
    let new = Version::new(compacted(&old.pst));
    assert_ne!(old.file, new.file);
    let whole = RangeSet::from(0..new.file.len() as u64);
    for trust in [
        Trust::Nothing,
        Trust::Written {
            bid_next: old.next,
            ranges: &whole,
        },
    ] {
        let delta = since(&old.inventory, &new.pst, trust).unwrap();
        check("compacted", &old, &new, &delta);
        assert_eq!(delta.changes, []);
    }
    let delta = between(&old.pst, &new.pst, Relation::Unrelated).unwrap();
    assert_eq!(objects(&delta), []);
    // Block checksums alone told it: the fast inventory is the same on both sides.
    let prints = |pst: &Pst| -> Vec<_> {
        let rows = scan(pst, Depth::All).unwrap();
        rows.iter().map(|r| (r.nid(), r.kind, r.print)).collect()
    };
    assert_eq!(prints(&old.pst), prints(&new.pst));
    // And the copy goes its own way.
    let (edited, _) = new.edited(|tx| {
        let nid = *old
            .inventory
            .rows
            .keys()
            .rfind(|n| n.kind() == NidType::NORMAL_MESSAGE)
            .unwrap();
        tx.delete_message(nid).unwrap();
    });
    let delta = between(&old.pst, &edited.pst, Relation::Unrelated).unwrap();
    assert_eq!(objects(&delta), expected(&old.inventory, &edited.inventory));
    assert_eq!(objects(&delta).len(), 1);
}

#[test]
fn a_restored_older_copy_is_another_lineage() {
    let old = crowd(80);
    let (newer, _) = old.edited(|tx| {
        let inbox = old
            .pst
            .index()
            .unwrap()
            .messages
            .keys()
            .copied()
            .next()
            .unwrap();
        tx.add_message(inbox, None, &message(9999, 100, false), false)
            .unwrap();
    });
    // The copy of yesterday is put back: its counter is behind.
    let whole = RangeSet::from(0..newer.file.len() as u64);
    let trust = Trust::Written {
        bid_next: newer.next,
        ranges: &whole,
    };
    let delta = since(&newer.inventory, &old.pst, trust).unwrap();
    check("restored", &newer, &old, &delta);
    assert_eq!(delta.reach, Reach::Everything);
    let delta = between(&newer.pst, &old.pst, Relation::SameLineage).unwrap();
    check("restored, both at hand", &newer, &old, &delta);
    assert_eq!(delta.reach, Reach::Everything);
    // Only its header comes back, as by a tool that undoes a commit, and then it is worked on, past
    // the counter that the newer one had: pages that were dead are alive again, unwritten.
    let mut file = newer.file.clone();
    file[..0x4400].copy_from_slice(&old.file[..0x4400]);
    // fAMapValid: the maps are those of the newer one, and are made anew.
    file[248] = 0;
    let (worked, mut written) = Version::new(file).edited(|tx| {
        let index = old.pst.index().unwrap();
        let inbox = index.messages.keys().copied().next().unwrap();
        for n in 0..30 {
            tx.add_message(inbox, None, &message(20_000 + n, 9000, false), false)
                .unwrap();
        }
    });
    assert!(worked.next.0 > newer.next.0);
    written.insert(0..0x4400);
    let trust = Trust::Written {
        bid_next: newer.next,
        ranges: &written,
    };
    let delta = since(&newer.inventory, &worked.pst, trust).unwrap();
    check("rolled back and worked on", &newer, &worked, &delta);
    assert_eq!(delta.reach, Reach::Tree);
}

#[test]
fn another_file_copied_over_under_the_same_bids_is_noticed() {
    let make = |subject: &str| {
        let (version, _) = Version::empty().edited(|tx| {
            let top = tx.ipm_subtree().unwrap();
            for n in 0..40u32 {
                let mut m = message(n, 200, true);
                m.props.insert(PropValue::string(tags::SUBJECT, subject));
                m.attachments
                    .push(attachment("x.bin", vec![subject.len() as u8; 30_000]));
                tx.add_message(top, None, &m, false).unwrap();
            }
        });
        version
    };
    let (one, other) = (make("aaaa"), make("bbbb"));
    let bids = |v: &Version| -> Vec<_> {
        v.inventory
            .rows
            .values()
            .map(|r| (r.bid_data, r.bid_sub))
            .collect()
    };
    assert_eq!(bids(&one), bids(&other), "the trap: all BIDs are the same");
    let whole = RangeSet::from(0..other.file.len() as u64);
    let trust = Trust::Written {
        bid_next: one.next,
        ranges: &whole,
    };
    let delta = since(&one.inventory, &other.pst, trust).unwrap();
    check("copied over", &one, &other, &delta);
    assert_eq!(delta.changes.len(), 40);
    // Only what differs was written: a copy that leaves equal blocks of the disk alone.
    let differing: RangeSet = (0..one.file.len().max(other.file.len()))
        .filter(|at| one.file.get(*at) != other.file.get(*at))
        .map(|at| at as u64..at as u64 + 1)
        .collect();
    let trust = Trust::Written {
        bid_next: one.next,
        ranges: &differing,
    };
    check(
        "copied over in parts",
        &one,
        &other,
        &since(&one.inventory, &other.pst, trust).unwrap(),
    );
}

#[test]
fn a_block_deep_in_a_message_that_was_overwritten_in_place_is_noticed() {
    let old = crowd(120);
    let victim = old
        .inventory
        .rows
        .values()
        .find(|r| {
            r.kind == ObjectKind::Message
                && !old.pst.message(r.nid).unwrap().attachments.is_empty()
                && r.size > 20_000
        })
        .unwrap();
    // A data block of its attachment's value, two levels of subnodes down.
    let ndb = old.pst.ndb();
    let attachment = ndb
        .subnodes(victim.bid_sub)
        .unwrap()
        .into_values()
        .find(|s| s.nid.kind() == NidType::ATTACHMENT)
        .unwrap();
    let value = ndb
        .subnodes(attachment.bid_sub)
        .unwrap()
        .into_values()
        .next()
        .unwrap();
    let tree = ndb.data(value.bid_data).unwrap();
    let block = ndb.block(tree.block_bids()[1]).unwrap().unwrap();
    let mut file = old.file.clone();
    let (at, len) = (block.bref.ib as usize, usize::from(block.cb));
    file[at + 10] ^= 0x55;
    let crc = pst::ndb::crc(&file[at..at + len]);
    let trailer = at + ndb.format().block_space(len) - ndb.format().block_trailer;
    file[trailer + 4..trailer + 8].copy_from_slice(&crc.to_le_bytes());
    let new = Version::new(file);
    let written: RangeSet = [
        at as u64 + 10..at as u64 + 11,
        trailer as u64 + 4..trailer as u64 + 8,
    ]
    .into_iter()
    .collect();
    let trust = Trust::Written {
        bid_next: old.next,
        ranges: &written,
    };
    let delta = since(&old.inventory, &new.pst, trust).unwrap();
    check("overwritten in place", &old, &new, &delta);
    assert_eq!(delta.changes.len(), 1);
    assert_eq!(delta.changes[0].nid, victim.nid);
    assert_eq!(delta.reach, Reach::Tree);

    // A trailer that was destroyed hides its block from the search: the allocation map tells, and the
    // damage is an error instead of an old row that is believed.
    let mut file = old.file.clone();
    file[trailer + 2] ^= 0xFF;
    let pst = Pst::open(bytes(file)).unwrap();
    let ranges = RangeSet::from(trailer as u64 + 2..trailer as u64 + 3);
    let trust = Trust::Written {
        bid_next: old.next,
        ranges: &ranges,
    };
    assert!(since(&old.inventory, &pst, trust).is_err());
}

#[test]
fn pages_overwritten_in_place_are_noticed() {
    // The parent of one message is changed in its leaf page, where it lies: all pages above keep
    // their bytes, and no block is written.
    let old = crowd(150);
    let ndb = old.pst.ndb();
    let format = ndb.format();
    let victim = old
        .inventory
        .rows
        .values()
        .rfind(|r| r.kind == ObjectKind::Message)
        .unwrap();
    let root = old.pst.ipm_subtree().unwrap();
    let mut file = old.file.clone();
    let mut written = RangeSet::new();
    for ib in (0..file.len()).step_by(512) {
        let Some(page) = file.get(ib..ib + 512) else {
            break;
        };
        let Ok(bid) = pst::ndb::verify_page(format, page, pst::ndb::PageType::Nbt, ib as u64, None)
        else {
            continue;
        };
        if page[491] != 0 {
            continue;
        }
        for i in 0..usize::from(page[488]) {
            let entry = &page[i * 32..i * 32 + 32];
            if entry[..4] == victim.nid.0.to_le_bytes()
                && entry[24..28] == victim.parent.0.to_le_bytes()
            {
                let mut page = page.to_vec();
                page[i * 32 + 24..i * 32 + 28].copy_from_slice(&root.0.to_le_bytes());
                pst::ndb::seal_page(format, &mut page, pst::ndb::PageType::Nbt, ib as u64, bid);
                file[ib..ib + 512].copy_from_slice(&page);
                written.insert(ib as u64 + 24..ib as u64 + 512);
                break;
            }
        }
    }
    let new = Version::new(file);
    let trust = Trust::Written {
        bid_next: old.next,
        ranges: &written,
    };
    let delta = since(&old.inventory, &new.pst, trust).unwrap();
    check("page in place", &old, &new, &delta);
    assert_eq!(delta.changes.len(), 1);
    assert_eq!(delta.reach, Reach::Ranges);
}

#[test]
fn a_folder_that_leaves_the_tree_makes_its_mail_raw() {
    let old = crowd(100);
    let inbox = old
        .pst
        .index()
        .unwrap()
        .messages
        .keys()
        .copied()
        .next()
        .unwrap();
    let cut = |file: &[u8], nid: Nid, parent: Nid| {
        let ndb = Arc::new(Ndb::open(bytes(file.to_vec())).unwrap());
        let mut tx = NdbTransaction::begin(ndb).unwrap();
        tx.set_parent(nid, parent).unwrap();
        let set = tx.finish().unwrap();
        let written: RangeSet = set
            .phases
            .iter()
            .flat_map(|p| &p.writes)
            .map(|(at, d)| *at..*at + d.len())
            .collect();
        (Version::new(committed(file, &set)), written)
    };
    // Its own parent: a folder that hangs nowhere.
    let (new, written) = cut(&old.file, inbox, inbox);
    check_lineage("cut off", &old, &new, &written);
    assert!(
        expected(&old.inventory, &new.inventory).len() > 200,
        "all of its mail is told of"
    );
    let top = old.pst.ipm_subtree().unwrap();
    let (back, written) = cut(&new.file, inbox, top);
    check_lineage("put back", &new, &back, &written);
}

#[test]
fn many_deletes_empty_whole_pages() {
    let old = crowd(400);
    let (new, written) = old.edited(|tx| {
        let doomed = old
            .inventory
            .rows
            .values()
            .filter(|r| r.kind == ObjectKind::Message);
        for (i, row) in doomed.enumerate() {
            // Runs longer than a page, and some left between.
            if (40..340).contains(&i) && i % 70 != 0 {
                tx.delete_message(row.nid).unwrap();
            }
        }
    });
    let reach = check_lineage("many deletes", &old, &new, &written);
    assert_eq!(reach, Reach::Ranges);
    check_lineage(
        "many adds",
        &Version::empty(),
        &old,
        &RangeSet::from(0..old.file.len() as u64),
    );
}

#[test]
fn real_versions_and_a_real_writers_edits() {
    let Some(dir) = support::shared() else { return };
    let read = |name: &str| Version::new(std::fs::read(dir.join("corpus").join(name)).unwrap());
    let (old, new) = (read("outlook_1.pst"), read("outlook_1-later.pst"));
    for (a, b) in [(&old, &new), (&new, &old)] {
        let delta = between(&a.pst, &b.pst, Relation::Unrelated).unwrap();
        check("outlook_1", a, b, &delta);
        // Whatever is believed of them, the answer stays.
        let delta = between(&a.pst, &b.pst, Relation::SameLineage).unwrap();
        check("outlook_1, believed one lineage", a, b, &delta);
        let differing: RangeSet = (0..a.file.len().max(b.file.len()))
            .filter(|at| a.file.get(*at) != b.file.get(*at))
            .map(|at| at as u64..at as u64 + 1)
            .collect();
        let trust = Trust::Written {
            bid_next: a.next,
            ranges: &differing,
        };
        let delta = since(&a.inventory, &b.pst, trust).unwrap();
        println!(
            "outlook_1 by ranges: {:?}, {} changes",
            delta.reach,
            delta.changes.len()
        );
        check("outlook_1, ranges", a, b, &delta);
    }
    // Files that have nothing to do with each other.
    let names: Vec<&str> = support::UNICODE_FILES
        .iter()
        .copied()
        .filter(|n| *n != "enron.pst" && !n.contains("outlook_1"))
        .collect();
    for pair in names.windows(2) {
        let (a, b) = (read(pair[0]), read(pair[1]));
        let what = format!("{} to {}", pair[0], pair[1]);
        check(
            &what,
            &a,
            &b,
            &between(&a.pst, &b.pst, Relation::Unrelated).unwrap(),
        );
    }
}
