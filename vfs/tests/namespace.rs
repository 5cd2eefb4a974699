//! The tree of names away from the share, and its way there: links, extended attributes, what is
//! shortened on the way, and every share call failing once.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::{Rig, open_rw, pattern, put_file, read_all};
use vfs::share::fault::Fault;
use vfs::{Drive, Error, Kind, ROOT, ReintegratedOutcome, SetAttr, Special, State, XattrMode};

fn all_done(d: &Drive) -> Vec<String> {
    let report = d.reintegrate("D", "H").unwrap();
    for r in &report {
        assert_eq!(r.outcome, ReintegratedOutcome::Done, "{r:?}");
    }
    report.into_iter().map(|r| r.what).collect()
}

/// Names on the share, with kind.
fn on_share(rig: &Rig) -> Vec<String> {
    fn walk(dir: &std::path::Path, before: &str, out: &mut Vec<String>) {
        for e in std::fs::read_dir(dir).unwrap() {
            let e = e.unwrap();
            let name = format!("{before}{}", e.file_name().into_string().unwrap());
            if e.file_type().unwrap().is_dir() {
                walk(&e.path(), &format!("{name}/"), out);
                out.push(name + "/");
            } else {
                out.push(name);
            }
        }
    }
    let mut out = Vec::new();
    walk(&rig.share_file(""), "", &mut out);
    out.sort();
    out
}

#[test]
fn links_are_made_and_shown_but_never_out_of_the_share() {
    if common::over_smb() {
        return; // No symbolic links, no extended attributes.
    }
    let rig = Rig::new();
    rig.put("d/f", b"x");
    std::os::unix::fs::symlink("/etc/passwd", rig.share_file("leak")).unwrap();
    let d = rig.drive(State::Online);
    let dir = d.find("d").unwrap();
    d.symlink(dir, "up", "../d/f", None).unwrap();
    assert_eq!(
        std::fs::read_link(rig.share_file("d/up")).unwrap().to_str(),
        Some("../d/f")
    );
    for out in ["/etc/passwd", "../../x", "f/../../../x"] {
        let made = d.symlink(dir, "out", out, None);
        assert!(
            matches!(made, Err(Error::NotPermitted(_))),
            "{out}: {made:?}"
        );
    }
    let leak = d.find("leak").unwrap();
    assert!(matches!(d.readlink(leak), Err(Error::Access(_))));
    // A directory with links in it moves: they are looked at where they are.
    d.mkdir(dir, "sub", 0o755, None).unwrap();
    let sub = d.find("d/sub").unwrap();
    d.symlink(sub, "deep", "../../d/f", None).unwrap();
    d.rename(dir, "sub", ROOT, "sub", true).unwrap();
    let deep = d.find("sub/deep").unwrap();
    assert!(matches!(d.readlink(deep), Err(Error::Access(_))));
    // Offline: made, shown, and brought there later; also over a restart.
    d.set_state(State::Offline);
    d.symlink(ROOT, "later", "d/f", None).unwrap();
    drop(d);
    let d = rig.drive(State::Offline);
    let later = d.find("later").unwrap();
    assert_eq!(d.readlink(later).unwrap(), "d/f");
    let attr = d.getattr(later).unwrap().attr;
    assert_eq!((attr.kind, attr.size), (Kind::Symlink, 3));
    d.set_state(State::Online);
    assert_eq!(all_done(&d), ["create later"]);
    assert_eq!(
        std::fs::read_link(rig.share_file("later"))
            .unwrap()
            .to_str(),
        Some("d/f")
    );
    // Another's link took the name meanwhile: both are kept. The same link is as good as ours.
    d.set_state(State::Offline);
    d.symlink(ROOT, "a", "d/f", None).unwrap();
    d.symlink(ROOT, "b", "d/f", None).unwrap();
    std::os::unix::fs::symlink("d", rig.share_file("a")).unwrap();
    std::os::unix::fs::symlink("d/f", rig.share_file("b")).unwrap();
    d.set_state(State::Online);
    let report = d.reintegrate("D", "H").unwrap();
    let outcomes: Vec<_> = report.into_iter().map(|r| r.outcome).collect();
    let beside = ReintegratedOutcome::RenamedTo("a (conflict D H)".to_owned());
    assert_eq!(outcomes, [beside, ReintegratedOutcome::Done]);
    // One that another pointed elsewhere is read anew.
    std::fs::remove_file(rig.share_file("b")).unwrap();
    std::os::unix::fs::symlink("d", rig.share_file("b")).unwrap();
    assert_eq!(d.readlink(d.find("b").unwrap()).unwrap(), "d");
}

