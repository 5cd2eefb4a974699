//! What the builders of the lists, tables and properties layer build, the readers read back; and
//! the heaps have the shape that [MS-PST] asks for, told by a verifier that shares no code with
//! the builders.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use pst::ltp::{
    ClientSig, Guid, Heap, NameKind, NameMap, NameMapEdit, NodeSource, ObjectValue, PropBag,
    PropName, PropTag, PropType, PropValue, PropertyContext, TableBuilder, TableContext, TableEdit,
    ValueData, build_pc, insert_subnode,
};
use pst::ndb::{NodeContent, NodeData, Subnodes, crc};
use pst::{Nid, NidType, PstError};

const BLOCK: usize = 8176;

fn u16_at(b: &[u8], at: usize) -> usize {
    u16::from_le_bytes([b[at], b[at + 1]]).into()
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

/// Checks a heap's blocks against 2.3.1 and gives its items by HID.
fn verify_heap(content: &NodeContent) -> BTreeMap<u32, Vec<u8>> {
    let NodeData::Blocks(blocks) = &content.data else {
        panic!("a heap is blocks");
    };
    let mut items = BTreeMap::new();
    let mut free = Vec::new();
    for (i, b) in blocks.iter().enumerate() {
        let last = i + 1 == blocks.len();
        assert!(
            if last {
                b.len() <= BLOCK
            } else {
                b.len() == BLOCK
            },
            "block {i}: {}",
            b.len()
        );
        let header = if i == 0 {
            12
        } else if i == 8 || (i > 8 && (i - 8) % 128 == 0) {
            66
        } else {
            2
        };
        let map = u16_at(b, 0);
        assert_eq!(map % 2, 0);
        let (count, freed) = (u16_at(b, map), u16_at(b, map + 2));
        assert!(count < 2048 && freed == 0);
        let at = |k: usize| u16_at(b, map + 4 + 2 * k);
        assert_eq!(at(0), header);
        for k in 0..count {
            assert!(at(k) < at(k + 1) && at(k + 1) - at(k) <= 3580);
            items.insert(
                ((i << 16) | ((k + 1) << 5)) as u32,
                b[at(k)..at(k + 1)].to_vec(),
            );
        }
        assert!(map - at(count) <= 1);
        let end = map + 6 + 2 * count;
        assert!(end <= b.len());
        assert!(b[end..].iter().all(|x| *x == 0) && (!last || b.len() == end));
        free.push(BLOCK - end);
    }
    // The bounds of the table in 2.3.1.2, upper end first.
    let bounds = [
        3584, 2560, 2048, 1792, 1536, 1280, 1024, 768, 512, 256, 128, 64, 32, 16, 8, 0,
    ];
    let level = |i: usize| {
        free.get(i)
            .map_or(0, |f| bounds.iter().position(|b| f >= b).unwrap())
    };
    let nibble = |b: &[u8], at: usize, k: usize| usize::from(b[at + k / 2] >> (4 * (k % 2))) & 15;
    for k in 0..8 {
        assert_eq!(
            nibble(&blocks[0], 8, k),
            level(k),
            "fill level of block {k}"
        );
    }
    for m in (8..blocks.len()).step_by(128) {
        for k in 0..128 {
            assert_eq!(
                nibble(&blocks[m], 2, k),
                level(m + k),
                "fill level of block {}",
                m + k
            );
        }
    }
    items
}

/// Walks a BTH by hand: keys rise, index keys are their children's first; gives the leaves.
fn verify_bth(items: &BTreeMap<u32, Vec<u8>>, header: u32) -> Vec<(u128, Vec<u8>)> {
    fn key(b: &[u8]) -> u128 {
        b.iter().rev().fold(0, |n, x| (n << 8) | u128::from(*x))
    }
    fn walk(
        items: &BTreeMap<u32, Vec<u8>>,
        hid: u32,
        level: u8,
        size: (usize, usize),
        out: &mut Vec<(u128, Vec<u8>)>,
    ) {
        let item = &items[&hid];
        if level == 0 {
            assert_eq!(item.len() % (size.0 + size.1), 0);
            for r in item.chunks(size.0 + size.1) {
                out.push((key(&r[..size.0]), r[size.0..].to_vec()));
            }
            return;
        }
        for r in item.chunks(size.0 + 4) {
            let before = out.len();
            walk(items, u32_at(r, size.0), level - 1, size, out);
            assert_eq!(out[before].0, key(&r[..size.0]));
        }
    }
    let h = &items[&header];
    assert_eq!((h[0], h.len()), (0xB5, 8));
    let mut out = Vec::new();
    if u32_at(h, 4) != 0 {
        walk(
            items,
            u32_at(h, 4),
            h[3],
            (h[1].into(), h[2].into()),
            &mut out,
        );
    }
    assert!(out.windows(2).all(|w| w[0].0 < w[1].0));
    out
}

fn sub(content: &NodeContent, nid: u32) -> &NodeContent {
    match &content.subnodes {
        Subnodes::Tree(t) => &t[&Nid(nid)],
        _ => panic!("no subnodes"),
    }
}

fn same(a: &PropBag, b: &PropBag) -> bool {
    a.same_content(b).unwrap()
}

fn prop_type() -> impl Strategy<Value = PropType> {
    prop::sample::select(vec![
        0x0002u16, 0x0003, 0x0004, 0x0005, 0x0006, 0x0007, 0x000A, 0x000B, 0x0014, 0x001E, 0x001F,
        0x0040, 0x0048, 0x00FB, 0x00FD, 0x00FE, 0x0102, 0x1002, 0x1003, 0x1004, 0x1005, 0x1006,
        0x1007, 0x1014, 0x101E, 0x101F, 0x1040, 0x1048, 0x1102,
    ])
    .prop_map(PropType)
}

fn value_len() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0usize..60,
        2 => 60usize..3580,
        1 => prop::sample::select(vec![3579usize, 3580, 3581, 8175, 8176, 8177]),
        1 => 3580usize..40_000,
    ]
}

