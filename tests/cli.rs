//! The command line from outside: arguments, exit codes, and what is said about bad input.

#![allow(clippy::unwrap_used)]

#[path = "support/machine.rs"]
mod machine;
#[path = "support/skip.rs"]
mod skip;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::Command;
use machine::{Machine, stdout};

#[test]
fn help_and_version_succeed_and_name_every_verb_and_exit_code() {
    let machine = Machine::new();
    let help = machine.run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = stdout(&help);
    for word in [
        "mount",
        "unmount",
        "mode",
        "status",
        "sync",
        "agent",
        "pst",
        "completions",
    ] {
        assert!(text.contains(&format!("\n  {word}")), "{word} in {text}");
    }
    assert!(text.contains("0 synced, 2 pending, 3 conflicts, 4 offline, 5 error"));
    for verb in ["info", "ls", "inventory", "dump", "check", "diff", "apply"] {
        let help = machine.run(&["pst", verb, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(stdout(&help).contains("--json"), "{verb}");
    }
    let version = machine.run(&["--version"]);
    assert_eq!(
        stdout(&version).trim(),
        concat!("pstsyncd ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn usage_errors_end_with_5_and_claps_own_text() {
    let machine = Machine::new();
    for args in [
        &[][..],
        &["fly"],
        &["mount"],
        &["mount", "--share", "share"],
        &["mount", "--share", "share", "mnt", "--agent", "https://a"],
        &["mode", "sometimes"],
        &["pst", "apply", "only-one"],
        &["status", "--dirve", "x"],
        &["agent", "serve", "--root", "share"],
    ] {
        let out = machine.run(args);
        assert_eq!(out.status.code(), Some(5), "{args:?}");
        let text = String::from_utf8(out.stderr).unwrap();
        let claps = text.contains("Usage: pstsyncd") || text.contains("try '--help'");
        assert!(claps, "{args:?}: {text}");
    }
}

#[test]
fn completions_are_written_for_every_shell() {
    let machine = Machine::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = machine.run(&["completions", shell]);
        assert_eq!(out.status.code(), Some(0));
        assert!(stdout(&out).contains("agent-invitation"), "{shell}");
    }
}

#[test]
fn without_a_drive_the_commands_say_so_and_end_offline() {
    let machine = Machine::new();
    for args in [
        &["status"][..],
        &["mode"],
        &["mode", "cached"],
        &["sync", "now"],
        &["unmount"],
    ] {
        let error = machine.refused(args, 4, "no-drive");
        assert!(error["next"].as_str().unwrap().contains("pstsyncd mount"));
    }
    machine.refused(&["status", "--drive", "mnt"], 4, "no-such-drive");
    machine.refused(&["unmount", "mnt", "--now"], 4, "no-such-drive");
}

#[test]
fn rules_that_are_missing_or_wrong_are_said_before_anything_is_mounted() {
    let machine = Machine::new();
    let mount = [
        "mount", "--share", "share", "mnt", "--mode", "rules", "--rules",
    ];
    let with = |file: &'static str| mount.into_iter().chain([file]).collect::<Vec<_>>();
    machine.refused(&with("missing"), 5, "not-found");
    std::fs::write(machine.path("rules"), "otherwise cached\nwhen metered\n").unwrap();
    let error = machine.refused(&with("rules"), 5, "bad-rules");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("line 2, column 1"), "{message}");
    let error = machine.refused(&["mode", "auto"], 4, "no-drive");
    assert!(error["next"].as_str().unwrap().contains("pstsyncd mount"));
}

#[test]
fn a_mount_that_cannot_be_says_why_and_leaves_nothing() {
    let machine = Machine::new();
    std::fs::write(machine.path("file"), "x").unwrap();
    std::fs::create_dir(machine.path("full")).unwrap();
    std::fs::write(machine.path("full/x"), "x").unwrap();
    let before = machine.left();
    for background in [false, true] {
        let check = |args: &[&str], code: &str| {
            let mut line = vec!["mount"];
            line.extend(background.then_some("--background"));
            line.extend(args);
            machine.refused(&line, 5, code);
        };
        check(&["--share", "nowhere", "mnt"], "share-missing");
        check(&["--share", "file", "mnt"], "share-not-directory");
        check(
            &["--share", "smb://server/mail", "mnt"],
            "bad-share-address",
        );
        check(
            &["--share", "smb://me:pass@server/mail", "mnt"],
            "bad-share-address",
        );
        check(&["--share", "smb://me@server/mail", "mnt"], "no-password");
        check(
            &["--share", "share", "mnt", "--password-file", "file"],
            "not-smb",
        );
        check(&["--share", r"\\server\mail", "mnt"], "not-in-this-version");
        check(&["--share", "share", "nowhere"], "mountpoint-missing");
        check(&["--share", "share", "file"], "mountpoint-not-directory");
        check(&["--share", "share", "full"], "mountpoint-not-empty");
        check(&["--share", "share", "/proc"], "mountpoint-busy");
        check(&["--share", "share", "share"], "paths-overlap");
        check(
            &["--share", "share", "mnt", "--state-dir", "share/state"],
            "paths-overlap",
        );
    }
    for (args, code) in [
        (["--share", "share", "nowhere"], "mountpoint-missing"),
        (["--share", "share", "file"], "mountpoint-not-directory"),
        (["--share", "share", "full"], "mountpoint-not-empty"),
        (["--share", "share", "/proc"], "mountpoint-busy"),
        (["--share", "share", "share"], "paths-overlap"),
    ] {
        machine.refused(&[&["mount"][..], &args].concat(), 5, code);
    }
    let inside = [
        "mount",
        "--share",
        "share",
        "mnt",
        "--state-dir",
        "share/state",
    ];
    machine.refused(&inside, 5, "paths-overlap");
    assert_eq!(machine.left(), before);
}

/// Found only by the process in the background, which takes the directory: the pipe carries it here.
#[test]
fn what_fails_in_the_background_is_told_by_the_command() {
    let machine = Machine::new();
    std::fs::create_dir(machine.path("state")).unwrap();
    std::fs::set_permissions(machine.path("state"), PermissionsExt::from_mode(0o700)).unwrap();
    let lock = std::fs::File::create(machine.path("state/lock")).unwrap();
    lock.lock().unwrap();
    let line = [
        "mount",
        "--background",
        "--share",
        "share",
        "mnt",
        "--state-dir",
        "state",
    ];
    machine.refused(&line, 5, "state-dir-in-use");
    let log = std::fs::metadata(machine.path("state/daemon.log")).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o600);
}

#[test]
fn agents_are_checked_before_anything_is_made() {
    let machine = Machine::new();
    std::fs::write(machine.path("token"), "t0ken\n").unwrap();
    std::fs::write(machine.path("client.json"), "{").unwrap();
    let before = machine.left();
    let mount = ["mount", "--share", "share", "mnt"];
    let with = |agent: &[&str], code: &str| {
        machine.refused(&[&mount[..], agent].concat(), 5, code);
    };
    let pin = "ab".repeat(32);
    with(
        &[
            "--agent",
            "http://a",
            "--agent-pin",
            &pin,
            "--agent-token-file",
            "token",
        ],
        "bad-agent-url",
    );
    with(
        &[
            "--agent",
            "https://a",
            "--agent-pin",
            "zz",
            "--agent-token-file",
            "token",
        ],
        "bad-agent-pin",
    );
    with(
        &[
            "--agent",
            "https://a",
            "--agent-pin",
            &pin,
            "--agent-token-file",
            "nowhere",
        ],
        "not-found",
    );
    with(&["--agent-invitation", "client.json"], "bad-invitation");
    assert_eq!(machine.left(), before);
}

#[test]
fn an_agent_that_cannot_serve_says_why() {
    let machine = Machine::new();
    let serve = |root: &str, listen: &str, code: &str| {
        machine.refused(
            &["agent", "serve", "--root", root, "--listen", listen],
            5,
            code,
        );
    };
    serve("nowhere", "127.0.0.1:0", "root-missing");
    serve("share", "here", "bad-address");
    serve("share", "127.0.0.1:99999", "bad-address");
    assert!(!Path::new(&machine.path("state")).exists());
}

#[test]
fn a_bad_log_filter_is_an_error_and_not_ignored() {
    let machine = Machine::new();
    let out = Command::cargo_bin("pstsyncd")
        .unwrap()
        .args(["status"])
        .env("PSTSYNCD_RUNTIME_DIR", machine.path("run"))
        .env("RUST_LOG", "sync=loud=er")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(5));
    assert!(
        String::from_utf8(out.stderr)
            .unwrap()
            .contains("RUST_LOG is not a log filter")
    );
}

