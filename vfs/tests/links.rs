//! Files of several names (hard links): each name leads to the one content, here and on the share, whatever
//! fails, and others may do to one name what they like. (What programs see is held against the native file
//! system in `pjd` and `pjdfstest`, and in `model`, with faults, kills and power cuts.)
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use common::{Rig, open_rw, pattern, put_file, read_all};
use vfs::share::fault::Fault;
use vfs::{Drive, Error, PushOutcome, ROOT, ReintegratedOutcome as O, SetAttr, State};

fn link(d: &Drive, from: &str, to: &str) -> vfs::Result<vfs::NodeAttr> {
    d.link(d.find(from)?, ROOT, to)
}

/// How many names stat(2) tells of.
fn names(d: &Drive, path: &str) -> u32 {
    d.lookup(ROOT, path).unwrap().links
}

fn write(d: &Drive, path: &str, data: &[u8]) {
    let handle = open_rw(d, path);
    d.truncate_handle(handle, 0).unwrap();
    d.write(handle, 0, data).unwrap();
    d.release(handle).unwrap();
}

/// `f` and `g`, one file of 5,000 bytes, whole here and on the share.
fn linked() -> (Rig, Arc<Drive>) {
    let rig = Rig::bare();
    rig.put("f", &pattern(5000, 1));
    let d = rig.drive(State::Online);
    d.readdir(ROOT).unwrap();
    assert_eq!(link(&d, "f", "g").unwrap().links, 2);
    d.fill_file("f").unwrap();
    (rig, d)
}

/// As a program finds it.
fn content(d: &Drive, path: &str) -> Vec<u8> {
    d.lookup(ROOT, path).unwrap();
    read_all(d, path).unwrap()
}

fn same_there(rig: &Rig, a: &str, b: &str) -> bool {
    let number = |path| std::fs::metadata(rig.share_file(path)).unwrap().ino();
    number(a) == number(b)
}

fn push_all(d: &Drive) -> Vec<PushOutcome> {
    let dirty = d.status().dirty_opaque;
    dirty
        .iter()
        .map(|path| d.push_opaque(path, "D", "H").unwrap())
        .collect()
}

fn outcomes(d: &Drive) -> Vec<O> {
    let report = d.reintegrate("D", "H").unwrap();
    report.into_iter().map(|r| r.outcome).collect()
}

#[test]
fn one_content_under_every_name_over_kills() {
    let (rig, d) = linked();
    assert!(same_there(&rig, "f", "g"));
    assert_eq!(d.find("f").unwrap(), d.find("g").unwrap());
    d.set_state(State::Offline);
    write(&d, "g", b"written by the other name");
    link(&d, "g", "h").unwrap();
    d.unlink(ROOT, "f").unwrap();
    d.sync_all().unwrap();
    // The first life leaves it in the journal, the second in the metadata.
    let mut d = d;
    for life in 0..3 {
        drop(d);
        d = rig.drive(State::Offline);
        for path in ["g", "h"] {
            assert_eq!(read_all(&d, path).unwrap(), b"written by the other name");
            assert_eq!(names(&d, path), 2, "life {life}");
        }
        assert!(matches!(d.lookup(ROOT, "f"), Err(Error::NotFound(_))));
        d.checkpoint().unwrap();
    }
    // Counted, kept and sent once.
    assert_eq!(d.status().dirty_opaque.len(), 1);
    d.set_state(State::Online);
    assert_eq!(outcomes(&d), [O::Done, O::Done]);
    assert_eq!(push_all(&d), [PushOutcome::Pushed(25)]);
    assert!(same_there(&rig, "g", "h") && !rig.share_file("f").exists());
    assert_eq!(rig.get("h"), b"written by the other name");
}

