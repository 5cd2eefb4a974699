//! The day after: the daemon was killed, the share is gone, and the cache has to give out what was
//! written.

mod support;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Rig, edit, read_all, sha256};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Every file under a directory with its bytes.
fn image(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).expect("lists").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push((path.display().to_string(), fs::read(&path).expect("reads")));
            }
        }
    }
    found.sort();
    found
}

/// A drive with a PST that was edited offline, a new file and a renamed one; then the daemon is
/// killed and the share removed. Answers the hash of the PST as programs saw it last.
fn after_the_crash(rig: &mut Rig) -> String {
    fs::write(rig.path("share/notes.txt"), b"as on the share").expect("writes");
    fs::write(rig.path("share/large.bin"), vec![7; 3 << 20]).expect("writes");
    rig.mount("cached");
    let drive = rig.path("drive");
    assert_eq!(fs::read(drive.join("notes.txt")).expect("reads").len(), 15);
    // Of this one only the beginning is fetched.
    let large = fs::File::open(drive.join("large.bin")).expect("opens");
    large.read_exact_at(&mut [0; 10], 0).expect("reads");
    drop(large);
    read_all(&rig.on_drive());
    // What was only fetched need not survive a kill; after an unmount it is there.
    rig.unmount();
    rig.mount("offline");
    assert!(edit(&rig.on_drive()).status().expect("runs").success());
    fs::create_dir(drive.join("new")).expect("makes");
    fs::write(drive.join("new/made offline"), b"only here").expect("writes");
    fs::rename(drive.join("notes.txt"), drive.join("new/notes.txt")).expect("renames");
    let hash = sha256(&rig.on_drive());
    rig.kill_daemon();
    rig.stop_agent();
    fs::remove_dir_all(rig.path("share")).expect("the share is gone");
    hash
}

#[test]
fn what_was_written_is_taken_out_of_a_cache_without_daemon_or_share() {
    let mut rig = Rig::new(&pst::create_empty(b"cache tools 0001").expect("a PST"));
    let hash = after_the_crash(&mut rig);
    let (state, to) = (rig.path("state"), rig.path("out"));
    let before = image(&state);

    let output = rig
        .command(&["cache", "ls", "--json", "--cache", utf8(&state)])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(2), "something waits");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let file = |path: &str| {
        let found = lines.iter().find(|l| l["file"]["path"] == path);
        found.unwrap_or_else(|| panic!("{path} in {text}"))["file"].clone()
    };
    assert_eq!(file("Mail/work.pst")["pending"], true);
    assert_eq!(file("Mail/work.pst")["container"], true);
    assert_eq!(file("new/made offline")["pending"], true);
    let large = file("large.bin");
    assert_eq!(large["pending"], false);
    assert!(large["cached"].as_u64() < large["size"].as_u64(), "{large}");
    let changes = lines.last().expect("a summary")["summary"]["changes"].clone();
    assert!(!changes.as_array().expect("a list").is_empty());

    let verified = rig.ok(&["cache", "verify", "--cache", utf8(&state)]);
    assert_eq!(verified["summary"]["containers"], 1, "{verified}");

    let all = ["cache", "export", "--cache", utf8(&state), "--all", "--to"];
    let (code, answer) = rig.run(&[&all[..], &[utf8(&to)]].concat());
    assert_eq!(code, 5, "one is not whole: {answer}");
    assert_eq!(sha256(&to.join("Mail/work.pst")), hash);
    assert_eq!(
        fs::read(to.join("new/made offline")).expect("there"),
        b"only here"
    );
    assert_eq!(
        fs::read(to.join("new/notes.txt")).expect("there"),
        b"as on the share"
    );
    assert!(!to.join("notes.txt").exists() && !to.join("large.bin").exists());
    let mode = fs::metadata(to.join("Mail/work.pst"))
        .expect("there")
        .permissions();
    assert_eq!(mode.mode() & 0o077, 0, "it is mail");

    // Nothing is overwritten, and parts are taken where that is wished.
    fs::write(to.join("new/notes.txt"), b"mine").expect("writes");
    let (code, _) = rig.run(&[&all[..], &[utf8(&to), "--partial"]].concat());
    assert_eq!(code, 5);
    assert_eq!(fs::read(to.join("new/notes.txt")).expect("there"), b"mine");
    let part = read_all(&to.join("large.bin.partial"));
    let holes = fs::read_to_string(to.join("large.bin.partial.holes")).expect("there");
    assert_eq!(part.len(), 3 << 20);
    let mut missing = vec![false; part.len()];
    for line in holes.lines().filter(|l| !l.starts_with('#')) {
        let (from, to) = line.split_once(' ').expect("two numbers");
        let at = |n: &str| n.parse::<usize>().expect("a number");
        missing[at(from)..at(to)].fill(true);
    }
    assert!(missing.iter().any(|m| *m) && !missing[0]);
    let right = part
        .iter()
        .zip(&missing)
        .all(|(b, m)| *b == if *m { 0 } else { 7 });
    assert!(right, "what is not listed as a hole is the file's");

    assert!(
        image(&state) == before,
        "the cache was changed by looking into it"
    );
}

