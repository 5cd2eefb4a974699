//! The lists, tables and properties layer over transactions: values that lie in files are shared
//! inside one file and copied into another; the result passes the checks.

// Helpers of tests fail like tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::check::{Severity, check, check_ltp};
use pst::ltp::{Guid, utf16le};
use pst::ltp::{
    NameMap, NameMapEdit, NodeSource, ObjectValue, PropBag, PropName, PropTag, PropType, PropValue,
    PropertyContext, TableBuilder, TableContext, TableEdit, ValueData, build_pc, insert_subnode,
};
use pst::ndb::{Ndb, NdbTransaction, NodeContent};
use pst::{Nid, NidType};
use storage::MemStorage;
use support::{UNICODE_FILES, bytes, shared};

const MESSAGE: Nid = Nid::new(NidType::NORMAL_MESSAGE, 0x10001);

/// What a file of these bytes is after `edit`.
fn edited(base: &[u8], edit: impl FnOnce(&mut NdbTransaction)) -> Vec<u8> {
    let ndb = Arc::new(Ndb::open(bytes(base.to_vec())).unwrap());
    let mut t = NdbTransaction::begin(ndb).unwrap();
    edit(&mut t);
    let storage = MemStorage::from(base.to_vec());
    t.finish().unwrap().commit(&storage).unwrap();
    storage.to_vec()
}

fn open(data: &[u8]) -> Arc<Ndb> {
    Arc::new(Ndb::open(bytes(data.to_vec())).unwrap())
}

fn pc(ndb: &Arc<Ndb>, nid: Nid) -> PropertyContext {
    let n = ndb.node(nid).unwrap().unwrap();
    PropertyContext::open(ndb, n.bid_data, n.bid_sub).unwrap()
}

