//! A drive over a share on an SMB server, as a user mounts it: the program, smbd and FUSE.
#![allow(clippy::unwrap_used)]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/port.rs"]
mod port;
#[path = "support/skip.rs"]
mod skip;
#[allow(dead_code)] // Some of it is for the tests of the share itself.
#[path = "../vfs/tests/common/smbd.rs"]
mod smbd;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use machine::Machine;
use smbd::{Options, Smbd};

fn password_file(machine: &Machine, text: &str) -> String {
    let path = machine.path("password");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

/// Unmounts whatever happens: a daemon that outlives its test would keep the machine busy.
struct Mounted<'a>(&'a Machine);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.0.run(&["unmount", "--now", &self.0.path("mnt")]);
    }
}

fn within_a_minute(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "not within a minute");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_drive_over_smb_works_and_outlives_its_server() {
    let machine = Machine::new();
    let root = machine.path("share");
    fs::write(Path::new(&root).join("old.txt"), b"from the share").unwrap();
    if !Path::new("/dev/fuse").exists() {
        skip::skipped("fuse", "no /dev/fuse");
        return;
    }
    let options = Options {
        share: "smb encrypt = required",
        ..Options::default()
    };
    let Some(mut server) = Smbd::start(Path::new(&root), options) else {
        return;
    };
    let share = server.address("share").to_string();
    let password = password_file(&machine, server.password());
    let mnt = machine.path("mnt");
    let mounted = machine.run(&[
        "mount",
        "--background",
        "--share",
        &share,
        "--password-file",
        &password,
        &mnt,
    ]);
    let told = String::from_utf8_lossy(&mounted.stderr).into_owned();
    assert!(mounted.status.success(), "{told}");
    let drive = Mounted(&machine);
    let at = |name: &str| Path::new(&mnt).join(name);
    let there = |name: &str| Path::new(&root).join(name);
    assert_eq!(fs::read(at("old.txt")).unwrap(), b"from the share");
    fs::write(at("new.txt"), b"to the share").unwrap();
    assert_eq!(fs::read(there("new.txt")).unwrap(), b"to the share");
    fs::rename(at("new.txt"), at("renamed.txt")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/f"), b"x").unwrap();
    assert!(there("renamed.txt").exists() && there("dir/f").exists());
    assert!(!there("new.txt").exists());

    // The server dies: what was read is there, and what is written now comes later.
    assert_eq!(fs::read(at("renamed.txt")).unwrap(), b"to the share");
    server.kill();
    within_a_minute(|| fs::write(at("meanwhile.txt"), b"written without a server").is_ok());
    assert_eq!(
        fs::read(at("meanwhile.txt")).unwrap(),
        b"written without a server"
    );
    assert!(server.run());
    within_a_minute(|| {
        machine.run(&["sync", "now", "--drive", &mnt]);
        fs::read(there("meanwhile.txt")).is_ok_and(|t| t == b"written without a server")
    });
    assert_eq!(fs::read(at("old.txt")).unwrap(), b"from the share");
    let status = machine.run(&["status", "--drive", &mnt]);
    let status = machine::stdout(&status);
    assert!(
        status.contains(&share) && !status.contains(server.password()),
        "{status}"
    );
    drop(drive);
    // Nowhere a password: not in logs, not in state.
    let logs = walk(machine.temp.path());
    assert!(logs.iter().any(|p| p.ends_with("daemon.log")), "{logs:?}");
    for path in logs.iter().filter(|p| !p.ends_with("password")) {
        let Ok(bytes) = fs::read(path) else { continue };
        let found = bytes
            .windows(server.password().len())
            .any(|w| w == server.password().as_bytes());
        assert!(!found, "the password is in {}", path.display());
    }
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            out.extend(walk(&entry.path()));
        } else if kind.is_file() {
            out.push(entry.path());
        }
    }
    out
}

#[test]
fn a_server_that_refuses_is_said_at_once() {
    let machine = Machine::new();
    if !Path::new("/dev/fuse").exists() {
        skip::skipped("fuse", "no /dev/fuse");
        return;
    }
    let root = machine.path("share");
    let Some(server) = Smbd::start(Path::new(&root), Options::default()) else {
        return;
    };
    let share = server.address("share").to_string();
    let mnt = machine.path("mnt");
    let wrong = password_file(&machine, "wr0ng-passw0rd\n");
    let line = ["mount", "--share", &share, "--password-file", &wrong, &mnt];
    let error = machine.refused(&line, 5, "share-refused");
    assert!(error["message"].as_str().unwrap().contains("password"));
    assert!(!error.to_string().contains("wr0ng-passw0rd"));
    let right = password_file(&machine, server.password());
    let other = server.address("other").to_string();
    let line = ["mount", "--share", &other, "--password-file", &right, &mnt];
    let error = machine.refused(&line, 5, "share-refused");
    assert!(error["message"].as_str().unwrap().contains("no share"));
    fs::set_permissions(&right, PermissionsExt::from_mode(0o644)).unwrap();
    let line = ["mount", "--share", &share, "--password-file", &right, &mnt];
    machine.refused(&line, 5, "password-readable");
}

#[test]
fn a_password_may_come_by_a_descriptor() {
    let machine = Machine::new();
    if !Path::new("/dev/fuse").exists() {
        skip::skipped("fuse", "no /dev/fuse");
        return;
    }
    let root = machine.path("share");
    let Some(server) = Smbd::start(Path::new(&root), Options::default()) else {
        return;
    };
    let share = server.address("share").to_string();
    let mnt = machine.path("mnt");
    let mut command = assert_cmd::Command::cargo_bin("pstsyncd").unwrap();
    let mounted = command
        .args(["mount", "--background", "--share", &share])
        .args(["--password-fd", "0", &mnt])
        .env("PSTSYNCD_RUNTIME_DIR", machine.temp.path().join("run"))
        .env("XDG_STATE_HOME", machine.temp.path().join("state"))
        .env("HOME", machine.temp.path())
        .write_stdin(server.password())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&mounted.stderr).into_owned();
    assert!(mounted.status.success(), "{told}");
    let drive = Mounted(&machine);
    fs::write(Path::new(&mnt).join("f"), b"x").unwrap();
    assert!(Path::new(&root).join("f").exists());
    drop(drive);
}