#[test]
fn damage_is_found_and_said() {
    let mut rig = Rig::new(&pst::create_empty(b"cache tools 0002").expect("a PST"));
    after_the_crash(&mut rig);
    let state = rig.path("state");
    let verify = ["cache", "verify", "--cache", utf8(&state)];
    rig.ok(&verify);
    let good = image(&state);
    let restore = || {
        for (path, bytes) in &good {
            fs::write(path, bytes).expect("writes");
        }
    };
    let flip = |path: &str, at: u64| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("reads");
        file.write_all_at(&[byte[0] ^ 0x40], at).expect("writes");
    };

    let meta = good.iter().find(|(p, _)| p.ends_with("drive/meta"));
    flip(&meta.expect("metadata").0, 100);
    let (code, answer) = rig.run(&verify);
    assert_eq!(code, 5, "{answer}");
    restore();
    // A PST loses its trees, and a copy that nobody changed its last bytes.
    let data = good.iter().filter(|(p, _)| p.contains("/data/"));
    let mut cut = 0;
    for (path, bytes) in data {
        if !bytes.starts_with(b"!BDN") && bytes != b"as on the share" {
            continue;
        }
        cut += 1;
        let file = OpenOptions::new().write(true).open(path).expect("opens");
        let left = bytes.len().min(40_000) / 2;
        file.set_len(left as u64).expect("cuts");
        let (code, answer) = rig.run(&verify);
        assert_eq!(code, 5, "{path}: {answer}");
        assert_eq!(answer["summary"]["findings"], 1, "{answer}");
        restore();
    }
    assert_eq!(cut, 2);
    rig.ok(&verify);
}

