//! The files in `src/patterns`: they are part of the format, so their bytes never change; and what
//! they are good for: a small change makes a small package.
//!
//! A new pattern is made with `PSTSYNCD_MAKE_PATTERNS=DIR cargo test -p pstsyncd-sync --test patterns`:
//! twice, since the second file is made from the first.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use pst::Pst;
use pst::canonical::{Detail, Record};
use pst::inventory::Inventory;
use pst::ltp::{PropBag, PropTag, PropType, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use storage::{MemStorage, ReadAt};
use sync::{Action, Package, compare, compile_with};

/// (name, BLAKE3 of what it unpacks to).
const FILES: [(&str, &str); 3] = [
    (
        "1.pst.zst",
        "cd0c6bce87cae7d493ca16c2b886a0eae46d055b4cbafe7dcd48d616b7223a65",
    ),
    (
        "skeleton-2.pst.zst",
        "639155004189b71d38dc413619f35a9f914198b9b6a1efdadd459faf2b1a8caa",
    ),
    (
        "2.zst",
        "7bf9d84cda0c98c3432de8aa154832cf5ee10d65d34d853545b34c8c6333ea30",
    ),
];

fn unpacked(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/patterns");
    let packed = std::fs::read(dir.join(name)).expect("it is there");
    zstd::decode_all(packed.as_slice()).expect("unpacks")
}

#[test]
fn patterns_are_what_they_always_were() {
    for (name, digest) in FILES {
        let bytes = unpacked(name);
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), digest, "{name}");
    }
}

#[test]
fn the_skeleton_is_a_valid_pst() {
    for name in ["1.pst.zst", "skeleton-2.pst.zst"] {
        let pst = Pst::open(Arc::new(MemStorage::from(unpacked(name)))).expect("opens");
        assert_eq!(faults(&pst), Vec::<String>::new(), "{name}");
    }
}

fn skeleton() -> Vec<u8> {
    let file = Arc::new(MemStorage::from(
        pst::create_empty(b"pstsyncd carrier").expect("empty"),
    ));
    let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).expect("begins");
    let root = tx.ipm_subtree().expect("subtree");
    for name in ["Messages", "Folders"] {
        let props = [PropValue::string(tags::DISPLAY_NAME, name)];
        tx.create_folder(root, None, &PropBag::from_iter(props))
            .expect("creates");
    }
    tx.finish()
        .expect("finishes")
        .commit(&*file)
        .expect("commits");
    file.to_vec()
}

/// A message as mail programs make them, with a large attachment.
fn real_message() -> MessageData {
    let time =
        |id, ticks: u64| PropValue::new(PropTag::new(id, PropType::TIME), ticks.to_le_bytes());
    let mut data = message("Minutes of the meeting on Tuesday");
    data.props.extend([
        PropValue::string(0x1000, "The minutes are attached.\r\n"),
        PropValue::string(0x0070, "Minutes of the meeting on Tuesday"),
        PropValue::string(0x0C1A, "Ann Example"),
        PropValue::string(0x0C1F, "ann@example.org"),
        PropValue::string(0x0E04, "Bob Example"),
        time(0x0039, 133_000_000_000_000_000),
        time(0x0E06, 133_000_000_000_000_000),
        time(0x3008, 133_000_000_000_000_000),
    ]);
    data.recipients.push(PropBag::from_iter([
        PropValue::string(0x3001, "Bob Example"),
        PropValue::string(0x3003, "bob@example.org"),
        PropValue::i32(0x0C15, 1),
    ]));
    data.attachments.push(AttachmentData {
        props: PropBag::from_iter([
            PropValue::string(tags::ATTACH_LONG_FILENAME, "minutes.pdf"),
            PropValue::binary(tags::ATTACH_DATA, noise(140_000)),
            PropValue::i32(tags::ATTACH_METHOD, 1),
        ]),
        embedded: None,
    });
    data
}

