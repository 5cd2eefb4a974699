//! What an SMB server tells of changes, and what a drive makes of it.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::smbd::{Options, Smbd};
use common::{Rig, open_rw, pattern, read_all};
use vfs::{Drive, Share, State};

fn soon(what: &str, mut seen: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !seen() {
        assert!(Instant::now() < end, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A drive that by itself would not ask again within an hour.
fn drive_on(rig: &Rig, server: &Smbd) -> Arc<Drive> {
    let mut config = rig.config(State::Online);
    config.share = Arc::new(server.share());
    config.attr_life = Duration::from_secs(3600);
    config.background = true;
    Drive::open(config).unwrap()
}

#[test]
fn what_another_client_changes_is_seen_without_asking() {
    let tmp = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tmp.path().join("dir/sub")).unwrap();
    for name in ["open.pst", "dir/sub/closed.pst"] {
        std::fs::write(tmp.path().join(name), pattern(5000, 1)).unwrap();
    }
    let Some(mut server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let rig = Rig::bare();
    let drive = drive_on(&rig, &server);
    soon("told", || drive.is_told());
    let others = server.share();
    let sub = drive.find("dir/sub").unwrap();
    let names = || {
        let entries = drive.readdir(sub).unwrap();
        let mut names: Vec<_> = entries.into_iter().map(|e| e.name).collect();
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    };
    let size = |path: &str| drive.getattr(drive.find(path).unwrap()).unwrap().attr.size;
    assert_eq!(names(), ["closed.pst"]);
    assert_eq!(size("dir/sub/closed.pst"), 5000);
    let h = open_rw(&drive, "open.pst");
    assert_eq!(drive.read(h, 0, 4).unwrap(), pattern(5000, 1)[..4]);
    // Made, changed, renamed, removed; open here, and not.
    others.create("dir/sub/new.txt", 0o600).unwrap();
    soon("a new file", || names() == ["closed.pst", "new.txt"]);
    let file = others.open("dir/sub/closed.pst", true).unwrap();
    file.write_all_at(5000, b"longer").unwrap();
    drop(file);
    soon("a longer file", || size("dir/sub/closed.pst") == 5006);
    others
        .rename("dir/sub/new.txt", "dir/sub/old.txt", false)
        .unwrap();
    soon("a new name", || names() == ["closed.pst", "old.txt"]);
    others.unlink("dir/sub/old.txt").unwrap();
    soon("a file that went", || names() == ["closed.pst"]);
    let (told, heard) = std::sync::mpsc::channel();
    drive.on_change(Some(Box::new(move |node| {
        let _ = told.send(node);
    })));
    let file = others.open("open.pst", true).unwrap();
    file.write_all_at(0, b"theirs").unwrap();
    file.sync().unwrap();
    drop(file);
    let node = heard.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(node, drive.find("open.pst").unwrap());
    assert_eq!(drive.read(h, 0, 6).unwrap(), b"theirs");
    drive.release(h).unwrap();

    // A server that was away tells again; what it did not tell of is asked about.
    assert_eq!(names(), ["closed.pst"]);
    server.kill();
    soon("the loss", || !drive.is_told());
    std::fs::write(tmp.path().join("dir/sub/meanwhile.txt"), b"x").unwrap();
    assert!(server.run());
    soon("told again", || drive.is_told());
    soon("what came meanwhile", || {
        names() == ["closed.pst", "meanwhile.txt"]
    });
    assert_eq!(read_all(&drive, "dir/sub/meanwhile.txt").unwrap(), b"x");
    // Nobody listens where the share is not used.
    drive.set_state(State::Cached);
    soon("no more", || !drive.is_told());
}

#[test]
fn a_server_without_notification_is_asked() {
    let tmp = tempfile::tempdir().unwrap();
    let options = Options {
        share: "change notify = no\nkernel change notify = no",
        global: "change notify = no",
        ..Options::default()
    };
    let Some(server) = Smbd::start(tmp.path(), options) else {
        return;
    };
    let rig = Rig::bare();
    let mut config = rig.config(State::Online);
    config.share = Arc::new(server.share());
    config.attr_life = Duration::from_millis(500);
    config.background = true;
    let drive = Drive::open(config).unwrap();
    let others = server.share();
    for name in ["one", "two"] {
        assert!(drive.find(name).is_err());
        others.create(name, 0o600).unwrap();
        soon(name, || drive.find(name).is_ok());
    }
}

#[test]
fn more_changes_than_can_be_told_are_any_change() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(server) = Smbd::start(tmp.path(), Options::default()) else {
        return;
    };
    let share = server.share();
    let mut changes = share.changes().unwrap();
    let others = server.share();
    // The names of some thousand files do not fit into one answer, nor into what is kept.
    for n in 0..2500 {
        others
            .create(&format!("{n:04}-{}", "x".repeat(40)), 0o600)
            .unwrap();
        if n % 2 == 0 {
            others
                .unlink(&format!("{n:04}-{}", "x".repeat(40)))
                .unwrap();
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    soon("all of them, or that it was too much", || {
        match changes.heard().unwrap() {
            vfs::share::Changed::Anything => true,
            vfs::share::Changed::These(paths) => {
                seen.extend(paths);
                seen.len() == 2500
            }
        }
    });
    drop(changes);
    // The session goes on without it.
    share.create("after", 0o600).unwrap();
}
