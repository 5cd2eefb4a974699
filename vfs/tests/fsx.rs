//! fsx (the crate `fsx`, installed by scripts/bootstrap.sh) on the mount: random reads, writes,
//! mapped reads and writes, truncation, flushes, holes and reopening, each read checked against what
//! fsx wrote; online, cached, offline, and while the state flips every 100 ms. Afterwards the share
//! must hold what the program sees.
//!
//! `VFS_FSX_OPS` sets the operations per run (1,500 by default; 100,000 for the full run) and
//! `VFS_FSX_SEEDS` how many seeds each state gets (1 by default).
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Rig, fuse_missing, skip};
use vfs::fuse::{MountOptions, mount};
use vfs::{Drive, PushOutcome, ReintegratedOutcome, State};

/// Everything that the drive offers; `invalidate` throws away mapped pages.
const CONFIG: &str = "
flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 10
fsync = 2
fdatasync = 2
posix_fallocate = 2
punch_hole = 2
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
";

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |n| n.parse().unwrap())
}

#[derive(Debug, Clone, Copy)]
enum How {
    In(State),
    Flipping,
}

/// One run on one file; container or opaque by its name.
fn exercise(fsx: &std::path::Path, name: &str, seed: u64, how: How) {
    let rig = Rig::new();
    let mut config = rig.config(State::Online);
    config.background = true;
    config.attr_life = Duration::from_secs(1);
    config.unwritten_limit = 1 << 20;
    config.direct_append = 32 << 10;
    let drive = Drive::open(config).unwrap();
    let at = rig.tmp.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let mut handle = mount(drive.clone(), &at, &MountOptions::default()).unwrap();
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
    if let How::In(state) = how {
        drive.set_state(state);
    }
    let toml = rig.tmp.path().join("fsx.toml");
    std::fs::write(&toml, CONFIG).unwrap();
    let done = AtomicBool::new(false);
    let out = std::thread::scope(|s| {
        if let How::Flipping = how {
            s.spawn(|| {
                let states = [State::Cached, State::Online, State::Offline, State::Online];
                for state in states.iter().cycle() {
                    std::thread::sleep(Duration::from_millis(100));
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    drive.set_state(*state);
                }
            });
        }
        let out = Command::new(fsx)
            .args(["-N", &number("VFS_FSX_OPS", 1500).to_string()])
            .args(["-S", &seed.to_string(), "-f"])
            .arg(&toml)
            .arg("-P")
            .arg(rig.tmp.path())
            .arg(at.join(name))
            .output();
        done.store(true, Ordering::SeqCst);
        out.unwrap()
    });
    assert!(
        out.status.success(),
        "{name} {how:?} seed {seed}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    let seen = std::fs::read(at.join(name)).unwrap();
    handle.unmount().unwrap();
    drive.set_state(State::Online);
    for r in drive.reintegrate("today", "here").unwrap() {
        assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
    }
    let pushed = drive.push_opaque(name, "today", "here").unwrap();
    assert!(!matches!(pushed, PushOutcome::Conflict(_)), "{pushed:?}");
    assert!(
        rig.get(name) == seen,
        "{name} {how:?} seed {seed}: the share"
    );
}

fn all(how: How) {
    if fuse_missing() {
        return;
    }
    let Some(fsx) = common::installed("fsx") else {
        return skip::skipped("fsx", "fsx is not installed (scripts/bootstrap.sh)");
    };
    for seed in 1..=number("VFS_FSX_SEEDS", 1) {
        for name in ["f.pst", "f.bin"] {
            exercise(&fsx, name, seed, how);
        }
    }
}

#[test]
fn online() {
    all(How::In(State::Online));
}

#[test]
fn cached() {
    all(How::In(State::Cached));
}

#[test]
fn offline() {
    all(How::In(State::Offline));
}

#[test]
fn while_the_state_flips() {
    all(How::Flipping);
}
