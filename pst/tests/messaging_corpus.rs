//! Real files: every object of each PST and OST of the corpus is read, listed and hashed, and the
//! numbers are those that libpff gives (the corpus's README).
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use pst::derived::ObjectKind;
use pst::dump::{DumpOptions, dump};
use pst::inventory::Inventory;
use pst::messaging::{MessageData, Pst};
use pst::{NidType, PstError};
use storage::FileStorage;

/// File; folders without the root but with search folders, as libpff counts; normal
/// messages; attachments, without those inside embedded messages.
const FILES: [(&str, usize, usize, usize); 15] = [
    ("enron.pst", 10, 71, 70),
    ("tika-testPST.pst", 6, 7, 1),
    ("aspose-outlook.pst", 26, 17, 34),
    ("outlook_1.pst", 24, 17, 34),
    ("outlook_1-later.pst", 24, 17, 34),
    ("many-small.pst", 7, 72, 0),
    ("password.pst", 7, 18, 17),
    ("contacts.pst", 5, 6, 0),
    ("dist-list.pst", 23, 4, 2),
    ("unicode-two-messages.pst", 5, 2, 0),
    ("empty.pst", 5, 0, 0),
    ("outlook2003-ost.ost", 44, 92, 39),
    ("ansi-32bit.pst", 4, 1, 0),
    ("ansi-contacts.pst", 7, 1, 0),
    ("ost2013-4k.ost", 56, 183, 34),
];

fn attachments(m: &MessageData) -> usize {
    m.attachments
        .iter()
        .map(|a| 1 + a.embedded.as_ref().map_or(0, |m| attachments(m)))
        .sum()
}

fn open(name: &str) -> Option<Result<Pst, PstError>> {
    let path = support::shared()?.join("corpus").join(name);
    Some(Pst::open(Arc::new(
        FileStorage::open_read_only(&path).unwrap(),
    )))
}

#[test]
fn every_object_is_read_and_counted_as_libpff_counts() {
    for (name, folders, messages, attached) in FILES {
        let Some(pst) = open(name) else {
            return;
        };
        let pst = pst.unwrap();
        let index = pst.index().unwrap();
        let search = index
            .raw
            .keys()
            .filter(|n| n.kind() == NidType::SEARCH_FOLDER)
            .count();
        let mut normal = 0;
        let mut associated = 0;
        let (mut found, mut nested) = (0, 0);
        for entry in index.messages.values().flatten() {
            let m = pst
                .message(entry.nid)
                .unwrap_or_else(|e| panic!("{name} {}: {e}", entry.nid));
            if entry.associated {
                associated += 1;
            } else {
                normal += 1;
            }
            found += m.attachments.len();
            nested += attachments(&m) - m.attachments.len();
        }
        let got = (index.folders.len() + search - 1, normal, found);
        assert_eq!(got, (folders, messages, attached), "{name}");
        println!(
            "{name}: {got:?}, {associated} associated, {nested} attachments in embedded messages"
        );
    }
}

#[test]
fn dumps_and_inventories_agree_on_what_there_is() {
    for (name, ..) in FILES {
        let Some(pst) = open(name) else {
            return;
        };
        let pst = pst.unwrap();
        let mut lines = Vec::new();
        dump(&pst, DumpOptions::default(), &mut |line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{name}: {e}"));
        let inventory = Inventory::read(&pst).unwrap();
        let count = |kind: ObjectKind| inventory.rows.values().filter(|r| r.kind == kind).count();
        for kind in [
            ObjectKind::Folder,
            ObjectKind::Message,
            ObjectKind::Associated,
            ObjectKind::Raw,
        ] {
            let needle = format!("\"kind\":\"{}\"", kind.name());
            assert_eq!(
                lines.iter().filter(|l| l.contains(&needle)).count(),
                count(kind),
                "{name} {kind:?}"
            );
        }
        println!(
            "{name}: {} lines, {} bytes",
            lines.len(),
            lines.iter().map(String::len).sum::<usize>()
        );
        assert_eq!(
            Inventory::update(&pst, &inventory).unwrap().digest(),
            inventory.digest()
        );
    }
}

#[test]
fn a_broken_header_is_refused() {
    match open("broken-header.pst") {
        None => {}
        Some(Ok(_)) => panic!("a file with a wrong header CRC was opened"),
        Some(Err(e)) => assert!(matches!(e, PstError::Corrupt { .. }), "{e}"),
    }
}
