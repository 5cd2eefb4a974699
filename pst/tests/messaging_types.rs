//! Every kind of item and every type of property, single and multi-valued, in heap and in subnode:
//! written, read back, updated, and carried into a file of the other format and home again. What
//! comes back is what went in, and the files are sound.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use pst::check::{Severity, check, check_ltp};
use pst::ltp::{Guid, PropBag, PropName, PropTag, PropType, PropValue, utf16le};
use pst::messaging::{
    AttachmentData, IPM_SUBTREE, MessageData, Pst, Transaction, create_empty_as, tags,
};
use pst::ndb::{CryptMethod, Format};
use pst::{Nid, NidType};
use storage::{MemStorage, ReadAt};
use support::FORMATS;

/// Message classes, and whether their items are associated ones.
const CLASSES: [(&str, bool); 10] = [
    ("IPM.Note", false),
    ("IPM.Contact", false),
    ("IPM.DistList", false),
    ("IPM.Appointment", false),
    ("IPM.Task", false),
    ("IPM.StickyNote", false),
    ("IPM.Activity", false),
    ("REPORT.IPM.Note.NDR", false),
    ("IPM.Configuration.Rules", true),
    ("IPM.Microsoft.FolderDesign.NamedView", true),
];

/// All single-valued types that a property may have ([MS-OXCDATA] 2.11.1), and which of them have
/// a multi-valued form.
const TYPES: [(u16, bool); 16] = [
    (0x0002, true),
    (0x0003, true),
    (0x0004, true),
    (0x0005, true),
    (0x0006, true),
    (0x0007, true),
    (0x000A, false),
    (0x000B, false),
    (0x0014, true),
    (0x001E, true),
    (0x001F, true),
    (0x0040, true),
    (0x0048, true),
    (0x00FB, false),
    (0x00FD, false),
    (0x0102, true),
];

/// Lengths on both sides of every border: heap item, block of each format.
const LENGTHS: [usize; 14] = [
    0, 1, 7, 200, 3579, 3580, 3581, 8175, 8176, 8177, 8180, 8181, 16_361, 70_000,
];

#[derive(Clone, Debug)]
struct Spec {
    kind: usize,
    multi: bool,
    length: usize,
    count: usize,
    seed: u8,
    named: u8,
}

fn spec() -> impl Strategy<Value = Spec> {
    let length = prop_oneof![4 => 0..4usize, 1 => 0..LENGTHS.len()];
    let numbers = (0..TYPES.len(), any::<bool>(), length, 0..6usize);
    (numbers, any::<u8>(), any::<u8>()).prop_map(|((kind, multi, length, count), seed, named)| {
        Spec {
            kind,
            multi,
            length,
            count,
            seed,
            named,
        }
    })
}

fn element(kind: PropType, len: usize, seed: u8) -> Vec<u8> {
    let fill = |n: usize| (0..n).map(|i| seed.wrapping_add((i % 251) as u8)).collect();
    match kind {
        PropType::BOOL => vec![seed & 1],
        PropType::UNICODE => utf16le(&"aß€".chars().cycle().take(len / 2).collect::<String>()),
        _ => fill(kind.fixed_size().unwrap_or(len)),
    }
}

fn value(id: u16, spec: &Spec) -> PropValue {
    let (kind, may_be_multi) = TYPES[spec.kind];
    let kind = PropType(kind);
    let len = LENGTHS[spec.length];
    if !(spec.multi && may_be_multi) {
        return PropValue::new(PropTag::new(id, kind), element(kind, len, spec.seed));
    }
    let elements: Vec<Vec<u8>> = (0..spec.count)
        .map(|i| element(kind, len / (i + 1), spec.seed.wrapping_add(i as u8)))
        .collect();
    let elements: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
    let tag = PropTag::new(id, PropType(kind.0 | PropType::MULTI));
    PropValue::multi(tag, &elements).unwrap()
}

