//! Writing: an empty PST, and edits of it, read back by our own reader and checked for
//! consistency: rows against nodes, counts against rows, copies against originals.
#![allow(clippy::unwrap_used)]

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

fn commit(set: &WriteSet, file: &Arc<MemStorage>) {
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
            (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect(),
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
    commit(&tx.finish().unwrap(), &file);
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

/// What the file must hold.
#[derive(Clone, Default)]
struct Model {
    folders: BTreeMap<Nid, (Nid, PropBag)>,
    messages: BTreeMap<Nid, (Nid, bool, MessageData)>,
}

impl Model {
    fn new(pst: &Pst) -> Self {
        let mut model = Self::default();
        for f in pst.folders().unwrap() {
            model
                .folders
                .insert(f.nid, (f.parent, pst.folder(f.nid).unwrap().props));
        }
        model
    }

    fn nth<K: Copy, V>(map: &BTreeMap<K, V>, n: u32) -> Option<K> {
        map.keys().nth(n as usize % map.len().max(1)).copied()
    }

    fn inside(&self, mut at: Nid, ancestor: Nid) -> bool {
        while at != Nid::ROOT_FOLDER {
            if at == ancestor {
                return true;
            }
            at = self.folders[&at].0;
        }
        ancestor == Nid::ROOT_FOLDER
    }

    fn delete(&mut self, folder: Nid) {
        let children: Vec<Nid> = self
            .folders
            .iter()
            .filter(|(n, (p, _))| *p == folder && **n != folder)
            .map(|(n, _)| *n)
            .collect();
        children.into_iter().for_each(|c| self.delete(c));
        self.folders.remove(&folder);
        self.messages.retain(|_, (f, ..)| *f != folder);
    }

    fn equals(&self, pst: &Pst) {
        let folders: BTreeMap<Nid, Nid> = pst
            .folders()
            .unwrap()
            .iter()
            .map(|f| (f.nid, f.parent))
            .collect();
        assert_eq!(
            folders,
            self.folders.iter().map(|(n, (p, _))| (*n, *p)).collect()
        );
        for (nid, (_, props)) in &self.folders {
            let record = |p: &PropBag| {
                pst::canonical::Record::folder(p, pst.names())
                    .unwrap()
                    .fingerprint()
            };
            assert_eq!(
                record(&pst.folder(*nid).unwrap().props),
                record(props),
                "folder {nid}"
            );
        }
        let mut found = BTreeMap::new();
        for m in pst.index().unwrap().messages.values().flatten() {
            found.insert(m.nid, (m.entry.nid_parent, m.associated));
        }
        assert_eq!(
            found,
            self.messages
                .iter()
                .map(|(n, (f, a, _))| (*n, (*f, *a)))
                .collect()
        );
        for (nid, (_, a, data)) in &self.messages {
            let record =
                |m: &MessageData| pst::canonical::Record::message(m, *a, pst.names()).unwrap();
            assert_eq!(
                record(&pst.message(*nid).unwrap()),
                record(data),
                "message {nid}"
            );
        }
    }
}

/// A message that depends on `seed` in every part: sizes around the borders of heap and stream.
fn varied(seed: u32) -> MessageData {
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

/// Does one random edit on both; edits that the rules forbid must be refused.
fn edit(tx: &mut Transaction, model: &mut Model, (op, a, b, seed): (u8, u32, u32, u32)) {
    let folder_at = |model: &Model, n| Model::nth(&model.folders, n).unwrap();
    let (fa, fb) = (folder_at(model, a), folder_at(model, b));
    let message_at = Model::nth(&model.messages, a);
    match op % 16 {
        0 | 1 => {
            let props = folder(&format!("Folder {seed}"));
            let nid = tx.create_folder(fa, None, &props).unwrap();
            model.folders.insert(nid, (fa, props));
        }
        2 => {
            let mut props = folder(&format!("Renamed {seed}"));
            props.insert(PropValue::i32(0x3602, 77)); // a count that must be ignored
            tx.update_folder(fa, &props).unwrap();
            model.folders.get_mut(&fa).unwrap().1 = props;
        }
        3 => {
            let done = tx.move_folder(fa, fb);
            if fa == Nid::ROOT_FOLDER || model.inside(fb, fa) {
                if model.folders[&fa].0 != fb {
                    assert!(
                        matches!(done, Err(PstError::Refused(_))),
                        "{fa} into {fb}: {done:?}"
                    );
                }
            } else {
                done.unwrap();
                model.folders.get_mut(&fa).unwrap().0 = fb;
            }
        }
        4 if fa != IPM_SUBTREE && fa != Nid::ROOT_FOLDER => {
            tx.delete_folder(fa).unwrap();
            model.delete(fa);
        }
        5..=9 => {
            let (data, associated) = (varied(seed), seed % 11 == 0);
            let nid = tx.add_message(fa, None, &data, associated).unwrap();
            model.messages.insert(nid, (fa, associated, data));
        }
        10 | 11 => {
            if let Some(nid) = message_at {
                let entry = model.messages.get_mut(&nid).unwrap();
                let mut data = entry.2.clone();
                match seed % 4 {
                    0 => data = varied(seed),
                    1 => {
                        data.props
                            .insert(PropValue::string(tags::SUBJECT, &format!("Changed {seed}")));
                    }
                    2 => data
                        .attachments
                        .push(attachment("more.bin", vec![seed as u8; 9_000])),
                    _ => {
                        data.attachments.truncate(1);
                        data.recipients.clear();
                    }
                }
                tx.update_message(nid, &data).unwrap();
                entry.2 = data;
            }
        }
        12 | 13 => {
            if let Some(nid) = message_at {
                tx.move_message(nid, fb).unwrap();
                model.messages.get_mut(&nid).unwrap().0 = fb;
            }
        }
        14 => {
            if let Some(nid) = message_at {
                tx.delete_message(nid).unwrap();
                model.messages.remove(&nid);
            }
        }
        15 => {
            // The same NID again after a delete.
            if let Some(nid) = message_at {
                tx.delete_message(nid).unwrap();
                let (data, associated) = (varied(seed), nid.kind() == NidType::ASSOC_MESSAGE);
                assert_eq!(
                    tx.add_message(fb, Some(nid), &data, associated).unwrap(),
                    nid
                );
                assert!(tx.add_message(fb, Some(nid), &data, associated).is_err());
                model.messages.insert(nid, (fb, associated, data));
            }
        }
        _ => {}
    }
}

fn clean(pst: &Pst) {
    let findings = pst::check::check(pst.ndb());
    assert!(findings.is_empty(), "{findings:#?}");
}

type Edit = (u8, u32, u32, u32);

fn run(batches: &[Vec<Edit>]) {
    let file = empty();
    let mut model = Model::new(&open(&file));
    for batch in batches {
        let before = file.clone();
        let mut tx = begin(&file);
        let mut same = begin(&before);
        let mut copy = model.clone();
        for e in batch {
            edit(&mut tx, &mut model, *e);
            edit(&mut same, &mut copy, *e);
        }
        let set = tx.finish().unwrap();
        assert_eq!(
            format!("{set:?}"),
            format!("{:?}", same.finish().unwrap()),
            "not a pure function"
        );
        commit(&set, &file);
        let pst = open(&file);
        clean(&pst);
        consistent(&pst);
        model.equals(&pst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_edits_leave_what_a_plain_model_leaves(
        batches in prop::collection::vec(prop::collection::vec(any::<Edit>(), 0..12), 1..8)
    ) {
        run(&batches);
    }
}

#[test]
fn real_mail_copied_into_a_new_file_dumps_the_same() {
    let Some(dir) = support::shared() else { return };
    for name in support::UNICODE_FILES {
        let source = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let source = Pst::open(support::bytes(source)).unwrap();
        let file = empty();
        let mut tx = begin(&file);
        // A name that shifts all ids, so that translating them is not the identity.
        tx.named_id(&PropName::string(Guid::PS_PUBLIC_STRINGS, "shift"))
            .unwrap();
        let top = tx.create_folder(IPM_SUBTREE, None, &folder("top")).unwrap();
        let mut want = Vec::new();
        let mut got = Vec::new();
        for entry in source.index().unwrap().messages.values().flatten() {
            let m = tx
                .import_message(&source.message(entry.nid).unwrap(), source.names())
                .unwrap();
            let nid = tx.add_message(top, None, &m, entry.associated).unwrap();
            want.push(source.record(kind(entry.associated), entry.nid).unwrap());
            got.push((nid, entry.associated));
        }
        commit(&tx.finish().unwrap(), &file);
        let pst = open(&file);
        clean(&pst);
        consistent(&pst);
        for ((nid, associated), want) in got.iter().zip(&want) {
            let record = pst.record(kind(*associated), *nid).unwrap();
            assert_eq!(
                record.fingerprint(),
                want.fingerprint(),
                "{name}: {record:#?} not {want:#?}"
            );
        }
        println!("{name}: {} messages", got.len());
    }
}

fn kind(associated: bool) -> pst::derived::ObjectKind {
    if associated {
        pst::derived::ObjectKind::Associated
    } else {
        pst::derived::ObjectKind::Message
    }
}

#[test]
fn real_files_are_edited_without_harm() {
    let Some(dir) = support::shared() else { return };
    for name in support::UNICODE_FILES {
        let bytes = std::fs::read(dir.join("corpus").join(name)).unwrap();
        let file = Arc::new(MemStorage::from(bytes));
        let before = open(&file);
        let findings = |pst: &Pst| -> BTreeMap<&'static str, usize> {
            let mut out = BTreeMap::new();
            for f in pst::check::check(pst.ndb()) {
                *out.entry(f.code).or_insert(0) += 1;
            }
            out
        };
        let (faults, inventory) = (findings(&before), Inventory::read(&before).unwrap());
        let dumped = lines(&before);
        let all: Vec<_> = before
            .index()
            .unwrap()
            .messages
            .values()
            .flatten()
            .cloned()
            .collect();
        let mut tx = begin(&file);
        // An OST's store names no such folder.
        let parent = tx.ipm_subtree().unwrap_or(Nid::ROOT_FOLDER);
        let made = tx.create_folder(parent, None, &folder("Ours")).unwrap();
        let added = tx.add_message(made, None, &varied(14), false).unwrap();
        // Rewriting a message with what it holds changes nothing that can be seen.
        for m in &all {
            let data = before.message(m.nid).unwrap();
            tx.update_message(m.nid, &data).unwrap();
        }
        if let Some(first) = all.first() {
            tx.move_message(first.nid, made).unwrap();
        }
        commit(&tx.finish().unwrap(), &file);
        let after = open(&file);
        consistent_where_touched(&after, &[made, parent]);
        let now = Inventory::read(&after).unwrap();
        for (nid, row) in &inventory.rows {
            assert_eq!(now.rows[nid].fingerprint, row.fingerprint, "{name} {nid}");
        }
        assert_eq!(now.rows.len(), inventory.rows.len() + 2);
        // Undo, and everything is where it was.
        let mut tx = begin(&file);
        if let Some(first) = all.first() {
            tx.move_message(first.nid, first.entry.nid_parent).unwrap();
        }
        tx.delete_message(added).unwrap();
        tx.delete_folder(made).unwrap();
        commit(&tx.finish().unwrap(), &file);
        let back = open(&file);
        assert_eq!(
            Inventory::read(&back).unwrap().digest(),
            inventory.digest(),
            "{name}"
        );
        assert_eq!(lines(&back), dumped, "{name}");
        for (code, n) in findings(&back) {
            assert!(
                n <= faults.get(code).copied().unwrap_or(0),
                "{name}: {n} times {code}, was {faults:?}"
            );
        }
        println!("{name}: {} objects", inventory.rows.len());
    }
}

fn consistent_where_touched(pst: &Pst, folders: &[Nid]) {
    let index = pst.index().unwrap();
    for nid in folders {
        let props = pst.folder(*nid).unwrap().props;
        let n = index
            .messages
            .get(nid)
            .map_or(0, |m| m.iter().filter(|m| !m.associated).count());
        assert_eq!(props.i32(tags::CONTENT_COUNT), Some(n as i32));
    }
}

#[test]
fn the_search_queue_gets_what_the_search_domain_asks_for() {
    let Some(dir) = support::shared() else { return };
    let bytes = std::fs::read(dir.join("corpus/password.pst")).unwrap();
    let file = Arc::new(MemStorage::from(bytes));
    let queue = |pst: &Pst| -> Vec<Vec<u8>> {
        let entry = pst
            .ndb()
            .node(Nid::SEARCH_MANAGEMENT_QUEUE)
            .unwrap()
            .unwrap();
        if entry.bid_data.is_none() {
            return Vec::new();
        }
        let tree = pst.ndb().data(entry.bid_data).unwrap();
        let data = tree.read_all(pst.ndb(), 1 << 20).unwrap();
        assert_eq!(data.len() % 20, 0);
        data.chunks(20).map(<[u8]>::to_vec).collect()
    };
    assert!(queue(&open(&file)).is_empty());
    let domain = {
        let pst = open(&file);
        let entry = pst.ndb().node(Nid::SEARCH_DOMAIN_OBJECT).unwrap().unwrap();
        let data = pst
            .ndb()
            .data(entry.bid_data)
            .unwrap()
            .read_all(pst.ndb(), 1 << 20)
            .unwrap();
        data.chunks(4)
            .map(|c| Nid(u32::from_le_bytes(c.try_into().unwrap())).index())
            .collect::<BTreeSet<_>>()
    };
    let pst = open(&file);
    let folders: Vec<Nid> = pst.folders().unwrap().iter().map(|f| f.nid).collect();
    drop(pst);
    let inside: Vec<Nid> = folders
        .iter()
        .copied()
        .filter(|f| domain.contains(&f.index()))
        .collect();
    let outside: Vec<Nid> = folders
        .iter()
        .copied()
        .filter(|f| !domain.contains(&f.index()))
        .collect();
    println!("domain {domain:x?}, inside {inside:?}, outside {outside:?}");
    let mut tx = begin(&file);
    let quiet = tx
        .add_message(outside[0], None, &message(1, 10, true), false)
        .unwrap();
    let f = inside[0];
    let nid = tx
        .add_message(f, None, &message(2, 10, true), false)
        .unwrap();
    tx.update_message(nid, &message(3, 10, true)).unwrap();
    tx.delete_message(nid).unwrap();
    tx.move_message(quiet, f).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let after = open(&file);
    // Add, modify, modify the row, delete, move from outside the domain into it.
    let kinds: Vec<_> = queue(&after)
        .iter()
        .map(|s| (u16::from_le_bytes([s[0], s[1]]), s[2]))
        .collect();
    assert_eq!(
        kinds,
        [
            (0x8000, 1),
            (0x8000, 2),
            (0x8000, 12),
            (0x8000, 3),
            (0x8010, 4)
        ]
    );
    clean_of_errors(&after);
}

fn clean_of_errors(pst: &Pst) {
    let findings = pst::check::check(pst.ndb());
    assert!(
        findings
            .iter()
            .all(|f| f.severity < pst::check::Severity::Error),
        "{findings:#?}"
    );
}

#[test]
fn raw_nodes_are_carried_as_they_are_and_search_folders_get_their_rows() {
    let file = empty();
    let source = empty();
    // A search folder under the search root, made from the one that every file has.
    let from = open(&source);
    let entry = from.ndb().node(Nid(0x2223)).unwrap().unwrap();
    let content = || {
        pst::ltp::NodeSource::stored(from.ndb(), entry.bid_data, entry.bid_sub)
            .to_content(None)
            .unwrap()
    };
    let nid = Nid(0x8_0023);
    let mut tx = begin(&file);
    tx.put_raw_node(nid, pst::messaging::SEARCH_ROOT, &content())
        .unwrap();
    assert!(matches!(
        tx.put_raw_node(Nid(0x201), Nid(0), &content()),
        Err(PstError::Refused(_))
    ));
    assert!(matches!(
        tx.put_raw_node(Nid(0x802E), Nid(0), &content()),
        Err(PstError::Refused(_))
    ));
    assert!(matches!(
        tx.delete_raw_node(Nid::MESSAGE_STORE),
        Err(PstError::Refused(_))
    ));
    let odd = tx.alloc_nid(NidType::INTERNAL).unwrap();
    tx.put_raw_node(odd, Nid(0), &content()).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    for companion in [NidType::SEARCH_UPDATE_QUEUE, NidType::SEARCH_CONTENTS_TABLE] {
        assert!(pst.ndb().node(nid.with_kind(companion)).unwrap().is_some());
    }
    let raw = pst::derived::ObjectKind::Raw;
    assert_eq!(
        pst.fingerprint(raw, nid).unwrap(),
        from.fingerprint(raw, Nid(0x2223)).unwrap()
    );
    drop(pst);
    // Moved, then deleted with what belongs to it; deleting a folder takes its search folders along.
    let mut tx = begin(&file);
    tx.set_raw_parent(nid, IPM_SUBTREE).unwrap();
    commit(&tx.finish().unwrap(), &file);
    consistent(&open(&file));
    let mut tx = begin(&file);
    tx.delete_raw_node(nid).unwrap();
    tx.delete_raw_node(odd).unwrap();
    let holder = tx
        .create_folder(IPM_SUBTREE, None, &folder("holder"))
        .unwrap();
    commit(&tx.finish().unwrap(), &file);
    let mut tx = begin(&file);
    tx.put_raw_node(nid, holder, &content()).unwrap();
    commit(&tx.finish().unwrap(), &file);
    consistent(&open(&file));
    let mut tx = begin(&file);
    tx.delete_folder(holder).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    assert_eq!(
        Inventory::read(&pst).unwrap().digest(),
        Inventory::read(&open(&source)).unwrap().digest()
    );
}

/// A reader that knows messages by their number alone must not take one for another.
#[test]
fn embedded_messages_share_no_number_with_messages_in_folders() {
    fn inner(ndb: &Arc<pst::ndb::Ndb>, sub: pst::Bid, out: &mut Vec<Nid>) {
        if sub.is_none() {
            return;
        }
        for (nid, entry) in ndb.subnodes(sub).unwrap() {
            if nid.kind() == NidType::NORMAL_MESSAGE {
                out.push(nid);
            }
            inner(ndb, entry.bid_sub, out);
        }
    }
    let file = empty();
    let mut tx = begin(&file);
    let folder = tx.create_folder(IPM_SUBTREE, None, &folder("F")).unwrap();
    let first = tx.alloc_nid(NidType::NORMAL_MESSAGE).unwrap().index() + 1;
    // As when mail comes from another file: with its number.
    for n in 0..4 {
        let mut outer = message(n, 10, true);
        outer.attachments = vec![
            embedded(message(n + 100, 10, true)),
            embedded(message(n + 200, 10, true)),
        ];
        let nid = Nid::new(NidType::NORMAL_MESSAGE, first + n);
        assert_eq!(
            tx.add_message(folder, Some(nid), &outer, false).unwrap(),
            nid
        );
    }
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    let index = pst.index().unwrap();
    let mut all = Vec::new();
    for entry in index.messages.values().flatten() {
        all.push(entry.nid);
        inner(pst.ndb(), entry.entry.bid_sub, &mut all);
    }
    assert_eq!(all.len(), 12);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 12, "{all:?}");
}

#[test]
fn refusals_leave_the_file_alone() {
    let file = empty();
    let mut tx = begin(&file);
    let m = message(1, 10, true);
    let a = tx.create_folder(IPM_SUBTREE, None, &folder("a")).unwrap();
    let b = tx.create_folder(a, None, &folder("b")).unwrap();
    let refused =
        |r: Result<Nid, PstError>| assert!(matches!(r, Err(PstError::Refused(_))), "{r:?}");
    let missing =
        |r: Result<Nid, PstError>| assert!(matches!(r, Err(PstError::NotFound { .. })), "{r:?}");
    refused(tx.move_folder(a, b).map(|()| a));
    refused(tx.delete_folder(Nid::ROOT_FOLDER).map(|()| a));
    refused(tx.create_folder(IPM_SUBTREE, Some(a), &folder("again")));
    refused(tx.add_message(a, Some(Nid(0x8_0008)), &m, false));
    missing(tx.add_message(Nid(0xFFFF_0002), None, &m, false));
    missing(tx.update_message(Nid(0x20_0024), &m).map(|()| a));
    missing(tx.move_message(Nid(0x20_0024), a).map(|()| a));
    missing(tx.delete_message(Nid(0x20_0024)).map(|()| a));
    missing(tx.update_folder(Nid(0x20_0024), &folder("x")).map(|()| a));
    tx.delete_folder(a).unwrap();
    missing(tx.add_message(b, None, &m, false));
    let mut deep = m.clone();
    for _ in 0..40 {
        deep = MessageData {
            attachments: vec![embedded(deep)],
            ..m.clone()
        };
    }
    assert!(matches!(
        tx.add_message(IPM_SUBTREE, None, &deep, false),
        Err(PstError::Limit { .. })
    ));
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    assert_eq!(lines(&pst), lines(&open(&empty())));
}
