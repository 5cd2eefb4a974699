//! A cached copy follows the share's file: by what differs, whole at every moment, and never over what a
//! program wrote.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{open_rw, pattern, read_all};
use storage::{FileStorage, LEAF_SIZE, Leaves, RangeSet, ReadAt};
use vfs::disk::crash::CrashDisk;
use vfs::share::dir::DirShare;
use vfs::share::fault::{Fault, FaultControl, FaultShare};
use vfs::{
    Attr, Drive, DriveConfig, EpochValidator, Error, KnownLeaves, SetAttr, Share, ShareFile, Stamp,
    State, Statfs, Verdict,
};

const LEAF: usize = LEAF_SIZE as usize;
const DEAD: Fault = Fault::Fail(io::ErrorKind::TimedOut);

/// A directory that counts what is read of its files, and may tell their leaves.
struct Counted {
    inner: DirShare,
    root: std::path::PathBuf,
    tells: AtomicBool,
    read: Arc<AtomicU64>,
}

struct CountedFile(Box<dyn ShareFile>, Arc<AtomicU64>);

impl Share for Counted {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        self.inner.stat(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<vfs::share::Entry>> {
        self.inner.list(path)
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.inner.read_link(path)
    }
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        let file = self.inner.open(path, write)?;
        Ok(Box::new(CountedFile(file, self.read.clone())))
    }
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        self.inner.create(path, mode)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.inner.rename(from, to, replace)
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.inner.unlink(path)
    }
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        self.inner.mkdir(path, mode)
    }
    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.inner.rmdir(path)
    }
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        self.inner.set_attr(path, set)
    }
    fn statfs(&self) -> io::Result<Statfs> {
        self.inner.statfs()
    }
    fn probe(&self) -> io::Result<()> {
        self.inner.probe()
    }
}

impl KnownLeaves for Counted {
    fn leaves(&self, path: &str, stamp: &Stamp) -> Option<Leaves> {
        if !self.tells.load(Ordering::SeqCst) || self.stamp(path).ok()? != *stamp {
            return None;
        }
        Leaves::hash(&FileStorage::open(self.root.join(path)).ok()?).ok()
    }
}

impl ShareFile for CountedFile {
    fn stat(&self) -> io::Result<Attr> {
        self.0.stat()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read_at(offset, buf)?;
        // The head of a stamp apart.
        if offset > 0 || buf.len() > vfs::share::HEAD {
            self.1.fetch_add(n as u64, Ordering::SeqCst);
        }
        Ok(n)
    }
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn stamp(&self) -> io::Result<Stamp> {
        self.0.stamp()
    }
}

struct World {
    tmp: tempfile::TempDir,
    share: Arc<FaultShare<Arc<Counted>>>,
    counted: Arc<Counted>,
    faults: FaultControl,
}

impl World {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("share");
        std::fs::create_dir(&root).unwrap();
        let counted = Arc::new(Counted {
            inner: DirShare::open(&root).unwrap(),
            root,
            tells: AtomicBool::new(false),
            read: Arc::default(),
        });
        let (share, faults) = FaultShare::new(counted.clone());
        Self {
            tmp,
            share: Arc::new(share),
            counted,
            faults,
        }
    }

    fn config(&self, state: State) -> DriveConfig {
        let mut c = DriveConfig::new(self.share.clone(), self.tmp.path().join("state"));
        c.state = state;
        c.background = false;
        c.leaves = Some(self.counted.clone());
        c.attr_life = Duration::ZERO;
        c.attach_after = Duration::ZERO;
        c.segment_len = 1 << 16;
        c
    }

    /// Puts another version there, whose times tell it apart.
    fn put(&self, path: &str, data: &[u8]) {
        static VERSION: AtomicU64 = AtomicU64::new(1_000_000);
        let at = self.counted.root.join(path);
        let secs = VERSION.fetch_add(1, Ordering::SeqCst);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(at)
            .unwrap();
        file.set_len(data.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, data, 0).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(secs))
            .unwrap();
    }

    /// Bytes read of files meanwhile.
    fn read_during<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let before = self.counted.read.load(Ordering::SeqCst);
        let done = work();
        (done, self.counted.read.load(Ordering::SeqCst) - before)
    }
}

