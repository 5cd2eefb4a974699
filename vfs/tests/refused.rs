//! What the share refuses for long (no permission, a read-only file system, a name it does not take) is
//! kept, said and tried again; what needs it waits behind, everything else goes on. And a rename that was
//! never answered, met by what others did to its names since.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::io::ErrorKind;

use common::{Rig, heal, pattern, put_file, read_all};
use vfs::share::fault::Fault;
use vfs::{Drive, Error, PushOutcome, ROOT, ReintegratedOutcome as O, SetAttr, State};

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ENAMETOOLONG: i32 = 36;

fn outcomes(d: &Drive) -> Vec<(String, O)> {
    let report = d.reintegrate("D", "H").unwrap();
    report.into_iter().map(|r| (r.what, r.outcome)).collect()
}

fn refused(d: &Drive) -> Vec<String> {
    d.status().refused.into_iter().map(|r| r.what).collect()
}

fn push_all(d: &Drive) {
    for path in d.status().dirty_opaque {
        let pushed = d.push_opaque(&path, "D", "H").unwrap();
        assert!(
            matches!(pushed, PushOutcome::Pushed(_)),
            "{path}: {pushed:?}"
        );
    }
}

fn names(rig: &Rig, dir: &str) -> Vec<String> {
    let all = std::fs::read_dir(rig.share_file(dir)).unwrap();
    let mut names: Vec<String> = all
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The toy version drops the change, or lets it hold up everything.
#[test]
fn a_refused_change_is_kept_and_the_others_go_on() {
    for code in [EPERM, EACCES, EINVAL, EROFS, ENAMETOOLONG] {
        let rig = Rig::new();
        rig.put("old.txt", b"old");
        rig.put("doc.txt", b"doc");
        rig.put("other.txt", b"other");
        let d = rig.drive(State::Online);
        for path in ["old.txt", "doc.txt", "other.txt"] {
            d.fill_file(path).unwrap();
        }
        d.set_state(State::Offline);
        // The first is refused; the second follows it into the directory that is not there.
        let dir = d.mkdir(ROOT, "dir", 0o755, None).unwrap().id;
        put_file(&d, dir, "in.txt", b"in a directory");
        // Refused, and its name taken by a new file.
        d.rename(ROOT, "old.txt", ROOT, "older.txt", true).unwrap();
        put_file(&d, ROOT, "old.txt", b"new under the old name");
        // Saved by way of a new file.
        put_file(&d, ROOT, "doc.tmp", b"doc, saved");
        d.rename(ROOT, "doc.tmp", ROOT, "doc.txt", true).unwrap();
        // Nothing to do with any of it.
        put_file(&d, ROOT, "free.txt", b"free");
        d.unlink(ROOT, "other.txt").unwrap();
        d.set_state(State::Online);

        rig.faults.all_on("dir", Fault::Errno(code));
        let report = outcomes(&d);
        assert!(matches!(&report[0], (what, O::Refused(_)) if what == "create dir"));
        assert!(report[1..].iter().all(|r| r.1 == O::Done), "{report:?}");
        assert_eq!(refused(&d), ["create dir"]);
        assert_eq!(d.pending_namespace(), ["create dir", "create dir/in.txt"]);
        assert!(!d.has_new_changes());
        let pushed = d.push_opaque("dir/in.txt", "D", "H");
        assert!(matches!(pushed, Err(Error::Refused { .. })), "{pushed:?}");
        assert_eq!(
            names(&rig, ""),
            ["doc.txt", "free.txt", "old.txt", "older.txt"]
        );

        // It stays so over a restart, is served from here, and is asked for again.
        d.checkpoint().unwrap();
        drop(d);
        let d = rig.drive(State::Online);
        assert_eq!(read_all(&d, "dir/in.txt").unwrap(), b"in a directory");
        for tries in 1..4 {
            assert_eq!(outcomes(&d).len(), 1);
            assert_eq!(d.status().refused[0].tries, tries);
        }
        // Not asked for again by what only brings news.
        let calls = rig.faults.calls();
        assert!(d.reintegrate_new("D", "H").unwrap().is_empty());
        assert_eq!(rig.faults.calls(), calls);

        rig.faults.heal();
        assert!(outcomes(&d).iter().all(|r| r.1 == O::Done));
        assert!(refused(&d).is_empty() && d.pending_namespace().is_empty());
        push_all(&d);
        assert_eq!(rig.get("dir/in.txt"), b"in a directory");
        assert_eq!(rig.get("doc.txt"), b"doc, saved");
        assert_eq!(rig.get("older.txt"), b"old");
        assert_eq!(rig.get("old.txt"), b"new under the old name");
        assert_eq!(rig.get("free.txt"), b"free");
        assert!(!rig.share_file("other.txt").exists());
    }
}

/// What takes the name that a refused rename was to leave, and what empties a directory, waits.
#[test]
fn what_needs_a_refused_change_waits_behind_it() {
    for (path, meanwhile) in [
        ("a.txt", &["a.txt", "gone.txt", "out.txt"][..]),
        ("dir/in.txt", &["a.txt", "b.txt", "dir", "gone.txt"]),
        ("gone.txt", &["a.txt", "b.txt", "gone.txt", "out.txt"]),
    ] {
        let rig = Rig::new();
        rig.put("a.txt", b"the first");
        rig.put("dir/in.txt", b"in");
        rig.put("gone.txt", b"gone");
        let d = rig.drive(State::Online);
        for path in ["a.txt", "dir/in.txt", "gone.txt"] {
            d.fill_file(path).unwrap();
        }
        let dir = d.find("dir").unwrap();
        d.readdir(dir).unwrap();
        d.set_state(State::Offline);
        d.rename(ROOT, "a.txt", ROOT, "b.txt", true).unwrap();
        put_file(&d, ROOT, "a.txt", b"another");
        d.rename(dir, "in.txt", ROOT, "out.txt", true).unwrap();
        d.rmdir(ROOT, "dir").unwrap();
        d.unlink(ROOT, "gone.txt").unwrap();
        put_file(&d, ROOT, "gone.txt", b"made anew");
        d.set_state(State::Online);

        rig.faults.all_on(path, Fault::Errno(EACCES));
        outcomes(&d);
        assert_eq!(refused(&d).len(), 1, "{path}: {:?}", refused(&d));
        assert_eq!(d.pending_namespace().len(), 2, "{path}");
        assert_eq!(names(&rig, ""), meanwhile, "{path}");
        assert_eq!(rig.get("gone.txt").is_empty(), path != "gone.txt");
        rig.faults.heal();
        assert!(outcomes(&d).iter().all(|r| r.1 == O::Done));
        push_all(&d);
        assert_eq!(names(&rig, ""), ["a.txt", "b.txt", "gone.txt", "out.txt"]);
        assert_eq!(rig.get("a.txt"), b"another");
        assert_eq!(rig.get("b.txt"), b"the first");
        assert_eq!(rig.get("gone.txt"), b"made anew");
        assert_eq!(rig.get("out.txt"), b"in");
    }
}

/// A content that cannot be brought is no reason to put an empty file in the place of a good one: each call
/// is refused in turn, of a file that is renamed over another offline, or online before it was synced.
#[test]
fn a_refused_content_keeps_its_file_from_replacing_a_good_one() {
    for online in [false, true] {
        let mut refusals = 0;
        for n in 1..30 {
            let rig = Rig::new();
            rig.put("doc.txt", b"good");
            let d = rig.drive(State::Online);
            d.fill_file("doc.txt").unwrap();
            d.set_state(State::Offline);
            put_file(&d, ROOT, "doc.tmp", b"better");
            if online {
                d.set_state(State::Online);
                outcomes(&d);
                rig.faults.at(n, Fault::Errno(EACCES));
                let _ = d.rename(ROOT, "doc.tmp", ROOT, "doc.txt", true);
            } else {
                d.rename(ROOT, "doc.tmp", ROOT, "doc.txt", true).unwrap();
                d.set_state(State::Online);
                rig.faults.at(n, Fault::Errno(EACCES));
            }
            for _ in 0..3 {
                let there = rig.get("doc.txt");
                assert!(
                    there == b"good" || there == b"better",
                    "call {n}: {there:?}"
                );
                let _ = d.reintegrate("D", "H");
                refusals += d.status().refused.len();
            }
            rig.faults.heal();
            if d.find("doc.tmp").is_ok() {
                d.rename(ROOT, "doc.tmp", ROOT, "doc.txt", true).unwrap();
            }
            outcomes(&d);
            push_all(&d);
            assert_eq!(rig.get("doc.txt"), b"better", "call {n}");
            assert_eq!(names(&rig, ""), ["doc.txt"], "call {n}");
        }
        assert!(online || refusals > 0);
    }
}

/// What somebody does here about a refusal counts: another name, or removing it.
#[test]
fn another_name_or_removal_ends_a_refusal() {
    let rig = Rig::new();
    let d = rig.drive(State::Offline);
    put_file(&d, ROOT, "bad", b"one");
    put_file(&d, ROOT, "worse", b"two");
    d.set_state(State::Online);
    rig.faults.all_on("bad", Fault::Errno(EINVAL));
    assert_eq!(outcomes(&d).len(), 2);
    assert_eq!(refused(&d), ["create bad"]);
    d.rename(ROOT, "bad", ROOT, "good", true).unwrap();
    let report = outcomes(&d);
    assert!(refused(&d).is_empty(), "{report:?}");
    push_all(&d);
    assert_eq!(rig.get("good"), b"one");

    d.set_state(State::Offline);
    put_file(&d, ROOT, "bad", b"three");
    d.set_state(State::Online);
    outcomes(&d);
    assert_eq!(refused(&d), ["create bad"]);
    // Known anew after a restart, and then done with in the same call.
    drop(d);
    let d = rig.drive(State::Online);
    d.unlink(ROOT, "bad").unwrap();
    outcomes(&d);
    assert!(
        d.pending_namespace().is_empty(),
        "{:?}",
        d.pending_namespace()
    );
    rig.faults.heal();
    assert!(outcomes(&d).is_empty());
    assert_eq!(names(&rig, ""), ["good", "worse"]);
}

/// A mode that the share refuses stays asked for, and keeps neither content nor name from going.
#[test]
fn refused_attributes_hold_up_nothing_else() {
    let rig = Rig::new();
    rig.put("f.txt", b"before");
    let d = rig.drive(State::Online);
    d.fill_file("f.txt").unwrap();
    d.set_state(State::Offline);
    let node = d.find("f.txt").unwrap();
    let set = SetAttr {
        uid: Some(12345),
        ..SetAttr::default()
    };
    d.set_attr(node, &set).unwrap();
    d.rename(ROOT, "f.txt", ROOT, "g.txt", true).unwrap();
    d.set_state(State::Online);
    rig.faults.all_on("f.txt", Fault::Errno(EPERM));
    outcomes(&d);
    rig.faults.all_on("g.txt", Fault::Errno(EPERM));
    assert_eq!(refused(&d).len(), 2);
    rig.faults.heal();
    outcomes(&d);
    assert!(refused(&d).is_empty());
    assert_eq!(names(&rig, ""), ["g.txt"]);
}

/// An empty file that was kept beside another's stays itself when a second one is: each has its place.
#[test]
fn two_empty_files_of_one_name_are_two() {
    let rig = Rig::new();
    let d = rig.drive(State::Online);
    for round in 0..2 {
        d.set_state(State::Offline);
        if round == 1 {
            // Not known here: nobody looked since.
            assert!(d.find("f.txt").is_err());
        }
        put_file(&d, ROOT, "f.txt", b"");
        rig.put("f.txt", b"theirs");
        d.set_state(State::Online);
        let report = outcomes(&d);
        assert!(matches!(report[0].1, O::RenamedTo(_)), "{report:?}");
        push_all(&d);
    }
    let all = ["f (conflict D H 2).txt", "f (conflict D H).txt", "f.txt"];
    assert_eq!(names(&rig, ""), all);
    for name in &all[..2] {
        let h = common::open_rw(&d, name);
        d.write(h, 0, name.as_bytes()).unwrap();
        d.fsync(h).unwrap();
        d.release(h).unwrap();
    }
    for name in &all[..2] {
        assert_eq!(rig.get(name), name.as_bytes());
    }
    assert_eq!(read_all(&d, "f.txt").unwrap(), b"theirs");
}

/// Made here, renamed away and back, while others took the name: it is brought over under a name beside theirs,
/// twice, and ends under one and the same here and there.
#[test]
fn what_was_renamed_away_and_back_is_called_the_same_on_both_sides() {
    let rig = Rig::new();
    for name in ["one.txt", "two.txt", "g.txt"] {
        rig.put(name, name.as_bytes());
    }
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    d.set_state(State::Offline);
    put_file(&d, ROOT, "f.txt", b"ours");
    d.rename(ROOT, "f.txt", ROOT, "g.txt", true).unwrap();
    d.rename(ROOT, "one.txt", ROOT, "f.txt", false).unwrap();
    d.rename(ROOT, "g.txt", ROOT, "f.txt", true).unwrap();
    rig.put("one.txt", b"theirs, longer");
    std::fs::rename(rig.share_file("two.txt"), rig.share_file("f.txt")).unwrap();
    d.set_state(State::Online);
    for _ in 0..2 {
        d.reintegrate("D", "H").unwrap();
        push_all(&d);
    }
    let there = names(&rig, "");
    let here = d.readdir(ROOT).unwrap();
    let mut here: Vec<String> = here.into_iter().map(|e| e.name).collect();
    here.sort();
    assert_eq!(here, there);
    let mut contents: Vec<_> = there.iter().map(|name| rig.get(name)).collect();
    contents.sort();
    assert_eq!(contents, [&b"ours"[..], b"theirs, longer", b"two.txt"]);
    for name in &there {
        assert_eq!(read_all(&d, name).unwrap(), rig.get(name), "{name}");
    }
}

/// Changed on both sides while its change of name is refused: kept apart only after that, or the names on both
/// sides would part.
#[test]
fn a_conflict_waits_for_a_refused_name() {
    for n in 1..20 {
        let rig = Rig::new();
        rig.put("a.txt", b"before");
        rig.put("b.txt", b"replaced");
        let d = rig.drive(State::Online);
        d.fill_file("a.txt").unwrap();
        d.set_state(State::Offline);
        let h = common::open_rw(&d, "a.txt");
        d.write(h, 0, b"OURS").unwrap();
        d.release(h).unwrap();
        d.rename(ROOT, "a.txt", ROOT, "b.txt", true).unwrap();
        rig.put("a.txt", b"theirs");
        d.set_state(State::Online);
        rig.faults.at(n, Fault::Errno(EACCES));
        let _ = d.reintegrate("D", "H");
        let _ = d.push_opaque("b.txt", "D", "H");
        rig.faults.heal();
        d.reintegrate("D", "H").unwrap();
        for path in d.status().dirty_opaque {
            d.push_opaque(&path, "D", "H").unwrap();
        }
        let names = names(&rig, "");
        for name in &names {
            assert_eq!(
                read_all(&d, name).unwrap(),
                rig.get(name),
                "call {n}: {name}"
            );
        }
        for content in [&b"OURSre"[..], b"theirs"] {
            assert!(
                names.iter().any(|f| rig.get(f) == content),
                "call {n}: {names:?}"
            );
        }
        assert_eq!(d.readdir(ROOT).unwrap().len(), names.len(), "call {n}");
    }
}

/// As an ordinary user, who has no rights in a directory: not the fault share's word, the system's.
#[test]
fn a_directory_without_rights() {
    const AS_USER: &str = "VFS_TEST_AS_USER";
    if std::env::var_os(AS_USER).is_none() && rustix::process::getuid().is_root() {
        // Rights mean nothing to root: once more, as nobody.
        use std::os::unix::process::CommandExt;
        let own = std::env::temp_dir().join(format!("vfs-refused-{}", std::process::id()));
        std::fs::create_dir_all(&own).unwrap();
        let program = own.join("test");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        std::os::unix::fs::chown(&own, Some(65534), Some(65534)).unwrap();
        let out = std::process::Command::new(&program)
            .args(["--exact", "a_directory_without_rights", "--nocapture"])
            .env(AS_USER, "1")
            .env("TMPDIR", &own)
            .current_dir(&own)
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        std::fs::remove_dir_all(&own).unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let rights = |path: std::path::PathBuf, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let rig = Rig::new();
    rig.put("ro/old.txt", b"old");
    rig.put("ro/doc.txt", b"doc");
    rig.put("rw/x.txt", b"x");
    let d = rig.drive(State::Online);
    for path in ["ro/old.txt", "ro/doc.txt", "rw/x.txt"] {
        d.fill_file(path).unwrap();
    }
    let (ro, rw) = (d.find("ro").unwrap(), d.find("rw").unwrap());
    d.set_state(State::Offline);
    put_file(&d, ro, "new.txt", b"new");
    d.rename(ro, "old.txt", rw, "old.txt", true).unwrap();
    d.unlink(ro, "doc.txt").unwrap();
    d.unlink(rw, "x.txt").unwrap();
    put_file(&d, rw, "y.txt", b"y");
    // As version control makes them: not to be written again.
    let (_, opened) = d.create(rw, "object", 0o444, None).unwrap();
    d.write(opened.handle, 0, &pattern(5000, 7)).unwrap();
    d.release(opened.handle).unwrap();
    rights(rig.share_file("ro"), 0o555);
    d.set_state(State::Online);

    outcomes(&d);
    assert_eq!(refused(&d).len(), 3, "{:?}", d.status().refused);
    assert_eq!(names(&rig, "ro"), ["doc.txt", "old.txt"]);
    assert_eq!(names(&rig, "rw"), ["object", "y.txt"]);
    assert!(d.push_opaque("ro/new.txt", "D", "H").is_err());
    for path in ["rw/y.txt", "rw/object"] {
        let pushed = d.push_opaque(path, "D", "H").unwrap();
        assert!(
            matches!(pushed, PushOutcome::Pushed(_)),
            "{path}: {pushed:?}"
        );
    }
    assert_eq!(rig.get("rw/object"), pattern(5000, 7));
    let mode = rig
        .share_file("rw/object")
        .metadata()
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o444);
    for (path, content) in [("ro/new.txt", &b"new"[..]), ("rw/old.txt", b"old")] {
        assert_eq!(read_all(&d, path).unwrap(), content);
    }
    assert!(matches!(d.find("ro/doc.txt"), Err(Error::NotFound(_))));

    rights(rig.share_file("ro"), 0o755);
    assert!(outcomes(&d).iter().all(|r| r.1 == O::Done));
    push_all(&d);
    assert_eq!(names(&rig, "ro"), ["new.txt"]);
    assert_eq!(rig.get("ro/new.txt"), b"new");
    assert_eq!(rig.get("rw/old.txt"), b"old");
}

/// A rename that was done and never answered; `others` do something to the share; then it is brought.
fn unanswered(replace: bool, others: impl FnOnce(&Rig)) -> (Rig, Vec<String>) {
    let rig = Rig::new();
    rig.put("a.txt", b"ours");
    if replace {
        rig.put("b.txt", b"what it replaces");
    }
    let d = rig.drive(State::Online);
    d.fill().unwrap();
    for path in ["a.txt", "b.txt"] {
        let _ = d.fill_file(path);
    }
    rig.faults
        .all_on("a.txt", Fault::FailAfter(ErrorKind::ConnectionReset));
    d.rename(ROOT, "a.txt", ROOT, "b.txt", true).unwrap();
    assert_eq!(rig.get("b.txt"), b"ours", "it was done");
    assert!(!rig.share_file("a.txt").exists());
    others(&rig);
    heal(&rig, &d);
    d.reintegrate("D", "H").unwrap();
    push_all(&d);
    let names = names(&rig, "");
    for name in &names {
        assert_eq!(read_all(&d, name).unwrap(), rig.get(name), "{name}");
    }
    drop(d);
    (rig, names)
}

#[test]
fn a_rename_without_an_answer_moves_nothing_of_others() {
    for replace in [false, true] {
        let (_, names) = unanswered(replace, |_| {});
        assert_eq!(names, ["b.txt"]);
        // The old name is another's by now.
        let (rig, names) = unanswered(replace, |rig| rig.put("a.txt", b"theirs, new"));
        assert_eq!(names, ["a.txt", "b.txt"]);
        assert_eq!(rig.get("a.txt"), b"theirs, new");
        assert_eq!(rig.get("b.txt"), b"ours");
        // The new name is: it was replaced there.
        let over = |rig: &Rig| {
            rig.put("t.tmp", b"theirs, over it");
            std::fs::rename(rig.share_file("t.tmp"), rig.share_file("b.txt")).unwrap();
        };
        let (rig, names) = unanswered(replace, over);
        assert_eq!(names, ["b.txt"]);
        assert_eq!(rig.get("b.txt"), b"theirs, over it");
        // Both are.
        let (rig, names) = unanswered(replace, |rig| {
            over(rig);
            rig.put("a.txt", b"theirs, new");
        });
        assert_eq!(names, ["a.txt", "b.txt"]);
        assert_eq!(rig.get("a.txt"), b"theirs, new");
        assert_eq!(rig.get("b.txt"), b"theirs, over it");
        // Ours was taken on to a third name.
        let (rig, names) = unanswered(replace, |rig| {
            std::fs::rename(rig.share_file("b.txt"), rig.share_file("c.txt")).unwrap();
            rig.put("a.txt", b"theirs, new");
        });
        assert_eq!(names, ["a.txt", "c.txt"]);
        assert_eq!(rig.get("a.txt"), b"theirs, new");
        assert_eq!(rig.get("c.txt"), b"ours");
    }
}

/// The same with content of ours that the share does not have: it is kept beside theirs.
#[test]
fn what_was_written_after_such_a_rename_is_kept() {
    let rig = Rig::new();
    rig.put("a.txt", b"ours");
    let d = rig.drive(State::Online);
    d.fill_file("a.txt").unwrap();
    rig.faults
        .all_on("a.txt", Fault::FailAfter(ErrorKind::ConnectionReset));
    d.rename(ROOT, "a.txt", ROOT, "b.txt", true).unwrap();
    d.set_state(State::Offline);
    let h = common::open_rw(&d, "b.txt");
    d.write(h, 0, b"OURS, later").unwrap();
    d.release(h).unwrap();
    rig.put("t.tmp", b"theirs, over it");
    std::fs::rename(rig.share_file("t.tmp"), rig.share_file("b.txt")).unwrap();
    rig.put("a.txt", b"theirs, new");
    d.set_state(State::Online);
    heal(&rig, &d);
    d.reintegrate("D", "H").unwrap();
    let pushed = d.push_opaque("b.txt", "D", "H").unwrap();
    assert_eq!(pushed, PushOutcome::Conflict("b (conflict D H).txt".into()));
    assert_eq!(rig.get("a.txt"), b"theirs, new");
    assert_eq!(rig.get("b.txt"), b"theirs, over it");
    assert_eq!(rig.get("b (conflict D H).txt"), b"OURS, later");
}
