//! Writing: an empty PST, full messages, raw nodes, the search queue, refusals; read back by our own
//! reader and checked for consistency: rows against nodes, counts against rows, copies against
//! originals.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pst::inventory::Inventory;
use pst::ltp::{Guid, PropName, PropTag, PropType, PropValue};
use pst::messaging::{DELETED_ITEMS, IPM_SUBTREE, MessageData, Pst, create_empty, tags};
use pst::{Nid, NidType, PstError};
use storage::{MemStorage, ReadAt};
use support::mail::*;

#[test]
fn an_empty_pst_is_complete_and_depends_on_its_seed_alone() {
    let a = create_empty(&SEED).unwrap();
    assert_eq!(a, create_empty(&SEED).unwrap());
    assert_ne!(a, create_empty(&[7; 16]).unwrap());
    let file = empty();
    let pst = open(&file);
    consistent(&pst);
    assert_eq!(pst.ipm_subtree().unwrap(), IPM_SUBTREE);
    assert_eq!(pst.folder(DELETED_ITEMS).unwrap().parent, IPM_SUBTREE);
    // The mandatory nodes of [MS-PST] 2.7.1.
    for nid in [
        0x21, 0x61, 0x122, 0x12D, 0x12E, 0x12F, 0x1E1, 0x201, 0x60D, 0x60E, 0x60F, 0x610, 0x671,
        0x692, 0x2223, 0x8022, 0x802D, 0x802E, 0x802F, 0x8042, 0x804D, 0x804E, 0x804F, 0x8062,
        0x806D, 0x806E, 0x806F,
    ] {
        assert!(pst.ndb().node(Nid(nid)).unwrap().is_some(), "{nid:#x}");
    }
    if let Ok(path) = std::env::var("PSTSYNCD_KEEP") {
        std::fs::write(path, a).unwrap();
    }
}