#[test]
fn a_runtime_directory_open_to_others_is_refused() {
    let machine = Machine::new();
    std::fs::set_permissions(machine.path("run"), PermissionsExt::from_mode(0o777)).unwrap();
    machine.refused(&["status"], 5, "runtime-dir-unsafe");
}

#[test]
fn output_that_nobody_reads_ends_the_command_without_a_word() {
    let machine = Machine::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_pstsyncd"))
        .args(["completions", "bash"])
        .current_dir(machine.path("."))
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(5));
    assert!(
        out.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn an_agent_says_how_to_reach_it_and_ends_when_asked() {
    use std::io::{BufRead, BufReader};
    let machine = Machine::new();
    let start = |listen: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_pstsyncd"))
            .args([
                "agent",
                "serve",
                "--root",
                "share",
                "--json",
                "--state-dir",
                "agent",
            ])
            .args(["--listen", listen])
            .current_dir(machine.path("."))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut agent = start("127.0.0.1:0");
    let mut line = String::new();
    BufReader::new(agent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(
        said["url"]
            .as_str()
            .unwrap()
            .starts_with("https://127.0.0.1:"),
        "{said}"
    );
    assert_eq!(said["ca_fingerprint"].as_str().unwrap().len(), 64);
    let invitation = said["invitation"].as_str().unwrap();
    let invitation = Path::new(&machine.path(".")).join(invitation);
    let mode = std::fs::metadata(invitation).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // One agent per state directory, and per port.
    let port = said["addr"].as_str().unwrap().to_owned();
    let serve = ["agent", "serve", "--root", "share", "--listen"];
    let same_state = [&serve[..], &["127.0.0.1:0", "--state-dir", "agent"]].concat();
    machine.refused(&same_state, 5, "state-dir-in-use");
    let same_port = [&serve[..], &[port.as_str(), "--state-dir", "agent2"]].concat();
    let error = machine.refused(&same_port, 5, "cannot-listen");
    assert!(
        error["message"].as_str().unwrap().contains("in use"),
        "{error}"
    );
    let pid = rustix::process::Pid::from_child(&agent);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = agent.wait().unwrap();
    assert_eq!(ended.code(), Some(0));
}
