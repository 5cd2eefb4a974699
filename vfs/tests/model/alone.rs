//! Nobody else changes the share: what the drive answers and shows is what the native file system
//! does. Where files are not all here whole, a call may be refused for the share's sake, never answered
//! otherwise.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, XattrFlags};
use vfs::{
    Error, Kind, PushOutcome, ROOT, ReintegratedOutcome, SetAttr, Snapshot, State, XattrMode,
};

use super::common::pattern;
use super::op::{HANDLES, LINKS, Op, PATHS};
use super::rig::Rig;

struct Open {
    handle: u64,
    native: File,
}

struct World {
    rig: Rig,
    native: PathBuf,
    open: Vec<Open>,
    snaps: Vec<(Snapshot, Vec<u8>)>,
}

/// What a name is: kind and how many names (of a directory: 0), mode, content or target, time where it was
/// set, attributes.
type Name = (
    (Kind, u64),
    u32,
    Vec<u8>,
    Option<i64>,
    BTreeMap<String, Vec<u8>>,
);

/// All names.
type Seen = BTreeMap<String, Name>;

fn set_time(ns: i64) -> Option<i64> {
    (ns < 1_000_000_000_000_000).then_some(ns)
}

fn native_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in ["user.0", "user.1", "user.2"] {
        let mut buf = [0; 64];
        if let Ok(n) = rustix::fs::lgetxattr(path, name, &mut buf[..]) {
            all.insert(name.to_owned(), buf[..n].to_vec());
        }
    }
    all
}

fn native_seen(root: &Path, below: &str, out: &mut Seen) {
    for e in fs::read_dir(root.join(below)).unwrap() {
        let e = e.unwrap();
        let path = vfs::path::join(below, e.file_name().to_str().unwrap());
        let m = fs::symlink_metadata(e.path()).unwrap();
        let mode = m.mode() & 0o7777;
        let xattrs = native_xattrs(&e.path());
        if m.is_dir() {
            // Its time is that of the last change in it, once there is one.
            out.insert(
                path.clone(),
                ((Kind::Dir, 0), mode, Vec::new(), None, xattrs),
            );
            native_seen(root, &path, out);
        } else if m.is_symlink() {
            let to = fs::read_link(e.path()).unwrap().into_os_string();
            out.insert(
                path,
                (
                    (Kind::Symlink, 1),
                    mode,
                    to.into_encoded_bytes(),
                    None,
                    xattrs,
                ),
            );
        } else {
            let time = set_time(m.mtime() * 1_000_000_000 + m.mtime_nsec());
            let data = fs::read(e.path()).unwrap();
            out.insert(path, ((Kind::File, m.nlink()), mode, data, time, xattrs));
        }
    }
}

/// Both answers to one call.
type Both<'a> = (
    vfs::Result<()>,
    Box<dyn FnOnce() -> std::io::Result<()> + 'a>,
);

impl World {
    fn new(seed: u64) -> Self {
        let rig = Rig::new(seed);
        let native = rig.tmp.path().join("native");
        for root in [rig.share(""), native.clone()] {
            fs::create_dir_all(root.join("a/b")).unwrap();
            for (path, len) in [
                ("a/a", 300),
                ("b.pst", 7000),
                ("c", 4000),
                ("a/b/a.pst", 2500),
            ] {
                fs::write(root.join(path), pattern(len, len as u8)).unwrap();
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o644)).unwrap();
            }
            for path in ["a", "a/b"] {
                fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        let mut w = Self {
            rig,
            native,
            open: Vec::new(),
            snaps: Vec::new(),
        };
        w.rig.start(State::Online);
        w.rig.d().fill().unwrap();
        w.rig.d().checkpoint().unwrap();
        w
    }

