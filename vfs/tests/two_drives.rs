//! Two drives on one share, as two machines have them: each sees what the other does, and what both
//! did apart from each other is kept, all of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rig, open_rw, pattern, put_file, read_all};
use vfs::{Drive, PushOutcome, ROOT, ReintegratedOutcome, State};

/// For what must happen some time.
const PATIENCE: Duration = Duration::from_secs(60);

fn two(rig: &Rig) -> [Arc<Drive>; 2] {
    ["one", "other"].map(|name| {
        let mut config = rig.another(name, State::Online);
        // Asks about open files by itself, and keeps every file whole.
        config.background = true;
        config.pins = Some(vec!["**".to_owned()]);
        Drive::open(config).unwrap()
    })
}

fn names(drive: &Drive, folder: u64) -> BTreeSet<String> {
    let all = drive.readdir(folder).unwrap();
    all.into_iter().map(|e| e.name).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn each_sees_the_names_that_the_other_makes() {
    let rig = Rig::new();
    let [a, b] = two(&rig);
    assert_eq!(names(&b, ROOT), BTreeSet::new());
    put_file(&a, ROOT, "mail.pst", b"one");
    assert_eq!(names(&b, ROOT), ["mail.pst".to_owned()].into());
    let dir = b.mkdir(ROOT, "dir", 0o755, None).unwrap().id;
    put_file(&b, dir, "inside", b"other");
    let seen = a.find("dir").unwrap();
    assert_eq!(names(&a, seen), ["inside".to_owned()].into());
    assert_eq!(read_all(&a, "dir/inside").unwrap(), b"other");
    a.rename(ROOT, "mail.pst", seen, "moved.pst", true).unwrap();
    assert_eq!(names(&b, ROOT), ["dir".to_owned()].into());
    assert_eq!(read_all(&b, "dir/moved.pst").unwrap(), b"one");
    b.unlink(dir, "moved.pst").unwrap();
    b.unlink(dir, "inside").unwrap();
    // A file that another has open for a moment, to keep it whole, goes when that one is done.
    until("the folder never becomes empty", || {
        b.rmdir(ROOT, "dir").is_ok()
    });
    assert_eq!(names(&a, ROOT), BTreeSet::new());
    assert!(a.find("dir/inside").is_err());
}

#[test]
fn each_reads_what_the_other_wrote_also_in_a_file_that_it_has_open() {
    let rig = Rig::new();
    rig.put("f.pst", &pattern(100_000, 1));
    let [a, b] = two(&rig);
    for drive in [&a, &b] {
        drive.fill().unwrap();
        assert_eq!(read_all(drive, "f.pst").unwrap(), pattern(100_000, 1));
    }
    let reading = open_rw(&b, "f.pst");
    for round in 2..6 {
        let writing = open_rw(&a, "f.pst");
        let new = pattern(50_000, round);
        a.write(writing, 25_000, &new).unwrap();
        a.fsync(writing).unwrap();
        a.release(writing).unwrap();
        until("the open file never shows what the other wrote", || {
            b.read(reading, 25_000, 50_000).unwrap() == new
        });
        let tail = b.read(reading, 75_000, 100_000).unwrap();
        assert_eq!(tail, pattern(100_000, 1)[75_000..]);
    }
    b.release(reading).unwrap();
    assert_eq!(read_all(&b, "f.pst").unwrap(), rig.get("f.pst"));
}

#[test]
fn what_both_did_apart_is_all_kept() {
    let rig = Rig::new();
    rig.put("both.bin", b"as it was");
    rig.put("one.bin", b"as it was");
    let drives = two(&rig);
    for drive in &drives {
        assert_eq!(names(drive, ROOT).len(), 2);
        drive.fill().unwrap();
        assert_eq!(read_all(drive, "both.bin").unwrap(), b"as it was");
        assert_eq!(read_all(drive, "one.bin").unwrap(), b"as it was");
        drive.set_state(State::Offline);
    }
    let texts: [&[u8]; 2] = [b"written by one", b"written by the other!"];
    for ((drive, text), own) in drives.iter().zip(texts).zip(["new.a", "new.b"]) {
        let h = open_rw(drive, "both.bin");
        drive.write(h, 0, text).unwrap();
        drive.release(h).unwrap();
        put_file(drive, ROOT, own, text);
    }
    let h = open_rw(&drives[0], "one.bin");
    drives[0].write(h, 0, texts[0]).unwrap();
    drives[0].release(h).unwrap();
    let mut outcomes = Vec::new();
    for (drive, host) in drives.iter().zip(["ONE", "OTHER"]) {
        drive.set_state(State::Online);
        for r in drive.reintegrate("TODAY", host).unwrap() {
            assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
        }
        for name in ["one.bin", "new.a", "new.b"] {
            if drive.find(name).is_ok() {
                drive.push_opaque(name, "TODAY", host).unwrap();
            }
        }
        outcomes.push(drive.push_opaque("both.bin", "TODAY", host).unwrap());
    }
    assert!(
        matches!(outcomes[0], PushOutcome::Pushed(_)),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[1], PushOutcome::Conflict(_)),
        "{outcomes:?}"
    );
    let conflict = "both (conflict TODAY OTHER).bin";
    for drive in &drives {
        until("not every name is seen", || names(drive, ROOT).len() == 5);
        for (name, text) in [
            ("both.bin", texts[0]),
            (conflict, texts[1]),
            ("one.bin", texts[0]),
            ("new.a", texts[0]),
            ("new.b", texts[1]),
        ] {
            assert_eq!(read_all(drive, name).unwrap(), text, "{name}");
            assert_eq!(rig.get(name), text, "{name}");
        }
    }
}
