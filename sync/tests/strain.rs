//! Real files turned into one another, and mail of uncommon size and shape: what is applied is what
//! was compared, and the file stays whole.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

mod common;
#[path = "../../tests/support/skip.rs"]
mod skip;

use std::path::PathBuf;
use std::sync::Arc;

use common::*;
use pst::inventory::Inventory;
use pst::ltp::{Guid, PropBag, PropName, PropTag, PropType, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use pst::{Nid, Pst};
use storage::{CrashStorage, MemStorage, ReadAt};
use sync::{Action, Change, ObjectKind, Package, apply, compare, compile, expected};

/// Every file has one of another kind beside it: ANSI files become Unicode files and back.
const FILES: &[&str] = &[
    "aspose-outlook.pst",
    "ansi-32bit.pst",
    "ansi-contacts.pst",
    "contacts.pst",
    "dist-list.pst",
    "empty.pst",
    "enron.pst",
    "many-small.pst",
    "outlook_1-later.pst",
    "outlook_1.pst",
    "password.pst",
    "tika-testPST.pst",
    "unicode-two-messages.pst",
];

fn corpus() -> Option<PathBuf> {
    let dir = std::env::var_os("PSTSYNCD_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let corpus = dir.join("corpus");
    if corpus.is_dir() {
        return Some(corpus);
    }
    skip::skipped("corpus", "no corpus on this machine");
    None
}

fn open(mailbox: &Mailbox) -> Pst {
    Pst::open(Arc::clone(&mailbox.0) as Arc<dyn ReadAt>).expect("opens")
}

fn severe(pst: &Pst) -> Vec<String> {
    let findings = [
        pst::check::check(pst.ndb()),
        pst::check::check_ltp(pst.ndb()),
    ];
    let severe = findings.iter().flatten();
    severe
        .filter(|f| f.severity == pst::check::Severity::Error)
        .map(ToString::to_string)
        .collect()
}

/// Makes of `base` what `source` is, through an encoded package; the file that comes out.
fn ship(base: &Mailbox, source: &Mailbox) -> Mailbox {
    let (old, new) = (open(base), open(source));
    let (from, to) = (
        Inventory::read(&old).expect("reads"),
        Inventory::read(&new).expect("reads"),
    );
    let list: Vec<(Change, Nid)> = compare(&from, &to)
        .into_iter()
        .map(|c| (c.clone(), c.nid()))
        .collect();
    let package = compile(&new, list)
        .expect("compiles")
        .encode()
        .expect("encodes");
    let package = Package::decode(&package).expect("decodes");
    let out = base.twin();
    let file = Arc::clone(&out.0) as Arc<dyn ReadAt>;
    let applied = apply(file, &package).expect("applies");
    applied.write_set.commit(out.0.as_ref()).expect("commits");
    let after = open(&out);
    let inventory = Inventory::read(&after).expect("reads");
    let want = expected(&from, &package.changes, &applied.nid_map);
    assert_eq!(
        inventory.digest(),
        want.digest(),
        "what came out is not what was expected"
    );
    let again = apply(Arc::clone(&out.0) as Arc<dyn ReadAt>, &package).expect("applies again");
    assert_eq!(again.done, 0, "a second time changes nothing");
    out
}

/// The dump without the counts that each program keeps for itself (PidTagPstHiddenCount and the like).
fn comparable(pst: &Pst) -> Vec<String> {
    let mut lines = lines(pst);
    for line in &mut lines {
        for id in ["0x3617", "0x6635", "0x6636"] {
            let start = format!(",{{\"tag\":\"{id}\"");
            while let Some(at) = line.find(&start) {
                let len = line[at..].find('}').map_or(0, |n| n + 1);
                line.replace_range(at..at + len, "");
            }
        }
    }
    lines
}

fn assert_equal(a: &Mailbox, b: &Mailbox, what: &str) {
    let (a, b) = (comparable(&open(a)), comparable(&open(b)));
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a, b, "{what}");
    }
    assert_eq!(a.len(), b.len(), "{what}");
}

