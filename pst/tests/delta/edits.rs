//! Random edits, what rows alone say, and what is read for one change.

use crate::ask::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::Rng;
use crate::support::mail::{attachment, embedded, folder, message, recipient};
use pst::delta::{Action, Reach, Relation, Trust, between, since};
use pst::ltp::{PropBag, PropValue, TableEdit};
use pst::messaging::{MessageData, Transaction, tags};
use pst::ndb::{NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType, Pst};
use storage::{MemStorage, RangeSet, ReadAt};

/// A message with some of everything.
pub fn mail(rng: &mut Rng, n: u32) -> MessageData {
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
