//! Updates that ship only what changed: the target then says what the source says, whatever was
//! edited; what did not change is neither sent nor written again; a hint that lies changes nothing.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::sync::Arc;

use common::*;
use proptest::prelude::*;
use pst::canonical::{Detail, Record};
use pst::inventory::Inventory;
use pst::ltp::{Guid, PropBag, PropName, PropTag, PropType, PropValue};
use pst::messaging::{AttachmentData, MessageData, Transaction, tags};
use pst::{Nid, Pst};
use storage::ReadAt;
use sync::{
    Action, Change, Options, Package, SyncError, apply, compare, compile, compile_with,
    details_from,
};

/// Numbers that look random and are the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).expect("64 bit") % n.max(1)
    }

    fn text(&mut self, most: usize) -> String {
        let len = self.below(most);
        (0..len)
            .map(|_| char::from(b'a' + u8::try_from(self.below(26)).expect("a letter")))
            .collect()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most);
        let from = self.below(1000);
        noise(from + len)[from..].to_vec()
    }
}

fn name(rng: &mut Rng) -> PropName {
    match rng.below(2) {
        0 => PropName::number(Guid([9; 16]), u32::try_from(rng.below(4)).expect("small")),
        _ => PropName::string(Guid([9; 16]), ["Colour", "Size", "Shape"][rng.below(3)]),
    }
}

/// Some property, plain or named, of some type and length.
fn property(rng: &mut Rng, tx: &mut Transaction) -> PropValue {
    let id = match rng.below(3) {
        0 => {
            let name = name(rng);
            tx.named_id(&name).expect("an id")
        }
        _ => [0x0037, 0x0070, 0x1000, 0x3008, 0x0026, 0x1013][rng.below(6)],
    };
    match rng.below(4) {
        0 => PropValue::string(id, &rng.text(40)),
        1 => PropValue::binary(id, rng.bytes(9000)),
        2 => PropValue::i32(id, i32::try_from(rng.below(9)).expect("small")),
        _ => PropValue::new(
            PropTag::new(id, PropType::TIME),
            (rng.below(9) as u64).to_le_bytes(),
        ),
    }
}

fn recipient(rng: &mut Rng) -> PropBag {
    PropBag::from_iter([
        PropValue::string(0x3001, &rng.text(12)),
        PropValue::i32(0x0C15, 1),
    ])
}

fn attachment(rng: &mut Rng, tx: &mut Transaction, depth: usize) -> AttachmentData {
    let name = PropValue::string(tags::ATTACH_LONG_FILENAME, &rng.text(12));
    if depth < 3 && rng.below(3) == 0 {
        return AttachmentData {
            props: PropBag::from_iter([name, PropValue::i32(tags::ATTACH_METHOD, 5)]),
            embedded: Some(Box::new(random(rng, tx, depth + 1))),
        };
    }
    AttachmentData {
        props: PropBag::from_iter([
            name,
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::binary(tags::ATTACH_DATA, rng.bytes(20_000)),
        ]),
        embedded: None,
    }
}

fn random(rng: &mut Rng, tx: &mut Transaction, depth: usize) -> MessageData {
    let mut data = message(&rng.text(20));
    for _ in 0..rng.below(6) {
        data.props.insert(property(rng, tx));
    }
    for _ in 0..rng.below(3) {
        data.recipients.push(recipient(rng));
    }
    for _ in 0..rng.below(4) {
        data.attachments.push(attachment(rng, tx, depth));
    }
    data
}

/// Some edits of a message, its recipients, its attachments and the messages in those.
fn mutate(rng: &mut Rng, tx: &mut Transaction, data: &mut MessageData, depth: usize) {
    for _ in 0..=rng.below(3) {
        let count = data.attachments.len();
        match rng.below(9) {
            0 | 1 => drop(data.props.insert(property(rng, tx))),
            2 => {
                let ids: Vec<u16> = data.props.iter().map(|v| v.tag.id()).collect();
                let id = ids[rng.below(ids.len())];
                if id != tags::SEARCH_KEY && id != tags::MESSAGE_CLASS {
                    data.props.remove(id);
                }
            }
            3 => data.recipients.push(recipient(rng)),
            4 => drop(data.recipients.pop()),
            5 => {
                let new = attachment(rng, tx, depth);
                data.attachments.insert(rng.below(count + 1), new);
            }
            6 if count > 0 => drop(data.attachments.remove(rng.below(count))),
            7 if count > 0 => {
                let (a, b) = (rng.below(count), rng.below(count));
                data.attachments.swap(a, b);
            }
            8 if count > 0 => {
                let at = rng.below(count);
                let attachment = &mut data.attachments[at];
                match (rng.below(3), &mut attachment.embedded) {
                    (0, _) => {
                        let new = rng.text(12);
                        let name = PropValue::string(tags::ATTACH_LONG_FILENAME, &new);
                        attachment.props.insert(name);
                    }
                    (_, Some(inner)) => mutate(rng, tx, inner, depth + 1),
                    (1, None) => {
                        let data = PropValue::binary(tags::ATTACH_DATA, rng.bytes(9000));
                        attachment.props.insert(data);
                    }
                    (_, None) => drop(attachment.props.remove(tags::ATTACH_LONG_FILENAME)),
                }
            }
            _ => {}
        }
    }
}

