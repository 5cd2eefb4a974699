//! Reading fast without ever reading what is of before: pages the kernel keeps, bytes read ahead, files
//! the kernel reads by itself.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rig, fuse_missing, open_rw, pattern};
use vfs::fuse::{MountHandle, MountOptions, mount};
use vfs::{Drive, DriveConfig, State};

struct Mounted {
    rig: Rig,
    drive: Arc<Drive>,
    handle: MountHandle,
    at: PathBuf,
}

fn mounted(rig: Rig, config: DriveConfig, options: &MountOptions) -> Mounted {
    let drive = Drive::open(config).unwrap();
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let handle = mount(drive.clone(), &at, options).unwrap();
    Mounted {
        rig,
        drive,
        handle,
        at,
    }
}

/// Changed on the share by somebody else, at a time of its own.
fn change(rig: &Rig, path: &str, data: &[u8], second: u64) {
    let file = OpenOptions::new()
        .write(true)
        .open(rig.share_file(path))
        .unwrap();
    file.set_len(data.len() as u64).unwrap();
    file.write_all_at(data, 0).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(second))
        .unwrap();
}

#[test]
fn pages_are_kept_over_opens_until_the_share_has_others() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    let (old, new) = (pattern(2 << 20, 1), pattern(2 << 20, 2));
    rig.put("f", &old);
    let config = rig.config(State::Online);
    let mut m = mounted(rig, config, &MountOptions::default());
    let path = m.at.join("f");
    assert_eq!(fs::read(&path).unwrap(), old);
    let first = m.handle.reads();
    assert!(first > 0);
    for _ in 0..3 {
        assert_eq!(fs::read(&path).unwrap(), old);
    }
    assert_eq!(m.handle.reads(), first, "from the kernel's pages");
    change(&m.rig, "f", &new, 1_000);
    assert_eq!(fs::read(&path).unwrap(), new);
    assert!(m.handle.reads() > first);
    m.handle.unmount().unwrap();
}

