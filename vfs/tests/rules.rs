//! The hard rules, one by one, at the drive's own interface.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Rig, open_rw, pattern, put_file, read_all};
use storage::{RangeSet, ReadAt, WriteAt};
use vfs::share::fault::Fault;
use vfs::{Drive, EpochValidator, Error, PushOutcome, ROOT, ReintegratedOutcome, State, Verdict};

#[test]
fn r1_all_handles_see_one_file_until_the_last_close() {
    let rig = Rig::new();
    rig.put("a.txt", b"first");
    let d = rig.drive(State::Online);
    let h1 = open_rw(&d, "a.txt");
    // Replaced on the share under the open handle.
    fs::write(rig.share_file("new"), b"second!").unwrap();
    fs::rename(rig.share_file("new"), rig.share_file("a.txt")).unwrap();
    let h2 = open_rw(&d, "a.txt");
    assert_eq!(d.read(h1, 0, 100).unwrap(), b"first");
    assert_eq!(d.read(h2, 0, 100).unwrap(), b"first");
    d.release(h1).unwrap();
    assert_eq!(d.read(h2, 0, 100).unwrap(), b"first");
    d.release(h2).unwrap();
    assert_eq!(read_all(&d, "a.txt").unwrap(), b"second!");
}

#[test]
fn r1_a_cached_handle_stays_cached_when_the_link_returns() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(10_000, 1));
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    d.set_state(State::Cached);
    let h = open_rw(&d, "m.pst");
    d.write(h, 0, b"mine").unwrap();
    d.set_state(State::Online);
    d.write(h, 4, b"more").unwrap();
    assert_eq!(rig.get("m.pst"), pattern(10_000, 1));
    assert_eq!(d.read(h, 0, 8).unwrap(), b"minemore");
    d.release(h).unwrap();
    // Unsynced: the next open sees the cache as well, not the share.
    assert_eq!(read_all(&d, "m.pst").unwrap()[..8], *b"minemore");
    assert_eq!(
        d.push_opaque("m.pst", "d", "h").unwrap(),
        PushOutcome::Pushed(8)
    );
    assert_eq!(rig.get("m.pst")[..8], *b"minemore");
    let h = open_rw(&d, "m.pst");
    assert!(d.file_status("m.pst").unwrap().passed_through);
    d.release(h).unwrap();
}

#[test]
fn r1_a_reader_that_becomes_a_writer_stays_on_its_file() {
    let rig = Rig::new();
    rig.put("a.txt", b"first");
    let d = rig.drive(State::Online);
    let node = d.find("a.txt").unwrap();
    let r = d.open_file(node, true, false).unwrap().handle;
    fs::write(rig.share_file("new"), b"second!").unwrap();
    fs::rename(rig.share_file("new"), rig.share_file("a.txt")).unwrap();
    assert!(matches!(
        d.open_file(node, true, true),
        Err(Error::ShareChanged(_))
    ));
    assert_eq!(d.read(r, 0, 100).unwrap(), b"first");
    d.release(r).unwrap();
}

#[test]
fn r2_unsynced_is_known_after_a_kill_in_every_state() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(10_000, 1));
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    let h = open_rw(&d, "m.pst");
    d.write(h, 100, b"through").unwrap();
    drop(d);
    // Passed through, acknowledged, never flushed: it is here, and known to be in doubt there.
    let d = rig.drive(State::Offline);
    let s = d.file_status("m.pst").unwrap();
    assert!(s.flipped && s.fully_cached && s.unsynced == 7, "{s:?}");
    assert_eq!(read_all(&d, "m.pst").unwrap()[100..107], *b"through");
    let h = open_rw(&d, "m.pst");
    d.write(h, 200, b"offline").unwrap();
    drop(d);
    let d = rig.drive(State::Online);
    assert_eq!(d.file_status("m.pst").unwrap().unsynced, 14);
    assert_eq!(
        d.push_opaque("m.pst", "d", "h").unwrap(),
        PushOutcome::Pushed(14)
    );
    assert_eq!(rig.get("m.pst"), read_all(&d, "m.pst").unwrap());
    assert_eq!(d.file_status("m.pst").unwrap().unsynced, 0);
}

