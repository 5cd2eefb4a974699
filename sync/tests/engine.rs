//! The sync engine against a destination in memory: what is sent, what is held back, and what is
//! believed.
#![allow(clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use pst::inventory::Inventory;
use pst::ltp::{PropBag, PropValue};
use pst::messaging::tags;
use pst::{Nid, Pst};
use storage::{ReadAt, WriteAt};
use sync::{Options, SyncError, apply, compare, compile};

#[test]
fn changes_reach_the_far_side_once() {
    let (mut near, far) = pair(5);
    near.mailbox.add("new");
    near.mailbox.change("m1", "changed");
    near.mailbox.delete("m2");
    let report = near.sync(&far).expect("syncs");
    let counts = report.counts;
    assert_eq!((counts.added, counts.updated, counts.deleted), (1, 1, 1));
    assert_eq!(far.mailbox.subjects(), near.mailbox.subjects());

    near.mailbox.add("second");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(
        report.counts.added, 1,
        "only what is new since: {:?}",
        report.counts
    );
    assert_eq!(report.counts.updated + report.counts.deleted, 0);
    assert_eq!(far.mailbox.subjects(), near.mailbox.subjects());
}

#[test]
fn unknown_is_not_absent() {
    let (mut near, far) = pair(5);
    near.started_from = None;
    near.mailbox.delete("m2");
    near.mailbox.add("new");
    let report = near.sync(&far).expect("syncs");
    assert_eq!((report.counts.deleted, report.held_deletes), (0, 1));
    assert!(
        far.mailbox.subjects().contains(&"m2".to_owned()),
        "nothing proves it was ours"
    );
    assert!(far.mailbox.subjects().contains(&"new".to_owned()));
    // And it stays so: what was once held back is not deleted by a later run either.
    near.mailbox.add("later");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.deleted, 0);
    assert!(far.mailbox.subjects().contains(&"m2".to_owned()));
}

#[test]
fn others_mail_is_left_alone_even_under_the_same_nid() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    // Both sides hand out the same next NID.
    near.mailbox.add("ours");
    far.mailbox.add("theirs");
    assert_eq!(near.mailbox.nid_of("ours"), far.mailbox.nid_of("theirs"));
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.drift, 1, "{report:?}");
    let there = far.mailbox.subjects();
    assert_eq!(there, ["m0", "m1", "m2", "ours", "theirs"]);
    assert_ne!(near.mailbox.nid_of("ours"), far.mailbox.nid_of("ours"));

    // The remapped object is found again: changed, then deleted.
    near.mailbox.change("ours", "ours, changed");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["m0", "m1", "m2", "ours, changed", "theirs"]
    );
    near.mailbox.delete("ours, changed");
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "theirs"]);
}

#[test]
fn what_others_change_in_the_middle_is_noticed() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.add("ours");
    far.before_apply
        .lock()
        .expect("lock")
        .push(Box::new(|far| far.add("theirs")));
    near.sync(&far)
        .expect("the second answer is made from what is there");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "ours", "theirs"]);

    near.mailbox.add("ours 2");
    for subject in ["a", "b"] {
        let disturb = move |far: &Mailbox| far.add(subject);
        far.before_apply
            .lock()
            .expect("lock")
            .push(Box::new(disturb));
    }
    let error = near.sync(&far).expect_err("it changes too fast");
    assert!(error.retryable(), "{error}");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["a", "b", "m0", "m1", "m2", "ours", "ours 2", "theirs"]
    );
}

#[test]
fn an_object_deleted_here_and_changed_there_is_kept() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.delete("m1");
    far.mailbox.change("m1", "edited there");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.deleted, 0);
    assert_eq!(far.mailbox.subjects(), ["edited there", "m0", "m2"]);
}

#[test]
fn a_lost_answer_is_found_out() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.add("sent");
    // Applied there, but this side never heard of it.
    far.mailbox.add("sent");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["m0", "m1", "m2", "sent"],
        "not twice"
    );
}

#[test]
fn a_lying_destination_is_not_believed() {
    let (mut near, mut far) = pair(3);
    near.mailbox.add("new");
    far.lies = true;
    let error = near.sync(&far).expect_err("not verified");
    assert!(matches!(error, SyncError::NotVerified), "{error}");
    far.lies = false;
    let report = near.sync(&far).expect("syncs");
    assert!(far.mailbox.subjects().contains(&"new".to_owned()));
    assert_eq!(report.counts.added, 0, "it had arrived");
}

