//! The N-th call fails, for every N of a scripted run, online, cached, offline and on the way back:
//! on the share, on the cache files, on the journal; as a disk or server error, a full disk, a
//! refusal, or by hanging. Never a wrong byte, never a flush acknowledged and lost, nothing that
//! never reaches the share, and on the share's side never a wait beyond the budget.
//!
//! A local disk that hangs makes programs wait, as any local disk does, and loses nothing of what
//! it took when it goes on.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rig, pattern};
use vfs::disk::RealDisk;
use vfs::disk::fault::FaultDisk;
use vfs::share::fault::{Fault, FaultControl};
use vfs::{Drive, PushOutcome, ROOT, State};

const BUDGET: Duration = Duration::from_millis(150);
/// For what the test itself takes on a busy machine.
const SLACK: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    Share,
    Cache,
    Journal,
}

/// What a file may hold: as of its last acknowledged flush, and after each step since.
struct May {
    path: &'static str,
    states: Vec<Vec<u8>>,
}

impl May {
    fn new(path: &'static str, data: Vec<u8>) -> Self {
        Self {
            path,
            states: vec![data],
        }
    }

    fn last(&self) -> &Vec<u8> {
        self.states.last().unwrap()
    }
}

/// One run of the script. Steps that fail are allowed to; what they leave is judged.
fn script(d: &Drive, files: &mut [May], slowest: &mut Duration) {
    let mut timed = |run: &mut dyn FnMut()| {
        let began = Instant::now();
        run();
        *slowest = (*slowest).max(began.elapsed());
    };
    for round in 0..2u8 {
        for may in files.iter_mut() {
            let mut handle = None;
            timed(&mut || {
                handle = d
                    .find(may.path)
                    .and_then(|n| d.open_file(n, true, true))
                    .ok()
                    .map(|o| o.handle);
            });
            let Some(h) = handle else { continue };
            for (i, offset) in [100usize, 5000, 20_000].into_iter().enumerate() {
                let bytes = pattern(1500 + 6000 * (i / 2), round * 3 + i as u8 + 7);
                let mut done = false;
                timed(&mut || done = d.write(h, offset as u64, &bytes).is_ok());
                let mut new = may.last().clone();
                let end = offset + bytes.len();
                if new.len() < end {
                    new.resize(end, 0);
                }
                new[offset..end].copy_from_slice(&bytes);
                if done {
                    may.states.push(new);
                } else {
                    // A write that failed may be there, in part too, and those after it stand on
                    // an unknown: this file's script ends.
                    let before = may.last().clone();
                    may.states.push(new);
                    may.states.push(before);
                    break;
                }
                let mut read = None;
                timed(&mut || read = d.read(h, offset as u64, bytes.len()).ok());
                if let Some(read) = read {
                    assert!(read == bytes, "{}: a wrong byte", may.path);
                }
            }
            let mut flushed = false;
            timed(&mut || flushed = d.fsync(h).is_ok());
            if flushed {
                // The last state, and no other, unless a write had failed before.
                let keep =
                    if may.states.len() > 2 && may.states[may.states.len() - 3] == *may.last() {
                        may.states.len() - 2
                    } else {
                        may.states.len() - 1
                    };
                may.states.drain(..keep);
            }
            timed(&mut || drop(d.release(h)));
        }
        let _ = d.checkpoint();
        timed(&mut || {
            if let Ok((_, opened)) = d.create(ROOT, "new", 0o600, None) {
                let _ = d.release(opened.handle);
            }
        });
        timed(&mut || drop(d.unlink(ROOT, "new")));
    }
}

/// Back online after the script: what waited is brought over, and the files are used once more, by
/// whoever finds them clean through the share. Everything may fail.
fn come_back(d: &Drive, files: &mut [May], slowest: &mut Duration) {
    d.set_state(State::Online);
    let _ = d.reintegrate("D", "H");
    for may in files.iter_mut() {
        let _ = d.push_opaque(may.path, "D", "H");
        let began = Instant::now();
        let opened = d.find(may.path).and_then(|n| d.open_file(n, true, true));
        *slowest = (*slowest).max(began.elapsed());
        let Ok(h) = opened.map(|o| o.handle) else {
            continue;
        };
        let began = Instant::now();
        let bytes = pattern(700, 99);
        let mut new = may.last().clone();
        new[3000..3700].copy_from_slice(&bytes);
        let done = d.write(h, 3000, &bytes).is_ok();
        let before = (!done).then(|| may.last().clone());
        may.states.push(new);
        if d.fsync(h).is_ok() && done {
            may.states.drain(..may.states.len() - 1);
        }
        may.states.extend(before);
        if let (true, Ok(read)) = (done, d.read(h, 3000, 700)) {
            assert!(read == bytes, "{}: a wrong byte", may.path);
        }
        let _ = d.release(h);
        *slowest = (*slowest).max(began.elapsed());
    }
}