#[test]
fn a_damaged_journal_is_said_and_what_is_whole_is_taken_out() {
    let mut rig = Rig::new(&pst::create_empty(b"cache tools 0005").expect("a PST"));
    after_the_crash(&mut rig);
    let state = rig.path("state");
    let good = image(&state);
    let restore = || {
        for (path, bytes) in &good {
            fs::write(path, bytes).expect("writes");
        }
    };
    let segments = good.iter().filter(|(p, _)| p.ends_with(".seg"));
    let (path, bytes) = segments.max_by_key(|s| &s.0).expect("a segment");
    let used = bytes.iter().rposition(|b| *b != 0).expect("records");
    let lines = |verb: &[&str]| {
        let args = [&["cache", "--json"], verb, &["--cache", utf8(&state)]].concat();
        let output = rig.command(&args).output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };

    // A bit flips in the middle of what was flushed: no torn end. Both what wrote a file, and what named one.
    let name = b"made offline";
    let named = bytes.windows(name.len()).position(|w| w == name);
    let named = named.expect("its making is in the journal");
    for (round, spot) in [used / 2, named].into_iter().enumerate() {
        let mut damaged = bytes.clone();
        damaged[spot] ^= 0x40;
        fs::write(path, &damaged).expect("writes");
        let before = image(&state);

        let (code, text) = lines(&["verify"]);
        assert_eq!(code, Some(5), "{text}");
        let findings: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .filter(|l: &serde_json::Value| l["finding"]["code"] == "journal-damaged")
            .collect();
        let [finding] = &findings[..] else {
            panic!("one place: {text}");
        };
        let said = finding["finding"]["offset"].as_u64().expect("a place") as usize;
        assert!(said <= spot && spot < said + 70_000, "{said} for {spot}");
        assert!(
            text.contains("pstsyncd cache export"),
            "the next step: {text}"
        );

        let (code, text) = lines(&["ls"]);
        assert_eq!(code, Some(5), "{text}");
        assert!(
            text.contains("\"notes.txt") || text.contains("new/notes.txt"),
            "{text}"
        );
        assert!(text.contains("damaged in one place"), "{text}");

        let out = rig.path(&format!("saved-{round}"));
        let (code, text) = lines(&["export", "--all", "--to", utf8(&out)]);
        assert_eq!(code, Some(5), "{text}");
        assert!(text.contains("damaged in one place"), "{text}");
        assert!(text.contains("pstsyncd pst check"), "the next step: {text}");
        // What the damage is not about is whole: a copy of the share's file under one of its names.
        let notes = image(&out)
            .into_iter()
            .find(|(p, _)| p.ends_with("notes.txt"));
        assert_eq!(notes.map(|n| n.1), Some(b"as on the share".to_vec()));
        assert!(out.join("Mail/work.pst").exists(), "{text}");

        // The drive does not start as if nothing had been, and says what to do.
        fs::create_dir_all(rig.path("share")).expect("makes");
        let mount = rig.try_mount("offline");
        assert!(!mount.status.success());
        let said = String::from_utf8_lossy(&mount.stdout).into_owned()
            + &String::from_utf8_lossy(&mount.stderr);
        assert!(said.contains("cannot be read"), "{said}");
        assert!(
            said.contains("pstsyncd cache export"),
            "the next step: {said}"
        );
        let journal = |i: &[(String, Vec<u8>)]| -> Vec<_> {
            // The spare segment holds nothing.
            let of = |p: &str| {
                (p.contains("/journal/") && !p.ends_with("/spare")) || p.contains("/data/")
            };
            i.iter().filter(|(p, _)| of(p)).cloned().collect()
        };
        let (was, is) = (journal(&before), journal(&image(&state)));
        let changed: Vec<_> = was
            .iter()
            .filter(|w| !is.contains(w))
            .chain(is.iter().filter(|i| !was.contains(i)))
            .map(|(path, bytes)| (path, bytes.len()))
            .collect();
        assert!(changed.is_empty(), "nothing is dropped: {changed:?}");
        restore();
    }
    rig.ok(&["cache", "verify", "--cache", utf8(&state)]);
}

#[test]
fn a_cache_in_use_is_left_alone_and_a_copy_is_held_against_the_share() {
    let mut rig = Rig::new(&pst::create_empty(b"cache tools 0003").expect("a PST"));
    fs::write(rig.path("share/notes.txt"), vec![9; 5000]).expect("writes");
    rig.mount("cached");
    assert_eq!(
        fs::read(rig.path("drive/notes.txt")).expect("reads").len(),
        5000
    );
    let state = rig.path("state");
    let at = ["--cache", utf8(&state)];
    for verb in [&["cache", "ls"][..], &["cache", "verify"]] {
        let (code, answer) = rig.run(&[verb, &at].concat());
        assert_eq!(
            (code, &answer["error"]["code"]),
            (5, &"cache-in-use".into())
        );
    }
    rig.unmount();
    let share = rig.path("share");
    let verify = [&["cache", "verify", "--against", utf8(&share)][..], &at].concat();
    let answer = rig.ok(&verify);
    assert!(
        answer["summary"]["compared"].as_u64() >= Some(5000),
        "{answer}"
    );
    // One byte of the copy turns.
    let copies = image(&state.join("drive/data"));
    let (path, _) = copies
        .iter()
        .find(|(_, b)| b.len() == 5000)
        .expect("the copy");
    let file = OpenOptions::new().write(true).open(path).expect("opens");
    file.write_all_at(&[8], 4321).expect("writes");
    let output = rig.command(&verify).arg("--json").output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(
        text.contains("differs-from-share") && text.contains("4321"),
        "{text}"
    );
    let (code, answer) = rig.run(&["cache", "ls", "--cache", "/nonexistent"]);
    assert_eq!(
        (code, &answer["error"]["code"]),
        (5, &"no-cache".into()),
        "{answer}"
    );
}