#[test]
fn pipes_and_sockets_wait_for_the_share_too() {
    let rig = Rig::new();
    let d = rig.drive(State::Online);
    if common::over_smb() {
        let made = d.make_special(ROOT, "p", Special::Fifo, 0o600, None);
        assert!(matches!(made, Err(Error::NotPermitted(_))), "{made:?}");
        return;
    }
    let is_fifo = |path: &str| {
        let meta = std::fs::symlink_metadata(rig.share_file(path)).unwrap();
        std::os::unix::fs::FileTypeExt::is_fifo(&meta.file_type())
    };
    // One that was there is seen, and has no content to open.
    std::os::unix::net::UnixListener::bind(rig.share_file("there")).unwrap();
    let there = d.find("there").unwrap();
    assert_eq!(
        d.getattr(there).unwrap().attr.kind,
        Kind::Special(Special::Socket)
    );
    assert!(matches!(
        d.open_file(there, true, false),
        Err(Error::Invalid(_))
    ));
    d.make_special(ROOT, "now", Special::Fifo, 0o622, None)
        .unwrap();
    assert!(is_fifo("now"));
    // Offline: made, shown and moved, brought there later; also over a restart.
    d.set_state(State::Offline);
    d.make_special(ROOT, "later", Special::Fifo, 0o640, None)
        .unwrap();
    d.rename(ROOT, "later", ROOT, "moved", true).unwrap();
    d.unlink(ROOT, "there").unwrap();
    drop(d);
    let d = rig.drive(State::Offline);
    let moved = d.getattr(d.find("moved").unwrap()).unwrap().attr;
    assert_eq!(
        (moved.kind, moved.mode),
        (Kind::Special(Special::Fifo), 0o640)
    );
    d.set_state(State::Online);
    assert_eq!(all_done(&d).len(), 2);
    assert!(is_fifo("moved"));
    let mode = std::fs::metadata(rig.share_file("moved")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(!rig.share_file("there").exists());
}

#[test]
fn attributes_wait_for_the_share_and_unknown_is_not_none() {
    if common::over_smb() {
        return; // No symbolic links, no extended attributes.
    }
    let rig = Rig::new();
    rig.put("f", b"x");
    let d = rig.drive(State::Online);
    let f = d.find("f").unwrap();
    let set = |name: &str, v: Option<&[u8]>| d.set_xattr(f, name, v, XattrMode::Any);
    set("user.there", Some(b"1")).unwrap();
    set("user.gone", Some(b"2")).unwrap();
    assert!(matches!(
        set("trusted.x", Some(b"1")),
        Err(Error::Unsupported(_))
    ));
    assert!(matches!(
        set("user.big", Some(&vec![0; (1 << 16) + 1])),
        Err(Error::TooLarge(_))
    ));
    d.set_state(State::Offline);
    // What only the share knows is not "no such attribute".
    assert!(matches!(
        d.get_xattr(f, "user.there"),
        Err(Error::NotCached(_))
    ));
    assert!(matches!(d.list_xattr(f), Err(Error::NotCached(_))));
    set("user.new", Some(b"3")).unwrap();
    set("user.new", Some(b"4")).unwrap();
    assert_eq!(d.get_xattr(f, "user.new").unwrap(), b"4");
    // Of a file made here everything is known.
    put_file(&d, ROOT, "g", b"y");
    let g = d.find("g").unwrap();
    assert!(d.list_xattr(g).unwrap().is_empty());
    assert!(matches!(
        d.get_xattr(g, "user.x"),
        Err(Error::NoAttribute(_))
    ));
    d.set_xattr(g, "user.x", Some(b"5"), XattrMode::Create)
        .unwrap();
    assert!(matches!(
        d.set_xattr(g, "user.x", Some(b"6"), XattrMode::Create),
        Err(Error::Exists(_))
    ));
    drop(d);
    let d = rig.drive(State::Offline);
    assert_eq!(d.get_xattr(d.find("g").unwrap(), "user.x").unwrap(), b"5");
    assert_eq!(d.list_xattr(d.find("g").unwrap()).unwrap(), ["user.x"]);
    d.set_state(State::Cached);
    let f = d.find("f").unwrap();
    d.set_xattr(f, "user.gone", None, XattrMode::Any).unwrap();
    assert_eq!(d.list_xattr(f).unwrap(), ["user.new", "user.there"]);
    d.set_state(State::Online);
    // The first value of user.new is not sent.
    assert_eq!(all_done(&d).len(), 4);
    let get = |path: &str, name: &str| {
        let mut buf = [0; 16];
        let n = rustix::fs::getxattr(rig.share_file(path), name, &mut buf[..]);
        n.map(|n| buf[..n].to_vec()).ok()
    };
    assert_eq!(get("f", "user.new").as_deref(), Some(&b"4"[..]));
    assert_eq!(get("f", "user.there").as_deref(), Some(&b"1"[..]));
    assert_eq!(get("f", "user.gone"), None);
    assert_eq!(get("g", "user.x").as_deref(), Some(&b"5"[..]));
}

#[test]
fn what_came_and_went_away_from_the_share_is_never_sent() {
    let rig = Rig::new();
    rig.put("doc", b"first");
    let d = rig.drive(State::Online);
    d.fill_file("doc").unwrap();
    assert_eq!(d.readdir(ROOT).unwrap().len(), 1);
    d.set_state(State::Offline);
    let work = d.mkdir(ROOT, "work", 0o755, None).unwrap().id;
    let (_, open) = d.create(work, "scratch", 0o644, None).unwrap();
    d.write(open.handle, 0, b"scratch").unwrap();
    d.rename(work, "scratch", work, "scratch2", true).unwrap();
    d.unlink(work, "scratch2").unwrap();
    d.rmdir(ROOT, "work").unwrap();
    // A document saved twice by way of a new file.
    for (tmp, text) in [("t1", &b"second"[..]), ("t2", b"the third")] {
        put_file(&d, ROOT, tmp, text);
        d.rename(ROOT, tmp, ROOT, "doc", true).unwrap();
    }
    assert_eq!(d.pending_namespace().len(), 9);
    d.set_state(State::Online);
    let calls = rig.faults.calls();
    assert_eq!(all_done(&d), ["create t2", "rename t2 to doc"]);
    println!("{} share calls", rig.faults.calls() - calls);
    // Its content was there before it took the other's place.
    assert_eq!(rig.get("doc"), b"the third");
    assert_eq!(on_share(&rig), ["doc"]);
    // The scratch file lives as long as its handle.
    assert_eq!(d.read(open.handle, 0, 10).unwrap(), b"scratch");
    d.release(open.handle).unwrap();
    d.checkpoint().unwrap();
    d.checkpoint().unwrap();
    let data = std::fs::read_dir(rig.tmp.path().join("state/data")).unwrap();
    assert_eq!(data.count(), 1, "cache files of what is gone");
}

#[test]
fn the_share_never_has_an_empty_file_in_the_place_of_a_good_one() {
    let rig = Rig::new();
    rig.put("doc", b"good");
    // Whichever call after the first look fails: the document is the old one or the new one.
    for n in 1.. {
        std::fs::write(rig.share_file("doc"), b"good").unwrap();
        let _ = std::fs::remove_dir_all(rig.tmp.path().join("state"));
        let d = rig.drive(State::Online);
        assert_eq!(read_all(&d, "doc").unwrap(), b"good");
        d.set_state(State::Offline);
        put_file(&d, ROOT, "new", b"better");
        d.rename(ROOT, "new", ROOT, "doc", true).unwrap();
        d.set_state(State::Online);
        rig.faults.at(n, Fault::Fail(ErrorKind::TimedOut));
        let whole = d.reintegrate("D", "H").is_ok();
        let doc = rig.get("doc");
        assert!(doc == b"good" || doc == b"better", "call {n}: {doc:?}");
        let unused = rig.faults.calls();
        rig.faults.heal();
        all_done(&d);
        let _ = d.push_opaque("doc", "D", "H").unwrap();
        assert_eq!(rig.get("doc"), b"better", "call {n}");
        assert_eq!(on_share(&rig), ["doc"], "call {n}");
        if whole && n > 30 {
            println!("{unused} calls in the last round");
            break;
        }
    }
}

/// What is compiled goes on being what it was, also of a file that is removed meanwhile.
#[test]
fn a_snapshot_outlives_its_file() {
    let rig = Rig::new();
    let d = rig.drive(State::Online);
    d.readdir(ROOT).unwrap();
    d.set_state(State::Offline);
    put_file(&d, ROOT, "m.pst", &pattern(9000, 7));
    let snap = d.snapshot("m.pst").unwrap();
    d.unlink(ROOT, "m.pst").unwrap();
    d.set_state(State::Online);
    assert!(all_done(&d).is_empty());
    d.checkpoint().unwrap();
    let mut got = vec![0; 9000];
    snap.reader.read_exact_at(0, &mut got).unwrap();
    assert!(got == pattern(9000, 7));
    drop(snap);
    assert_eq!(d.status().unwritten_bytes, 0);
}

/// A file of mostly nothing, made here: neither cache nor share fills with its zeros, and the share
/// has it to the last byte.
#[test]
fn zeros_past_the_end_are_not_sent() {
    use std::os::unix::fs::MetadataExt;
    const LEN: u64 = 40 << 20;
    let rig = Rig::new();
    rig.put("beside", b"ours");
    let d = rig.drive(State::Online);
    d.fill_file("beside").unwrap();
    d.set_state(State::Offline);
    let (_, made) = d.create(ROOT, "sparse", 0o644, None).unwrap();
    let beside = open_rw(&d, "beside");
    for h in [made.handle, beside] {
        d.write(h, 30 << 20, b"in the middle").unwrap();
        d.truncate_handle(h, LEN).unwrap();
        d.release(h).unwrap();
    }
    rig.put("beside", b"changed by another");
    d.set_state(State::Online);
    all_done(&d);
    d.push_opaque("sparse", "D", "H").unwrap();
    d.push_opaque("beside", "D", "H").unwrap();
    d.checkpoint().unwrap();
    for name in ["sparse", "beside (conflict D H)"] {
        let meta = std::fs::metadata(rig.share_file(name)).unwrap();
        assert_eq!(meta.len(), LEN, "{name}");
        assert!(
            meta.blocks() * 512 <= 4 << 20,
            "{name}: {} blocks",
            meta.blocks()
        );
        let there = rig.get(name);
        let text = &there[30 << 20..][..13];
        assert_eq!(text, b"in the middle", "{name}");
        let first: &[u8] = if name == "sparse" {
            b"\0\0\0\0"
        } else {
            b"ours"
        };
        assert_eq!(&there[..4], first, "{name}");
        let written = there.iter().filter(|b| **b != 0).count();
        assert_eq!(written, if name == "sparse" { 13 } else { 17 }, "{name}");
        assert_eq!(read_all(&d, name).unwrap(), there, "{name}");
    }
}

/// A file replaces another, the answer is lost, and only then it is written to.
#[test]
fn a_lost_answer_to_a_replacing_rename_is_no_conflict() {
    for n in 1..10 {
        let rig = Rig::new();
        let d = rig.drive(State::Online);
        put_file(&d, ROOT, "c.txt", b"old");
        put_file(&d, ROOT, "e.txt", b"");
        rig.faults
            .at(n, Fault::FailAfter(ErrorKind::ConnectionReset));
        d.rename(ROOT, "e.txt", ROOT, "c.txt", true).unwrap();
        let h = open_rw(&d, "c.txt");
        d.write(h, 0, b"written after").unwrap();
        d.release(h).unwrap();
        rig.faults.heal();
        drop(d);
        let d = rig.drive(State::Online);
        all_done(&d);
        d.push_opaque("c.txt", "D", "H").unwrap();
        assert_eq!(on_share(&rig), ["c.txt"], "call {n}");
        assert_eq!(rig.get("c.txt"), b"written after", "call {n}");
    }
}

/// A day's work with names; the share's calls fail one by one, before or after they took effect,
/// or hang. Nothing may be lost, left behind, or made twice.
#[test]
fn every_share_call_may_fail_under_names() {
    if common::over_smb() {
        return; // No symbolic links, no extended attributes.
    }
    let kind = ErrorKind::ConnectionAborted;
    for fault in [Fault::Fail(kind), Fault::FailAfter(kind), Fault::Hang] {
        for n in 1.. {
            let mut rig = Rig::new();
            if fault == Fault::Hang {
                rig.budget = Duration::from_millis(150);
            }
            rig.put("old/keep.txt", b"keep");
            rig.put("old/drop.txt", b"drop");
            let d = rig.drive(State::Online);
            let old = d.find("old").unwrap();
            d.readdir(ROOT).unwrap();
            d.readdir(old).unwrap();
            let start = rig.faults.calls();
            rig.faults.at(n, fault);
            let new = d.mkdir(ROOT, "new", 0o750, None).unwrap().id;
            put_file(&d, new, "came", b"and went");
            d.unlink(new, "came").unwrap();
            put_file(&d, new, "f", b"text");
            d.rename(new, "f", new, "g", true).unwrap();
            d.rename(new, "g", old, "h", true).unwrap();
            d.symlink(new, "l", "../old/h", None).unwrap();
            d.rename(new, "l", ROOT, "m", true).unwrap();
            d.unlink(old, "drop.txt").unwrap();
            d.rename(old, "keep.txt", new, "kept.txt", true).unwrap();
            let kept = d.find("new/kept.txt").unwrap();
            let mode = SetAttr {
                mode: Some(0o600),
                mtime: Some(77_000_000_000),
                ..SetAttr::default()
            };
            d.set_attr(kept, &mode).unwrap();
            d.set_xattr(kept, "user.a", Some(b"v"), XattrMode::Any)
                .unwrap();
            d.mkdir(ROOT, "tmp", 0o755, None).unwrap();
            d.rmdir(ROOT, "tmp").unwrap();
            let used = rig.faults.calls() - start;
            drop(d);
            rig.faults.heal();
            while rig.faults.hanging() > 0 {
                std::thread::yield_now();
            }
            // A machine that is busy is not a share that hangs.
            rig.budget = Duration::from_secs(10);
            let d = rig.drive(State::Online);
            all_done(&d);
            d.push_opaque("old/h", "D", "H").unwrap();
            assert!(d.pending_namespace().is_empty());
            let want = ["m", "new/", "new/kept.txt", "old/", "old/h"];
            assert_eq!(on_share(&rig), want, "call {n}, {fault:?}");
            assert_eq!(rig.get("old/h"), b"text", "call {n}");
            assert_eq!(read_all(&d, "new/kept.txt").unwrap(), b"keep", "call {n}");
            let meta = std::fs::metadata(rig.share_file("new/kept.txt")).unwrap();
            let mtime = meta.modified().unwrap();
            let since = mtime.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(since.as_secs(), 77, "call {n}");
            let mut buf = [0; 8];
            let file = rig.share_file("new/kept.txt");
            let len = rustix::fs::getxattr(file, "user.a", &mut buf[..]).unwrap();
            assert_eq!(&buf[..len], b"v", "call {n}");
            if n > used {
                println!("failed each of {used} share calls ({fault:?})");
                break;
            }
        }
    }
}

#[test]
fn times_of_directories_follow_at_once_also_offline() {
    let rig = Rig::new();
    rig.put("d/f", b"x");
    let d = rig.drive(State::Online);
    let dir = d.find("d").unwrap();
    d.readdir(dir).unwrap();
    d.set_state(State::Offline);
    let old = SetAttr {
        mtime: Some(5),
        ..SetAttr::default()
    };
    let steps: [&dyn Fn(); 4] = [
        &|| assert!(d.mkdir(dir, "s", 0o755, None).is_ok()),
        &|| d.rename(dir, "f", dir, "g", true).unwrap(),
        &|| assert!(d.symlink(dir, "l", "g", None).is_ok()),
        &|| d.unlink(dir, "l").unwrap(),
    ];
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(d.set_attr(dir, &old).unwrap().attr.mtime, 5);
        step();
        let attr = d.getattr(dir).unwrap().attr;
        assert!(
            attr.mtime > 5 && attr.ctime == attr.mtime,
            "step {i}: {attr:?}"
        );
    }
    assert_eq!(d.getattr(dir).unwrap().links, 3);
}

