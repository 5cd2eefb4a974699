//! The drive's tree against the native file system: the same random changes of names, attributes
//! and small contents go to both, while the state changes, share calls fail before or after they
//! took effect, the drive is killed, and what waits is brought to the share now and then. After each
//! step both look the same; in the end the share does too.
//!
//! `VFS_TREE_CASES` sets the number of sequences (100 by default, of up to 60 steps).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::Rig;
use proptest::prelude::*;
use vfs::share::fault::Fault;
use vfs::{Drive, Kind, ROOT, ReintegratedOutcome, SetAttr, State};

/// Up to three names deep; links have names of their own, so that no path leads through one.
const PATHS: [&str; 14] = [
    "a", "b", "c", "a/a", "a/b", "b/a", "b/c", "a/b/a", "a/b/c", "b/a/a", "c/c/c", "c/c", "l",
    "a/l",
];

#[derive(Debug, Clone)]
enum Op {
    Mkdir(usize, u32),
    Put(usize, u8, usize),
    Append(usize, u8, usize),
    Cut(usize, u64),
    Link(usize, usize),
    Remove(usize),
    Rename(usize, usize, bool),
    Chmod(usize, u32),
    Mtime(usize, i64),
    State(State),
    Fault(u64, bool),
    Heal,
    Kill,
    Checkpoint,
    Reintegrate,
}

fn op() -> impl Strategy<Value = Op> {
    let path = 0..PATHS.len();
    let mode = prop_oneof![Just(0o755), Just(0o700), Just(0o750), Just(0o711)];
    prop_oneof![
        4 => (path.clone(), mode.clone()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        6 => (path.clone(), any::<u8>(), 0usize..400).prop_map(|(p, s, n)| Op::Put(p, s, n)),
        2 => (path.clone(), any::<u8>(), 1usize..400).prop_map(|(p, s, n)| Op::Append(p, s, n)),
        1 => (path.clone(), 0u64..500).prop_map(|(p, n)| Op::Cut(p, n)),
        2 => (12..14usize, 0..12usize).prop_map(|(p, t)| Op::Link(p, t)),
        5 => path.clone().prop_map(Op::Remove),
        10 => (path.clone(), path.clone(), any::<bool>()).prop_map(|(a, b, r)| Op::Rename(a, b, r)),
        2 => (path.clone(), mode).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path, 1i64..1_000_000).prop_map(|(p, t)| Op::Mtime(p, t)),
        4 => prop_oneof![Just(State::Online), Just(State::Cached), Just(State::Offline)]
            .prop_map(Op::State),
        3 => (1u64..6, any::<bool>()).prop_map(|(n, after)| Op::Fault(n, after)),
        1 => Just(Op::Heal),
        2 => Just(Op::Kill),
        1 => Just(Op::Checkpoint),
        2 => Just(Op::Reintegrate),
    ]
}

struct World {
    rig: Rig,
    native: PathBuf,
    drive: Option<Arc<Drive>>,
}

/// A name's kind, mode, and content or target. Times only where they were set.
type Seen = BTreeMap<String, (Kind, u32, Vec<u8>, Option<i64>)>;

fn set_time(ns: i64) -> Option<i64> {
    (ns < 1_000_000_000_000_000).then_some(ns)
}

fn seen_native(root: &Path, below: &str, out: &mut Seen) {
    for e in fs::read_dir(root.join(below)).unwrap() {
        let e = e.unwrap();
        let path = vfs::path::join(below, e.file_name().to_str().unwrap());
        let m = fs::symlink_metadata(e.path()).unwrap();
        let mode = m.mode() & 0o7777;
        let time = set_time(m.mtime() * 1_000_000_000 + m.mtime_nsec());
        if m.is_dir() {
            // Its time is that of the last change in it, once there is one.
            out.insert(path.clone(), (Kind::Dir, mode, Vec::new(), None));
            seen_native(root, &path, out);
        } else if m.is_symlink() {
            let to = fs::read_link(e.path()).unwrap().into_os_string();
            out.insert(path, (Kind::Symlink, mode, to.into_encoded_bytes(), None));
        } else {
            let data = fs::read(e.path()).unwrap();
            out.insert(path, (Kind::File, mode, data, time));
        }
    }
}