#[test]
fn a_full_message_comes_back_as_it_went_in() {
    let file = empty();
    let mut tx = begin(&file);
    let name = PropName::string(Guid::PS_PUBLIC_STRINGS, "x-test");
    let id = tx.named_id(&name).unwrap();
    let mut m = message(1, 100_000, false);
    m.props.insert(PropValue::new(
        PropTag::new(id, PropType::UNICODE),
        pst::ltp::utf16le("named"),
    ));
    m.recipients = vec![recipient("zoe"), recipient("adam")];
    m.attachments = vec![
        attachment(
            "big.bin",
            (0..1_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect(),
        ),
        attachment("empty.txt", Vec::new()),
        embedded({
            let mut inner = message(2, 10, true);
            inner.attachments = vec![
                attachment("nested.txt", b"deep".to_vec()),
                embedded(message(3, 5000, true)),
            ];
            inner.recipients = vec![recipient("inner")];
            inner
        }),
    ];
    let inbox = tx
        .create_folder(IPM_SUBTREE, None, &folder("Inbox"))
        .unwrap();
    let nid = tx.add_message(inbox, None, &m, false).unwrap();
    let fai = tx
        .add_message(inbox, None, &message(9, 10, true), true)
        .unwrap();
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    consistent(&pst);
    let back = pst.message(nid).unwrap();
    assert_eq!(pst.names().id(&name), Some(id));
    let names: Vec<_> = back
        .recipients
        .iter()
        .map(|r| r.str(tags::DISPLAY_NAME).unwrap())
        .collect();
    assert_eq!(names, ["zoe", "adam"]);
    let record = |m: &MessageData| pst::canonical::Record::message(m, false, pst.names()).unwrap();
    assert_eq!(record(&back), record(&m));
    assert_eq!(
        back.attachments[2]
            .embedded
            .as_ref()
            .unwrap()
            .attachments
            .len(),
        2
    );
    assert!(
        pst.messages_of(inbox)
            .unwrap()
            .iter()
            .any(|e| e.nid == fai && e.associated)
    );
    if let Ok(path) = std::env::var("PSTSYNCD_KEEP") {
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        std::fs::write(path + ".full", bytes).unwrap();
    }
}

#[test]
fn the_search_queue_gets_what_the_search_domain_asks_for() {
    let Some(dir) = support::shared() else { return };
    let bytes = std::fs::read(dir.join("corpus/password.pst")).unwrap();
    let file = Arc::new(MemStorage::from(bytes));
    let queue = |pst: &Pst| -> Vec<Vec<u8>> {
        let entry = pst
            .ndb()
            .node(Nid::SEARCH_MANAGEMENT_QUEUE)
            .unwrap()
            .unwrap();
        if entry.bid_data.is_none() {
            return Vec::new();
        }
        let tree = pst.ndb().data(entry.bid_data).unwrap();
        let data = tree.read_all(pst.ndb(), 1 << 20).unwrap();
        assert_eq!(data.len() % 20, 0);
        data.chunks(20).map(<[u8]>::to_vec).collect()
    };
    assert!(queue(&open(&file)).is_empty());
    let domain = {
        let pst = open(&file);
        let entry = pst.ndb().node(Nid::SEARCH_DOMAIN_OBJECT).unwrap().unwrap();
        let data = pst
            .ndb()
            .data(entry.bid_data)
            .unwrap()
            .read_all(pst.ndb(), 1 << 20)
            .unwrap();
        data.chunks(4)
            .map(|c| Nid(u32::from_le_bytes(c.try_into().unwrap())).index())
            .collect::<BTreeSet<_>>()
    };
    let pst = open(&file);
    let folders: Vec<Nid> = pst.folders().unwrap().iter().map(|f| f.nid).collect();
    drop(pst);
    let inside: Vec<Nid> = folders
        .iter()
        .copied()
        .filter(|f| domain.contains(&f.index()))
        .collect();
    let outside: Vec<Nid> = folders
        .iter()
        .copied()
        .filter(|f| !domain.contains(&f.index()))
        .collect();
    println!("domain {domain:x?}, inside {inside:?}, outside {outside:?}");
    let mut tx = begin(&file);
    let quiet = tx
        .add_message(outside[0], None, &message(1, 10, true), false)
        .unwrap();
    let f = inside[0];
    let nid = tx
        .add_message(f, None, &message(2, 10, true), false)
        .unwrap();
    tx.update_message(nid, &message(3, 10, true)).unwrap();
    tx.delete_message(nid).unwrap();
    tx.move_message(quiet, f).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let after = open(&file);
    // Add, modify, modify the row, delete, move from outside the domain into it.
    let kinds: Vec<_> = queue(&after)
        .iter()
        .map(|s| (u16::from_le_bytes([s[0], s[1]]), s[2]))
        .collect();
    assert_eq!(
        kinds,
        [
            (0x8000, 1),
            (0x8000, 2),
            (0x8000, 12),
            (0x8000, 3),
            (0x8010, 4)
        ]
    );
    clean_of_errors(&after);
}

#[test]
fn raw_nodes_are_carried_as_they_are_and_search_folders_get_their_rows() {
    let file = empty();
    let source = empty();
    // A search folder under the search root, made from the one that every file has.
    let from = open(&source);
    let entry = from.ndb().node(Nid(0x2223)).unwrap().unwrap();
    let content = || {
        pst::ltp::NodeSource::stored(from.ndb(), entry.bid_data, entry.bid_sub)
            .to_content(None)
            .unwrap()
    };
    let nid = Nid(0x8_0023);
    let mut tx = begin(&file);
    tx.put_raw_node(nid, pst::messaging::SEARCH_ROOT, &content())
        .unwrap();
    assert!(matches!(
        tx.put_raw_node(Nid(0x201), Nid(0), &content()),
        Err(PstError::Refused(_))
    ));
    assert!(matches!(
        tx.put_raw_node(Nid(0x802E), Nid(0), &content()),
        Err(PstError::Refused(_))
    ));
    assert!(matches!(
        tx.delete_raw_node(Nid::MESSAGE_STORE),
        Err(PstError::Refused(_))
    ));
    let odd = tx.alloc_nid(NidType::INTERNAL).unwrap();
    tx.put_raw_node(odd, Nid(0), &content()).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    for companion in [NidType::SEARCH_UPDATE_QUEUE, NidType::SEARCH_CONTENTS_TABLE] {
        assert!(pst.ndb().node(nid.with_kind(companion)).unwrap().is_some());
    }
    let raw = pst::derived::ObjectKind::Raw;
    assert_eq!(
        pst.fingerprint(raw, nid).unwrap(),
        from.fingerprint(raw, Nid(0x2223)).unwrap()
    );
    drop(pst);
    // Moved, then deleted with what belongs to it; deleting a folder takes its search folders along.
    let mut tx = begin(&file);
    tx.set_raw_parent(nid, IPM_SUBTREE).unwrap();
    commit(&tx.finish().unwrap(), &file);
    consistent(&open(&file));
    let mut tx = begin(&file);
    tx.delete_raw_node(nid).unwrap();
    tx.delete_raw_node(odd).unwrap();
    let holder = tx
        .create_folder(IPM_SUBTREE, None, &folder("holder"))
        .unwrap();
    commit(&tx.finish().unwrap(), &file);
    let mut tx = begin(&file);
    tx.put_raw_node(nid, holder, &content()).unwrap();
    commit(&tx.finish().unwrap(), &file);
    consistent(&open(&file));
    let mut tx = begin(&file);
    tx.delete_folder(holder).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    assert_eq!(
        Inventory::read(&pst).unwrap().digest(),
        Inventory::read(&open(&source)).unwrap().digest()
    );
}

/// A reader that knows messages by their number alone must not take one for another.
#[test]
fn embedded_messages_share_no_number_with_messages_in_folders() {
    fn inner(ndb: &Arc<pst::ndb::Ndb>, sub: pst::Bid, out: &mut Vec<Nid>) {
        if sub.is_none() {
            return;
        }
        for (nid, entry) in ndb.subnodes(sub).unwrap() {
            if nid.kind() == NidType::NORMAL_MESSAGE {
                out.push(nid);
            }
            inner(ndb, entry.bid_sub, out);
        }
    }
    let file = empty();
    let mut tx = begin(&file);
    let folder = tx.create_folder(IPM_SUBTREE, None, &folder("F")).unwrap();
    let first = tx.alloc_nid(NidType::NORMAL_MESSAGE).unwrap().index() + 1;
    // As when mail comes from another file: with its number.
    for n in 0..4 {
        let mut outer = message(n, 10, true);
        outer.attachments = vec![
            embedded(message(n + 100, 10, true)),
            embedded(message(n + 200, 10, true)),
        ];
        let nid = Nid::new(NidType::NORMAL_MESSAGE, first + n);
        assert_eq!(
            tx.add_message(folder, Some(nid), &outer, false).unwrap(),
            nid
        );
    }
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    let index = pst.index().unwrap();
    let mut all = Vec::new();
    for entry in index.messages.values().flatten() {
        all.push(entry.nid);
        inner(pst.ndb(), entry.entry.bid_sub, &mut all);
    }
    assert_eq!(all.len(), 12);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 12, "{all:?}");
}

