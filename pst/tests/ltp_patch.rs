//! Editing a stored table row by row against a plain model and against building it anew
//! ([MS-PST] 2.6.2.4): the same rows under the same ids with the same cells, every value found, no
//! space lost in the file, and a table that the checks find nothing wrong with. A patch that frees a
//! value which another row needs, or forgets a row that it moved, fails here.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use pst::check::{check, check_ltp};
use pst::ltp::{
    PropBag, PropTag, PropType, PropValue, RowChange, TableContext, TableEdit, TableLookup,
    TablePatch,
};
use pst::messaging::create_empty_as;
use pst::ndb::format::{ANSI, UNICODE};
use pst::ndb::{CryptMethod, Format, Ndb, NdbTransaction};
use pst::{Nid, NidType};
use storage::MemStorage;
use support::{Rng, bytes};

const TABLE: Nid = Nid::new(NidType::CONTENTS_TABLE, 0x600);
const WHOLE: Nid = Nid::new(NidType::CONTENTS_TABLE, 0x601);

/// A column of every kind that a table can have.
fn columns() -> Vec<PropTag> {
    [
        (0x6001, 0x0002), // integers and other numbers of 2, 4 and 8 bytes
        (0x6002, 0x0003),
        (0x6003, 0x0004),
        (0x6004, 0x0005),
        (0x6005, 0x0006),
        (0x6006, 0x0007),
        (0x6007, 0x000A),
        (0x6008, 0x000B),
        (0x6009, 0x0014),
        (0x600A, 0x0040),
        (0x600B, 0x0048), // a GUID: 16 bytes, in the heap
        (0x600C, 0x001E),
        (0x600D, 0x001F),
        (0x600E, 0x0102),
        (0x600F, 0x1003), // multi-valued
        (0x6010, 0x101F),
        (0x6011, 0x1102),
    ]
    .map(|(id, kind)| PropTag::new(id, PropType(kind)))
    .to_vec()
}

fn value(tag: PropTag, rng: &mut Rng) -> Option<PropValue> {
    if rng.below(5) == 0 {
        return None;
    }
    let len = match tag.prop_type().fixed_size() {
        Some(n) => n,
        None => match rng.below(60) {
            0 => 0,
            1 => [3579, 3580, 3581, 8176, 8177][rng.below(5) as usize],
            2 => 4_000 + rng.below(20_000) as usize,
            3 if rng.below(20) == 0 => 70_000,
            4..12 => rng.below(900) as usize,
            _ => 1 + rng.below(60) as usize,
        },
    };
    Some(PropValue::new(tag, rng.bytes(len)))
}

fn cells(seed: u64) -> PropBag {
    let mut rng = Rng(seed | 1);
    rng.next();
    columns()
        .into_iter()
        .filter_map(|tag| value(tag, &mut rng))
        .collect()
}

/// What the table must hold: ids in matrix order, cells and versions.
#[derive(Clone, Default)]
struct Model {
    order: Vec<u32>,
    rows: BTreeMap<u32, (u32, PropBag)>,
}

impl Model {
    /// A deleted row leaves its place to the last one, or moves up all behind it.
    fn delete(&mut self, id: u32, moves_last: bool) {
        self.rows.remove(&id);
        if let Some(at) = self.order.iter().position(|i| *i == id) {
            if moves_last {
                self.order.swap_remove(at);
            } else {
                self.order.remove(at);
            }
        }
    }

    fn put(&mut self, id: u32, version: u32, props: PropBag) {
        if self.rows.insert(id, (version, props)).is_none() {
            self.order.push(id);
        }
    }
}

fn open(file: &MemStorage) -> Arc<Ndb> {
    Arc::new(Ndb::open(bytes(file.to_vec())).unwrap())
}