/// What waits reaches the share once nothing fails any more: as the drive shows it, and nobody's
/// change is taken for another's.
fn all_arrives(d: &Drive, rig: &Rig, files: &[May], context: &str) {
    let began = Instant::now();
    loop {
        let mut clean = d.reintegrate("D", "H").is_ok();
        for may in files {
            match d.push_opaque(may.path, "D", "H") {
                Ok(PushOutcome::Clean | PushOutcome::Pushed(_)) => {}
                Ok(PushOutcome::Conflict(at) | PushOutcome::Partial { kept_as: at, .. }) => {
                    panic!("{context}: {} became {at}", may.path)
                }
                Err(_) => clean = false,
            }
        }
        if clean && d.status().unsynced_bytes == 0 {
            break;
        }
        assert!(began.elapsed() < 4 * SLACK, "{context}: {:?}", d.status());
        std::thread::sleep(Duration::from_millis(5));
    }
    for may in files {
        let shown = common::read_all(d, may.path).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(shown == rig.get(may.path), "{context}: {}", may.path);
        assert!(may.states.contains(&shown), "{context}: {}", may.path);
    }
}

fn run(state: State, back: bool, at: Where, n: u64, fault: Fault) -> bool {
    let mut rig = Rig::new();
    rig.budget = BUDGET;
    let mut files = vec![
        May::new("a.pst", pattern(30_000, 1)),
        May::new("b.bin", pattern(24_000, 2)),
    ];
    for f in &files {
        rig.put(f.path, f.last());
    }
    let disk = Arc::new(FaultDisk::new(Arc::new(
        RealDisk::open(rig.tmp.path().join("state")).unwrap(),
    )));
    let (journal, cache) = (disk.journal.clone(), disk.cache.clone());
    let mut c = rig.config(State::Online);
    c.disk = Some(disk);
    c.segment_len = 16 << 10;
    c.direct_append = 4000;
    c.pins = Some(vec!["**".into()]);
    let d = Drive::open(c).unwrap();
    // Nothing fails yet, but a busy machine may take longer than the budget.
    let began = Instant::now();
    while let Err(e) = d.fill() {
        assert!(began.elapsed() < SLACK, "{e}");
    }
    d.set_state(state);
    let control: &FaultControl = match at {
        Where::Share => &rig.faults,
        Where::Cache => &cache,
        Where::Journal => &journal,
    };
    let context = format!("{state:?}, call {n} on the {at:?}: {fault:?}");
    let before = control.calls();
    control.at(n, fault);
    let mut slowest = Duration::ZERO;
    std::thread::scope(|s| {
        let worker = s.spawn(|| {
            script(&d, &mut files, &mut slowest);
            if back {
                come_back(&d, &mut files, &mut slowest);
            }
        });
        if fault == Fault::Hang && at != Where::Share {
            while control.hanging() == 0 && !worker.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            control.release();
        }
        worker.join().unwrap_or_else(|_| panic!("{context}"));
    });
    let met = control.calls() - before >= n;
    if at == Where::Share {
        assert!(slowest < 4 * BUDGET + SLACK, "{context}: {slowest:?}");
    }
    for c in [&rig.faults, &cache, &journal] {
        c.heal();
    }
    let settled = Instant::now();
    while rig.faults.hanging() > 0 && settled.elapsed() < SLACK {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(d);
    // What a new process finds: what was flushed, or what came after it.
    let d = Drive::open({
        let mut c = rig.config(State::Online);
        c.segment_len = 16 << 10;
        c.pins = Some(vec!["**".into()]);
        c
    })
    .unwrap_or_else(|e| panic!("{context}: {e}"));
    for may in &files {
        let got = common::read_all(&d, may.path).unwrap_or_else(|e| panic!("{context}: {e}"));
        let known = may.states.contains(&got);
        let why = may.states.iter().map(|s| {
            let at = s.iter().zip(&got).position(|(a, b)| a != b);
            format!(
                "{} of {}",
                at.map_or("-".into(), |a| a.to_string()),
                s.len()
            )
        });
        assert!(
            known,
            "{context}: {} has {} bytes, none of {:?}",
            may.path,
            got.len(),
            why.collect::<Vec<_>>()
        );
    }
    all_arrives(&d, &rig, &files, &context);
    met
}

fn sweep(state: State, at: Where) {
    sweep_by(1, state, false, at);
}

/// From `state` and back online. Fewer calls of each kind, for these scripts are longer.
fn sweep_back(state: State, at: Where) {
    sweep_by(3, state, true, at);
}

fn sweep_by(step: u64, state: State, back: bool, at: Where) {
    let set = std::env::var("VFS_FAULT_STEP").ok();
    let step = set.and_then(|s| s.parse().ok()).unwrap_or(step);
    let faults = [
        Fault::Errno(5),
        Fault::Fail(ErrorKind::StorageFull),
        Fault::Fail(ErrorKind::PermissionDenied),
        Fault::Hang,
    ];
    let mut runs = 0;
    for (i, fault) in faults.into_iter().enumerate() {
        // Each kind of failure begins elsewhere, so that small numbers of runs meet every call.
        let mut n = 1 + i as u64 % step;
        while run(state, back, at, n, fault) {
            n += step;
            runs += 1;
        }
        assert!(n > step, "no call was met");
    }
    let way = if back { " and back" } else { "" };
    println!("{state:?}{way}, {at:?}: {runs} calls failed, one a run, every {step}th");
}

#[test]
fn share_calls_fail() {
    sweep(State::Online, Where::Share);
}

#[test]
fn cache_calls_fail() {
    sweep(State::Online, Where::Cache);
    sweep(State::Offline, Where::Cache);
}

#[test]
fn journal_calls_fail() {
    sweep(State::Online, Where::Journal);
    sweep(State::Offline, Where::Journal);
}

#[test]
fn share_calls_fail_on_the_way_back() {
    sweep_back(State::Cached, Where::Share);
    sweep_back(State::Offline, Where::Share);
}

#[test]
fn cache_calls_fail_on_the_way_back() {
    sweep_back(State::Offline, Where::Cache);
}

#[test]
fn journal_calls_fail_on_the_way_back() {
    sweep_back(State::Offline, Where::Journal);
}

/// The first flush that fails is the last: that file takes no more writes and says why, others go
/// on, and a new process brings the journal's bytes to the cache file.
#[test]
fn a_failed_flush_of_a_cache_file_stops_that_file_alone() {
    let rig = Rig::new();
    rig.put("a.pst", &pattern(9000, 1));
    rig.put("b.pst", &pattern(9000, 2));
    let disk = Arc::new(FaultDisk::new(Arc::new(
        RealDisk::open(rig.tmp.path().join("state")).unwrap(),
    )));
    let cache = disk.cache.clone();
    let mut c = rig.config(State::Online);
    c.disk = Some(disk);
    let d = Drive::open(c).unwrap();
    d.fill().unwrap();
    d.set_state(State::Offline);
    let (a, b) = (common::open_rw(&d, "a.pst"), common::open_rw(&d, "b.pst"));
    d.write(a, 0, b"one").unwrap();
    d.fsync(a).unwrap();
    let path = format!("data/{:016x}", d.find("a.pst").unwrap());
    cache.all_on(&path, Fault::Errno(5));
    assert!(d.checkpoint().is_err());
    cache.heal();
    // Only a flush poisons: this was a write.
    d.write(a, 0, b"two").unwrap();
    d.fsync(a).unwrap();
    // Length, write, then the flush.
    let before = cache.calls();
    d.checkpoint().unwrap();
    let calls = cache.calls() - before;
    d.write(a, 4, b"three").unwrap();
    d.fsync(a).unwrap();
    for n in 1..=2 * calls + 2 {
        d.write(a, 8, &[n as u8]).unwrap();
        d.write(b, 8, &[n as u8]).unwrap();
        d.fsync(b).unwrap();
        cache.at(n, Fault::Errno(5));
        let _ = d.checkpoint();
        cache.heal();
        if !d.status().refusing.is_empty() {
            break;
        }
    }
    // Which of the two met it is no matter.
    let refusing = d.status().refusing;
    let (bad, good) = match refusing.as_slice() {
        [one] if one == "a.pst" => (a, b),
        [one] if one == "b.pst" => (b, a),
        other => panic!("{other:?}"),
    };
    assert!(d.file_status(&refusing[0]).unwrap().poisoned.is_some());
    assert!(d.write(bad, 0, b"no").is_err() && d.fsync(bad).is_err());
    assert!(d.truncate_handle(bad, 5).is_err() && d.flush(bad).is_err());
    assert_eq!(d.read(bad, 0, 9000).unwrap().len(), 9000, "reads go on");
    d.write(good, 0, b"fine").unwrap();
    d.fsync(good).unwrap();
    d.checkpoint().unwrap();
    let (was_a, was_b) = (d.read(a, 0, 9000).unwrap(), d.read(b, 0, 9000).unwrap());
    drop(d);
    let d = rig.drive(State::Offline);
    assert_eq!(common::read_all(&d, "a.pst").unwrap(), was_a);
    assert_eq!(common::read_all(&d, "b.pst").unwrap(), was_b);
    assert_eq!(d.status().refusing, [] as [String; 0]);
    let h = common::open_rw(&d, "a.pst");
    d.write(h, 0, b"again").unwrap();
    d.fsync(h).unwrap();
}