fn assert_sound(ndb: &Arc<Ndb>) {
    let findings: Vec<_> = check(ndb).into_iter().chain(check_ltp(ndb)).collect();
    assert!(
        findings.iter().all(|f| f.severity < Severity::Warning),
        "{findings:#?}"
    );
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// A message with everything: a streamed body, an attachment with an embedded message that has
/// an attachment table of its own.
fn message() -> (PropBag, NodeContent) {
    let inner: PropBag = [
        PropValue::string(0x0037, "inside"),
        PropValue::binary(0x1013, pattern(100_000)),
    ]
    .into_iter()
    .collect();
    let mut embedded = build_pc(&inner, None).unwrap();
    let columns = [
        PropTag::new(0x0E20, PropType::I32),
        PropTag::new(0x3704, PropType::UNICODE),
    ];
    let table = TableBuilder::new(&columns).unwrap().build(None).unwrap();
    insert_subnode(&mut embedded, Nid::ATTACHMENT_TABLE, table).unwrap();

    let bag: PropBag = [
        PropValue::string(0x0037, "outside"),
        PropValue::binary(0x1013, pattern(300_000)),
        PropValue::new(
            PropTag::new(0x1000, PropType::UNICODE),
            utf16le(&"line\r\n".repeat(900)),
        ),
        PropValue::time(0x0E06, 132_000_000_000_000_000),
        PropValue {
            tag: PropTag::new(0x3701, PropType::OBJECT),
            data: ValueData::Object(ObjectValue {
                nid: Nid::new(NidType::NORMAL_MESSAGE, 0x402),
                size: 100_000,
                content: Some(NodeSource::built(embedded)),
            }),
        },
    ]
    .into_iter()
    .collect();
    let content = build_pc(&bag, None).unwrap();
    (bag, content)
}

#[test]
fn long_values_are_streams_and_travel_between_files() {
    let empty = Ndb::create_empty_ndb();
    let (bag, content) = message();
    let first = edited(&empty, |t| {
        t.put_node(MESSAGE, Nid(0x122), &content).unwrap();
    });
    let ndb = open(&first);
    assert_sound(&ndb);
    let read = pc(&ndb, MESSAGE).bag().unwrap();
    assert!(read.same_content(&bag).unwrap());
    let stream = read.get(0x1013).unwrap();
    assert!(
        matches!(&stream.data, ValueData::Stream { len: 300_000, .. }),
        "{stream:?}"
    );
    assert!(stream.data.read(299_999).is_err());
    assert_eq!(stream.data.read(300_000).unwrap(), pattern(300_000));
    assert!(stream.as_bytes().is_none());

    // Into another file: copied, with the subnodes of the object.
    let second = edited(&empty, |t| {
        let content = build_pc(&read, Some(t.base())).unwrap();
        t.put_node(MESSAGE, Nid(0x122), &content).unwrap();
    });
    let copy = open(&second);
    assert_sound(&copy);
    let copied = pc(&copy, MESSAGE).bag().unwrap();
    assert!(copied.same_content(&bag).unwrap());
    let ValueData::Object(o) = &copied.get(0x3701).unwrap().data else {
        panic!("an object")
    };
    let inside = PropertyContext::open_source(o.content.as_ref().unwrap()).unwrap();
    assert_eq!(
        inside
            .bag()
            .unwrap()
            .get(0x1013)
            .unwrap()
            .data
            .read(1 << 20)
            .unwrap(),
        pattern(100_000)
    );
    let table = inside.subnode(Nid::ATTACHMENT_TABLE).unwrap().unwrap();
    assert_eq!(
        TableContext::open_source(&table).unwrap().columns().len(),
        4
    );

    // In the same file, with one property changed: the long ones are shared, not written again.
    let third = edited(&second, |t| {
        let base = Arc::clone(t.base());
        let mut bag = pc(&base, MESSAGE).bag().unwrap();
        bag.insert(PropValue::string(0x0037, "changed"));
        t.put_node(MESSAGE, Nid(0x122), &build_pc(&bag, Some(&base)).unwrap())
            .unwrap();
    });
    let after = open(&third);
    assert_sound(&after);
    let changed = pc(&after, MESSAGE).bag().unwrap();
    assert_eq!(changed.str(0x0037).as_deref(), Some("changed"));
    let bid = |b: &PropBag| match &b.get(0x1013).unwrap().data {
        ValueData::Stream { bid, .. } => *bid,
        other => panic!("{other:?}"),
    };
    assert_eq!(bid(&changed), bid(&copied));
    let mut expected = bag;
    expected.insert(PropValue::string(0x0037, "changed"));
    assert!(changed.same_content(&expected).unwrap());
}

#[test]
fn tables_and_names_live_in_files() {
    let nid = Nid::new(NidType::CONTENTS_TABLE, 0x400);
    let columns = [
        PropTag::new(0x0037, PropType::UNICODE),
        PropTag::new(0x0E08, PropType::I32),
    ];
    let row = |i: u32| -> PropBag {
        [
            PropValue::string(0x0037, &format!("row {i}")),
            PropValue::i32(0x0E08, 7),
        ]
        .into_iter()
        .collect()
    };
    let name = PropName::string(Guid::PS_PUBLIC_STRINGS, "Keywords");
    let mut data = edited(&Ndb::create_empty_ndb(), |t| {
        t.put_node(
            nid,
            Nid(0),
            &TableBuilder::new(&columns).unwrap().build(None).unwrap(),
        )
        .unwrap();
        let map = NameMapEdit::new().build(None).unwrap();
        t.put_node(Nid::NAME_TO_ID_MAP, Nid(0), &map).unwrap();
    });
    for round in 0..4u32 {
        data = edited(&data, |t| {
            let n = t.node(nid).unwrap().unwrap();
            let base = Arc::clone(t.base());
            let mut table = TableEdit::open(&base, n.bid_data, n.bid_sub).unwrap();
            for i in 0..400 {
                table
                    .put_row(round * 400 + i, &row(round * 400 + i))
                    .unwrap();
            }
            t.put_node(nid, Nid(0), &table.build(Some(&base)).unwrap())
                .unwrap();
            let mut names = NameMapEdit::open(&base).unwrap();
            assert_eq!(names.id(&name).unwrap(), 0x8000);
            assert_eq!(names.changed(), round == 0);
            t.put_node(
                Nid::NAME_TO_ID_MAP,
                Nid(0),
                &names.build(Some(&base)).unwrap(),
            )
            .unwrap();
        });
        let ndb = open(&data);
        assert_sound(&ndb);
        let n = ndb.node(nid).unwrap().unwrap();
        let table = TableContext::open(&ndb, n.bid_data, n.bid_sub).unwrap();
        assert_eq!(table.row_count() as u32, (round + 1) * 400);
        for (i, r) in table.rows().enumerate() {
            let r = r.unwrap();
            assert_eq!((r.id, r.version), (i as u32, i as u32 + 1));
            assert!(r.props.same_content(&row(i as u32)).unwrap());
        }
        assert_eq!(NameMap::read(&ndb).unwrap().name(0x8000), Some(&name));
    }
}

/// The node with all its heaps built again, down through its subnodes; `None` if it is no heap
/// of ours.
fn rebuilt(base: &Arc<Ndb>, source: &NodeSource) -> Option<NodeContent> {
    let NodeSource::Stored { bid_sub, .. } = source else {
        panic!("a node of the file")
    };
    if let Ok(pc) = PropertyContext::open_source(source) {
        let mut bag = pc.bag().unwrap();
        let mut objects = Vec::new();
        for p in pc.bag().unwrap() {
            if let ValueData::Object(mut o) = p.data {
                objects.push(o.nid);
                if let Some(c) = o.content.as_ref().and_then(|c| rebuilt(base, c)) {
                    o.content = Some(NodeSource::built(c));
                }
                bag.insert(PropValue {
                    tag: p.tag,
                    data: ValueData::Object(o),
                });
            }
        }
        let mut content = build_pc(&bag, Some(base)).unwrap();
        for (nid, e) in base.subnodes(*bid_sub).unwrap() {
            if nid.kind() == NidType::LTP || objects.contains(&nid) {
                continue;
            }
            let sub = NodeSource::stored(base, e.bid_data, e.bid_sub);
            let sub = rebuilt(base, &sub).unwrap_or_else(|| sub.to_content(Some(base)).unwrap());
            insert_subnode(&mut content, nid, sub).unwrap();
        }
        return Some(content);
    }
    TableEdit::open_source(source)
        .ok()
        .map(|t| t.build(Some(base)).unwrap())
}

/// The rows of a table as the `outlook-pst` crate reads them.
fn foreign_rows(
    table: Option<&std::rc::Rc<dyn outlook_pst::ltp::table_context::TableContext>>,
) -> Vec<String> {
    let Some(table) = table else {
        return Vec::new();
    };
    let context = table.context();
    let cells = |r: &outlook_pst::ltp::table_context::TableRowData| {
        let values = r.columns(context).unwrap();
        let cells = context.columns().iter().zip(values).map(|(c, v)| {
            let v = v.map(|v| {
                table
                    .read_column(&v, c.prop_type())
                    .map_err(|e| e.to_string())
            });
            format!("{:#06x} {v:?}", c.prop_id())
        });
        format!(
            "{:?} {} {:?}",
            r.id(),
            r.unique(),
            cells.collect::<Vec<_>>()
        )
    };
    table.rows_matrix().map(cells).collect()
}

/// What the `outlook-pst` crate says about every message and folder of a file: `None` for those
/// that it rejects.
fn foreign_view(data: &[u8]) -> Vec<(Nid, Option<Vec<String>>)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), data).unwrap();
    let store = outlook_pst::open_store(file.path()).unwrap();
    let ndb = open(data);
    let mut out = Vec::new();
    for n in ndb.nodes() {
        let nid = n.unwrap().nid;
        let id = store.properties().make_entry_id(nid.0.into()).unwrap();
        let view = match nid.kind() {
            NidType::NORMAL_MESSAGE => store.open_message(&id, None).ok().map(|m| {
                let mut v: Vec<_> = m
                    .properties()
                    .iter()
                    .map(|(id, v)| format!("{id:#06x} {v:?}"))
                    .collect();
                v.extend(foreign_rows(m.recipient_table()));
                v.extend(foreign_rows(m.attachment_table()));
                v
            }),
            NidType::NORMAL_FOLDER => store.open_folder(&id).ok().map(|f| {
                let mut v: Vec<_> = f
                    .properties()
                    .iter()
                    .map(|(id, v)| format!("{id:#06x} {v:?}"))
                    .collect();
                v.extend(foreign_rows(f.hierarchy_table()));
                v.extend(foreign_rows(f.contents_table()));
                v
            }),
            _ => continue,
        };
        out.push((nid, view));
    }
    out
}

