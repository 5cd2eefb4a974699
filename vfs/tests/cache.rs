//! The cache: what may stay, what gives way, what is fetched ahead, and who has it.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rig, open_rw, pattern, put_file, read_all};
use vfs::disk::Disk;
use vfs::disk::crash::CrashDisk;
use vfs::share::fault::Fault;
use vfs::{Drive, DriveConfig, Error, ROOT, Removable, State};

const KIB: usize = 1024;

fn config(rig: &Rig, state: State, quota: u64) -> DriveConfig {
    let mut c = rig.config(state);
    c.cache_size = Some(quota);
    c.available = Some(Arc::new(|| 1 << 40));
    c
}

fn cached(d: &Drive, path: &str) -> u64 {
    d.file_status(path).unwrap().cached
}

#[test]
fn clean_files_give_way_oldest_first_and_pinned_ones_never() {
    let rig = Rig::new();
    rig.put("p.pst", &pattern(300 * KIB, 9));
    for i in 0..6u8 {
        rig.put(&format!("f{i}"), &pattern(200 * KIB, i));
    }
    let d = Drive::open(config(&rig, State::Cached, 1024 * KIB as u64)).unwrap();
    d.fill().unwrap();
    // 300 pinned, room for three of 200 beside what copies leave to writes.
    for i in [0u8, 1, 2, 0, 3, 4] {
        assert_eq!(
            read_all(&d, &format!("f{i}")).unwrap(),
            pattern(200 * KIB, i)
        );
    }
    assert!(
        cached(&d, "f1") == 0 && cached(&d, "f2") == 0,
        "the oldest went"
    );
    assert!(cached(&d, "f4") > 0 && cached(&d, "f0") > 0);
    assert_eq!(cached(&d, "p.pst"), 300 * KIB as u64);
    let status = d.cache_status();
    assert!(status.used <= 1024 * KIB as u64, "{status:?}");
    assert_eq!((status.pinned, status.pinned_files), (300 * KIB as u64, 1));
    assert_eq!(status.incomplete, []);
    // What was given up is so after a restart too, and is fetched again.
    d.shutdown().unwrap();
    drop(d);
    let d = Drive::open(config(&rig, State::Cached, 1024 * KIB as u64)).unwrap();
    assert_eq!(cached(&d, "f1"), 0);
    assert_eq!(read_all(&d, "f1").unwrap(), pattern(200 * KIB, 1));
    rig.faults.all(Fault::Fail(std::io::ErrorKind::TimedOut));
    assert_eq!(read_all(&d, "p.pst").unwrap(), pattern(300 * KIB, 9));
}

/// The bytes of a file that was given up are never taken for content again, whatever of the
/// giving up survives.
#[test]
fn a_power_cut_while_making_room_leaves_no_zeros() {
    let rig = Rig::new();
    let old = pattern(150 * KIB, 1);
    let new = pattern(150 * KIB, 2);
    rig.put("old", &old);
    rig.put("new", &new);
    let disk = CrashDisk::default();
    let open = |disk: &CrashDisk| {
        let mut c = config(&rig, State::Cached, 200 * KIB as u64);
        c.disk = Some(Arc::new(disk.clone()));
        Drive::open(c).unwrap()
    };
    let d = open(&disk);
    assert_eq!(read_all(&d, "old").unwrap(), old);
    d.shutdown().unwrap();
    drop(d);
    let start = disk.survivor(1);
    let mut cuts = 0;
    for n in 0.. {
        let disk = start.survivor(1);
        let d = open(&disk);
        disk.cut_after(n);
        let _ = read_all(&d, "new");
        let done = !disk.is_cut();
        for seed in [0, 1, n + 2, n + 99] {
            let d = open(&disk.survivor(seed));
            assert_eq!(read_all(&d, "old").unwrap(), old, "cut {n} seed {seed}");
            assert_eq!(read_all(&d, "new").unwrap(), new, "cut {n} seed {seed}");
            cuts += 1;
        }
        if done {
            break;
        }
    }
    assert!(cuts > 10);
    println!("{cuts} power cuts while making room");
}