/// Without the share: whole, and just these bytes.
fn check_offline(d: &Drive, path: &str, want: &[&[u8]], note: &str) {
    let state = d.state();
    d.set_state(State::Offline);
    let got = read_all(d, path).unwrap_or_else(|e| panic!("{note}: {e}"));
    assert!(want.contains(&&got[..]), "{note}: {} bytes", got.len());
    d.set_state(state);
}

/// Two leaves of forty changed, and a few bytes appended.
fn next_version(old: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    new[3 * LEAF + 5] ^= 0xFF;
    new[30 * LEAF] ^= 0xFF;
    new.extend_from_slice(b"and more");
    new
}

#[test]
fn where_leaves_are_told_only_those_that_differ_are_read() {
    let w = World::new();
    w.counted.tells.store(true, Ordering::SeqCst);
    let old = pattern(40 * LEAF + 100, 1);
    w.put("m.pst", &old);
    let d = Drive::open(w.config(State::Online)).unwrap();
    d.fill().unwrap();
    let before = d.file_status("m.pst").unwrap();
    // Nothing changed: nothing is read.
    let (done, read) = w.read_during(|| d.fill());
    done.unwrap();
    assert_eq!(read, 0);
    let new = next_version(&old);
    w.put("m.pst", &new);
    let (done, read) = w.read_during(|| d.fill());
    done.unwrap();
    let after = d.file_status("m.pst").unwrap();
    assert!(after.fully_cached && after.attached && after.lineage != before.lineage);
    // Two leaves, and the last, short one.
    assert_eq!(read, 2 * LEAF_SIZE + 108);
    check_offline(&d, "m.pst", &[&new], "after");
    // It gets shorter, and ends within a leaf.
    w.put("m.pst", &new[..10 * LEAF + 7]);
    let (done, read) = w.read_during(|| d.fill());
    done.unwrap();
    assert_eq!(read, 0);
    check_offline(&d, "m.pst", &[&new[..10 * LEAF + 7]], "shorter");
}

/// Nothing tells the leaves: all is read, once, also where the link breaks off in between, and what is here
/// stays whole all the time.
#[test]
fn a_lost_link_is_gone_on_from_and_the_old_copy_stays_until_the_end() {
    let w = World::new();
    let mut old = pattern(40 * LEAF + 100, 1);
    w.put("m.pst", &old);
    let d = Drive::open(w.config(State::Online)).unwrap();
    d.fill().unwrap();
    let (mut broken, mut resumed) = (0, 0);
    for n in 1.. {
        let new = next_version(&old);
        w.put("m.pst", &new);
        w.faults.at(n, DEAD);
        let (done, first) = w.read_during(|| d.fill());
        w.faults.heal();
        if done.is_err() {
            broken += 1;
            assert!(d.file_status("m.pst").unwrap().fully_cached, "call {n}");
            check_offline(&d, "m.pst", &[&old, &new], &format!("call {n}"));
        }
        let was_done = done.is_ok();
        let (done, second) = w.read_during(|| d.fill());
        done.unwrap();
        check_offline(&d, "m.pst", &[&new], &format!("call {n}, gone on"));
        // No byte is read twice, but for a last step whose answer was lost.
        let all = new.len() as u64;
        assert!(first + second <= all + 16 * LEAF_SIZE, "{first} + {second}");
        resumed += u64::from(first > 0 && second > 0);
        old = new;
        if was_done {
            break;
        }
    }
    assert!(broken > 5 && resumed > 1, "{broken} {resumed}");
}

/// A restart is no reason to begin again.
#[test]
fn progress_outlives_the_drive() {
    let w = World::new();
    let old = pattern(40 * LEAF, 1);
    w.put("m.pst", &old);
    let d = Drive::open(w.config(State::Online)).unwrap();
    d.fill().unwrap();
    let new = next_version(&old);
    w.put("m.pst", &new);
    // Broken off where more than one step was read.
    let mut n = 8;
    let first = loop {
        w.faults.at(n, DEAD);
        let (done, read) = w.read_during(|| d.fill());
        done.unwrap_err();
        if read > 16 * LEAF_SIZE {
            break read;
        }
        // What that attempt kept is of no use to this test.
        w.faults.heal();
        w.put("m.pst", &new);
        n += 1;
    };
    w.faults.heal();
    d.shutdown().unwrap();
    drop(d);
    let d = Drive::open(w.config(State::Online)).unwrap();
    check_offline(&d, "m.pst", &[&old], "before");
    let (done, second) = w.read_during(|| d.fill());
    done.unwrap();
    assert!(first + second <= new.len() as u64 + 16 * LEAF_SIZE);
    assert!(second < new.len() as u64, "not all of it again");
    check_offline(&d, "m.pst", &[&new], "after");
}

