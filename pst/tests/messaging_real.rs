//! Edits of files that other programs wrote, and their mail copied into new files.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use pst::Nid;
use pst::inventory::Inventory;
use pst::ltp::{Guid, PropName};
use pst::messaging::{IPM_SUBTREE, Pst, tags};
use storage::MemStorage;
use support::mail::*;

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
