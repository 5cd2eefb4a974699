//! Patches of data and subnode trees ([MS-PST] 2.6.1.2.3, 2.6.1.2.5): the tree is what a whole write
//! would leave, every reference count adds up, and nothing is written but what changed; also where
//! another node shares the tree, and where it grows and shrinks over the bounds of its XBLOCKs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use pst::check::check;
use pst::ndb::{DataPatch, Ndb, NdbTransaction, NodeContent, NodeData, SubnodePatch, Subnodes};
use pst::{Bid, Nid, NidType, PstError};
use storage::MemStorage;
use support::{Rng, bytes};

const NODE: Nid = Nid::new(NidType::INTERNAL, 0x500);
const TWIN: Nid = Nid::new(NidType::INTERNAL, 0x501);
const FULL: usize = 8176;

fn file() -> Vec<u8> {
    pst::create_empty(&[3; 16]).unwrap()
}

fn open(data: &[u8]) -> Arc<Ndb> {
    Arc::new(Ndb::open(bytes(data.to_vec())).unwrap())
}

fn edited(base: &[u8], edit: impl FnOnce(&mut NdbTransaction)) -> Vec<u8> {
    let mut t = NdbTransaction::begin(open(base)).unwrap();
    edit(&mut t);
    let storage = MemStorage::from(base.to_vec());
    t.finish().unwrap().commit(&storage).unwrap();
    let data = storage.to_vec();
    let findings = check(&open(&data));
    assert!(findings.is_empty(), "{findings:#?}");
    data
}

fn data(content: NodeData) -> NodeContent {
    NodeContent {
        data: content,
        subnodes: Subnodes::None,
    }
}

fn block(rng: &mut Rng, len: usize) -> Vec<u8> {
    // Few bytes vary: a block of random bytes takes long to make.
    let mut b = vec![rng.next() as u8; len];
    b[..8.min(len)].copy_from_slice(&rng.next().to_le_bytes()[..8.min(len)]);
    b
}

fn stored(ndb: &Ndb, nid: Nid) -> (Bid, Vec<Vec<u8>>) {
    let bid = ndb.node(nid).unwrap().unwrap().bid_data;
    let tree = ndb.data(bid).unwrap();
    let blocks: Vec<_> = (0..tree.block_count())
        .map(|i| tree.read_block(ndb, i).unwrap())
        .collect();
    let len: usize = blocks.iter().map(Vec::len).sum();
    assert_eq!(tree.len(), len as u64, "lcbTotal");
    (bid, blocks)
}

#[test]
fn a_patched_data_tree_is_the_tree_that_a_whole_write_leaves() {
    let rounds = std::env::var("PST_PATCH_ROUNDS").map_or(24, |n| n.parse().unwrap());
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    let empty = file();
    for start in [1usize, 2, 1020, 1021, 1022, 2043] {
        let mut model: Vec<Vec<u8>> = (0..start).map(|_| block(&mut rng, FULL)).collect();
        let mut file = edited(&empty, |t| {
            t.put_node(NODE, Nid(0), &data(NodeData::Blocks(model.clone())))
                .unwrap();
        });
        for round in 0..rounds / 6 {
            // Every other round another node holds the same tree, or one of its XBLOCKs.
            let shared = round % 2 == 1;
            let twin = model.clone();
            if shared {
                let bid = stored(&open(&file), NODE).0;
                file = edited(&file, |t| {
                    t.put_node(TWIN, Nid(0), &data(NodeData::Existing(bid)))
                        .unwrap();
                });
            }
            let count = match rng.below(4) {
                0 => 1 + rng.below(model.len() as u64) as usize,
                1 => model.len() + 1 + rng.below(1100) as usize,
                _ => model.len(),
            };
            let mut blocks = BTreeMap::new();
            let last_len = 1 + rng.below(FULL as u64) as usize;
            for i in model.len()..count {
                blocks.insert(i, block(&mut rng, FULL));
            }
            for _ in 0..rng.below(5) {
                let at = rng.below(count as u64) as usize;
                blocks.insert(at, block(&mut rng, FULL));
            }
            if count > model.len() {
                // What was last may have been short.
                let mut b = model[model.len() - 1].clone();
                b.resize(FULL, 7);
                blocks.entry(model.len() - 1).or_insert(b);
            }
            if count != model.len() || rng.below(2) == 0 {
                blocks.insert(count - 1, block(&mut rng, last_len));
            }
            model.truncate(count);
            for (i, b) in &blocks {
                if *i < model.len() {
                    model[*i].clone_from(b);
                } else {
                    model.push(b.clone());
                }
            }
            let before = open(&file);
            let base = stored(&before, NODE).0;
            let changed = blocks.len();
            file = edited(&file, |t| {
                let patch = DataPatch {
                    base,
                    count,
                    blocks,
                };
                t.put_node(NODE, Nid(0), &data(NodeData::Patched(patch)))
                    .unwrap();
            });
            let after = open(&file);
            assert_eq!(stored(&after, NODE).1, model);
            let new = (after.header().bid_next_block.0 - before.header().bid_next_block.0) / 4;
            let most = changed + changed.min(count.div_ceil(1021) + 1) + 1;
            assert!(new as usize <= most, "{new} blocks for {changed} changes");
            if shared {
                assert_eq!(stored(&after, TWIN).1, twin, "the other holder's tree");
            }
        }
    }
}