#[test]
fn r3_unknown_is_not_absent() {
    let rig = Rig::new();
    rig.put("d/m.pst", b"mail");
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    // The share is gone: what is known stays, what is not known is not denied.
    fs::rename(rig.share_file(""), rig.tmp.path().join("away")).unwrap();
    assert_eq!(read_all(&d, "d/m.pst").unwrap(), b"mail");
    assert_eq!(d.readdir(d.find("d").unwrap()).unwrap().len(), 1);
    // An empty directory in its place (an unmounted share) deletes nothing either.
    fs::create_dir(rig.share_file("")).unwrap();
    assert_eq!(d.readdir(ROOT).unwrap().len(), 1);
    assert!(d.fill().is_err());
    assert_eq!(read_all(&d, "d/m.pst").unwrap(), b"mail");
    fs::remove_dir(rig.share_file("")).unwrap();
    fs::rename(rig.tmp.path().join("away"), rig.share_file("")).unwrap();
    assert_eq!(read_all(&d, "d/m.pst").unwrap(), b"mail");
    // Truly deleted there, by a definite answer: gone here too, but never what is unsynced.
    fs::remove_file(rig.share_file("d/m.pst")).unwrap();
    assert!(matches!(
        d.find("d/m.pst").and_then(|n| d.getattr(n)),
        Err(Error::NotFound(_))
    ));
    let dir = d.find("d").unwrap();
    put_file(&d, dir, "n.pst", b"new");
    d.set_state(State::Offline);
    let h = open_rw(&d, "d/n.pst");
    d.write(h, 0, b"NEW").unwrap();
    d.release(h).unwrap();
    d.set_state(State::Online);
    fs::remove_file(rig.share_file("d/n.pst")).unwrap();
    assert_eq!(d.readdir(dir).unwrap().len(), 1);
    assert_eq!(read_all(&d, "d/n.pst").unwrap(), b"NEW");
    assert_eq!(
        d.push_opaque("d/n.pst", "d", "h").unwrap(),
        PushOutcome::Pushed(3)
    );
    assert_eq!(rig.get("d/n.pst"), b"NEW");
}

