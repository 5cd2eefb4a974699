//! Writing: an empty PST, and edits of it, read back by our own reader and checked for
//! consistency: rows against nodes, counts against rows, copies against originals.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use pst::ltp::{
    Guid, PropBag, PropName, PropTag, PropType, PropValue, PropertyContext, TableContext,
};
use pst::messaging::{
    AttachmentData, DELETED_ITEMS, IPM_SUBTREE, MessageData, Pst, Transaction, create_empty, tags,
};
use pst::{Nid, NidType, PstError};
use storage::{MemStorage, ReadAt, WriteSet};

const SEED: [u8; 16] = *b"a seed for tests";

fn empty() -> Arc<MemStorage> {
    Arc::new(MemStorage::from(create_empty(&SEED).unwrap()))
}

fn begin(file: &Arc<MemStorage>) -> Transaction {
    Transaction::begin(Arc::clone(file) as Arc<dyn ReadAt>).unwrap()
}

fn open(file: &Arc<MemStorage>) -> Pst {
    Pst::open(Arc::clone(file) as Arc<dyn ReadAt>).unwrap()
}

fn commit(set: WriteSet, file: &Arc<MemStorage>) {
    set.commit(&**file).unwrap();
}

fn lines(pst: &Pst) -> Vec<String> {
    let mut out = Vec::new();
    dump(pst, DumpOptions::default(), &mut |l| {
        out.push(l.to_owned());
        Ok(())
    })
    .unwrap();
    out
}

fn folder(name: &str) -> PropBag {
    PropBag::from_iter([
        PropValue::string(tags::DISPLAY_NAME, name),
        PropValue::string(0x3613, "IPF.Note"),
    ])
}

/// A message with everything that a PST must have in one.
fn message(n: u32, body: usize, read: bool) -> MessageData {
    let key: Vec<u8> = blake3::hash(&n.to_le_bytes()).as_bytes()[..16].to_vec();
    let text: String = format!("body {n} ").repeat(body / 8 + 1);
    MessageData {
        props: PropBag::from_iter([
            PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
            PropValue::string(tags::SUBJECT, &format!("Subject {n}")),
            PropValue::i32(tags::MESSAGE_FLAGS, i32::from(read)),
            PropValue::i32(tags::MESSAGE_SIZE, 1000),
            PropValue::i32(tags::MESSAGE_STATUS, 0),
            PropValue::time(0x3007, 130_000_000_000_000_000 + u64::from(n)),
            PropValue::time(0x3008, 130_000_000_000_000_000 + u64::from(n)),
            PropValue::binary(tags::SEARCH_KEY, key),
            PropValue::string(0x1000, &text),
        ]),
        recipients: Vec::new(),
        attachments: Vec::new(),
    }
}

fn recipient(name: &str) -> PropBag {
    PropBag::from_iter([
        PropValue::i32(0x0C15, 1),
        PropValue::string(tags::DISPLAY_NAME, name),
        PropValue::string(0x3002, "SMTP"),
        PropValue::string(0x3003, &format!("{name}@example.org")),
        PropValue::string(0x39FE, &format!("{name}@example.org")),
    ])
}

fn attachment(name: &str, data: Vec<u8>) -> AttachmentData {
    AttachmentData {
        props: PropBag::from_iter([
            PropValue::i32(tags::ATTACH_SIZE, data.len() as i32),
            PropValue::string(0x3704, name),
            PropValue::string(0x3707, name),
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::i32(0x370B, -1),
            PropValue::binary(tags::ATTACH_DATA, data),
        ]),
        embedded: None,
    }
}

fn embedded(m: MessageData) -> AttachmentData {
    AttachmentData {
        props: PropBag::from_iter([
            PropValue::i32(tags::ATTACH_SIZE, 500),
            PropValue::string(tags::DISPLAY_NAME, "inner"),
            PropValue::i32(tags::ATTACH_METHOD, tags::METHOD_EMBEDDED),
            PropValue::i32(0x370B, -1),
        ]),
        embedded: Some(Box::new(m)),
    }
}

