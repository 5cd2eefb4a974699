//! The `apply` target: a change list with its carrier, bent, against a small base.
//!
//! An input begins with a mode: 0, what follows is a package as it travels, without its digest, which is
//! made right; else, what follows is a list of edits of a real package's list and carrier, so that a few
//! bytes reach far into them without breaking the compressed frame.

use std::sync::{Arc, OnceLock};

use pst::check::{Code, Options, Severity, check_storage};
use pst::inventory::Inventory;
use pst::ltp::{PropBag, PropValue};
use pst::messaging::{Transaction, tags};
use pst::{Nid, NidType, Pst};
use storage::{MemStorage, ReadAt};
use sync::{Carrier, Envelope, Package, compare, compile};

use super::seeds::{attachment, message, nids, recipient, store};

/// Bytes of the digest at the end of a package.
const DIGEST: usize = 32;
/// Where a package of format version 1 says how long its record is.
const LENGTH: std::ops::Range<usize> = 8..16;

/// A package taken apart: its encoded list and its carrier.
struct Real {
    sealed: Vec<u8>,
    list: Vec<u8>,
    image: Vec<u8>,
}

/// A package against [`store`] with every kind of entry.
fn real() -> &'static Real {
    static REAL: OnceLock<Real> = OnceLock::new();
    REAL.get_or_init(|| {
        let file = Arc::new(MemStorage::from(store().to_vec()));
        let mut tx = Transaction::begin(Arc::clone(&file) as Arc<dyn ReadAt>).expect("begins");
        let folders = nids(store(), NidType::NORMAL_FOLDER);
        let messages = nids(store(), NidType::NORMAL_MESSAGE);
        let (inbox, sub) = (folders[folders.len() - 2], folders[folders.len() - 1]);
        let props = PropBag::from_iter([PropValue::string(tags::DISPLAY_NAME, "New")]);
        let new = tx.create_folder(inbox, None, &props).expect("makes");
        let mut added = message(9, 5_000);
        added.recipients.push(recipient("new"));
        added.attachments.push(attachment("new.bin", &[9; 5_000]));
        tx.add_message(new, None, &added, false).expect("adds");
        tx.add_message(new, None, &message(10, 20), true)
            .expect("adds");
        tx.update_message(messages[0], &message(11, 60))
            .expect("updates");
        tx.move_message(messages[1], sub).expect("moves");
        tx.delete_message(messages[2]).expect("deletes");
        let raw = pst::ltp::build_pc(&props, None).expect("builds");
        tx.put_raw_node(Nid(0x0F01), Nid(0), &raw).expect("puts");
        tx.put_raw_node(Nid(0x0F21), Nid(0), &raw).expect("puts");
        tx.finish()
            .expect("finishes")
            .commit(&*file)
            .expect("commits");
        let old = Pst::open(super::memory(store())).expect("opens");
        let new = Pst::open(file).expect("opens");
        let (from, to) = (
            Inventory::read(&old).expect("reads"),
            Inventory::read(&new).expect("reads"),
        );
        let changes = compare(&from, &to).into_iter().map(|c| {
            let source = c.nid();
            (c, source)
        });
        let package = compile(&new, changes.collect()).expect("compiles");
        let mut sealed = package.encode().expect("encodes");
        let Envelope { list, carrier, .. } = Envelope::open(&sealed).expect("opens");
        let unfolded = carrier.unfold().expect("unfolds");
        let mut image = vec![0; usize::try_from(unfolded.len().expect("a length")).expect("small")];
        unfolded.read_exact_at(0, &mut image).expect("reads");
        sealed.truncate(sealed.len() - DIGEST);
        Real {
            sealed,
            list,
            image,
        }
    })
}

/// A package with its digest, and in version 1 its length, made right.
fn closed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= LENGTH.end && bytes[4] == 1 {
        let record = (bytes.len() - LENGTH.end) as u64;
        bytes[LENGTH].copy_from_slice(&record.to_le_bytes());
    }
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

/// Applies edits of {u16 position in 1/65536 of the whole, u8 length, bytes} to a package.
fn edited(mut bytes: Vec<u8>, mut script: &[u8]) -> Vec<u8> {
    while let [low, high, n, rest @ ..] = script {
        let at = (bytes.len() * usize::from(u16::from_le_bytes([*low, *high]))) >> 16;
        let n = usize::from(n & 15).min(rest.len()).min(bytes.len() - at);
        let (with, next) = rest.split_at(n);
        bytes[at..at + n].copy_from_slice(with);
        script = next;
    }
    bytes
}

/// Decodes a bent package and applies it. What comes out of a change list that is accepted is a sound
/// file, and the base is as it was.
pub fn apply(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    let package = if *mode == 0 {
        Package::decode(&closed(rest.to_vec()))
    } else {
        let real = real();
        let mut bytes = edited([&real.list[..], &real.image[..]].concat(), rest);
        let image = MemStorage::from(bytes.split_off(real.list.len()));
        let carrier = Carrier::of(&image).expect("reads");
        Envelope {
            apply_version: sync::APPLY_VERSION,
            list: bytes,
            carrier,
        }
        .package()
    };
    let Ok(package) = package else {
        return;
    };
    let Ok(applied) = sync::apply(super::memory(store()), &package) else {
        return;
    };
    let file = Arc::new(MemStorage::from(store().to_vec()));
    applied.write_set.commit(&*file).expect("fits the base");
    let report = check_storage(file.clone(), &Options::default()).expect("opens");
    // Raw nodes travel as they are: what a carrier put into one is its own.
    let raw = [
        Code::Heap,
        Code::HeapBlock,
        Code::HeapMap,
        Code::BthOrder,
        Code::Properties,
        Code::PropertyValue,
        Code::Table,
        Code::TableRow,
        Code::TableRowTwice,
        Code::TableRowId,
        Code::TableCell,
        Code::Subnodes,
        Code::EmbeddedMissing,
        Code::AttachmentRowMissing,
        // What has no folder travels as a raw node, and still has none.
        Code::MessageUnreachable,
        Code::FolderUnreachable,
    ];
    let bad: Vec<_> = report
        .findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .filter(|f| !raw.iter().any(|c| c.name() == f.code))
        .collect();
    assert!(bad.is_empty(), "apply made {bad:#?}");
    Pst::open(file)
        .expect("opens")
        .ipm_subtree()
        .expect("has a top folder");
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut whole = vec![0];
    whole.extend_from_slice(&real().sealed);
    vec![
        ("package".to_owned(), whole),
        ("unedited".to_owned(), vec![1]),
        (
            "edited".to_owned(),
            vec![1, 0, 128, 4, 1, 2, 3, 4, 0, 240, 2, 9, 9],
        ),
    ]
}
