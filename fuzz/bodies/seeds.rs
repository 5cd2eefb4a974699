//! The seeds: files of our own making, small, with one of everything. The same each time.

use std::sync::{Arc, OnceLock};

use pst::ltp::{PropBag, PropTag, PropValue};
use pst::messaging::{
    AttachmentData, MessageData, Transaction, create_empty, create_empty_as, tags,
};
use pst::ndb::CryptMethod;
use pst::ndb::format::ANSI;
use pst::{Nid, NidType};
use storage::{MemStorage, ReadAt};

/// A small store: two folders, messages with a body in the heap, in a subnode and in several blocks,
/// recipients, attachments, an embedded message, an associated message, multi-valued and named
/// properties.
pub fn store() -> &'static [u8] {
    static STORE: OnceLock<Vec<u8>> = OnceLock::new();
    STORE.get_or_init(|| build(create_empty(b"seeds of fuzzing").expect("makes"), true))
}

/// What [`store`] has, in an edit.
pub fn build(empty: Vec<u8>, rich: bool) -> Vec<u8> {
    let file = Arc::new(MemStorage::from(empty));
    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).expect("begins");
    fill(&mut tx, rich);
    tx.finish()
        .expect("finishes")
        .commit(&*file)
        .expect("commits");
    file.to_vec()
}

fn fill(tx: &mut Transaction, rich: bool) {
    let top = tx.ipm_subtree().expect("a top folder");
    let named = |name: &str| PropBag::from_iter([PropValue::string(tags::DISPLAY_NAME, name)]);
    let inbox = tx.create_folder(top, None, &named("Inbox")).expect("makes");
    let sub = tx.create_folder(inbox, None, &named("Sub")).expect("makes");
    tx.add_message(inbox, None, &message(1, 40), false)
        .expect("adds");
    if !rich {
        return;
    }
    let mut full = message(2, 6_000);
    full.recipients.push(recipient("to"));
    full.recipients.push(recipient("cc"));
    full.attachments
        .push(attachment("small.txt", b"some bytes"));
    full.attachments
        .push(attachment("long.bin", &[0x5A; 9_000]));
    let mut inner = message(3, 100);
    inner.attachments.push(attachment("deep.txt", b"deep"));
    full.attachments.push(AttachmentData {
        props: PropBag::from_iter([
            PropValue::i32(tags::ATTACH_SIZE, 500),
            PropValue::i32(tags::ATTACH_METHOD, tags::METHOD_EMBEDDED),
            PropValue::i32(0x370B, -1),
        ]),
        embedded: Some(Box::new(inner)),
    });
    tx.add_message(inbox, None, &full, false).expect("adds");
    tx.add_message(sub, None, &message(4, 20_000), false)
        .expect("adds");
    tx.add_message(sub, None, &message(5, 10), true)
        .expect("adds");
    let raw = pst::ltp::build_pc(&named("raw"), None).expect("builds");
    tx.put_raw_node(Nid(0x0F01), Nid(0), &raw).expect("puts");
}

pub fn message(n: u32, body: usize) -> MessageData {
    let text: String = format!("line {n} ").repeat(body / 7 + 1);
    let mut multi = 2u32.to_le_bytes().to_vec();
    for word in [12u32, 16] {
        multi.extend_from_slice(&word.to_le_bytes());
    }
    multi.extend_from_slice(b"a\0b\0c\0");
    MessageData {
        props: PropBag::from_iter([
            PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
            PropValue::string(tags::SUBJECT, &format!("Subject {n}")),
            PropValue::i32(tags::MESSAGE_FLAGS, i32::from(n.is_multiple_of(2))),
            PropValue::i32(tags::MESSAGE_SIZE, 1000),
            PropValue::time(tags::MESSAGE_DELIVERY_TIME, 130_000_000_000_000_000),
            PropValue::time(0x3007, 130_000_000_000_000_000),
            PropValue::time(0x3008, 130_000_000_000_000_000),
            PropValue::binary(tags::SEARCH_KEY, vec![n as u8; 16]),
            PropValue::string(tags::BODY, &text),
            // A multi-valued string, and a named property.
            PropValue::new(PropTag(0x6801_101F), multi),
            PropValue::i32(0x8000, 7),
        ]),
        ..MessageData::default()
    }
}

pub fn recipient(name: &str) -> PropBag {
    PropBag::from_iter([
        PropValue::i32(tags::RECIPIENT_TYPE, 1),
        PropValue::string(tags::DISPLAY_NAME, name),
        PropValue::string(tags::ADDRESS_TYPE, "SMTP"),
        PropValue::string(tags::EMAIL_ADDRESS, &format!("{name}@example.org")),
    ])
}

pub fn attachment(name: &str, data: &[u8]) -> AttachmentData {
    AttachmentData {
        props: PropBag::from_iter([
            PropValue::i32(tags::ATTACH_SIZE, data.len() as i32),
            PropValue::string(tags::ATTACH_LONG_FILENAME, name),
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::i32(0x370B, -1),
            PropValue::binary(tags::ATTACH_DATA, data.to_vec()),
        ]),
        embedded: None,
    }
}

/// The seeds of a target, with names for their files.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "walk" | "check" => files(),
        "apply" => super::packages::seeds(),
        _ => super::structures::seeds(),
    }
}

/// Whole files, without the free space at their end: the engine asks for it, the fuzzer need not.
fn files() -> Vec<(String, Vec<u8>)> {
    let bare = pst::ndb::Ndb::create_empty_ndb();
    let empty = create_empty(b"seeds of fuzzing").expect("makes");
    let mut out = vec![
        ("bare".to_owned(), bare),
        ("store".to_owned(), store().to_vec()),
        ("one".to_owned(), build(empty.clone(), false)),
        ("empty".to_owned(), empty),
    ];
    for (_, bytes) in &mut out {
        shrink(bytes);
    }
    let ansi = create_empty_as(b"seeds of fuzzing", &ANSI, CryptMethod::Cyclic).expect("makes");
    out.push(("ansi".to_owned(), build(ansi, true)));
    out
}

/// Cuts the free space at the end of a file off, and says so in the header.
fn shrink(bytes: &mut Vec<u8>) {
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
    bytes.truncate(used.next_multiple_of(512).max(0x4800));
    let len = bytes.len() as u64;
    let mut file = super::surgery::Patient::new(std::mem::take(bytes));
    file.header(|h| h[184..192].copy_from_slice(&len.to_le_bytes()));
    *bytes = file.bytes;
}

/// The nodes of a type in a file.
pub fn nids(file: &[u8], kind: NidType) -> Vec<Nid> {
    let ndb = pst::ndb::Ndb::open(super::memory(file)).expect("opens");
    let all = ndb.nodes().map(|n| n.expect("a node").nid);
    all.filter(|n| n.kind() == kind).collect()
}
