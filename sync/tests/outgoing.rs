//! What is on its way: sent again as it was before anything new, over edits, restarts and crashes, and
//! gone once it is answered.
#![allow(clippy::expect_used)]

mod common;

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use common::*;
use pst::ltp::PropValue;
use pst::messaging::tags;
use sync::{ApplyAnswer, ApplyJob, Destination, RemoteInventory, SyncError};

/// A far side, and what was asked of it: (sequence, BLAKE3 of the package, base).
struct Asked {
    far: Far,
    jobs: Mutex<Vec<(u64, [u8; 32], storage::Generation)>>,
}

impl Destination for Asked {
    fn name(&self) -> &str {
        self.far.name()
    }

    fn inventory(&self, container: &str) -> sync::Result<RemoteInventory> {
        self.far.inventory(container)
    }

    fn apply(
        &self,
        job: &ApplyJob<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> sync::Result<ApplyAnswer> {
        let digest = *blake3::hash(job.package).as_bytes();
        let mut jobs = self.jobs.lock().expect("lock");
        jobs.push((job.sequence, digest, job.base));
        self.far.apply(job, progress)
    }
}

fn lose_answer(far: &Far) {
    far.loses_answer.store(true, Ordering::SeqCst);
}

/// A pair that was synced, and then sent a new mail whose answer was lost.
fn waiting() -> (Near, Far) {
    let (mut near, far) = pair(3);
    near.mailbox.add("old");
    near.sync(&far).expect("syncs");
    near.mailbox.add("sent");
    lose_answer(&far);
    near.sync(&far).expect_err("the answer is lost");
    assert_eq!(near.outgoing().len(), 1);
    (near, far)
}

#[test]
fn what_was_sent_is_sent_again_as_it_was_and_only_then_what_is_new() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    let asked = Asked {
        far,
        jobs: Mutex::default(),
    };
    near.mailbox.add("sent");
    lose_answer(&asked.far);
    near.sync_to(&asked, &asked.far).expect_err("lost");
    near.mailbox.change("sent", "sent, and edited since");
    near.mailbox.add("new");
    near.restart();
    let report = near.sync_to(&asked, &asked.far).expect("syncs");
    assert_eq!(
        asked.far.mailbox.subjects(),
        ["m0", "m1", "m2", "new", "sent, and edited since"]
    );
    // The user hears of all of it.
    assert_eq!((report.counts.added, report.counts.updated), (2, 1));
    let jobs = asked.jobs.lock().expect("lock");
    assert_eq!(jobs.len(), 3, "{jobs:?}");
    assert_eq!(jobs[0], jobs[1], "same number, same bytes, same base");
    assert_eq!(jobs[2].0, jobs[1].0 + 1);
    assert_eq!(near.outgoing().len(), 0);
}

#[test]
fn a_mail_edited_after_a_lost_answer_is_not_there_twice() {
    for restart in [false, true] {
        let (mut near, far) = waiting();
        near.mailbox.change("sent", "edited since");
        // At the far side somebody reads, moves, adds: its bytes are others by now.
        far.mailbox.add("theirs");
        if restart {
            near.restart();
        }
        near.sync(&far).expect("syncs");
        let want = ["edited since", "m0", "m1", "m2", "old", "theirs"];
        assert_eq!(far.mailbox.subjects(), want);
    }
}

#[test]
fn a_mail_deleted_after_a_lost_answer_is_deleted_there() {
    let (mut near, far) = waiting();
    near.mailbox.delete("sent");
    far.mailbox.add("theirs");
    near.restart();
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "old", "theirs"]);
}

#[test]
fn a_request_that_never_arrived_does_no_harm() {
    for changed_there in [false, true] {
        let (mut near, far) = pair(3);
        near.sync(&far).expect("syncs");
        near.mailbox.add("sent");
        far.loses_request.store(true, Ordering::SeqCst);
        near.sync(&far).expect_err("the request is lost");
        assert_eq!(near.outgoing().len(), 1);
        near.mailbox.change("sent", "edited since");
        if changed_there {
            far.mailbox.add("theirs");
        }
        near.restart();
        near.sync(&far).expect("syncs");
        let there = far.mailbox.subjects();
        let there: Vec<&str> = there.iter().map(String::as_str).collect();
        let theirs = there.iter().filter(|s| **s == "theirs").count();
        assert_eq!(theirs, usize::from(changed_there));
        let rest: Vec<&str> = there.into_iter().filter(|s| *s != "theirs").collect();
        assert_eq!(rest, ["edited since", "m0", "m1", "m2"]);
        assert_eq!(near.outgoing().len(), 0);
    }
}