fn numbered(changes: Vec<Change>) -> Vec<(Change, Nid)> {
    let number = |c: Change| {
        let nid = c.nid();
        (c, nid)
    };
    changes.into_iter().map(number).collect()
}

fn changes(from: &Pst, to: &Pst) -> Vec<Change> {
    compare(
        &Inventory::read(from).expect("reads"),
        &Inventory::read(to).expect("reads"),
    )
}

/// What leads from one to the other, with patches.
fn patches(from: &Pst, to: &Pst) -> Package {
    let changes = numbered(changes(from, to));
    let package = compile_with(to, changes, &mut details_from(from)).expect("compiles");
    let encoded = package.encode().expect("encodes");
    Package::decode(&encoded).expect("decodes")
}

/// Applies and commits; how many entries were work to do, and how many bytes were written.
fn do_apply(target: &Mailbox, package: &Package) -> (usize, u64) {
    let applied = apply(Arc::clone(&target.0) as Arc<dyn ReadAt>, package).expect("applies");
    let written = applied.write_set.payload();
    applied
        .write_set
        .commit(target.0.as_ref())
        .expect("commits");
    (applied.done, written)
}

fn cases() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.and_then(|n| n.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_edit_of_messages_arrives(seed in 1..u64::MAX) {
        let mut rng = Rng(seed);
        let base = Mailbox::new(0);
        let inbox = base.inbox();
        let mut nids = Vec::new();
        base.edit(|tx| {
            for _ in 0..3 {
                let data = random(&mut rng, tx, 0);
                nids.push(tx.add_message(inbox, None, &data, rng.below(4) == 0).expect("adds"));
            }
        });
        let after = base.twin();
        after.edit(|tx| {
            for nid in &nids {
                let mut data = tx.base().message(*nid).expect("reads");
                mutate(&mut rng, tx, &mut data, 0);
                tx.update_message(*nid, &data).expect("updates");
            }
            let mut props = tx.base().folder(inbox).expect("reads").props;
            props.insert(property(&mut rng, tx));
            tx.update_folder(inbox, &props).expect("updates");
        });
        // The target hands out other ids for the same names.
        let target = base.twin();
        target.edit(|tx| {
            for i in 0..rng.below(4) {
                tx.named_id(&PropName::string(Guid([8; 16]), &format!("theirs {i}"))).expect("an id");
            }
            tx.add_message(inbox, Some(Nid(0x7F_0004)), &message("theirs"), false).expect("adds");
        });
        let (old, new) = (base.pst(), after.pst());
        let package = patches(&old, &new);
        let updates = package.changes.iter().filter(|c| matches!(c.action, Action::Update { .. }));
        for change in updates {
            let patched = matches!(&change.action, Action::Update { patch: Some(_), .. });
            prop_assert!(patched, "{change:?}");
        }
        let (done, _) = do_apply(&target, &package);
        prop_assert_eq!(done, package.changes.len());
        let (got, want) = (target.pst(), Inventory::read(&new).expect("reads"));
        let got = Inventory::read(&got).expect("reads");
        for (nid, row) in &want.rows {
            prop_assert_eq!(got.rows.get(nid).map(|r| r.fingerprint), Some(row.fingerprint), "{}", nid);
        }
        prop_assert_eq!(faults(&target.pst()), Vec::<String>::new());
        // Once more, and on what is no base.
        let before = target.0.to_vec();
        prop_assert_eq!(do_apply(&target, &package), (0, 0));
        prop_assert!(target.0.to_vec() == before);
        if !package.changes.is_empty() {
            let other = base.twin();
            other.edit(|tx| {
                for nid in &nids {
                    let mut data = tx.base().message(*nid).expect("reads");
                    data.props.insert(PropValue::string(0x0C1A, "someone else"));
                    tx.update_message(*nid, &data).expect("updates");
                }
                let props = PropBag::from_iter([PropValue::string(tags::DISPLAY_NAME, "other")]);
                tx.update_folder(inbox, &props).expect("updates");
            });
            let refused = apply(Arc::clone(&other.0) as Arc<dyn ReadAt>, &package);
            let refused = matches!(refused, Err(SyncError::WrongBase { .. }));
            prop_assert!(refused);
        }
    }
}