fn property(ids: std::ops::RangeInclusive<u16>) -> impl Strategy<Value = PropValue> {
    (ids, prop_type(), value_len(), any::<u8>()).prop_map(|(id, kind, len, seed)| {
        let len = kind.fixed_size().unwrap_or(len);
        let bytes: Vec<u8> = (0..len)
            .map(|i| seed.wrapping_add((i % 251) as u8))
            .collect();
        PropValue::new(PropTag::new(id, kind), bytes)
    })
}

fn bag(max: usize) -> impl Strategy<Value = PropBag> {
    prop::collection::vec(property(1..=0xFFFE), 0..max)
        .prop_map(|v| v.into_iter().collect::<PropBag>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn property_contexts_read_back(bag in bag(900)) {
        let content = build_pc(&bag, None).unwrap();
        let items = verify_heap(&content);
        let leaves = verify_bth(&items, 0x20);
        prop_assert_eq!(leaves.len(), bag.len());
        let pc = PropertyContext::open_source(&NodeSource::built(content)).unwrap();
        prop_assert!(same(&pc.bag().unwrap(), &bag));
        for p in &bag {
            prop_assert!(pc.get(p.tag.id()).unwrap().unwrap().data.same_content(&p.data).unwrap());
        }
    }

    /// A table under edits is the model under the same edits: order, versions, cells.
    #[test]
    fn tables_follow_a_model(
        tags in prop::collection::vec((0x3000u16..0x3040, prop_type()), 0..40),
        edits in prop::collection::vec((0u8..10, 0u32..60, bag_for_table()), 0..120),
    ) {
        let tags: Vec<_> = tags.into_iter().map(|(id, t)| PropTag::new(id, t)).collect();
        let mut table = TableEdit::new(&tags).unwrap();
        let mut model: Vec<(u32, PropBag)> = Vec::new();
        let keep = |b: &PropBag| -> PropBag {
            b.iter().filter(|p| tags.contains(&p.tag)).cloned().collect()
        };
        for (i, (op, id, props)) in edits.iter().enumerate() {
            let at = model.iter().position(|(k, _)| k == id);
            match (op, at) {
                (0..=1, _) => {
                    prop_assert_eq!(table.delete_row(*id), at.is_some());
                    at.map(|i| model.remove(i));
                }
                (2..=4, Some(i)) => {
                    table.update_row(*id, props).unwrap();
                    model[i].1.extend(keep(props));
                }
                (_, Some(i)) => {
                    table.put_row(*id, props).unwrap();
                    model[i].1 = keep(props);
                }
                (_, None) => {
                    table.put_row(*id, props).unwrap();
                    model.push((*id, keep(props)));
                }
            }
            if i % 16 == 15 {
                // As a transaction would: written, and opened again.
                let layout = table.layout().clone();
                table = TableEdit::open_source(&NodeSource::built(table.build(None).unwrap()))
                    .unwrap();
                prop_assert_eq!(table.layout(), &layout);
            }
        }
        let content = table.build(None).unwrap();
        let items = verify_heap(&content);
        prop_assert_eq!(verify_bth(&items, 0x20).len(), model.len());
        let read = TableContext::open_source(&NodeSource::built(content)).unwrap();
        let rows: Vec<_> = read.rows().map(Result::unwrap).collect();
        prop_assert_eq!(rows.len(), model.len());
        for (row, (id, props)) in rows.iter().zip(&model) {
            prop_assert_eq!(row.id, *id);
            prop_assert!(same(&row.props, props));
            prop_assert!(same(&read.row_by_id(*id).unwrap().unwrap().props, props));
        }
        prop_assert!(read.row_by_id(1000).unwrap().is_none());
        let mut versions: Vec<_> = rows.iter().map(|r| r.version).collect();
        versions.sort_unstable();
        versions.dedup();
        prop_assert_eq!(versions.len(), rows.len());
    }

    #[test]
    fn names_read_back_and_are_where_others_look(
        names in prop::collection::vec((0u8..8, any::<bool>(), 0u32..400, "[a-zA-Zäß😀 ]{1,40}"), 0..300),
        split in 0usize..300,
    ) {
        let names: Vec<PropName> = names
            .into_iter()
            .map(|(g, number, n, s)| {
                let guid = match g {
                    0 => Guid::NONE,
                    1 => Guid::PS_MAPI,
                    2 => Guid::PS_PUBLIC_STRINGS,
                    n => Guid([n; 16]),
                };
                if number { PropName::number(guid, n) } else { PropName::string(guid, &s) }
            })
            .collect();
        let mut edit = NameMapEdit::new();
        let mut ids = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            if i == split {
                let built = NodeSource::built(edit.build(None).unwrap());
                edit = NameMapEdit::open_source(&built).unwrap();
                prop_assert!(!edit.changed());
            }
            let id = edit.id(name).unwrap();
            let first = *ids.entry(name.clone()).or_insert(id);
            prop_assert_eq!(id, first);
        }
        let source = NodeSource::built(edit.build(None).unwrap());
        let map = NameMap::from_source(&source).unwrap();
        prop_assert_eq!(map.len(), ids.len());
        for (name, id) in &ids {
            prop_assert_eq!(map.id(name), Some(*id));
            prop_assert_eq!(map.name(*id), Some(name));
        }
        // The look-up by hash that [MS-PST] 2.4.7.6 describes, done by hand.
        let bag = PropertyContext::open_source(&source).unwrap().bag().unwrap();
        let guids = bag.get(2).unwrap().as_bytes().unwrap().to_vec();
        for (name, id) in &ids {
            let guid = match name.guid {
                Guid::NONE => 0,
                Guid::PS_MAPI => 1,
                Guid::PS_PUBLIC_STRINGS => 2,
                g => 3 + guids.chunks(16).position(|c| c == g.0).unwrap() as u32,
            };
            let (hash, w) = match &name.kind {
                NameKind::Number(n) => (*n, guid << 1),
                NameKind::String(s) => (crc(s), (guid << 1) | 1),
            };
            let bucket = bag.get(0x1000 + ((hash ^ w) % 251) as u16).unwrap();
            let found = bucket.as_bytes().unwrap().chunks(8).any(|e| {
                u32_at(e, 0) == hash
                    && u16_at(e, 4) == w as usize
                    && u16_at(e, 6) + 0x8000 == usize::from(*id)
            });
            prop_assert!(found, "{} is not in its bucket", name);
        }
    }

    /// Whatever is done to the bytes of a heap, reading it ends, with an answer or a typed error.
    #[test]
    fn damage_is_an_error_and_never_a_panic(
        bag in bag(60),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut table = TableBuilder::new(&bag.iter().map(|p| p.tag).collect::<Vec<_>>()).unwrap();
        table.row(1, &bag).unwrap().row(2, &bag).unwrap();
        for content in [build_pc(&bag, None).unwrap(), table.build(None).unwrap()] {
            let mut content = content;
            let NodeData::Blocks(blocks) = &mut content.data else { panic!("blocks") };
            let block = &mut blocks[0];
            for (at, x) in &hits {
                let i = at.index(block.len());
                block[i] ^= x;
            }
            if let Some(cut) = cut {
                block.truncate(cut.index(block.len()));
            }
            let source = NodeSource::built(content);
            if let Ok(pc) = PropertyContext::open_source(&source) {
                let (_, errors) = pc.bag_lenient();
                prop_assert_eq!(pc.bag().is_err(), !errors.is_empty());
            }
            if let Ok(t) = TableContext::open_source(&source) {
                for row in t.rows() {
                    let _ = row;
                }
            }
            let _ = NameMap::from_source(&source);
            let _ = TableEdit::open_source(&source);
        }
    }
}