#[test]
fn real_files_become_one_another() {
    let Some(corpus) = corpus() else { return };
    let read = |name: &str| {
        let bytes = std::fs::read(corpus.join(name)).expect("reads");
        Mailbox(Arc::new(MemStorage::from(bytes)))
    };
    for (i, from) in FILES.iter().enumerate() {
        let to = FILES[(i + 1) % FILES.len()];
        let (a, b) = (read(from), read(to));
        let before = severe(&open(&a)).len();
        let what = format!("{from} to {to}");
        println!("{what}");
        let out = ship(&a, &b);
        assert_equal(&out, &b, &what);
        assert!(
            severe(&open(&out)).len() <= before,
            "{what}: {:?}",
            severe(&open(&out))
        );
        let back = ship(&out, &a);
        assert_equal(&back, &a, &format!("{what} and back"));
    }
}

/// An OST with 4 KiB pages is a source like any other, and refused as a target.
#[test]
fn an_ost_with_large_pages_is_copied_and_never_changed() {
    let Some(corpus) = corpus() else { return };
    let read = |name: &str| {
        let bytes = std::fs::read(corpus.join(name)).expect("reads");
        Mailbox(Arc::new(MemStorage::from(bytes)))
    };
    let ost = read("ost2013-4k.ost");
    let source = open(&ost);
    let there = Inventory::read(&source).expect("reads");
    // Its store is no PST's store: folders and messages are copied, nothing is deleted for them.
    let copied =
        |c: &Change| c.kind != ObjectKind::Raw && !matches!(c.action, Action::Delete { .. });
    for name in ["empty.pst", "ansi-contacts.pst"] {
        let target = read(name);
        let here = Inventory::read(&open(&target)).expect("reads");
        let changes = compare(&here, &there).into_iter().filter(copied);
        let list: Vec<(Change, Nid)> = changes.map(|c| (c.clone(), c.nid())).collect();
        assert!(list.len() > 200, "{}", list.len());
        let package = compile(&source, list).expect("compiles");
        let base = Arc::clone(&target.0) as Arc<dyn ReadAt>;
        let applied = apply(base, &package).expect("applies");
        applied
            .write_set
            .commit(target.0.as_ref())
            .expect("commits");
        let after = open(&target);
        let want = expected(&here, &package.changes, &applied.nid_map);
        let found = Inventory::read(&after).expect("reads");
        assert_eq!(found.digest(), want.digest(), "{name}");
        assert_eq!(severe(&after), Vec::<String>::new(), "{name}");
    }
    let old = open(&ost);
    let inventory = |pst: &Pst| Inventory::read(pst).expect("reads");
    let new = open(&read("empty.pst"));
    let changes = compare(&inventory(&old), &inventory(&new));
    let list = changes.into_iter().map(|c| (c.clone(), c.nid())).collect();
    let package = compile(&new, list).expect("compiles");
    let refused = apply(Arc::clone(&ost.0) as Arc<dyn ReadAt>, &package).expect_err("refuses");
    assert!(
        refused.to_string().contains("OST with 4 KiB pages"),
        "{refused}"
    );
}

#[test]
fn every_message_of_real_files_is_edited_and_half_of_them_deleted() {
    let Some(corpus) = corpus() else { return };
    for name in FILES {
        let bytes = std::fs::read(corpus.join(name)).expect("reads");
        let start = Mailbox(Arc::new(MemStorage::from(bytes)));
        let before = severe(&open(&start)).len();
        let edited = start.twin();
        let pst = open(&start);
        let index = pst.index().expect("an index");
        edited.edit(|tx| {
            for (i, entry) in index.messages.values().flatten().enumerate() {
                if i % 2 == 0 {
                    tx.delete_message(entry.nid).expect("deletes");
                } else {
                    let mut data = pst.message(entry.nid).expect("reads");
                    data.props
                        .insert(PropValue::string(tags::SUBJECT, &format!("new {i}")));
                    tx.update_message(entry.nid, &data).expect("updates");
                }
            }
        });
        assert!(
            severe(&open(&edited)).len() <= before,
            "{name}: {:?}",
            severe(&open(&edited))
        );
        let out = ship(&start, &edited);
        assert_equal(&out, &edited, name);
        assert!(
            severe(&open(&out)).len() <= before,
            "{name}: {:?}",
            severe(&open(&out))
        );
    }
}