/// Checks everything that the engine promises about tables, counts and copies.
fn consistent(pst: &Pst) {
    let index = pst.index().unwrap();
    let ndb = pst.ndb();
    let table = |nid: Nid| {
        let e = ndb
            .node(nid)
            .unwrap()
            .unwrap_or_else(|| panic!("no table {nid}"));
        TableContext::open(ndb, e.bid_data, e.bid_sub).unwrap()
    };
    let ids = |t: &TableContext| t.row_ids().map(Nid).collect::<BTreeSet<_>>();
    for f in index.folders.values() {
        let props = pst.folder(f.nid).unwrap().props;
        let all = index.messages.get(&f.nid).cloned().unwrap_or_default();
        let nids = |associated: bool| {
            all.iter()
                .filter(|m| m.associated == associated)
                .map(|m| m.nid)
                .collect::<BTreeSet<_>>()
        };
        let contents = table(f.nid.with_kind(NidType::CONTENTS_TABLE));
        assert_eq!(ids(&contents), nids(false), "contents of {}", f.nid);
        let assoc = table(f.nid.with_kind(NidType::ASSOC_CONTENTS_TABLE));
        assert_eq!(ids(&assoc), nids(true), "associated contents of {}", f.nid);
        let hierarchy = table(f.nid.with_kind(NidType::HIERARCHY_TABLE));
        let mut children: BTreeSet<Nid> = index
            .children
            .get(&f.nid)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        children.extend(
            index
                .raw
                .values()
                .filter(|e| e.nid_parent == f.nid && e.nid.kind() == NidType::SEARCH_FOLDER)
                .map(|e| e.nid),
        );
        assert_eq!(ids(&hierarchy), children, "hierarchy of {}", f.nid);
        assert_eq!(
            props.i32(tags::CONTENT_COUNT),
            Some(contents.row_count() as i32),
            "{}",
            f.nid
        );
        assert_eq!(
            props.get(tags::SUBFOLDERS).unwrap().as_bool(),
            Some(!children.is_empty()),
            "{}",
            f.nid
        );
        let mut unread = 0;
        for t in [&contents, &assoc] {
            let columns: Vec<PropTag> = t.columns().iter().map(|c| c.tag).collect();
            for row in t.rows() {
                let row = row.unwrap();
                let m = pst.message(Nid(row.id)).unwrap();
                for tag in &columns {
                    if [tags::LTP_ROW_ID, tags::LTP_ROW_VER].contains(&tag.id()) {
                        continue;
                    }
                    let (cell, prop) = (row.props.get_tag(*tag), m.props.get_tag(*tag));
                    match (cell, prop) {
                        (None, None) => {}
                        (Some(c), Some(p)) => {
                            assert!(c.data.same_content(&p.data).unwrap(), "{tag}")
                        }
                        other => panic!("row {} of {}: {tag}: {other:?}", row.id, f.nid),
                    }
                }
                assert!(row.version > 0);
                if std::ptr::eq(t, &contents)
                    && m.props.i32(tags::MESSAGE_FLAGS).unwrap_or(0) & 1 == 0
                {
                    unread += 1;
                }
                let has =
                    m.props.i32(tags::MESSAGE_FLAGS).unwrap_or(0) & tags::FLAG_HAS_ATTACH != 0;
                assert_eq!(has, !m.attachments.is_empty());
            }
        }
        assert_eq!(
            props.i32(tags::CONTENT_UNREAD),
            Some(unread),
            "unread of {}",
            f.nid
        );
        for row in hierarchy.rows() {
            let row = row.unwrap();
            let e = ndb.node(Nid(row.id)).unwrap().unwrap();
            let child = PropertyContext::open(ndb, e.bid_data, e.bid_sub)
                .unwrap()
                .bag()
                .unwrap();
            for id in [
                tags::DISPLAY_NAME,
                tags::CONTENT_COUNT,
                tags::CONTENT_UNREAD,
                tags::SUBFOLDERS,
            ] {
                let (a, b) = (row.props.get(id).unwrap(), child.get(id).unwrap());
                assert!(
                    a.data.same_content(&b.data).unwrap(),
                    "{id:#x} of {}",
                    row.id
                );
            }
        }
    }
}

