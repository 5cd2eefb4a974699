//! The password of a share in the desktop's keyring: a real Secret Service (gnome-keyring) on a message
//! bus of the test's own, smbd, and the program as a user runs it.
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
use std::path::Path;
use std::process::{Command, Output};

use machine::Machine;
use smbd::{Options, Smbd};

/// Runs a script on a bus with an unlocked keyring; `$P` is the program.
fn in_session(machine: &Machine, script: &str, variables: &[(&str, &str)]) -> Output {
    let whole = format!(
        "printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1\n{script}"
    );
    let mut command = Command::new("dbus-run-session");
    command
        .args(["--", "sh", "-c", &whole])
        .env("P", env!("CARGO_BIN_EXE_pstsyncd"));
    command
        .envs(machine.environment())
        .env("XDG_RUNTIME_DIR", machine.path("run"))
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[test]
fn a_password_in_the_keyring_is_found_and_forgotten() {
    for program in ["dbus-run-session", "gnome-keyring-daemon", "secret-tool"] {
        if !installed(program) {
            skip::skipped("keyring", &format!("{program} is not installed"));
            return;
        }
    }
    if !Path::new("/dev/fuse").exists() {
        skip::skipped("fuse", "no /dev/fuse");
        return;
    }
    let machine = Machine::new();
    let root = machine.path("share");
    fs::write(Path::new(&root).join("old.txt"), b"from the share").unwrap();
    let Some(server) = Smbd::start(Path::new(&root), Options::default()) else {
        return;
    };
    let share = server.address("share").to_string();
    let another = format!("smb://somebody@127.0.0.1:{}/share", server.port());
    let script = r#"
        set -u
        mount() { "$P" mount --background --share "$1" "$MNT" 2>&1; }
        mount "$SHARE" && exit 10
        printf '%s\n' "$SECRET" | "$P" password set "$SHARE" || exit 11
        mount "$OTHER" && exit 12
        mount "$SHARE" || exit 13
        cat "$MNT/old.txt" || exit 14
        "$P" unmount --now "$MNT" || exit 15
        "$P" password forget "$SHARE" || exit 16
        mount "$SHARE" && exit 17
        exit 0
    "#;
    let out = in_session(
        &machine,
        script,
        &[
            ("SHARE", &share),
            ("OTHER", &another),
            ("SECRET", server.password()),
            ("MNT", &machine.path("mnt")),
        ],
    );
    machine.run(&["unmount", "--now", &machine.path("mnt")]);
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{:?}: {said}", out.status);
    assert!(said.contains("from the share"), "{said}");
    assert_eq!(
        said.matches("there is no password for").count(),
        3,
        "{said}"
    );
    assert!(!said.contains(server.password()), "the password is shown");
}

/// A keyring that answers what is no password is not taken for one; a missing one is said.
#[test]
fn what_the_keyring_cannot_give_is_said() {
    let machine = Machine::new();
    let bin = machine.path("bin");
    fs::create_dir(&bin).unwrap();
    let tool = Path::new(&bin).join("secret-tool");
    let mount_on = |bus: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pstsyncd"));
        let out = command
            .envs(machine.environment())
            .env_remove("XDG_RUNTIME_DIR")
            .env("PATH", format!("{bin}:/usr/bin:/bin"))
            .env("DBUS_SESSION_BUS_ADDRESS", bus)
            .args([
                "mount",
                "--share",
                "smb://jo@192.0.2.1/s",
                &machine.path("mnt"),
            ])
            .output()
            .unwrap();
        assert!(!out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    let mount = || mount_on("unix:path=/nowhere");
    let answers = |script: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(&tool, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
    };
    answers("exit 1");
    let said = mount();
    assert!(said.contains("pstsyncd password set"), "{said}");
    assert!(mount().contains("there is no password for jo"));
    answers("echo one; echo two");
    assert!(mount().contains("cannot be used"));
    answers("echo half; exit 1");
    assert!(mount().contains("there is no password for jo"));
    // Without a session nobody is asked.
    answers("echo a password");
    assert!(mount_on("").contains("there is no password for jo"));
    // It is asked for this account, and for no other.
    answers(r#"echo "$@" > "${0%/*}/asked"; exit 1"#);
    mount();
    let asked = fs::read_to_string(Path::new(&bin).join("asked")).unwrap();
    assert_eq!(
        asked.trim(),
        "lookup -- application pstsyncd server 192.0.2.1 port 445 user jo"
    );
}