/// A program comes first: what it wrote meanwhile stays, and is no copy of the share's any more.
#[test]
fn what_a_program_writes_meanwhile_stays() {
    let w = World::new();
    let old = pattern(40 * LEAF, 1);
    w.put("m.pst", &old);
    let d = Drive::open(w.config(State::Online)).unwrap();
    d.fill().unwrap();
    let new = next_version(&old);
    w.put("m.pst", &new);
    let mut mine = old.clone();
    mine[100..104].copy_from_slice(b"mine");
    let mut tried = 0;
    for n in 1.. {
        w.faults.at(n, Fault::Hang);
        let before = d.file_status("m.pst").unwrap();
        let done = std::thread::scope(|s| {
            let filling = s.spawn(|| d.fill());
            loop {
                if w.faults.hanging() > 0 {
                    // Without the share, as while it is away.
                    d.set_state(State::Offline);
                    let h = open_rw(&d, "m.pst");
                    d.write(h, 100, b"mine").unwrap();
                    d.release(h).unwrap();
                    d.set_state(State::Online);
                    w.faults.release();
                    break filling.join().unwrap().map(|()| true);
                }
                if filling.is_finished() {
                    break filling.join().unwrap().map(|()| false);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        w.faults.heal();
        if done.as_ref().is_ok_and(|hung| !hung) {
            break;
        }
        tried += 1;
        let after = d.file_status("m.pst").unwrap();
        assert!(
            after.dirty && after.unsynced == 4,
            "call {n}: {done:?} {after:?}"
        );
        assert_eq!(after.lineage, before.lineage, "call {n}");
        check_offline(&d, "m.pst", &[&mine], &format!("call {n}"));
        // From the start, with the same versions.
        drop(d.snapshot("m.pst").unwrap());
        return_to(&w, &d, &old, &new);
    }
    assert!(tried > 5, "{tried}");
}

/// Makes the drive's copy `old` again, clean, and the share's file `new`.
fn return_to(w: &World, d: &Drive, old: &[u8], new: &[u8]) {
    let epoch = d.file_status("m.pst").unwrap().epoch;
    d.mark_synced("m.pst", epoch, false).unwrap();
    w.put("m.pst", old);
    d.fill().unwrap();
    check_offline(d, "m.pst", &[old], "returned");
    w.put("m.pst", new);
}

/// The share's writer is in the middle of something: the copy that is whole stays.
#[test]
fn a_container_that_is_not_whole_there_is_not_taken() {
    struct Whole(Mutex<Vec<RangeSet>>);
    impl EpochValidator for Whole {
        fn check(&self, file: &Arc<dyn ReadAt>, written: &RangeSet) -> Verdict {
            let mut all = vec![0; file.len().unwrap() as usize];
            file.read_exact_at(0, &mut all).unwrap();
            self.0.lock().unwrap().push(written.clone());
            if all[3 * LEAF + 5] == 0 {
                Verdict::Wait("half".to_owned())
            } else {
                Verdict::Consistent
            }
        }
    }
    let w = World::new();
    let validator = Arc::new(Whole(Mutex::default()));
    let mut c = w.config(State::Online);
    c.validator = Some(validator.clone());
    let mut old = pattern(40 * LEAF, 1);
    old[3 * LEAF + 5] = 1;
    w.put("m.pst", &old);
    let d = Drive::open(c).unwrap();
    d.fill().unwrap();
    let mut half = old.clone();
    half[3 * LEAF + 5] = 0;
    w.put("m.pst", &half);
    assert!(matches!(d.fill(), Err(Error::Busy(_))));
    check_offline(&d, "m.pst", &[&old], "half");
    let mut new = old.clone();
    new[3 * LEAF + 5] = 2;
    w.put("m.pst", &new);
    d.fill().unwrap();
    check_offline(&d, "m.pst", &[&new], "whole");
    let asked = validator.0.lock().unwrap();
    let leaf = 3 * LEAF_SIZE..4 * LEAF_SIZE;
    assert!(
        asked.iter().all(|r| r.iter().eq([leaf.clone()])),
        "{asked:?}"
    );
}

/// A container that was synced by objects is attached again once it has rested, over a good link only, and
/// then passed through.
#[test]
fn a_detached_container_is_attached_again() {
    let w = World::new();
    let old = pattern(40 * LEAF, 1);
    w.put("m.pst", &old);
    let d = Drive::open(w.config(State::Online)).unwrap();
    d.fill().unwrap();
    d.set_state(State::Cached);
    let h = open_rw(&d, "m.pst");
    d.write(h, 0, b"mine").unwrap();
    d.release(h).unwrap();
    let snap = d.snapshot("m.pst").unwrap();
    // The sync engine brought it there in other bytes.
    let new = next_version(&old);
    w.put("m.pst", &new);
    d.mark_synced("m.pst", snap.epoch, true).unwrap();
    // While somebody reads it as it was, it stays so.
    d.set_state(State::Online);
    d.fill().unwrap();
    assert!(!d.file_status("m.pst").unwrap().attached, "it is read");
    drop(snap);
    d.set_state(State::Cached);
    d.fill().unwrap();
    assert!(!d.file_status("m.pst").unwrap().attached, "a poor link");
    d.set_state(State::Online);
    let h = open_rw(&d, "m.pst");
    d.fill().unwrap();
    assert!(!d.file_status("m.pst").unwrap().attached, "it is open");
    d.release(h).unwrap();
    d.fill().unwrap();
    let s = d.file_status("m.pst").unwrap();
    assert!(s.attached && s.fully_cached && !s.dirty, "{s:?}");
    check_offline(&d, "m.pst", &[&new], "attached");
    let h = open_rw(&d, "m.pst");
    assert!(d.file_status("m.pst").unwrap().passed_through);
    d.release(h).unwrap();
}

/// Files that happen to be cached follow too, once the listing tells that they changed.
#[test]
fn an_opaque_file_follows() {
    let w = World::new();
    let old = pattern(5 * LEAF, 1);
    w.put("notes", &old);
    let d = Drive::open(w.config(State::Cached)).unwrap();
    assert_eq!(read_all(&d, "notes").unwrap(), old);
    let new = pattern(5 * LEAF, 2);
    w.put("notes", &new);
    check_offline(&d, "notes", &[&old], "before");
    d.set_state(State::Online);
    d.fill().unwrap();
    check_offline(&d, "notes", &[&new], "after");
}

/// The power may go at any moment: the copy is the old or the new one, whole.
#[test]
fn a_power_cut_leaves_the_old_or_the_new_copy() {
    let w = World::new();
    let old = pattern(9 * LEAF + 100, 1);
    let mut new = old.clone();
    new[3 * LEAF] ^= 1;
    new[7 * LEAF..].fill(9);
    new.extend_from_slice(b"and more");
    let disk = CrashDisk::default();
    let open = |disk: &CrashDisk| {
        let mut c = w.config(State::Online);
        c.disk = Some(Arc::new(disk.clone()));
        c.available = Some(Arc::new(|| 1 << 40));
        Drive::open(c).unwrap()
    };
    w.put("m.pst", &old);
    let d = open(&disk);
    d.fill().unwrap();
    d.shutdown().unwrap();
    drop(d);
    let start = disk.survivor(1);
    let (mut cuts, mut olds, mut news) = (0, 0, 0);
    w.put("m.pst", &new);
    for n in 0.. {
        let disk = start.survivor(1);
        let d = open(&disk);
        disk.cut_after(n);
        let _ = d.fill();
        let done = !disk.is_cut();
        drop(d);
        for seed in [0, 1, n + 2, n + 99] {
            let d = open(&disk.survivor(seed));
            let note = format!("cut {n} seed {seed}");
            check_offline(&d, "m.pst", &[&old, &new], &note);
            d.set_state(State::Offline);
            match read_all(&d, "m.pst").unwrap() == new {
                true => news += 1,
                false => olds += 1,
            }
            // What programs write after it is not overlaid by anything left behind.
            let h = open_rw(&d, "m.pst");
            d.write(h, 3 * LEAF as u64, b"later").unwrap();
            d.release(h).unwrap();
            d.shutdown().unwrap();
            let want = read_all(&d, "m.pst").unwrap();
            assert_eq!(want[3 * LEAF..3 * LEAF + 5], *b"later");
            cuts += 1;
        }
        if done {
            break;
        }
    }
    assert!(cuts > 40 && olds > 0 && news > 0, "{cuts} {olds} {news}");
    println!("{cuts} power cuts while a copy follows: {olds} as before, {news} as after");
}
