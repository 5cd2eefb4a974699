//! What the share was asked for and never answered, and what a daemon that died left half known: the drive
//! finds out, and takes nothing for its own that is another's, nor the other way round. (Each was found by
//! `model`, and made small.)
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use common::{Rig, heal, open_rw, pattern, put_file, read_all};
use vfs::disk::crash::CrashDisk;
use vfs::disk::fault::FaultDisk;
use vfs::share::fault::Fault;
use vfs::{Drive, PushOutcome, ROOT, ReintegratedOutcome as O, SetAttr, State};

const EIO: i32 = 5;
const EACCES: i32 = 13;
const LOST: Fault = Fault::FailAfter(ErrorKind::ConnectionReset);

fn time(mtime: i64) -> SetAttr {
    SetAttr {
        mtime: Some(mtime),
        ..SetAttr::default()
    }
}

fn whole(rig: &Rig, state: State) -> Arc<Drive> {
    let d = rig.drive(state);
    d.fill().unwrap();
    d
}

/// The toy version reads from the length of the cache file that a write past the end was acknowledged, also
/// once that file was cut.
#[test]
fn what_a_flip_took_along_survives_a_cut_and_every_kill() {
    let rig = Rig::bare();
    rig.put("a.pst", &pattern(5000, 1));
    let d = whole(&rig, State::Online);
    let h = open_rw(&d, "a.pst");
    d.write(h, 4900, &pattern(1113, 2)).unwrap();
    d.set_state(State::Offline);
    d.truncate_handle(h, 5532).unwrap();
    let want = d.read(h, 0, 1 << 20).unwrap();
    d.fsync(h).unwrap();
    drop(d);
    for life in 0..3 {
        let d = rig.drive(State::Offline);
        assert!(read_all(&d, "a.pst").unwrap() == want, "life {life}");
    }
}

/// What was only fetched need not be in the cache file yet when the power goes, flip or not: it is not taken
/// for whole, and never for zeros.
#[test]
fn a_flip_makes_nothing_durable_that_was_only_fetched() {
    for seed in 0..40 {
        let rig = Rig::bare();
        rig.put("a.pst", &pattern(50_000, 1));
        let disk = CrashDisk::default();
        let open = |disk: &CrashDisk, state| {
            let mut config = rig.config(state);
            config.disk = Some(Arc::new(disk.clone()));
            Drive::open(config).unwrap()
        };
        let d = open(&disk, State::Cached);
        d.readdir(ROOT).unwrap();
        assert!(read_all(&d, "a.pst").unwrap() == pattern(50_000, 1));
        d.set_state(State::Online);
        let h = open_rw(&d, "a.pst");
        d.set_state(State::Offline);
        assert!(d.file_status("a.pst").unwrap().fully_cached);
        assert!(d.read(h, 0, 50_000).unwrap() == pattern(50_000, 1));
        d.sync_all().unwrap();
        drop(d);
        let disk = disk.survivor(seed);
        let d = open(&disk, State::Offline);
        match read_all(&d, "a.pst") {
            Ok(read) => assert!(read == pattern(50_000, 1), "seed {seed}: other bytes"),
            Err(e) => assert!(matches!(e, vfs::Error::NotCached(_)), "seed {seed}: {e}"),
        }
    }
}

/// A cut that reached the share without an answer, of a file that is here in part: what lay behind its end is
/// gone here too, also once it has grown again.
#[test]
fn a_cut_without_an_answer_leaves_nothing_behind_the_end() {
    for reopened in [false, true] {
        let rig = Rig::bare();
        rig.put("a.pst", &pattern(9000, 1));
        let d = rig.drive(State::Online);
        let mut h = open_rw(&d, "a.pst");
        d.write(h, 7438, &pattern(20, 2)).unwrap();
        rig.faults.at(1, LOST);
        assert!(d.truncate_handle(h, 3874).is_err());
        heal(&rig, &d);
        assert_eq!(rig.get("a.pst").len(), 3874);
        if reopened {
            d.release(h).unwrap();
            h = open_rw(&d, "a.pst");
        }
        d.write(h, 7550, &pattern(24, 3)).unwrap();
        d.release(h).unwrap();
        let there = rig.get("a.pst");
        d.set_state(State::Cached);
        assert!(read_all(&d, "a.pst").unwrap() == there, "{reopened}");
    }
}

