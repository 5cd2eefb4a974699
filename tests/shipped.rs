//! What small edits ship, measured as a user would: two files, `pst diff` between them.
#![allow(clippy::expect_used)]

#[path = "../benches/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pst::inventory::Inventory;
use pst::ltp::{PropBag, PropValue};
use pst::messaging::{MessageData, Transaction, tags};
use storage::{MemStorage, ReadAt};
use sync::{compare, compile_with, details_from};

/// Bytes of the package from one file to the other, and of it on a link.
fn shipped(old: &Path, new: &Path) -> (usize, usize) {
    let (old, new) = (support::open(old), support::open(new));
    let (old, new) = (old.expect("opens"), new.expect("opens"));
    let read = |pst: &pst::Pst| Inventory::read(pst).expect("reads");
    let changes = compare(&read(&old), &read(&new)).into_iter();
    let changes = changes.map(|c| (c.clone(), c.nid())).collect();
    let package = compile_with(&new, changes, &mut details_from(&old)).expect("compiles");
    let bytes = package.encode().expect("encodes");
    let link = sync::wire::frame(&bytes).expect("frames").len();
    (bytes.len(), link)
}

/// A small store with some mail.
fn made(dir: &Path) -> PathBuf {
    let file = Arc::new(MemStorage::from(
        pst::create_empty(&[7; 16]).expect("an empty PST"),
    ));
    let mut edit = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).expect("begins");
    let folder = edit.ipm_subtree().expect("a top folder");
    for i in 0..40u8 {
        let text = format!("Line {i} of what people write to one another. ").repeat(30);
        let props = PropBag::from_iter([
            PropValue::string(tags::MESSAGE_CLASS, "IPM.Note"),
            PropValue::string(tags::SUBJECT, &format!("Letter number {i}")),
            PropValue::string(tags::BODY, &text),
            PropValue::binary(
                tags::SEARCH_KEY,
                blake3::hash(&[i]).as_bytes()[..16].to_vec(),
            ),
            PropValue::i32(tags::MESSAGE_FLAGS, 1),
        ]);
        let message = MessageData {
            props,
            ..MessageData::default()
        };
        edit.add_message(folder, None, &message, false)
            .expect("adds");
    }
    let writes = edit.finish().expect("finishes");
    writes.commit(&*file).expect("commits");
    let path = dir.join("made.pst");
    std::fs::write(&path, file.to_vec()).expect("writes");
    path
}

type Edit = fn(&Path) -> anyhow::Result<()>;

#[test]
fn small_edits_ship_little() {
    let dir = tempfile::tempdir().expect("a directory");
    // The file of BENCHMARKS.md, where its size is asked for and the example that makes it is built.
    let megabytes = std::env::var("PSTSYNCD_SHIPPED_MB");
    let old = match megabytes.ok().and_then(|n| n.parse().ok()) {
        Some(megabytes) => support::generated(dir.path(), megabytes).expect("generates"),
        None => made(dir.path()),
    };
    let new = dir.path().join("new.pst");
    let (subject, delete, add): (Edit, Edit, Edit) = (
        support::change_subject,
        support::delete_message,
        support::add_message,
    );
    let cases: [(&str, &[Edit], usize); 4] = [
        ("one subject changed", &[subject], 400),
        ("one message deleted", &[delete], 200),
        ("one added, 3 KB of noise attached", &[add], 5000),
        ("all three", &[subject, delete, add], 5500),
    ];
    for (what, edits, limit) in cases {
        std::fs::copy(&old, &new).expect("copies");
        for edit in edits {
            edit(&new).expect("edits");
        }
        let (bytes, link) = shipped(&old, &new);
        println!("{what}: {bytes} bytes, {link} on a link");
        assert!(link <= limit, "{what} ships {link} bytes");
    }
}