#[test]
fn a_full_cache_refuses_early_and_keeps_what_it_took() {
    let rig = Rig::new();
    rig.put("clean", &pattern(300 * KIB, 1));
    let d = Drive::open(config(&rig, State::Cached, 600 * KIB as u64)).unwrap();
    read_all(&d, "clean").unwrap();
    d.set_state(State::Offline);
    put_file(&d, ROOT, "mine", b"");
    let h = open_rw(&d, "mine");
    let part = pattern(50 * KIB, 3);
    let mut written = 0;
    let refused = loop {
        match d.write(h, written as u64, &part) {
            Ok(()) => written += part.len(),
            Err(e) => break e,
        }
        assert!(written <= 700 * KIB, "the quota holds");
    };
    assert!(matches!(refused, Error::NoSpace(_)), "{refused}");
    // The clean file gave way to the writes; what was accepted is all there, and can be changed
    // where it lies, and be flushed, in a cache that is full.
    assert!(written > 500 * KIB && cached(&d, "clean") == 0);
    d.write(h, 0, &part[..1000]).unwrap();
    d.fsync(h).unwrap();
    d.release(h).unwrap();
    d.checkpoint().unwrap();
    let mine = read_all(&d, "mine").unwrap();
    assert_eq!(mine.len(), written);
    assert!(mine.chunks(part.len()).all(|c| c == part));
    assert_eq!(d.file_status("mine").unwrap().unsynced, written as u64);
    // Synced, it may go in turn.
    d.set_state(State::Cached);
    d.reintegrate("d", "h").unwrap();
    d.push_opaque("mine", "d", "h").unwrap();
    assert_eq!(read_all(&d, "clean").unwrap(), pattern(300 * KIB, 1));
    assert!(cached(&d, "clean") > 0 && rig.get("mine") == mine);
}

#[test]
fn pinned_files_are_fetched_ahead_and_status_names_those_that_are_not() {
    let rig = Rig::new();
    rig.put("a.pst", &pattern(40 * KIB, 1));
    rig.put("deep/b.doc", &pattern(30 * KIB, 2));
    rig.put("deep/c.txt", &pattern(30 * KIB, 3));
    rig.put("big.pst", &pattern(500 * KIB, 4));
    let mut c = config(&rig, State::Online, 300 * KIB as u64);
    c.pins = Some(vec!["**/*.pst".into(), "deep/*.doc".into()]);
    let d = Drive::open(c).unwrap();
    assert!(matches!(d.fill(), Err(Error::NoSpace(_))));
    let status = d.cache_status();
    assert_eq!(status.pinned_files, 3);
    let names: Vec<_> = status.incomplete.iter().map(|i| &*i.path).collect();
    assert_eq!(names, ["big.pst"]);
    assert_eq!(status.incomplete[0].size, 500 * KIB as u64);
    assert!(status.trouble.is_some());
    assert!(d.file_status("deep/b.doc").unwrap().fully_cached);
    assert!(!d.file_status("deep/c.txt").unwrap().fully_cached);
    // The whole tree is known offline, also after a restart; of pinned files the bytes too.
    d.shutdown().unwrap();
    drop(d);
    let mut c = config(&rig, State::Offline, 300 * KIB as u64);
    c.pins = Some(vec!["**/*.pst".into(), "deep/*.doc".into()]);
    let d = Drive::open(c).unwrap();
    let deep = d.find("deep").unwrap();
    let names: Vec<_> = d
        .readdir(deep)
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert!(names.contains(&"b.doc".into()) && names.contains(&"c.txt".into()));
    assert_eq!(read_all(&d, "deep/b.doc").unwrap(), pattern(30 * KIB, 2));
    assert!(matches!(
        read_all(&d, "deep/c.txt"),
        Err(Error::NotCached(_))
    ));
}

