//! Large folders ([MS-PST] 2.6.2.4, 2.6.3.2): an edit of one message costs blocks and pages for what
//! changes, not for the table. A user with 100,000 messages in a folder on a share pays for every
//! block of an edit with a round trip; an engine that writes the table anew sends 36 MB for one mail.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pst::check::{Severity, check, check_ltp};
use pst::ltp::{PropBag, PropValue, TableContext};
use pst::messaging::{IPM_SUBTREE, MessageData, Pst, Transaction, tags};
use pst::ndb::{NdbTransaction, NodeContent, NodeData, Subnodes};
use pst::{Nid, NidType};
use storage::{MemStorage, ReadAt, WriteSet};
use support::mail::*;

/// Blocks and pages that an edit of one message in one folder may write. Allocation map pages, which
/// are changed in place (512 bytes each), are counted beside them.
const LIMIT: usize = 40;
/// As `LIMIT`, for edits that move a row: of two folders, or the last one into a gap.
const MOVE_LIMIT: usize = 56;
/// Allocation map pages that an edit may change.
const MAP_LIMIT: usize = 24;

/// Bytes of the file that an edit may read: the table alone has 36 MB.
const READ_LIMIT: u64 = 1 << 20;

/// A storage that counts what is read from it.
struct Counting(Arc<MemStorage>, AtomicU64);

impl ReadAt for Counting {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(offset, buf)
    }
}

fn small(n: u32) -> MessageData {
    let key: Vec<u8> = n.to_le_bytes().repeat(4);
    MessageData {
        props: PropBag::from_iter([
            PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
            PropValue::string(
                tags::SUBJECT,
                &format!("Subject {n} of a folder that is full"),
            ),
            PropValue::string(0x0042, &format!("Sender {}", n % 777)),
            PropValue::string(0x0E04, "Somebody; Somebody Else"),
            PropValue::string(0x0070, &format!("Subject {}", n % 1000)),
            PropValue::i32(tags::MESSAGE_FLAGS, i32::from(n.is_multiple_of(3))),
            PropValue::i32(tags::MESSAGE_SIZE, 1000),
            PropValue::i32(tags::MESSAGE_STATUS, 0),
            PropValue::time(0x0E06, 130_000_000_000_000_000 + u64::from(n)),
            PropValue::time(0x3007, 130_000_000_000_000_000 + u64::from(n)),
            PropValue::time(0x3008, 130_000_000_000_000_000 + u64::from(n)),
            PropValue::binary(tags::SEARCH_KEY, key),
            PropValue::string(0x1000, "A short body."),
        ]),
        recipients: vec![recipient("somebody")],
        attachments: Vec::new(),
    }
}

/// A file with two folders, the first with `count` messages, made in one transaction. Both are in the
/// search domain: each edit is told to the search engine.
fn made(count: u32) -> (Arc<MemStorage>, Nid, Nid, Vec<Nid>) {
    let file = empty();
    let mut tx = begin(&file);
    let full = tx
        .create_folder(IPM_SUBTREE, None, &folder("Full"))
        .unwrap();
    let other = tx
        .create_folder(IPM_SUBTREE, None, &folder("Other"))
        .unwrap();
    let nids = (0..count)
        .map(|n| tx.add_message(full, None, &small(n), false).unwrap())
        .collect();
    commit(&tx.finish().unwrap(), &file);
    let mut tx = NdbTransaction::begin(Arc::clone(open(&file).ndb())).unwrap();
    let domain = NodeContent {
        data: NodeData::Bytes([full.0.to_le_bytes(), other.0.to_le_bytes()].concat()),
        subnodes: Subnodes::None,
    };
    tx.put_node(Nid::SEARCH_DOMAIN_OBJECT, Nid(0), &domain)
        .unwrap();
    commit(&tx.finish().unwrap(), &file);
    (file, full, other, nids)
}