fn with_attachment(len: usize) -> MessageData {
    let mut data = message("large");
    data.attachments.push(AttachmentData {
        props: PropBag::from_iter([
            PropValue::string(tags::ATTACH_LONG_FILENAME, "film.mp4"),
            PropValue::i32(tags::ATTACH_METHOD, 1),
            PropValue::binary(tags::ATTACH_DATA, noise(len)),
        ]),
        embedded: None,
    });
    data
}

#[test]
fn a_flag_neither_sends_nor_rewrites_an_attachment() {
    let base = Mailbox::new(0);
    let inbox = base.inbox();
    base.edit(|tx| {
        tx.add_message(inbox, None, &with_attachment(5 << 20), false)
            .expect("adds");
    });
    let nid = base.nid_of("large");
    let mut edits: Vec<(&str, MessageData)> = Vec::new();
    let read = || base.pst().message(nid).expect("reads");
    let mut data = read();
    data.props.insert(PropValue::i32(tags::MESSAGE_FLAGS, 0));
    edits.push(("flag", data));
    let mut data = read();
    let name = PropValue::string(tags::ATTACH_LONG_FILENAME, "movie.mp4");
    data.attachments[0].props.insert(name);
    edits.push(("name", data));
    let mut data = read();
    data.attachments
        .insert(0, with_attachment(100).attachments.remove(0));
    edits.push(("second attachment", data));
    for (what, data) in edits {
        let after = base.twin();
        after.edit(|tx| tx.update_message(nid, &data).expect("updates"));
        let package = patches(&base.pst(), &after.pst());
        let bytes = package.encode().expect("encodes").len();
        let target = base.twin();
        let (done, written) = do_apply(&target, &package);
        println!("{what}: {bytes} bytes sent, {written} written");
        assert_eq!(done, 1);
        assert!(bytes < 2000, "{what} ships {bytes} bytes");
        assert!(written < 64 << 10, "{what} writes {written} bytes");
        assert_eq!(lines(&target.pst()), lines(&after.pst()), "{what}");
        assert_eq!(faults(&target.pst()), Vec::<String>::new(), "{what}");
        // Without what is known of the older version the whole message goes, and means the same.
        let whole = numbered(changes(&base.pst(), &after.pst()));
        let whole = compile(&after.pst(), whole).expect("compiles");
        assert!(whole.carrier.len() > 5 << 20);
        let other = base.twin();
        do_apply(&other, &whole);
        assert_eq!(lines(&other.pst()), lines(&target.pst()), "{what}");
    }
}

#[test]
fn hints_that_lie_change_nothing() {
    let base = Mailbox::new(2);
    let after = base.twin();
    after.change("m0", "m0, changed");
    let (old, new) = (base.pst(), after.pst());
    // The detail of what it will be: nothing seems to have changed.
    let lie = |nid: Nid| {
        let record = Record::message(&new.message(nid)?, false, new.names())?;
        Ok(Some(Detail::of(&record)))
    };
    let changes = numbered(changes(&old, &new));
    let package = compile_with(&new, changes, &mut |nid, _| lie(nid)).expect("compiles");
    let refused = apply(Arc::clone(&base.0) as Arc<dyn ReadAt>, &package);
    assert!(
        matches!(refused, Err(SyncError::WrongBase { .. })),
        "{refused:?}"
    );
}

#[test]
fn the_engine_ships_what_changed_and_falls_back_to_the_whole() {
    let near = Mailbox::new(2);
    let inbox = near.inbox();
    near.edit(|tx| {
        tx.add_message(inbox, None, &with_attachment(300_000), false)
            .expect("adds");
    });
    let far = Far::new(near.twin());
    let mut near = Near::new(near);
    near.sync(&far).expect("syncs");
    near.mailbox.change("large", "large, changed");
    let report = near.sync(&far).expect("syncs");
    assert!(report.package_bytes < 1000, "{report:?}");
    assert_eq!(lines(&far.mailbox.pst()), lines(&near.mailbox.pst()));

    // What is remembered is wrong: as if two values had met in one hash.
    near.mailbox
        .change("large, changed", "large, changed twice");
    let nid = near.mailbox.nid_of("large, changed twice");
    let mut synced = near
        .database
        .load("a.pst", "far")
        .expect("loads")
        .expect("known");
    let pst = near.mailbox.pst();
    let record = Record::message(&pst.message(nid).expect("reads"), false, pst.names());
    let detail = Detail::of(&record.expect("a record"))
        .encode()
        .expect("encodes");
    let row = synced.rows.get_mut(&nid).expect("a row");
    assert!(row.detailed);
    let lie = sync::StoredDetail {
        fingerprint: row.row.fingerprint,
        detail,
    };
    let lies = [(nid, lie)].into_iter().collect();
    near.database
        .store("a.pst", "far", Some(&synced.clone()), &synced, &lies)
        .expect("stores");
    let applies = far.applies.load(std::sync::atomic::Ordering::SeqCst);
    let report = near.sync_with(&far, Options::default()).expect("syncs");
    let applies = far.applies.load(std::sync::atomic::Ordering::SeqCst) - applies;
    assert_eq!(applies, 2, "the patch, then the whole");
    assert!(report.package_bytes > 300_000, "{report:?}");
    assert_eq!(lines(&far.mailbox.pst()), lines(&near.mailbox.pst()));
}