/// Properties under fixed and named ids.
fn bag(specs: &[Spec], first: u16, tx: &mut Transaction) -> PropBag {
    let mut bag = PropBag::new();
    for (i, spec) in specs.iter().enumerate() {
        let id = match spec.named {
            0..=15 => {
                let name = PropName::number(Guid([spec.named; 16]), u32::from(spec.named) << 8);
                tx.named_id(&name).unwrap()
            }
            16..=31 => {
                let name = PropName::string(Guid::PS_PUBLIC_STRINGS, &format!("n{}", spec.named));
                tx.named_id(&name).unwrap()
            }
            _ => first + i as u16,
        };
        bag.insert(value(id, spec));
    }
    bag
}

#[derive(Clone, Debug)]
struct Item {
    class: usize,
    props: Vec<Spec>,
    recipients: Vec<Vec<Spec>>,
    attachments: Vec<Vec<Spec>>,
    embedded: bool,
}

fn item() -> impl Strategy<Value = Item> {
    let few = || prop::collection::vec(spec(), 0..4);
    (
        0..CLASSES.len(),
        prop::collection::vec(spec(), 0..24),
        prop::collection::vec(few(), 0..4),
        prop::collection::vec(few(), 0..3),
        any::<bool>(),
    )
        .prop_map(|(class, props, recipients, attachments, embedded)| Item {
            class,
            props,
            recipients,
            attachments,
            embedded,
        })
}

fn message(item: &Item, tx: &mut Transaction) -> MessageData {
    // Ids that nothing derives or keeps to itself.
    let mut m = MessageData {
        props: bag(&item.props, 0x4100, tx),
        ..MessageData::default()
    };
    let class = PropValue::string(tags::MESSAGE_CLASS, CLASSES[item.class].0);
    m.props.insert(class);
    for specs in &item.recipients {
        let mut row = PropBag::new();
        for (i, spec) in specs.iter().enumerate() {
            // A column has one type for all rows, so that the type is part of the id here.
            let id = 0x4200 + (spec.kind as u16) * 16 + u16::from(spec.multi) * 8 + i as u16;
            row.insert(value(id, spec));
        }
        m.recipients.push(row);
    }
    for specs in &item.attachments {
        let mut props = bag(specs, 0x4300, tx);
        props.insert(PropValue::i32(tags::ATTACH_METHOD, 1));
        m.attachments.push(AttachmentData {
            props,
            embedded: None,
        });
    }
    if item.embedded {
        let inner = Item {
            embedded: false,
            ..item.clone()
        };
        let method = PropValue::i32(tags::ATTACH_METHOD, tags::METHOD_EMBEDDED);
        m.attachments.push(AttachmentData {
            props: PropBag::from_iter([method]),
            embedded: Some(Box::new(message(&inner, tx))),
        });
    }
    m
}

fn assert_same(a: &MessageData, b: &MessageData) {
    let same = |a: &PropBag, b: &PropBag| {
        // Sizes of embedded messages are told by their table alone.
        assert!(a.same_content(b).unwrap(), "{a:?}\n{b:?}");
    };
    same(&a.props, &b.props);
    assert_eq!(a.recipients.len(), b.recipients.len());
    for (a, b) in a.recipients.iter().zip(&b.recipients) {
        same(a, b);
    }
    assert_eq!(a.attachments.len(), b.attachments.len());
    for (a, b) in a.attachments.iter().zip(&b.attachments) {
        same(&a.props, &b.props);
        match (&a.embedded, &b.embedded) {
            (None, None) => {}
            (Some(a), Some(b)) => assert_same(a, b),
            _ => panic!("an embedded message came or went"),
        }
    }
}

fn new_file(format: &'static Format, crypt: CryptMethod) -> Arc<MemStorage> {
    Arc::new(MemStorage::from(
        create_empty_as(b"messaging types!", format, crypt).unwrap(),
    ))
}

