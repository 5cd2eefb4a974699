//! Byte-range locks over SMB: two drives on one share, other clients, flips, lost connections, and
//! programs that wait.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::OpenOptions;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::smbd::{Options, Smbd};
use common::{Rig, fuse_missing, open_rw, pattern};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::process::{Pid, Signal, kill_process};
use vfs::fuse::{MountOptions, mount};
use vfs::{Drive, LockOwner, Share, State};

const WHAT: &str = "VFS_TEST_PART";

/// A drive on the server's share, as another computer would have it.
struct Client {
    rig: Rig,
    drive: Arc<Drive>,
}

fn client(server: &Smbd) -> Client {
    let rig = Rig::bare();
    let mut config = rig.config(State::Online);
    config.share = Arc::new(server.share());
    let drive = Drive::open(config).unwrap();
    drive.fill().unwrap();
    Client { rig, drive }
}

fn served() -> Option<(tempfile::TempDir, Smbd)> {
    let tmp = tempfile::tempdir().unwrap();
    for name in ["m.db", "n.db"] {
        std::fs::write(tmp.path().join(name), pattern(10_000, 7)).unwrap();
    }
    let server = Smbd::start(tmp.path(), Options::default())?;
    Some((tmp, server))
}

fn owner(id: u64) -> LockOwner {
    LockOwner { id, pid: 1 }
}

#[test]
fn two_drives_and_others_see_each_others_locks() {
    let Some((_tmp, server)) = served() else {
        return;
    };
    let (one, two) = (client(&server), client(&server));
    let (a, b) = (open_rw(&one.drive, "m.db"), open_rw(&two.drive, "m.db"));
    let lock = |d: &Client, h, who, range, x| d.drive.lock_range(h, owner(who), range, x).unwrap();
    assert!(lock(&one, a, 1, 0..100, true));
    assert!(
        !lock(&two, b, 1, 50..60, false),
        "numbers of owners are each drive's own"
    );
    assert!(!lock(&two, b, 1, 99..200, true) && lock(&two, b, 1, 100..200, true));
    assert!(
        !lock(&one, a, 1, 0..101, true),
        "refused, and nothing is lost by it"
    );
    assert!(!lock(&two, b, 2, 0..1, true));
    // Shared: both, and none becomes exclusive until the other is gone.
    assert!(lock(&one, a, 1, 0..100, false) && lock(&two, b, 1, 0..100, false));
    assert!(!lock(&one, a, 1, 0..100, true));
    two.drive.unlock_range(b, owner(1), 0..100).unwrap();
    assert!(lock(&one, a, 1, 0..100, true));
    // A client that knows nothing of drives: reads and writes of what is locked are refused to it, and
    // its locks are respected here.
    let share = server.share();
    let other = share.open("m.db", true).unwrap();
    let e = other.write_all_at(10, b"theirs").unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::ResourceBusy, "{e}");
    assert!(e.to_string().contains("uses the file"), "{e}");
    assert!(!other.lock(0..1, false).unwrap());
    assert!(other.lock(5000..5001, true).unwrap());
    assert!(!lock(&one, a, 3, 4000..6000, false));
    let e = one.drive.write(a, 4999, b"ours").unwrap_err();
    assert!(matches!(e, vfs::Error::Busy(_)), "{e}");
    drop(other);
    one.drive.write(a, 4999, b"ours").unwrap();
    assert!(lock(&one, a, 3, 4000..6000, false));
    // The owner's locks end with a close of his, the handle's with the handle.
    one.drive.unlock_all(a, 1).unwrap();
    assert!(lock(&two, b, 1, 0..100, true) && !lock(&two, b, 1, 5000..5001, true));
    one.drive.release(a).unwrap();
    assert!(lock(&two, b, 1, 5000..5001, true));
}

#[test]
fn a_reader_that_becomes_a_writer_keeps_its_locks() {
    let Some((_tmp, server)) = served() else {
        return;
    };
    let one = client(&server);
    let node = one.drive.find("m.db").unwrap();
    let reader = one.drive.open_file(node, true, false).unwrap().handle;
    assert!(
        one.drive
            .lock_range(reader, owner(1), 0..10, false)
            .unwrap()
    );
    let writer = open_rw(&one.drive, "m.db");
    let share = server.share();
    let other = share.open("m.db", true).unwrap();
    assert!(!other.lock(0..10, true).unwrap() && other.lock(0..10, false).unwrap());
    other.unlock(0..10).unwrap();
    assert!(one.drive.lock_range(writer, owner(1), 0..10, true).unwrap());
    assert!(!other.lock(0..10, false).unwrap());
    one.drive.release(writer).unwrap();
    one.drive.release(reader).unwrap();
    assert!(other.lock(0..10, true).unwrap());
}