fn bag_for_table() -> impl Strategy<Value = PropBag> {
    prop::collection::vec(property(0x3000..=0x303F), 0..30)
        .prop_map(|v| v.into_iter().collect::<PropBag>())
}

#[test]
fn large_tables_fill_their_blocks() {
    let columns = [
        PropTag::new(0x0037, PropType::UNICODE),
        PropTag::new(0x0E06, PropType::TIME),
        PropTag::new(0x0E08, PropType::I32),
        PropTag::new(0x0E1B, PropType::BOOL),
        PropTag::new(0x6001, PropType::I16),
    ];
    for rows in [0u32, 1, 2, 130, 131, 500, 3000] {
        let mut table = TableBuilder::new(&columns).unwrap();
        let props = |i: u32| -> PropBag {
            let mut b: PropBag = [
                PropValue::string(
                    0x0037,
                    &format!("Subject {i} {}", "x".repeat((i % 90) as usize)),
                ),
                PropValue::i32(0x0E08, i.cast_signed()),
                PropValue::bool(0x0E1B, i.is_multiple_of(2)),
                PropValue::i16(0x6001, (i % 1000) as i16),
            ]
            .into_iter()
            .collect();
            if !i.is_multiple_of(3) {
                b.insert(PropValue::time(0x0E06, u64::from(i) << 30));
            }
            b
        };
        // Ids fall while the matrix grows: the index is sorted, the matrix is not.
        for i in 0..rows {
            table.row(0x0020_0004 + 32 * (rows - i), &props(i)).unwrap();
        }
        let content = table.build(None).unwrap();
        let items = verify_heap(&content);
        assert_eq!(verify_bth(&items, 0x20).len(), rows as usize);
        let info = &items[&0x40];
        let [e4, e2, e1, eb] = [2, 4, 6, 8].map(|at| u16_at(info, at));
        // Row id, version, subject and size; time; one word; one byte; seven bits.
        assert_eq!([e4, e2, e1, eb], [24, 26, 27, 28]);
        let hnid = u32_at(info, 14);
        let bytes = rows as usize * eb;
        if bytes == 0 {
            assert_eq!(hnid, 0);
        } else if bytes <= 3580 {
            assert_eq!(items[&hnid].len(), bytes);
        } else {
            assert_eq!(Nid(hnid).kind(), NidType::LTP);
            let NodeData::Blocks(blocks) = &sub(&content, hnid).data else {
                panic!("blocks")
            };
            let per_block = BLOCK / eb;
            let (last, full) = blocks.split_last().unwrap();
            assert!(full.iter().all(|b| b.len() == BLOCK));
            assert_eq!(full.len() * per_block + last.len() / eb, rows as usize);
        }
        let read = TableContext::open_source(&NodeSource::built(content)).unwrap();
        assert_eq!(read.row_count(), rows as usize);
        for (i, row) in read.rows().enumerate() {
            let row = row.unwrap();
            assert_eq!(row.id, 0x0020_0004 + 32 * (rows - i as u32));
            assert_eq!(row.version, i as u32 + 1);
            assert!(same(&row.props, &props(i as u32)), "row {i}");
        }
    }
}

