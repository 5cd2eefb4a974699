//! Each finding of the check of heaps, properties and tables is made to happen.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::check::{Severity, check_ltp};
use pst::ltp::{
    NodeSource, PropBag, PropTag, PropType, PropValue, PropertyContext, TableBuilder, TableEdit,
    build_pc,
};
use pst::ndb::{Ndb, NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType, PstError};
use storage::MemStorage;
use support::bytes;

const FOLDER: Nid = Nid::new(NidType::NORMAL_FOLDER, 0x401);
const TABLE: Nid = Nid::new(NidType::CONTENTS_TABLE, 0x401);

/// The findings about a file that holds this one node, as (code, severity).
fn findings(nid: Nid, content: &NodeContent) -> Vec<(&'static str, Severity)> {
    let base = Ndb::create_empty_ndb();
    let mut t = NdbTransaction::begin(Arc::new(Ndb::open(bytes(base.clone())).unwrap())).unwrap();
    t.put_node(nid, Nid(0x122), content).unwrap();
    let storage = MemStorage::from(base);
    t.finish().unwrap().commit(&storage).unwrap();
    let ndb = Arc::new(Ndb::open(Arc::new(storage)).unwrap());
    check_ltp(&ndb)
        .into_iter()
        .map(|f| (f.code, f.severity))
        .collect()
}

fn folder() -> NodeContent {
    let bag: PropBag = [
        PropValue::string(0x3001, "Inbox"),
        PropValue::i32(0x3602, 2),
        PropValue::i32(0x3603, 1),
        PropValue::time(0x3007, 1),
        PropValue::binary(0x3613, vec![1; 5000]),
    ]
    .into_iter()
    .collect();
    build_pc(&bag, None).unwrap()
}

fn table() -> NodeContent {
    let columns = [
        PropTag::new(0x0037, PropType::UNICODE),
        PropTag::new(0x0E08, PropType::I32),
    ];
    let mut t = TableBuilder::new(&columns).unwrap();
    for id in [0x0020_0024, 0x0020_0044, 0x0020_0064] {
        let row: PropBag = [
            PropValue::string(0x0037, "subject"),
            PropValue::i32(0x0E08, 3),
        ]
        .into_iter()
        .collect();
        t.row(id, &row).unwrap();
    }
    t.build(None).unwrap()
}

/// Content with its first heap block changed.
fn with(mut content: NodeContent, change: impl FnOnce(&mut Vec<u8>)) -> NodeContent {
    let NodeData::Blocks(blocks) = &mut content.data else {
        panic!("blocks")
    };
    change(&mut blocks[0]);
    content
}

fn word(b: &[u8], at: usize) -> usize {
    u16::from_le_bytes([b[at], b[at + 1]]).into()
}

/// Where item `n` (1-based) begins in a block.
fn item(b: &[u8], n: usize) -> usize {
    word(b, word(b, 0) + 4 + 2 * (n - 1))
}

fn hid_item(b: &[u8], at: usize) -> usize {
    item(b, word(b, at) >> 5)
}

#[test]
fn what_our_builders_make_has_no_findings() {
    assert_eq!(findings(FOLDER, &folder()), []);
    assert_eq!(findings(TABLE, &table()), []);
}

#[test]
fn heaps_of_the_wrong_kind_or_shape_are_found() {
    let expect = |content: NodeContent, code, severity| {
        let found = findings(FOLDER, &content);
        assert!(found.contains(&(code, severity)), "{code}: {found:?}");
    };
    expect(table(), "heap", Severity::Error);
    expect(with(folder(), |b| b[2] = 0), "heap", Severity::Error);
    expect(
        with(folder(), |b| b[3] = 0xAC),
        "heap-reserved",
        Severity::Info,
    );
    expect(with(folder(), |b| b[8] = 7), "heap-fill", Severity::Info);
    expect(with(folder(), |b| b[1] = 0xFF), "heap", Severity::Error);
    let map = |b: &[u8]| word(b, 0);
    expect(
        with(folder(), |b| {
            let at = map(b);
            b[at + 2] = 1;
        }),
        "heap-free-count",
        Severity::Info,
    );
    expect(
        with(folder(), |b| {
            let at = map(b) + 4;
            b[at] = 8;
        }),
        "heap-first-item",
        Severity::Warning,
    );
    expect(
        with(folder(), |b| {
            let at = map(b) + 6;
            b[at] = 2;
        }),
        "heap-map",
        Severity::Error,
    );
}

#[test]
fn properties_out_of_order_or_reach_are_found() {
    let records = |b: &[u8]| hid_item(b, item(b, 1) + 4);
    let found = findings(
        FOLDER,
        &with(folder(), |b| {
            let at = records(b);
            let (a, c) = (b[at..at + 8].to_vec(), b[at + 8..at + 16].to_vec());
            b[at..at + 8].copy_from_slice(&c);
            b[at + 8..at + 16].copy_from_slice(&a);
        }),
    );
    assert_eq!(found, [("bth-order", Severity::Error)]);

    // 0x3001 is first: its value gets a HID that no block has, then one that is not the
    // property's.
    let found = findings(
        FOLDER,
        &with(folder(), |b| {
            let at = records(b) + 6;
            b[at] = 9;
        }),
    );
    assert_eq!(found, [("property-value", Severity::Error)]);
    let mut lost = folder();
    lost.subnodes = Subnodes::None;
    assert_eq!(
        findings(FOLDER, &lost),
        [("property-value", Severity::Error)]
    );

    // 0x3007 is second: eight bytes of time become the bytes of the string.
    let found = findings(
        FOLDER,
        &with(folder(), |b| {
            let at = records(b);
            let value = b[at + 4..at + 8].to_vec();
            b[at + 12..at + 16].copy_from_slice(&value);
        }),
    );
    assert_eq!(found, [("property-size", Severity::Warning)]);
    let found = findings(
        FOLDER,
        &with(folder(), |b| {
            let at = item(b, 1);
            b[at] = 0;
        }),
    );
    assert_eq!(found, [("properties", Severity::Error)]);
}