#[test]
fn what_another_file_held_is_not_sent_any_more() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    let restored = near.mailbox.twin();
    near.mailbox.add("mistake");
    far.loses_request.store(true, Ordering::SeqCst);
    near.sync(&far).expect_err("the request is lost");
    // The user puts a backup in its place.
    near.mailbox = restored;
    near.lineage = 2;
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2"]);
    assert_eq!(near.outgoing().len(), 0);
}

#[test]
fn a_far_side_that_forgot_its_answer_and_holds_what_was_sent_has_applied_it() {
    let (mut near, far) = waiting();
    far.records.lock().expect("lock").clear();
    near.mailbox.change("sent", "edited since");
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.mailbox.subjects(),
        ["edited since", "m0", "m1", "m2", "old"]
    );
}

#[test]
fn nothing_is_sent_that_could_not_be_kept() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.add("new");
    // Where packages are kept there is something else: as good as a full disk.
    let path = near.state_dir().join("outgoing");
    fs::write(&path, b"in the way").expect("writes");
    let asked = far.applies.load(Ordering::SeqCst);
    let error = near.sync(&far).expect_err("it cannot be kept");
    assert!(matches!(error, SyncError::Database(_)), "{error}");
    assert_eq!(
        far.applies.load(Ordering::SeqCst),
        asked,
        "nothing went out"
    );
    fs::remove_file(&path).expect("removes");
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "new"]);
}

#[test]
fn a_package_of_another_state_is_dropped() {
    // A crash after the answer was stored, before the package went.
    let (mut near, far) = waiting();
    let path = near.outgoing().remove(0);
    let kept = fs::read(&path).expect("reads");
    near.sync(&far).expect("syncs");
    assert_eq!(near.outgoing().len(), 0);
    fs::write(&path, &kept).expect("writes");
    near.restart();
    near.mailbox.delete("sent");
    let applies = far.applies.load(Ordering::SeqCst);
    let report = near.sync(&far).expect("syncs");
    assert_eq!((report.counts.added, report.counts.deleted), (0, 1));
    assert_eq!(far.applies.load(Ordering::SeqCst), applies + 1);
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "old"]);

    // And one beside a database that was lost.
    fs::write(&path, &kept).expect("writes");
    near.lose_database();
    near.sync(&far).expect("syncs");
    assert_eq!(near.outgoing().len(), 0);
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2", "old"]);
}

#[test]
fn a_damaged_package_is_never_sent() {
    let (near, far) = waiting();
    let path = near.outgoing().remove(0);
    let kept = fs::read(&path).expect("reads");
    let bytes = far.mailbox.0.to_vec();
    drop(near);
    let step = kept.len() / 23;
    for at in (0..kept.len()).step_by(step.max(1)) {
        for cut in [false, true] {
            let (mut near, far) = waiting();
            assert_eq!(far.mailbox.0.to_vec(), bytes, "always the same");
            let path = near.outgoing().remove(0);
            let mut bad = fs::read(&path).expect("reads");
            if cut {
                bad.truncate(at);
            } else {
                bad[at] ^= 0x10;
            }
            fs::write(&path, bad).expect("writes");
            let applies = far.applies.load(Ordering::SeqCst);
            near.sync(&far).expect("syncs");
            // What was sent is found by its content, as where nothing was kept.
            let asked = far.applies.load(Ordering::SeqCst) - applies;
            assert!(asked <= 2, "cut {cut} at {at}: {asked}");
            let want = ["m0", "m1", "m2", "old", "sent"];
            assert_eq!(far.mailbox.subjects(), want, "cut {cut} at {at}");
            assert_eq!(near.outgoing().len(), 0);
        }
    }
}

#[test]
#[cfg(unix)]
fn mail_on_its_way_is_readable_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (near, _far) = waiting();
    let path = near.outgoing().remove(0);
    let mode = |path: &std::path::Path| fs::metadata(path).expect("is there").permissions().mode();
    assert_eq!(mode(&path) & 0o777, 0o600);
    assert_eq!(mode(path.parent().expect("a directory")) & 0o777, 0o700);
}

