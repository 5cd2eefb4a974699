//! Transactions against a model: what is put is read back, what is replaced is given back.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use pst::check::{Severity, check};
use pst::ndb::{CryptMethod, Format, Ndb, NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::{Bid, Nid, NidType, PstError};
use support::{FORMATS, Rng, bytes, committed, editable_files, empty_ndb, pffinfo_accepts, shared};

/// A node as the model knows it.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    parent: Nid,
    data: Vec<u8>,
    subnodes: BTreeMap<Nid, Model>,
}

impl Model {
    fn content(&self) -> NodeContent {
        let subnodes = self
            .subnodes
            .iter()
            .map(|(nid, m)| (*nid, m.content()))
            .collect();
        NodeContent {
            data: NodeData::Bytes(self.data.clone()),
            subnodes: Subnodes::Tree(subnodes),
        }
    }
}

fn read(ndb: &Ndb, parent: Nid, data: Bid, sub: Bid) -> Model {
    Model {
        parent,
        data: ndb.data(data).unwrap().read_all(ndb, u64::MAX).unwrap(),
        subnodes: ndb
            .subnodes(sub)
            .unwrap()
            .values()
            .map(|e| (e.nid, read(ndb, Nid(0), e.bid_data, e.bid_sub)))
            .collect(),
    }
}

fn read_node(ndb: &Ndb, nid: Nid) -> Option<Model> {
    ndb.node(nid)
        .unwrap()
        .map(|n| read(ndb, n.nid_parent, n.bid_data, n.bid_sub))
}

fn open(data: &[u8]) -> Arc<Ndb> {
    Arc::new(Ndb::open(bytes(data.to_vec())).unwrap())
}

/// Every node equals the model's, and the check finds nothing at all.
fn assert_equal(data: &[u8], model: &BTreeMap<Nid, Model>) {
    let ndb = open(data);
    let nodes: Vec<Nid> = ndb.nodes().map(|n| n.unwrap().nid).collect();
    assert_eq!(nodes, model.keys().copied().collect::<Vec<_>>());
    for (nid, expected) in model {
        assert!(
            read_node(&ndb, *nid).as_ref() == Some(expected),
            "node {nid} differs"
        );
    }
    let findings = check(&ndb);
    assert!(findings.is_empty(), "{findings:#?}");
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        node: u8,
        len: usize,
        seed: u64,
        subs: Vec<(u8, usize)>,
    },
    Append {
        node: u8,
        len: usize,
    },
    Delete(u8),
    SetParent(u8, u8),
    View,
    Commit,
}

fn nid(n: u8) -> Nid {
    Nid::new(NidType([2, 4, 8, 13][n as usize % 4]), 0x400 + u32::from(n))
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![
        8 => 0..200usize,
        4 => 8170..8190usize,
        4 => 0..100_000usize,
        1 => (0..20usize).prop_map(|n| if n == 0 { 3_000_000 } else { n * 50 }),
    ];
    let sub_len = prop_oneof![Just(0usize), 1..300usize, 0..20_000usize];
    let node = 0..40u8;
    prop_oneof![
        8 => (node.clone(), len, 1..u64::MAX, prop::collection::vec((0..9u8, sub_len), 0..4))
            .prop_map(|(node, len, seed, subs)| Op::Put { node, len, seed, subs }),
        2 => (node.clone(), 1..9000usize).prop_map(|(node, len)| Op::Append { node, len }),
        4 => node.clone().prop_map(Op::Delete),
        1 => (node, 0..40u8).prop_map(|(a, b)| Op::SetParent(a, b)),
        1 => Just(Op::View),
        2 => Just(Op::Commit),
    ]
}

