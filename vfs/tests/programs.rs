//! What programs do to each other through the mount: locks, appending, holes; and who may mount.
//!
//! Programs beside this one are this test's own executable, called again for one of the `part_of_`
//! tests with what to do in an environment variable; without that variable these do nothing.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Rig, fuse_missing, skip};
use rustix::fs::{FlockOperation, SeekFrom, fcntl_lock, flock, seek};
use vfs::fuse::{MountHandle, MountOptions, mount};
use vfs::{Drive, State};

const WHAT: &str = "VFS_TEST_PART";

fn part(test: &str, what: &str) -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["--exact", test, "--nocapture"]).env(WHAT, what);
    c
}

fn mounted(rig: &Rig, options: &MountOptions) -> (std::sync::Arc<Drive>, MountHandle, String) {
    let drive = rig.drive(State::Online);
    let at = rig.tmp.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let handle = mount(drive.clone(), &at, options).unwrap();
    (drive, handle, at.to_str().unwrap().to_owned())
}

/// Tries the lock that it is told of: 0 where it gets it, 7 where another has it.
#[test]
fn part_of_locking() {
    let Ok(what) = std::env::var(WHAT) else {
        return;
    };
    let (kind, path) = what.split_once(' ').unwrap();
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let got = match kind {
        "flock" => flock(&f, FlockOperation::NonBlockingLockExclusive),
        "flock-shared" => flock(&f, FlockOperation::NonBlockingLockShared),
        "range" => fcntl_lock(&f, FlockOperation::NonBlockingLockExclusive),
        _ => fcntl_lock(&f, FlockOperation::NonBlockingLockShared),
    };
    std::process::exit(match got {
        Ok(()) => 0,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => 7,
        Err(_) => 1,
    });
}

#[test]
fn locks_hold_between_programs_in_every_state() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    rig.put("mail.pst", &[1; 5000]);
    rig.put("note.txt", b"note");
    let (drive, mut handle, at) = mounted(&rig, &MountOptions::default());
    drive.fill().unwrap();
    drive.fill_file("note.txt").unwrap();
    let other = |kind: &str, file: &str| {
        let mut c = part("part_of_locking", &format!("{kind} {at}/{file}"));
        c.stdout(Stdio::null()).stderr(Stdio::null());
        match c.status().unwrap().code() {
            Some(0) => true,
            Some(7) => false,
            other => panic!("{kind} {file}: {other:?}"),
        }
    };
    for state in [State::Online, State::Cached, State::Offline] {
        drive.set_state(state);
        for file in ["mail.pst", "note.txt"] {
            let open = || {
                let mut o = OpenOptions::new();
                o.read(true)
                    .write(true)
                    .open(format!("{at}/{file}"))
                    .unwrap()
            };
            let f = open();
            flock(&f, FlockOperation::LockExclusive).unwrap();
            assert!(!other("flock", file) && !other("flock-shared", file));
            assert!(other("range", file), "two kinds, as natively");
            flock(&f, FlockOperation::LockShared).unwrap();
            assert!(!other("flock", file) && other("flock-shared", file));
            flock(&f, FlockOperation::Unlock).unwrap();
            assert!(other("flock", file));
            fcntl_lock(&f, FlockOperation::LockShared).unwrap();
            assert!(!other("range", file) && other("range-shared", file));
            fcntl_lock(&f, FlockOperation::LockExclusive).unwrap();
            assert!(!other("range-shared", file));
            // What the drive does below the handle is no matter for its locks.
            drive.set_state(State::Cached);
            assert!(!other("range", file));
            drop(f);
            assert!(other("range", file) && other("flock", file));
            drive.set_state(state);
        }
    }
    drive.set_state(State::Online);
    handle.unmount().unwrap();
}

/// Appends numbered lines.
#[test]
fn part_of_appending() {
    let Ok(what) = std::env::var(WHAT) else {
        return;
    };
    let (name, path) = what.split_once(' ').unwrap();
    let mut f = OpenOptions::new().append(true).open(path).unwrap();
    for i in 0..200 {
        f.write_all(format!("{name} {i}\n").as_bytes()).unwrap();
    }
}

#[test]
fn appends_of_several_programs_never_overwrite_each_other() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    rig.put("log.txt", b"");
    let (drive, mut handle, at) = mounted(&rig, &MountOptions::default());
    let log = format!("{at}/log.txt");
    let mut total = 0;
    for state in [State::Online, State::Cached, State::Offline] {
        drive.set_state(state);
        let programs: Vec<_> = (0..3)
            .map(|p| {
                let mut c = part("part_of_appending", &format!("{state:?}{p} {log}"));
                c.stdout(Stdio::null()).spawn().unwrap()
            })
            .collect();
        for mut p in programs {
            assert!(p.wait().unwrap().success());
        }
        total += 600;
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!(text.lines().count(), total, "{state:?}");
        for p in 0..3 {
            // In the order in which each wrote them, none torn.
            let who = format!("{state:?}{p} ");
            let mine = text.lines().filter_map(|l| l.strip_prefix(&who));
            let numbers: Vec<u32> = mine.map(|n| n.parse().unwrap()).collect();
            assert_eq!(numbers, (0..200).collect::<Vec<_>>());
        }
    }
    drive.set_state(State::Online);
    handle.unmount().unwrap();
}

