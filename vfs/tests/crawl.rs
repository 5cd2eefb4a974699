//! The whole tree, learned before the link goes: directories that nobody opened can be listed, and
//! filled, while the share is away.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rig, fuse_missing, put_file, read_all};
use vfs::share::fault::Fault;
use vfs::share::{Attr, Entry, Kind, SetAttr, Share, ShareFile, Statfs};
use vfs::{Drive, DriveConfig, Error, State, TreeStatus};

const DEAD: Fault = Fault::Fail(io::ErrorKind::TimedOut);

fn names(d: &Drive, path: &str) -> Vec<String> {
    let all = d.readdir(d.find(path).unwrap()).unwrap();
    all.into_iter().map(|e| e.name).collect()
}

/// Until `done`, for as long as a loaded machine may take.
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn background(rig: &Rig) -> DriveConfig {
    let mut c = rig.config(State::Online);
    c.background = true;
    c.attr_life = Duration::from_secs(1);
    c
}

fn over(status: &TreeStatus) -> bool {
    status.waiting == 0 && status.listed > 0
}

/// Mounted, nothing opened, the share gone: a deep directory is listed, things are made in it through the
/// kernel, and all of it reaches the share when it is back.
#[test]
#[cfg(target_os = "linux")]
fn directories_nobody_opened_work_without_the_share() {
    use std::fs;
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    rig.put("a/b/c/there.txt", b"old");
    rig.put("a/b/other/x", b"x");
    let d = Drive::open(background(&rig)).unwrap();
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let options = vfs::fuse::MountOptions::default();
    let mut mounted = vfs::fuse::mount(d.clone(), &at, &options).unwrap();
    wait_for("the crawl", || {
        over(&d.tree_status()) && d.tree_status().unlisted == 0
    });
    let status = d.tree_status();
    assert_eq!((status.names, status.listed), (6, 5), "{status:?}");
    rig.faults.all(DEAD);
    let list = |p: &str| {
        let mut all: Vec<_> = fs::read_dir(at.join(p))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    };
    assert_eq!(list("a/b/c"), ["there.txt"]);
    assert_eq!(list("a/b"), ["c", "other"]);
    assert_eq!(fs::metadata(at.join("a/b/c/there.txt")).unwrap().len(), 3);
    fs::write(at.join("a/b/c/new.txt"), b"made offline").unwrap();
    fs::create_dir_all(at.join("a/b/c/deep/er")).unwrap();
    fs::write(at.join("a/b/c/deep/er/f"), b"f").unwrap();
    // What is not there is known not to be: "no such file", not "unreachable".
    let missing = fs::metadata(at.join("a/b/other/y")).unwrap_err();
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(!rig.share_file("a/b/c/new.txt").exists());
    rig.faults.heal();
    d.reintegrate("2026-01-01", "here").unwrap();
    for path in ["a/b/c/new.txt", "a/b/c/deep/er/f"] {
        d.push_opaque(path, "2026-01-01", "here").unwrap();
    }
    assert_eq!(rig.get("a/b/c/new.txt"), b"made offline");
    assert_eq!(rig.get("a/b/c/deep/er/f"), b"f");
    mounted.unmount().unwrap();
}

/// The link goes in the middle: what was learned stays, the rest is learned when it is back, and no
/// directory is listed twice for it.
#[test]
fn a_round_stops_with_the_link_and_goes_on_with_it() {
    let rig = Rig::new();
    for i in 0..40 {
        rig.put(&format!("d{i:02}/sub/f"), b"");
    }
    let mut c = rig.config(State::Online);
    c.attr_life = Duration::from_secs(600);
    let d = Drive::open(c).unwrap();
    // The twentieth call waits until the link is dead for all that follow.
    rig.faults.at(20, Fault::Hang);
    std::thread::scope(|s| {
        let filling = s.spawn(|| d.fill());
        wait_for("the twentieth call", || rig.faults.hanging() == 1);
        rig.faults.all(DEAD);
        rig.faults.release();
        assert!(filling.join().unwrap().is_err());
    });
    let stopped = d.tree_status();
    assert!(stopped.waiting > 0 && stopped.unlisted > 0, "{stopped:?}");
    assert!(stopped.trouble.is_some());
    let known = stopped.listed as u64;
    rig.faults.heal();
    let before = rig.faults.calls();
    d.fill().unwrap();
    let done = d.tree_status();
    assert_eq!((done.unlisted, done.waiting), (0, 0), "{done:?}");
    assert_eq!((done.listed, done.names), (81, 120));
    assert_eq!(
        rig.faults.calls() - before,
        81 - known,
        "only what was left"
    );
}