#[test]
fn what_has_one_name_is_said() {
    let rig = Rig::bare();
    let d = rig.drive(State::Online);
    for path in ["f", "mail.pst"] {
        put_file(&d, ROOT, path, b"x");
    }
    let dir = d.mkdir(ROOT, "dir", 0o755, None).unwrap().id;
    let to = d.symlink(ROOT, "to", "f", None).unwrap().id;
    for (id, name) in [
        (dir, "other"),
        (to, "other"),
        (d.find("mail.pst").unwrap(), "other"),
        (d.find("f").unwrap(), "mail2.pst"),
    ] {
        let refused = d.link(id, ROOT, name);
        assert!(
            matches!(refused, Err(Error::NotPermitted(_))),
            "{refused:?}"
        );
    }
    assert!(matches!(
        link(&d, "f", "mail.pst"),
        Err(Error::NotPermitted(_))
    ));
    assert!(matches!(link(&d, "f", "to"), Err(Error::Exists(_))));
    // One of several does not become a container's; the last one may.
    link(&d, "f", "g").unwrap();
    let renamed = d.rename(ROOT, "g", ROOT, "g.pst", true);
    assert!(
        matches!(renamed, Err(Error::NotPermitted(_))),
        "{renamed:?}"
    );
    d.unlink(ROOT, "f").unwrap();
    d.rename(ROOT, "g", ROOT, "g.pst", true).unwrap();
    assert_eq!(d.containers().len(), 2);
    assert!(matches!(
        link(&d, "g.pst", "h"),
        Err(Error::NotPermitted(_))
    ));
}

#[test]
fn there_is_an_end_to_the_names_of_a_file() {
    let rig = Rig::bare();
    let d = rig.drive(State::Online);
    put_file(&d, ROOT, "f", b"x");
    d.set_state(State::Offline);
    for n in 1..1024 {
        link(&d, "f", &format!("g{n}")).unwrap();
    }
    assert!(matches!(link(&d, "f", "more"), Err(Error::TooManyNames(_))));
    assert_eq!(names(&d, "f"), 1024);
    d.set_state(State::Online);
    assert_eq!(outcomes(&d).len(), 1023);
    assert!(same_there(&rig, "f", "g1023"));
}

#[test]
fn a_lost_answer_makes_no_second_name() {
    for hang in [false, true] {
        let (rig, d) = linked();
        let fault = if hang {
            Fault::HangAfter
        } else {
            Fault::FailAfter(ErrorKind::ConnectionReset)
        };
        rig.faults.all_on("h", fault);
        assert_eq!(link(&d, "f", "h").unwrap().links, 3);
        rig.faults.heal();
        d.set_state(State::Online);
        let mut tries = 0;
        let report = loop {
            let _ = d.statfs();
            match d.reintegrate("D", "H") {
                Ok(report) => break report,
                Err(e) => assert!(tries < 2000, "{e}"),
            }
            tries += 1;
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(report.iter().all(|r| r.outcome == O::Done), "{report:?}");
        assert!(same_there(&rig, "f", "h"));
        assert_eq!(std::fs::read_dir(rig.share_file("")).unwrap().count(), 3);
    }
}

/// The toy version removes the name that the refused one was to be made beside, and with it the content.
#[test]
fn a_refused_name_keeps_those_it_is_made_beside() {
    const EPERM: i32 = 1;
    let (rig, d) = linked();
    d.set_state(State::Offline);
    link(&d, "f", "h").unwrap();
    d.unlink(ROOT, "f").unwrap();
    put_file(&d, ROOT, "new", b"other");
    d.rename(ROOT, "new", ROOT, "g", true).unwrap();
    d.set_state(State::Online);
    rig.faults.all_on("h", Fault::Errno(EPERM));
    d.reintegrate("D", "H").unwrap();
    assert_eq!(rig.get("f"), pattern(5000, 1));
    assert_eq!(read_all(&d, "h").unwrap(), pattern(5000, 1));
    let refused = d.status().refused;
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].path, "h");
    rig.faults.heal();
    d.reintegrate("D", "H").unwrap();
    push_all(&d);
    assert_eq!(rig.get("h"), pattern(5000, 1));
    assert_eq!(rig.get("g"), b"other");
    assert!(!rig.share_file("f").exists());
    assert!(d.pending_namespace().is_empty());
}

#[test]
fn a_refused_name_that_is_removed_is_forgotten() {
    const EPERM: i32 = 1;
    let (rig, d) = linked();
    d.set_state(State::Offline);
    link(&d, "f", "h").unwrap();
    d.set_state(State::Online);
    rig.faults.all_on("h", Fault::Errno(EPERM));
    d.reintegrate("D", "H").unwrap();
    assert_eq!(d.status().refused.len(), 1);
    d.unlink(ROOT, "h").unwrap();
    d.reintegrate("D", "H").unwrap();
    assert!(d.pending_namespace().is_empty());
    assert_eq!(names(&d, "f"), 2);
    assert_eq!(rig.get("g"), pattern(5000, 1));
}

