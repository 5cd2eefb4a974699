//! The sync engine against a destination in memory: what is sent, what is held back, and what is
//! believed.
#![allow(clippy::expect_used)]

mod common;

use std::sync::atomic::Ordering;

use common::*;
use storage::WriteAt;
use sync::{Options, SyncError};

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
