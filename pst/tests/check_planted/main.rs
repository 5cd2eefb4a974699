//! For each code of the check a defect is planted in a file of our own making, and found with that code.
//!
//! The test goes over the registry, so that a code without a planting fails it. Defects above the
//! checksums are planted with the checksums made right again.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod content;
mod messages;
mod structure;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use pst::check::{Code, Level, Options, check_storage};
use pst::ltp::{PropBag, PropertyContext, TableEdit, build_pc};
use pst::messaging::{IPM_SUBTREE, tags};
use pst::ndb::{Ndb, NdbTransaction, NodeContent, NodeData};
use pst::{Nid, NidType};
use storage::MemStorage;
use support::surgery::Patient;
use support::{bytes, mail};

/// Other codes that a planting may bring with it.
enum Also {
    /// These and no others.
    Only(&'static [Code]),
    /// Whatever: the damage hides or spoils much.
    Anything,
}

/// The base with a defect, and what else may be found.
struct Planted {
    file: Patient,
    also: Also,
}

impl Planted {
    fn alone(file: Patient) -> Self {
        Self::with(file, &[])
    }

    fn with(file: Patient, also: &'static [Code]) -> Self {
        Self {
            file,
            also: Also::Only(also),
        }
    }

    fn anything(file: Patient) -> Self {
        Self {
            file,
            also: Also::Anything,
        }
    }
}

/// What the plantings are made in.
struct Base {
    bytes: Vec<u8>,
    /// A folder with `sub` below it, `full` and `plain` in it.
    inbox: Nid,
    /// A folder without folders or associated messages.
    sub: Nid,
    /// A message with recipients, two attachments (the second is a message), a body of several blocks.
    full: Nid,
    /// A small message.
    plain: Nid,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let file = mail::empty();
        let mut tx = mail::begin(&file);
        let inbox = tx
            .create_folder(IPM_SUBTREE, None, &mail::folder("Inbox"))
            .unwrap();
        let sub = tx.create_folder(inbox, None, &mail::folder("Sub")).unwrap();
        let mut full = mail::message(1, 30_000, false);
        full.recipients.push(mail::recipient("to"));
        full.attachments
            .push(mail::attachment("a.bin", vec![7; 9_000]));
        full.attachments
            .push(mail::embedded(mail::message(2, 50, true)));
        let full = tx.add_message(inbox, None, &full, false).unwrap();
        let mut plain = mail::message(3, 100, true);
        plain.recipients.push(mail::recipient("to"));
        let plain = tx.add_message(inbox, None, &plain, false).unwrap();
        tx.add_message(inbox, None, &mail::message(4, 10, true), true)
            .unwrap();
        for n in 5..20 {
            let mut m = mail::message(n, 40, n % 2 == 0);
            m.recipients.push(mail::recipient("to"));
            tx.add_message(sub, None, &m, false).unwrap();
        }
        let raw = build_pc(&mail::folder("raw"), None).unwrap();
        tx.put_raw_node(Nid(0x0F01), Nid(0), &raw).unwrap();
        mail::commit(&tx.finish().unwrap(), &file);
        Base {
            bytes: file.to_vec(),
            inbox,
            sub,
            full,
            plain,
        }
    })
}

/// A fresh copy of the base to operate on.
fn patient() -> Patient {
    Patient::new(base().bytes.clone())
}

/// The base after an edit of its nodes.
fn edited(edit: impl FnOnce(&mut NdbTransaction)) -> Patient {
    let ndb = Arc::new(Ndb::open(bytes(base().bytes.clone())).unwrap());
    let mut tx = NdbTransaction::begin(ndb).unwrap();
    edit(&mut tx);
    let file = MemStorage::from(base().bytes.clone());
    tx.finish().unwrap().commit(&file).unwrap();
    Patient::new(file.into_vec())
}

/// The base with one node replaced; its parent stays.
fn with_node(nid: Nid, content: &NodeContent) -> Patient {
    edited(|tx| {
        let parent = tx.node(nid).unwrap().map_or(Nid(0), |n| n.nid_parent);
        tx.put_node(nid, parent, content).unwrap();
    })
}

/// The base with plain data in a node.
fn with_data(nid: Nid, parent: Nid, data: Vec<u8>) -> Patient {
    let content = NodeContent {
        data: NodeData::Bytes(data),
        ..NodeContent::default()
    };
    edited(|tx| {
        tx.put_node(nid, parent, &content).unwrap();
    })
}

/// The base with the properties of a node without subnodes changed.
fn with_props(nid: Nid, edit: impl FnOnce(&mut PropBag)) -> Patient {
    let ndb = patient().ndb();
    let n = ndb.node(nid).unwrap().unwrap();
    let mut bag = PropertyContext::open(&ndb, n.bid_data, n.bid_sub)
        .unwrap()
        .bag()
        .unwrap();
    edit(&mut bag);
    with_node(nid, &build_pc(&bag, None).unwrap())
}

/// The base with the rows of a table changed.
fn with_rows(nid: Nid, edit: impl FnOnce(&mut TableEdit)) -> Patient {
    let ndb = patient().ndb();
    let n = ndb.node(nid).unwrap().unwrap();
    let mut table = TableEdit::open(&ndb, n.bid_data, n.bid_sub).unwrap();
    edit(&mut table);
    with_node(nid, &table.build(None).unwrap())
}

fn plant(code: Code) -> Planted {
    match code.level() {
        Level::Structure => structure::plant(code),
        Level::Content => content::plant(code),
        Level::Messages => messages::plant(code),
    }
}

#[test]
fn the_base_has_no_findings() {
    let report = check_storage(bytes(base().bytes.clone()), &Options::default()).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.nodes > 50 && report.blocks > 100, "{report:?}");
}

#[test]
fn each_code_is_found_where_its_defect_is() {
    let mut wrong = Vec::new();
    for code in Code::ALL.iter().copied() {
        let Planted { file, also } = plant(code);
        let report = check_storage(bytes(file.bytes), &Options::default()).unwrap();
        let found: BTreeSet<Code> = report.counts.keys().copied().collect();
        if !found.contains(&code) {
            wrong.push(format!("{code} is not found, but {found:?}"));
        }
        if let Also::Only(also) = also {
            let unasked: Vec<_> = found
                .iter()
                .filter(|c| **c != code && !also.contains(c))
                .collect();
            if !unasked.is_empty() {
                let said = report.findings.iter().map(|f| format!("\n    {f}"));
                wrong.push(format!(
                    "{code} brings {unasked:?}:{}",
                    said.collect::<String>()
                ));
            }
        }
        let kept = report.findings.iter().find(|f| f.code == code.name());
        if let Some(f) = kept {
            assert_eq!((f.severity, f.section), (code.severity(), code.section()));
            assert!(!f.detail.is_empty());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn findings_of_one_code_are_bounded_and_counted() {
    let rows = with_rows(base().sub.with_kind(NidType::CONTENTS_TABLE), |t| {
        for id in 0..500u32 {
            let bag = PropBag::from_iter([pst::ltp::PropValue::i32(tags::MESSAGE_FLAGS, 1)]);
            t.put_row(0x50_0004 + (id << 5), &bag).unwrap();
        }
    });
    let options = Options {
        per_code: 7,
        ..Options::default()
    };
    let report = check_storage(bytes(rows.bytes), &options).unwrap();
    assert_eq!(report.counts[&Code::ContentsRowStray], 500);
    assert_eq!(report.dropped(Code::ContentsRowStray), 493);
    let kept = report
        .findings
        .iter()
        .filter(|f| f.code == "contents-row-stray");
    assert_eq!(kept.count(), 7);
}
