//! Others change the share's files at any moment. Every content carries a mark of its own, so that
//! one look tells whose it is.
//!
//! `kept` holds what must not be lost: the last content that anybody gave a file. A content goes from it
//! only by someone's hand who saw it: others at the share, or a program here that opened just that
//! content and changed it, or removed its name while the share was there. In the end every content in
//! `kept` lies on the share, under its name or beside it; the drive shows what the share has.
//! All that the drive ever shows is somebody's whole content.
//!
//! Where files are here in parts (a third of the worlds), what was changed here and there may be kept as a
//! part, with a list of its holes: it must be that of a kept content, with the mark that makes it so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use vfs::{Error, Kind, ROOT, SetAttr, State};

use super::op::Op;
use super::rig::Rig;

pub const FILES: [&str; 6] = ["a.pst", "b.txt", "d/c.txt", "d/e.pst", "f.doc", "d/g"];

struct World {
    rig: Rig,
    next: u64,
    kept: BTreeSet<Vec<u8>>,
    ever: BTreeSet<Vec<u8>>,
    /// A change of ours may be on the share without its answer. Nobody else changes anything until that
    /// is settled: whose hand it was could not be told then.
    half: bool,
    /// Files of the share in which our own hand may be, and that lie under no name here any more.
    unseen: BTreeSet<usize>,
    /// Names removed here that nobody could read, while others had moved what they were of.
    gone: BTreeSet<usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut w = Self {
            rig: Rig::new(seed),
            next: 0,
            kept: BTreeSet::new(),
            ever: BTreeSet::new(),
            half: false,
            unseen: BTreeSet::new(),
            gone: BTreeSet::new(),
        };
        fs::create_dir(w.rig.share("d")).unwrap();
        for (path, len) in FILES.iter().zip([5000, 2000, 300, 9000]) {
            let data = w.fresh(len);
            fs::write(w.rig.share(path), &data).unwrap();
            w.keep(data);
        }
        w.rig.start(State::Online);
        w.rig.d().fill().unwrap();
        w.rig.d().checkpoint().unwrap();
        w
    }

    fn mark(&mut self) -> Vec<u8> {
        self.next += 1;
        format!("<content {:06}>", self.next).into_bytes()
    }

    /// Content that nothing else is equal to.
    fn fresh(&mut self, len: usize) -> Vec<u8> {
        let mut data = self.mark();
        data.resize(len.max(data.len()), self.next as u8);
        data
    }

    fn keep(&mut self, data: Vec<u8>) {
        self.ever.insert(data.clone());
        // An empty file may be anybody's.
        if !data.is_empty() {
            self.kept.insert(data);
        }
    }

    /// `data` with a mark of its own written at `at`.
    fn edited(&mut self, mut data: Vec<u8>, at: u64, len: usize) -> (u64, Vec<u8>, Vec<u8>) {
        let mark = self.fresh(len);
        let at = at as usize;
        if data.len() < at + mark.len() {
            data.resize(at + mark.len(), 0);
        }
        data[at..at + mark.len()].copy_from_slice(&mark);
        (at as u64, mark, data)
    }

    fn at<'a>(&self, path: &'a str) -> vfs::Result<(u64, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.rig.d().find(dir)?, name))
    }

    fn known(&self, what: &str, data: &[u8]) {
        if data.is_empty() || self.ever.contains(data) {
            return;
        }
        let like = self.ever.iter().filter(|ever| ever.len() == data.len());
        let differ = like.map(|ever| {
            let mut at = (0..data.len()).filter(|i| ever[*i] != data[*i]);
            at.next()
                .map(|first| first..at.next_back().unwrap_or(first) + 1)
        });
        panic!(
            "{what}: {} bytes that nobody ever wrote so\n(others of this length differ in {:?})",
            data.len(),
            differ.flatten().collect::<Vec<_>>()
        );
    }

    /// A refusal that a failing or changing share excuses.
    fn excused(&self, e: &Error) -> bool {
        matches!(
            e,
            Error::NotCached(_)
                | Error::Link(_)
                | Error::NoSpace(_)
                | Error::ShareChanged(_)
                | Error::NotFound(_)
                | Error::Busy(_)
        )
    }

    /// A program opens the file, reads it, and changes it by `change`.
    fn change(&mut self, p: usize, at: Option<u64>, len: usize, cut: Option<u64>) {
        let found = self
            .at(FILES[p])
            .and_then(|(dir, name)| self.rig.d().lookup(dir, name));
        let opened = found.and_then(|n| self.rig.d().open_file(n.id, true, true));
        let handle = match opened {
            Ok(o) => o.handle,
            Err(e) => return assert!(self.excused(&e), "{e}"),
        };
        let saw = match self.rig.d().read(handle, 0, 1 << 20) {
            Ok(saw) => saw,
            Err(e) => {
                assert!(self.excused(&e), "{e}");
                self.rig.d().release(handle).unwrap();
                return;
            }
        };
        self.known(FILES[p], &saw);
        let mut base = saw.clone();
        let cut = cut.map(|size| size.min(base.len() as u64));
        base.truncate(cut.unwrap_or(u64::MAX) as usize);
        // The cut may be all that is done.
        self.ever.insert(base.clone());
        let end = base.len() as u64;
        let (at, bytes, new) = self.edited(base, at.unwrap_or(end), len);
        let d = self.rig.d();
        let done = cut
            .map_or(Ok(()), |size| d.truncate_handle(handle, size))
            .and_then(|()| d.write(handle, at, &bytes));
        d.release(handle).unwrap();
        // Refused, it may have been done in part; where it began no longer counts in any case.
        self.kept.remove(&saw);
        self.ever.insert(new.clone());
        match done {
            Ok(()) => self.keep(new),
            Err(e) => {
                assert!(self.excused(&e), "{e}");
                self.half = true;
                if let Ok(there) = fs::read(self.rig.share(FILES[p])) {
                    self.ever.insert(there);
                }
            }
        }
    }

    /// What the drive shows under a name, if it does.
    fn shown(&self, p: usize) -> vfs::Result<Vec<u8>> {
        self.at(FILES[p])
            .and_then(|(dir, name)| self.rig.d().lookup(dir, name))?;
        super::common::read_all(self.rig.d(), FILES[p])
    }

    /// Changes of names; what they take away goes from `kept` where it was seen, or is the share's own
    /// doing because it was asked at once.
    fn names(&mut self, op: &Op) {
        let gone = match *op {
            Op::Remove { p } => Some(p),
            Op::Rename { a, b, .. } if a != b => Some(b),
            Op::Rename { .. } => return,
            _ => None,
        };
        let from = match *op {
            Op::Rename { a, .. } => Some(a),
            _ => None,
        };
        for p in [gone, from].into_iter().flatten() {
            if self.touched(p) {
                self.unseen.insert(p);
            }
        }
        let saw = gone.and_then(|p| self.shown(p).ok());
        if let Some(saw) = &saw {
            self.known("removed", saw);
        }
        let place = |p: usize| {
            let status = self.rig.d().file_status(FILES[p]).ok();
            status
                .and_then(|s| s.share_path)
                .unwrap_or(FILES[p].to_owned())
        };
        // Or they have moved it to just that name.
        let there = gone.and_then(|p| {
            let there = fs::read(self.rig.share(&place(p)));
            there.or_else(|_| fs::read(self.rig.share(FILES[p]))).ok()
        });
        let waiting = self.rig.d().pending_namespace().len();
        let d = self.rig.d();
        let done = match *op {
            Op::Create { p } => self.at(FILES[p]).and_then(|(dir, name)| {
                let (_, opened) = d.create(dir, name, 0o644, None)?;
                d.release(opened.handle)
            }),
            Op::Remove { p } => self
                .at(FILES[p])
                .and_then(|(dir, name)| d.unlink(dir, name)),
            Op::Rename { a, b, replace } => self.at(FILES[a]).and_then(|(dir, name)| {
                let (into, new) = self.at(FILES[b])?;
                d.rename(dir, name, into, new, replace)
            }),
            Op::Time { p, ns } => {
                let set = SetAttr {
                    mtime: Some(ns),
                    ..SetAttr::default()
                };
                let node = self
                    .at(FILES[p])
                    .and_then(|(dir, name)| d.lookup(dir, name));
                node.and_then(|n| d.set_attr(n.id, &set).map(drop))
            }
            _ => return,
        };
        self.half |= self.rig.faulty;
        let at_once = d.pending_namespace().len() <= waiting || self.rig.faulty;
        match done {
            Ok(()) => {
                if let (Some(p), None, None) = (gone, &saw, &there) {
                    self.gone.insert(p);
                }
                // What could not be read here is what the share was last seen to have.
                let at_once = at_once || saw.is_none();
                if let Some(saw) = saw {
                    self.kept.remove(&saw);
                }
                if let Some(there) = there.filter(|_| at_once) {
                    self.kept.remove(&there);
                }
            }
            Err(Error::Exists(_)) => {}
            Err(e) => assert!(self.excused(&e), "{op:?}: {e}"),
        }
    }

    /// Others, at the share.
    fn theirs(&mut self, op: &Op) {
        if self.half {
            return;
        }
        if self.rig.faulty {
            self.rig.heal();
        }
        let share = |w: &Self, p: usize| w.rig.share(FILES[p]);
        match *op {
            Op::TheirWrite { p, at, len } => {
                let Ok(was) = fs::read(share(self, p)) else {
                    return;
                };
                let (_, _, new) = self.edited(was.clone(), at, len);
                if self.touched(p) {
                    return;
                }
                fs::write(share(self, p), &new).unwrap();
                self.kept.remove(&was);
                self.keep(new);
            }
            Op::TheirReplace { p } => {
                let Ok(was) = fs::read(share(self, p)) else {
                    return;
                };
                let new = self.fresh(700);
                let beside = self.rig.share("theirs.tmp");
                fs::write(&beside, &new).unwrap();
                fs::rename(&beside, share(self, p)).unwrap();
                self.kept.remove(&was);
                self.keep(new);
            }
            Op::TheirMake { p } if !share(self, p).exists() => {
                let new = self.fresh(900);
                fs::write(share(self, p), &new).unwrap();
                self.keep(new);
            }
            Op::TheirRemove { p } => {
                if let Ok(was) = fs::read(share(self, p)) {
                    fs::remove_file(share(self, p)).unwrap();
                    self.kept.remove(&was);
                }
            }
            // What was removed here unseen would be back: that it was another's cannot be told.
            Op::TheirRename { a, b } if !share(self, b).exists() && !self.gone.contains(&b) => {
                let _ = fs::rename(share(self, a), share(self, b));
            }
            _ => {}
        }
    }

    /// Whether our own hand may be in the share's file without the drive knowing how far.
    fn touched(&self, p: usize) -> bool {
        let status = self.rig.d().file_status(FILES[p]);
        self.unseen.contains(&p) || status.is_ok_and(|s| s.flipped || s.in_doubt)
    }

    fn look(&self, p: usize) {
        let d = self.rig.d();
        let (shown, there) = (self.shown(p), fs::read(self.rig.share(FILES[p])));
        if let Ok(shown) = &shown {
            self.known(FILES[p], shown);
        }
        let clean = d.file_status(FILES[p]).is_ok_and(|s| !s.dirty);
        let plain = d.state() == State::Online
            && !self.rig.faulty
            && d.status().link_up
            && d.pending_namespace().is_empty();
        match (shown, there) {
            (Ok(shown), Ok(there)) if plain && clean && !self.half => {
                assert!(shown == there, "{}: not what the share has", FILES[p]);
            }
            (Err(Error::NotFound(_)), Ok(_)) if plain => {
                panic!("{}: the share has it", FILES[p]);
            }
            (Err(e), _) => assert!(self.excused(&e), "{e}"),
            _ => {}
        }
    }

    fn sync(&mut self) -> Option<Error> {
        if self.rig.d().state() != State::Online {
            return None;
        }
        let (_, _, failed) = self.rig.sync();
        self.half = failed.is_some();
        if !self.half {
            self.unseen.clear();
            self.gone.clear();
        }
        failed
    }

    fn step(&mut self, op: &Op) {
        let refuse = matches!(op, Op::Refuse { .. });
        if !refuse && self.rig.happens(op) {
            return;
        }
        match *op {
            Op::Write { h, at, len, .. } => self.change(h, Some(at), len, None),
            Op::Append { h, len, .. } => self.change(h, None, len, None),
            Op::Cut { h, size } => self.change(h, Some(0), 20, Some(size)),
            Op::Create { .. } | Op::Remove { .. } | Op::Rename { .. } | Op::Time { .. } => {
                self.names(op);
            }
            Op::Look { p } => self.look(p),
            Op::FlushNames => self.rig.d().fsync_dir().unwrap(),
            Op::Kill => {
                self.rig.kill();
                // A write that hung and failed may have been done in the end.
                if self.half {
                    let there = FILES.iter().map(|path| self.rig.share(path));
                    self.ever
                        .extend(there.filter_map(|path| fs::read(path).ok()));
                }
            }
            Op::Shutdown => {
                let _ = self.rig.d().shutdown();
                self.rig.kill();
            }
            Op::Sync => drop(self.sync()),
            Op::Refuse { n } => {
                self.rig.refuse(n);
                self.half = true;
                self.sync();
            }
            _ => self.theirs(op),
        }
    }

    fn finish(mut self) {
        self.rig.heal();
        self.rig.kill();
        self.rig.d().set_state(State::Online);
        let mut left = None;
        for _ in 0..20 {
            left = self.sync();
            if left.is_none() && self.rig.d().status().unsynced_bytes == 0 {
                break;
            }
            self.rig.heal();
        }
        assert!(left.is_none(), "sync: {left:?}");
        assert!(self.rig.d().pending_namespace().is_empty());
        let mut there = BTreeMap::new();
        for dir in ["", "d"] {
            for e in fs::read_dir(self.rig.share(dir)).unwrap() {
                let e = e.unwrap();
                if e.file_type().unwrap().is_file() {
                    let name = e.file_name().into_string().unwrap();
                    let data = fs::read(e.path()).unwrap();
                    there.insert(vfs::path::join(dir, &name), data);
                }
            }
        }
        for content in &self.kept {
            if !self.rig.all_here()
                && there
                    .iter()
                    .any(|(name, part)| is_part(&there, name, part, content))
            {
                continue;
            }
            let head = &content[..content.len().min(40)];
            assert!(
                there.values().any(|d| d == content),
                "lost: {} bytes, {}; there: {:?}",
                content.len(),
                String::from_utf8_lossy(head),
                there.iter().map(|(n, d)| (n, d.len())).collect::<Vec<_>>()
            );
        }
        let mut here = BTreeMap::new();
        let d = self.rig.d();
        for (dir, node) in [("", ROOT), ("d", d.find("d").unwrap())] {
            for e in d.readdir(node).unwrap() {
                if e.kind == Kind::File {
                    let path = vfs::path::join(dir, &e.name);
                    let data = super::common::read_all(d, &path).unwrap();
                    here.insert(path, data);
                }
            }
        }
        for (path, data) in &there {
            let shown = here.get(path);
            assert!(
                shown == Some(data),
                "{path}: here {:?}, {} bytes on the share",
                shown.map(Vec::len),
                data.len()
            );
        }
        assert_eq!(here.len(), there.len(), "{:?}", here.keys());
    }
}

/// Whether this is what was here of that content, as the list beside it says, and all that made it
/// another's: its mark.
fn is_part(there: &BTreeMap<String, Vec<u8>>, name: &str, part: &[u8], content: &[u8]) -> bool {
    if !name.ends_with(".partial") || part.len() != content.len() {
        return false;
    }
    let list = there.get(&format!("{name}.holes"));
    let list = list.map(|l| String::from_utf8(l.clone()).unwrap());
    let mut masked = content.to_vec();
    for line in list
        .iter()
        .flat_map(|l| l.lines())
        .filter(|l| !l.starts_with('#'))
    {
        let (from, to) = line.split_once(' ').unwrap();
        masked[from.parse().unwrap()..to.parse().unwrap()].fill(0);
    }
    let marks = |data: &[u8]| data.windows(9).any(|w| w == b"<content ");
    part == masked && (marks(part) || !marks(content))
}

pub fn run(seed: u64, ops: &[Op]) {
    let mut w = World::new(seed);
    for op in ops {
        w.step(op);
        w.rig.relax(op);
    }
    w.finish();
}