#[test]
fn tables_whose_index_and_rows_disagree_are_found() {
    let index = |b: &[u8]| hid_item(b, item(b, 1) + 4);
    let info = |b: &[u8]| item(b, 2);
    let rows = |b: &[u8]| hid_item(b, info(b) + 14);
    let expect = |code, severity, change: &dyn Fn(&mut Vec<u8>)| {
        let found = findings(TABLE, &with(table(), |b| change(b)));
        assert!(found.contains(&(code, severity)), "{code}: {found:?}");
    };
    expect("table-row-twice", Severity::Error, &|b| {
        let at = index(b) + 4;
        b[at] = 1;
    });
    expect("table-row", Severity::Error, &|b| {
        let at = index(b) + 4;
        b[at] = 99;
    });
    expect("table-row-id", Severity::Error, &|b| {
        let at = rows(b);
        b[at] ^= 0xE0;
    });
    expect("bth-order", Severity::Error, &|b| {
        let at = index(b);
        b[at + 2] = 0x50;
    });
    expect("table-columns", Severity::Warning, &|b| {
        let at = info(b) + 22;
        let (x, y) = (b[at..at + 8].to_vec(), b[at + 8..at + 16].to_vec());
        b[at..at + 8].copy_from_slice(&y);
        b[at + 8..at + 16].copy_from_slice(&x);
    });
    expect("table", Severity::Error, &|b| {
        let at = info(b);
        b[at + 8] = 0;
    });
    // The record of the last row leaves the index; its bytes stay in the matrix.
    expect("table-unlisted-rows", Severity::Info, &|b| {
        let at = item(b, 1) + 4;
        b[at..at + 4].fill(0);
    });
}

/// One long value, named by thousands of properties or cells: the file is small, what it claims
/// is not.
#[test]
fn values_named_too_often_are_refused_before_they_fill_memory() {
    let bag: PropBag = (1..=3000u16)
        .map(|id| PropValue::binary(id, if id == 1 { vec![5; 60_000] } else { vec![9] }))
        .collect();
    let mut content = build_pc(&bag, None).unwrap();
    let long = 0x803F_u32.to_le_bytes();
    let NodeData::Blocks(blocks) = &mut content.data else {
        panic!("blocks")
    };
    for b in blocks.iter_mut() {
        // Every record {id, type 0x0102, HID} of a leaf now names the subnode.
        for at in 2..b.len() - 8 {
            if b[at + 2..at + 4] == [0x02, 0x01] && b[at + 4] & 0x1F == 0 && b[at + 1] < 0x10 {
                b[at + 4..at + 8].copy_from_slice(&long);
            }
        }
    }
    let pc = PropertyContext::open_source(&NodeSource::built(content)).unwrap();
    assert!(matches!(pc.bag(), Err(PstError::Limit { .. })));
    let (some, errors) = pc.bag_lenient();
    assert!(
        !errors.is_empty() && some.len() < 100,
        "{} of 3000",
        some.len()
    );

    let content = greedy_table();
    let class: PropBag = [PropValue::string(0x001A, "IPM.Note")]
        .into_iter()
        .collect();
    let mut message = build_pc(&class, None).unwrap();
    let source = NodeSource::built(content.clone());
    assert!(matches!(
        TableEdit::open_source(&source),
        Err(PstError::Limit { .. })
    ));
    // As the recipients of a message, they are read with it.
    message.subnodes = Subnodes::Tree([(Nid::RECIPIENT_TABLE, content)].into());
    let base = Ndb::create_empty_ndb();
    let mut t = NdbTransaction::begin(Arc::new(Ndb::open(bytes(base.clone())).unwrap())).unwrap();
    let nid = Nid::new(NidType::NORMAL_MESSAGE, 0x900);
    t.put_node(nid, Nid(0x122), &message).unwrap();
    let storage = MemStorage::from(base);
    t.finish().unwrap().commit(&storage).unwrap();
    let read = pst::Pst::open(Arc::new(storage)).unwrap().message(nid);
    assert!(matches!(read, Err(PstError::Limit { .. })));
}

/// Many cells that all name one long value.
fn greedy_table() -> NodeContent {
    let columns: Vec<_> = (1..=200)
        .map(|id| PropTag::new(id, PropType::BINARY))
        .collect();
    let mut t = TableBuilder::new(&columns).unwrap();
    let row: PropBag = (1..=200).map(|id| PropValue::binary(id, vec![1])).collect();
    for id in 0..50 {
        t.row(id, &row).unwrap();
    }
    let mut content = t.build(None).unwrap();
    let Subnodes::Tree(subs) = &mut content.subnodes else {
        panic!("a matrix")
    };
    let NodeData::Blocks(matrix) = &mut subs.get_mut(&Nid(0x803F)).unwrap().data else {
        panic!("blocks")
    };
    for b in matrix.iter_mut() {
        let rows = b.len() / 833;
        for r in 0..rows {
            for cell in b[r * 833 + 8..r * 833 + 808].as_chunks_mut::<4>().0 {
                *cell = 0x805F_u32.to_le_bytes();
            }
        }
    }
    subs.insert(
        Nid(0x805F),
        NodeContent {
            data: NodeData::Bytes(vec![1; 60_000]),
            subnodes: Subnodes::None,
        },
    );
    content
}