#[test]
fn a_message_status_travels_although_no_message_holds_it() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    let nid = near.mailbox.nid_of("m1");
    let status = |n: i32| PropBag::from_iter([PropValue::i32(tags::MESSAGE_STATUS, n)]);
    let of = |mailbox: &Mailbox| {
        mailbox
            .pst()
            .cells(nid)
            .expect("reads")
            .i32(tags::MESSAGE_STATUS)
    };
    near.mailbox
        .edit(|tx| tx.set_cells(nid, &status(8)).expect("sets"));
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.updated, 1, "{report:?}");
    assert_eq!(of(&far.mailbox), Some(8));
    assert_eq!(lines(&far.mailbox.pst()), lines(&near.mailbox.pst()));
    assert!(
        lines(&far.mailbox.pst())
            .iter()
            .any(|l| l.contains("\"cells\""))
    );
    // It survives an edit of the message, on both sides, and a move.
    near.mailbox.change("m1", "m1, changed");
    near.sync(&far).expect("syncs");
    assert_eq!((of(&near.mailbox), of(&far.mailbox)), (Some(8), Some(8)));
    // A new message with one; and back to none.
    let inbox = near.mailbox.inbox();
    let mut new = Nid(0);
    near.mailbox.edit(|tx| {
        new = tx
            .add_message(inbox, None, &message("new"), false)
            .expect("adds");
        tx.set_cells(new, &status(4)).expect("sets");
        tx.set_cells(nid, &PropBag::new()).expect("sets");
    });
    let report = near.sync(&far).expect("syncs");
    assert_eq!((report.counts.added, report.counts.updated), (1, 1));
    assert_eq!(of(&far.mailbox), None);
    let there = far.mailbox.pst().cells(new).expect("reads");
    assert_eq!(there.i32(tags::MESSAGE_STATUS), Some(4));
    assert_eq!(lines(&far.mailbox.pst()), lines(&near.mailbox.pst()));
    assert_eq!(
        near.sync(&far).expect("syncs").counts,
        sync::Counts::default()
    );
}

#[test]
fn applying_twice_changes_nothing_where_numbers_were_taken() {
    let base = Mailbox::new(3);
    let inbox = base.inbox();
    let folder = |name: &str| PropBag::from_iter([PropValue::string(tags::DISPLAY_NAME, name)]);
    let source = base.twin();
    source.edit(|tx| {
        let new = tx
            .create_folder(inbox, None, &folder("ours"))
            .expect("creates");
        tx.add_message(new, None, &message("in ours"), false)
            .expect("adds");
        // Two that say the same.
        tx.add_message(inbox, None, &message("copy"), false)
            .expect("adds");
        tx.add_message(inbox, None, &message("copy"), false)
            .expect("adds");
    });
    let package = patches(&base.pst(), &source.pst());
    // Someone else took all those numbers.
    let target = base.twin();
    target.edit(|tx| {
        let new = tx
            .create_folder(inbox, None, &folder("theirs"))
            .expect("creates");
        for i in 0..3 {
            tx.add_message(new, None, &message(&format!("theirs {i}")), false)
                .expect("adds");
        }
    });
    let first = apply(Arc::clone(&target.0) as Arc<dyn ReadAt>, &package).expect("applies");
    assert_eq!(first.nid_map.len(), 4, "{:?}", first.nid_map);
    first.write_set.commit(target.0.as_ref()).expect("commits");
    let after = lines(&target.pst());
    let again = apply(Arc::clone(&target.0) as Arc<dyn ReadAt>, &package).expect("applies");
    assert_eq!((again.done, again.write_set.payload()), (0, 0));
    let given = |map: &std::collections::BTreeMap<Nid, Nid>| {
        let mut all: Vec<Nid> = map.values().copied().collect();
        all.sort_unstable();
        all
    };
    assert_eq!(given(&again.nid_map), given(&first.nid_map));
    // One of them is gone: then it is no repetition, and what is missing is not passed over.
    let copy = first
        .nid_map
        .values()
        .find(|n| n.kind() == pst::NidType::NORMAL_MESSAGE);
    let copy = *copy.expect("a message");
    target.edit(|tx| tx.delete_message(copy).expect("deletes"));
    let third = apply(Arc::clone(&target.0) as Arc<dyn ReadAt>, &package).expect("applies");
    assert!(third.done > 0);
    assert_ne!(lines(&target.pst()), after);
}