/// How many blocks and pages an edit wrote, by the counters that number them, with the allocation
/// map pages that it changed; and the bytes of the whole write set.
fn written(before: &Pst, after: &Pst, set: &WriteSet) -> (usize, usize, usize, u64) {
    let (old, new) = (before.ndb().header(), after.ndb().header());
    let blocks = (new.bid_next_block.0 - old.bid_next_block.0) / 4;
    let pages = new.bid_next_page.0 - old.bid_next_page.0;
    let maps = set.phases.iter().filter(|p| p.name == "maps");
    let maps: usize = maps.map(|p| p.writes.len()).sum();
    let bytes = set.phases.iter().flat_map(|p| &p.writes);
    let bytes = bytes.map(|(_, data)| data.len()).sum();
    (blocks as usize, pages as usize, maps, bytes)
}

/// The rows of a folder's contents table against its messages, and its counts, without reading
/// every message again.
fn rows_right(pst: &Pst, folder: Nid, messages: &BTreeSet<Nid>) {
    let ndb = pst.ndb();
    let entry = ndb
        .node(folder.with_kind(NidType::CONTENTS_TABLE))
        .unwrap()
        .unwrap();
    let table = TableContext::open(ndb, entry.bid_data, entry.bid_sub).unwrap();
    let ids: BTreeSet<Nid> = table.row_ids().map(Nid).collect();
    assert_eq!(&ids, messages);
    let mut unread = 0;
    let mut versions = BTreeSet::new();
    for row in table.rows() {
        let row = row.unwrap();
        assert!(versions.insert(row.version), "two rows of one version");
        unread += i32::from(row.props.i32(tags::MESSAGE_FLAGS).unwrap() & 1 == 0);
    }
    assert!(versions.last().is_none_or(|v| *v < ndb.header().unique));
    let props = pst.folder(folder).unwrap().props;
    assert_eq!(
        props.i32(tags::CONTENT_COUNT),
        Some(i32::try_from(ids.len()).unwrap())
    );
    assert_eq!(props.i32(tags::CONTENT_UNREAD), Some(unread));
    let above = ndb
        .node(IPM_SUBTREE.with_kind(NidType::HIERARCHY_TABLE))
        .unwrap()
        .unwrap();
    let above = TableContext::open(ndb, above.bid_data, above.bid_sub).unwrap();
    let row = above.row_by_id(folder.0).unwrap().unwrap();
    for tag in [tags::CONTENT_COUNT, tags::CONTENT_UNREAD] {
        assert_eq!(row.props.i32(tag), props.i32(tag));
    }
}

fn sound(pst: &Pst) {
    let findings: Vec<_> = check(pst.ndb())
        .into_iter()
        .chain(check_ltp(pst.ndb()))
        .collect();
    let bad: Vec<_> = findings
        .iter()
        .filter(|f| f.severity > Severity::Info || f.code.starts_with("heap"))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(findings.is_empty(), "{findings:#?}");
}

fn row(pst: &Pst, folder: Nid, message: Nid) -> PropBag {
    let entry = pst
        .ndb()
        .node(folder.with_kind(NidType::CONTENTS_TABLE))
        .unwrap()
        .unwrap();
    let table = TableContext::open(pst.ndb(), entry.bid_data, entry.bid_sub).unwrap();
    table.row_by_id(message.0).unwrap().unwrap().props
}