#[test]
fn a_hung_share_keeps_no_name_waiting_longer_than_the_budget() {
    if common::over_smb() {
        return; // No symbolic links, no extended attributes.
    }
    let mut rig = Rig::new();
    rig.budget = Duration::from_millis(500);
    rig.put("m.pst", &pattern(5000, 1));
    rig.put("n.txt", b"n");
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    let h = open_rw(&d, "m.pst");
    d.readdir(ROOT).unwrap();
    rig.faults.all(Fault::Hang);
    std::thread::scope(|s| {
        // Changes of names hang; the open container goes on meanwhile, without them.
        let changes = s.spawn(|| {
            d.mkdir(ROOT, "made", 0o755, None).unwrap();
            d.rename(ROOT, "n.txt", ROOT, "o.txt", true).unwrap();
            d.symlink(ROOT, "l", "o.txt", None).unwrap();
        });
        for i in 0..50 {
            d.write(h, i * 10, b"more").unwrap();
            assert_eq!(d.read(h, i * 10, 4).unwrap(), b"more");
        }
        d.fsync(h).unwrap();
        changes.join().unwrap();
    });
    assert!(rig.faults.hanging() > 0, "nothing hung");
    assert_eq!(d.pending_namespace().len(), 3);
    d.release(h).unwrap();
    rig.faults.heal();
    while rig.faults.hanging() > 0 {
        std::thread::yield_now();
    }
    drop(d);
    rig.budget = Duration::from_secs(10);
    let d = rig.drive(State::Online);
    all_done(&d);
    assert_eq!(on_share(&rig), ["l", "m.pst", "made/", "o.txt"]);
}