/// A program has the file open, and mapped, while somebody changes it on the share: after the life of
/// attributes it reads what is there now. Its own writes are no such change.
#[test]
fn an_open_file_shows_what_others_write() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    let (old, new) = (pattern(1 << 20, 1), pattern((1 << 20) + 5000, 2));
    rig.put("f.pst", &old);
    let mut config = rig.config(State::Online);
    config.background = true;
    config.attr_life = Duration::from_secs(1);
    let mut m = mounted(rig, config, &MountOptions::default());
    let path = m.at.join("f.pst");
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut bytes = vec![0; 1 << 20];
    f.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, old);
    change(&m.rig, "f.pst", &new, 1_000);
    let begin = Instant::now();
    loop {
        f.read_exact_at(&mut bytes[..4096], 8192).unwrap();
        if bytes[..4096] == new[8192..12288] {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "never seen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut all = Vec::new();
    (&f).read_to_end(&mut all).unwrap();
    assert!(all == new, "all of it, and its length");
    assert_eq!(f.metadata().unwrap().len(), new.len() as u64);
    // What the cache had was of before.
    let status = m.drive.file_status("f.pst").unwrap();
    assert_eq!(status.size, new.len() as u64);
    f.write_all_at(b"mine", 100).unwrap();
    let lineage = m.drive.file_status("f.pst").unwrap().lineage;
    assert_eq!(m.drive.watch(), 0, "not flushed");
    f.sync_all().unwrap();
    assert_eq!(m.drive.watch(), 0, "our own");
    assert_eq!(m.drive.file_status("f.pst").unwrap().lineage, lineage);
    assert_eq!(m.rig.get("f.pst")[100..104], *b"mine");
    // The server settles the time of that write a little later.
    let mut settled = new.clone();
    settled[100..104].copy_from_slice(b"mine");
    change(&m.rig, "f.pst", &settled, 2_000);
    while m.drive.file_status("f.pst").unwrap().stamp.unwrap().mtime != 2_000_000_000_000 {
        assert!(begin.elapsed() < Duration::from_secs(60), "never seen");
        m.drive.watch();
    }
    assert_eq!(m.drive.file_status("f.pst").unwrap().lineage, lineage);
    drop(f);
    m.handle.unmount().unwrap();
}

/// Reads as the frontend does.
fn read(d: &Drive, h: u64, offset: u64, len: usize) -> Vec<u8> {
    for part in d.expect_next(h, offset, len) {
        d.fetch_ahead(h, part);
    }
    d.read(h, offset, len).unwrap()
}

#[test]
fn sequential_readers_are_read_ahead_for_and_others_are_not() {
    const LEN: usize = 12 << 20;
    const STEP: usize = 128 << 10;
    let rig = Rig::new();
    let data = pattern(LEN, 3);
    rig.put("f", &data);
    let mut c = rig.config(State::Online);
    c.attr_life = Duration::from_secs(600);
    let d = Drive::open(c).unwrap();
    let h = open_rw(&d, "f");
    for i in [50, 3, 77, 20, 9, 60] {
        let at = i * STEP;
        assert_eq!(read(&d, h, at as u64, STEP), data[at..at + STEP]);
    }
    assert_eq!(d.ahead(), vfs::AheadCount::default());
    for at in (0..LEN).step_by(STEP) {
        assert!(read(&d, h, at as u64, STEP) == data[at..at + STEP], "{at}");
    }
    let count = d.ahead();
    // All but the first few, in an eighth of the calls but for the small ones with which it begins.
    assert!(count.hits as usize > LEN / STEP - 8, "{count:?}");
    assert!(count.asked as usize <= LEN / (1 << 20) + 4, "{count:?}");
    // What is written while it is held is read as written.
    let other = open_rw(&d, "f");
    for at in (0..6 * STEP).step_by(STEP) {
        read(&d, h, at as u64, STEP);
    }
    d.write(other, 7 * STEP as u64 + 5, b"written").unwrap();
    let got = read(&d, h, 6 * STEP as u64, 2 * STEP);
    assert_eq!(got[STEP + 5..STEP + 12], *b"written");
    d.truncate_handle(other, 9 * STEP as u64).unwrap();
    assert_eq!(read(&d, h, 8 * STEP as u64, 4 * STEP).len(), STEP);
    d.release(other).unwrap();
    d.release(h).unwrap();
}

/// Over a poor link what comes next lies in the cache before it is wanted.
#[test]
fn in_cached_state_what_comes_next_is_fetched() {
    const STEP: usize = 128 << 10;
    let rig = Rig::new();
    let data = pattern(12 << 20, 3);
    rig.put("f", &data);
    let d = rig.drive(State::Cached);
    let h = open_rw(&d, "f");
    for at in (0..8 * STEP).step_by(STEP) {
        assert!(read(&d, h, at as u64, STEP) == data[at..at + STEP]);
    }
    let cached = d.file_status("f").unwrap().cached;
    assert!(cached >= 4 << 20, "{cached}");
    assert!(d.ahead().asked > 0);
    d.release(h).unwrap();
}

/// Through the kernel it comes about too.
#[test]
fn a_program_that_reads_in_a_row_is_read_ahead_for() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    let data = pattern(16 << 20, 3);
    rig.put("f", &data);
    let mut config = rig.config(State::Online);
    config.attr_life = Duration::from_secs(600);
    let mut m = mounted(rig, config, &MountOptions::default());
    assert!(fs::read(m.at.join("f")).unwrap() == data);
    let count = m.drive.ahead();
    assert!(count.asked > 4, "{count:?}");
    m.handle.unmount().unwrap();
}

fn passing() -> MountOptions {
    MountOptions {
        passthrough: true,
        ..MountOptions::default()
    }
}