/// A directory that cannot be listed, or never answers, holds up no other.
#[test]
fn a_bad_directory_holds_up_no_other() {
    let mut rig = Rig::new();
    rig.budget = Duration::from_millis(200);
    for dir in ["a", "b", "c/d"] {
        rig.put(&format!("{dir}/f"), b"1");
    }
    let d = rig.drive(State::Online);
    for fault in [Fault::Errno(13), Fault::Hang] {
        rig.faults.all_on("b", fault);
        assert!(d.fill().is_err());
        let status = d.tree_status();
        assert_eq!(status.unlisted, 1, "{fault:?}: {status:?}");
        assert!(status.trouble.is_some_and(|t| t.contains('b')));
    }
    rig.faults.all(Fault::Fail(io::ErrorKind::TimedOut));
    rig.faults.release();
    assert_eq!(names(&d, "c/d"), ["f"]);
    assert!(matches!(
        d.readdir(d.find("b").unwrap()),
        Err(Error::Link(_))
    ));
    rig.faults.heal();
}

/// What was learned is there after a restart, without the share, and a round that was broken off goes on.
#[test]
fn what_was_learned_outlives_the_drive() {
    let rig = Rig::new();
    rig.put("a/b/f", b"1");
    let d = Drive::open(background(&rig)).unwrap();
    wait_for("the crawl", || {
        over(&d.tree_status()) && d.tree_status().unlisted == 0
    });
    d.shutdown().unwrap();
    drop(d);
    let d = rig.drive(State::Offline);
    assert_eq!(names(&d, "a/b"), ["f"]);
    assert_eq!(d.tree_status().unlisted, 0);
}

/// A listing that hangs keeps nobody from unmounting: the drive is given up, and can be opened again.
#[test]
fn the_background_ends_with_the_drive() {
    let mut rig = Rig::new();
    rig.budget = Duration::from_secs(60);
    rig.put("a/f", b"1");
    rig.faults.all(Fault::Hang);
    let d = Drive::open(background(&rig)).unwrap();
    wait_for("a call that hangs", || rig.faults.hanging() > 0);
    let begin = Instant::now();
    d.shutdown().unwrap();
    drop(d);
    let again = loop {
        match Drive::open(rig.config(State::Offline)) {
            Ok(d) => break d,
            Err(Error::Locked(_)) => {}
            Err(e) => panic!("{e}"),
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "it goes on");
    };
    drop(again);
    rig.faults.heal();
}

/// Directories that lead into themselves, as a server that follows links shows them, are told by their
/// identity, and where there is none by the bounds.
#[test]
fn loops_do_not_trap_it() {
    let tmp = tempfile::tempdir().unwrap();
    for (ids, limit) in [(true, 10_000), (false, 200)] {
        let mut c = DriveConfig::new(Arc::new(Loop { ids }), tmp.path().join(format!("{ids}")));
        c.background = false;
        c.tree_limit = limit;
        let d = Drive::open(c).unwrap();
        let done = d.fill();
        let status = d.tree_status();
        if ids {
            done.unwrap();
            assert_eq!((status.listed, status.unlisted), (1, 2), "{status:?}");
        } else {
            // Two directories in each: without the bound this doubles 128 times.
            assert!(done.is_err());
            assert!(status.names <= limit + 3, "{status:?}");
            assert!(status.trouble.is_some());
            assert_eq!(status.waiting, 0);
            // A program gets through all the same.
            let found = d.find(&vec!["a"; 100].join("/")).unwrap();
            assert_eq!(d.readdir(found).unwrap().len(), 2);
        }
    }
}

/// Links that lead out of the share, or in circles, are names and nothing more.
#[test]
#[cfg(unix)]
fn symbolic_links_are_not_entered() {
    let rig = Rig::new();
    rig.put("in/f", b"1");
    let out = rig.tmp.path().join("out");
    std::fs::create_dir_all(out.join("secret")).unwrap();
    for (to, at) in [("..", "in/up"), (out.to_str().unwrap(), "in/out")] {
        std::os::unix::fs::symlink(to, rig.share_file(at)).unwrap();
    }
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    let status = d.tree_status();
    assert_eq!((status.names, status.listed, status.unlisted), (4, 2, 0));
    assert!(d.find("in/out/secret").is_err());
}