#[test]
fn a_wave_of_deletes_needs_a_word() {
    let (mut near, far) = pair(30);
    near.sync(&far).expect("syncs");
    for i in 0..30 {
        near.mailbox.delete(&format!("m{i}"));
    }
    let before = far.applies.load(Ordering::SeqCst);
    let error = near.sync(&far).expect_err("it asks first");
    assert!(
        matches!(error, SyncError::TooManyDeletes { deletes: 30, .. }),
        "{error}"
    );
    assert_eq!(
        far.applies.load(Ordering::SeqCst),
        before,
        "nothing was sent"
    );
    let options = Options {
        allow_deletes: true,
        ..Options::default()
    };
    near.sync_with(&far, options).expect("it is meant");
    assert!(far.mailbox.subjects().is_empty());
}

#[test]
fn what_others_edited_or_moved_is_left_alone_until_it_changes_here() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    far.mailbox.change("m1", "edited there");
    near.mailbox.add("ours");
    let report = near.sync(&far).expect("syncs");
    assert_eq!((report.drift, report.counts.updated), (1, 0), "{report:?}");
    assert_eq!(far.mailbox.subjects(), ["edited there", "m0", "m2", "ours"]);
    // Remembered, not only noticed once.
    near.mailbox.add("more");
    assert_eq!(near.sync(&far).expect("syncs").drift, 1);
    near.mailbox.change("m1", "edited here");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["edited here", "m0", "m2", "more", "ours"]
    );
}

#[test]
fn folders_made_on_both_sides_under_one_number_stay_two() {
    let (mut near, far) = pair(1);
    near.sync(&far).expect("syncs");
    let make = |mailbox: &Mailbox, name: &str, mail: &str| {
        let root = mailbox.pst().ipm_subtree().expect("a subtree");
        let props = [PropValue::string(tags::DISPLAY_NAME, name)]
            .into_iter()
            .collect();
        let mut given = Nid(0);
        mailbox.edit(|tx| {
            given = tx.create_folder(root, None, &props).expect("creates");
            tx.add_message(given, None, &message(mail), false)
                .expect("adds");
        });
        given
    };
    let ours = make(&near.mailbox, "Ours", "our mail");
    let theirs = make(&far.mailbox, "Theirs", "their mail");
    assert_eq!(ours, theirs);
    near.sync(&far).expect("syncs");
    // The next folder here gets the number that ours was given there.
    make(&near.mailbox, "Next", "next mail");
    near.mailbox.edit(|tx| {
        tx.add_message(ours, None, &message("more of ours"), false)
            .expect("adds");
    });
    near.sync(&far).expect("syncs");
    let pst = far.mailbox.pst();
    let index = pst.index().expect("an index");
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for nid in index.folders.keys() {
        let name = pst.folder(*nid).expect("reads").props;
        let list = index.messages.get(nid).into_iter().flatten();
        let subject = |nid| pst.message(nid).expect("reads").props.str(tags::SUBJECT);
        let mut mail: Vec<String> = list.filter_map(|m| subject(m.nid)).collect();
        mail.sort();
        if !mail.is_empty() {
            found.push((name.str(tags::DISPLAY_NAME).unwrap_or_default(), mail));
        }
    }
    found.sort();
    let want = [
        ("Inbox", vec!["m0"]),
        ("Next", vec!["next mail"]),
        ("Ours", vec!["more of ours", "our mail"]),
        ("Theirs", vec!["their mail"]),
    ];
    let want = want.map(|(n, m)| (n.to_owned(), m.into_iter().map(str::to_owned).collect()));
    assert_eq!(found, want);
}

#[test]
fn a_file_taken_over_from_there_brings_its_numbers() {
    let (mut near, far) = pair(2);
    near.sync(&far).expect("syncs");
    near.mailbox.add("ours");
    far.mailbox.add("theirs");
    near.sync(&far).expect("syncs");
    // Reattached: the near file is the far one, byte for byte, and what was remapped is so no more.
    near.mailbox = far.mailbox.twin();
    near.started_from = Some(far.mailbox.generation());
    near.lineage = 2;
    near.mailbox.change("theirs", "theirs, read here");
    let report = near.sync(&far).expect("syncs");
    let c = report.counts;
    assert_eq!((c.added, c.updated, c.moved, c.deleted), (0, 1, 0, 0));
    assert_eq!(lines(&far.mailbox.pst()), lines(&near.mailbox.pst()));
}

