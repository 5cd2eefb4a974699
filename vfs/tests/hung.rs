//! A share call on one file that hangs leaves all others alone (R11), however many programs wait for
//! it: through a real mount, from which thousands of reads of another file are timed.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Rig, fuse_missing, pattern};
use vfs::State;
use vfs::fuse::{MountOptions, mount};
use vfs::share::fault::Fault;

const READS: usize = 3000;
const SIZE: usize = 1 << 20;
/// More than there are threads that read requests, than the kernel lets wait by itself, and than
/// one file may have calls at work.
const MANY: u64 = 300;

/// A file whose reads all come to the drive, none from the kernel's pages.
fn direct(path: &Path) -> File {
    let flags = rustix::fs::OFlags::DIRECT.bits();
    let mut o = File::options();
    let flags = i32::try_from(flags).unwrap();
    o.read(true).custom_flags(flags).open(path).unwrap()
}

/// The 99th of 100 of `READS` reads.
fn timed_reads(file: &File, model: &[u8]) -> Duration {
    let mut took = Vec::with_capacity(READS);
    let mut buf = [0; 4096];
    for i in 0..READS {
        let at = (i * 7919 * 4096) % (SIZE - buf.len());
        let began = Instant::now();
        file.read_exact_at(&mut buf, at as u64).unwrap();
        took.push(began.elapsed());
        assert!(buf == model[at..at + buf.len()]);
    }
    took.sort();
    took[READS * 99 / 100]
}

/// Reads `quick.pst` while `programs` wait for `slow.bin`, each with a descriptor and a place in the
/// file of its own.
fn beside_hung(rig: &Rig, at: &Path, programs: u64) {
    let model = pattern(SIZE, 4);
    let quick = direct(&at.join("quick.pst"));
    let idle = timed_reads(&quick, &model);
    let (end, failed) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = std::thread::scope(|s| {
        let slow: Vec<_> = (0..programs)
            .map(|_| File::open(at.join("slow.bin")).unwrap())
            .collect();
        rig.faults.all_on("slow.bin", Fault::Hang);
        for (i, slow) in slow.into_iter().enumerate() {
            let (end, failed) = (&end, &failed);
            s.spawn(move || {
                let mut buf = [0; 100];
                while !end.load(Ordering::SeqCst) {
                    // Pages of its own, so that each program's read is a request.
                    let place = i as u64 * (1 << 20);
                    if slow.read_exact_at(&mut buf, place).is_err() {
                        failed.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            });
        }
        while rig.faults.hanging() < programs.min(16) {
            std::thread::yield_now();
        }
        let began = Instant::now();
        // As long as the reads that hang are waited for, and after that.
        loop {
            let beside = timed_reads(&quick, &model);
            println!("{programs} hang: p99 {beside:?}, alone {idle:?}");
            assert!(rig.faults.hanging() > 0);
            assert!(beside < rig.budget / 4, "{beside:?}, alone {idle:?}");
            assert!(fs::metadata(at.join("quick.pst")).unwrap().len() == SIZE as u64);
            let opened = Instant::now();
            drop(File::open(at.join("quick.pst")).unwrap());
            assert!(opened.elapsed() < rig.budget / 2);
            if failed.load(Ordering::SeqCst) >= programs {
                break;
            }
        }
        end.store(true, Ordering::SeqCst);
        rig.faults.heal();
        began
    });
    println!(
        "{} failed after {:?}",
        failed.load(Ordering::SeqCst),
        began.elapsed()
    );
}

fn a_hung_read_leaves_others_alone(state: State) {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    rig.put("quick.pst", &pattern(SIZE, 4));
    let slow = File::create(rig.share_file("slow.bin")).unwrap();
    slow.set_len(MANY << 20).unwrap();
    let drive = rig.drive(State::Online);
    drive.fill().unwrap();
    drive.set_state(state);
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mut handle = mount(drive.clone(), &at, &MountOptions::default()).unwrap();
    for programs in [1, MANY] {
        beside_hung(&rig, &at, programs);
        // What hung is over: the file is as good as any.
        let slow = File::open(at.join("slow.bin")).unwrap();
        slow.read_exact_at(&mut [0; 100], 5 << 20).unwrap();
    }
    handle.unmount().unwrap();
}

#[test]
fn a_hung_read_leaves_cached_files_alone() {
    a_hung_read_leaves_others_alone(State::Cached);
}

#[test]
fn a_hung_read_leaves_files_alone_that_are_passed_through() {
    a_hung_read_leaves_others_alone(State::Online);
}