#[test]
fn a_long_path_meets_a_hung_share_once() {
    let mut rig = Rig::new();
    rig.budget = Duration::from_millis(200);
    rig.put("a/b/c/d/e/f/m.pst", &pattern(5000, 1));
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    rig.faults.all(Fault::Hang);
    let mut at = ROOT;
    for name in ["a", "b", "c", "d", "e", "f", "m.pst"] {
        at = d.lookup(at, name).unwrap().id;
    }
    let h = d.open_file(at, true, true).unwrap().handle;
    assert_eq!(d.read(h, 0, 10).unwrap(), pattern(10, 1));
    // The first name, the probe, and one that came while the probe was out.
    assert!(rig.faults.hanging() <= 3, "{} hung", rig.faults.hanging());
    rig.faults.heal();
}

#[test]
fn a_directory_never_moves_into_itself() {
    let rig = Rig::new();
    std::fs::create_dir_all(rig.share_file("a/b/c")).unwrap();
    for state in [State::Online, State::Offline] {
        let d = rig.drive(State::Online);
        let (a, b, c) = (
            d.find("a").unwrap(),
            d.find("a/b").unwrap(),
            d.find("a/b/c").unwrap(),
        );
        for dir in [ROOT, a, b, c] {
            d.readdir(dir).unwrap();
        }
        d.set_state(state);
        for (under, name) in [(b, "x"), (c, "x"), (a, "x")] {
            let moved = d.rename(ROOT, "a", under, name, true);
            assert!(matches!(moved, Err(Error::Invalid(_))), "{moved:?}");
        }
        assert!(d.pending_namespace().is_empty());
        assert_eq!(d.find("a/b/c").unwrap(), c);
    }
    // Two directories, each moved into the other, one of them by someone else.
    let rig = Rig::new();
    std::fs::create_dir_all(rig.share_file("a")).unwrap();
    std::fs::create_dir_all(rig.share_file("b")).unwrap();
    let d = rig.drive(State::Online);
    let (_, b) = (d.find("a").unwrap(), d.find("b").unwrap());
    d.set_state(State::Offline);
    d.rename(ROOT, "a", b, "a", true).unwrap();
    std::fs::rename(rig.share_file("b"), rig.share_file("a/b")).unwrap();
    d.set_state(State::Online);
    let report = d.reintegrate("D", "H").unwrap();
    assert!(
        matches!(report[0].outcome, ReintegratedOutcome::Dropped(_)),
        "{report:?}"
    );
    assert_eq!(on_share(&rig), ["a/", "a/b/"]);
}