#[test]
fn a_name_that_others_gave_another_file_is_that_ones() {
    for by in ["lookup", "readdir"] {
        let (rig, d) = linked();
        rig.put("tmp", b"theirs");
        std::fs::rename(rig.share_file("tmp"), rig.share_file("g")).unwrap();
        if by == "readdir" {
            d.readdir(ROOT).unwrap();
        }
        assert!(content(&d, "f") == pattern(5000, 1), "{by}");
        assert_eq!(content(&d, "g"), b"theirs", "{by}");
        assert_eq!((names(&d, "f"), names(&d, "g")), (1, 1), "{by}");
        write(&d, "f", b"ours");
        assert_eq!(
            (rig.get("f"), rig.get("g")),
            (b"ours".to_vec(), b"theirs".to_vec())
        );
    }
}

#[test]
fn names_that_others_removed_are_gone_and_bytes_are_not() {
    let (rig, d) = linked();
    d.set_state(State::Offline);
    write(&d, "f", b"written offline");
    d.set_state(State::Online);
    std::fs::remove_file(rig.share_file("f")).unwrap();
    // By the name that is left.
    let mut pushed = d.push_opaque("f", "D", "H");
    if matches!(pushed, Err(Error::Busy(_))) {
        pushed = d.push_opaque("g", "D", "H");
    }
    assert_eq!(pushed.unwrap(), PushOutcome::Pushed(15));
    assert_eq!(rig.get("g"), b"written offline");
    assert!(matches!(d.lookup(ROOT, "f"), Err(Error::NotFound(_))));
    // All of them: ours stays, under the name it has.
    d.set_state(State::Offline);
    write(&d, "g", b"written again");
    d.set_state(State::Online);
    std::fs::remove_file(rig.share_file("g")).unwrap();
    d.push_opaque("g", "D", "H").unwrap();
    assert_eq!(rig.get("g"), b"written again");
}

#[test]
fn changed_on_both_sides_both_are_kept() {
    let (rig, d) = linked();
    d.set_state(State::Offline);
    write(&d, "g", b"ours");
    rig.put("f", b"theirs, by either name");
    d.set_state(State::Online);
    let outcomes = push_all(&d);
    let [PushOutcome::Conflict(kept)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(rig.get(kept), b"ours");
    d.readdir(ROOT).unwrap();
    for path in ["f", "g"] {
        assert_eq!(
            read_all(&d, path).unwrap(),
            b"theirs, by either name",
            "{path}"
        );
    }
    assert_eq!(read_all(&d, kept).unwrap(), b"ours");
    assert_eq!(names(&d, kept), 1);
}

#[test]
fn the_last_open_handle_holds_a_file_without_names() {
    let (rig, d) = linked();
    let handle = open_rw(&d, "f");
    for name in ["f", "g"] {
        d.unlink(ROOT, name).unwrap();
    }
    d.write(handle, 0, b"still").unwrap();
    assert_eq!(d.read(handle, 0, 5).unwrap(), b"still");
    let again = d.link(d.find("f").unwrap_or(2), ROOT, "h");
    assert!(matches!(again, Err(Error::NotFound(_))), "{again:?}");
    d.release(handle).unwrap();
    d.checkpoint().unwrap();
    d.checkpoint().unwrap();
    let data = rig.tmp.path().join("state/data");
    assert_eq!(
        std::fs::read_dir(data).unwrap().count(),
        0,
        "its cache file is gone"
    );
}

/// A change of names that nothing may be dropped across, so that all before it is brought over: a file made,
/// given a time and removed here is nobody else's there.
#[test]
fn a_time_of_a_file_that_was_made_here_is_not_taken_for_others() {
    let (rig, d) = linked();
    d.set_state(State::Offline);
    let (node, made) = d.create(ROOT, "made", 0o644, None).unwrap();
    let set = SetAttr {
        mtime: Some(1_000_000_000),
        ..SetAttr::default()
    };
    d.set_attr(node.id, &set).unwrap();
    link(&d, "f", "h").unwrap();
    d.unlink(ROOT, "made").unwrap();
    d.release(made.handle).unwrap();
    drop(d);
    let d = rig.drive(State::Online);
    assert_eq!(outcomes(&d), [O::Done, O::Done, O::Done, O::Done]);
    assert!(!rig.share_file("made").exists());
}