#[test]
fn one_edit_in_a_folder_of_a_hundred_thousand() {
    let count = std::env::var("PST_LARGE_FOLDER").map_or(100_000, |n| n.parse().unwrap());
    let begun = std::time::Instant::now();
    let (file, full, other, nids) = made(count);
    println!("made in {:?}", begun.elapsed());
    let mut expected: BTreeSet<Nid> = nids.iter().copied().collect();
    let mut elsewhere = BTreeSet::new();

    let step = |what: &str, limit: usize, edit: &mut dyn FnMut(&mut Transaction)| {
        let counting = Arc::new(Counting(Arc::clone(&file), AtomicU64::new(0)));
        let mut tx = Transaction::begin(Arc::clone(&counting) as Arc<dyn ReadAt>).unwrap();
        edit(&mut tx);
        let set = tx.finish().unwrap();
        let read = counting.1.load(Ordering::Relaxed);
        let before = Pst::open(Arc::new(MemStorage::from(file.to_vec()))).unwrap();
        commit(&set, &file);
        let (blocks, pages, maps, bytes) = written(&before, &open(&file), &set);
        println!(
            "{what}: {blocks} blocks, {pages} pages, {maps} map pages; {bytes} bytes written, {read} read"
        );
        assert!(read <= READ_LIMIT, "{what}");
        assert!(blocks + pages <= limit && maps <= MAP_LIMIT, "{what}");
    };
    for n in 0..3 {
        step("add", LIMIT, &mut |tx| {
            expected.insert(
                tx.add_message(full, None, &small(count + n), false)
                    .unwrap(),
            );
        });
    }
    let changed = nids[nids.len() / 2];
    for text in [
        "Another subject",
        "A subject that is longer than the one before",
    ] {
        step("update", LIMIT, &mut |tx| {
            let mut data = small(1);
            data.props.insert(PropValue::string(tags::SUBJECT, text));
            tx.update_message(changed, &data).unwrap();
        });
    }
    let read = nids[7];
    step("read", LIMIT, &mut |tx| {
        let mut data = small(7);
        data.props.insert(PropValue::i32(tags::MESSAGE_FLAGS, 1));
        tx.update_message(read, &data).unwrap();
    });
    let moved = nids[nids.len() / 3];
    step("move", MOVE_LIMIT, &mut |tx| {
        tx.move_message(moved, other).unwrap();
    });
    expected.remove(&moved);
    elsewhere.insert(moved);
    for at in [nids.len() / 5, nids.len() - 1, 0] {
        step("delete", MOVE_LIMIT, &mut |tx| {
            tx.delete_message(nids[at]).unwrap();
        });
        expected.remove(&nids[at]);
    }

    let pst = open(&file);
    rows_right(&pst, full, &expected);
    rows_right(&pst, other, &elsewhere);
    assert_eq!(
        row(&pst, full, changed).str(tags::SUBJECT).as_deref(),
        Some("A subject that is longer than the one before")
    );
    sound(&pst);
    // Ten edits of one message each; an update is two changes to the search engine.
    let queue = pst.ndb().node(Nid::SEARCH_MANAGEMENT_QUEUE).unwrap();
    let queue = pst.ndb().data(queue.unwrap().bid_data).unwrap();
    assert_eq!(queue.len(), 20 * (3 + 2 * 3 + 1 + 3));
    println!("all in {:?}", begun.elapsed());
}

/// Many edits of one folder in one transaction: each costs what it changes, however many there are.
#[test]
fn thousands_of_edits_in_one_transaction() {
    let count = std::env::var("PST_LARGE_FOLDER").map_or(8_000, |n| n.parse().unwrap());
    let (file, full, other, nids) = made(count);
    let mut expected: BTreeSet<Nid> = nids.iter().copied().collect();
    let mut elsewhere = BTreeSet::new();
    let before = open(&file);
    let begun = std::time::Instant::now();
    let mut tx = begin(&file);
    for n in 0..count / 10 {
        let new = tx.add_message(full, None, &small(count + n), false);
        expected.insert(new.unwrap());
    }
    println!("{} added in {:?}", count / 10, begun.elapsed());
    for (n, nid) in nids.iter().enumerate().skip(nids.len() / 2).step_by(20) {
        match n % 3 {
            0 => tx.update_message(*nid, &small(n as u32 + 77)).unwrap(),
            1 => {
                tx.move_message(*nid, other).unwrap();
                expected.remove(nid);
                elsewhere.insert(*nid);
            }
            _ => {
                tx.delete_message(*nid).unwrap();
                expected.remove(nid);
            }
        }
    }
    let set = tx.finish().unwrap();
    println!("all gathered in {:?}", begun.elapsed());
    commit(&set, &file);
    let pst = open(&file);
    rows_right(&pst, full, &expected);
    rows_right(&pst, other, &elsewhere);
    sound(&pst);
    // The table was changed, not built anew: both versions share blocks of the heap.
    let blocks = |pst: &Pst| -> BTreeSet<u64> {
        let table = full.with_kind(NidType::CONTENTS_TABLE);
        let entry = pst.ndb().node(table).unwrap().unwrap();
        let tree = pst.ndb().data(entry.bid_data).unwrap();
        tree.block_bids().iter().map(|b| b.key()).collect()
    };
    assert!(blocks(&before).intersection(&blocks(&pst)).count() > 10);
}