#[test]
fn refusals_leave_the_file_alone() {
    let file = empty();
    let mut tx = begin(&file);
    let m = message(1, 10, true);
    let a = tx.create_folder(IPM_SUBTREE, None, &folder("a")).unwrap();
    let b = tx.create_folder(a, None, &folder("b")).unwrap();
    let refused =
        |r: Result<Nid, PstError>| assert!(matches!(r, Err(PstError::Refused(_))), "{r:?}");
    let missing =
        |r: Result<Nid, PstError>| assert!(matches!(r, Err(PstError::NotFound { .. })), "{r:?}");
    refused(tx.move_folder(a, b).map(|()| a));
    refused(tx.delete_folder(Nid::ROOT_FOLDER).map(|()| a));
    refused(tx.create_folder(IPM_SUBTREE, Some(a), &folder("again")));
    refused(tx.add_message(a, Some(Nid(0x8_0008)), &m, false));
    missing(tx.add_message(Nid(0xFFFF_0002), None, &m, false));
    missing(tx.update_message(Nid(0x20_0024), &m).map(|()| a));
    missing(tx.move_message(Nid(0x20_0024), a).map(|()| a));
    missing(tx.delete_message(Nid(0x20_0024)).map(|()| a));
    missing(tx.update_folder(Nid(0x20_0024), &folder("x")).map(|()| a));
    tx.delete_folder(a).unwrap();
    missing(tx.add_message(b, None, &m, false));
    let mut deep = m.clone();
    for _ in 0..40 {
        deep = MessageData {
            attachments: vec![embedded(deep)],
            ..m.clone()
        };
    }
    assert!(matches!(
        tx.add_message(IPM_SUBTREE, None, &deep, false),
        Err(PstError::Limit { .. })
    ));
    commit(&tx.finish().unwrap(), &file);
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    assert_eq!(lines(&pst), lines(&open(&empty())));
}