fn edit<T>(file: &Arc<MemStorage>, f: impl FnOnce(&mut Transaction) -> T) -> T {
    let mut tx = Transaction::begin(Arc::clone(file) as Arc<dyn ReadAt>).unwrap();
    let out = f(&mut tx);
    tx.finish().unwrap().commit(&**file).unwrap();
    let pst = open(file);
    let findings = check(pst.ndb()).into_iter().chain(check_ltp(pst.ndb()));
    let bad: Vec<_> = findings.filter(|f| f.severity > Severity::Info).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    out
}

fn open(file: &Arc<MemStorage>) -> Pst {
    Pst::open(Arc::clone(file) as Arc<dyn ReadAt>).unwrap()
}

fn run(items: &[Item], from: usize, crypt: u8) {
    let crypt = CryptMethod::from_byte(crypt).unwrap();
    let file = new_file(FORMATS[from], crypt);
    let mut want = Vec::new();
    let nids: Vec<Nid> = edit(&file, |tx| {
        items
            .iter()
            .map(|item| {
                let m = message(item, tx);
                let associated = CLASSES[item.class].1;
                let nid = tx.add_message(IPM_SUBTREE, None, &m, associated).unwrap();
                assert_eq!(nid.kind() == NidType::ASSOC_MESSAGE, associated);
                want.push(m);
                nid
            })
            .collect()
    });
    let pst = open(&file);
    for (nid, want) in nids.iter().zip(&want) {
        assert_same(&pst.message(*nid).unwrap(), want);
    }
    // Each takes the content of its neighbour.
    want.rotate_left(1);
    edit(&file, |tx| {
        for (nid, m) in nids.iter().zip(&want) {
            tx.update_message(*nid, m).unwrap();
        }
    });
    let pst = open(&file);
    for (nid, want) in nids.iter().zip(&want) {
        assert_same(&pst.message(*nid).unwrap(), want);
    }
    // Into a file of the other format and back: long values are read from the one while the other
    // is written.
    let mut at = file;
    for hop in [1 - from, from] {
        let source = open(&at);
        let next = new_file(FORMATS[hop], CryptMethod::Cyclic);
        edit(&next, |tx| {
            for nid in &nids {
                let m = source.message(*nid).unwrap();
                let m = tx.import_message(&m, source.names()).unwrap();
                let associated = nid.kind() == NidType::ASSOC_MESSAGE;
                tx.add_message(IPM_SUBTREE, Some(*nid), &m, associated)
                    .unwrap();
            }
        });
        at = next;
    }
    let home = open(&at);
    // Named ids may have changed: both are put under the ids of a third file.
    let mut third = Transaction::begin(new_file(FORMATS[0], CryptMethod::None)).unwrap();
    for (nid, want) in nids.iter().zip(&want) {
        let found = home.message(*nid).unwrap();
        let found = third.import_message(&found, home.names()).unwrap();
        let want = third.import_message(want, pst.names()).unwrap();
        assert_same(&found, &want);
    }
}

fn cases() -> u32 {
    let set = std::env::var("PSTSYNCD_TYPE_CASES").ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(32)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(), max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn items_of_every_kind_with_properties_of_every_type_come_back(
        items in prop::collection::vec(item(), 1..5),
        from in 0..FORMATS.len(),
        crypt in 0..3u8,
    ) {
        run(&items, from, crypt);
    }
}

/// Every type, single and multi-valued, at every length: nothing is left to chance.
#[test]
fn every_type_at_every_length() {
    for from in 0..FORMATS.len() {
        let mut props = Vec::new();
        for kind in 0..TYPES.len() {
            for multi in [false, true] {
                for length in 0..LENGTHS.len() {
                    props.push(Spec {
                        kind,
                        multi,
                        length,
                        count: 3,
                        seed: length as u8,
                        named: 255,
                    });
                }
            }
        }
        let item = |class| Item {
            class,
            props: props.clone(),
            recipients: Vec::new(),
            attachments: vec![props.clone()],
            embedded: true,
        };
        run(&[item(0), item(8)], from, 1);
    }
}