#[test]
fn an_empty_pst_is_complete_and_depends_on_its_seed_alone() {
    let a = create_empty(&SEED).unwrap();
    assert_eq!(a, create_empty(&SEED).unwrap());
    assert_ne!(a, create_empty(&[7; 16]).unwrap());
    let file = empty();
    let pst = open(&file);
    consistent(&pst);
    assert_eq!(pst.ipm_subtree().unwrap(), IPM_SUBTREE);
    assert_eq!(pst.folder(DELETED_ITEMS).unwrap().parent, IPM_SUBTREE);
    // The mandatory nodes of [MS-PST] 2.7.1.
    for nid in [
        0x21, 0x61, 0x122, 0x12D, 0x12E, 0x12F, 0x1E1, 0x201, 0x60D, 0x60E, 0x60F, 0x610, 0x671,
        0x692, 0x2223, 0x8022, 0x802D, 0x802E, 0x802F, 0x8042, 0x804D, 0x804E, 0x804F, 0x8062,
        0x806D, 0x806E, 0x806F,
    ] {
        assert!(pst.ndb().node(Nid(nid)).unwrap().is_some(), "{nid:#x}");
    }
    if let Ok(path) = std::env::var("PSTSYNCD_KEEP") {
        std::fs::write(path, a).unwrap();
    }
}

#[test]
fn a_full_message_comes_back_as_it_went_in() {
    let file = empty();
    let mut tx = begin(&file);
    let name = PropName::string(Guid::PS_PUBLIC_STRINGS, "x-test");
    let id = tx.named_id(&name).unwrap();
    let mut m = message(1, 100_000, false);
    m.props.insert(PropValue::new(
        PropTag::new(id, PropType::UNICODE),
        pst::ltp::utf16le("named"),
    ));
    m.recipients = vec![recipient("zoe"), recipient("adam")];
    m.attachments = vec![
        attachment(
            "big.bin",
            (0..1_000_000u32).map(|i| (i * 7 >> 3) as u8).collect(),
        ),
        attachment("empty.txt", Vec::new()),
        embedded({
            let mut inner = message(2, 10, true);
            inner.attachments = vec![
                attachment("nested.txt", b"deep".to_vec()),
                embedded(message(3, 5000, true)),
            ];
            inner.recipients = vec![recipient("inner")];
            inner
        }),
    ];
    let inbox = tx
        .create_folder(IPM_SUBTREE, None, &folder("Inbox"))
        .unwrap();
    let nid = tx.add_message(inbox, None, &m, false).unwrap();
    let fai = tx
        .add_message(inbox, None, &message(9, 10, true), true)
        .unwrap();
    commit(tx.finish().unwrap(), &file);
    let pst = open(&file);
    consistent(&pst);
    let back = pst.message(nid).unwrap();
    assert_eq!(pst.names().id(&name), Some(id));
    let names: Vec<_> = back
        .recipients
        .iter()
        .map(|r| r.str(tags::DISPLAY_NAME).unwrap())
        .collect();
    assert_eq!(names, ["zoe", "adam"]);
    let record = |m: &MessageData| pst::canonical::Record::message(m, false, pst.names()).unwrap();
    assert_eq!(record(&back), record(&m));
    assert_eq!(
        back.attachments[2]
            .embedded
            .as_ref()
            .unwrap()
            .attachments
            .len(),
        2
    );
    assert!(
        pst.messages_of(inbox)
            .unwrap()
            .iter()
            .any(|e| e.nid == fai && e.associated)
    );
    if let Ok(path) = std::env::var("PSTSYNCD_KEEP") {
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        std::fs::write(path + ".full", bytes).unwrap();
    }
}
