//! A carrier is a PST for any program, also where it holds only what changed: ours finds no fault in
//! it, and libpff (pffinfo, pffexport) and libpst (lspst, readpst) read what it carries. A tool that
//! is not installed is skipped, and says so.
#![allow(clippy::expect_used)]

mod common;
#[path = "../../tests/support/skip.rs"]
mod skip;

use std::path::Path;
use std::process::Command;

use common::*;
use pst::inventory::Inventory;
use pst::ltp::{Guid, PropBag, PropName, PropValue, build_pc};
use pst::messaging::{AttachmentData, MessageData, tags};
use pst::{Nid, Pst};
use storage::ReadAt as _;
use sync::{Action, Package, compare, compile, compile_with, details_from};

fn file(name: &str, data: &[u8]) -> AttachmentData {
    AttachmentData {
        props: PropBag::from_iter([
            PropValue::string(tags::ATTACH_LONG_FILENAME, name),
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::binary(tags::ATTACH_DATA, data),
        ]),
        embedded: None,
    }
}

/// A message with recipients, attachments and a message within.
fn rich(subject: &str) -> MessageData {
    let mut data = message(subject);
    data.props
        .insert(PropValue::string(tags::BODY, &"Some text. ".repeat(500)));
    data.recipients.push(PropBag::from_iter([
        PropValue::string(0x3001, "Ann Example"),
        PropValue::string(0x3003, "ann@example.org"),
        PropValue::i32(0x0C15, 1),
    ]));
    data.attachments.push(file("a.bin", &noise(30_000)));
    data.attachments.push(file("b.bin", &noise(3000)));
    data.attachments.push(AttachmentData {
        props: PropBag::from_iter([
            PropValue::string(tags::ATTACH_LONG_FILENAME, "within"),
            PropValue::i32(tags::ATTACH_METHOD, 5),
        ]),
        embedded: Some(Box::new(MessageData {
            attachments: vec![file("c.bin", &noise(5000))],
            ..message("within")
        })),
    });
    data
}

/// Two packages for the same edits of every kind: with patches, and with whole objects.
fn packages() -> [Package; 2] {
    let base = Mailbox::new(2);
    let inbox = base.inbox();
    let folder = |name: &str| PropBag::from_iter([PropValue::string(tags::DISPLAY_NAME, name)]);
    let raw = |text: &str| {
        let props = [PropValue::string(tags::SUBJECT, text)];
        build_pc(&props.into_iter().collect(), None).expect("builds")
    };
    let (mut sub, mut nid) = (Nid(0), Nid(0));
    base.edit(|tx| {
        sub = tx
            .create_folder(inbox, None, &folder("Sub"))
            .expect("creates");
        nid = tx
            .add_message(inbox, None, &rich("rich"), false)
            .expect("adds");
        tx.put_raw_node(Nid(0x0F01), Nid(0), &raw("raw"))
            .expect("puts");
    });
    let after = base.twin();
    let mut data = after.pst().message(nid).expect("reads");
    data.props
        .insert(PropValue::string(tags::SUBJECT, "rich, changed"));
    let new_name = PropValue::string(tags::ATTACH_LONG_FILENAME, "renamed.bin");
    data.attachments[1].props.insert(new_name);
    data.attachments.push(file("new.bin", &noise(3000)));
    let within = data.attachments[2].embedded.as_mut().expect("a message");
    within
        .props
        .insert(PropValue::string(tags::SUBJECT, "within, changed"));
    after.change("m0", "m0, changed");
    let gone = after.nid_of("m1");
    let status = PropBag::from_iter([PropValue::i32(tags::MESSAGE_STATUS, 8)]);
    after.edit(|tx| {
        tx.update_message(nid, &data).expect("updates");
        tx.set_cells(nid, &status).expect("sets");
        tx.delete_message(gone).expect("deletes");
        tx.update_folder(sub, &folder("Sub, renamed"))
            .expect("updates");
        let new = tx
            .create_folder(inbox, None, &folder("New"))
            .expect("creates");
        let id = tx
            .named_id(&PropName::string(Guid([9; 16]), "Colour"))
            .expect("an id");
        let mut added = rich("added");
        added.props.insert(PropValue::string(id, "red"));
        tx.add_message(new, None, &added, false).expect("adds");
        tx.add_message(new, None, &message("hidden"), true)
            .expect("adds");
        tx.put_raw_node(Nid(0x0F01), Nid(0), &raw("changed"))
            .expect("puts");
        tx.put_raw_node(Nid(0x0F21), Nid(0), &raw("new"))
            .expect("puts");
    });
    let (old, new) = (base.pst(), after.pst());
    let read = |pst: &Pst| Inventory::read(pst).expect("reads");
    let changes = compare(&read(&old), &read(&new)).into_iter();
    let changes: Vec<_> = changes.map(|c| (c.clone(), c.nid())).collect();
    let patched = compile_with(&new, changes.clone(), &mut details_from(&old));
    [
        patched.expect("compiles"),
        compile(&new, changes).expect("compiles"),
    ]
}

