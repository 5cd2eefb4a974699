//! POSIX file system calls through the mount, judged by the same calls on the native file system.
//!
//! Beside the suite pjdfstest (`pjdfstest.rs`), cases of this project's own, with extended attributes and
//! what becomes of it all on the share: open, mkdir, rmdir, unlink, rename, link, symlink and
//! readlink, chmod, chown and lchown, truncate and ftruncate, utimensat, mkfifo and mknod,
//! fallocate, extended attributes; for each of them what is made (type, mode, owner, size, link
//! count), which times change and which do not, and the errors ENOENT, ENOTDIR, EISDIR, EEXIST,
//! ENOTEMPTY, ENAMETOOLONG, ELOOP, EINVAL, EACCES and EPERM (other users under
//! `default_permissions`, sticky directories, set-ID bits). One script per call in `tests/pjd/`;
//! every script runs natively, and through the mount online, cached and offline; after the offline
//! run everything is brought to the share, which must then look as the drive does.
//!
//! Needs root: the cases act as several users.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;
#[path = "pjd/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Rig, fuse_missing, skip};
use vfs::fuse::{MountOptions, mount};
use vfs::{ReintegratedOutcome, State};

const SCRIPTS: [(&str, &str); 14] = [
    ("open", include_str!("pjd/open.txt")),
    ("mkdir", include_str!("pjd/mkdir.txt")),
    ("rmdir", include_str!("pjd/rmdir.txt")),
    ("unlink", include_str!("pjd/unlink.txt")),
    ("rename", include_str!("pjd/rename.txt")),
    ("link", include_str!("pjd/link.txt")),
    ("symlink", include_str!("pjd/symlink.txt")),
    ("chmod", include_str!("pjd/chmod.txt")),
    ("chown", include_str!("pjd/chown.txt")),
    ("truncate", include_str!("pjd/truncate.txt")),
    ("ftruncate", include_str!("pjd/ftruncate.txt")),
    ("utimensat", include_str!("pjd/utimensat.txt")),
    ("mknod", include_str!("pjd/mknod.txt")),
    ("xattr", include_str!("pjd/xattr.txt")),
];

/// Lets other users pass.
fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Names below a directory with what a program can see of them.
fn seen(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, out: &mut BTreeMap<String, String>) {
        for e in std::fs::read_dir(dir).unwrap() {
            let path = e.unwrap().path();
            let m = std::fs::symlink_metadata(&path).unwrap();
            let content = if m.is_file() {
                format!("{:?}", std::fs::read(&path).unwrap())
            } else if m.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else {
                String::new()
            };
            let names = if m.is_dir() { 1 } else { m.nlink() };
            let (mode, uid, gid) = (m.mode(), m.uid(), m.gid());
            let shown = format!("{mode:o} {uid}:{gid} {names} names {content}");
            let name = path.strip_prefix(root).unwrap().display().to_string();
            out.insert(name, shown);
            if m.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

/// All scripts in one state; the number of calls compared.
fn compare(state: State) -> usize {
    let native = tempfile::tempdir().unwrap();
    open_to_all(native.path());
    let rig = Rig::new();
    open_to_all(rig.tmp.path());
    let mut config = rig.config(State::Online);
    config.attr_life = std::time::Duration::from_secs(1);
    let drive = vfs::Drive::open(config).unwrap();
    let at = rig.tmp.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    let options = MountOptions {
        allow_other: true,
        default_permissions: true,
        ..MountOptions::default()
    };
    let mut handle = mount(drive.clone(), &at, &options).unwrap();
    let top = at.join("cases");
    std::fs::create_dir(&top).unwrap();
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 1);
    drive.set_state(state);
    let (mut calls, mut wrong) = (0, Vec::new());
    for (name, script) in SCRIPTS {
        let run_at = |root: &Path| {
            let dir = root.join(name);
            std::fs::create_dir(&dir).unwrap();
            open_to_all(&dir);
            run::run(script, &dir)
        };
        let (want, got) = (run_at(native.path()), run_at(&top));
        assert_eq!(want.len(), got.len());
        for (w, g) in want.iter().zip(&got) {
            calls += 1;
            let expected = w.own.as_ref().unwrap_or(&w.said);
            if *expected != g.said {
                let (case, line) = (&g.case, &g.line);
                wrong.push(format!(
                    "{name}: {case}: `{line}`: {expected} natively, {} here",
                    g.said
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{state:?}: {} of {calls} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let here = seen(&at);
    drive.set_state(State::Online);
    for r in drive.reintegrate("today", "here").unwrap() {
        assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
    }
    for path in drive.status().dirty_opaque {
        drive.push_opaque(&path, "today", "here").unwrap();
    }
    let there = seen(&rig.share_file(""));
    for name in here.keys().chain(there.keys()) {
        assert_eq!(
            here.get(name),
            there.get(name),
            "{state:?}: {name} on the share"
        );
    }
    assert!(there.len() > 100, "only {} names compared", there.len());
    handle.unmount().unwrap();
    calls
}

fn all_in(state: State) {
    if fuse_missing() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip::skipped("root", "the cases act as several users");
    }
    println!("{} calls compared, {state:?}", compare(state));
}

#[test]
fn as_natively_online() {
    all_in(State::Online);
}

#[test]
fn as_natively_cached() {
    all_in(State::Cached);
}

#[test]
fn as_natively_offline() {
    all_in(State::Offline);
}