/// A cut hangs at the share, and takes effect much later: no write is acknowledged meanwhile that it would undo.
#[test]
fn nothing_is_written_before_a_change_that_hangs_has_ended() {
    let mut rig = Rig::bare();
    rig.budget = Duration::from_millis(100);
    rig.put("a.txt", &pattern(9000, 1));
    let d = rig.drive(State::Online);
    let h = open_rw(&d, "a.txt");
    rig.faults.at(1, Fault::Hang);
    assert!(d.truncate_handle(h, 90).is_err());
    let mut kept = 0;
    for _ in 0..20 {
        // The link is looked at, and is well but for that call.
        let _ = d.statfs();
        kept += u64::from(d.write(h, 6000, b"kept").is_ok());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(rig.faults.hanging() > 0);
    heal(&rig, &d);
    while rig.faults.hanging() > 0 || d.file_status("a.txt").unwrap().in_doubt {
        std::thread::sleep(Duration::from_millis(1));
    }
    let there = rig.get("a.txt");
    assert!(kept == 0 || there[6000..6004] == *b"kept");
    d.write(h, 6000, b"kept").unwrap();
    d.release(h).unwrap();
    assert!(rig.get("a.txt")[6000..] == *b"kept");
}

/// A program writes past the end, and again, while a call of the share loses its answer: what is read before the
/// process is killed is read after. (The toy version takes the length of the cache file for a sign that the
/// first write is in it, which the second one made so long.)
#[test]
fn a_kill_after_a_lost_answer_changes_nothing_of_what_is_read() {
    for whole in [true, false] {
        for n in 1..16 {
            let rig = Rig::bare();
            rig.put("a.pst", &pattern(5000, 1));
            let d = rig.drive(State::Online);
            if whole {
                d.fill().unwrap();
            }
            rig.faults.at(n, LOST);
            for (at, len) in [(6879, 595), (7474, 152)] {
                let opened = d
                    .lookup(ROOT, "a.pst")
                    .and_then(|node| d.open_file(node.id, true, true));
                if let Ok(opened) = opened {
                    let _ = d.read(opened.handle, 0, 1 << 20);
                    let _ = d.write(opened.handle, at, &pattern(len, 2));
                    let _ = d.release(opened.handle);
                }
            }
            heal(&rig, &d);
            let before = read_all(&d, "a.pst").unwrap();
            drop(d);
            let d = rig.drive(State::Cached);
            assert!(read_all(&d, "a.pst").unwrap() == before, "{whole} {n}");
        }
    }
}

/// A time that was set after a write holds also where what was written is in doubt, over every restart.
#[test]
fn a_time_that_was_set_is_not_a_recoverys_to_change() {
    let rig = Rig::bare();
    rig.put("a.pst", &pattern(9000, 1));
    let d = rig.drive(State::Online);
    let h = open_rw(&d, "a.pst");
    d.write(h, 8725, &pattern(2423, 2)).unwrap();
    let node = d.find("a.pst").unwrap();
    d.set_attr(node, &time(694_579_000)).unwrap();
    drop(d);
    for life in 0..3 {
        let d = rig.drive(State::Online);
        let node = d.find("a.pst").unwrap();
        let mtime = d.getattr(node).unwrap().attr.mtime;
        assert_eq!(mtime, 694_579_000, "life {life}");
    }
}

/// A change of length that the share refused, or never answered: a process that is killed right after leaves a
/// file that is as long as it was for whoever asked, and nothing is brought to the share for it.
#[test]
fn a_change_of_length_that_failed_is_not_done_by_a_restart() {
    for size in [3874, 20_000] {
        for fault in [
            Fault::Errno(EACCES),
            Fault::Fail(ErrorKind::ConnectionReset),
            LOST,
        ] {
            for whole in [false, true] {
                let rig = Rig::bare();
                rig.put("a.pst", &pattern(9000, 1));
                let d = rig.drive(State::Online);
                match whole {
                    true => d.fill().unwrap(),
                    false => {
                        let h = open_rw(&d, "a.pst");
                        assert!(d.read(h, 0, 100).unwrap() == pattern(9000, 1)[..100]);
                        d.release(h).unwrap();
                    }
                }
                let h = open_rw(&d, "a.pst");
                // Recorded, and not flushed.
                d.write(h, 3900, &pattern(20, 2)).unwrap();
                rig.faults.at(1, fault);
                let failed = d.truncate_handle(h, size).is_err();
                rig.faults.heal();
                drop(d);
                let d = rig.drive(State::Offline);
                let here = read_all(&d, "a.pst");
                d.set_state(State::Online);
                d.push_opaque("a.pst", "D", "H").unwrap();
                let there = rig.get("a.pst");
                let what = format!("{size} {fault:?} {whole}");
                let mut want = pattern(9000, 1);
                want[3900..3920].copy_from_slice(&pattern(20, 2));
                let mut changed = want.clone();
                changed.resize(size as usize, 0);
                if failed {
                    // An answer that was lost may have been either.
                    let lost = matches!(fault, Fault::FailAfter(_));
                    assert!(there == want || lost && there == changed, "{what}");
                    assert!(here.is_err() || here.unwrap() == there, "{what}");
                } else {
                    assert!(whole, "{what}");
                    assert!(here.unwrap() == changed, "{what}");
                    assert!(there == changed, "{what}");
                }
                assert!(read_all(&d, "a.pst").unwrap() == there, "{what}");
            }
        }
    }
}

/// A copy that was given up, for its disk failed, is behind its end nothing that shows later.
#[test]
fn a_copy_that_was_given_up_leaves_nothing_behind_the_end() {
    for state in [State::Online, State::Cached] {
        let rig = Rig::bare();
        rig.put("a.pst", &pattern(9000, 1));
        let mut config = rig.config(State::Online);
        let disk: Arc<dyn vfs::disk::Disk> = Arc::new(CrashDisk::default());
        let disk = Arc::new(FaultDisk::new(disk));
        config.disk = Some(disk.clone());
        let d = Drive::open(config).unwrap();
        d.fill().unwrap();
        let h = open_rw(&d, "a.pst");
        disk.cache.at(1, Fault::Errno(EIO));
        d.write(h, 0, b"new").unwrap();
        disk.cache.heal();
        d.truncate_handle(h, 3874).unwrap();
        d.release(h).unwrap();
        d.set_state(state);
        let h = open_rw(&d, "a.pst");
        d.write(h, 7550, &pattern(24, 3)).unwrap();
        d.release(h).unwrap();
        let mut want = pattern(3874, 1);
        want[..3].copy_from_slice(b"new");
        want.resize(7550, 0);
        want.extend(pattern(24, 3));
        d.set_state(State::Cached);
        assert!(read_all(&d, "a.pst").unwrap() == want, "{state:?}");
    }
}

/// A growing write that reached the share without an answer, of a file that is not here: readers see its new
/// length with its new bytes.
#[test]
fn a_file_that_grew_without_an_answer_is_read_as_it_is() {
    let rig = Rig::bare();
    rig.put("a.txt", &pattern(300, 1));
    let d = rig.drive(State::Online);
    let h = open_rw(&d, "a.txt");
    rig.faults.at(1, LOST);
    assert!(d.write(h, 280, &pattern(100, 2)).is_err());
    heal(&rig, &d);
    d.release(h).unwrap();
    let there = rig.get("a.txt");
    assert_eq!(there.len(), 380);
    assert!(read_all(&d, "a.txt").unwrap() == there);
    // And over a kill, where it is the record of the write that tells.
    drop(d);
    let d = rig.drive(State::Online);
    assert!(read_all(&d, "a.txt").unwrap() == there);
}

#[test]
fn the_time_of_a_later_write_holds_over_kills() {
    for (checkpoint, online) in [(false, false), (true, false), (false, true), (true, true)] {
        let rig = Rig::bare();
        rig.put("a.pst", &pattern(300, 1));
        rig.put("b", b"");
        let d = whole(&rig, State::Online);
        d.lookup(ROOT, "b").unwrap();
        d.set_state(State::Offline);
        d.unlink(ROOT, "b").unwrap();
        if online {
            d.set_state(State::Online);
        }
        let h = open_rw(&d, "a.pst");
        d.write(h, 0, b"first").unwrap();
        let id = d.find("a.pst").unwrap();
        d.set_attr(id, &time(50_171_000)).unwrap();
        d.write(h, 2, b"second").unwrap();
        d.release(h).unwrap();
        let case = format!("checkpoint {checkpoint}, online {online}");
        let later = |d: &Drive| assert!(d.getattr(id).unwrap().attr.mtime > 50_171_000, "{case}");
        later(&d);
        d.push_opaque("a.pst", "D", "H").ok();
        if checkpoint {
            d.checkpoint().unwrap();
        }
        drop(d);
        let d = rig.drive(State::Online);
        later(&d);
        assert!(
            d.reintegrate("D", "H")
                .unwrap()
                .iter()
                .all(|r| r.outcome == O::Done)
        );
        d.push_opaque("a.pst", "D", "H").unwrap();
        later(&d);
        let there = std::fs::metadata(rig.share_file("a.pst")).unwrap();
        let set = std::time::UNIX_EPOCH + Duration::from_nanos(50_171_000);
        assert!(there.modified().unwrap() > set, "{case}: on the share");
    }
}

/// The time was set there, and what the file looks like then was refused: a removal here, or new content, is
/// still of the same file.
#[test]
fn a_refused_look_after_a_change_does_not_make_it_anothers() {
    for removed in [false, true] {
        let mut refused = 0;
        for n in 1..12 {
            let rig = Rig::bare();
            rig.put("a.txt", &pattern(300, 1));
            let d = whole(&rig, State::Online);
            d.fill_file("a.txt").unwrap();
            d.set_state(State::Offline);
            d.set_attr(d.find("a.txt").unwrap(), &time(50_171_000))
                .unwrap();
            d.set_state(State::Online);
            rig.faults.at(n, Fault::Errno(EACCES));
            let report = d.reintegrate("D", "H").unwrap();
            refused += usize::from(report.iter().any(|r| r.outcome != O::Done));
            rig.faults.heal();
            d.set_state(State::Offline);
            if removed {
                d.unlink(ROOT, "a.txt").unwrap();
            } else {
                let h = open_rw(&d, "a.txt");
                d.write(h, 5, b"more").unwrap();
                d.release(h).unwrap();
            }
            drop(d);
            let d = rig.drive(State::Online);
            for r in d.reintegrate("D", "H").unwrap() {
                assert_eq!(r.outcome, O::Done, "call {n}: {}", r.what);
            }
            if removed {
                assert!(!rig.share_file("a.txt").exists(), "call {n}");
            } else {
                let pushed = d.push_opaque("a.txt", "D", "H").unwrap();
                assert!(
                    matches!(pushed, PushOutcome::Pushed(_)),
                    "call {n}: {pushed:?}"
                );
            }
        }
        assert!(refused > 1, "only {refused} refused");
    }
}

/// Made there without an answer; then the share refuses to say what it has. It may be there, so its removal
/// has to go there too.
#[test]
fn what_may_have_been_made_is_removed_there() {
    for n in 1..8 {
        let rig = Rig::bare();
        let d = rig.drive(State::Online);
        d.readdir(ROOT).unwrap();
        d.set_state(State::Offline);
        d.symlink(ROOT, "l", "target", None).unwrap();
        d.set_state(State::Online);
        rig.faults.at(1, LOST);
        assert!(d.reintegrate("D", "H").is_err());
        heal(&rig, &d);
        d.unlink(ROOT, "l").unwrap();
        rig.faults.at(n, Fault::Errno(EACCES));
        d.reintegrate("D", "H").unwrap();
        rig.faults.heal();
        d.reintegrate("D", "H").unwrap();
        assert!(rig.share_file("l").symlink_metadata().is_err(), "call {n}");
        assert!(d.pending_namespace().is_empty());
    }
}

/// The link dies under a write; the file is replaced here, as programs save; and others have changed the
/// share's file since. Theirs stays: in the share's file only our own write may be replaced unseen.
#[test]
fn what_others_wrote_after_a_flip_is_not_replaced() {
    for theirs in [None, Some(2130)] {
        let rig = Rig::bare();
        rig.put("doc.txt", &pattern(9000, 1));
        let d = whole(&rig, State::Online);
        d.fill_file("doc.txt").unwrap();
        let h = open_rw(&d, "doc.txt");
        rig.faults.at(1, LOST);
        d.write(h, 6306, &pattern(280, 2)).unwrap();
        d.release(h).unwrap();
        d.set_state(State::Offline);
        heal(&rig, &d);
        put_file(&d, ROOT, "new.txt", b"saved anew");
        d.rename(ROOT, "new.txt", ROOT, "doc.txt", true).unwrap();
        let mut edited = rig.get("doc.txt");
        if let Some(at) = theirs {
            edited[at..at + 10].copy_from_slice(b"theirs too");
            std::fs::write(rig.share_file("doc.txt"), &edited).unwrap();
        }
        d.set_state(State::Online);
        d.reintegrate("D", "H").unwrap();
        for path in d.status().dirty_opaque {
            d.push_opaque(&path, "D", "H").unwrap();
        }
        if theirs.is_some() {
            assert!(rig.get("doc.txt") == edited);
            assert_eq!(rig.get("doc (conflict D H).txt"), b"saved anew");
        } else {
            assert_eq!(rig.get("doc.txt"), b"saved anew");
            assert_eq!(std::fs::read_dir(rig.share_file("")).unwrap().count(), 1);
        }
    }
}