#[test]
fn r4_a_full_disk_refuses_early_and_loses_nothing() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(10_000, 1));
    let room = Arc::new(AtomicU64::new(1 << 40));
    let mut c = rig.config(State::Online);
    let r = room.clone();
    c.available = Some(Arc::new(move || r.load(Ordering::SeqCst)));
    c.reserve = 1 << 20;
    let d = Drive::open(c).unwrap();
    d.fill().unwrap();
    d.set_state(State::Cached);
    let h = open_rw(&d, "m.pst");
    d.write(h, 0, b"accepted").unwrap();
    room.store(1 << 20, Ordering::SeqCst);
    // What was granted earlier may still be used; then it ends, before anything is taken.
    let mut refused = false;
    for i in 0..100 {
        match d.write(h, 20_000 + i * 100_000, &vec![1; 100_000]) {
            Ok(()) => {}
            Err(Error::NoSpace(_)) => refused = true,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(refused);
    // Finishing what was accepted works inside the reserve.
    d.fsync(h).unwrap();
    d.checkpoint().unwrap();
    assert_eq!(d.read(h, 0, 8).unwrap(), b"accepted");
    room.store(1 << 40, Ordering::SeqCst);
    d.write(h, 0, b"again").unwrap();
    drop(d);
    assert_eq!(
        read_all(&rig.drive(State::Offline), "m.pst").unwrap()[..8],
        *b"againted"
    );
}

#[test]
fn r12_a_full_disk_is_no_reason_to_refuse_a_read() {
    let rig = Rig::new();
    let content = pattern(700_000, 3);
    rig.put("big.bin", &content);
    let mut c = rig.config(State::Cached);
    c.available = Some(Arc::new(|| 1 << 30));
    let d = Drive::open(c).unwrap();
    let h = open_rw(&d, "big.bin");
    // Some of it is kept, and some is ours alone.
    assert_eq!(d.read(h, 300_000, 10).unwrap(), content[300_000..300_010]);
    d.write(h, 100, b"ours").unwrap();
    drop(d);

    let mut c = rig.config(State::Cached);
    c.available = Some(Arc::new(|| 0));
    let d = Drive::open(c).unwrap();
    let mut expected = content;
    expected[100..104].copy_from_slice(b"ours");
    assert_eq!(read_all(&d, "big.bin").unwrap(), expected);
    let h = open_rw(&d, "big.bin");
    assert_eq!(d.read(h, 90, 20).unwrap(), expected[90..110]);
    assert_eq!(
        d.read(h, 299_990, 400_000).unwrap(),
        expected[299_990..699_990]
    );
    assert_eq!(d.read(h, 699_990, 100).unwrap(), expected[699_990..]);
}

/// Online, on a full disk: a write over cached bytes is copied all the same; one past them goes to the
/// share alone, and away from it only its bytes are missing, which status says before.
#[test]
fn r12_a_full_disk_costs_only_the_bytes_that_have_no_room() {
    let rig = Rig::new();
    let mut content = pattern(100_000, 3);
    rig.put("m.pst", &content);
    let room = Arc::new(AtomicU64::new(1 << 40));
    let config = |state| {
        let mut c = rig.config(state);
        let r = room.clone();
        c.available = Some(Arc::new(move || r.load(Ordering::SeqCst)));
        c
    };
    let d = Drive::open(config(State::Online)).unwrap();
    d.fill().unwrap();
    drop(d);
    room.store(0, Ordering::SeqCst);

    let d = Drive::open(config(State::Online)).unwrap();
    let h = open_rw(&d, "m.pst");
    d.write(h, 50_000, b"over").unwrap();
    content[50_000..50_004].copy_from_slice(b"over");
    assert!(d.cache_status().incomplete.is_empty());
    d.fsync(h).unwrap();
    d.set_state(State::Offline);
    assert_eq!(d.read(h, 0, 100_000).unwrap(), content);
    d.set_state(State::Online);
    d.release(h).unwrap();
    drop(d);

    let d = Drive::open(config(State::Online)).unwrap();
    assert!(matches!(
        d.push_opaque("m.pst", "d", "h").unwrap(),
        PushOutcome::Clean | PushOutcome::Pushed(_)
    ));
    let h = open_rw(&d, "m.pst");
    d.write(h, 100_000, b"past").unwrap();
    d.write(h, 10, b"more").unwrap();
    content[10..14].copy_from_slice(b"more");
    d.fsync(h).unwrap();
    let missing = d.cache_status().incomplete;
    assert_eq!(missing.len(), 1);
    assert_eq!((missing[0].cached, missing[0].size), (100_000, 100_004));
    // A kill does not make them believed.
    drop(d);
    let d = Drive::open(config(State::Online)).unwrap();
    let missing = d.cache_status().incomplete;
    assert_eq!((missing[0].cached, missing[0].size), (100_000, 100_004));
    // With room again they come.
    room.store(1 << 40, Ordering::SeqCst);
    d.fill().unwrap();
    d.set_state(State::Offline);
    content.extend_from_slice(b"past");
    assert_eq!(read_all(&d, "m.pst").unwrap(), content);
}

/// What the root has was listed; then the daemon is killed before anything else made that durable, and
/// the share is gone: what is there is told from what is not, and new names can be made.
#[test]
fn r3_the_listed_root_is_known_after_a_kill() {
    let rig = Rig::new();
    rig.put("there.txt", b"there");
    let d = rig.drive(State::Online);
    assert_eq!(d.readdir(ROOT).unwrap().len(), 1);
    drop(d);
    let d = rig.drive(State::Offline);
    assert_eq!(d.readdir(ROOT).unwrap().len(), 1);
    assert!(matches!(d.lookup(ROOT, "new"), Err(Error::NotFound(_))));
    d.mkdir(ROOT, "new", 0o755, None).unwrap();
    let (_, opened) = d.create(ROOT, "made.txt", 0o644, None).unwrap();
    d.release(opened.handle).unwrap();
    assert!(matches!(
        d.mkdir(ROOT, "there.txt", 0o755, None),
        Err(Error::Exists(_))
    ));
}

#[test]
fn r7_sequences_rise_and_survive() {
    let rig = Rig::new();
    rig.put("m.pst", b"mail");
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    assert_eq!(d.outstanding_sequence("m.pst").unwrap(), None);
    assert_eq!(d.next_sequence("m.pst", [1; 32]).unwrap(), 1);
    assert_eq!(d.next_sequence("m.pst", [1; 32]).unwrap(), 1);
    drop(d);
    let d = rig.drive(State::Online);
    assert_eq!(d.outstanding_sequence("m.pst").unwrap(), Some((1, [1; 32])));
    assert_eq!(d.next_sequence("m.pst", [2; 32]).unwrap(), 2);
    d.settle_sequence("m.pst", 2).unwrap();
    d.shutdown().unwrap();
    drop(d);
    let d = rig.drive(State::Online);
    assert_eq!(d.outstanding_sequence("m.pst").unwrap(), None);
    assert_eq!(d.next_sequence("m.pst", [2; 32]).unwrap(), 3);
}

#[test]
fn r11_a_hung_call_leaves_other_files_alone() {
    let rig = Rig::new();
    rig.put("slow.bin", &pattern(1000, 1));
    rig.put("other.bin", &pattern(1000, 2));
    let d = rig.drive(State::Online);
    let (slow, other) = (open_rw(&d, "slow.bin"), open_rw(&d, "other.bin"));
    rig.faults.all_on("slow.bin", Fault::Hang);
    std::thread::scope(|s| {
        let hung = s.spawn(|| d.write(slow, 0, b"x"));
        while rig.faults.hanging() == 0 {
            std::thread::yield_now();
        }
        for i in 0..50 {
            d.write(other, i, b"y").unwrap();
            d.fsync(other).unwrap();
            assert_eq!(d.read(other, i, 1).unwrap(), b"y");
        }
        assert!(rig.faults.hanging() > 0);
        rig.faults.heal();
        hung.join().unwrap().unwrap();
    });
}

#[test]
fn r12_a_hang_flips_a_cached_file_and_stays_in_doubt() {
    let mut rig = Rig::new();
    rig.budget = Duration::from_millis(100);
    rig.put("m.pst", &pattern(10_000, 1));
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    let h = open_rw(&d, "m.pst");
    d.write(h, 0, b"before").unwrap();
    rig.faults.all(Fault::Hang);
    d.write(h, 10, b"hanging").unwrap();
    d.fsync(h).unwrap();
    let s = d.file_status("m.pst").unwrap();
    assert!(
        s.flipped && s.in_doubt && !s.passed_through && s.unsynced == 13,
        "{s:?}"
    );
    d.release(h).unwrap();
    // The write that hangs may still land: nothing is pushed until it has ended.
    assert!(matches!(
        d.push_opaque("m.pst", "d", "h"),
        Err(Error::Busy(_))
    ));
    rig.faults.heal();
    while d.file_status("m.pst").unwrap().in_doubt {
        std::thread::yield_now();
    }
    let mut tries = 0;
    let pushed = loop {
        match d.push_opaque("m.pst", "d", "h") {
            Err(e) if e.is_link() && tries < 1000 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => break other.unwrap(),
        }
    };
    assert_eq!(pushed, PushOutcome::Pushed(13));
    let mut want = pattern(10_000, 1);
    want[..6].copy_from_slice(b"before");
    want[10..17].copy_from_slice(b"hanging");
    assert_eq!(rig.get("m.pst"), want);
}

#[test]
fn an_uncached_file_says_so() {
    let rig = Rig::new();
    rig.put("big.bin", &pattern(900_000, 1));
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    let h = open_rw(&d, "big.bin");
    rig.faults.all(Fault::Fail(ErrorKind::NotConnected));
    assert!(matches!(d.read(h, 0, 10), Err(Error::Link(_))));
    assert!(matches!(d.write(h, 0, b"x"), Err(Error::Link(_))));
    rig.faults.heal();
    d.release(h).unwrap();
    d.set_state(State::Offline);
    let calls = rig.faults.calls();
    assert!(matches!(read_all(&d, "big.bin"), Err(Error::NotCached(_))));
    assert_eq!(rig.faults.calls(), calls, "offline never touches the share");
    d.set_state(State::Cached);
    assert_eq!(read_all(&d, "big.bin").unwrap(), pattern(900_000, 1));
    d.set_state(State::Offline);
    assert_eq!(read_all(&d, "big.bin").unwrap(), pattern(900_000, 1));
}

#[test]
fn a_changed_share_file_is_not_mixed_in() {
    let rig = Rig::new();
    rig.put("big.bin", &pattern(900_000, 1));
    let d = rig.drive(State::Cached);
    let node = d.find("big.bin").unwrap();
    let h = d.open_file(node, true, false).unwrap().handle;
    assert_eq!(d.read(h, 0, 10).unwrap(), pattern(10, 1));
    rig.put("big.bin", &pattern(900_001, 2));
    assert!(matches!(
        d.read(h, 800_000, 10),
        Err(Error::ShareChanged(_))
    ));
    assert_eq!(d.read(h, 0, 10).unwrap(), pattern(10, 1));
    d.release(h).unwrap();
    assert_eq!(read_all(&d, "big.bin").unwrap(), pattern(900_001, 2));
}

#[test]
fn both_sides_of_a_conflict_are_kept() {
    let rig = Rig::new();
    rig.put("doc.txt", b"base");
    let d = rig.drive(State::Cached);
    assert_eq!(read_all(&d, "doc.txt").unwrap(), b"base");
    d.set_state(State::Offline);
    let h = open_rw(&d, "doc.txt");
    d.write(h, 0, b"ours!").unwrap();
    rig.put("doc.txt", b"theirs");
    d.set_state(State::Online);
    // Not under an open handle.
    assert!(matches!(
        d.push_opaque("doc.txt", "d", "h"),
        Err(Error::Busy(_))
    ));
    d.release(h).unwrap();
    let outcome = d.push_opaque("doc.txt", "2026-01-02", "pc").unwrap();
    let name = "doc (conflict 2026-01-02 pc).txt";
    assert_eq!(outcome, PushOutcome::Conflict(name.to_owned()));
    assert_eq!(
        (rig.get("doc.txt"), rig.get(name)),
        (b"theirs".to_vec(), b"ours!".to_vec())
    );
    assert_eq!(read_all(&d, "doc.txt").unwrap(), b"theirs");
    assert_eq!(read_all(&d, name).unwrap(), b"ours!");
    assert!(d.status().dirty_opaque.is_empty());
}

#[test]
fn changes_of_the_tree_meet_others_there() {
    let rig = Rig::new();
    rig.put("gone.txt", b"old");
    rig.put("dir/x.txt", b"x");
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    d.set_state(State::Offline);
    d.unlink(ROOT, "gone.txt").unwrap();
    put_file(&d, ROOT, "new.txt", b"ours");
    d.mkdir(ROOT, "made", 0o755, None).unwrap();
    let (dir, made) = (d.find("dir").unwrap(), d.find("made").unwrap());
    d.rename(dir, "x.txt", made, "y.txt", true).unwrap();
    assert!(d.find("gone.txt").is_err());
    assert_eq!(d.pending_namespace().len(), 4);
    drop(d);
    // Meanwhile, on the share:
    rig.put("gone.txt", b"changed by another");
    rig.put("new.txt", b"theirs");
    let d = rig.drive(State::Online);
    // Before reintegration the drive still shows what was done here.
    assert!(d.find("gone.txt").is_err() && d.find("dir/x.txt").is_err());
    assert_eq!(read_all(&d, "new.txt").unwrap(), b"ours");
    let report = d.reintegrate("D", "H").unwrap();
    let outcomes: Vec<_> = report.into_iter().map(|r| r.outcome).collect();
    use ReintegratedOutcome as O;
    let renamed = "new (conflict D H).txt";
    assert_eq!(
        outcomes,
        [
            O::KeptThere,
            O::RenamedTo(renamed.to_owned()),
            O::Done,
            O::Done
        ]
    );
    assert_eq!(
        d.push_opaque(renamed, "D", "H").unwrap(),
        PushOutcome::Pushed(4)
    );
    assert_eq!(rig.get("new.txt"), b"theirs");
    assert_eq!(rig.get(renamed), b"ours");
    assert_eq!(rig.get("gone.txt"), b"changed by another");
    assert_eq!(rig.get("made/y.txt"), b"x");
    assert!(!rig.share_file("dir/x.txt").exists());
    assert_eq!(read_all(&d, "gone.txt").unwrap(), b"changed by another");
    assert_eq!(read_all(&d, "new.txt").unwrap(), b"theirs");
}

struct EvenFirstByte;

impl EpochValidator for EvenFirstByte {
    fn check(&self, file: &Arc<dyn ReadAt>, written: &RangeSet) -> Verdict {
        let mut b = [0];
        file.read_exact_at(0, &mut b).unwrap();
        if b[0] % 2 == 0 && !written.is_empty() {
            Verdict::Consistent
        } else {
            Verdict::Wait("odd".to_owned())
        }
    }
}

#[test]
fn epochs_marks_and_detachment() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(10_000, 1));
    let mut c = rig.config(State::Online);
    c.validator = Some(Arc::new(EvenFirstByte));
    let d = Drive::open(c).unwrap();
    d.fill().unwrap();
    d.set_state(State::Cached);
    let h = open_rw(&d, "m.pst");
    d.write(h, 0, &[1, 1]).unwrap();
    assert_eq!(
        d.consistent_snapshot("m.pst").unwrap().err().as_deref(),
        Some("odd")
    );
    d.write(h, 0, &[2]).unwrap();
    let snap = d.consistent_snapshot("m.pst").unwrap().unwrap();
    assert!(snap.written.total() == 2 && snap.written.contains_range(0..2));
    d.write(h, 50, &[3]).unwrap();
    assert!(matches!(
        d.mark_synced("m.pst", snap.epoch + 99, true),
        Err(Error::Invalid(_))
    ));
    d.mark_synced("m.pst", snap.epoch, true).unwrap();
    let s = d.file_status("m.pst").unwrap();
    assert!(!s.attached && s.written == 1 && s.unsynced == 1 && s.synced_epoch == snap.epoch);
    drop((snap, d));
    let d = rig.drive(State::Online);
    let s = d.file_status("m.pst").unwrap();
    assert!(!s.attached && s.written == 1 && s.unsynced == 1, "{s:?}");
    // Detached: served from the cache online too, and never pushed by bytes.
    let h = open_rw(&d, "m.pst");
    assert!(!d.file_status("m.pst").unwrap().passed_through);
    d.write(h, 60, &[4]).unwrap();
    assert_eq!(rig.get("m.pst"), pattern(10_000, 1));
    assert!(matches!(
        d.push_opaque("m.pst", "d", "h"),
        Err(Error::Invalid(_))
    ));
    assert!(matches!(d.exclusive("m.pst"), Err(Error::Busy(_))));
    d.release(h).unwrap();
    // Dirty data is not given up for the share's copy (R4).
    assert!(matches!(d.reattach("m.pst"), Err(Error::Busy(_))));
    {
        let x = d.exclusive("m.pst").unwrap();
        x.write_all_at(0, b"from the share").unwrap();
        x.sync().unwrap();
        assert!(x.len().unwrap() == 10_000);
    }
    let snap = d.snapshot("m.pst").unwrap();
    d.mark_synced("m.pst", snap.epoch, true).unwrap();
    drop(snap);
    assert_eq!(read_all(&d, "m.pst").unwrap()[..14], *b"from the share");
    d.reattach("m.pst").unwrap();
    let s = d.file_status("m.pst").unwrap();
    assert!(s.attached && s.fully_cached, "{s:?}");
    assert_eq!(read_all(&d, "m.pst").unwrap(), pattern(10_000, 1));
}