#[test]
fn a_folder_into_which_others_put_mail_is_not_deleted_with_it() {
    let base = Mailbox::new(2);
    let edited = base.twin();
    let inbox = base.inbox();
    edited.edit(|tx| tx.delete_folder(inbox).expect("deletes"));
    let (old, new) = (base.pst(), edited.pst());
    let read = |pst: &Pst| Inventory::read(pst).expect("reads");
    let changes = compare(&read(&old), &read(&new));
    let list = changes.into_iter().map(|c| (c.clone(), c.nid())).collect();
    let package = compile(&new, list).expect("compiles");
    // No generation guards a package that is applied by hand.
    base.add("theirs");
    let error = apply(Arc::clone(&base.0) as Arc<dyn ReadAt>, &package).expect_err("refused");
    assert!(matches!(error, SyncError::WrongBase { .. }), "{error}");
}

#[test]
fn another_pst_copied_over_this_one_is_seen_as_it_is() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    // Made by the same steps, so every NID and BID is the same; only the mail is another.
    let other = Mailbox::with_subjects(&["x0", "x1", "x2"]);
    near.mailbox.0.set_len(0).expect("cuts");
    near.mailbox
        .0
        .write_all_at(0, &other.0.to_vec())
        .expect("writes");
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["x0", "x1", "x2"]);
}

#[test]
fn a_side_that_lost_its_latest_epoch_deletes_nothing() {
    let (mut near, far) = pair(3);
    let older = near.mailbox.twin();
    near.mailbox.add("new");
    near.sync(&far).expect("syncs");
    // The disk forgot: the file and its epoch are those of before.
    near.mailbox = older;
    near.epoch = 5;
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.deleted, 0, "{report:?}");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "new"]);
}

/// Two new folders that are equal but for the mail in them, whose numbers are taken at the target.
#[test]
fn equal_new_folders_are_told_apart_when_their_list_is_done_already() {
    let named = |name: &str| -> PropBag {
        [PropValue::string(tags::DISPLAY_NAME, name)]
            .into_iter()
            .collect()
    };
    // How many of the folders' numbers are taken, and which of the folders have mail.
    for (taken, mail) in [
        (0, [true, true]),
        (1, [true, true]),
        (2, [true, true]),
        (3, [true, true]),
        (1, [false, true]),
        (1, [true, false]),
        (2, [false, true]),
        (2, [true, false]),
    ] {
        let base = Mailbox::new(1);
        let edited = base.twin();
        let root = base.pst().ipm_subtree().expect("a subtree");
        for (i, with_mail) in mail.into_iter().enumerate() {
            edited.edit(|tx| {
                let folder = tx
                    .create_folder(root, None, &named("Twin"))
                    .expect("creates");
                if with_mail {
                    let data = message(&format!("in {i}"));
                    tx.add_message(folder, None, &data, false).expect("adds");
                }
            });
        }
        let read = |pst: &Pst| Inventory::read(pst).expect("reads");
        let changes = compare(&read(&base.pst()), &read(&edited.pst()));
        let list = changes.into_iter().map(|c| (c.clone(), c.nid())).collect();
        let package = compile(&edited.pst(), list).expect("compiles");
        for i in 0..taken {
            base.edit(|tx| {
                let name = format!("Theirs {i}");
                let folder = tx
                    .create_folder(root, None, &named(&name))
                    .expect("creates");
                let data = message(&format!("theirs {i}"));
                tx.add_message(folder, None, &data, false).expect("adds");
            });
        }
        let file = || Arc::clone(&base.0) as Arc<dyn ReadAt>;
        let first = apply(file(), &package).expect("applies");
        first.write_set.commit(base.0.as_ref()).expect("commits");
        let again = apply(file(), &package).expect("is done already");
        assert_eq!(again.done, 0);
        let what = format!("{taken} taken, {mail:?}");
        assert_eq!(again.nid_map, first.nid_map, "{what}");
        assert_eq!(taken == 0, first.nid_map.is_empty(), "{what}");
    }
}