#[test]
fn an_answer_of_before_is_not_taken_for_one_of_now() {
    let (mut near, far) = pair(3);
    near.sync(&far).expect("syncs");
    // Nothing to send, and the answer to that is lost. Then somebody deletes there.
    lose_answer(&far);
    near.sync(&far).expect_err("lost");
    far.mailbox.delete("m0");
    let report = near.sync(&far).expect("syncs");
    assert_eq!(report.counts.added, 1, "what was deleted there is seen");
    assert_eq!(far.mailbox.subjects(), ["m0", "m1", "m2"]);
}

#[test]
fn where_patches_are_refused_objects_go_whole() {
    let (mut near, mut far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.change("m1", "once");
    near.sync(&far).expect("syncs");
    far.refuses_patches = true;
    near.mailbox.change("once", "twice");
    let applies = far.applies.load(Ordering::SeqCst);
    near.sync(&far).expect("syncs");
    assert_eq!(
        far.applies.load(Ordering::SeqCst) - applies,
        2,
        "patched, then whole"
    );
    assert_eq!(far.mailbox.subjects(), ["m0", "m2", "twice"]);
    assert_eq!(near.outgoing().len(), 0);
}

#[test]
fn a_package_that_is_refused_after_a_restart_stops_nothing() {
    let (mut near, mut far) = pair(3);
    near.sync(&far).expect("syncs");
    near.mailbox.change("m1", "once");
    near.sync(&far).expect("syncs");
    near.mailbox.change("once", "twice");
    far.loses_request.store(true, Ordering::SeqCst);
    near.sync(&far).expect_err("the request is lost");
    // The far side is another version by now.
    far.refuses_patches = true;
    near.restart();
    near.sync(&far).expect("syncs");
    assert_eq!(far.mailbox.subjects(), ["m0", "m2", "twice"]);
}

#[test]
fn what_another_destination_was_sent_is_not_forgotten_here() {
    for more in [false, true] {
        // Enough for several pages of the tree.
        let (mut near, far) = pair(200);
        near.sync(&far).expect("syncs");
        near.mailbox.change("m0", "changed between");
        near.mailbox.delete("m1");
        // All of it reached another destination, and the ranges begin anew.
        near.mark();
        if more {
            near.mailbox.add("after");
        }
        let report = near.sync(&far).expect("syncs");
        let c = report.counts;
        assert_eq!(
            (c.added, c.updated, c.deleted),
            (usize::from(more), 1, 1),
            "{c:?}"
        );
        assert_eq!(lines(&far.mailbox.pst()), lines(&near.mailbox.pst()));
    }
}

#[test]
fn a_new_folder_into_which_both_moved_the_same_mail_stays_two() {
    let (near, far) = pair(2);
    let mut near = near;
    let make = |mailbox: &Mailbox, name: &str| {
        let root = mailbox.pst().ipm_subtree().expect("a subtree");
        let mail = mailbox.nid_of("m0");
        let props = [PropValue::string(tags::DISPLAY_NAME, name)]
            .into_iter()
            .collect();
        let mut given = pst::Nid(0);
        mailbox.edit(|tx| {
            given = tx.create_folder(root, None, &props).expect("creates");
            tx.move_message(mail, given).expect("moves");
        });
        given
    };
    // Nothing was synced yet, and there the file was changed since.
    let ours = make(&near.mailbox, "Ours");
    assert_eq!(ours, make(&far.mailbox, "Theirs"));
    near.sync(&far).expect("syncs");
    let pst = far.mailbox.pst();
    let index = pst.index().expect("an index");
    let mut names: Vec<(String, usize)> = index
        .folders
        .keys()
        .map(|nid| {
            let props = pst.folder(*nid).expect("reads").props;
            let name = props.str(tags::DISPLAY_NAME).unwrap_or_default();
            (name, index.messages.get(nid).map_or(0, Vec::len))
        })
        .filter(|(name, _)| name == "Ours" || name == "Theirs")
        .collect();
    names.sort();
    assert_eq!(names, [("Ours".to_owned(), 1), ("Theirs".to_owned(), 0)]);
}