#[test]
fn a_snapshot_survives_checkpoints_and_truncation() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(300_000, 1));
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    d.set_state(State::Offline);
    let h = open_rw(&d, "m.pst");
    d.write(h, 10, b"one").unwrap();
    let mut want = pattern(300_000, 1);
    want[10..13].copy_from_slice(b"one");
    let snap = d.snapshot("m.pst").unwrap();
    d.write(h, 11, b"two").unwrap();
    d.checkpoint().unwrap();
    d.truncate_handle(h, 5).unwrap();
    d.checkpoint().unwrap();
    d.write(h, 400_000, b"far").unwrap();
    d.checkpoint().unwrap();
    let mut got = vec![0; 300_000];
    snap.reader.read_exact_at(0, &mut got).unwrap();
    assert!(got == want);
    assert_eq!(snap.reader.len().unwrap(), 300_000);
    assert_eq!(
        d.read(h, 0, 12).unwrap(),
        [&pattern(5, 1)[..], &[0; 7]].concat()
    );
}

/// Every share call of a scripted run fails in turn: no error reaches the application that has
/// everything cached, and nothing it wrote is lost.
#[test]
fn every_share_call_may_fail() {
    if common::over_smb() {
        return; // A server for each of hundreds of cases.
    }
    let kind = ErrorKind::ConnectionAborted;
    for fault in [Fault::Fail(kind), Fault::FailAfter(kind), Fault::Hang] {
        let mut n = 1;
        loop {
            let mut rig = Rig::new();
            if fault == Fault::Hang {
                rig.budget = Duration::from_millis(200);
            }
            rig.put("m.pst", &pattern(5000, 1));
            let d = rig.drive(State::Online);
            d.fill().unwrap();
            let start = rig.faults.calls();
            rig.faults.at(n, fault);
            let h = open_rw(&d, "m.pst");
            d.write(h, 10, b"one").unwrap();
            d.fsync(h).unwrap();
            d.write(h, 6000, b"two").unwrap();
            d.truncate_handle(h, 7000).unwrap();
            d.release(h).unwrap();
            put_file(&d, ROOT, "n.txt", b"note");
            d.rename(ROOT, "n.txt", ROOT, "o.txt", true).unwrap();
            let used = rig.faults.calls() - start;
            drop(d);
            rig.faults.heal();
            while rig.faults.hanging() > 0 {
                std::thread::yield_now();
            }
            // A machine that is busy is not a share that hangs.
            rig.budget = Duration::from_secs(10);
            let d = rig.drive(State::Online);
            let mut want = pattern(5000, 1);
            want.resize(7000, 0);
            want[10..13].copy_from_slice(b"one");
            want[6000..6003].copy_from_slice(b"two");
            for r in d.reintegrate("d", "h").unwrap() {
                assert_eq!(r.outcome, ReintegratedOutcome::Done, "call {n}: {r:?}");
            }
            for (path, want) in [("m.pst", &want[..]), ("o.txt", b"note")] {
                assert!(read_all(&d, path).unwrap() == want, "call {n}: {path}");
                let pushed = d.push_opaque(path, "d", "h").unwrap();
                assert!(
                    !matches!(pushed, PushOutcome::Conflict(_)),
                    "call {n}: {path}"
                );
                assert!(rig.get(path) == want, "call {n}: {path} on the share");
            }
            assert!(!rig.share_file("n.txt").exists(), "call {n}");
            if n > used {
                break;
            }
            n += 1;
        }
        println!("failed each of {n} share calls ({fault:?})");
    }
}
