//! Copies that were compacted, restored or copied over; blocks and pages overwritten in place; real files.

use crate::ask::*;
use crate::edits::mail;
use std::sync::Arc;

use crate::support::mail::{attachment, folder, message};
use crate::support::{Rng, bytes, committed};
use pst::delta::{Reach, Relation, Trust, between, since};
use pst::derived::ObjectKind;
use pst::ltp::{NodeSource, PropValue};
use pst::messaging::tags;
use pst::ndb::{Ndb, NdbTransaction};
use pst::scan::{Depth, scan};
use pst::{Nid, NidType, Pst};
use storage::RangeSet;

/// A file with the same nodes under other BIDs, at other places.
fn compacted(pst: &Pst) -> Vec<u8> {
    let base = pst::create_empty(&crate::support::mail::SEED).unwrap();
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
    let Some(dir) = crate::support::shared() else {
        return;
    };
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
    let names: Vec<&str> = crate::support::UNICODE_FILES
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
