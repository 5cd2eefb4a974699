//! Nodes whose bytes are wrong in a file whose structure is right: every object is read or refused
//! with a typed error; nothing panics, hangs or eats memory.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use pst::derived::ObjectKind;
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use pst::messaging::{IPM_SUBTREE, MAX_EMBED_DEPTH, Pst};
use pst::ndb::{Ndb, NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType, PstError};
use storage::{MemStorage, ReadAt};
use support::mail::*;

/// A file with one folder of mail, and the NIDs of its nodes.
fn small() -> (Vec<u8>, Vec<Nid>) {
    let file = empty();
    let mut tx = begin(&file);
    let at = tx
        .create_folder(IPM_SUBTREE, None, &folder("mail"))
        .unwrap();
    for seed in [3, 14, 21] {
        tx.add_message(at, None, &varied(seed), false).unwrap();
    }
    commit(&tx.finish().unwrap(), &file);
    let nids = open(&file).ndb().nodes().map(|e| e.unwrap().nid).collect();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    (bytes, nids)
}

/// The content of a node with all its data in memory, changed by `mangle` at depth-first place
/// `target` (counted down).
fn copy(
    ndb: &Arc<Ndb>,
    data: pst::Bid,
    sub: pst::Bid,
    target: &mut i64,
    mangle: &dyn Fn(&mut Vec<u8>),
) -> NodeContent {
    let mut bytes = Vec::new();
    if !data.is_none() {
        bytes = ndb.data(data).unwrap().read_all(ndb, 1 << 24).unwrap();
        bytes.truncate(8_000);
    }
    if *target == 0 {
        mangle(&mut bytes);
    }
    *target -= 1;
    let mut tree = BTreeMap::new();
    if !sub.is_none() {
        for (nid, e) in ndb.subnodes(sub).unwrap() {
            tree.insert(nid, copy(ndb, e.bid_data, e.bid_sub, target, mangle));
        }
    }
    let subnodes = if tree.is_empty() {
        Subnodes::None
    } else {
        Subnodes::Tree(tree)
    };
    let data = if bytes.is_empty() {
        NodeData::None
    } else {
        NodeData::Blocks(vec![bytes])
    };
    NodeContent { data, subnodes }
}

/// Reads all there is; counts what was refused.
fn read_all(bytes: Vec<u8>) -> usize {
    let Ok(pst) = Pst::open(support::bytes(bytes)) else {
        return 1;
    };
    let mut refused = 0;
    refused += usize::from(dump(&pst, DumpOptions::default(), &mut |_| Ok(())).is_err());
    refused += usize::from(Inventory::read(&pst).is_err());
    refused += usize::from(pst.store().is_err()) + usize::from(pst.ipm_subtree().is_err());
    for entry in pst.index().unwrap().messages.values().flatten() {
        refused += usize::from(pst.fingerprint(ObjectKind::Message, entry.nid).is_err());
    }
    refused
}

#[test]
fn mangled_nodes_are_read_or_refused() {
    let (file, nids) = small();
    let (mut cases, mut refused) = (0, 0);
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Only what the messaging layer reads: derived tables are the check's.
    let read = |n: &Nid| !pst::derived::is_derived_node(*n) || *n == Nid::NAME_TO_ID_MAP;
    for nid in nids.into_iter().filter(read) {
        for place in 0..4 {
            for _ in 0..12 {
                let (at, value, cut) = (next(), next(), next());
                let mangle = |b: &mut Vec<u8>| {
                    if b.is_empty() {
                        *b = value.to_le_bytes().to_vec();
                    } else if cut % 5 == 0 {
                        b.truncate(at as usize % b.len() + 1);
                    } else {
                        let at = at as usize % b.len().min(64 + cut as usize % 512);
                        b[at] ^= (value as u8).max(1);
                    }
                };
                let storage = Arc::new(MemStorage::from(file.clone()));
                let ndb = Arc::new(Ndb::open(Arc::clone(&storage) as Arc<dyn ReadAt>).unwrap());
                let entry = ndb.node(nid).unwrap().unwrap();
                let content = copy(
                    &ndb,
                    entry.bid_data,
                    entry.bid_sub,
                    &mut place.clone(),
                    &mangle,
                );
                let mut tx = NdbTransaction::begin(Arc::clone(&ndb)).unwrap();
                tx.put_node(nid, entry.nid_parent, &content).unwrap();
                tx.finish().unwrap().commit(&*storage).unwrap();
                let mut bytes = vec![0; usize::try_from(storage.len().unwrap()).unwrap()];
                storage.read_exact_at(0, &mut bytes).unwrap();
                refused += usize::from(read_all(bytes) > 0);
                cases += 1;
            }
        }
    }
    println!("{cases} files, {refused} with refusals");
    assert!(refused > cases / 20, "the changes hit nothing");
}

#[test]
fn a_message_that_holds_itself_is_refused() {
    // Attachments that share one subtree unfold without end, from a few blocks.
    let file = empty();
    let mut deep = message(1, 10, true);
    for _ in 0..MAX_EMBED_DEPTH {
        deep = pst::messaging::MessageData {
            attachments: vec![embedded(deep)],
            ..message(1, 10, true)
        };
    }
    let mut tx = begin(&file);
    let nid = tx.add_message(IPM_SUBTREE, None, &deep, false).unwrap();
    commit(&tx.finish().unwrap(), &file);
    assert!(open(&file).message(nid).is_ok());
    let mut tx = begin(&file);
    let one_more = pst::messaging::MessageData {
        attachments: vec![embedded(deep)],
        ..message(1, 10, true)
    };
    assert!(matches!(
        tx.update_message(nid, &one_more),
        Err(PstError::Limit { .. })
    ));
}

#[test]
fn folders_in_a_circle_are_listed_as_raw_nodes() {
    let file = empty();
    let mut tx = begin(&file);
    let a = tx.create_folder(IPM_SUBTREE, None, &folder("a")).unwrap();
    let b = tx.create_folder(a, None, &folder("b")).unwrap();
    let m = tx
        .add_message(b, None, &message(1, 10, true), false)
        .unwrap();
    commit(&tx.finish().unwrap(), &file);
    let ndb = Arc::new(Ndb::open(Arc::clone(&file) as Arc<dyn ReadAt>).unwrap());
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    tx.set_parent(a, b).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    let index = pst.index().unwrap();
    for nid in [a, b, m] {
        assert_eq!(index.kind(nid), Some(ObjectKind::Raw));
    }
    assert!(
        lines(&pst)
            .iter()
            .any(|l| l.contains("folder outside the hierarchy"))
    );
    // What is cut off can still be taken out, node by node; what hangs in it is no folder's.
    let mut tx = begin(&file);
    assert!(matches!(
        tx.move_folder(IPM_SUBTREE, a),
        Err(PstError::Corrupt { .. } | PstError::Refused(_))
    ));
    tx.delete_raw_node(m).unwrap();
    tx.delete_raw_node(a).unwrap();
    tx.delete_raw_node(b).unwrap();
    commit(&tx.finish().unwrap(), &file);
    assert_eq!(
        index.kind(Nid::new(NidType::NORMAL_MESSAGE, 0x7_FFFF)),
        None
    );
    assert!(Pst::open(file).unwrap().index().unwrap().kind(m).is_none());
}
