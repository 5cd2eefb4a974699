//! A drive over a share within a limit: slow is not dead. What waits for the user's own limit fails for
//! nobody, and a share that does not answer is noticed all the same.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{open_rw, pattern};
use vfs::limit::{Limit, PIECE, Rates};
use vfs::share::dir::DirShare;
use vfs::share::fault::{Fault, FaultControl, FaultShare};
use vfs::share::limited::LimitedShare;
use vfs::{Drive, DriveConfig, Error, State};

struct Rig {
    tmp: tempfile::TempDir,
    limit: Arc<Limit>,
    faults: FaultControl,
    drive: Arc<Drive>,
}

/// Over a share with the files `0.txt` to `7.txt` of 100,000 bytes each, of which nothing is kept.
fn rig(bytes_per_second: u64) -> Rig {
    let tmp = tempfile::tempdir().unwrap();
    let share = tmp.path().join("share");
    std::fs::create_dir(&share).unwrap();
    for n in 0..8 {
        std::fs::write(share.join(format!("{n}.txt")), pattern(100_000, n)).unwrap();
    }
    let (share, faults) = FaultShare::new(DirShare::open(share).unwrap());
    let limit = Arc::new(Limit::default());
    limit.set(Rates {
        up: Some(bytes_per_second),
        down: Some(bytes_per_second),
    });
    let share = LimitedShare::new(share, limit.clone());
    let mut config = DriveConfig::new(Arc::new(share), tmp.path().join("state"));
    config.stall_budget = Duration::from_millis(300);
    config.flush_budget = Duration::from_millis(300);
    config.state = State::Online;
    config.pins = Some(Vec::new());
    config.background = false;
    let drive = Drive::open(config).unwrap();
    Rig {
        tmp,
        limit,
        faults,
        drive,
    }
}

#[test]
fn many_readers_and_writers_within_a_small_limit_fail_nowhere() {
    const RATE: u64 = 150_000;
    let rig = rig(RATE);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..8_u8 {
            let d = &rig.drive;
            scope.spawn(move || {
                let path = format!("{n}.txt");
                let h = open_rw(d, &path);
                // One piece takes longer than the stall budget when eight want theirs.
                assert!(d.read(h, 0, 100_000).unwrap() == pattern(100_000, n));
                d.write(h, 50_000, &pattern(30_000, 99)).unwrap();
                d.fsync(h).unwrap();
                d.release(h).unwrap();
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    assert!(
        8.0 * 100_000.0 <= took * RATE as f64 + PIECE as f64,
        "{took}"
    );
    for n in 0..8 {
        let there = std::fs::read(rig.tmp.path().join(format!("share/{n}.txt"))).unwrap();
        assert!(there[50_000..80_000] == pattern(30_000, 99), "{n}");
    }
    assert!(rig.drive.status().link_up);
}

#[test]
fn a_dead_share_is_noticed_behind_a_limit() {
    let rig = rig(20_000);
    let d = &rig.drive;
    let h = open_rw(d, "0.txt");
    // Somebody waits for the limit all along.
    let (limit, readers) = (rig.limit.clone(), 4);
    for _ in 0..readers {
        let limit = limit.clone();
        std::thread::spawn(move || {
            for _ in 0..200 {
                limit.take(vfs::limit::Way::Down, 1 << 20);
            }
        });
    }
    rig.faults.all(Fault::Hang);
    let began = Instant::now();
    let read = d.read(h, 0, 4096);
    assert!(matches!(read, Err(Error::Link(_))), "{read:?}");
    // Its turn comes within some seconds; then the stall budget counts.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    rig.faults.heal();
    limit.end();
}

#[test]
fn another_limit_counts_at_once_for_who_waits() {
    let rig = rig(1);
    let limit = rig.limit.clone();
    let lifts = std::thread::spawn(move || {
        while !limit.holds_back() {
            std::thread::sleep(Duration::from_millis(1));
        }
        limit.set(Rates::default());
    });
    let h = open_rw(&rig.drive, "0.txt");
    assert_eq!(rig.drive.read(h, 0, 100_000).unwrap().len(), 100_000);
    lifts.join().unwrap();
}