impl World {
    fn new() -> Self {
        let rig = Rig::new();
        let native = rig.tmp.path().join("native");
        for root in [rig.share_file(""), native.clone()] {
            fs::create_dir_all(root.join("a/b")).unwrap();
            fs::write(root.join("a/a"), b"first").unwrap();
            fs::write(root.join("c"), b"second").unwrap();
            for (path, mode) in [("a", 0o755), ("a/b", 0o755), ("a/a", 0o644), ("c", 0o644)] {
                let mode = fs::Permissions::from_mode(mode);
                fs::set_permissions(root.join(path), mode).unwrap();
            }
        }
        let mut w = Self {
            rig,
            native,
            drive: None,
        };
        w.start(State::Online);
        w.d().fill().unwrap();
        for dir in ["", "a", "a/b"] {
            w.d().readdir(w.d().find(dir).unwrap()).unwrap();
        }
        w.d().checkpoint().unwrap();
        w
    }

    fn start(&mut self, state: State) {
        let mut c = self.rig.config(state);
        c.segment_len = 8 << 10;
        // Every file is to be whole in the cache.
        c.containers = vec!["**".to_owned()];
        self.drive = Some(Drive::open(c).unwrap());
    }

    fn d(&self) -> &Drive {
        self.drive.as_deref().unwrap()
    }