fn run(ops: &[Op], format: &'static Format, crypt: CryptMethod) {
    let mut data = empty_ndb(format, crypt);
    let mut model: BTreeMap<Nid, Model> = BTreeMap::new();
    assert_equal(&data, &model);
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    let mut views: Vec<(Arc<Ndb>, BTreeMap<Nid, Model>)> = Vec::new();
    for op in ops.iter().chain([&Op::Commit]) {
        match op {
            Op::Put {
                node,
                len,
                seed,
                subs,
            } => {
                let mut rng = Rng(*seed);
                let subnodes = subs
                    .iter()
                    .map(|(i, len)| {
                        let nested = if i % 3 == 0 {
                            let inner = Model {
                                parent: Nid(0),
                                data: rng.bytes(len / 2),
                                subnodes: BTreeMap::new(),
                            };
                            BTreeMap::from([(Nid(0x3F), inner)])
                        } else {
                            BTreeMap::new()
                        };
                        let sub = Model {
                            parent: Nid(0),
                            data: rng.bytes(*len),
                            subnodes: nested,
                        };
                        (Nid(0x5F + 0x20 * u32::from(*i)), sub)
                    })
                    .collect();
                let new = Model {
                    parent: Nid(0x122),
                    data: rng.bytes(*len),
                    subnodes,
                };
                tx.put_node(nid(*node), new.parent, &new.content()).unwrap();
                model.insert(nid(*node), new);
            }
            Op::Append { node, len } => {
                if let Some(m) = model.get_mut(&nid(*node)) {
                    m.data.extend(Rng(*len as u64 + 1).bytes(*len));
                    tx.put_node(nid(*node), m.parent, &m.content()).unwrap();
                }
            }
            Op::Delete(node) => {
                let result = tx.delete_node(nid(*node));
                assert_eq!(result.is_ok(), model.remove(&nid(*node)).is_some());
            }
            Op::SetParent(node, parent) => {
                let result = tx.set_parent(nid(*node), nid(*parent));
                match model.get_mut(&nid(*node)) {
                    Some(m) => {
                        m.parent = nid(*parent);
                        result.unwrap();
                    }
                    None => assert!(matches!(result, Err(PstError::NotFound { .. }))),
                }
            }
            Op::View => {
                if views.len() > 2 {
                    views.clear();
                }
                views.push((tx.view().unwrap(), model.clone()));
            }
            Op::Commit => {
                for (view, then) in &views {
                    for (nid, expected) in then {
                        assert!(
                            read_node(view, *nid).as_ref() == Some(expected),
                            "view: {nid}"
                        );
                    }
                    assert_eq!(view.nodes().count(), then.len());
                }
                views.clear();
                let before = data.clone();
                let set = tx.finish().unwrap();
                data = committed(&data, &set);
                assert_equal(&data, &model);
                assert!(open(&data).header().unique >= open(&before).header().unique);
                tx = NdbTransaction::begin(open(&data)).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_edits_equal_the_model(
        ops in prop::collection::vec(op(), 1..60),
        crypt in 0..3u8,
        format in 0..FORMATS.len(),
    ) {
        run(&ops, FORMATS[format], CryptMethod::from_byte(crypt).unwrap());
    }
}

fn simple(data: Vec<u8>) -> NodeContent {
    NodeContent {
        data: NodeData::Bytes(data),
        subnodes: Subnodes::None,
    }
}

#[test]
fn large_nodes_many_nodes_many_subnodes() {
    FORMATS
        .into_iter()
        .for_each(large_nodes_many_nodes_many_subnodes_in);
}

fn large_nodes_many_nodes_many_subnodes_in(format: &'static Format) {
    let mut rng = Rng(42);
    let mut data = empty_ndb(format, CryptMethod::Permute);
    let mut model = BTreeMap::new();
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    let mut put = |tx: &mut NdbTransaction, nid: Nid, m: Model| {
        tx.put_node(nid, m.parent, &m.content()).unwrap();
        model.insert(nid, m);
    };
    // Blocks for one XBLOCK and some more need an XXBLOCK; as many entries for two SLBLOCKs and some
    // more an SIBLOCK.
    let big_len = format.max_data() * format.max_xblock() + 650_000;
    let subnode_count = 2 * format.max_slblock() as u32 + 20;
    let big = Model {
        parent: Nid(0),
        data: rng.bytes(big_len),
        subnodes: BTreeMap::new(),
    };
    put(&mut tx, Nid(0x2004), big);
    let subnodes = (1..=subnode_count)
        .map(|i| {
            let data = rng.bytes((i % 90) as usize);
            (
                Nid(i << 5 | 0x1F),
                Model {
                    parent: Nid(0),
                    data,
                    subnodes: BTreeMap::new(),
                },
            )
        })
        .collect();
    put(
        &mut tx,
        Nid(0x2024),
        Model {
            parent: Nid(7),
            data: vec![1],
            subnodes,
        },
    );
    for i in 0..3000u32 {
        let m = Model {
            parent: Nid(i),
            data: rng.bytes((i % 70) as usize),
            subnodes: BTreeMap::new(),
        };
        put(&mut tx, Nid(0x20_0004 + (i * 7919 % 3000) * 32), m);
    }
    let set = tx.finish().unwrap();
    data = committed(&data, &set);
    assert_equal(&data, &model);
    let ndb = open(&data);
    assert!(
        ndb.data(ndb.node(Nid(0x2004)).unwrap().unwrap().bid_data)
            .unwrap()
            .internal_bids()
            .len()
            == 3
    );
    assert_eq!(
        ndb.subnode_tree(ndb.node(Nid(0x2024)).unwrap().unwrap().bid_sub)
            .unwrap()
            .1
            .len(),
        4
    );
    pffinfo_accepts(&data);

    // A change of one byte copies one data block and the blocks and pages above it.
    let m = model.get_mut(&Nid(0x2004)).unwrap();
    m.data[4_000_000] ^= 1;
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    tx.put_node(Nid(0x2004), Nid(0), &m.content()).unwrap();
    let set = tx.finish().unwrap();
    println!("one byte of {big_len}: {} bytes written", set.payload());
    assert!(set.payload() < 64 * 1024);
    data = committed(&data, &set);
    assert_equal(&data, &model);

    // Equal content keeps its BIDs.
    let ndb = open(&data);
    let before = ndb.node(Nid(0x2024)).unwrap();
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    let m = &model[&Nid(0x2024)];
    assert_eq!(
        Some(tx.put_node(Nid(0x2024), m.parent, &m.content()).unwrap()),
        before
    );
    data = committed(&data, &tx.finish().unwrap());
    assert_equal(&data, &model);

    // Deleting all but a few lets the trees shrink, and the space is used again.
    let len = data.len();
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    for nid in model.keys().copied().collect::<Vec<_>>() {
        if nid.index() % 100 != 0 {
            tx.delete_node(nid).unwrap();
            model.remove(&nid);
        }
    }
    data = committed(&data, &tx.finish().unwrap());
    assert_equal(&data, &model);
    assert_eq!(data.len(), len);
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    tx.put_node(Nid(0x2044), Nid(0), &simple(rng.bytes(big_len - 1_000_000)))
        .unwrap();
    let set = tx.finish().unwrap();
    assert_eq!(set.target_len, len as u64, "freed space was not used again");
    data = committed(&data, &set);
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    for node in open(&data).nodes() {
        tx.delete_node(node.unwrap().nid).unwrap();
    }
    data = committed(&data, &tx.finish().unwrap());
    assert_equal(&data, &BTreeMap::new());
    let h = open(&data).header().clone();
    assert_eq!(open(&data).blocks().count(), 0);
    println!("free at the end: {} of {}", h.amap_free, h.file_eof);
}

#[test]
fn shared_blocks_are_counted() {
    FORMATS.into_iter().for_each(shared_blocks_are_counted_in);
}

fn shared_blocks_are_counted_in(format: &'static Format) {
    let mut data = empty_ndb(format, CryptMethod::Permute);
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    let big = Rng(5).bytes(30_000);
    let subs = Subnodes::Tree(BTreeMap::from([(Nid(0x3F), simple(big.clone()))]));
    let content = NodeContent {
        data: NodeData::Bytes(big.clone()),
        subnodes: subs,
    };
    let first = tx.put_node(Nid(0x404), Nid(0), &content).unwrap();
    let shared = NodeContent {
        data: NodeData::Existing(first.bid_data),
        subnodes: Subnodes::Existing(first.bid_sub),
    };
    tx.put_node(Nid(0x424), Nid(0), &shared).unwrap();
    assert_eq!(tx.block(first.bid_data).unwrap().unwrap().cref, 3);
    data = committed(&data, &tx.finish().unwrap());
    assert!(check(&open(&data)).is_empty(), "{:#?}", check(&open(&data)));

    // A node may be replaced by its own data with other subnodes.
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    let own = NodeContent {
        data: NodeData::Existing(first.bid_data),
        subnodes: Subnodes::None,
    };
    tx.put_node(Nid(0x404), Nid(0), &own).unwrap();
    data = committed(&data, &tx.finish().unwrap());
    assert!(check(&open(&data)).is_empty());

    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    tx.delete_node(Nid(0x404)).unwrap();
    data = committed(&data, &tx.finish().unwrap());
    let ndb = open(&data);
    assert!(check(&ndb).is_empty());
    assert_eq!(ndb.block(first.bid_data).unwrap().unwrap().cref, 2);
    assert_eq!(read_node(&ndb, Nid(0x424)).unwrap().data, big);
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    tx.delete_node(Nid(0x424)).unwrap();
    data = committed(&data, &tx.finish().unwrap());
    assert_eq!(open(&data).blocks().count(), 0);
    assert!(check(&open(&data)).is_empty());
}

#[test]
fn refused_edits() {
    FORMATS.into_iter().for_each(refused_edits_in);
}

fn refused_edits_in(format: &'static Format) {
    let data = empty_ndb(format, CryptMethod::Permute);
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    assert!(matches!(
        tx.delete_node(Nid(0x404)),
        Err(PstError::NotFound { .. })
    ));
    let big = NodeContent {
        data: NodeData::Blocks(vec![vec![0; format.max_data() + 1]]),
        subnodes: Subnodes::None,
    };
    assert!(matches!(
        tx.put_node(Nid(0x404), Nid(0), &big),
        Err(PstError::Limit { .. })
    ));
    assert!(matches!(tx.finish(), Err(PstError::Refused(_))));

    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    let none = NodeContent {
        data: NodeData::Existing(Bid(0x400)),
        subnodes: Subnodes::None,
    };
    assert!(matches!(
        tx.put_node(Nid(0x404), Nid(0), &none),
        Err(PstError::NotFound { .. })
    ));

    // An edit of nothing writes nothing.
    let tx = NdbTransaction::begin(open(&data)).unwrap();
    assert!(tx.finish().unwrap().is_empty());
}

#[test]
fn nids_are_handed_out_once() {
    FORMATS.into_iter().for_each(nids_are_handed_out_once_in);
}

fn nids_are_handed_out_once_in(format: &'static Format) {
    let mut data = empty_ndb(format, CryptMethod::Permute);
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    tx.put_node(
        Nid::new(NidType::NORMAL_MESSAGE, 0x1_0003),
        Nid(0),
        &simple(vec![1]),
    )
    .unwrap();
    let a = tx.alloc_nid(NidType::NORMAL_MESSAGE).unwrap();
    assert_eq!(a, Nid::new(NidType::NORMAL_MESSAGE, 0x1_0004));
    assert_eq!(tx.alloc_nid(NidType::NORMAL_FOLDER).unwrap(), Nid(0x8022));
    data = committed(&data, &tx.finish().unwrap());
    let mut tx = NdbTransaction::begin(open(&data)).unwrap();
    assert_eq!(
        tx.alloc_nid(NidType::NORMAL_MESSAGE).unwrap().index(),
        0x1_0005
    );
    assert_eq!(tx.alloc_nid(NidType::NORMAL_FOLDER).unwrap(), Nid(0x8042));
}

#[test]
fn the_same_edit_gives_the_same_bytes() {
    FORMATS
        .into_iter()
        .for_each(the_same_edit_gives_the_same_bytes_in);
}

fn the_same_edit_gives_the_same_bytes_in(format: &'static Format) {
    let data = empty_ndb(format, CryptMethod::Permute);
    let edit = || {
        let mut tx = NdbTransaction::begin(open(&data)).unwrap();
        for i in 0..300u32 {
            let content = simple(Rng(u64::from(i) + 1).bytes((i * 37 % 5000) as usize));
            tx.put_node(Nid(0x404 + (i * 31 % 300) * 32), Nid(0), &content)
                .unwrap();
            if i % 50 == 0 {
                tx.view().unwrap();
            }
        }
        tx.finish().unwrap()
    };
    assert_eq!(edit(), edit());
}

#[test]
fn real_files_stay_whole_under_edits() {
    let Some(dir) = shared() else { return };
    let donor = open(&std::fs::read(dir.join("corpus/enron.pst")).unwrap());
    for name in editable_files() {
        let original = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let before = open(&original);
        let nodes: Vec<Nid> = before.nodes().map(|n| n.unwrap().nid).collect();
        let mut expected: BTreeMap<Nid, Model> = nodes
            .iter()
            .map(|nid| (*nid, read_node(&before, *nid).unwrap()))
            .collect();
        let info = |ndb: &Ndb, code: &str| {
            check(ndb)
                .iter()
                .find(|f| f.code == code)
                .map(|f| f.detail.clone())
        };
        let (leaks, orphans) = (info(&before, "leaked"), info(&before, "block-orphan"));

        let mut tx = NdbTransaction::begin(Arc::clone(&before)).unwrap();
        // Store, maps and folders stay, so that other readers can open the result.
        let loose = nodes.iter().filter(|n| ![0x01, 0x02].contains(&n.kind().0));
        for (i, nid) in loose.enumerate() {
            match i % 5 {
                0 => {
                    let m = expected.get_mut(nid).unwrap();
                    m.data = Rng(i as u64 + 1).bytes(i * 311 % 20_000);
                    tx.put_node(*nid, m.parent, &m.content()).unwrap();
                }
                1 => {
                    tx.delete_node(*nid).unwrap();
                    expected.remove(nid);
                }
                _ => {}
            }
        }
        // Copies from another file keep their block boundaries.
        for (i, node) in donor.nodes().map(Result::unwrap).enumerate().step_by(9) {
            let new = tx.alloc_nid(NidType::NORMAL_MESSAGE).unwrap();
            let content = NodeContent {
                data: NodeData::Copy(Arc::clone(&donor), node.bid_data),
                subnodes: Subnodes::None,
            };
            tx.put_node(new, Nid(i as u32), &content).unwrap();
            let mut m = read(&donor, Nid(i as u32), node.bid_data, Bid::NONE);
            m.parent = Nid(i as u32);
            expected.insert(new, m);
        }
        let set = tx.finish().unwrap();
        let data = committed(&original, &set);
        let after = open(&data);
        assert_eq!(after.nodes().count(), expected.len(), "{name}");
        for (nid, m) in &expected {
            assert!(
                read_node(&after, *nid).as_ref() == Some(m),
                "{name}: node {nid}"
            );
        }
        let findings = check(&after);
        let bad: Vec<_> = findings
            .iter()
            .filter(|f| f.severity > Severity::Info)
            .collect();
        assert!(bad.is_empty(), "{name}: {bad:#?}");
        assert_eq!(
            (info(&after, "leaked"), info(&after, "block-orphan")),
            (leaks, orphans),
            "{name}"
        );
        assert_eq!(info(&after, "dlist"), None, "{name}");
        println!(
            "{name}: {} bytes written, {} -> {}",
            set.payload(),
            original.len(),
            data.len()
        );
        pffinfo_accepts(&data);

        // Recomputed maps give back what was leaked.
        let tx = NdbTransaction::begin_recomputed(after).unwrap();
        let data = committed(&data, &tx.finish().unwrap());
        let ndb = open(&data);
        assert_eq!(info(&ndb, "leaked"), None, "{name}");
        assert!(
            check(&ndb).iter().all(|f| f.severity == Severity::Info),
            "{name}"
        );
        for (nid, m) in &expected {
            assert!(
                read_node(&ndb, *nid).as_ref() == Some(m),
                "{name}: node {nid}"
            );
        }
    }
}

#[test]
fn growth_puts_every_map_page_where_it_is_due() {
    FORMATS
        .into_iter()
        .for_each(growth_puts_every_map_page_where_it_is_due_in);
}

fn growth_puts_every_map_page_where_it_is_due_in(format: &'static Format) {
    let mut data = empty_ndb(format, CryptMethod::None);
    let ndb = open(&data);
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    // 129 spans reach the first FMap page.
    let block = vec![0x5A; format.max_data()];
    let content = NodeContent {
        data: NodeData::Blocks(vec![block; 129 * 31]),
        subnodes: Subnodes::None,
    };
    tx.put_node(Nid(0x2004), Nid(0), &content).unwrap();
    data = committed(&data, &tx.finish().unwrap());
    let ndb = open(&data);
    assert!(check(&ndb).is_empty(), "{:#?}", check(&ndb));
    for (at, kind) in [
        (0x1F0_4400usize, pst::ndb::PageType::AMap),
        (0x1F0_4600, pst::ndb::PageType::PMap),
        (0x1F0_4800, pst::ndb::PageType::FMap),
    ] {
        pst::ndb::verify_page(format, &data[at..at + 512], kind, at as u64, None).unwrap();
    }
    pffinfo_accepts(&data);
}

#[test]
fn data_of_another_format_is_cut_anew_and_says_the_same() {
    let mut rng = Rng(8);
    let lengths = [0, 1, 8176, 8177, 8180, 8181, 100_000, 3 * 8176, 3 * 8180];
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (FORMATS[from], FORMATS[to]);
        let mut source = empty_ndb(from, CryptMethod::Permute);
        let mut tx = NdbTransaction::begin(open(&source)).unwrap();
        let values: Vec<Vec<u8>> = lengths.iter().map(|n| rng.bytes(*n)).collect();
        for (i, value) in values.iter().enumerate() {
            let nid = Nid(0x404 + 32 * i as u32);
            tx.put_node(nid, Nid(0), &simple(value.clone())).unwrap();
        }
        // Blocks that are not full, as other writers leave them.
        let odd: Vec<Vec<u8>> = [7000, 1, 8176, 300].map(|n| rng.bytes(n)).into();
        let content = NodeContent {
            data: NodeData::Blocks(odd.clone()),
            subnodes: Subnodes::None,
        };
        tx.put_node(Nid(0x4404), Nid(0), &content).unwrap();
        source = committed(&source, &tx.finish().unwrap());
        let source = open(&source);

        let mut data = empty_ndb(to, CryptMethod::Cyclic);
        let mut tx = NdbTransaction::begin(open(&data)).unwrap();
        for node in source.nodes().map(Result::unwrap) {
            let content = NodeContent {
                data: NodeData::Copy(Arc::clone(&source), node.bid_data),
                subnodes: Subnodes::None,
            };
            tx.put_node(node.nid, Nid(0), &content).unwrap();
        }
        data = committed(&data, &tx.finish().unwrap());
        let target = open(&data);
        assert!(check(&target).is_empty(), "{:#?}", check(&target));
        for (i, value) in values.iter().chain([&odd.concat()]).enumerate() {
            let nid = if i < values.len() {
                Nid(0x404 + 32 * i as u32)
            } else {
                Nid(0x4404)
            };
            assert!(
                &read_node(&target, nid).unwrap().data == value,
                "node {nid}"
            );
        }
    }
}