/// A name that we make or remove while a listing is on its way is neither lost nor seen again by it.
#[test]
fn a_listing_on_its_way_undoes_nothing() {
    let mut rig = Rig::new();
    rig.budget = Duration::from_secs(20);
    rig.put("d/old", b"1");
    rig.put("d/stays", b"1");
    let mut c = rig.config(State::Online);
    c.attr_life = Duration::from_secs(600);
    let d = Drive::open(c).unwrap();
    let dir = d.find("d").unwrap();
    d.find("d/old").unwrap();
    std::thread::scope(|s| {
        // The listing is taken first, and its answer held back.
        rig.faults.at(1, Fault::HangAfter);
        let lister = s.spawn(|| d.readdir(dir).unwrap());
        wait_for("the listing", || rig.faults.hanging() == 1);
        d.unlink(dir, "old").unwrap();
        put_file(&d, dir, "new", b"2");
        rig.faults.release();
        let mut seen: Vec<_> = lister.join().unwrap().into_iter().map(|e| e.name).collect();
        seen.sort();
        assert_eq!(seen, ["new", "stays"]);
    });
    assert_eq!(read_all(&d, "d/new").unwrap(), b"2");
}

/// A hundred thousand names in one directory, in reasonable time and memory, under either rule of names.
#[test]
fn a_hundred_thousand_names_in_one_directory() {
    const MANY: usize = 100_000;
    let tmp = tempfile::tempdir().unwrap();
    for (i, names) in [vfs::path::Names::Any, vfs::path::Names::Windows]
        .into_iter()
        .enumerate()
    {
        let mut c = DriveConfig::new(
            Arc::new(Wide { names, many: MANY }),
            tmp.path().join(i.to_string()),
        );
        c.background = false;
        c.attr_life = Duration::from_secs(600);
        let d = Drive::open(c).unwrap();
        let before = resident();
        d.fill().unwrap();
        let status = d.tree_status();
        assert_eq!((status.names, status.listed), (MANY, 1));
        let grown = resident().saturating_sub(before);
        println!("{names:?}: {} KiB for {MANY} names", grown / 1024);
        assert!(grown < 120 << 20, "{grown} bytes for {MANY} names");
        d.shutdown().unwrap();
        d.set_state(State::Offline);
        assert_eq!(d.readdir(vfs::ROOT).unwrap().len(), MANY);
        assert!(d.find("some mail of no interest 00077777.txt").is_ok());
        let other = d.find("SOME mail of no interest 00077777.TXT");
        assert_eq!(other.is_ok(), names == vfs::path::Names::Windows);
    }
}

/// A share of directories alone: in each the same two, which are the root again.
struct Loop {
    ids: bool,
}

/// A share of one directory.
struct Wide {
    names: vfs::path::Names,
    many: usize,
}

fn attr(kind: Kind, file_id: u64) -> Attr {
    Attr {
        kind,
        size: 0,
        mtime: 1,
        atime: 1,
        ctime: 1,
        mode: 0o755,
        uid: 0,
        gid: 0,
        file_id,
    }
}

/// What a share that is only looked at does not do.
macro_rules! only_names {
    () => {
        fn read_link(&self, _: &str) -> io::Result<String> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn open(&self, _: &str, _: bool) -> io::Result<Box<dyn ShareFile>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn create(&self, _: &str, _: u32) -> io::Result<Box<dyn ShareFile>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn rename(&self, _: &str, _: &str, _: bool) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn unlink(&self, _: &str) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn mkdir(&self, _: &str, _: u32) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn rmdir(&self, _: &str) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn set_attr(&self, _: &str, _: &SetAttr) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn statfs(&self) -> io::Result<Statfs> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn probe(&self) -> io::Result<()> {
            Ok(())
        }
    };
}

impl Share for Loop {
    fn stat(&self, _: &str) -> io::Result<Attr> {
        Ok(attr(Kind::Dir, u64::from(self.ids)))
    }
    fn list(&self, _: &str) -> io::Result<Vec<Entry>> {
        let entry = |name: &str| Entry {
            name: name.to_owned(),
            attr: attr(Kind::Dir, u64::from(self.ids)),
        };
        Ok(vec![entry("a"), entry("b")])
    }
    only_names!();
}

impl Share for Wide {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        match path {
            "" => Ok(attr(Kind::Dir, 1)),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn list(&self, _: &str) -> io::Result<Vec<Entry>> {
        let entry = |i: usize| Entry {
            name: format!("some mail of no interest {i:08}.txt"),
            attr: attr(Kind::File, i as u64 + 2),
        };
        Ok((0..self.many).map(entry).collect())
    }
    fn names(&self) -> vfs::path::Names {
        self.names
    }
    only_names!();
}

/// Bytes of memory this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