/// The lines of a file with the same mail, made in an order and with ids that depend on `turn`.
fn same_mail(turn: usize) -> Vec<String> {
    let file = empty();
    let mut tx = begin(&file);
    for n in 0..turn * 5 {
        tx.named_id(&PropName::string(
            Guid::PS_PUBLIC_STRINGS,
            &format!("shift {n}"),
        ))
        .unwrap();
        tx.alloc_nid(NidType::NORMAL_MESSAGE).unwrap();
        tx.alloc_nid(NidType::NORMAL_FOLDER).unwrap();
    }
    let mut names = ["a", "b", "c"];
    let mut numbers: Vec<u32> = (0..30).collect();
    names.rotate_left(turn);
    numbers.rotate_left(turn * 7);
    let folders: BTreeMap<&str, Nid> = names
        .iter()
        .map(|n| (*n, tx.create_folder(IPM_SUBTREE, None, &folder(n)).unwrap()))
        .collect();
    if turn == 2 {
        commit(&tx.finish().unwrap(), &file);
        tx = begin(&file);
    }
    for n in numbers {
        let id = tx
            .named_id(&PropName::number(Guid([3; 16]), 0x8000 + n % 5))
            .unwrap();
        let mut m = varied(n);
        m.props.insert(PropValue::new(
            PropTag::new(id, PropType::I32),
            n.to_le_bytes(),
        ));
        let at = folders[["a", "b", "c"][n as usize % 3]];
        tx.add_message(at, None, &m, n % 10 == 0).unwrap();
        // Mail without a search key, and twice the same: order by fingerprint.
        m.props.remove(tags::SEARCH_KEY);
        tx.add_message(at, None, &m, false).unwrap();
        tx.add_message(at, None, &m, false).unwrap();
    }
    commit(&tx.finish().unwrap(), &file);
    lines(&open(&file))
}

#[test]
fn the_same_mail_dumps_the_same_lines_whatever_its_ids_and_order() {
    let first = same_mail(0);
    assert!(first.len() > 90);
    assert_eq!(same_mail(1), first);
    assert_eq!(same_mail(2), first);
}

#[test]
fn an_update_writes_what_changed_and_not_the_attachments() {
    let file = empty();
    let mut m = message(1, 200_000, true);
    m.attachments = vec![
        attachment(
            "one.bin",
            (0..2_000_000u32).map(|i| (i >> 3) as u8).collect(),
        ),
        attachment("two.bin", vec![7; 500_000]),
    ];
    let mut tx = begin(&file);
    let nid = tx.add_message(DELETED_ITEMS, None, &m, false).unwrap();
    commit(&tx.finish().unwrap(), &file);
    let written = |m: &MessageData| {
        let mut tx = begin(&file);
        tx.update_message(nid, m).unwrap();
        let set = tx.finish().unwrap();
        let n: u64 = set
            .phases
            .iter()
            .flat_map(|p| &p.writes)
            .map(|(_, d)| d.len())
            .sum();
        commit(&set, &file);
        n
    };
    m.props
        .insert(PropValue::string(tags::SUBJECT, "another subject"));
    let subject = written(&m);
    m.attachments[1]
        .props
        .insert(PropValue::string(0x3707, "renamed.bin"));
    let renamed = written(&m);
    m.attachments.remove(0);
    let removed = written(&m);
    println!("written: subject {subject}, renamed {renamed}, removed {removed}");
    for n in [subject, renamed, removed] {
        assert!(n < 60_000, "{n} bytes");
    }
    let pst = open(&file);
    clean(&pst);
    consistent(&pst);
    let record = |m: &MessageData| pst::canonical::Record::message(m, false, pst.names()).unwrap();
    assert_eq!(record(&pst.message(nid).unwrap()), record(&m));
}
