//! Files that are here in part, changed here, and changed or removed at the share: what is here is kept,
//! as what it is, and programs go on with the share's file.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, open_rw, pattern, read_all};
use vfs::{Drive, Error, PushOutcome, State};

const LEN: usize = 1 << 20;
const HELD: usize = 300_000;

/// A file of which the first part was read, and some bytes were written here.
fn begun(name: &str) -> (Rig, std::sync::Arc<Drive>, Vec<u8>) {
    let rig = Rig::new();
    rig.put(name, &pattern(LEN, 1));
    let d = rig.drive(State::Cached);
    let h = open_rw(&d, name);
    d.read(h, 0, HELD).unwrap();
    d.write(h, 1000, b"here").unwrap();
    d.write(h, 900_000, b"and there").unwrap();
    d.fsync(h).unwrap();
    d.release(h).unwrap();
    let status = d.file_status(name).unwrap();
    assert!(!status.fully_cached && status.dirty);
    let mut ours = pattern(LEN, 1);
    ours[1000..1004].copy_from_slice(b"here");
    ours[900_000..900_009].copy_from_slice(b"and there");
    (rig, d, ours)
}

/// What a list of holes leaves.
fn held(rig: &Rig, part: &str) -> Vec<(usize, usize)> {
    let text = String::from_utf8(rig.get(&format!("{part}.holes"))).unwrap();
    let mut at = 0;
    let mut held = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (from, to) = line.split_once(' ').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        assert!(from >= at && to > from);
        if from > at {
            held.push((at, from));
        }
        at = to;
    }
    if at < LEN {
        held.push((at, LEN));
    }
    held
}

fn check_part(rig: &Rig, part: &str, ours: &[u8], missing: u64) {
    let kept = rig.get(part);
    assert_eq!(kept.len(), LEN);
    let mut rest = vec![0; LEN];
    let mut held_bytes = 0;
    let held = held(rig, part);
    for (from, to) in [(1000, 1004), (900_000, 900_009)] {
        assert!(held.iter().any(|h| h.0 <= from && to <= h.1), "{held:?}");
    }
    for (from, to) in held {
        rest[from..to].copy_from_slice(&ours[from..to]);
        held_bytes += to - from;
    }
    assert!(
        kept == rest,
        "what is not listed is ours, and the holes are zeros"
    );
    assert_eq!((LEN - held_bytes) as u64, missing);
}

/// The toy version answers `ESTALE` for ever, or mixes both files.
#[test]
fn changed_on_both_sides_what_is_here_is_kept_beside() {
    for name in ["f.bin", "m.pst"] {
        let (rig, d, ours) = begun(name);
        let theirs = pattern(LEN + 777, 9);
        rig.put(name, &theirs);
        // Until the next sync nobody can open it: what is missing is not to be had.
        let opened = d.open_file(d.find(name).unwrap(), true, false);
        assert!(matches!(opened, Err(Error::ShareChanged(_))));
        assert!(d.file_status(name).unwrap().share_changed);
        // Nor does it go, whatever else happens.
        drop(d);
        let d = rig.drive(State::Cached);
        let pushed = if name == "m.pst" {
            d.part_ways(name, "D", "H").unwrap().unwrap()
        } else {
            d.push_opaque(name, "D", "H").unwrap()
        };
        let PushOutcome::Partial { kept_as, missing } = pushed else {
            panic!("{pushed:?}");
        };
        let (stem, ext) = name.split_once('.').unwrap();
        assert_eq!(kept_as, format!("{stem} (conflict D H).{ext}.partial"));
        check_part(&rig, &kept_as, &ours, missing);
        // Programs go on with theirs, and what was kept shows too; nothing waits.
        assert!(read_all(&d, name).unwrap() == theirs);
        assert!(read_all(&d, &kept_as).unwrap() == rig.get(&kept_as));
        assert!(read_all(&d, &format!("{kept_as}.holes")).is_ok());
        assert_eq!(rig.get(name), theirs);
        let status = d.status();
        assert!(status.dirty_opaque.is_empty() && status.unsynced_bytes == 0);
        // Also after a restart.
        drop(d);
        let d = rig.drive(State::Cached);
        assert!(read_all(&d, name).unwrap() == theirs);
        assert!(read_all(&d, &kept_as).unwrap() == rig.get(&kept_as));
        assert!(d.status().dirty_opaque.is_empty());
    }
}