fn equals(ndb: &Arc<Ndb>, nid: Nid, model: &Model) {
    let n = ndb.node(nid).unwrap().unwrap();
    let table = TableContext::open(ndb, n.bid_data, n.bid_sub).unwrap();
    assert_eq!(table.row_ids().collect::<Vec<_>>(), model.order);
    let lookup = TableLookup::open(ndb, n.bid_data, n.bid_sub).unwrap();
    assert_eq!(lookup.matrix_rows().unwrap(), model.order.len());
    for row in table.rows() {
        let row = row.unwrap();
        let (version, props) = &model.rows[&row.id];
        assert_eq!(row.version, *version);
        assert!(row.props.same_content(props).unwrap(), "row {:#x}", row.id);
    }
    for id in model.order.iter().step_by(29) {
        let row = lookup.row_by_id(*id).unwrap().unwrap();
        assert!(row.props.same_content(&model.rows[id].1).unwrap());
    }
    assert!(lookup.row_by_id(0xFFFF_FFFE).unwrap().is_none());
    let findings: Vec<_> = check(ndb).into_iter().chain(check_ltp(ndb)).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

#[derive(Default)]
struct Seen {
    patched: usize,
    built: usize,
    /// Heap blocks of the patched table and of the one built anew, at the end.
    blocks: (usize, usize),
    operations: usize,
}

/// `start` rows, then batches of (operation, row, seed) on both a patch and a table built anew.
fn run(format: &'static Format, start: u32, batches: &[Vec<(u8, u32, u64)>], seen: &mut Seen) {
    let empty = create_empty_as(&[9; 16], format, CryptMethod::Permute).unwrap();
    let file = MemStorage::from(empty);
    let ndb = open(&file);
    let mut model = Model::default();
    let mut edit = TableEdit::new(&columns()).unwrap();
    for n in 0..start {
        let (id, props) = (0x20_0004 + 32 * n, cells(u64::from(n) * 77 + 5));
        edit.put_row(id, &props).unwrap();
        model.put(id, n + 1, props);
    }
    let mut whole_model = model.clone();
    let mut t = NdbTransaction::begin(Arc::clone(&ndb)).unwrap();
    t.put_node(TABLE, Nid(0), &edit.build(Some(&ndb)).unwrap())
        .unwrap();
    t.put_node(WHOLE, Nid(0), &edit.build(Some(&ndb)).unwrap())
        .unwrap();
    t.finish().unwrap().commit(&file).unwrap();
    let mut version = start;

    for batch in batches {
        let ndb = open(&file);
        let n = ndb.node(TABLE).unwrap().unwrap();
        let mut patch = TablePatch::open(&ndb, n.bid_data, n.bid_sub).unwrap();
        let w = ndb.node(WHOLE).unwrap().unwrap();
        let mut whole = TableEdit::open(&ndb, w.bid_data, w.bid_sub).unwrap();
        let mut rebuilt = TableEdit::open(&ndb, n.bid_data, n.bid_sub).unwrap();
        for (op, at, seed) in batch {
            let old =
                (!model.order.is_empty()).then(|| model.order[*at as usize % model.order.len()]);
            let (id, props) = match (op % 8, old) {
                (0..3, _) => (0x20_0004 + 32 * (at % 5_000), Some(cells(*seed))),
                (3..5, Some(id)) => (id, Some(cells(*seed))),
                (5, Some(id)) => {
                    // One cell changes, the others stay.
                    let mut props = model.rows[&id].1.clone();
                    let tag = columns()[*seed as usize % columns().len()];
                    match value(tag, &mut Rng(*seed | 1)) {
                        Some(v) => props.insert(v),
                        None => props.remove(tag.id()),
                    };
                    (id, Some(props))
                }
                (6..8, Some(id)) => (id, None),
                _ => continue,
            };
            seen.operations += 1;
            let existed = model.rows.get(&id).cloned();
            match props {
                Some(props) => {
                    let same = match &existed {
                        Some((_, old)) => old.same_content(&props).unwrap(),
                        None => false,
                    };
                    if !same {
                        version += 1;
                    }
                    let mut next = |_| version;
                    whole.put_row_as(id, &props, &mut next).unwrap();
                    let change = match &mut patch {
                        Some(p) => p.put_row(id, &props, &mut next).unwrap(),
                        None => {
                            rebuilt.put_row_as(id, &props, &mut next).unwrap();
                            RowChange::Added
                        }
                    };
                    if patch.is_some() {
                        assert_eq!(matches!(change, RowChange::Same), same);
                        assert_eq!(matches!(change, RowChange::Added), existed.is_none());
                    }
                    if !same {
                        model.put(id, version, props.clone());
                        whole_model.put(id, version, props);
                    }
                }
                None => {
                    whole.delete_row(id);
                    match &mut patch {
                        Some(p) => {
                            let before = p.delete_row(id).unwrap().unwrap();
                            let (_, old) = existed.unwrap();
                            assert_eq!(before.i32(0x6002), old.i32(0x6002));
                            assert!(p.delete_row(id).unwrap().is_none());
                        }
                        None => assert!(rebuilt.delete_row(id)),
                    }
                    model.delete(id, patch.is_some());
                    whole_model.delete(id, false);
                }
            }
            if let Some(p) = &patch {
                assert_eq!(p.row_count(), model.order.len());
                if p.row_count() == 0 {
                    return;
                }
            }
        }
        let content = match patch {
            Some(p) => {
                seen.patched += 1;
                p.finish().unwrap()
            }
            None => {
                seen.built += 1;
                rebuilt.build(Some(&ndb)).unwrap()
            }
        };
        let mut t = NdbTransaction::begin(Arc::clone(&ndb)).unwrap();
        t.put_node(TABLE, Nid(0), &content).unwrap();
        t.put_node(WHOLE, Nid(0), &whole.build(Some(&ndb)).unwrap())
            .unwrap();
        t.finish().unwrap().commit(&file).unwrap();
        let ndb = open(&file);
        equals(&ndb, TABLE, &model);
        equals(&ndb, WHOLE, &whole_model);
        let blocks = |nid| {
            let bid = ndb.node(nid).unwrap().unwrap().bid_data;
            ndb.data(bid).unwrap().block_count()
        };
        seen.blocks = (blocks(TABLE), blocks(WHOLE));
        assert_eq!(
            model.rows.keys().collect::<Vec<_>>(),
            whole_model.rows.keys().collect::<Vec<_>>()
        );
    }
}

fn cases() -> u32 {
    std::env::var("PST_PATCH_CASES").map_or(24, |n| n.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_patched_table_is_the_model(
        start in 0u32..700,
        batches in prop::collection::vec(prop::collection::vec(any::<(u8, u32, u64)>(), 0..60), 1..6),
    ) {
        let format = if start % 2 == 0 { &UNICODE } else { &ANSI };
        run(format, start, &batches, &mut Seen::default());
    }
}

#[test]
fn thousands_of_edits_of_one_table_find_the_room_that_they_left() {
    let rounds = std::env::var("PST_PATCH_ROUNDS").map_or(12, |n| n.parse().unwrap());
    let mut rng = Rng(42);
    let batches: Vec<Vec<(u8, u32, u64)>> = (0..rounds)
        .map(|_| {
            (0..200)
                .map(|_| (rng.next() as u8, rng.next() as u32, rng.next()))
                .collect()
        })
        .collect();
    let mut seen = Seen::default();
    run(&UNICODE, 1_500, &batches, &mut seen);
    println!(
        "{} operations, {} batches patched, {} built; {:?} heap blocks",
        seen.operations, seen.patched, seen.built, seen.blocks
    );
    assert!(seen.blocks.0 <= seen.blocks.1 * 3 / 2, "{:?}", seen.blocks);
    assert_eq!(
        seen.patched,
        batches.len(),
        "a regular table must not be built anew"
    );
}