#[test]
fn holes_read_as_zeros_and_are_found_as_data() {
    if fuse_missing() {
        return;
    }
    let rig = Rig::new();
    let (drive, mut handle, at) = mounted(&rig, &MountOptions::default());
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    for (i, state) in [State::Online, State::Offline].into_iter().enumerate() {
        drive.set_state(state);
        let path = format!("{at}/sparse{i}");
        let f = File::create_new(&path).unwrap();
        f.write_all_at(b"end", 3_000_000).unwrap();
        f.sync_all().unwrap();
        let f = File::open(&path).unwrap();
        let mut buf = vec![1; 3_000_003];
        f.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf[..3_000_000].iter().all(|b| *b == 0) && buf.ends_with(b"end"));
        // No hole is shown, which is always a right answer: one hole, at the end.
        assert_eq!(seek(&f, SeekFrom::Data(5)).unwrap(), 5);
        assert_eq!(seek(&f, SeekFrom::Hole(5)).unwrap(), 3_000_003);
        let past = seek(&f, SeekFrom::Data(3_000_003));
        assert_eq!(past, Err(rustix::io::Errno::NXIO));
    }
    drive.set_state(State::Online);
    drive.reintegrate("D", "H").unwrap();
    drive.push_opaque("sparse1", "D", "H").unwrap();
    handle.unmount().unwrap();
    for i in 0..2 {
        let there = rig.get(&format!("sparse{i}"));
        assert!(there.len() == 3_000_003 && there.ends_with(b"end"));
    }
}

/// Mounts as whoever it is, in a directory of its own, and uses the drive.
#[test]
fn part_of_mounting() {
    let Ok(what) = std::env::var(WHAT) else {
        return;
    };
    assert!(!rustix::process::geteuid().is_root());
    let rig = Rig::new();
    rig.put("there.txt", b"there");
    let options = MountOptions {
        allow_other: what == "for-all",
        default_permissions: what == "for-all",
        ..MountOptions::default()
    };
    let (drive, mut handle, at) = mounted(&rig, &options);
    assert_eq!(fs::read(format!("{at}/there.txt")).unwrap(), b"there");
    fs::write(format!("{at}/new.txt"), b"new").unwrap();
    fs::rename(format!("{at}/new.txt"), format!("{at}/newer.txt")).unwrap();
    assert_eq!(fs::read_dir(&at).unwrap().count(), 2);
    drive.set_state(State::Offline);
    fs::create_dir(format!("{at}/d")).unwrap();
    fs::write(format!("{at}/d/away.txt"), b"away").unwrap();
    let chown = std::os::unix::fs::chown(format!("{at}/d/away.txt"), Some(0), None);
    if what == "for-all" {
        assert_eq!(chown.unwrap_err().raw_os_error(), Some(1), "EPERM");
    }
    fs::set_permissions(rig.tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    println!("ready {at}");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    drive.set_state(State::Online);
    drive.reintegrate("D", "H").unwrap();
    handle.unmount().unwrap();
    assert!(!Path::new(&at).join("there.txt").exists());
    assert_eq!(rig.get("newer.txt"), b"new");
    println!("mounted, used and unmounted");
}

/// A shell as an ordinary user, in a mount namespace where that user may open /dev/fuse (and where
/// fuse.conf says what `conf` does).
fn as_ordinary_user(dir: &Path, conf: &str, what: &str) -> Command {
    let script = r#"
set -e
mknod "$1/fuse" c 10 229; chmod 666 "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
printf '%s\n' "$2" > "$1/fuse.conf"; chmod 644 "$1/fuse.conf"; mount --bind "$1/fuse.conf" /etc/fuse.conf
if [ "$3" = try ]; then exec setpriv --reuid 65534 --regid 65534 --clear-groups test -r /dev/fuse; fi
export TMPDIR="$1/home"
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$4" --exact part_of_mounting --nocapture
"#;
    let exe = dir.join("test");
    if !exe.exists() {
        // Where it was built others may not reach it.
        fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
        let home = dir.join("home");
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(65534), Some(65534)).unwrap();
    }
    for left in ["fuse", "fuse.conf"] {
        let _ = fs::remove_file(dir.join(left));
    }
    let mut c = Command::new("unshare");
    c.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]);
    c.arg(dir).args([conf, what]).arg(&exe);
    c
}

#[test]
fn an_ordinary_user_mounts_and_lets_others_in_on_request() {
    if fuse_missing() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip::skipped("root", "being an ordinary user needs root first");
    }
    let tmp = tempfile::tempdir().unwrap();
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let ready = as_ordinary_user(tmp.path(), "", "try").output();
    match ready {
        Ok(o) if o.status.success() => {}
        other => {
            let why = format!("no user can be given /dev/fuse here: {other:?}");
            return skip::skipped("ordinary-user", &why.replace('\n', " "));
        }
    }
    for (what, conf, root_enters) in [("alone", "", false), ("for-all", "user_allow_other", true)] {
        let mut c = as_ordinary_user(tmp.path(), conf, "run");
        let mut child = c
            .env(WHAT, what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        let at = loop {
            let mut line = String::new();
            let n = std::io::BufRead::read_line(&mut out, &mut line).unwrap();
            assert!(n > 0, "{what}: ended before it was ready: {said}");
            said += &line;
            if let Some((_, at)) = line.split_once("ready ") {
                break at.trim().to_owned();
            }
        };
        // Root, from the same namespace.
        let seen = Command::new("nsenter")
            .args(["-m", "-t", &child.id().to_string(), "cat"])
            .arg(format!("{at}/d/away.txt"))
            .output()
            .unwrap();
        assert_eq!(seen.stdout == b"away", root_enters, "{what}: {seen:?}");
        drop(child.stdin.take());
        std::io::Read::read_to_string(&mut out, &mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() && said.contains("mounted, used"), "{said}");
    }
    // Asked for without the system's leave it is an error that says so, not a drive for nobody.
    let mut c = as_ordinary_user(tmp.path(), "", "run");
    let refused = c
        .env(WHAT, "for-all")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let all = String::from_utf8_lossy(&refused.stdout) + String::from_utf8_lossy(&refused.stderr);
    assert!(all.contains("user_allow_other"), "{all}");
}