/// Opened for reading once the kernel has told of the closing of all others; handed out, if it can be.
fn alone(m: &Mounted, path: &std::path::Path, root: bool) -> File {
    let begin = Instant::now();
    loop {
        let given = m.handle.passed_to_kernel();
        let file = File::open(path).unwrap();
        if !root || m.handle.passed_to_kernel() > given {
            return file;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "never handed out"
        );
        drop(file);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where it is asked for a whole opaque file is read by the kernel from the cache file, as long as nobody
/// writes to it.
#[test]
fn whole_opaque_files_are_read_by_the_kernel() {
    if fuse_missing() {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let rig = Rig::new();
    let data = pattern(3 << 20, 1);
    rig.put("f", &data);
    rig.put("m.pst", &data);
    let config = rig.config(State::Cached);
    let mut m = mounted(rig, config, &passing());
    let (path, pst) = (m.at.join("f"), m.at.join("m.pst"));
    // Not whole yet.
    for p in [&path, &pst] {
        assert!(fs::read(p).unwrap() == data);
    }
    assert_eq!(m.handle.passed_to_kernel(), 0);
    let reader = alone(&m, &path, root);
    let (before, given) = (m.handle.reads(), m.handle.passed_to_kernel());
    let mut bytes = vec![0; data.len()];
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == data);
    if root {
        assert_eq!(given, 1, "the kernel was given the file");
        assert_eq!(m.handle.reads(), before, "and asked us for nothing");
        // Who would write is refused, as for a running program; the reader goes on.
        let refused = OpenOptions::new().write(true).open(&path).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ExecutableFileBusy);
        // By name too.
        let cut = std::process::Command::new("perl")
            .args(["-e", "exit !truncate($ARGV[0], 10)"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(!cut.success());
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == data);
    }
    // A container is never handed out.
    assert!(fs::read(&pst).unwrap() == data);
    assert_eq!(m.handle.passed_to_kernel(), given);
    // A reader who comes besides is handed it too, and a writer who waits gets his turn.
    let more = File::open(&path).unwrap();
    drop(reader);
    let writer = std::thread::scope(|s| {
        let path = &path;
        let opening = s.spawn(move || OpenOptions::new().read(true).write(true).open(path));
        std::thread::sleep(Duration::from_millis(100));
        drop(more);
        opening.join().unwrap().unwrap()
    });
    let given = m.handle.passed_to_kernel();
    // While somebody may write, whoever opens it reads through us.
    let reader = File::open(&path).unwrap();
    assert_eq!(m.handle.passed_to_kernel(), given);
    writer.write_all_at(b"written", 5000).unwrap();
    reader.read_exact_at(&mut bytes[..7], 5000).unwrap();
    assert_eq!(bytes[..7], *b"written");
    drop((reader, writer));
    assert_eq!(fs::read(&path).unwrap()[5000..5007], *b"written");
    m.handle.unmount().unwrap();
}

/// Readers and writers at once: the kernel fails no open for the kinds of others, and nobody reads
/// anything but what was written.
#[test]
fn opens_of_all_kinds_never_fail_each_other() {
    if fuse_missing() {
        return;
    }
    for options in [MountOptions::default(), passing()] {
        let rig = Rig::new();
        rig.put("f", &[7; 8192]);
        let config = rig.config(State::Cached);
        let mut m = mounted(rig, config, &options);
        let path = m.at.join("f");
        fs::read(&path).unwrap();
        let root = rustix::process::geteuid().is_root();
        drop(alone(&m, &path, root && options.passthrough));
        std::thread::scope(|s| {
            // What waits for the cache file keeps it from being handed out.
            s.spawn(|| {
                for _ in 0..200 {
                    m.drive.checkpoint().unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            for t in 0..3u64 {
                let path = &path;
                let options = &options;
                s.spawn(move || {
                    let mut bytes = [0; 8192];
                    for i in 0..100 {
                        if (i + t) % 20 == 0 {
                            match OpenOptions::new().write(true).open(path) {
                                Ok(f) => f.write_all_at(&[7; 100], 50 * t).unwrap(),
                                Err(e) => {
                                    let busy = std::io::ErrorKind::ExecutableFileBusy;
                                    assert!(options.passthrough && e.kind() == busy, "{e}");
                                }
                            }
                        } else {
                            let f = File::open(path).unwrap();
                            f.read_exact_at(&mut bytes, 0).unwrap();
                            assert!(bytes == [7; 8192]);
                        }
                    }
                });
            }
        });
        let passed = m.handle.passed_to_kernel() > 0;
        assert_eq!(passed, root && options.passthrough);
        m.handle.unmount().unwrap();
    }
}

/// A program that is in the file's group only besides keeps its set-group-ID bit, as on a local disk;
/// one that is not loses it.
#[test]
fn set_group_id_stays_for_members_of_the_group() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    if fuse_missing() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        common::skip::skipped("root", "cannot act as other users");
        return;
    }
    let rig = Rig::new();
    for name in ["mine", "theirs"] {
        rig.put(name, b"x");
        let at = rig.share_file(name);
        chown(&at, Some(0), Some(4321)).unwrap();
        // Set-group-ID without execution by the group; anybody may write.
        fs::set_permissions(&at, fs::Permissions::from_mode(0o2666)).unwrap();
    }
    let open = |at: &std::path::Path| fs::set_permissions(at, fs::Permissions::from_mode(0o755));
    open(rig.tmp.path()).unwrap();
    let config = rig.config(State::Online);
    let options = MountOptions {
        allow_other: true,
        default_permissions: true,
        ..MountOptions::default()
    };
    let mut m = mounted(rig, config, &options);
    for (name, groups, mode) in [("mine", "4321,77", 0o2666), ("theirs", "77", 0o666)] {
        let at = m.at.join(name);
        let done = std::process::Command::new("setpriv")
            .args(["--reuid", "1234", "--regid", "1234", "--groups", groups])
            .args(["sh", "-c", "printf yy > \"$1\" && printf z >> \"$1\"", "sh"])
            .arg(&at)
            .status()
            .unwrap();
        assert!(done.success());
        assert_eq!(fs::read(&at).unwrap(), b"yyz");
        let there = fs::metadata(m.rig.share_file(name)).unwrap();
        assert_eq!(there.mode() & 0o7777, mode, "{name}");
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, mode, "{name}");
    }
    m.handle.unmount().unwrap();
}