#[test]
fn a_patch_that_changes_nothing_writes_nothing_and_a_wrong_one_is_refused() {
    let mut rng = Rng(5);
    let blocks: Vec<_> = (0..3).map(|_| block(&mut rng, FULL)).collect();
    let mut short = blocks.clone();
    short.push(vec![1; 100]);
    let file = edited(&file(), |t| {
        t.put_node(NODE, Nid(0), &data(NodeData::Blocks(short.clone())))
            .unwrap();
    });
    let ndb = open(&file);
    let base = stored(&ndb, NODE).0;
    let same = edited(&file, |t| {
        let patch = DataPatch {
            base,
            count: 4,
            blocks: BTreeMap::from([(1, blocks[1].clone()), (3, vec![1; 100])]),
        };
        t.put_node(NODE, Nid(0), &data(NodeData::Patched(patch)))
            .unwrap();
    });
    assert_eq!(stored(&open(&same), NODE).0, base);
    let wrong = |count: usize, blocks: BTreeMap<usize, Vec<u8>>| {
        let mut t = NdbTransaction::begin(open(&file)).unwrap();
        let patch = DataPatch {
            base,
            count,
            blocks,
        };
        let done = t.put_node(NODE, Nid(0), &data(NodeData::Patched(patch)));
        assert!(matches!(done, Err(PstError::Refused(_))), "{done:?}");
        assert!(
            t.finish().is_err(),
            "a half-done edit must not be committed"
        );
    };
    // A short block in the middle, one behind the end, an empty one, a hole, and a short block that
    // is last no more.
    wrong(4, BTreeMap::from([(1, vec![0; 10])]));
    wrong(4, BTreeMap::from([(4, vec![0; 10])]));
    wrong(4, BTreeMap::from([(3, Vec::new())]));
    wrong(6, BTreeMap::from([(3, vec![0; FULL]), (5, vec![0; 10])]));
    wrong(5, BTreeMap::from([(4, vec![0; 10])]));
}

type Sub = BTreeMap<Nid, Vec<u8>>;

fn subnodes(ndb: &Ndb, nid: Nid) -> (Bid, Sub) {
    let bid = ndb.node(nid).unwrap().unwrap().bid_sub;
    let read = |bid: Bid| ndb.data(bid).unwrap().read_all(ndb, 1 << 20).unwrap();
    let all = ndb.subnodes(bid).unwrap();
    for (nid, entry) in all.iter().step_by(37) {
        assert_eq!(ndb.subnode(bid, *nid).unwrap().as_ref(), Some(entry));
    }
    assert_eq!(
        ndb.last_subnode(bid).unwrap().map(|e| e.nid),
        all.keys().last().copied()
    );
    assert!(ndb.subnode(bid, Nid(0xFFFF_FFFF)).unwrap().is_none());
    (
        bid,
        all.into_iter()
            .map(|(n, e)| (n, read(e.bid_data)))
            .collect(),
    )
}

#[test]
fn a_patched_subnode_tree_is_the_tree_that_a_whole_write_leaves() {
    let mut rng = Rng(0xD1B5_4A32_D192_ED03);
    let empty = file();
    let nid = |n: u64| Nid::new(NidType::LTP, 0x401 + n as u32);
    for start in [0u64, 1, 339, 340, 341, 2_000] {
        let mut model: Sub = (0..start)
            .map(|n| (nid(3 * n), vec![n as u8; 20]))
            .collect();
        let whole = |model: &Sub| NodeContent {
            data: NodeData::Bytes(vec![1]),
            subnodes: Subnodes::Tree(
                model
                    .iter()
                    .map(|(n, b)| (*n, data(NodeData::Bytes(b.clone()))))
                    .collect(),
            ),
        };
        let mut file = edited(&empty, |t| {
            t.put_node(NODE, Nid(0), &whole(&model)).unwrap();
        });
        for round in 0..6 {
            let (base, _) = subnodes(&open(&file), NODE);
            let shared = round % 2 == 1;
            let twin = model.clone();
            if shared {
                file = edited(&file, |t| {
                    let content = NodeContent {
                        data: NodeData::Bytes(vec![2]),
                        subnodes: Subnodes::Existing(base),
                    };
                    t.put_node(TWIN, Nid(0), &content).unwrap();
                });
            }
            let mut changes = BTreeMap::new();
            for _ in 0..[0, 1, 3, 400][rng.below(4) as usize] {
                let n = nid(rng.below(3 * start + 9));
                if rng.below(3) == 0 {
                    model.remove(&n);
                    changes.insert(n, None);
                } else {
                    let b = vec![rng.next() as u8; 1 + rng.below(9_000) as usize];
                    model.insert(n, b.clone());
                    changes.insert(n, Some(data(NodeData::Bytes(b))));
                }
            }
            if round == 5 {
                // Everything goes.
                model.keys().for_each(|n| {
                    changes.insert(*n, None);
                });
                model.clear();
            }
            file = edited(&file, |t| {
                let content = NodeContent {
                    data: NodeData::Bytes(vec![1]),
                    subnodes: Subnodes::Patched(SubnodePatch { base, changes }),
                };
                t.put_node(NODE, Nid(0), &content).unwrap();
            });
            let after = open(&file);
            assert_eq!(subnodes(&after, NODE).1, model);
            if shared {
                assert_eq!(subnodes(&after, TWIN).1, twin, "the other holder's tree");
            }
        }
    }
}