#[test]
fn a_flip_gives_the_locks_up_there_and_keeps_them_here() {
    let Some((_tmp, server)) = served() else {
        return;
    };
    let one = client(&server);
    one.drive.fill_file("m.db").unwrap();
    let h = open_rw(&one.drive, "m.db");
    assert!(one.drive.lock_range(h, owner(1), 0..10, true).unwrap());
    let share = server.share();
    let other = share.open("m.db", true).unwrap();
    assert!(!other.lock(0..10, true).unwrap());
    one.drive.set_state(State::Cached);
    assert!(!one.drive.file_status("m.db").unwrap().passed_through);
    // The handle is closed beside the call.
    let end = Instant::now() + Duration::from_secs(20);
    while !other.lock(0..10, true).unwrap() {
        assert!(Instant::now() < end, "the share's lock is still held");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!one.drive.lock_range(h, owner(2), 0..10, false).unwrap());
    assert!(one.drive.lock_range(h, owner(2), 10..20, true).unwrap());
}

#[test]
fn locks_outlive_a_lost_connection_or_the_handle_does_not() {
    let Some((_tmp, mut server)) = served() else {
        return;
    };
    let (share, other) = (server.share(), server.share());
    let files = ["m.db", "n.db"].map(|n| {
        let f = share.open(n, true).unwrap();
        f.stamp().unwrap();
        assert!(f.lock(0..10, true).unwrap());
        f
    });
    server.kill();
    assert!(files[0].read_at(0, &mut [0; 4]).is_err());
    assert!(server.run());
    // Another computer is faster with one of them.
    let end = Instant::now() + Duration::from_secs(60);
    let theirs = loop {
        match other.open("n.db", true) {
            Ok(f) => break f,
            Err(e) if Instant::now() > end => panic!("{e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert!(theirs.lock(5..6, false).unwrap());
    while let Err(e) = share.stat("m.db") {
        assert!(Instant::now() < end, "{e}");
        std::thread::sleep(Duration::from_millis(50));
    }
    files[0].read_at(0, &mut [0; 4]).unwrap();
    let m = other.open("m.db", true).unwrap();
    assert!(!m.lock(0..10, false).unwrap(), "locked again");
    let e = files[1].read_at(0, &mut [0; 4]).unwrap_err();
    assert!(e.to_string().contains("others hold a lock"), "{e}");
    files[0].unlock(0..10).unwrap();
    assert!(m.lock(0..10, false).unwrap());
}

/// Waits for a lock on the file that it is told of, writes "got" beside it, and goes.
#[test]
fn part_of_waiting() {
    let Ok(path) = std::env::var(WHAT) else {
        return;
    };
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    fcntl_lock(&f, FlockOperation::LockExclusive).unwrap();
    println!("got");
    std::process::exit(0);
}

fn waiter(path: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "part_of_waiting", "--nocapture"])
        .env(WHAT, path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn ends(child: &mut Child) -> std::process::ExitStatus {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "still waits");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn programs_on_two_mounted_drives_wait_for_each_other() {
    if fuse_missing() {
        return;
    }
    let Some((_tmp, server)) = served() else {
        return;
    };
    let (one, two) = (client(&server), client(&server));
    let mounted = |c: &Client| {
        let at = c.rig.tmp.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let handle = mount(c.drive.clone(), &at, &MountOptions::default()).unwrap();
        (handle, at.to_str().unwrap().to_owned())
    };
    let ((mut first, here), (mut second, there)) = (mounted(&one), mounted(&two));
    let open = |at: &str| {
        let mut o = OpenOptions::new();
        o.read(true).write(true).open(format!("{at}/m.db")).unwrap()
    };
    let (a, b) = (open(&here), open(&there));
    fcntl_lock(&a, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = fcntl_lock(&b, FlockOperation::NonBlockingLockShared);
    assert_eq!(refused, Err(rustix::io::Errno::AGAIN));
    // Beside them, one of the other kind: that stays on its machine.
    flock(&a, FlockOperation::NonBlockingLockExclusive).unwrap();
    flock(&b, FlockOperation::NonBlockingLockExclusive).unwrap();
    // One waits on the other drive, one here; one that is killed meanwhile goes at once.
    let mut far = waiter(&format!("{there}/m.db"));
    let mut near = waiter(&format!("{here}/m.db"));
    let mut killed = waiter(&format!("{there}/m.db"));
    std::thread::sleep(Duration::from_millis(600));
    assert!(far.try_wait().unwrap().is_none() && near.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&killed), Signal::TERM).unwrap();
    assert!(!ends(&mut killed).success());
    assert!(far.try_wait().unwrap().is_none() && near.try_wait().unwrap().is_none());
    fcntl_lock(&a, FlockOperation::Unlock).unwrap();
    assert!(ends(&mut far).success() && ends(&mut near).success());
    // Closing any of a program's descriptors ends its locks.
    fcntl_lock(&b, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(fcntl_lock(&a, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(open(&there));
    fcntl_lock(&a, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop((a, b));
    first.unmount().unwrap();
    second.unmount().unwrap();
}