/// Of a file that never was here only its time tells that another wrote it, and a time set here must not
/// hide that.
#[test]
fn a_time_set_offline_does_not_hide_what_others_wrote() {
    for restarted in [false, true] {
        let rig = Rig::new();
        rig.put("old", &pattern(9000, 1));
        rig.put("new", &pattern(500, 2));
        let d = rig.drive(State::Online);
        let old = d.find("old").unwrap();
        d.find("new").unwrap();
        d.set_state(State::Offline);
        let set = SetAttr {
            mtime: Some(470_719_000),
            ..SetAttr::default()
        };
        d.set_attr(old, &set).unwrap();
        d.rename(ROOT, "new", ROOT, "old", true).unwrap();
        d.checkpoint().unwrap();
        let d = if restarted {
            drop(d);
            rig.drive(State::Offline)
        } else {
            d
        };
        let theirs = pattern(9000, 3);
        std::fs::write(rig.share_file("old"), &theirs).unwrap();
        d.set_state(State::Online);
        d.reintegrate("D", "H").unwrap();
        let kept = std::fs::read_dir(rig.share_file("")).unwrap();
        let kept = kept.filter(|e| std::fs::read(e.as_ref().unwrap().path()).unwrap() == theirs);
        assert_eq!(kept.count(), 1, "restarted: {restarted}");
    }
}