    fn at<'a>(&self, path: &'a str) -> vfs::Result<(u64, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.rig.d().find(dir)?, name))
    }

    fn node(&self, p: usize) -> vfs::Result<u64> {
        let (dir, name) = self.at(PATHS[p])?;
        Ok(self.rig.d().lookup(dir, name)?.id)
    }

    fn there(&self, p: usize) -> PathBuf {
        self.native.join(PATHS[p])
    }

    /// Does it here, then natively (unless refused for the share's sake), and compares.
    fn both(&self, op: &Op, (here, there): Both<'_>) -> bool {
        if here.as_ref().is_err_and(|e| self.rig.excused(e)) {
            return false;
        }
        let there = there();
        assert_eq!(
            here.is_ok(),
            there.is_ok(),
            "{op:?}: {here:?} here, {there:?} natively"
        );
        here.is_ok()
    }

    fn opened(&mut self, op: &Op, p: usize, create: bool) {
        let d = self.rig.d();
        let here = self.at(PATHS[p]).and_then(|(dir, name)| {
            if create {
                Ok(d.create(dir, name, 0o644, None)?.1.handle)
            } else {
                Ok(d.open_file(d.lookup(dir, name)?.id, true, true)?.handle)
            }
        });
        if here.as_ref().is_err_and(|e| self.rig.excused(e)) {
            return;
        }
        let there = File::options()
            .read(true)
            .write(true)
            .create_new(create)
            .open(self.there(p));
        match (here, there) {
            (Ok(handle), Ok(native)) => {
                if create {
                    native
                        .set_permissions(fs::Permissions::from_mode(0o644))
                        .unwrap();
                }
                self.open.push(Open { handle, native });
            }
            (Err(_), Err(_)) => {}
            (here, there) => panic!("{op:?}: {here:?} here, {there:?} natively"),
        }
    }

    /// What is done to a name.
    fn named(&self, op: &Op) -> Option<Both<'_>> {
        let d = self.rig.d();
        Some(match *op {
            Op::Mkdir { p, mode } if p < LINKS => {
                let made = self
                    .at(PATHS[p])
                    .and_then(|(dir, name)| d.mkdir(dir, name, mode, None).map(drop));
                let there = move || {
                    fs::create_dir(self.there(p))?;
                    fs::set_permissions(self.there(p), fs::Permissions::from_mode(mode))
                };
                (made, Box::new(there))
            }
            Op::CutPath { p, size } if p < LINKS => (
                self.node(p).and_then(|n| d.truncate(n, size)),
                Box::new(move || {
                    File::options()
                        .write(true)
                        .open(self.there(p))?
                        .set_len(size)
                }),
            ),
            Op::Symlink { p, to } => (
                self.at(PATHS[p])
                    .and_then(|(dir, name)| d.symlink(dir, name, PATHS[to], None).map(drop)),
                Box::new(move || std::os::unix::fs::symlink(PATHS[to], self.there(p))),
            ),
            Op::Remove { p } => {
                let is_dir = fs::symlink_metadata(self.there(p)).is_ok_and(|m| m.is_dir());
                let gone = self.at(PATHS[p]).and_then(|(dir, name)| {
                    if is_dir {
                        d.rmdir(dir, name)
                    } else {
                        d.unlink(dir, name)
                    }
                });
                let there = move || {
                    if is_dir {
                        fs::remove_dir(self.there(p))
                    } else {
                        fs::remove_file(self.there(p))
                    }
                };
                (gone, Box::new(there))
            }
            // A container has one name: there the native file system does more.
            Op::Link { a, b } if a < LINKS && b < LINKS && a != b && !is_pst(a) && !is_pst(b) => {
                let made = self.node(a).and_then(|node| {
                    let (dir, name) = self.at(PATHS[b])?;
                    d.link(node, dir, name).map(drop)
                });
                (
                    made,
                    Box::new(move || fs::hard_link(self.there(a), self.there(b))),
                )
            }
            Op::Rename { a, b, .. }
                if is_pst(b)
                    && fs::metadata(self.there(a)).is_ok_and(|m| m.is_file() && m.nlink() > 1) =>
            {
                return None;
            }
            // To its own name: nothing, natively; asked not to replace, that it exists.
            Op::Rename { a, b, replace } if (a < LINKS) == (b < LINKS) && a != b => {
                let moved = self.at(PATHS[a]).and_then(|(dir, name)| {
                    let (into, new) = self.at(PATHS[b])?;
                    d.rename(dir, name, into, new, replace)
                });
                let how = if replace {
                    RenameFlags::empty()
                } else {
                    RenameFlags::NOREPLACE
                };
                let there = move || {
                    let (from, to) = (self.there(a), self.there(b));
                    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, how)?)
                };
                (moved, Box::new(there))
            }
            Op::Chmod { p, mode } if p < LINKS => {
                let set = SetAttr {
                    mode: Some(mode),
                    ..SetAttr::default()
                };
                let there =
                    move || fs::set_permissions(self.there(p), fs::Permissions::from_mode(mode));
                let here = self.node(p).and_then(|n| d.set_attr(n, &set).map(drop));
                (here, Box::new(there))
            }
            Op::Time { p, ns } if p < LINKS => {
                let set = SetAttr {
                    mtime: Some(ns),
                    ..SetAttr::default()
                };
                let at = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns as u64);
                let here = self.node(p).and_then(|n| d.set_attr(n, &set).map(drop));
                (
                    here,
                    Box::new(move || File::open(self.there(p))?.set_modified(at)),
                )
            }
            Op::SetX { p, name, value } if p < LINKS => {
                let (name, value) = (format!("user.{name}"), [value; 5]);
                let here = self
                    .node(p)
                    .and_then(|n| d.set_xattr(n, &name, Some(&value), XattrMode::Any));
                let there = move || {
                    let flags = XattrFlags::empty();
                    Ok(rustix::fs::setxattr(self.there(p), name, &value, flags)?)
                };
                (here, Box::new(there))
            }
            Op::DropX { p, name } if p < LINKS => {
                let name = format!("user.{name}");
                let here = self
                    .node(p)
                    .and_then(|n| d.set_xattr(n, &name, None, XattrMode::Any));
                if here.as_ref().is_err_and(unknown) {
                    return None;
                }
                (
                    here,
                    Box::new(move || Ok(rustix::fs::removexattr(self.there(p), name)?)),
                )
            }
            _ => return None,
        })
    }

    /// What is done through a handle.
    fn handled(&self, op: &Op, h: usize) -> Option<Both<'_>> {
        let Open { handle, native } = self.open.get(h)?;
        let (d, handle) = (self.rig.d(), *handle);
        Some(match *op {
            Op::Write { at, len, seed, .. } => {
                let data = pattern(len, seed);
                (
                    d.write(handle, at, &data),
                    Box::new(move || native.write_all_at(&data, at)),
                )
            }
            Op::Append { len, seed, .. } => {
                let data = pattern(len, seed);
                let at = native.metadata().unwrap().len();
                (
                    d.write(handle, at, &data),
                    Box::new(move || native.write_all_at(&data, at)),
                )
            }
            Op::Cut { size, .. } => (
                d.truncate_handle(handle, size),
                Box::new(move || native.set_len(size)),
            ),
            Op::Reserve { at, len, keep, .. } => {
                let flags = if keep {
                    FallocateFlags::KEEP_SIZE
                } else {
                    FallocateFlags::empty()
                };
                (
                    d.allocate(handle, at..at + len, keep),
                    Box::new(move || Ok(rustix::fs::fallocate(native, flags, at, len)?)),
                )
            }
            Op::Zero { at, len, keep, .. } => {
                let flags = if keep {
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
                } else {
                    FallocateFlags::ZERO_RANGE
                };
                (
                    d.zero(handle, at..at + len, keep),
                    Box::new(move || Ok(rustix::fs::fallocate(native, flags, at, len)?)),
                )
            }
            Op::Flush { .. } => (d.fsync(handle), Box::new(|| Ok(()))),
            _ => return None,
        })
    }

    /// Times are a nicety: one that the share refused, of content that it took, is given up.
    fn give_up_times(&self) {
        for path in PATHS {
            let here = self.rig.d().find(path);
            let here = here.and_then(|id| self.rig.d().getattr(id));
            let native = self.native.join(path);
            if here.is_ok_and(|n| n.attr.kind == Kind::File && set_time(n.attr.mtime).is_none())
                && let Ok(file) = File::open(&native)
            {
                file.set_modified(std::time::SystemTime::now()).unwrap();
            }
        }
    }

    fn restart(&mut self, op: &Op) {
        self.snaps.clear();
        match op {
            Op::Kill => {
                self.open.clear();
                self.rig.kill();
            }
            Op::Shutdown => {
                self.close_all();
                self.rig.d().shutdown().unwrap();
                self.rig.kill();
            }
            Op::Power { seed } => {
                self.rig.heal();
                self.close_all();
                self.rig.power(*seed);
            }
            _ => unreachable!(),
        }
    }

    fn close_all(&mut self) {
        for o in std::mem::take(&mut self.open) {
            self.rig.d().release(o.handle).unwrap();
        }
    }

    /// Why it did not come to its end, if so.
    fn sync(&self) -> Option<Error> {
        if self.rig.d().state() != State::Online {
            return None;
        }
        let (brought, pushed, failed) = self.rig.sync();
        for done in brought {
            assert_eq!(done.outcome, ReintegratedOutcome::Done, "{done:?}");
        }
        for outcome in pushed {
            let plain = matches!(outcome, PushOutcome::Clean | PushOutcome::Pushed(_));
            assert!(plain, "{outcome:?}");
        }
        if let Some(e) = &failed {
            // (A loaded machine may be too slow for the stall budget.)
            let slow = matches!(e, Error::Link(_) | Error::Busy(_));
            assert!(self.rig.faulty || slow, "sync: {e}");
        }
        failed
    }

    fn step(&mut self, op: &Op) {
        // A call without an answer may or may not have taken effect; only what is here whole is
        // promised to be neither refused nor in doubt for it.
        if !self.rig.all_here() && matches!(op, Op::Fault { .. } | Op::Hang { .. }) {
            return;
        }
        if self.rig.happens(op) {
            if matches!(op, Op::Refuse { .. }) {
                self.give_up_times();
            }
            return;
        }
        match *op {
            Op::Create { p } | Op::Open { p } => {
                if self.open.len() < HANDLES && p < LINKS {
                    self.opened(op, p, matches!(op, Op::Create { .. }));
                }
            }
            Op::Close { h } if h < self.open.len() => {
                let o = self.open.remove(h);
                self.rig.d().release(o.handle).unwrap();
            }
            Op::Read { h, at, len } => {
                if let Some(o) = self.open.get(h) {
                    self.read(o, at, len);
                }
            }
            Op::Write { h, .. }
            | Op::Append { h, .. }
            | Op::Cut { h, .. }
            | Op::Reserve { h, .. }
            | Op::Zero { h, .. }
            | Op::Flush { h } => {
                if let Some(both) = self.handled(op, h) {
                    self.both(op, both);
                    self.read(&self.open[h], 0, 1 << 20);
                }
            }
            Op::FlushNames => self.rig.d().fsync_dir().unwrap(),
            Op::Snapshot { p } => {
                if let Ok(frozen) = fs::read(self.there(p))
                    && p < LINKS
                {
                    match self.rig.d().snapshot(PATHS[p]) {
                        Ok(snap) => self.snaps.push((snap, frozen)),
                        Err(e) => assert!(self.rig.excused(&e), "{op:?}: {e}"),
                    }
                }
            }
            Op::Sync => drop(self.sync()),
            Op::Look { .. } => self.check(),
            Op::Kill | Op::Shutdown | Op::Power { .. } => self.restart(op),
            _ => {
                if let Some(both) = self.named(op) {
                    self.both(op, both);
                }
            }
        }
    }

    fn read(&self, o: &Open, at: u64, len: usize) {
        let got = match self.rig.d().read(o.handle, at, len) {
            Ok(got) => got,
            Err(e) if self.rig.excused(&e) => return,
            Err(e) => panic!("read: {e}"),
        };
        let size = o.native.metadata().unwrap().len();
        let mut want = vec![0; len.min(size.saturating_sub(at) as usize)];
        o.native.read_exact_at(&mut want, at).unwrap();
        same("a handle", &got, &want);
    }

    /// A name here; `None`: refused for the share's sake.
    fn seen_here(&self, dir: u64, below: &str, want: &mut Seen) -> vfs::Result<()> {
        let d = self.rig.d();
        let listed = d.readdir(dir)?;
        for e in listed {
            let path = vfs::path::join(below, &e.name);
            let Some(((kind, names), mode, data, time, xattrs)) = want.remove(&path) else {
                panic!("{path} is here, and not natively");
            };
            assert_eq!(kind, e.kind, "{path}");
            let node = d.getattr(e.id)?;
            let attr = node.attr;
            assert_eq!((attr.kind, attr.mode), (kind, mode), "{path}");
            if kind != Kind::Dir {
                assert_eq!(u64::from(node.links), names, "{path}: names");
            }
            let own = match kind {
                Kind::Dir => {
                    self.seen_here(e.id, &path, want)?;
                    Ok(Vec::new())
                }
                Kind::Symlink => d.readlink(e.id).map(String::into_bytes),
                Kind::File => super::common::read_all(d, &path),
                Kind::Special(_) => panic!("{path}: none is made here"),
            };
            match own {
                Ok(own) => {
                    same(&path, &own, &data);
                    if kind == Kind::File {
                        assert_eq!(set_time(attr.mtime), time, "{path}: time");
                        assert_eq!(attr.size, data.len() as u64, "{path}: size");
                    }
                }
                Err(e) => assert!(self.rig.excused(&e), "{path}: {e}"),
            }
            if kind == Kind::Symlink {
                continue;
            }
            for name in ["user.0", "user.1", "user.2"] {
                match d.get_xattr(e.id, name) {
                    Ok(v) => assert_eq!(Some(&v), xattrs.get(name), "{path}: {name}"),
                    Err(Error::NoAttribute(_)) => {
                        assert!(!xattrs.contains_key(name), "{path}: {name} is lost");
                    }
                    Err(e) => assert!(unknown(&e), "{path}: {name}: {e}"),
                }
            }
        }
        Ok(())
    }

    fn check(&self) {
        for o in &self.open {
            self.read(o, 0, 1 << 20);
        }
        for (snap, frozen) in &self.snaps {
            let mut got = vec![0; frozen.len()];
            snap.reader.read_exact_at(0, &mut got).unwrap();
            same("a snapshot", &got, frozen);
        }
        let mut want = Seen::new();
        native_seen(&self.native, "", &mut want);
        match self.seen_here(ROOT, "", &mut want) {
            Ok(()) => {
                let left: Vec<_> = want.keys().collect();
                assert!(left.is_empty(), "natively, and not here: {left:?}");
            }
            Err(e) => assert!(self.rig.excused(&e), "{e}"),
        }
    }

    /// Everything returns: the share has it all.
    fn finish(mut self) {
        self.rig.heal();
        self.snaps.clear();
        self.close_all();
        self.rig.kill();
        self.rig.d().set_state(State::Online);
        for _ in 0..20 {
            let Some(e) = self.sync() else { break };
            println!("again: {e}");
            self.rig.heal();
        }
        self.check();
        let (mut share, mut native) = (Seen::new(), Seen::new());
        native_seen(&self.rig.share(""), "", &mut share);
        native_seen(&self.native, "", &mut native);
        for (path, want) in &native {
            let there = share.get(path);
            let Some(there) = there else {
                panic!("{path} is not on the share");
            };
            same(&format!("{path} on the share"), &there.2, &want.2);
            let short = |s: &Name| (s.0, s.1, s.3, s.4.clone());
            assert_eq!(short(there), short(want), "{path} on the share");
        }
        assert_eq!(share.len(), native.len(), "names on the share");
        assert_eq!(self.rig.d().status().unsynced_bytes, 0);
        assert!(self.rig.d().pending_namespace().is_empty());
    }
}

fn is_pst(p: usize) -> bool {
    PATHS[p].ends_with(".pst")
}

/// Offline nothing is known of the share's attributes; with a failing link neither.
fn unknown(e: &Error) -> bool {
    matches!(e, Error::NotCached(_) | Error::Link(_))
}

fn same(what: &str, got: &[u8], want: &[u8]) {
    if got != want {
        let at = got.iter().zip(want).position(|(a, b)| a != b);
        let (got, want) = (got.len(), want.len());
        panic!("{what}: {got} bytes, {want} wanted, first difference at {at:?}");
    }
}

pub fn run(seed: u64, ops: &[Op]) {
    let mut w = World::new(seed);
    for op in ops {
        w.step(op);
        w.rig.relax(op);
    }
    w.finish();
}