/// What changing the message with `edit` ships.
fn package(edit: impl FnOnce(&mut MessageData)) -> Package {
    let base = Mailbox::new(0);
    let inbox = base.inbox();
    let data = real_message();
    base.edit(|tx| {
        tx.add_message(inbox, None, &data, false).expect("adds");
    });
    let after = base.twin();
    let nid = after.pst().messages_of(inbox).expect("lists")[0].nid;
    let mut data = after.pst().message(nid).expect("reads");
    edit(&mut data);
    after.edit(|tx| tx.update_message(nid, &data).expect("updates"));
    let (old, new) = (base.pst(), after.pst());
    let changes = compare(
        &Inventory::read(&old).expect("reads"),
        &Inventory::read(&new).expect("reads"),
    );
    let changes = changes.into_iter().map(|c| {
        let nid = c.nid();
        (c, nid)
    });
    compile_with(&new, changes.collect(), &mut |nid, _| {
        let record = Record::message(&old.message(nid)?, false, old.names())?;
        Ok(Some(Detail::of(&record)))
    })
    .expect("compiles")
}

fn subject(data: &mut MessageData, text: &str) {
    data.props.insert(PropValue::string(tags::SUBJECT, text));
}

#[test]
fn small_changes_make_small_packages() {
    let read = |data: &mut MessageData| data.props.extend([PropValue::i32(tags::MESSAGE_FLAGS, 0)]);
    let cases: [(&str, Package, usize); 3] = [
        ("a subject", package(|d| subject(d, "Another subject")), 400),
        ("a flag", package(read), 400),
        (
            "an attachment's name",
            package(|d| {
                let name = PropValue::string(tags::ATTACH_LONG_FILENAME, "minutes (2).pdf");
                d.attachments[0].props.insert(name);
            }),
            400,
        ),
    ];
    for (what, package, limit) in cases {
        let bytes = package.encode().expect("encodes");
        let on_the_link = sync::wire::frame(&bytes).expect("frames").len();
        println!("{what}: {} bytes, {on_the_link} on the link", bytes.len());
        assert!(on_the_link <= limit, "{what} ships {on_the_link} bytes");
    }
}

#[test]
fn make_patterns() {
    let Some(dir) = std::env::var_os("PSTSYNCD_MAKE_PATTERNS") else {
        return;
    };
    let put = |name: &str, bytes: &[u8]| {
        let packed = zstd::encode_all(bytes, 22).expect("packs");
        println!(
            "{name}: {} bytes, {}",
            packed.len(),
            blake3::hash(bytes).to_hex()
        );
        std::fs::write(Path::new(&dir).join(name), packed).expect("writes");
    };
    put("skeleton-2.pst.zst", &skeleton());
    // The usual comes last, nearest to what is compressed: one message, another subject.
    let renamed = package(|d| {
        let name = PropValue::string(tags::ATTACH_LONG_FILENAME, "protocol.pdf");
        d.attachments[0].props.insert(name);
    });
    let usual = package(|d| {
        subject(d, "RE: Minutes");
        let time = PropTag::new(0x3008, PropType::TIME);
        d.props.insert(PropValue::new(time, [0; 8]));
    });
    let mut pattern = Vec::new();
    for package in [added(), renamed, usual] {
        pattern.extend_from_slice(&body(package));
    }
    put("2.zst", &pattern);
}

/// A package's list and image as they stand in a frame, without fingerprints: those are as good as
/// random, and would only be in the way.
fn body(mut package: Package) -> Vec<u8> {
    for change in &mut package.changes {
        match &mut change.action {
            Action::Update { before, after, .. } => (*before, *after) = ([0; 32], [0; 32]),
            Action::Add { after, .. } => *after = [0; 32],
            _ => {}
        }
    }
    let mut bytes =
        bincode::encode_to_vec(&package.changes, bincode::config::legacy()).expect("encodes");
    let image = package.carrier.unfold().expect("unfolds");
    let start = bytes.len();
    bytes.resize(start + package.carrier.len() as usize, 0);
    image.read_exact_at(0, &mut bytes[start..]).expect("reads");
    bytes
}

/// A package that adds a message with an attachment, and one without.
fn added() -> Package {
    let base = Mailbox::new(0);
    let after = base.twin();
    let inbox = after.inbox();
    let mut data = real_message();
    let content = PropValue::binary(tags::ATTACH_DATA, vec![0; 100]);
    data.attachments[0].props.insert(content);
    after.edit(|tx| {
        tx.add_message(inbox, None, &data, false).expect("adds");
        data.attachments.clear();
        tx.add_message(inbox, None, &data, false).expect("adds");
    });
    let new = after.pst();
    let read = |pst: &Pst| Inventory::read(pst).expect("reads");
    let changes = compare(&read(&base.pst()), &read(&new)).into_iter();
    let changes = changes.map(|c| (c.clone(), c.nid())).collect();
    sync::compile(&new, changes).expect("compiles")
}