    /// The directory and the name that a path means.
    fn at<'a>(&self, path: &'a str) -> vfs::Result<(u64, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.d().find(dir)?, name))
    }

    fn put(&self, path: &str, data: &[u8], append: bool) -> vfs::Result<()> {
        let d = self.d();
        let (dir, name) = self.at(path)?;
        let opened = match d.lookup(dir, name) {
            Ok(n) => d.open_file(n.id, true, true)?,
            Err(vfs::Error::NotFound(_)) if !append => d.create(dir, name, 0o644, None)?.1,
            Err(e) => return Err(e),
        };
        let size = d.getattr(d.lookup(dir, name)?.id)?.attr.size;
        let done = if append {
            d.write(opened.handle, size, data)
        } else {
            d.truncate_handle(opened.handle, 0)
                .and_then(|()| d.write(opened.handle, 0, data))
        };
        d.release(opened.handle)?;
        done
    }

    /// The change on both sides; whether each says that it was made.
    fn change(&self, op: &Op) -> Option<(vfs::Result<()>, std::io::Result<()>)> {
        let d = self.d();
        let bytes = |seed: u8, n: usize| vec![seed; n];
        let native = |p: usize| self.native.join(PATHS[p]);
        let node = |p: usize| {
            let (dir, name) = self.at(PATHS[p])?;
            d.lookup(dir, name)
        };
        Some(match op {
            Op::Mkdir(p, mode) if *p < 12 => {
                let made = self
                    .at(PATHS[*p])
                    .and_then(|(dir, name)| d.mkdir(dir, name, *mode, None).map(|_| ()));
                let there = fs::create_dir(native(*p)).and_then(|()| {
                    fs::set_permissions(native(*p), fs::Permissions::from_mode(*mode))
                });
                (made, there)
            }
            Op::Put(p, seed, n) if *p < 12 => {
                let was = native(*p).exists();
                let there = fs::write(native(*p), bytes(*seed, *n));
                if there.is_ok() && !was {
                    let mode = fs::Permissions::from_mode(0o644);
                    fs::set_permissions(native(*p), mode).unwrap();
                }
                (self.put(PATHS[*p], &bytes(*seed, *n), false), there)
            }
            Op::Append(p, seed, n) if *p < 12 => {
                let there = fs::OpenOptions::new()
                    .append(true)
                    .open(native(*p))
                    .and_then(|mut f| std::io::Write::write_all(&mut f, &bytes(*seed, *n)));
                (self.put(PATHS[*p], &bytes(*seed, *n), true), there)
            }
            Op::Cut(p, size) if *p < 12 => {
                let there = fs::OpenOptions::new()
                    .write(true)
                    .open(native(*p))
                    .and_then(|f| f.set_len(*size));
                (node(*p).and_then(|n| d.truncate(n.id, *size)), there)
            }
            Op::Link(p, t) => {
                let made = self
                    .at(PATHS[*p])
                    .and_then(|(dir, name)| d.symlink(dir, name, PATHS[*t], None).map(|_| ()));
                let there = std::os::unix::fs::symlink(PATHS[*t], native(*p));
                (made, there)
            }
            Op::Remove(p) => {
                let is_dir = fs::symlink_metadata(native(*p)).is_ok_and(|m| m.is_dir());
                let there = if is_dir {
                    fs::remove_dir(native(*p))
                } else {
                    fs::remove_file(native(*p))
                };
                let gone = self.at(PATHS[*p]).and_then(|(dir, name)| {
                    if is_dir {
                        d.rmdir(dir, name)
                    } else {
                        d.unlink(dir, name)
                    }
                });
                (gone, there)
            }
            // Links keep to names of their own.
            Op::Rename(a, b, replace) if (*a < 12) == (*b < 12) => {
                let how = if *replace {
                    rustix::fs::RenameFlags::empty()
                } else {
                    rustix::fs::RenameFlags::NOREPLACE
                };
                // To its own name: nothing, natively; asked not to replace, that it exists.
                if a == b {
                    return None;
                }
                let (from, to) = (native(*a), native(*b));
                let cwd = rustix::fs::CWD;
                let there = rustix::fs::renameat_with(cwd, from, cwd, to, how);
                let moved = self.at(PATHS[*a]).and_then(|(dir, name)| {
                    let (into, new) = self.at(PATHS[*b])?;
                    d.rename(dir, name, into, new, *replace)
                });
                (moved, there.map_err(Into::into))
            }
            Op::Chmod(p, mode) if *p < 12 => {
                let set = SetAttr {
                    mode: Some(*mode),
                    ..SetAttr::default()
                };
                let there = fs::set_permissions(native(*p), fs::Permissions::from_mode(*mode));
                (
                    node(*p).and_then(|n| d.set_attr(n.id, &set).map(|_| ())),
                    there,
                )
            }
            Op::Mtime(p, time) if *p < 12 => {
                let set = SetAttr {
                    mtime: Some(*time * 1000),
                    ..SetAttr::default()
                };
                let at = std::time::UNIX_EPOCH
                    + std::time::Duration::from_nanos(u64::try_from(*time).unwrap() * 1000);
                let there = fs::File::open(native(*p)).and_then(|f| f.set_modified(at));
                (
                    node(*p).and_then(|n| d.set_attr(n.id, &set).map(|_| ())),
                    there,
                )
            }
            _ => return None,
        })
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::State(s) => self.d().set_state(*s),
            Op::Fault(n, after) => self.rig.faults.at(
                *n,
                if *after {
                    Fault::FailAfter(ErrorKind::ConnectionReset)
                } else {
                    Fault::Fail(ErrorKind::TimedOut)
                },
            ),
            Op::Heal => self.rig.faults.heal(),
            Op::Kill => {
                let state = self.d().state();
                self.drive = None;
                self.start(state);
            }
            Op::Checkpoint => self.d().checkpoint().unwrap(),
            Op::Reintegrate => {
                if self.d().state() == State::Online
                    && let Ok(report) = self.d().reintegrate("D", "H")
                {
                    for r in report {
                        assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
                    }
                }
            }
            change => {
                if let Some((here, there)) = self.change(change) {
                    assert_eq!(
                        here.is_ok(),
                        there.is_ok(),
                        "{change:?}: {here:?} here, {there:?} natively"
                    );
                }
            }
        }
    }

    fn seen_here(&self, dir: u64, below: &str, out: &mut Seen) {
        let d = self.d();
        for e in d.readdir(dir).unwrap() {
            let path = vfs::path::join(below, &e.name);
            let attr = d.getattr(e.id).unwrap().attr;
            assert_eq!(attr.kind, e.kind, "{path}");
            let mut time = None;
            let data = match e.kind {
                Kind::Dir => Vec::new(),
                Kind::Symlink => d.readlink(e.id).unwrap().into_bytes(),
                Kind::File => {
                    time = set_time(attr.mtime);
                    let data = common::read_all(d, &path).unwrap();
                    assert_eq!(data.len() as u64, attr.size, "{path}");
                    data
                }
            };
            out.insert(path.clone(), (e.kind, attr.mode, data, time));
            if e.kind == Kind::Dir {
                self.seen_here(e.id, &path, out);
            }
        }
    }

    fn check(&self) {
        let (mut here, mut there) = (Seen::new(), Seen::new());
        self.seen_here(ROOT, "", &mut here);
        seen_native(&self.native, "", &mut there);
        assert_eq!(here, there);
    }

    fn finish(mut self) {
        self.rig.faults.heal();
        self.drive = None;
        self.start(State::Online);
        for r in self.d().reintegrate("D", "H").unwrap() {
            assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
        }
        let mut all = Seen::new();
        seen_native(&self.native, "", &mut all);
        for (path, _) in all.iter().filter(|(_, s)| s.0 == Kind::File) {
            let pushed = self.d().push_opaque(path, "D", "H").unwrap();
            assert!(
                !matches!(pushed, vfs::PushOutcome::Conflict(_)),
                "{path}: {pushed:?}"
            );
        }
        self.check();
        let mut share = Seen::new();
        seen_native(&self.rig.share_file(""), "", &mut share);
        assert_eq!(share, all, "the share");
        assert_eq!(self.d().status().unsynced_bytes, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("VFS_TREE_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(100),
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn the_tree_is_as_natively(ops in prop::collection::vec(op(), 1..60)) {
        let mut w = World::new();
        for op in &ops {
            w.run(op);
            w.check();
        }
        w.finish();
    }
}