#[test]
fn removed_there_it_is_kept_under_a_name_that_says_so() {
    let (rig, d, ours) = begun("f.bin");
    std::fs::remove_file(rig.share_file("f.bin")).unwrap();
    let pushed = d.push_opaque("f.bin", "D", "H").unwrap();
    let PushOutcome::Partial { kept_as, missing } = pushed else {
        panic!("{pushed:?}");
    };
    assert_eq!(kept_as, "f.bin.partial");
    check_part(&rig, &kept_as, &ours, missing);
    assert!(matches!(d.find("f.bin"), Err(Error::NotFound(_))));
}

/// A program that has it open keeps its file (R1), and is told; once it closes it, both are kept.
#[test]
fn an_open_handle_is_waited_for() {
    let (rig, d, ours) = begun("f.bin");
    let h = open_rw(&d, "f.bin");
    rig.put("f.bin", &pattern(LEN, 5));
    assert!(matches!(
        d.read(h, 600_000, 10),
        Err(Error::ShareChanged(_))
    ));
    assert_eq!(d.read(h, 1000, 4).unwrap(), b"here");
    let busy = d.push_opaque("f.bin", "D", "H");
    assert!(matches!(busy, Err(Error::Busy(_))), "{busy:?}");
    d.release(h).unwrap();
    let PushOutcome::Partial { kept_as, missing } = d.push_opaque("f.bin", "D", "H").unwrap()
    else {
        panic!();
    };
    check_part(&rig, &kept_as, &ours, missing);
    assert!(read_all(&d, "f.bin").unwrap() == pattern(LEN, 5));
}

/// Not changed there, it is completed from there and goes as ever; and nothing parts from anything.
#[test]
fn unchanged_there_it_is_completed() {
    for name in ["f.bin", "m.pst"] {
        let (rig, d, ours) = begun(name);
        assert_eq!(d.part_ways(name, "D", "H").unwrap(), None);
        let pushed = d.push_opaque(name, "D", "H").unwrap();
        assert!(matches!(pushed, PushOutcome::Pushed(_)));
        assert!(rig.get(name) == ours);
    }
}

/// The share fails at each call of the parting in turn: in the end everything is kept, and no more than
/// once whole.
#[test]
fn the_link_may_die_at_any_moment() {
    use vfs::share::fault::Fault;
    for after in [false, true] {
        for n in 1..60 {
            let (rig, d, ours) = begun("f.bin");
            let theirs = pattern(LEN / 2, 4);
            rig.put("f.bin", &theirs);
            let fault = if after {
                Fault::FailAfter(std::io::ErrorKind::ConnectionReset)
            } else {
                Fault::Fail(std::io::ErrorKind::ConnectionReset)
            };
            rig.faults.at(n, fault);
            let first = d.push_opaque("f.bin", "D", "H");
            let met = first.is_err();
            rig.faults.heal();
            let mut pushed = first;
            for _ in 0..2000 {
                if pushed.is_ok() {
                    break;
                }
                let _ = d.statfs();
                std::thread::sleep(std::time::Duration::from_millis(1));
                if d.status().link_up {
                    pushed = d.push_opaque("f.bin", "D", "H");
                }
            }
            let Ok(PushOutcome::Partial { kept_as, missing }) = pushed else {
                panic!("call {n}: {pushed:?}");
            };
            check_part(&rig, &kept_as, &ours, missing);
            assert!(read_all(&d, "f.bin").unwrap() == theirs, "call {n}");
            if !met {
                assert!(n > 5, "no call was met");
                break;
            }
        }
    }
}