/// Every heap of a real file, built again in its place: the file stays whole, and says the same,
/// to us and to a reader that is not ours.
#[test]
fn real_files_survive_a_rebuild_of_all_their_heaps() {
    let Some(dir) = shared() else { return };
    for file in UNICODE_FILES {
        let before = std::fs::read(dir.join("corpus").join(file)).unwrap();
        let mut nodes = Vec::new();
        let after = edited(&before, |t| {
            let base = Arc::clone(t.base());
            for n in base.nodes() {
                let n = n.unwrap();
                let source = NodeSource::stored(&base, n.bid_data, n.bid_sub);
                if let Some(content) = rebuilt(&base, &source) {
                    t.put_node(n.nid, n.nid_parent, &content).unwrap();
                    nodes.push(n);
                }
            }
        });
        assert!(!nodes.is_empty());
        let (old, new) = (open(&before), open(&after));
        let found = check_ltp(&new);
        let bad: Vec<_> = check(&new)
            .into_iter()
            .chain(found.iter().cloned())
            .filter(|f| f.severity == Severity::Error)
            .collect();
        assert!(bad.is_empty(), "{file}: {bad:#?}");
        // What was odd in the heaps is right after our builders made them.
        assert!(
            found.iter().all(
                |f| ["heap-reserved", "name-bucket", "name-stray", "name-twice"].contains(&f.code)
            ),
            "{found:#?}"
        );
        for n in &nodes {
            let m = new.node(n.nid).unwrap().unwrap();
            let a = NodeSource::stored(&old, n.bid_data, n.bid_sub);
            let b = NodeSource::stored(&new, m.bid_data, m.bid_sub);
            if let Ok(pc) = PropertyContext::open_source(&a) {
                let again = PropertyContext::open_source(&b).unwrap().bag().unwrap();
                for (x, y) in pc.bag().unwrap().iter().zip(&again) {
                    let object = matches!(x.data, ValueData::Object(_));
                    assert_eq!(x.tag, y.tag, "{file} {}", n.nid);
                    assert!(
                        object || x.data.same_content(&y.data).unwrap(),
                        "{file} {}",
                        n.nid
                    );
                }
            } else {
                let (a, b) = (
                    TableContext::open_source(&a).unwrap(),
                    TableContext::open_source(&b).unwrap(),
                );
                assert!(a.row_ids().eq(b.row_ids()), "{file} {}", n.nid);
                for (x, y) in a.rows().zip(b.rows()) {
                    assert!(x.unwrap().props.same_content(&y.unwrap().props).unwrap());
                }
            }
        }

        // That reader takes no OST for a PST.
        if file.ends_with(".ost") {
            continue;
        }
        let (views, again) = (foreign_view(&before), foreign_view(&after));
        let accepted =
            |v: &[(Nid, Option<Vec<String>>)]| v.iter().filter(|v| v.1.is_some()).count();
        println!(
            "{file}: {} nodes built again; outlook-pst reads {} of {} objects before, {} after",
            nodes.len(),
            accepted(&views),
            views.len(),
            accepted(&again)
        );
        for ((nid, a), (_, b)) in views.iter().zip(&again) {
            // That reader insists on subnodes of messages, which need none: two small posts
            // have values in subnodes that now lie in the heap.
            let n = new.node(*nid).unwrap().unwrap();
            let bare = nid.kind() == NidType::NORMAL_MESSAGE && n.bid_sub.is_none();
            assert!(a.is_none() || a == b || bare, "{file} {nid}: {a:#?} {b:#?}");
        }
        if *file == "enron.pst" {
            assert!(
                accepted(&views) < accepted(&again),
                "heaps that it rejected are right now"
            );
        }
    }
}
