//! A share as Windows has them: case does not matter, and some names cannot be.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::sync::Arc;

use common::{Rig, put_file, read_all};
use vfs::path::Names;
use vfs::share::dir::DirShare;
use vfs::{
    Attr, Drive, Error, ROOT, ReintegratedOutcome, SetAttr, Share, ShareFile, State, Statfs,
    share::Entry,
};

/// A directory whose names are found in any spelling.
struct AnyCase(DirShare);

impl AnyCase {
    /// The path in the spelling that is there, as far as it is there.
    fn real(&self, path: &str) -> io::Result<String> {
        let mut at = String::new();
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let there = self.0.list(&at).unwrap_or_default();
            let found = there.iter().find(|e| Names::Windows.same(&e.name, name));
            at = vfs::path::join(&at, found.map_or(name, |e| e.name.as_str()));
        }
        Ok(at)
    }
}

impl Share for AnyCase {
    fn stat(&self, path: &str) -> io::Result<Attr> {
        self.0.stat(&self.real(path)?)
    }
    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        self.0.list(&self.real(path)?)
    }
    fn read_link(&self, path: &str) -> io::Result<String> {
        self.0.read_link(&self.real(path)?)
    }
    fn names(&self) -> Names {
        Names::Windows
    }
    fn open(&self, path: &str, write: bool) -> io::Result<Box<dyn ShareFile>> {
        self.0.open(&self.real(path)?, write)
    }
    fn create(&self, path: &str, mode: u32) -> io::Result<Box<dyn ShareFile>> {
        self.0.create(&self.real(path)?, mode)
    }
    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let (from, there) = (self.real(from)?, self.real(to)?);
        if from == there {
            // The new spelling, in the directory's own.
            let dir = there.rsplit_once('/').map_or("", |d| d.0);
            let name = to.rsplit_once('/').map_or(to, |d| d.1);
            if !replace {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            return self.0.rename(&from, &vfs::path::join(dir, name), false);
        }
        self.0.rename(&from, &there, replace)
    }
    fn unlink(&self, path: &str) -> io::Result<()> {
        self.0.unlink(&self.real(path)?)
    }
    fn mkdir(&self, path: &str, mode: u32) -> io::Result<()> {
        self.0.mkdir(&self.real(path)?, mode)
    }
    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.0.rmdir(&self.real(path)?)
    }
    fn set_attr(&self, path: &str, set: &SetAttr) -> io::Result<()> {
        self.0.set_attr(&self.real(path)?, set)
    }
    fn statfs(&self) -> io::Result<Statfs> {
        self.0.statfs()
    }
    fn probe(&self) -> io::Result<()> {
        self.0.probe()
    }
}

fn drive(rig: &Rig, state: State) -> Arc<Drive> {
    let mut config = rig.config(state);
    config.share = Arc::new(AnyCase(DirShare::open(rig.share_file("")).unwrap()));
    Drive::open(config).unwrap()
}

fn names(d: &Drive) -> Vec<String> {
    let all = d.readdir(ROOT).unwrap();
    all.into_iter().map(|e| e.name).collect()
}

#[test]
fn one_file_is_one_file_in_any_spelling() {
    let rig = Rig::new();
    rig.put("Mail.pst", b"mail");
    for listed in [false, true] {
        for state in [State::Online, State::Cached] {
            let d = drive(&rig, State::Online);
            if listed {
                d.readdir(ROOT).unwrap();
            }
            d.set_state(state);
            let ids = ["MAIL.PST", "mail.pst", "Mail.pst"].map(|n| d.find(n).unwrap());
            assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
            // Two handles by two spellings see each other's writes (R1).
            let a = d.open_file(ids[0], true, true).unwrap().handle;
            let b = d
                .open_file(d.find("mAIL.pst").unwrap(), true, true)
                .unwrap();
            d.write(a, 0, b"M").unwrap();
            assert_eq!(d.read(b.handle, 0, 9).unwrap(), b"Mail");
            d.write(b.handle, 0, b"m").unwrap();
            d.set_state(State::Online);
            assert_eq!(names(&d), ["Mail.pst"]);
            assert_eq!(d.find("MAIL.PST").unwrap(), ids[0]);
            for h in [a, b.handle] {
                d.release(h).unwrap();
            }
            let made = d.create(ROOT, "MAIL.pst", 0o644, None);
            assert!(matches!(made, Err(Error::Exists(_))));
            d.push_opaque("mail.pst", "D", "H").unwrap();
        }
    }
}

#[test]
fn another_spelling_is_a_new_name_and_no_other_file() {
    let rig = Rig::new();
    rig.put("a.txt", b"a");
    rig.put("b.txt", b"b");
    let d = drive(&rig, State::Online);
    d.rename(ROOT, "a.txt", ROOT, "A.txt", true).unwrap();
    assert_eq!(names(&d), ["A.txt", "b.txt"]);
    assert_eq!(rig.get("A.txt"), b"a");
    d.set_state(State::Offline);
    d.rename(ROOT, "a.TXT", ROOT, "a.Txt", false).unwrap();
    d.rename(ROOT, "B.txt", ROOT, "c.txt", true).unwrap();
    assert_eq!(names(&d), ["a.Txt", "c.txt"]);
    // What was renamed here does not come back in another spelling.
    d.set_state(State::Cached);
    assert!(matches!(d.find("B.TXT"), Err(Error::NotFound(_))));
    let made = d.create(ROOT, "C.TXT", 0o644, None);
    assert!(matches!(made, Err(Error::Exists(_))));
    // Nor does a change of spelling that waits meet itself.
    d.set_state(State::Online);
    for r in d.reintegrate("D", "H").unwrap() {
        assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
    }
    assert_eq!(names(&d), ["a.Txt", "c.txt"]);
    assert_eq!(rig.get("a.Txt"), b"a");
    assert_eq!(rig.get("c.txt"), b"b");
    // Renamed there to another spelling: the same file, under that name.
    let id = d.find("c.txt").unwrap();
    std::fs::rename(rig.share_file("c.txt"), rig.share_file("C.txt")).unwrap();
    assert_eq!(names(&d), ["C.txt", "a.Txt"]);
    assert_eq!(d.find("c.txt").unwrap(), id);
    assert_eq!(read_all(&d, "C.txt").unwrap(), b"b");
}

#[test]
fn what_the_share_cannot_hold_is_refused_when_it_is_made() {
    let rig = Rig::new();
    // Made by someone who could.
    rig.put("con", b"there");
    for state in [State::Online, State::Cached, State::Offline] {
        let d = drive(&rig, State::Online);
        assert!(names(&d).iter().any(|n| n == "con"));
        d.set_state(state);
        if state == State::Online {
            put_file(&d, ROOT, "good", b"x");
        }
        for bad in ["aux", "a:b", "dot.", "space ", "q?", "NUL.txt"] {
            let no =
                |e: vfs::Result<()>| assert!(matches!(e, Err(Error::ForbiddenName(_))), "{bad}");
            no(d.create(ROOT, bad, 0o644, None).map(drop));
            no(d.mkdir(ROOT, bad, 0o755, None).map(|_| ()));
            no(d.symlink(ROOT, bad, "good", None).map(|_| ()));
            no(d.rename(ROOT, "good", ROOT, bad, true));
        }
        assert!(d.pending_namespace().is_empty());
    }
    let d = drive(&rig, State::Online);
    assert_eq!(read_all(&d, "con").unwrap(), b"there");
    d.rename(ROOT, "con", ROOT, "console", true).unwrap();
    assert_eq!(rig.get("console"), b"there");
}
