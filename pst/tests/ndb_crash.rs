//! Every cut of a write set opens as the state before or after it (DESIGN R8).
//!
//! A scripted chain of edits is committed to a storage that loses what was not synced. At each
//! operation of the commit, any subset of the operations since the last sync may survive, writes
//! also in part, by sectors. Each such image must open, hold exactly the nodes of one of the two
//! states, pass the check, and take a further edit.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use pst::check::{Severity, check};
use pst::ndb::{CryptMethod, Format, Ndb, NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType};
use storage::{CrashStorage, Fate};
use support::{FORMATS, Rng, bytes, committed, empty_ndb, shared};

fn open(data: &[u8]) -> Arc<Ndb> {
    Arc::new(Ndb::open(bytes(data.to_vec())).unwrap())
}

/// A digest of every node with its data and subnodes.
fn logical(ndb: &Ndb) -> Vec<u64> {
    fn walk(ndb: &Ndb, data: pst::Bid, sub: pst::Bid, out: &mut Vec<u64>) {
        let bytes = ndb.data(data).unwrap().read_all(ndb, u64::MAX).unwrap();
        out.push((bytes.len() as u64) << 32 | u64::from(pst::ndb::crc(&bytes)));
        for e in ndb.subnodes(sub).unwrap().values() {
            out.push(u64::from(e.nid.0));
            walk(ndb, e.bid_data, e.bid_sub, out);
        }
    }
    let mut out = Vec::new();
    for node in ndb.nodes() {
        let node = node.unwrap();
        out.extend([u64::from(node.nid.0), u64::from(node.nid_parent.0)]);
        walk(ndb, node.bid_data, node.bid_sub, &mut out);
    }
    out
}

fn edit(tx: &mut NdbTransaction, step: u64) {
    let mut rng = Rng(step * 977 + 13);
    for _ in 0..=rng.below(6) {
        let nid = Nid::new(NidType::NORMAL_MESSAGE, 0x1_0000 + rng.below(30) as u32);
        if rng.below(3) == 0 && tx.node(nid).unwrap().is_some() {
            tx.delete_node(nid).unwrap();
            continue;
        }
        let len = match rng.below(8) {
            0 => rng.below(120_000),
            1..3 => rng.below(20_000),
            _ => rng.below(600),
        } as usize;
        let sub = NodeContent {
            data: NodeData::Bytes(rng.bytes(len / 3)),
            ..Default::default()
        };
        let content = NodeContent {
            data: NodeData::Bytes(rng.bytes(len)),
            subnodes: Subnodes::Tree([(Nid(0x3F), sub)].into()),
        };
        tx.put_node(nid, Nid(0x122), &content).unwrap();
    }
}

/// Looks at one image that a crash may leave.
fn verify(image: &[u8], before: &[u64], after: &[u64], probe: bool) -> bool {
    let ndb = open(image);
    let now = logical(&ndb);
    assert!(
        now == before || now == after,
        "neither the state before nor the one after"
    );
    let findings = check(&ndb);
    let bad: Vec<_> = findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    if probe {
        // The next edit works, and leaves a file without any finding.
        let mut tx = NdbTransaction::begin(Arc::clone(&ndb)).unwrap();
        let content = NodeContent {
            data: NodeData::Bytes(vec![7; 9000]),
            ..Default::default()
        };
        tx.put_node(Nid(0x3F_FFE4), Nid(0), &content).unwrap();
        let image = committed(image, &tx.finish().unwrap());
        let ndb = open(&image);
        let bad: Vec<_> = check(&ndb)
            .into_iter()
            .filter(|f| f.severity > Severity::Info)
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
        let mut expected = now.clone();
        let tail = logical(&ndb);
        expected.extend(&tail[tail.len() - 3..]);
        assert_eq!(tail, expected);
    }
    now == after && before != after
}

/// Commits `set` to `image`, trying every cut; returns how many images were looked at.
fn all_cuts(image: &[u8], set: &storage::WriteSet, seed: u64) -> usize {
    let whole = CrashStorage::new(image.to_vec());
    set.commit(&whole).unwrap();
    let history = whole.history();
    let (before, after) = (logical(&open(image)), logical(&open(&whole.live())));
    let mut rng = Rng(seed | 1);
    let (mut cases, mut old, mut new) = (0, 0, 0);
    let mut seen = BTreeSet::new();
    for cut in 0..=history.len() {
        let storage = CrashStorage::replay(image.to_vec(), &history[..cut]).unwrap();
        let n = storage.pending().len();
        let mut images = vec![storage.synced(), storage.live()];
        for i in 0..n {
            images.push(storage.survivor(|at, _| if at == i { Fate::Kept } else { Fate::Lost }));
            images.push(storage.survivor(|at, _| if at == i { Fate::Lost } else { Fate::Kept }));
            for mask in [1, 2, rng.next()] {
                images.push(storage.survivor(|at, _| {
                    if at == i {
                        Fate::Torn(mask)
                    } else {
                        Fate::Kept
                    }
                }));
            }
        }
        for _ in 0..if n > 1 { 4 } else { 0 } {
            let masks: Vec<u64> = (0..n).map(|_| rng.next()).collect();
            images.push(storage.survivor(|at, _| match masks[at] % 3 {
                0 => Fate::Lost,
                1 => Fate::Kept,
                _ => Fate::Torn(masks[at] >> 8),
            }));
        }
        for image in images {
            let stamp = (image.len(), pst::ndb::crc(&image));
            if seen.insert(stamp) {
                cases += 1;
                if verify(&image, &before, &after, cases % 3 == 0) {
                    new += 1;
                } else {
                    old += 1;
                }
            }
        }
    }
    assert!(old > 0 && (new > 0 || before == after));
    cases
}

#[test]
fn every_cut_is_the_state_before_or_after() {
    for format in FORMATS {
        let cases = every_cut_of_a_chain(format);
        println!("{}: {cases} crash images", format.name);
        assert!(cases > 500, "{cases}");
    }
}

fn every_cut_of_a_chain(format: &'static Format) -> usize {
    let mut image = empty_ndb(format, CryptMethod::Permute);
    let mut cases = 0;
    for step in 1..=14u64 {
        let mut tx = NdbTransaction::begin(open(&image)).unwrap();
        edit(&mut tx, step);
        let set = tx.finish().unwrap();
        cases += all_cuts(&image, &set, step);
        image = committed(&image, &set);
        // Now and then a crash leaves the maps invalid, and the chain goes on from there.
        if step % 4 == 0 {
            let mut tx = NdbTransaction::begin(open(&image)).unwrap();
            edit(&mut tx, step + 100);
            let set = tx.finish().unwrap();
            let storage = CrashStorage::new(image.clone());
            let mut part = set.clone();
            part.phases.truncate(3);
            part.commit(&storage).unwrap();
            image = storage.live();
            assert!(!open(&image).header().maps_valid());
        }
    }
    cases
}

#[test]
fn every_cut_of_an_edit_of_a_real_file() {
    let Some(dir) = shared() else { return };
    let mut cases = 0;
    for name in [
        "empty.pst",
        "dist-list.pst",
        "password.pst",
        "ansi-32bit.pst",
    ] {
        let image = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let mut tx = NdbTransaction::begin(open(&image)).unwrap();
        edit(&mut tx, 3);
        let content = NodeContent {
            data: NodeData::Bytes(vec![3; 300_000]),
            ..Default::default()
        };
        tx.put_node(Nid(0x3F_0004), Nid(0), &content).unwrap();
        cases += all_cuts(&image, &tx.finish().unwrap(), 99);
    }
    println!("{cases} crash images");
}
