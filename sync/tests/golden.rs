//! Packages that earlier programs wrote still do what they did: a base, a change list of every
//! kind of work, and what the container then says. The files in `golden/` are ours and never change.
#![allow(clippy::expect_used)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::*;
use pst::inventory::Inventory;
use storage::{MemStorage, ReadAt};
use sync::{Action, ObjectKind, Package, SyncError, apply, as_current, expected};

fn golden(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bytes = std::fs::read(dir.join(name)).expect("it is there");
    match name.ends_with(".zst") {
        true => zstd::decode_all(bytes.as_slice()).expect("unpacks"),
        false => bytes,
    }
}

fn mailbox() -> Mailbox {
    Mailbox(Arc::new(MemStorage::from(golden("base.pst.zst"))))
}

fn packages() -> [(u8, Package); 2] {
    let decode = |bytes: &[u8]| Package::decode(bytes).expect("decodes");
    [
        (1, decode(&golden("v1.pstc.zst"))),
        (2, decode(&golden("v2.pstc"))),
    ]
}

#[test]
fn packages_of_all_versions_do_what_they_did() {
    let want = String::from_utf8(golden("after.dump")).expect("text");
    let want: Vec<&str> = want.lines().collect();
    for (version, package) in packages() {
        assert_eq!(package.apply_version, version);
        let base = mailbox();
        let before = Inventory::read(&base.pst()).expect("reads");
        let applied = apply(Arc::clone(&base.0) as Arc<dyn ReadAt>, &package).expect("applies");
        assert_eq!(applied.done, package.changes.len(), "version {version}");
        applied.write_set.commit(base.0.as_ref()).expect("commits");
        let pst = base.pst();
        assert_eq!(lines(&pst), want, "version {version}");
        assert_eq!(faults(&pst), Vec::<String>::new(), "version {version}");
        let changes = as_current(&package, &pst, &applied.nid_map).expect("reads");
        assert_eq!(
            Inventory::read(&pst).expect("reads").digest(),
            expected(&before, &changes, &applied.nid_map).digest(),
            "version {version}"
        );
        let again = apply(Arc::clone(&base.0) as Arc<dyn ReadAt>, &package).expect("applies");
        assert_eq!((again.done, again.write_set.payload()), (0, 0));
        // Not on what it was not made for.
        let other = Mailbox::new(6);
        let refused = apply(Arc::clone(&other.0) as Arc<dyn ReadAt>, &package);
        assert!(matches!(refused, Err(SyncError::WrongBase { .. })));
    }
}

#[test]
fn the_packages_hold_every_kind_of_work() {
    for (version, package) in packages() {
        let has = |what: &str, test: &dyn Fn(&Action, ObjectKind) -> bool| {
            let found = package.changes.iter().any(|c| test(&c.action, c.kind));
            assert!(found, "version {version}: {what}");
        };
        let kinds = [ObjectKind::Folder, ObjectKind::Message, ObjectKind::Raw];
        for kind in kinds {
            has("add", &|a, k| matches!(a, Action::Add { .. }) && k == kind);
            has("update", &|a, k| {
                matches!(a, Action::Update { .. }) && k == kind
            });
        }
        has("move", &|a, _| matches!(a, Action::Move { .. }));
        has("delete", &|a, k| {
            matches!(a, Action::Delete { .. }) && k == ObjectKind::Message
        });
        let patched = |a: &Action| matches!(a, Action::Update { patch: Some(_), .. });
        let patches = package
            .changes
            .iter()
            .filter(|c| patched(&c.action))
            .count();
        assert_eq!(patches > 0, version > 1);
    }
}

/// What version 1 did not know, it leaves alone: the status in a message's row.
#[test]
fn version_1_leaves_cells_alone() {
    use pst::ltp::{PropBag, PropValue};
    use pst::messaging::tags;
    let [(_, package), _] = packages();
    let updated = package
        .changes
        .iter()
        .find(|c| matches!(c.action, Action::Update { .. }) && c.kind == ObjectKind::Message);
    let nid = updated.expect("an update").nid();
    let base = mailbox();
    let status = PropBag::from_iter([PropValue::i32(tags::MESSAGE_STATUS, 8)]);
    base.edit(|tx| tx.set_cells(nid, &status).expect("sets"));
    let before = Inventory::read(&base.pst()).expect("reads");
    let applied = apply(Arc::clone(&base.0) as Arc<dyn ReadAt>, &package).expect("applies");
    applied.write_set.commit(base.0.as_ref()).expect("commits");
    let pst = base.pst();
    assert_eq!(
        pst.cells(nid).expect("reads").i32(tags::MESSAGE_STATUS),
        Some(8)
    );
    let changes = as_current(&package, &pst, &applied.nid_map).expect("reads");
    assert_eq!(
        Inventory::read(&pst).expect("reads").digest(),
        expected(&before, &changes, &applied.nid_map).digest()
    );
}