#[test]
fn unmount_waits_and_says_for_what() {
    let mut rig = Rig::new(&pst::create_empty(b"cache tools 0004").expect("a PST"));
    rig.mount("cached");
    read_all(&rig.on_drive());
    let drive = rig.path("drive");
    assert!(edit(&rig.on_drive()).status().expect("runs").success());
    rig.stop_agent();
    // One try, and the drive goes on.
    let (code, answer) = rig.run(&["unmount", "--timeout", "0", utf8(&drive)]);
    assert_eq!(code, 2, "{answer}");
    assert!(fs::metadata(rig.on_drive()).is_ok());
    let mut waiting = rig
        .command(&["unmount", "--json", utf8(&drive)])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(waiting.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("UTF-8");
    assert!(
        first.contains("\"waiting\"") && first.contains("work.pst"),
        "{first}"
    );
    // Broken off, all is as it was; begun again, it comes to its end when the agent is back.
    let pid = waiting.id().to_string();
    let status = Command::new("kill").args(["-INT", &pid]).status();
    assert!(status.expect("kill").success() && !waiting.wait().expect("ends").success());
    assert!(fs::metadata(rig.on_drive()).is_ok());
    let mail = rig.dump(&rig.on_drive());
    let again = rig.command(&["unmount", utf8(&drive)]).spawn();
    let mut again = again.expect("runs");
    rig.start_agent();
    assert!(again.wait().expect("ends").success());
    assert!(
        mail == rig.dump(&rig.on_share()),
        "the share has the drive's mail"
    );
    assert!(fs::read_dir(&drive).expect("lists").next().is_none());
}

#[test]
fn a_cache_is_not_begun_anew_while_its_volume_is_elsewhere_and_patterns_are_kept() {
    let rig = Rig::new(&pst::create_empty(b"cache tools 0005").expect("a PST"));
    fs::write(rig.path("share/box.mail"), b"!BDN, but small").expect("writes");
    let (share, drive) = (rig.path("share"), rig.path("drive"));
    let mount = |cache: &str, more: &[&str]| {
        let mut command = rig.command(&["mount", "--background", "--json", "--mode", "cached"]);
        command.env("XDG_STATE_HOME", rig.path("home"));
        command.arg("--share").arg(&share).args(more);
        command.arg("--cache").arg(rig.path(cache)).arg(&drive);
        let output = command.output().expect("runs");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8(text).expect("UTF-8"),
        )
    };
    let containers = || {
        let (_, status) = rig.run(&["status"]);
        let files = status["files"].as_array().expect("files").clone();
        files
            .iter()
            .filter(|f| f["container"] == true)
            .filter_map(|f| f["path"].as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    // The drive learns of other directories by and by.
    let expect = |wanted: &str| {
        let end = Instant::now() + Duration::from_secs(30);
        while containers() != [wanted] {
            assert!(Instant::now() < end, "{:?}, not {wanted}", containers());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let look = || drop(fs::read(drive.join("box.mail")).expect("reads"));
    let unmount = || {
        rig.ok(&["unmount", utf8(&drive)]);
    };
    let (code, text) = mount("stick", &["--monitor", "*.mail"]);
    assert_eq!(code, Some(0), "{text}");
    look();
    expect("box.mail");
    unmount();
    // The stick is not plugged in: its mountpoint is an empty directory.
    fs::rename(rig.path("stick"), rig.path("pocket")).expect("unplugged");
    let (code, text) = mount("stick", &[]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("volume-missing"), "{text}");
    assert!(!rig.path("stick/drive").exists(), "nothing was made");
    // Elsewhere it is the same volume, and the patterns came with it.
    let (code, text) = mount("pocket", &[]);
    assert_eq!(code, Some(0), "{text}");
    look();
    expect("box.mail");
    unmount();
    let (code, text) = mount("stick", &["--new-cache"]);
    assert_eq!(code, Some(0), "{text}");
    look();
    // As at first.
    expect("Mail/work.pst");
    unmount();
}