#[test]
fn unchanged_rows_keep_place_and_version() {
    let columns = [PropTag::new(0x3001, PropType::UNICODE)];
    let mut table = TableEdit::new(&columns).unwrap();
    let named = |s: &str| -> PropBag { [PropValue::string(0x3001, s)].into_iter().collect() };
    for id in [9, 3, 7, 5] {
        table.put_row(id, &named("first")).unwrap();
    }
    let mut table = TableEdit::open_source(&NodeSource::built(table.build(None).unwrap())).unwrap();
    table.put_row(3, &named("first")).unwrap(); // the same again: no new version
    table.put_row(7, &named("second")).unwrap();
    assert!(table.delete_row(9));
    table.put_row(9, &named("again")).unwrap();
    let order: Vec<_> = table.rows().map(|r| (r.id, r.version)).collect();
    assert_eq!(order, [(3, 2), (7, 5), (5, 4), (9, 6)]);
}

#[test]
fn heaps_of_many_blocks_have_their_bitmaps() {
    // 150 blocks: the HNHDR map, and the HNBITMAPHDR maps of blocks 8 and 136.
    let bag: PropBag = (1..=450u16)
        .map(|id| PropValue::binary(id, vec![id as u8; 2500 + usize::from(id % 7) * 100]))
        .collect();
    let content = build_pc(&bag, None).unwrap();
    let NodeData::Blocks(blocks) = &content.data else {
        panic!("blocks")
    };
    assert!(blocks.len() > 140, "{}", blocks.len());
    verify_heap(&content);
    let source = NodeSource::built(content);
    assert_eq!(
        Heap::open(&source).unwrap().client_sig(),
        ClientSig::PROPERTIES
    );
    assert!(same(
        &PropertyContext::open_source(&source)
            .unwrap()
            .bag()
            .unwrap(),
        &bag
    ));
}

