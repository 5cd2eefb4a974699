//! Messages and files to write in tests, and the checks that every written file must pass.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::sync::Arc;

use pst::check::{Code, Options, Severity, check_file};
use pst::dump::{DumpOptions, dump};
use pst::ltp::{PropBag, PropTag, PropValue, PropertyContext, TableContext};
use pst::messaging::{
    AttachmentData, MessageData, Pst, Transaction, cells, cells_in, create_empty_as, tags,
};
use pst::ndb::format::UNICODE;
use pst::ndb::{CryptMethod, Format};
use pst::{Nid, NidType};
use storage::{MemStorage, ReadAt, WriteSet};

pub const SEED: [u8; 16] = *b"a seed for tests";

pub fn empty() -> Arc<MemStorage> {
    empty_as(&UNICODE)
}

pub fn empty_as(format: &'static Format) -> Arc<MemStorage> {
    let bytes = create_empty_as(&SEED, format, CryptMethod::Permute).unwrap();
    Arc::new(MemStorage::from(bytes))
}

pub fn begin(file: &Arc<MemStorage>) -> Transaction {
    Transaction::begin(Arc::clone(file) as Arc<dyn ReadAt>).unwrap()
}

pub fn open(file: &Arc<MemStorage>) -> Pst {
    Pst::open(Arc::clone(file) as Arc<dyn ReadAt>).unwrap()
}

pub fn commit(set: &WriteSet, file: &Arc<MemStorage>) {
    set.commit(&**file).unwrap();
}

pub fn lines(pst: &Pst) -> Vec<String> {
    let mut out = Vec::new();
    dump(pst, DumpOptions::default(), &mut |l| {
        out.push(l.to_owned());
        Ok(())
    })
    .unwrap();
    out
}

pub fn folder(name: &str) -> PropBag {
    PropBag::from_iter([
        PropValue::string(tags::DISPLAY_NAME, name),
        PropValue::string(0x3613, "IPF.Note"),
    ])
}

/// A message with the properties that a PST must have in one ([MS-PST] 2.4.5.1.1).
pub fn message(n: u32, body: usize, read: bool) -> MessageData {
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

pub fn recipient(name: &str) -> PropBag {
    PropBag::from_iter([
        PropValue::i32(0x0C15, 1),
        PropValue::string(tags::DISPLAY_NAME, name),
        PropValue::string(0x3002, "SMTP"),
        PropValue::string(0x3003, &format!("{name}@example.org")),
        PropValue::string(0x39FE, &format!("{name}@example.org")),
    ])
}

pub fn attachment(name: &str, data: Vec<u8>) -> AttachmentData {
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

pub fn embedded(m: MessageData) -> AttachmentData {
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
pub fn consistent(pst: &Pst) {
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
                let want = cells(&m.props, &columns);
                for tag in &columns {
                    if [tags::LTP_ROW_ID, tags::LTP_ROW_VER].contains(&tag.id()) {
                        continue;
                    }
                    let (cell, prop) = (row.props.get_tag(*tag), want.get_tag(*tag));
                    match (cell, prop) {
                        (None, None) => {}
                        (Some(c), Some(p)) => {
                            assert!(c.data.same_content(&p.data).unwrap(), "{tag}");
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
            let columns: Vec<PropTag> = hierarchy.columns().iter().map(|c| c.tag).collect();
            let want = cells_in(&child, &columns, pst.code_page().unwrap());
            for id in [
                tags::DISPLAY_NAME,
                tags::CONTENT_COUNT,
                tags::CONTENT_UNREAD,
                tags::SUBFOLDERS,
            ] {
                let (a, b) = (row.props.get(id).unwrap(), want.get(id).unwrap());
                assert!(
                    a.data.same_content(&b.data).unwrap(),
                    "{id:#x} of {}",
                    row.id
                );
            }
        }
    }
}

/// A message that depends on `seed` in every part: sizes around the borders of heap and stream.
pub fn varied(seed: u32) -> MessageData {
    let sizes = [0, 10, 3_580, 3_581, 8_176, 20_000, 70_000, 300_000];
    let mut m = message(seed, sizes[seed as usize % sizes.len()], seed & 8 != 0);
    for r in 0..seed % 4 {
        m.recipients.push(recipient(&format!("r{r}-{seed}")));
    }
    for a in 0..seed / 4 % 3 {
        let size = sizes[(seed as usize + a as usize * 3) % sizes.len()];
        let data = (0..size as u32)
            .map(|i| (i.wrapping_mul(seed | 1) >> 5) as u8)
            .collect();
        m.attachments.push(attachment(&format!("a{a}.bin"), data));
    }
    if seed.is_multiple_of(7) {
        m.attachments.push(embedded(message(seed + 1, 4_000, true)));
    }
    m
}

/// The check of all levels finds nothing that matters, and no space is lost. (Messages of tests need not
/// have every property.)
pub fn clean(pst: &Pst) {
    let report = check_file(pst.ndb(), &Options::default());
    let lost = [Code::Leaked, Code::BlockOrphan, Code::CrefHigh];
    let bad: Vec<_> = report
        .findings
        .iter()
        // Tests delete folders that the store names, too.
        .filter(|f| f.code != Code::StoreEntry.name())
        .filter(|f| f.severity > Severity::Info || lost.iter().any(|c| c.name() == f.code))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

pub fn clean_of_errors(pst: &Pst) {
    let findings = pst::check::check(pst.ndb());
    assert!(
        findings.iter().all(|f| f.severity < Severity::Error),
        "{findings:#?}"
    );
}