fn named(name: &str) -> PropBag {
    [PropValue::string(tags::DISPLAY_NAME, name)]
        .into_iter()
        .collect()
}

fn recipient(n: usize) -> PropBag {
    [
        PropValue::string(tags::DISPLAY_NAME, &format!("Recipient {n}")),
        PropValue::string(0x3003, &format!("r{n}@example.org")),
        PropValue::i32(0x0C15, 1),
    ]
    .into_iter()
    .collect()
}

fn file(name: &str, data: &[u8]) -> AttachmentData {
    AttachmentData {
        props: [
            PropValue::string(0x3707, name),
            PropValue::binary(tags::ATTACH_DATA, data),
            PropValue::i32(tags::ATTACH_METHOD, 1),
        ]
        .into_iter()
        .collect(),
        embedded: None,
    }
}

/// Messages that no test of everyday mail has.
fn uncommon(tx: &mut Transaction) -> Vec<MessageData> {
    let many_recipients = MessageData {
        recipients: (0..1000).map(recipient).collect(),
        ..message("a thousand recipients")
    };
    let many_files = MessageData {
        attachments: (0..100)
            .map(|n| file(&format!("{n}.bin"), &vec![n as u8; n * 97]))
            .collect(),
        ..message("a hundred attachments")
    };
    let mut empty = message("");
    empty.props.insert(PropValue::string(tags::BODY, ""));
    empty.attachments.push(file("", &[]));
    let mut long = message(&"\u{1F4E7}x".repeat(20_000));
    long.props
        .insert(PropValue::string(tags::BODY, &"line\r\n".repeat(100_000)));
    let mut with_names = message("names");
    for n in 0..300u16 {
        let guid = Guid([n as u8; 16]);
        let name = if n % 2 == 0 {
            PropName::number(guid, u32::from(n) << 20)
        } else {
            PropName::string(
                guid,
                &format!("{}\u{e4} {n}", "long ".repeat(usize::from(n % 40))),
            )
        };
        let id = tx.named_id(&name).expect("a name");
        with_names.props.insert(PropValue {
            tag: PropTag::new(id, PropType::I32),
            ..PropValue::i32(id, i32::from(n))
        });
    }
    let mut nested = message("innermost");
    for n in 0..20 {
        let inner = AttachmentData {
            props: [PropValue::i32(tags::ATTACH_METHOD, tags::METHOD_EMBEDDED)]
                .into_iter()
                .collect(),
            embedded: Some(Box::new(nested)),
        };
        nested = message(&format!("around {n}"));
        nested.attachments.push(inner);
    }
    vec![many_recipients, many_files, empty, long, with_names, nested]
}

#[test]
fn uncommon_mail_travels() {
    let start = Mailbox::new(1);
    let edited = start.twin();
    let inbox = start.inbox();
    edited.edit(|tx| {
        for data in uncommon(tx) {
            tx.add_message(inbox, None, &data, false).expect("adds");
        }
        let mut parent = inbox;
        for n in 0..300 {
            parent = tx
                .create_folder(parent, None, &named(&format!("level {n}")))
                .expect("creates");
        }
        tx.add_message(parent, None, &message("at the bottom"), false)
            .expect("adds");
        tx.create_folder(inbox, None, &named(&"long name ".repeat(3000)))
            .expect("creates");
        tx.create_folder(inbox, None, &named("")).expect("creates");
    });
    assert_eq!(faults(&open(&edited)), Vec::<String>::new());
    let out = ship(&start, &edited);
    assert_equal(&out, &edited, "uncommon mail");
    assert_eq!(faults(&open(&out)), Vec::<String>::new());
    let back = ship(&out, &start);
    assert_equal(&back, &start, "uncommon mail deleted");
    assert_eq!(faults(&open(&back)), Vec::<String>::new());
}