fn image(package: &Package) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(package.carrier.len()).expect("fits")];
    let image = package.carrier.unfold().expect("unfolds");
    image.read_exact_at(0, &mut bytes).expect("reads");
    bytes
}

#[test]
fn our_check_finds_no_fault() {
    for package in packages() {
        let pst = Pst::open(package.carrier.unfold().expect("unfolds")).expect("opens");
        assert_eq!(faults(&pst), Vec::<String>::new());
        // Whatever the list says is carried is there, and nothing else.
        let mut carried: Vec<u32> = package
            .changes
            .iter()
            .filter_map(|c| match c.action {
                Action::Add { carrier, .. } | Action::Update { carrier, .. } => Some(carrier),
                _ => None,
            })
            .collect();
        carried.sort_unstable();
        carried.dedup();
        assert_eq!(carried.len(), 8, "{:?}", package.changes);
        let subjects = lines(&pst);
        for text in [
            "rich, changed",
            "m0, changed",
            "added",
            "Sub, renamed",
            "New",
        ] {
            let found = subjects.iter().any(|l| l.contains(&format!("\"{text}\"")));
            assert!(found, "{text} is not carried");
        }
    }
}

fn run(dir: &Path, program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).current_dir(dir).output() {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            skip::skipped(program, "it is not installed");
            return None;
        }
        Err(e) => panic!("{program}: {e}"),
    };
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{program}: {out}{err}");
    let loud = format!("{out}{err}").to_lowercase();
    let complains = ["libpff_", "error", "warn", "corrupt"];
    let complaint = complains.iter().find(|word| loud.contains(*word));
    assert!(complaint.is_none(), "{program}: {out}{err}");
    Some(out)
}

/// The names of all files below a directory, and what those that are texts hold.
fn below(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("lists") {
        let path = entry.expect("an entry").path();
        found.push(path.display().to_string());
        if path.is_dir() {
            below(&path, found);
        } else {
            let bytes = std::fs::read(&path).expect("reads");
            found.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

#[test]
fn other_readers_open_it() {
    for (name, package) in ["patched", "whole"].into_iter().zip(packages()) {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        std::fs::write(dir.join("carrier.pst"), image(&package)).expect("writes");
        let carried = ["rich, changed", "m0, changed", "added"];
        if let Some(out) = run(dir, "pffinfo", &["carrier.pst"]) {
            assert!(out.contains("Personal Storage Tables"), "{out}");
        }
        if let Some(out) = run(dir, "lspst", &["carrier.pst"]) {
            for text in carried {
                assert!(out.contains(text), "{name}: lspst lacks {text}: {out}");
            }
        }
        let args = ["-q", "-f", "all", "-t", "pff", "carrier.pst"];
        if run(dir, "pffexport", &args).is_some() {
            let mut found = Vec::new();
            below(&dir.join("pff.export"), &mut found);
            for text in carried.into_iter().chain(["new.bin"]) {
                let there = found.iter().any(|f| f.contains(text));
                assert!(there, "{name}: pffexport lacks {text}");
            }
        }
        std::fs::create_dir(dir.join("mbox")).expect("creates");
        let args = ["-q", "-D", "-j", "0", "-S", "-o", "mbox", "carrier.pst"];
        if run(dir, "readpst", &args).is_some() {
            let mut found = Vec::new();
            below(&dir.join("mbox"), &mut found);
            for text in carried {
                let there = found.iter().any(|f| f.contains(text));
                assert!(there, "{name}: readpst lacks {text}");
            }
        }
    }
}