#[test]
fn fetching_ahead_goes_on_where_it_was_cut_off() {
    let rig = Rig::new();
    let all = pattern(6 << 20, 5);
    rig.put("m.pst", &all);
    let d = rig.drive(State::Online);
    // The tree and the opening, then some steps, then the link goes.
    rig.faults.at(12, Fault::Fail(std::io::ErrorKind::TimedOut));
    assert!(d.fill().is_err());
    let some = cached(&d, "m.pst");
    assert!(some > 0 && some < all.len() as u64, "{some}");
    d.shutdown().unwrap();
    drop(d);
    let d = rig.drive(State::Online);
    assert_eq!(cached(&d, "m.pst"), some);
    let before = rig.faults.calls();
    d.fill().unwrap();
    let steps = (all.len() as u64 - some).div_ceil(1 << 20);
    assert!(rig.faults.calls() - before < 2 * steps + 8, "fetched anew");
    rig.faults.all(Fault::Fail(std::io::ErrorKind::TimedOut));
    assert_eq!(read_all(&d, "m.pst").unwrap(), all);
}

#[test]
fn a_rate_is_kept() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(2 << 20, 5));
    let mut c = rig.config(State::Online);
    c.fill_rate = Some(8 << 20);
    let d = Drive::open(c).unwrap();
    let began = Instant::now();
    d.fill().unwrap();
    // Slower is no fault of ours; faster is.
    assert!(began.elapsed() >= Duration::from_millis(240));
}

fn host(name: &str) -> Removable {
    Removable {
        host: name.into(),
        host_id: name.into(),
        beat: Duration::from_millis(50),
    }
}

/// A drive that was pulled out goes on at another host, with what was flushed; a live one stays.
#[test]
fn the_cache_goes_on_at_another_host() {
    let rig = Rig::new();
    rig.put("m.pst", &pattern(100 * KIB, 1));
    let disk = CrashDisk::default();
    let open = |disk: &CrashDisk, name: &str| {
        let mut c = rig.config(State::Offline);
        c.removable = Some(host(name));
        c.disk = Some(Arc::new(disk.clone()));
        Drive::open(c)
    };
    let a = open(&disk, "a").unwrap();
    let volume = a.cache_status().volume.unwrap();
    put_file(&a, ROOT, "note", b"flushed");
    let h = open_rw(&a, "note");
    a.fsync(h).unwrap();
    a.fsync_dir().unwrap();
    // Pulled out in the middle of work.
    a.write(h, 0, b"pending").unwrap();
    let stick = disk.survivor(7);
    let b = open(&stick, "b").unwrap();
    assert_eq!(b.cache_status().volume.unwrap(), volume);
    let note = read_all(&b, "note").unwrap();
    assert!(note == b"flushed" || note == b"pending");
    assert!(b.file_status("note").unwrap().dirty);
    // And back, in order: nobody waits for a volume that was given back.
    b.shutdown().unwrap();
    drop(b);
    let back = open(&stick, "a").unwrap();
    assert_eq!(read_all(&back, "note").unwrap(), note);
    drop(back);
    // A volume that two hosts see at once (a network disk) stays with the one that beats.
    let mut c = rig.config(State::Offline);
    c.removable = Some(host("c"));
    c.disk = Some(Arc::new(stick.clone()));
    c.background = true;
    let live = Drive::open(c).unwrap();
    // The lock file of one host is not seen by another.
    let mut other = rig.config(State::Offline);
    other.removable = Some(host("d"));
    other.disk = Some(Arc::new(Unlocked(stick.clone())));
    assert!(matches!(Drive::open(other).map(drop), Err(Error::Locked(who)) if who.contains('c')));
    put_file(&live, ROOT, "more", b"x");
    live.shutdown().unwrap();
}

struct Unlocked(CrashDisk);

impl Disk for Unlocked {
    fn name(&self) -> String {
        self.0.name()
    }
    fn mkdir(&self, dir: &str) -> std::io::Result<()> {
        self.0.mkdir(dir)
    }
    fn list(&self, dir: &str) -> std::io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn open(&self, path: &str) -> std::io::Result<Arc<dyn storage::WriteAt>> {
        self.0.open(path)
    }
    fn create(&self, path: &str, room: u64) -> std::io::Result<Arc<dyn storage::WriteAt>> {
        self.0.create(path, room)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &str) -> std::io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &str) -> std::io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn available(&self) -> std::io::Result<u64> {
        self.0.available()
    }
    fn lock(&self) -> std::io::Result<Option<vfs::disk::DiskLock>> {
        Ok(Some(Box::new(())))
    }
    fn boot_id(&self) -> Vec<u8> {
        self.0.boot_id()
    }
}