#[test]
fn ten_thousand_messages_in_one_folder_travel() {
    let start = Mailbox::new(1);
    let edited = start.twin();
    let inbox = start.inbox();
    edited.edit(|tx| {
        for n in 0..10_000 {
            tx.add_message(inbox, None, &message(&format!("number {n}")), false)
                .expect("adds");
        }
    });
    let out = ship(&start, &edited);
    assert_equal(&out, &edited, "many messages");
    assert_eq!(faults(&open(&out)), Vec::<String>::new());
    // Every second one goes, the others change.
    let pst = open(&edited);
    let fewer = edited.twin();
    fewer.edit(|tx| {
        for (i, entry) in pst.messages_of(inbox).expect("lists").iter().enumerate() {
            if i % 2 == 0 {
                tx.delete_message(entry.nid).expect("deletes");
            } else if i % 10 == 1 {
                let data = message(&format!("changed {i}"));
                tx.update_message(entry.nid, &data).expect("updates");
            }
        }
    });
    let out = ship(&out, &fewer);
    assert_equal(&out, &fewer, "fewer messages");
    assert_eq!(faults(&open(&out)), Vec::<String>::new());
}

/// Any cut of what a change list writes leaves the mail of before or of after, never a third thing.
#[test]
fn a_crash_in_the_middle_leaves_one_state_or_the_other() {
    let Some(corpus) = corpus() else { return };
    let mut images = 0;
    for (from, to) in [
        ("outlook_1.pst", "outlook_1-later.pst"),
        ("unicode-two-messages.pst", "aspose-outlook.pst"),
        ("tika-testPST.pst", "dist-list.pst"),
    ] {
        let read = |name: &str| std::fs::read(corpus.join(name)).expect("reads");
        let image = read(from);
        let base = Mailbox(Arc::new(MemStorage::from(image.clone())));
        let source = Mailbox(Arc::new(MemStorage::from(read(to))));
        let (old, new) = (open(&base), open(&source));
        let changes = compare(
            &Inventory::read(&old).expect("reads"),
            &Inventory::read(&new).expect("reads"),
        );
        let list = changes.into_iter().map(|c| (c.clone(), c.nid())).collect();
        let package = compile(&new, list).expect("compiles");
        let applied = apply(Arc::clone(&base.0) as Arc<dyn ReadAt>, &package).expect("applies");
        let whole = CrashStorage::new(image.clone());
        applied.write_set.commit(&whole).expect("commits");
        let state = |image: Vec<u8>| {
            let pst = Pst::open(Arc::new(MemStorage::from(image))).expect("a cut file opens");
            assert_eq!(
                severe(&pst).len(),
                severe(&old).len(),
                "{from}: {:?}",
                severe(&pst)
            );
            Inventory::read(&pst)
                .expect("every object is whole")
                .digest()
        };
        let (before, after) = (state(image.clone()), state(whole.live()));
        assert_ne!(before, after);
        let history = whole.history();
        let step = (history.len() / 12).max(1);
        for cut in (0..=history.len()).step_by(step).chain([history.len()]) {
            let storage = CrashStorage::replay(image.clone(), &history[..cut]).expect("replays");
            let seeds = 0..4;
            let survivors = seeds.map(|seed| storage.survivor_seed(seed + cut as u64 * 7));
            for survivor in survivors.chain([storage.synced(), storage.live()]) {
                let found = state(survivor);
                assert!(found == before || found == after, "{from} cut at {cut}");
                images += 1;
            }
        }
    }
    println!("{images} crash images");
}