#[test]
fn objects_carry_their_subnodes() {
    let inner: PropBag = [PropValue::string(0x0037, "inside")].into_iter().collect();
    let object = |nid: Nid, content| PropValue {
        tag: PropTag::new(0x3701, PropType::OBJECT),
        data: ValueData::Object(ObjectValue {
            nid,
            size: 1234,
            content,
        }),
    };
    let built = NodeSource::Built(Arc::new(build_pc(&inner, None).unwrap()));
    // The NID that the first long value would get is the object's: the value gets another.
    let nid = Nid(0x803F);
    let bag: PropBag = [
        object(nid, Some(built)),
        PropValue::binary(0x3702, vec![7; 9000]),
    ]
    .into_iter()
    .collect();
    let mut content = build_pc(&bag, None).unwrap();
    insert_subnode(&mut content, Nid::RECIPIENT_TABLE, NodeContent::default()).unwrap();
    assert!(insert_subnode(&mut content, nid, NodeContent::default()).is_err());

    let pc = PropertyContext::open_source(&NodeSource::built(content)).unwrap();
    assert!(pc.subnode(Nid::RECIPIENT_TABLE).unwrap().is_some());
    assert!(pc.subnode(Nid::ATTACHMENT_TABLE).unwrap().is_none());
    let read = pc.bag().unwrap();
    assert!(same(&read, &bag));
    let ValueData::Object(o) = &read.get(0x3701).unwrap().data else {
        panic!("an object")
    };
    assert_eq!((o.nid, o.size), (nid, 1234));
    let inside = PropertyContext::open_source(o.content.as_ref().unwrap()).unwrap();
    assert!(same(&inside.bag().unwrap(), &inner));
}

#[test]
fn what_does_not_fit_is_refused() {
    let short: PropBag = [PropValue::new(PropTag::new(1, PropType::I32), [1, 2])]
        .into_iter()
        .collect();
    assert!(matches!(build_pc(&short, None), Err(PstError::Refused(_))));
    let many: Vec<_> = (0..254).map(|i| PropTag::new(i, PropType::I32)).collect();
    assert!(TableBuilder::new(&many[..253]).is_ok());
    assert!(matches!(
        TableBuilder::new(&many),
        Err(PstError::Limit { .. })
    ));
    let mut t = TableBuilder::new(&[]).unwrap();
    t.row(1, &PropBag::new()).unwrap();
    assert!(t.row(1, &PropBag::new()).is_err());
    let mut names = NameMapEdit::new();
    let odd = PropName {
        guid: Guid::PS_MAPI,
        kind: NameKind::String(vec![1]),
    };
    assert!(names.id(&odd).is_err());
}
